"""Warnings about a test's answers: each appears if and only if it applies."""

import pytest

from jpeft.eval.look_back import few_test_rows, no_label, not_above_majority, one_answer, same_text
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


def test_one_text_for_all_rows():
    assert (same_text(["", " "], ["x", "y"]) or "").startswith("every answer is empty: nothing of the inputs was used")
    assert (same_text(["so", "so"], ["x", "y"]) or "").startswith("every answer is the same text, 'so':")
    assert same_text(["so", "no"], ["x", "y"]) is None
    assert same_text(["x", "x"], ["x", "x"]) is None  # rightly so
    assert same_text(["x"], ["y"]) is None
