"""Numbers, long texts and long lists in sentences."""

import pytest

from jpeft.words import clipped, counted, size, the_first


def test_a_noun_agrees_with_its_number():
    assert [counted(n, "row") for n in (0, 1, 2, 2500)] == ["0 rows", "1 row", "2 rows", "2,500 rows"]
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0, "0 B"), (512, "512 B"), (1000, "1.00 kB"), (999_999, "1.00 MB"), (41_500_000, "41.5 MB"), (123e6, "123 MB"),
     (23.6e9, "23.6 GB"), (2e12, "2.00 TB")],
)  # fmt: skip
def test_a_size_has_the_unit_that_shows_it(amount, said):
    assert size(amount) == said


def test_of_other_things():
    assert size(3.5e15, "FLOP") == "3.50 PFLOP"


def test_long_texts_and_lists_are_cut_and_say_so():
    assert clipped("abc", 3) == "abc" and clipped("abcd", 3) == "abc..."
    assert the_first(["a", "b", "c"]) == "a; b; c" and the_first(["a", "b", "c", "d"]) == "a; b; c ..."
