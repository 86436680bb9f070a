"""Clients reach the adapters of one directory and nothing else."""

import shutil

import pytest

from jpeft.errors import UserError
from jpeft.serve.shelf import NotOnShelf, Shelf


def write_adapter(directory):
    """Files of the right names; finding an adapter does not open its weights."""
    directory.mkdir(parents=True)
    (directory / "jpeft_adapter.json").write_text("{}")
    (directory / "jpeft_adapter.safetensors").write_bytes(b"")


@pytest.fixture
def shelf(tmp_path):
    """A shelf with one adapter and, beside it, one that is out of reach."""
    write_adapter(tmp_path / "shelf/mine")
    write_adapter(tmp_path / "secret")
    return Shelf(tmp_path / "shelf")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "mine/../../secret",
        "./mine",
        "mine/",
        "/mine",
        "mine\n",
        "mine\0",
        ".mine",
        "~",
        "%2e%2e",
        "..\\secret",
        "mine\u2044..",
        "m" * 300,
        "\ud800",
    ],
)
def test_a_name_that_is_not_plain_is_not_there(name, shelf):
    with pytest.raises(NotOnShelf):
        shelf.find(name)


def test_an_absolute_path_is_not_there(shelf, tmp_path):
    with pytest.raises(NotOnShelf):
        shelf.find(str(tmp_path / "secret"))


def test_links_that_lead_out_are_not_there(shelf, tmp_path):
    root = tmp_path / "shelf"
    (root / "linked").symlink_to(tmp_path / "secret")
    shutil.copytree(tmp_path / "secret", root / "files")
    weights = root / "files/jpeft_adapter.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "secret/jpeft_adapter.safetensors")
    (root / "run").mkdir()
    (root / "run/adapter").symlink_to(tmp_path / "secret")
    for name in ("linked", "files", "run"):
        with pytest.raises(NotOnShelf):
            shelf.find(name)
    assert shelf.names() == ["mine"]


def test_links_within_the_directory_lead_on(shelf, tmp_path):
    (tmp_path / "shelf/alias").symlink_to(tmp_path / "shelf/mine")
    assert shelf.names() == ["alias", "mine"]
    assert (shelf.find("alias") / "jpeft_adapter.json").is_file()


def test_a_run_is_found_by_its_name(shelf, tmp_path):
    write_adapter(tmp_path / "shelf/run.1/adapter")
    assert shelf.find("run.1").name == "adapter"


def test_what_is_no_adapter_is_not_there(shelf, tmp_path):
    (tmp_path / "shelf/file").write_text("x")
    (tmp_path / "shelf/empty").mkdir()
    (tmp_path / "shelf/dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "shelf/round").symlink_to(tmp_path / "shelf/round")
    assert shelf.names() == ["mine"]


def test_a_shelf_has_to_be_a_directory(tmp_path):
    with pytest.raises(UserError, match="is no directory"):
        Shelf(tmp_path / "nowhere")
