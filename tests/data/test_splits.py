"""Splits: identical for every method and scale, and no test row or twin of one in the training split."""

import dataclasses
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeft.data.splits import SCALES, draw, labels_of, leaks, same_inputs
from jpeft.data.tasks import TASKS
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


def test_a_large_single_file_trains_on_all_that_the_caps_leave():
    parts = draw({"train": 100_000}, seed=0, max_train=None)
    assert [len(parts[name].rows) for name in ("train", "validation", "test")] == [95_000, 2_500, 2_500]


@pytest.mark.parametrize("sizes", [AGNEWS, COLA, E2E, SAMSUM, {"train": 30_000}])
def test_a_smaller_cap_takes_the_first_rows_and_moves_no_others(sizes):
    whole = draw(sizes, seed=0, max_train=None)
    few = draw(sizes, seed=0, max_train=None, max_validation=20, max_test=1)
    assert few["train"] == whole["train"]
    assert few["validation"].rows == whole["validation"].rows[:20] and few["test"].rows == whole["test"].rows[:1]


@pytest.mark.parametrize("sizes", [AGNEWS, COLA, E2E, SAMSUM, {"train": 90}])
def test_rows_that_all_differ_are_drawn_as_if_nobody_had_looked(sizes):
    inputs = {name: list(range(i * 10**6, i * 10**6 + size)) for i, (name, size) in enumerate(sizes.items())}
    assert draw(sizes, seed=1, max_train=100, inputs=inputs) == draw(sizes, seed=1, max_train=100)


@pytest.mark.parametrize("sizes", [AGNEWS, COLA])
def test_twins_leave_the_sizes_of_the_papers_protocol_as_they_are(sizes):
    rng = np.random.default_rng(0)
    inputs = {name: rng.integers(0, size, size).tolist() for name, size in sizes.items()}
    parts = draw(sizes, seed=0, max_train=None, inputs=inputs)
    plain = draw(sizes, seed=0, max_train=None)
    assert [len(part.rows) for part in parts.values()] == [len(part.rows) for part in plain.values()]
    assert_apart(parts, inputs)


def assert_apart(parts, inputs):
    """No two parts of a source split share an input."""
    asked = [{(part.source, inputs[part.source][row]) for row in part.rows} for part in parts.values()]
    assert sum(map(len, asked)) == len(set().union(*asked))


def test_a_file_of_meanings_with_several_sentences_keeps_each_meaning_in_one_split():
    meanings = [f"name[{i // 8}]" for i in range(42_000)]
    rows = {"train": {"meaning_representation": meanings, "human_reference": list(map(str, range(42_000)))}}
    inputs = same_inputs(TASKS["e2e"], rows)
    began = time.perf_counter()
    parts = draw({"train": 42_000}, seed=0, max_train=None, inputs=inputs)
    assert time.perf_counter() - began < 5
    assert_apart(parts, inputs)
    assert len(parts["train"].rows) >= 37_000
    assert all(2_490 <= len(parts[name].rows) <= 2_500 for name in ("validation", "test"))


def test_rows_are_twins_when_the_model_reads_the_same_of_them():
    rows = {
        "train": {"input": ["a b", " a  b\n", "A b", 1, None], "id": [1, 2, 3, 4, 5], "target": list("vwxyz")},
        "test": {"input": ["1", "a b"], "id": [9, 1], "target": ["v", "v"]},
    }
    assert same_inputs(TASKS["custom"], rows) == {"train": [0, 0, 1, 2, 3], "test": [2, 0]}
    both = TASKS["custom"].with_template("{id}: {input}")
    assert same_inputs(both, rows) == {"train": [0, 1, 2, 3, 4], "test": [5, 0]}


def test_a_leak_between_given_files_is_counted():
    sizes = {"train": 3, "validation": 2, "test": 4}
    inputs = {"train": [0, 1, 1], "validation": [5, 6], "test": [1, 0, 7, 0]}
    parts = draw(sizes, seed=0, max_train=None, inputs=inputs)
    assert leaks(parts, inputs) == [
        "3 of 4 test rows have the input of a row that trains: what is measured on them flatters the model"
    ]
    trained, validated = leaks(parts, {**inputs, "validation": [0, 6]})
    assert trained.startswith("1 of 2 validation rows and 3 of 4 test rows have the input of a row that trains")
    assert validated.startswith("2 of 4 test rows have the input of a row that validates, by which the epoch is chosen")
    assert leaks(parts, {**inputs, "test": [7, 7, 7, 7]}) == []
    assert len(leaks(parts, {**inputs, "validation": [7, 8], "test": [7, 7, 9, 9]})) == 1
    assert {name: sorted(part.rows) for name, part in parts.items()} == {
        "train": [0, 1, 2], "validation": [0, 1], "test": [0, 1, 2, 3]
    }  # fmt: skip


