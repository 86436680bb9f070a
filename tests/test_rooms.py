"""The house: no room stands on itself through others, and the picture of docs/design.md is of today's imports."""

import pytest

from tests.script import imported


@pytest.fixture(scope="module")
def rooms():
    with imported("draw_rooms") as module:
        yield module


def test_there_is_no_circle_and_the_methods_know_no_model(rooms):
    found = rooms.imports()
    level = rooms.levels(found)
    assert level["ground"] == 0 and level["cli"] == max(level.values())
    assert set(found["peft"]) == {"ground"} and set(found["model"]) == {"ground"}


def test_the_picture_is_of_todays_imports(rooms):
    assert rooms.drawn(rooms.imports()) == rooms.PICTURE.read_text(encoding="utf-8")


def test_a_circle_is_told(rooms):
    with pytest.raises(ValueError, match="stand on each other: {'a': \\['b'\\], 'b': \\['a'\\]}"):
        rooms.levels({"a": {"b": set()}, "b": {"a": set()}, "ground": {}})
