"""Splits: the same for every method and scale, and never a test row that trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jpeft.data.splits import SCALES, draw
from jpeft.errors import UserError

AGNEWS = {"train": 120_000, "test": 7_600}
COLA = {"train": 8_551, "validation": 1_043}
E2E = {"train": 42_061, "validation": 4_672, "test": 4_693}
SAMSUM = {"train": 14_732, "validation": 818, "test": 819}


def rows(split):
    return {(split.source, row) for row in split.rows}


@pytest.mark.parametrize("sizes", [AGNEWS, COLA, E2E, SAMSUM, {"train": 90}])
def test_one_seed_draws_the_same_rows_and_another_seed_others(sizes):
    once = draw(sizes, seed=1, max_train=50)
    assert draw(sizes, seed=1, max_train=50) == once
    assert draw(dict(reversed(sizes.items())), seed=1, max_train=50) == once
    for name, split in draw(sizes, seed=2, max_train=50).items():
        assert split.rows != once[name].rows


@pytest.mark.parametrize("sizes", [AGNEWS, COLA, E2E, SAMSUM, {"train": 3_000}])
def test_a_smaller_scale_trains_on_a_prefix_of_a_larger_one_and_is_judged_on_the_same_rows(sizes):
    low, medium, high = (draw(sizes, seed=0, max_train=SCALES[scale][0]) for scale in ("low", "medium", "high"))
    assert len(low["train"].rows) == 100
    assert len(medium["train"].rows) == 1_000
    assert low["train"].rows == medium["train"].rows[:100]
    assert medium["train"].rows == high["train"].rows[:1_000]
    for name in ("validation", "test"):
        assert low[name] == medium[name] == high[name]


def test_the_labelled_cola_rows_are_halved_into_521_and_522():
    parts = draw(COLA, seed=0, max_train=None)
    assert parts["validation"].source == parts["test"].source == "validation"
    assert (len(parts["validation"].rows), len(parts["test"].rows)) == (521, 522)
    assert len(rows(parts["validation"]) | rows(parts["test"])) == 1_043
    assert len(parts["train"].rows) == 8_551


def test_ag_news_is_tested_on_2500_of_7600_and_validated_on_training_rows_that_do_not_train():
    parts = draw(AGNEWS, seed=0, max_train=None)
    assert parts["test"].source == "test" and len(parts["test"].rows) == 2_500
    assert max(parts["test"].rows) > 7_000  # drawn from all of them
    assert parts["validation"].source == "train" and len(parts["validation"].rows) == 2_500
    assert not rows(parts["validation"]) & rows(parts["train"])
    assert len(parts["train"].rows) == 117_500


def test_given_splits_keep_their_own_rows_and_the_caps():
    parts = draw(E2E, seed=0, max_train=10, max_validation=20, max_test=30)
    assert {name: (split.source, len(split.rows)) for name, split in parts.items()} == {
        "train": ("train", 10),
        "validation": ("validation", 20),
        "test": ("test", 30),
    }
    whole = draw(SAMSUM, seed=0, max_train=None)
    assert [len(whole[name].rows) for name in ("train", "validation", "test")] == [14_732, 818, 819]


def test_no_cap_takes_every_row():
    parts = draw(AGNEWS, seed=0, max_train=None, max_validation=None, max_test=None)
    assert [len(parts[name].rows) for name in ("train", "validation", "test")] == [108_000, 12_000, 7_600]


def test_a_single_file_gives_a_tenth_to_validation_and_to_test():
    parts = draw({"train": 90}, seed=0, max_train=None)
    assert [len(parts[name].rows) for name in ("train", "validation", "test")] == [72, 9, 9]


def test_a_row_is_named_by_its_source_split_and_number():
    split = draw(COLA, seed=0, max_train=1)["test"]
    assert split.ids[0] == f"validation/{split.rows[0]}"


@pytest.mark.parametrize(
    ("sizes", "empty"),
    [
        ({"train": 4}, "validation"),
        ({"train": 4, "test": 3}, "validation"),
        ({"train": 4, "validation": 1}, "validation"),
        ({"train": 4, "validation": 2, "test": 0}, "test"),
        ({"train": 0, "validation": 2, "test": 2}, "train"),
    ],
)
def test_an_empty_split_is_named_with_what_the_source_has(sizes, empty):
    with pytest.raises(UserError, match=rf"the {empty} split is empty .*the source has {sizes['train']} train"):
        draw(sizes, seed=0, max_train=100)


@given(
    train=st.integers(20, 400),
    validation=st.none() | st.integers(2, 60),
    test=st.none() | st.integers(1, 60),
    seed=st.integers(0, 2**32),
    caps=st.tuples(*[st.none() | st.integers(1, 500)] * 3),
    fewer=st.integers(1, 500),
)
def test_parts_never_overlap_never_repeat_a_row_and_never_exceed_their_caps(train, validation, test, seed, caps, fewer):
    sizes = {"train": train, "validation": validation, "test": test}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    max_train, max_validation, max_test = caps
    parts = draw(sizes, seed=seed, max_train=max_train, max_validation=max_validation, max_test=max_test)
    seen = set()
    for (name, split), cap in zip(parts.items(), caps, strict=True):
        assert 1 <= len(split.rows) <= (cap or len(split.rows)), name
        assert all(0 <= row < sizes[split.source] for row in split.rows)
        assert len(rows(split)) == len(split.rows)
        assert not seen & rows(split)
        seen |= rows(split)
    small = draw(sizes, seed=seed, max_train=fewer, max_validation=max_validation, max_test=max_test)
    shared = min(len(small["train"].rows), len(parts["train"].rows))
    assert small["train"].rows[:shared] == parts["train"].rows[:shared]
    assert (small["validation"], small["test"]) == (parts["validation"], parts["test"])
