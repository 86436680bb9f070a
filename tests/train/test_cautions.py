"""Warnings: each where it is true, and only there."""

import pytest

from jpeft.config import Run
from jpeft.eval.per_class import Confusion
from jpeft.train.cautions import (
    few_steps,
    few_test_rows,
    no_label,
    not_above_majority,
    one_answer,
    same_text,
    still_learning,
    without_effect,
)


def confusion(targets, predictions):
    return Confusion.of(targets, predictions, [float(t == p) for t, p in zip(targets, predictions, strict=True)])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, None),
        ({"data": {"source": "sample", "sample_seed": 3}}, None),
        ({"ablation": {"name": "random", "seed": 3}}, None),
        (
            {"data": {"path": "rows", "sample_seed": 3}},
            "data.sample_seed=3 changes nothing here: it is for data.source=sample",
        ),
        (
            {"data": {"sample_seed": 4}, "ablation": {"name": "early", "seed": 2}},
            "data.sample_seed=4 changes nothing here: it is for data.source=sample; "
            "ablation.seed=2 changes nothing here: it is for ablation.name=random",
        ),
    ],
)
def test_keys_that_nothing_reads(config, told):
    assert without_effect(Run.from_config(config)) == told


def test_few_test_rows():
    line = few_test_rows(24)
    assert line and line.startswith("only 24 test rows: half of them right would mean anything from 0.31 to 0.69")
    assert (few_test_rows(1) or "").startswith("only 1 test row:")
    assert few_test_rows(30) is None


def test_few_steps():
    line = few_steps(160, batch_size=16, accumulation_steps=4, max_epochs=10)
    assert line == (
        "only 30 optimizer steps in 10 epochs (160 rows, 64 a step): little can be learned in so few; more with "
        "--config.train.max_epochs=17 or --config.train.accumulation_steps=1 (100 steps)"
    )
    assert few_steps(160, batch_size=16, accumulation_steps=4, max_epochs=17) is None  # as the line says
    line = few_steps(100, batch_size=16, accumulation_steps=1, max_epochs=1)
    assert line and "in 1 epoch (100 rows, 16 a step)" in line and "accumulation_steps" not in line
    assert few_steps(10_000, batch_size=16, accumulation_steps=4, max_epochs=1) is None


def test_answers_that_are_no_label():
    targets = list("abab")
    line = no_label(confusion(targets, ["x y", "", "?", "!"]), ["x y", "", "?", "!"], answer="generate")
    assert line and line.startswith("all 4 answers are no label, such as 'x y': the model has not learned")
    assert "--config.train.max_epochs" in line and "--config.eval.answer=score" in line
    half = ["a", "?", "a", "!"]
    line = no_label(confusion(targets, half), half, answer="score")
    assert line and line.startswith("2 of 4 answers are no label, such as '?'") and "eval.answer" not in line
    most = ["a", "b", "a", "!"]
    assert no_label(confusion(targets, most), most, answer="generate") is None


def test_every_answer_the_same_class():
    line = one_answer(confusion(list("aaab"), list("aaaa")))
    assert line and line.startswith(
        "every answer is 'a', which 75% of the test rows are: the classes are not told apart"
    )
    assert one_answer(confusion(list("aaab"), list("aaba"))) is None
    assert one_answer(confusion(list("aaa"), list("aaa"))) is None  # rightly so
    assert one_answer(confusion(list("ab"), list("??"))) is None  # said by another line


@pytest.mark.parametrize(
    ("predictions", "interval", "says"),
    [
        ("aabb" + "a" * 6, (0.3, 0.8), "accuracy 0.500 is below 0.700, which always answering 'a' gives"),
        ("a" * 7 + "baa", (0.5, 0.95), "accuracy 0.800 cannot be told from 0.700"),
        ("a" * 7 + "bbb", (0.72, 1.0), None),
    ],
)
def test_no_better_than_the_majority(predictions, interval, says):
    found = confusion("a" * 7 + "bbb", predictions)
    accuracy = {"aabb" + "a" * 6: 0.5, "a" * 7 + "baa": 0.8}.get(predictions, 1.0)
    line = not_above_majority(found, accuracy, interval)
    assert line is None if says is None else line is not None and line.startswith(says)


def test_the_majority_alone_is_said_once():
    assert not_above_majority(confusion(list("aaab"), list("aaaa")), 0.75, (0.3, 0.95)) is None


def test_one_text_for_all_rows():
    assert (same_text(["", " "], ["x", "y"]) or "").startswith("every answer is empty: nothing of the inputs was used")
    assert (same_text(["so", "so"], ["x", "y"]) or "").startswith("every answer is the same text, 'so':")
    assert same_text(["so", "no"], ["x", "y"]) is None
    assert same_text(["x", "x"], ["x", "x"]) is None  # rightly so
    assert same_text(["x"], ["y"]) is None


def test_the_last_epoch_was_the_best():
    line = still_learning(best_epoch=9, epochs_run=10, max_epochs=10)
    assert line and "--config.train.max_epochs=20" in line
    assert still_learning(best_epoch=8, epochs_run=10, max_epochs=10) is None
    assert still_learning(best_epoch=4, epochs_run=5, max_epochs=10) is None
    assert still_learning(best_epoch=0, epochs_run=1, max_epochs=1) is None  # of one epoch nothing can be said
