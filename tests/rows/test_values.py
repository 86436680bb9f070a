"""Conversion of values to text, and values that have none."""

import datetime
import decimal
import json

import numpy as np
import pytest

from jpeft.rows.values import alike, as_json, as_text, can_be_seen, is_missing


@pytest.mark.parametrize(
    "value", [None, float("nan"), float("inf"), -float("inf"), np.float32("nan"), decimal.Decimal("NaN")]
)
def test_null_nan_and_infinities_are_missing(value):
    assert is_missing(value)


@pytest.mark.parametrize("value", ["", "nan", "NaN", 0, False, 10**400, b"nan", [], {}, np.int64(3)])
def test_text_that_spells_nan_and_whatever_is_there_is_not_missing(value):
    assert not is_missing(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is ", "as it is "),
        (b"caf\xc3\xa9", "café"),
        (1, "1"),
        (1.0, "1.0"),
        (True, "True"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.5"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
    ],
)
def test_text_numbers_and_dates_have_one_plain_way_of_being_written(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (["a", "b"], r"holds a list, \['a', 'b'\]; join it"),
        ([], r"holds a list, \[\]"),
        ({"a": 1}, r"holds an object, \{'a': 1\}; give its parts columns"),
        (b"\xff\xd8", "holds bytes that are not UTF-8 .byte 0"),
        ("cut \ud83d", "holds half of a surrogate pair"),
        (["x" * 10**6] * 100, r"holds a list, \['x{58}\.\.\.; join"),
        (np.zeros(3), "holds a value of the type ndarray"),
        (object(), "holds a value of the type object"),
    ],
)
def test_what_is_no_text_says_what_it_is_and_what_to_do(value, says):
    with pytest.raises(ValueError, match=says) as raised:
        as_text(value)
    assert len(str(raised.value)) < 200


def test_any_value_of_a_parquet_file_can_be_written_as_json():
    value = {"a": [float("nan"), b"text", b"\xff", (datetime.date(2020, 1, 2), True)], 3: None}
    assert json.dumps(as_json(value), allow_nan=False) == (
        '{"a": [null, "text", "/w==", ["2020-01-02", true]], "3": null}'
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("1", "+1"),
        ("0.5", ".50"),
        ("-0", "0.0"),
        ("1e2", "100"),
        ("１", "1"),
        ("A  b", "a B"),
        ("❤", "❤\ufe0f"),
        ("ab", "a\u034fb"),
        ("\u3164a", "a"),
        ("é", "e\u034f\u0301"),
        ("葛", "葛\U000e0100"),
        ("a", "\u200ba"),
    ],
)
def test_what_a_reader_takes_for_the_same_is_alike(one, other):
    assert alike(one) == alike(other)


@pytest.mark.parametrize(("text", "expected"), [(" \u200b", False), ("\u3164\ufe0f", False), ("\ufe0fa", True)])
def test_invisible_characters_are_no_text(text, expected):
    assert can_be_seen(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("9007199254740993", "9007199254740992"),
        ("1_0", "10"),
        ("1" * 40, "1" * 39 + "2"),
        ("1e999999999", "1"),
        ("1" * 50_000 + "x", "1"),
        ("1", "-1"),
    ],
)
def test_numbers_that_differ_in_any_digit_are_not_alike(one, other):
    assert alike(one) != alike(other)
