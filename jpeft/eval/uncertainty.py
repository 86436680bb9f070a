"""How far the metric of one test may be trusted: what other rows of the same kind might have given.

It says nothing of other seeds: another initialisation or order of rows moves the metric besides.
"""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jpeft.data.tasks import Example, Task

_NORMAL_975 = 1.959963984540054  # of the standard normal distribution, 97.5 % lies below it
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000  # row numbers, 16 MB


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """A metric's standard error and the interval that holds its true value in 95 of 100 tests.

    Attributes:
      metric: whose.
      standard_error: None where one row, or one input only, was tested: it cannot be told.
      interval: 95 %, within 0 and 1.
      method: `wilson` of a share of right answers, `bootstrap` of a mean of scores.
      rows: tested.
    """

    metric: str
    standard_error: float | None
    interval: tuple[float, float]
    method: str
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as `result.json` holds them."""
        return {**dataclasses.asdict(self), "interval": list(self.interval)}


def uncertainty(task: Task, examples: Sequence[Example], scores: Sequence[float]) -> Uncertainty:
    """How far the mean of a test's scores, one for each example, may be trusted; the same for the same scores.

    Rows of equal inputs have one answer between them (E2E has up to dozens of references a meaning), so they are drawn
    and counted together: their number alone would promise too much.

    Raises:
      ValueError: there are no scores, or not as many as examples.
    """
    inputs = [example.input for example, _ in zip(examples, scores, strict=True)]
    of_metric = share_uncertainty if task.kind == "classification" else mean_uncertainty
    return of_metric(task.metric, scores, inputs)


def share_uncertainty(metric: str, scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> Uncertainty:
    """The uncertainty of a share (scores of 0 and 1) by Wilson's interval, which stands at 0 and 1 and for few rows.

    Args:
      groups: of each score; those of one group are not independent. None: each is its own.
    """
    sums, counts = _by_group(scores, groups)
    rows, share = int(counts.sum()), float(sums.sum() / counts.sum())
    # With a row a group this is share * (1 - share) / rows; groups that are right or wrong as a whole count as fewer.
    variance = float(np.sum((sums - share * counts) ** 2)) / rows**2
    independent = min(share * (1 - share) / variance, rows) if variance > 0 else float(len(counts))
    error = math.sqrt(share * (1 - share) / independent) if independent > 1 else None
    return Uncertainty(metric, error, wilson(share, independent), "wilson", rows)


def mean_uncertainty(metric: str, scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> Uncertainty:
    """The uncertainty of a mean of scores from 0 to 1, by the bootstrap's percentiles (Efron 1979) and a fixed seed.

    Args:
      groups: as of `share_uncertainty`.
    """
    sums, counts = _by_group(scores, groups)
    rows, mean, number = int(counts.sum()), sums.sum() / counts.sum(), len(counts)
    if number == 1:
        return Uncertainty(metric, None, (0.0, 1.0), "bootstrap", rows)
    variance = float(np.sum((sums - mean * counts) ** 2)) / rows**2 * number / (number - 1)
    draw = np.random.default_rng(0)
    means: list[np.ndarray] = []
    at_once = max(1, _DRAWN_AT_ONCE // number)
    for start in range(0, _RESAMPLES, at_once):
        drawn = draw.integers(number, size=(min(at_once, _RESAMPLES - start), number))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    if low == high:  # all alike: what was not seen in so many inputs may still be some share of all (Wilson's of none)
        _, unseen = wilson(0.0, number)
        low, high = mean * (1 - unseen), mean + (1 - mean) * unseen
    return Uncertainty(metric, math.sqrt(variance), (float(low), float(high)), "bootstrap", rows)


def wilson(share: float, rows: float | int) -> tuple[float, float]:
    """The 95 % interval of a share that so many independent rows gave (Wilson 1927)."""
    z2 = _NORMAL_975**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _NORMAL_975 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    # At the ends the bound is the share itself, but for rounding.
    return (max(0.0, centre - half) if share > 0 else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)


def _by_group(scores: Sequence[float], groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the scores and number of rows of each group."""
    if not len(scores):
        raise ValueError("there are no scores; expected one for each row tested.")
    groups = range(len(scores)) if groups is None else groups
    number: dict[Hashable, int] = {}
    rows = [number.setdefault(group, len(number)) for group, _ in zip(groups, scores, strict=True)]
    return np.bincount(rows, weights=np.asarray(scores, float)), np.bincount(rows).astype(float)


def in_words(record: Mapping[str, Any] | None) -> str:
    """`95 %: 0.551 to 0.649, standard error 0.025` of what `to_dict` gave; empty where there is nothing."""
    if not record:
        return ""
    low, high = record["interval"]
    error = record["standard_error"]
    return f"95 %: {low:.3f} to {high:.3f}" + ("" if error is None else f", standard error {error:.3f}")
