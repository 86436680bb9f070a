"""Small confusion matrices counted by hand, and the selection of the worst rows."""

import json

import pytest

from jpeft.data.tasks import TASKS, Example
from jpeft.eval.metrics import METRICS, judge
from jpeft.eval.metrics.classes import right
from jpeft.eval.per_class import Confusion
from jpeft.eval.worst_rows import worst_rows


def confusion(targets, predictions, labels=()):
    scores = [right(p, t) for p, t in zip(predictions, targets, strict=True)]
    return Confusion.of(targets, predictions, scores, labels)


#           a: 3 rows, 2 right, once b      b: 2 rows, 1 right, once no label     c: 1 row, answered a
TARGETS, ANSWERS = list("aaabbc"), ["a", " a", "b", "b\n", "bad", "a"]


def test_precision_recall_f1_and_support_are_those_counted_by_hand():
    found = confusion(TARGETS, ANSWERS, list("abc"))
    assert found.counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert found.support.tolist() == [3, 2, 1] and found.answered.tolist() == [3, 2, 0] and found.unknown == 1
    assert found.precision.tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert found.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert found.f1.tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert found.majority == ("a", 0.5) and found.only_answer is None


def test_a_class_without_rows_or_answers_does_not_count_for_the_mean():
    found = confusion(list("ab"), list("ab"), list("abz"))
    assert found.f1.tolist() == [1, 1, 0] and found.macro_f1 == 1


def test_classes_that_nobody_named_are_those_of_the_targets():
    found = confusion(["yes", "no", "maybe"], ["no", "no", "yes"])
    assert found.labels == ("yes", "no", "maybe") and found.unknown == 0
    assert confusion(["new"], ["old"], ["old"]).labels == ("old", "new")  # a target is never left out


def test_what_was_judged_right_is_right_however_it_is_written():
    """If the tokenizer changes a label, its answer is spelt differently and still counts as right."""
    found = Confusion.of(["very  bad", "good"], ["very bad", "VERY BAD"], [1.0, 0.0], ["very  bad", "good"])
    assert found.counts.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_classes_that_differ_by_white_space_within_are_two_to_every_number():
    """A byte-level vocabulary tells them apart; other vocabularies refuse such labels."""
    targets, answers = ["very bad", "very  bad", "good", "very  bad"], ["very bad", " very bad", "good", "very  bad"]
    labels = ("good", "very  bad", "very bad")
    found = confusion(targets, answers, labels)
    assert found.labels == labels and found.counts.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    references = [[target] for target in targets]
    assert found.macro_f1 == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert METRICS["macro_f1"](answers, references, labels=labels) == pytest.approx(found.macro_f1)
    assert METRICS["accuracy"](answers, references) == found.right.sum() / 4 == 0.75


def test_an_answer_is_no_label_to_the_confusion_where_it_is_none_to_the_metric():
    answers, labels = ["very\tbad", "very bad"], ("very bad", "good")
    found = confusion(["good", "good"], answers, labels)
    assert found.unknown == 1
    assert METRICS["unknown_answers"](answers, [["good"], ["good"]], labels=labels) == 0.5


def test_the_only_answer():
    assert confusion(list("aab"), list("bbb")).only_answer == "b"
    assert confusion(list("aab"), ["b", "b", "?"]).only_answer is None
    assert confusion(list("aab"), list("???")).only_answer is None


def test_its_diagonal_is_the_metrics_accuracy():
    examples = [Example(f"test/{i}", "text", t, (t,)) for i, t in enumerate(TARGETS)]
    judged = judge(TASKS["agnews"], examples, ANSWERS)
    found = Confusion.of(TARGETS, ANSWERS, judged.scores)
    assert found.right.sum() / found.counts.sum() == pytest.approx(judged.numbers["accuracy"])


def test_the_file_holds_the_numbers_by_class_and_the_matrix_with_its_names():
    record = json.loads(json.dumps(confusion(TARGETS, ANSWERS, list("abc")).to_dict()))
    assert record["classes"]["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2, "answered": 2}
    assert record["confusion"]["rows"] == ["a", "b", "c"] and record["confusion"]["columns"] == ["a", "b", "c", None]
    assert record["confusion"]["counts"] == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert record["majority"] == {"label": "a", "share": 0.5}


def rows(task, triples):
    """Selects the worst of rows given as `(input, target, prediction)`."""
    examples = [Example(f"test/{i}", text, target, (target,)) for i, (text, target, _) in enumerate(triples)]
    predictions = [prediction for _, _, prediction in triples]
    return worst_rows(task, examples, predictions, judge(task, examples, predictions).scores)


def test_of_wrong_answers_each_kind_is_shown_in_turn_the_most_frequent_first():
    task = TASKS["agnews"]
    triples = [(f"w{i}", "World", "Sports") for i in range(20)]
    triples += [(f"r{i}", "World", "World") for i in range(5)]
    triples += [(f"u{i}", "Sports", "sport") for i in range(3)] + [("b", "Business", "World")]
    found = rows(task, triples)
    assert [row["id"] for row in found[:5]] == ["test/0", "test/25", "test/28", "test/1", "test/26"]
    assert len(found) == 10 and all(row["score"] == 0 for row in found)
    assert found[0]["why"] == "'World' answered 'Sports', 20 times in the test"
    assert found[1]["why"] == "'Sports' answered with no label, 3 times in the test"
    assert found[2]["why"] == "'Business' answered 'World', once in the test"


def test_nothing_is_shown_where_nothing_is_wrong():
    assert rows(TASKS["agnews"], [("a", "World", "World")]) == []


def test_of_texts_the_lowest_scores_are_shown_each_input_once_and_with_why():
    target = "Ann and Bob meet for lunch at noon in town"
    found = rows(
        TASKS["samsum"],
        [
            ("good", target, "Ann and Bob meet for lunch at noon"),
            ("same", target, "Nobody knows"),
            ("same", target, "Nobody knows"),
            ("empty", target, ""),
            ("loop", target, "Ann Ann Ann Ann Ann Ann Ann Ann Bob"),
            ("short", target, "Ann lunch"),
            ("exact", target, target),
        ],
    )
    assert [row["input"] for row in found] == ["same", "empty", "loop", "short", "good"]
    why = {row["input"]: row["why"] for row in found}
    assert why == {
        "same": "shares no word with the target",
        "empty": "the answer is empty",
        "loop": "repeats itself: 9 words, 2 different ones",
        "short": "short: 2 words, the target has 10",
        "good": "other words than the target's, or in another order",
    }
