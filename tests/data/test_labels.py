"""Comma-separated labels, as in `--labels` and `train.class_weights`."""

import pytest

from jpeft.data.labels import as_listed, labels_between_commas
from jpeft.errors import UserError


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("", []),
        ("A, B", ["A", "B"]),
        ('"A, B",C', ["A, B", "C"]),
        ('A, "B, ""C""" , D', ["A", 'B, "C"', "D"]),
        ('6" nails,A "b" c', ['6" nails', 'A "b" c']),
        ("A,,", ["A", "", ""]),
        ('""', [""]),
    ],
)
def test_labels_stand_between_commas(given, labels):
    assert labels_between_commas(given, "k") == labels
    if "" not in labels:
        assert labels_between_commas(",".join(map(as_listed, labels)), "k") == labels


@pytest.mark.parametrize("given", ['"A', '"A" b,c', 'A,"B', '"A"=2', '"""', 'A,"B" "C"'])
def test_a_quote_amiss_is_refused(given):
    with pytest.raises(UserError, match="k .* has a misplaced quote; write labels as A,B and one with a comma as"):
        labels_between_commas(given, "k")
