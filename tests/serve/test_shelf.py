"""The shelf serves the adapters of one directory and no other files."""

import shutil

import pytest

from jpeft.errors import UserError
from jpeft.serve.shelf import NotOnShelf, Shelf


def write_adapter(directory):
    """Write files with the right names; finding an adapter does not open its weights."""
    directory.mkdir(parents=True)
    (directory / "jpeft_adapter.json").write_text("{}")
    (directory / "jpeft_adapter.safetensors").write_bytes(b"")


@pytest.fixture
def shelf(tmp_path):
    """A shelf with one adapter, and another adapter outside its directory."""
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
    assert shelf.survey()[0] == ["mine"]


def test_links_within_the_directory_lead_on(shelf, tmp_path):
    (tmp_path / "shelf/alias").symlink_to(tmp_path / "shelf/mine")
    assert shelf.survey()[0] == ["alias", "mine"]
    assert (shelf.find("alias") / "jpeft_adapter.json").is_file()


def test_a_run_is_found_by_its_name(shelf, tmp_path):
    write_adapter(tmp_path / "shelf/run.1/adapter")
    assert shelf.find("run.1").name == "adapter"


def test_what_is_no_adapter_is_not_there(shelf, tmp_path):
    (tmp_path / "shelf/file").write_text("x")
    (tmp_path / "shelf/empty").mkdir()
    (tmp_path / "shelf/dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "shelf/round").symlink_to(tmp_path / "shelf/round")
    assert shelf.survey()[0] == ["mine"]
    assert sorted(shelf.survey()[1]) == ["dangling", "empty", "round"]  # a plain file is not an adapter


@pytest.mark.parametrize("name", ["my run", "lr=3e-4,rank(8)", "a+b@c", "0", "r" * 128])
def test_names_as_people_give_them_are_served(name, shelf, tmp_path):
    write_adapter(tmp_path / "shelf" / name)
    assert shelf.survey()[0] == sorted([name, "mine"]) and shelf.find(name).name == name


@pytest.mark.parametrize("name", ["r" * 129, "-rf", "%41", "a\nb", "größe", "a:b", "a\\b", "\udce9"])
def test_other_names_are_named_with_the_rule(name, shelf, tmp_path):
    write_adapter(tmp_path / "shelf" / name)
    assert shelf.survey()[0] == ["mine"]
    ((shown, reason),) = shelf.survey()[1].items()
    assert "is not plain" in reason and shown.encode()
    with pytest.raises(NotOnShelf):
        shelf.find(name)


def test_links_are_followed_where_the_operator_says_so(shelf, tmp_path):
    (tmp_path / "shelf/linked").symlink_to(tmp_path / "secret")
    assert Shelf(tmp_path / "shelf", follow_links=True).survey()[0] == ["linked", "mine"]
    assert "--follow-links" in shelf.survey()[1]["linked"]


def test_a_shelf_has_to_be_a_directory(tmp_path):
    with pytest.raises(UserError, match="is no directory"):
        Shelf(tmp_path / "nowhere")


def test_a_run_or_an_adapter_may_be_the_shelf_itself(tmp_path):
    write_adapter(tmp_path / "my run/adapter")
    (tmp_path / "my run/config.json").write_text("{}")
    (tmp_path / "my run/checkpoint").mkdir()
    run = Shelf(tmp_path / "my run")
    assert run.survey()[0] == ["my run"] and run.find("my run").name == "adapter" and run.survey()[1] == {}
    write_adapter(tmp_path / "größe")
    alone = Shelf(tmp_path / "größe")
    assert alone.survey()[0] == ["adapter"] and alone.find("adapter").name == "größe"
    for name in ("checkpoint", "..", "größe", "other"):
        for shelf in (run, alone):
            with pytest.raises(NotOnShelf):
                shelf.find(name)


def test_a_directory_that_is_taken_away_holds_nothing(shelf, tmp_path):
    shutil.rmtree(tmp_path / "shelf")
    assert shelf.survey() == ([], {})
    with pytest.raises(NotOnShelf):
        shelf.find("mine")
