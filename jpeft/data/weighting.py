"""Weights of training rows in the loss: by class, by a column of the rows, or both.

The loss of an optimizer step, and so its gradient, is the weighted mean over the step's target tokens:

    loss = sum over rows r of w[r] * sum over tokens t of r of -log p(t)  /  sum over rows r of w[r] * tokens of r

where `w[r]` is the product of the row's class weight and the weight in its column. Only the ratios of weights matter,
so they are divided by the smallest weight above 0: the sum of the weights of a step is then 0, or 1 and more.
Validation and test rows are not weighted.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jpeft.data.labels import as_listed, labels_between_commas
from jpeft.errors import UserError
from jpeft.rows.values import as_text, is_missing
from jpeft.words import counted

BALANCED = "balanced"


def class_weights(
    text: str, targets: Sequence[str], labels: Sequence[str], *, key: str, times: Iterable[float] | None = None
) -> dict[str, float]:
    """Returns the weight of each label.

    Args:
      text: `label=weight` pairs separated by commas, where labels that are left out weigh 1 and a label with a comma is
        quoted; or `balanced`, rows / (labels * rows of the label), which gives every class the same total weight.
      targets: of the training rows.
      labels: all labels of the task.
      key: config key of `text`, for messages.
      times: how often an epoch has each training row, which `balanced` counts it as; None is once.

    Raises:
      UserError: a label is unknown, a quote is misplaced, or a weight is not a number of 0 or more.
    """
    if text == BALANCED:
        counts: dict[str, float] = {}
        for target, number in zip(targets, [1] * len(targets) if times is None else times, strict=True):
            counts[target] = counts.get(target, 0) + number
        return {label: sum(counts.values()) / (len(counts) * number) for label, number in counts.items()}
    weights = dict.fromkeys(labels, 1.0)
    for label, weight in given_weights(text, key).items():
        if label not in weights:
            raise UserError(
                f"{key} has a weight for {label[:80]!r}, which is not a label; the labels are: "
                f"{', '.join(map(as_listed, labels))}."
            )
        weights[label] = weight
    return weights


def require_classes(kind: str | None) -> None:
    """Raises `UserError` if class weights are used with a generation task. `kind` is None if it is not known yet."""
    if kind == "generation":
        raise UserError("train.class_weights is for classes, and the task's answers are text; give data.weight.")


def given_weights(text: str, key: str) -> dict[str, float]:
    """Parses `label=weight` pairs; `balanced` gives an empty mapping. Raises `UserError` if they are malformed."""
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
    """Reads the weights of some rows of a source split from a column.

    Args:
      columns: of the source split.
      rows: numbers of the rows.
      split: name of the source split, for messages.

    Raises:
      UserError: the column does not exist, or a value is not a number of 0 or more.
    """
    if column not in columns:
        existing = ", ".join(columns)[:1000]
        raise UserError(f"data.weight is {column!r}, and {split} rows have no such column; there are: {existing}.")
    return [_weight(columns[column][row], f"row {split}/{row}: its weight, {column!r},") for row in rows]


# Stricter than `float`, which also reads Python's own notation, such as 1_0.
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


_LARGEST_RATIO = 1e30  # of two weights, so that sums over a step's tokens stay finite in float32


def scaled(weights: np.ndarray) -> np.ndarray:
    """Returns the weights divided by the smallest one above 0: `[rows]`, float32.

    Raises:
      UserError: no weight is above 0, or the ratio of two weights is too large for float32.
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


def describe_weights(
    by_class: Mapping[str, float] | None,
    column: str | None,
    weights: np.ndarray,
    *,
    times: np.ndarray | float = 1.0,
    most: int = 8,
) -> list[str]:
    """Returns lines that tell the user before training how rows and classes are weighted in the loss.

    Args:
      by_class: class weights, by label.
      column: with the rows' weights.
      weights: `[rows]`, the resulting weights.
      times: `[rows]`, how often an epoch has each row, if not once.
      most: number of class weights to show.
    """
    lines = []
    if by_class is not None:
        shown = ", ".join(f"{as_listed(label)} {weight:.3g}" for label, weight in list(by_class.items())[:most])
        lines.append(f"class weights of the training loss: {shown}" + (" ..." if len(by_class) > most else ""))
    if column is not None:
        nothing = int((weights == 0).sum())
        lines.append(
            f"training rows are weighted by the column {column!r}"
            + (f"; {counted(nothing, 'row weighs 0 and teaches', 'rows weigh 0 and teach')} nothing" if nothing else "")
        )
    if lines:
        positive = weights[weights > 0]
        relative = times * weights.astype(np.float64) / positive.max()
        share = relative.sum() ** 2 / (relative**2).sum()
        lines.append(
            f"the heaviest row counts {positive.max() / positive.min():.3g} times the lightest; together they teach as "
            f"{share:,.0f} equal rows would"
        )
    return lines
