"""Sampling uncertainty of a test's metrics: standard errors and 95 % intervals over the choice of test rows.

The variance over training seeds (initialisation, order of rows) is not part of it.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

_NORMAL_975 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000  # row numbers in memory, 16 MB


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """A metric's standard error and 95 % interval.

    Attributes:
      metric: name of the metric.
      standard_error: None if it cannot be estimated, from a single row or a single distinct input.
      interval: 95 % interval, within the range of the metric.
      method: `wilson` for a share of rows, `bootstrap` for any other metric.
      rows: number of rows tested.
    """

    metric: str
    standard_error: float | None
    interval: tuple[float, float]
    method: str
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types, for `result.json`."""
        return {**dataclasses.asdict(self), "interval": list(self.interval)}


def share_uncertainty(metric: str, scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> Uncertainty:
    """Computes the uncertainty of a share, the mean of scores of 0 and 1, by Wilson's interval.

    Wilson's interval is also valid for shares near 0 and 1 and for few rows.

    Args:
      groups: group of each score; scores within a group are not independent. None: every score is independent.
    """
    sums, counts = _by_group(scores, groups)
    rows, share = int(counts.sum()), float(sums.sum() / counts.sum())
    # With one row per group this is share * (1 - share) / rows; correlated groups reduce the effective number of rows.
    variance = float(np.sum((sums - share * counts) ** 2)) / rows**2
    independent = min(share * (1 - share) / variance, rows) if variance > 0 else float(len(counts))
    error = math.sqrt(share * (1 - share) / independent) if independent > 1 else None
    return Uncertainty(metric, error, wilson(share, independent), "wilson", rows)


def mean_uncertainty(
    metric: str,
    scores: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Uncertainty | None:
    """Computes the uncertainty of a mean of scores by the percentile bootstrap (Efron 1979) with a fixed seed.

    Args:
      groups: see `share_uncertainty`.
      bounds: range of a score.

    Returns:
      None for a single group of scores without finite bounds.
    """
    sums, counts = _by_group(scores, groups)
    rows, mean, number = int(counts.sum()), sums.sum() / counts.sum(), len(counts)
    if number == 1:
        return _of_one_group(metric, bounds, rows)
    variance = float(np.sum((sums - mean * counts) ** 2)) / rows**2 * number / (number - 1)
    draw = np.random.default_rng(0)
    means: list[np.ndarray] = []
    at_once = max(1, _DRAWN_AT_ONCE // number)
    for start in range(0, _RESAMPLES, at_once):
        drawn = draw.integers(number, size=(min(at_once, _RESAMPLES - start), number))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return Uncertainty(metric, math.sqrt(variance), _interval(np.concatenate(means), number, bounds), "bootstrap", rows)


def resampled_uncertainty(
    metric: str,
    number_of: Callable[[np.ndarray], float],
    groups: Sequence[Hashable],
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Uncertainty | None:
    """Computes the uncertainty of a metric that is not a mean over rows, such as BLEU, like `mean_uncertainty`.

    Args:
      number_of: computes the metric from `[rows]` weights, the number of times that each row occurs in a sample.
      groups: group of each row; see `share_uncertainty`.
      bounds: range of the metric.
    """
    group_of, number = _numbered(groups)
    if number == 1:
        return _of_one_group(metric, bounds, len(group_of))
    draw = np.random.default_rng(0)
    numbers = [
        number_of(np.bincount(draw.integers(number, size=number), minlength=number)[group_of].astype(float))
        for _ in range(_RESAMPLES)
    ]
    error = float(np.std(numbers, ddof=1))
    return Uncertainty(metric, error, _interval(np.array(numbers), number, bounds), "bootstrap", len(group_of))


def _of_one_group(metric: str, bounds: tuple[float, float], rows: int) -> Uncertainty | None:
    return Uncertainty(metric, None, bounds, "bootstrap", rows) if all(map(math.isfinite, bounds)) else None


def _interval(numbers: np.ndarray, groups: int, bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = np.percentile(numbers, [2.5, 97.5])
    if low == high and all(map(math.isfinite, bounds)):
        # All samples agree. Unseen inputs may still differ: widen the interval by Wilson's bound for a share of 0.
        _, unseen = wilson(0.0, groups)
        low, high = low - (low - bounds[0]) * unseen, high + (bounds[1] - high) * unseen
    return float(low), float(high)


def wilson(share: float, rows: float | int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of `rows` independent rows (Wilson 1927)."""
    z2 = _NORMAL_975**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _NORMAL_975 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    # At 0 and 1 the bound equals the share, up to rounding.
    return (max(0.0, centre - half) if share > 0 else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)


def _by_group(scores: Sequence[float], groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of the scores and the number of rows of each group."""
    if not len(scores):
        raise ValueError("there are no scores; expected one for each row tested.")
    groups = range(len(scores)) if groups is None else groups
    rows, _ = _numbered([group for group, _ in zip(groups, scores, strict=True)])
    return np.bincount(rows, weights=np.asarray(scores, float)), np.bincount(rows).astype(float)


def _numbered(groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Returns the index of each row's group, in order of first occurrence, and the number of groups."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups]), len(number)


def in_words(record: Mapping[str, Any] | None) -> str:
    """Formats the result of `Uncertainty.to_dict`: `95 %: 0.551 to 0.649, standard error 0.025`; None is empty."""
    if not record:
        return ""
    low, high = record["interval"]
    error = record["standard_error"]
    return f"95 %: {low:.3f} to {high:.3f}" + ("" if error is None else f", standard error {error:.3f}")
