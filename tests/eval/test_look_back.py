"""Warnings about a test's answers: each appears if and only if it applies."""

import dataclasses

import pytest

from jpeft.data.tasks import TASKS, Example
from jpeft.eval.answering import Answers
from jpeft.eval.look_back import (
    few_test_rows,
    look_back,
    no_label,
    not_above_majority,
    one_answer,
    one_class,
    same_text,
    unended_answers,
)
from jpeft.eval.per_class import Confusion


def confusion(targets, predictions):
    return Confusion.of(targets, predictions, [float(t == p) for t, p in zip(targets, predictions, strict=True)])


def test_few_test_rows():
    line = few_test_rows(24)
    assert line and line.startswith("only 24 test rows: half of them right would mean anything from 0.31 to 0.69")
    assert (few_test_rows(1) or "").startswith("only 1 test row:")
    assert few_test_rows(30) is None


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


def test_answers_that_were_cut_are_counted():
    assert unended_answers(0, 500, 8) is None
    assert unended_answers(3, 1000, 8) == "3 of 1,000 answers reached 8 tokens, the most of an answer, before their end"
    assert unended_answers(2, 2, 8).startswith("all 2 answers reached")


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_a_tests_cut_answers_are_told(kind):
    task = dataclasses.replace(TASKS["agnews" if kind == "classification" else "e2e"], max_target_length=7)
    examples = [Example("0", "a", "World", ("World",)), Example("1", "b", "Sports", ("Sports",))]
    scored = Answers(["World", "Sports"], None, 1).scored(task, examples)
    warnings = look_back(task, examples, scored, answer="generate").warnings
    assert any("1 of 2 answers reached 7 tokens" in line for line in warnings)


def test_a_test_of_a_single_class_is_told():
    """As found: 40 rows of one of two classes, all right, had a Matthews correlation of 0.0000, -0.088 to 0.088."""
    task = dataclasses.replace(TASKS["cola"], metrics=())
    good, bad = task.answers
    for predictions in ([good] * 40, [good] * 20 + [bad] * 20):
        examples = [Example(str(i), str(i), good, (good,)) for i in range(40)]
        seen = look_back(task, examples, Answers(predictions, None).scored(task, examples), answer="generate")
        says = f"all 40 test rows are {good!r}: the metrics say nothing of the 1 other class, and a Matthews"
        assert [line for line in seen.warnings if line.startswith(says)]
        assert "matthews_correlation" not in seen.trust and "accuracy" in seen.trust
    assert one_class(confusion([good, bad], [good, good])) is None
    assert one_class(confusion([good, good], [good, good])) is None  # the task has no other


def test_one_text_for_all_rows():
    assert (same_text(["", " "], ["x", "y"]) or "").startswith("every answer is empty: nothing of the inputs was used")
    assert (same_text(["so", "so"], ["x", "y"]) or "").startswith("every answer is the same text, 'so':")
    assert same_text(["so", "no"], ["x", "y"]) is None
    assert same_text(["x", "x"], ["x", "x"]) is None  # rightly so
    assert same_text(["x"], ["y"]) is None
