"""How much each training row counts: by its class, by a column of the rows, or both.

The loss of an optimizer step, and so its gradient, is the weighted mean over the step's target tokens:

    loss = sum over rows r of w[r] * sum over tokens t of r of -log p(t)  /  sum over rows r of w[r] * tokens of r

with `w[r]` the product of the row's class weight and its column's weight. Only proportions count, so weights are
divided by the least that is above 0: every step's sum of weights is then 1 or more, or 0. Validation and test rows all
weigh 1.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jpeft.data.labels import as_listed, labels_between_commas
from jpeft.errors import UserError
from jpeft.rows.values import as_text, is_missing
from jpeft.words import counted

BALANCED = "balanced"


def class_weights(text: str, targets: Sequence[str], labels: Sequence[str], *, key: str) -> dict[str, float]:
    """The weight of each label.

    Args:
      text: `label=weight` with commas, where labels that are left out weigh 1 and one with a comma stands in quotes; or
        `balanced`: rows / (labels * rows of the label), by which every class weighs the same in all.
      targets: of the training rows.

    Raises:
      UserError: an unknown label, a quote amiss, or a weight that is no number of 0 or more.
    """
    if text == BALANCED:
        counts = Counter(targets)
        return {label: len(targets) / (len(counts) * counts[label]) for label in counts}
    weights = dict.fromkeys(labels, 1.0)
    for label, weight in given_weights(text, key).items():
        if label not in weights:
            raise UserError(
                f"{key} has a weight for {label[:80]!r}, which is no label; there are: "
                f"{', '.join(map(as_listed, labels))}."
            )
        weights[label] = weight
    return weights


def require_classes(kind: str | None) -> None:
    """Raises `UserError` where rows are to weigh by class and the kind of their task is known to be `generation`."""
    if kind == "generation":
        raise UserError("train.class_weights is for classes, and the task's answers are text; give data.weight.")


def given_weights(text: str, key: str) -> dict[str, float]:
    """`label=weight` with commas as a mapping; empty for `balanced`. Raises `UserError`: it is malformed."""
    found: dict[str, float] = {}
    for part in () if text == BALANCED else labels_between_commas(text, key, behind="=") or [""]:
        label, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not (label and equals):
            raise UserError(f"{key} is {text[:120]!r}; expected {BALANCED}, or label=weight with commas: yes=3,no=1.")
        if label in found:
            raise UserError(f"{key} has two weights for {label[:80]!r}; give one.")
        found[label] = _weight(number, f"{key}: the weight of {label[:80]!r}")
    return found


def column_weights(column: str, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], split: str) -> list[float]:
    """The weights that a column has for some rows of a source split.

    Raises:
      UserError: there is no such column, or a row of it holds no number of 0 or more.
    """
    if column not in columns:
        there = ", ".join(columns)[:1000]
        raise UserError(f"data.weight is {column!r}, and {split} rows have no such column; there are: {there}.")
    return [_weight(columns[column][row], f"row {split}/{row}: its weight, {column!r},") for row in rows]


# What `float` takes besides is Python's own: 1_0.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _weight(value: Any, what: str) -> float:
    try:
        text = "" if is_missing(value) or isinstance(value, bool) else as_text(value)
        weight = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise UserError(f"{what} is {repr(value)[:60]}; expected a number, 0 or more.")
    return weight


_LARGEST_RATIO = 1e30  # of two weights; sums over a step's tokens stay finite


def scaled(weights: np.ndarray) -> np.ndarray:
    """`[rows]` float32: the weights divided by the least above 0.

    Raises:
      UserError: there is none above 0, or one is so many times another that float32 does not hold it.
    """
    if not (weights > 0).any():
        raise UserError("every training row weighs 0 (data.weight, train.class_weights), so nothing would be learned.")
    least, most = weights[weights > 0].min(), weights.max()
    with np.errstate(over="ignore"):
        if not most / least < _LARGEST_RATIO:
            raise UserError(
                f"training rows weigh from {least:.3g} to {most:.3g} (data.weight, train.class_weights); beside the "
                f"largest the least would be nothing: expected a ratio below {_LARGEST_RATIO:.0g}."
            )
    return (weights / least).astype(np.float32)


def told_of_weights(
    by_class: Mapping[str, float] | None, column: str | None, weights: np.ndarray, *, most: int = 8
) -> list[str]:
    """Lines that tell the user, before training, how much rows or classes weigh in the loss."""
    lines = []
    if by_class is not None:
        shown = ", ".join(f"{as_listed(label)} {weight:.3g}" for label, weight in list(by_class.items())[:most])
        lines.append(f"class weights of the training loss: {shown}" + (" ..." if len(by_class) > most else ""))
    if column is not None:
        nothing = int((weights == 0).sum())
        lines.append(
            f"training rows are weighted by the column {column!r}"
            + (f"; {counted(nothing, 'row weighs', 'rows weigh')} 0 and teach nothing" if nothing else "")
        )
    if lines:
        positive = weights[weights > 0]
        relative = weights.astype(np.float64) / positive.max()
        share = relative.sum() ** 2 / (relative**2).sum()
        lines.append(
            f"the heaviest row counts {positive.max() / positive.min():.3g} times the lightest; together they teach as "
            f"{share:,.0f} equal rows would"
        )
    return lines
