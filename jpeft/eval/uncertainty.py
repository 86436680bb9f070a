"""How far the metric of one test may be trusted: what other rows of the same kind might have given.

It says nothing of other seeds: another initialisation or order of rows moves the metric besides.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

_NORMAL_975 = 1.959963984540054  # of the standard normal distribution, 97.5 % lies below it
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000  # row numbers, 16 MB


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """A metric's standard error and the interval that holds its true value in 95 of 100 tests.

    Attributes:
      metric: whose.
      standard_error: None where one row, or one input only, was tested: it cannot be told.
      interval: 95 %, within what the metric can be.
      method: `wilson` of a share of right answers, `bootstrap` of a mean of scores or any other number of a split.
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


def mean_uncertainty(
    metric: str,
    scores: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Uncertainty | None:
    """The uncertainty of a mean of scores, by the bootstrap's percentiles (Efron 1979) and a fixed seed.

    Args:
      groups: as of `share_uncertainty`.
      bounds: the least and the most that a score can be; without such, one row alone says nothing: None.
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
    """The uncertainty of a number that is no mean over rows, such as BLEU: by the bootstrap, as `mean_uncertainty`.

    Args:
      number_of: the number where each row counts as often as `[rows]` weights say.
      groups: of each row, as of `share_uncertainty`.
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
        # All alike: what was not seen in so many inputs may still be some share of all (Wilson's of none).
        _, unseen = wilson(0.0, groups)
        low, high = low - (low - bounds[0]) * unseen, high + (bounds[1] - high) * unseen
    return float(low), float(high)


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
    rows, _ = _numbered([group for group, _ in zip(groups, scores, strict=True)])
    return np.bincount(rows, weights=np.asarray(scores, float)), np.bincount(rows).astype(float)


def _numbered(groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """A number for each group, from 0 on in the order of their first rows, row by row; and how many there are."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups]), len(number)


def in_words(record: Mapping[str, Any] | None) -> str:
    """`95 %: 0.551 to 0.649, standard error 0.025` of what `to_dict` gave; empty where there is nothing."""
    if not record:
        return ""
    low, high = record["interval"]
    error = record["standard_error"]
    return f"95 %: {low:.3f} to {high:.3f}" + ("" if error is None else f", standard error {error:.3f}")
