"""Methods ranked by what is scarce: by metric, by seconds to converge, by metric for each parameter."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from jpeft.eval.metrics import METRICS
from jpeft.report.groups import Group, Spread
from jpeft.report.names import PAPER_METHODS, in_order
from jpeft.report.table import Style

Scarce = Literal["time", "memory", "quality"]
# Where no spread over seeds is known: of a metric, as a part of its whole (`_whole`); of seconds and of metric per
# parameter, as a share.
CLOSE_METRIC = 0.01
CLOSE_SHARE = 0.05
FAR_BEHIND = 0.1  # of a metric's whole, below the best: what is so much worse is no bargain, however fast or small


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The criterion by which methods are ranked when time, memory or something else is scarce.

    Attributes:
      name: of the quantity; `heading` is shorter.
      get: that quantity of a method's cell: `(group, method, task, scale)`.
      shares: whether a task's numbers are divided by its best before tasks are averaged: seconds of AG News and of
        CoLA are no one scale, accuracies are.
      paper_tables: where the paper's numbers of it stand.
      lacks: methods that the paper leaves out of its table of it.
      above_0: what has to be above 0 for the quantity to say anything, in words; "" where nothing has to.
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
    """A method's place.

    Attributes:
      place: from 1; None where a number is missing or says nothing.
      score: what it was ranked by, over all tasks: a mean metric, or a mean ratio to the best method of each task.
      by_task: the criterion's own number for each task.
      tied: whether it cannot be told from the first, which itself is not tied.
      behind: where its metric is furthest below the best method's; None where that is not known.
      not_above_0: tasks of which the criterion says nothing, since its number is not above 0 (`Criterion.above_0`);
        empty where another number is missing.
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
        """Whether its metric is more than `FAR_BEHIND` of its whole below the best method's on some task."""
        return self.behind is not None and self.behind.difference > self.behind.most


@dataclasses.dataclass(frozen=True)
class Behind:
    """How far a method's metric is below the best method's on a task, and how far is called far there."""

    task: str
    difference: float
    most: float


def rank(group: Group, tasks: Sequence[str], scale: str, scarce: Scarce) -> tuple[Ranked, ...]:
    """The methods of a group for these tasks at this scale; nothing missing is filled in."""
    criterion = CRITERIA[scarce]
    methods = in_order({key.method for key in group.cells} | set(PAPER_METHODS), PAPER_METHODS)
    lacking = criterion.lacks if is_paper(group) else ()
    numbers = {
        method: {task: None if method in lacking else criterion.get(group, method, task, scale) for task in tasks}
        for method in methods
    }
    return _rank(group, numbers, criterion, scale)


def is_paper(group: Group) -> bool:
    """Whether it holds the published numbers and not those of runs."""
    return not group.results


def _metric(group: Group, method: str, task: str, scale: str) -> Spread | None:
    return group.metric(method, task, scale)


def _seconds(group: Group, method: str, task: str, scale: str) -> Spread | None:
    """To the best validation loss; the paper prints total run time alone."""
    cell = group.get(method, task, scale)
    return (cell.seconds_to_best or cell.total_seconds) if cell else None


def _per_100k_parameters(group: Group, method: str, task: str, scale: str) -> Spread | None:
    cell = group.get(method, task, scale)
    if cell is None or cell.metric is None or cell.parameters is None or not cell.parameters.mean:
        return None
    return _times(cell.metric, 100_000 / cell.parameters.mean)


def _times(spread: Spread, factor: float) -> Spread:
    sd = None if spread.sd is None else spread.sd * factor
    return Spread(spread.mean * factor, sd, spread.count, spread.low * factor, spread.high * factor)


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
        # Fewer parameters make a negative metric worse, and 0 stays 0: by such a ratio nothing can be ranked.
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
    """Whether a number can be ranked by."""
    return not criterion.above_0 or number.mean > 0


def _not_above_0(of_task: Mapping[str, Spread | None], criterion: Criterion) -> tuple[str, ...]:
    """As `Ranked` has it."""
    if None in of_task.values():
        return ()
    return tuple(task for task, own in of_task.items() if own and not _says(own, criterion))


def _score(
    of_task: Mapping[str, Spread | None], best: Mapping[str, float | None], criterion: Criterion
) -> Spread | None:
    """Over the tasks; None where one is missing or says nothing: a mean of the others would be of another thing."""
    parts = []
    for task, own in of_task.items():
        reference = best[task] if criterion.shares else 1.0
        if own is None or not reference or not _says(own, criterion):
            return None
        parts.append(_times(own, 1 / reference))
    spreads = [part.sd for part in parts if part.sd is not None]
    sd = math.hypot(*spreads) / len(parts) if len(spreads) == len(parts) else None
    mean = math.fsum(part.mean for part in parts) / len(parts)
    return Spread(mean, sd, min(part.count for part in parts), mean, mean)


def _whole(group: Group, task: str, scale: str) -> float:
    """A metric's greatest value, 1 or 100; of one whose range is not known, a user's own, the best that was reached."""
    cells = [cell for key, cell in group.cells.items() if key.task == task and key.scale == scale and cell.results]
    if not cells:
        return 1.0  # the paper's
    known = METRICS.get(cells[0].results[0].metric_name)
    if known is not None and math.isfinite(known.range[1]):
        return known.range[1]
    return max(abs(cell.metric.mean) for cell in cells if cell.metric is not None)


def _clear(one: Spread, other: Spread, criterion: Criterion, close_metric: float) -> bool:
    """Whether they differ by more than their spread; where that is not known of both, by more than is called close."""
    if one.sd is not None and other.sd is not None:
        return one.clear_of(other)
    close = CLOSE_SHARE * one.mean if criterion.shares else close_metric
    return round(abs(one.mean - other.mean), 9) > close  # rounded: 0.82 and 0.81 are close


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
