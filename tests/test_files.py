"""Reading untrusted JSON: every kind of damage is a one-line error that names the file."""

import os

import pytest

from jpeft.errors import RunFailed, UserError
from jpeft.files import (
    cache_directory,
    check_fields,
    parse_json,
    read_json,
    read_json_object,
    unfinished_target,
    write_directory,
    write_whole,
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ('{"a": 1e999}', "holds 1e999"),
        ('{"a": ' + "1" * 5000 + "}", "thousands of digits"),
        ("[" * 100_000 + "]" * 100_000, "levels deep"),
        ("[" * 65 + "]" * 65, "levels deep"),
        (r'{"a": ["\ud83d"]}', "surrogate"),
        (r'{"\ud83d": 1}', "surrogate"),
    ],
)
def test_what_is_no_usable_json_is_refused_in_one_line(text, says):
    with pytest.raises(UserError, match=says) as caught:
        parse_json(text, "x.json")
    assert str(caught.value).startswith("x.json") and "\n" not in str(caught.value)


def test_what_is_json_comes_through():
    assert parse_json(r'{"a": [1, 2.5, "\ud83d\ude00", null, true]}', "x") == {"a": [1, 2.5, "\U0001f600", None, True]}
    assert parse_json("[" * 64 + "]" * 64, "x")


def test_a_file_that_is_none_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b'{"a": "\xe4"}')
    (tmp_path / "list").write_text("[]")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf{}")
    for name, says in [
        ("pipe", "not a regular file"),
        (".", "directory"),
        ("none", "not exist"),
        ("latin", "not UTF-8"),
    ]:
        with pytest.raises(RunFailed, match=says):
            read_json(tmp_path / name, error=RunFailed)
    with pytest.raises(UserError, match="bytes; expected 1 at most"):
        read_json(tmp_path / "list", most_bytes=1)
    with pytest.raises(UserError, match="holds a list; expected an object"):
        read_json_object(tmp_path / "list")
    assert read_json_object(tmp_path / "marked") == {}


def test_a_field_of_another_type_is_named():
    kinds = {"r": int, "alpha": float, "modules": (str, list), "flag": bool}
    check_fields({"r": 8, "alpha": 16, "modules": ["q"], "flag": None, "other": {}}, kinds, "x")
    for name, value in [("r", True), ("r", 8.0), ("r", "8"), ("alpha", [1]), ("modules", {}), ("flag", 1)]:
        with pytest.raises(UserError, match=f"x: {name} is .*; expected"):
            check_fields({name: value}, kinds, "x")


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "result.json"
    with write_whole(path) as beside:
        beside.write_text("{}")
        assert not path.exists()
        assert beside.parent == tmp_path
    assert path.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_was_not_finished_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "result.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(OSError, match="disk full"):
        with write_whole(path) as beside:
            beside.write_text("half")
            raise OSError("disk full")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"result.json": "old"} if before else {})


def test_two_threads_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "result.json"
    with write_whole(path) as first, write_whole(path) as second:
        assert first != second and unfinished_target(first) == unfinished_target(second) == path.name
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ended last
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_directory_do_not_mix(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(OSError, match="not empty"), write_directory(path) as first:
        (first / "half").write_text("first")
        with write_directory(path) as second:
            assert first != second and unfinished_target(first) == unfinished_target(second) == path.name
            (second / "whole").write_text("second")
        assert (first / "half").read_text() == "first"
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "whole"]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("JPEFT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_directory() == tmp_path / "me" / ".cache" / "jpeft"
    monkeypatch.setenv("JPEFT_CACHE", " ")  # as a script leaves it that has no value for it
    assert cache_directory() == tmp_path / "me" / ".cache" / "jpeft"


def test_a_cache_whose_name_is_not_utf_8_is_refused(monkeypatch):
    monkeypatch.setenv("JPEFT_CACHE", "/tmp/\udcff")
    with pytest.raises(UserError, match=r"^'/tmp/\\xff' holds bytes that are not UTF-8; set .* JPEFT_CACHE to another"):
        cache_directory()


def test_a_link_to_a_file_is_replaced_and_what_it_leads_to_stays(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("theirs")
    link.symlink_to(real)
    with write_whole(link) as beside:
        beside.write_text("ours")
    assert (real.read_text(), link.read_text(), link.is_symlink()) == ("theirs", "ours", False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"), write_whole(tmp_path / "pipe"):
        pass
