"""Weights of training rows, by class and by a column: checks and scaling."""

import numpy as np
import pytest

from jpeft.data.weighting import class_weights, column_weights, describe_weights, scaled
from jpeft.errors import UserError

LABELS = ("no", "yes", "a=b")


def test_balanced_weighs_each_class_the_same_in_all():
    targets = ["no"] * 6 + ["yes"] * 2
    weights = class_weights("balanced", targets, LABELS, key="k")
    assert weights == {"no": 8 / (2 * 6), "yes": 8 / (2 * 2)}  # scikit-learn's compute_class_weight
    assert 6 * weights["no"] == 2 * weights["yes"]


def test_balanced_counts_a_row_as_often_as_an_epoch_has_it():
    weights = class_weights("balanced", ["no"] * 6 + ["yes"] * 2, LABELS, key="k", times=[0.5] * 6 + [3.0] * 2)
    assert 6 * 0.5 * weights["no"] == 2 * 3.0 * weights["yes"] == 9 / 2


def test_labels_that_are_left_out_weigh_one():
    assert class_weights("yes=3, a=b = 0.5", ["no"], LABELS, key="k") == {"no": 1, "yes": 3, "a=b": 0.5}


@pytest.mark.parametrize("text", ['"a,b"=2,c=1', '"a,b=2", "c=1"', ' "a,b" = 2 ,c = 1'])
def test_a_label_with_a_comma_stands_in_quotes(text):
    assert class_weights(text, ["c"], ("a,b", "c", "d"), key="k") == {"a,b": 2, "c": 1, "d": 1}
    assert class_weights('"a,""b"" = c"=2', ["c"], ('a,"b" = c', "d"), key="k") == {'a,"b" = c': 2, "d": 1}


def test_a_weight_that_names_no_label_is_told_the_labels_as_they_are_written(text='"x,y"=2'):
    with pytest.raises(UserError, match="'x,y', which is not a label; the labels are: \"a,b\", c"):
        class_weights(text, ["c"], ("a,b", "c"), key="k")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("maybe=2", "'maybe', which is not a label; the labels are: no, yes, a=b"),
        ("yes", "expected balanced, or label=weight"),
        ("yes=-1", "the weight of 'yes' is '-1'; expected a number, 0 or more"),
        ("yes=nan", "is 'nan'"),
        ("yes=1_0", "is '1_0'"),
        ("yes=\u0661", "is '\u0661'"),
        ("yes=1,yes=2", "two weights for 'yes'"),
        ("", "expected balanced, or label=weight"),
        ("yes=1,", "expected balanced, or label=weight"),
        ('"yes=1', 'k .* has a misplaced quote; .* one with a comma as "A, B"'),
        ('"yes"no=1', "has a misplaced quote"),
        ('"yes"', "expected balanced, or label=weight"),
    ],
)
def test_weights_of_classes_that_cannot_be_meant_are_refused(text, says):
    with pytest.raises(UserError, match=says):
        class_weights(text, ["no"], LABELS, key="k")


def test_a_column_of_numbers_or_of_their_texts():
    columns = {"w": [1, "2.5", 0, 3.0, None, "x", -1, True, 1e-7, " +.5e1 "]}
    assert column_weights("w", columns, [3, 0, 1, 2, 8, 9], "train") == [3, 1, 2.5, 0, 1e-7, 5]
    for row, shown in ((4, "None"), (5, "'x'"), (6, "-1"), (7, "True")):
        with pytest.raises(UserError, match=f"row train/{row}: its weight, 'w', is {shown}; expected a number"):
            column_weights("w", columns, [row], "train")
    with pytest.raises(UserError, match="no such column; there are: w"):
        column_weights("v", columns, [0], "train")


def test_the_least_weight_above_nothing_is_one():
    assert scaled(np.array([0.25, 0, 0.5])).tolist() == [1, 0, 2]
    with pytest.raises(UserError, match="every training row weighs 0"):
        scaled(np.zeros(2))
    for least in (1e-40, 1e-300):
        with pytest.raises(UserError, match=f"weigh from {least:.3g} to 1 .*expected a ratio below 1e.30"):
            scaled(np.array([least, 1]))
    assert "as 1 equal rows" in describe_weights(None, "w", scaled(np.array([1e-25, 1])))[-1]
    lines = describe_weights({"no": 1.0, "yes": 3.0}, "w", np.array([1.0, 3.0, 0.0]))
    assert lines[0] == "class weights of the training loss: no 1, yes 3"
    assert lines[1] == "training rows are weighted by the column 'w'; 1 row weighs 0 and teaches nothing"
    assert describe_weights(None, "w", np.array([1.0, 0.0, 0.0]))[0].endswith("; 2 rows weigh 0 and teach nothing")
    assert "counts 3 times the lightest" in lines[2] and "as 2 equal rows" in lines[2]  # (1 + 3)² / (1 + 9) = 1.6
