"""Ranks methods by what is scarce: by metric, by seconds to converge, or by metric per parameter."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from jpeft.eval.metrics import METRICS
from jpeft.report.groups import Group, Spread
from jpeft.report.names import PAPER_METHODS, in_order
from jpeft.report.table import Style

Scarce = Literal["time", "memory", "quality"]
# The difference that counts as a tie if no spread over seeds is known: for a metric relative to its range (`_whole`),
# for seconds and metric per parameter relative to the value.
CLOSE_METRIC = 0.01
CLOSE_SHARE = 0.05
FAR_BEHIND = 0.1  # of a metric's range below the best: a method so much worse gets a caution


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The criterion by which methods are ranked for a scarce resource.

    Attributes:
      name: of the quantity; `heading` is a shorter one.
      get: takes the quantity from a cell: `(group, method, task, scale)`.
      shares: whether each task's numbers are divided by the best one's before averaging over tasks. Seconds of AG News
        and of CoLA have different scales; accuracies have not.
      paper_tables: the paper's tables of the quantity.
      lacks: methods that the paper leaves out of that table.
      above_0: in words, the number that has to be above 0 for the quantity to be meaningful; "" if there is none.
    """

    name: str
    heading: str
    style: Style
    paper_tables: str
    lowest_first: bool
    shares: bool
    get: Callable[[Group, str, str, str], Spread | None]
    lacks: tuple[str, ...] = ()
    above_0: str = ""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A method in a ranking.

    Attributes:
      place: from 1; None if a number is missing or meaningless.
      score: the mean over tasks of the metric, or of the ratio to the task's best method.
      by_task: the criterion's number for each task.
      tied: whether it ties with the first method; False for the first itself.
      behind: the task where its metric is furthest below the best method's; None if unknown.
      not_above_0: tasks whose number is meaningless since it is not above 0 (`Criterion.above_0`); empty if another
        number is missing.
    """

    method: str
    place: int | None
    score: Spread | None
    by_task: Mapping[str, Spread | None]
    tied: bool
    behind: "Behind | None"
    not_above_0: tuple[str, ...] = ()

    @property
    def far_behind(self) -> bool:
        """Whether on some task its metric is below the best one by more than `FAR_BEHIND` of its range."""
        return self.behind is not None and self.behind.difference > self.behind.most


@dataclasses.dataclass(frozen=True)
class Behind:
    """How far a method's metric is below the best method's on a task, and from where on that counts as far."""

    task: str
    difference: float
    most: float


def rank(group: Group, tasks: Sequence[str], scale: str, scarce: Scarce) -> tuple[Ranked, ...]:
    """Ranks the methods of a group for these tasks at this scale; those with missing numbers come last, unplaced."""
    criterion = CRITERIA[scarce]
    methods = in_order({key.method for key in group.cells} | set(PAPER_METHODS), PAPER_METHODS)
    lacking = criterion.lacks if is_paper(group) else ()
    numbers = {
        method: {task: None if method in lacking else criterion.get(group, method, task, scale) for task in tasks}
        for method in methods
    }
    return _rank(group, numbers, criterion, scale)


def is_paper(group: Group) -> bool:
    """Whether the group holds the published numbers and not those of runs."""
    return not group.results


def _metric(group: Group, method: str, task: str, scale: str) -> Spread | None:
    return group.metric(method, task, scale)


def _seconds(group: Group, method: str, task: str, scale: str) -> Spread | None:
    cell = group.get(method, task, scale)
    return cell.convergence_seconds if cell else None


def _per_100k_parameters(group: Group, method: str, task: str, scale: str) -> Spread | None:
    cell = group.get(method, task, scale)
    return cell.metric_per_100k_parameters if cell else None


CRITERIA: dict[Scarce, Criterion] = {
    "time": Criterion("seconds to converge", "seconds", "seconds", "Table 4", True, True, _seconds),
    "memory": Criterion(
        "metric per 100,000 parameters",
        "metric/100k",
        "number",
        "Tables 1 and 3",
        False,
        True,
        _per_100k_parameters,
        ("prompt",),
        # A ratio with a metric of 0 or less cannot be ranked: fewer parameters would make a negative one worse.
        above_0="metric",
    ),
    "quality": Criterion("metric", "metric", "metric", "Table 1", False, False, _metric),
}


def _rank(
    group: Group, numbers: Mapping[str, Mapping[str, Spread | None]], criterion: Criterion, scale: str
) -> tuple[Ranked, ...]:
    best = {}
    for task in next(iter(numbers.values())):
        known = [own.mean for of_task in numbers.values() if (own := of_task[task]) and _says(own, criterion)]
        best[task] = (min if criterion.lowest_first else max)(known, default=None)
    scores = {method: _score(of_task, best, criterion) for method, of_task in numbers.items()}
    sign = 1 if criterion.lowest_first else -1
    known = {method: score for method, score in scores.items() if score is not None}
    order = sorted(known, key=lambda method: sign * known[method].mean)
    wholes = {task: _whole(group, task, scale) for task in best}
    close = CLOSE_METRIC * math.fsum(wholes.values()) / len(wholes)
    ranked = []
    for method in [*order, *(method for method in numbers if method not in known)]:
        score = scores[method]
        tied = score is not None and method != order[0] and not _clear(known[order[0]], score, criterion, close)
        place = order.index(method) + 1 if method in known else None
        behind = _behind(group, method, numbers, scale, wholes)
        nothing = _not_above_0(numbers[method], criterion)
        ranked.append(Ranked(method, place, score, numbers[method], tied, behind, nothing))
    return tuple(ranked)


def _says(number: Spread, criterion: Criterion) -> bool:
    """Whether a number is meaningful for ranking."""
    return not criterion.above_0 or number.mean > 0


def _not_above_0(of_task: Mapping[str, Spread | None], criterion: Criterion) -> tuple[str, ...]:
    """`Ranked.not_above_0`."""
    if None in of_task.values():
        return ()
    return tuple(task for task, own in of_task.items() if own and not _says(own, criterion))


def _score(
    of_task: Mapping[str, Spread | None], best: Mapping[str, float | None], criterion: Criterion
) -> Spread | None:
    """The score over all tasks; None if one is missing or meaningless, since a mean of the others is not comparable."""
    parts = []
    for task, own in of_task.items():
        reference = best[task] if criterion.shares else 1.0
        if own is None or not reference or not _says(own, criterion):
            return None
        parts.append(own.times(1 / reference))
    spreads = [part.sd for part in parts if part.sd is not None]
    sd = math.hypot(*spreads) / len(parts) if len(spreads) == len(parts) else None
    mean = math.fsum(part.mean for part in parts) / len(parts)
    return Spread(mean, sd, min(part.count for part in parts), mean, mean)


def _whole(group: Group, task: str, scale: str) -> float:
    """A metric's largest value, 1 or 100; for a user's own metric of unknown range, the best value that was reached."""
    cells = [cell for key, cell in group.cells.items() if key.task == task and key.scale == scale and cell.results]
    if not cells:
        return 1.0  # the paper's metrics
    known = METRICS.get(cells[0].results[0].metric_name)
    if known is not None and math.isfinite(known.range[1]):
        return known.range[1]
    return max(abs(cell.metric.mean) for cell in cells if cell.metric is not None)


def _clear(one: Spread, other: Spread, criterion: Criterion, close_metric: float) -> bool:
    """Whether two scores differ by more than their spread or, if one's is unknown, by more than a tie."""
    if one.sd is not None and other.sd is not None:
        return one.clear_of(other)
    close = CLOSE_SHARE * one.mean if criterion.shares else close_metric
    return round(abs(one.mean - other.mean), 9) > close  # rounded, so that 0.82 and 0.81 tie


def _behind(
    group: Group,
    method: str,
    numbers: Mapping[str, Mapping[str, Spread | None]],
    scale: str,
    wholes: Mapping[str, float],
) -> Behind | None:
    found = []
    for task in numbers[method]:
        metrics = [known.mean for other in numbers if (known := group.metric(other, task, scale)) is not None]
        own = group.metric(method, task, scale)
        if own is not None:
            found.append(Behind(task, max(metrics) - own.mean, FAR_BEHIND * wholes[task]))
    return max(found, key=lambda one: one.difference - one.most, default=None)