CLASSES = {"even": [50] * 4, "skewed": [180, 15, 5], "many": [10] * 30, "rare": [97, 2, 1], "single": [1] * 40}


@pytest.mark.parametrize("counts", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("given", [("train",), ("train", "test"), ("train", "validation")])
def test_classes_are_in_each_drawn_part_in_their_shares_and_all_of_them_train(counts, given):
    labels = [f"class {i}" for i, count in enumerate(counts) for _ in range(count)]
    rows = {name: {"input": list(map(str, range(len(labels)))), "target": labels} for name in given}
    task = dataclasses.replace(TASKS["custom"], kind="classification")
    of_rows, inputs = labels_of(task, rows), same_inputs(task, rows)
    sizes = {name: len(labels) for name in given}
    for seed in range(3):
        parts = draw(sizes, seed=seed, max_train=None, inputs=inputs, labels=of_rows)
        plain = draw(sizes, seed=seed, max_train=None)
        assert [len(part.rows) for part in parts.values()] == [len(part.rows) for part in plain.values()]
        if max(counts) > 1:
            assert {labels[row] for row in parts["train"].rows} == set(labels)
        drawn = [
            name for name in ("validation", "test") if name not in given or "test" not in given and name != "train"
        ]
        for name in drawn:
            share = len(parts[name].rows) / len(labels)
            found = Counter(labels[row] for row in parts[name].rows)
            if min(counts) * share >= 1:
                assert all(abs(found[label] - count * share) < 1 for label, count in Counter(labels).items())


def test_a_class_whose_rows_are_all_twins_is_not_torn_apart():
    labels = ["a"] * 30 + ["b"] * 30
    inputs = {"train": [0] * 30 + list(range(1, 31))}
    parts = draw({"train": 60}, seed=0, max_train=None, inputs=inputs, labels={"train": labels})
    assert_apart(parts, inputs)
    assert [len(parts[name].rows) for name in ("train", "validation", "test")] == [48, 6, 6]
    assert set(range(30)) <= set(parts["train"].rows)


def test_the_benchmarks_own_classes_are_drawn_as_the_paper_draws_them():
    rows = {"train": {"text": ["x"], "label": [1]}}
    assert labels_of(TASKS["agnews"], rows) is None
    assert labels_of(TASKS["custom"], {"train": {"input": ["x"], "target": ["y"]}}) is None


def test_a_file_of_one_input_cannot_be_split_and_says_why():
    with pytest.raises(
        UserError, match=r"the validation split is empty .* 40 train rows, 1 different inputs, and equal"
    ):
        draw({"train": 40}, seed=0, max_train=None, inputs={"train": [0] * 40})


@given(
    size=st.integers(20, 200),
    kinds=st.integers(2, 200),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    fewer=st.integers(1, 100),
)
@settings(max_examples=40)
def test_whatever_the_twins_and_classes_are_parts_stay_apart_and_smaller_ones_are_prefixes(
    size, kinds, classes, seed, fewer
):
    rng = np.random.default_rng(seed)
    inputs = {"train": rng.integers(0, kinds, size).tolist()}
    labels = {"train": [f"class {number}" for number in rng.integers(0, classes, size)]}
    try:
        parts = draw({"train": size}, seed=seed, max_train=None, inputs=inputs, labels=labels)
    except UserError as error:
        assert "split is empty" in str(error)
        return
    assert_apart(parts, inputs)
    assert sorted(row for part in parts.values() for row in part.rows) == list(range(size))
    small = draw({"train": size}, seed=seed, max_train=fewer, inputs=inputs, labels=labels)
    assert small["train"].rows == parts["train"].rows[:fewer]
    assert (small["validation"], small["test"]) == (parts["validation"], parts["test"])


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
