"""Results of one model on one source of data, as means over seeds; and what in them may not be compared."""

import dataclasses
import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jpeft.eval.uncertainty import Uncertainty
from jpeft.report.names import (
    PAPER_ABLATIONS,
    PAPER_MODEL,
    PAPER_SCALES,
    PAPER_TASKS,
    PAPER_TEST_ROWS,
    in_order,
    task_label,
)
from jpeft.report.published import published, published_metric, published_parameters
from jpeft.report.records import Result
from jpeft.results import printable
from jpeft.words import counted, named_in_bits

_LENGTHS = {"data.max_input_length": "Inputs", "data.max_target_length": "Targets"}
# Config keys that are meant to differ between the cells of one grid. All others should not.
_OF_A_CELL = (
    "method.",
    "ablation.",
    "data.task",
    "data.scale",
    "data.template",
    "data.input",
    "data.target",
    "data.options",
    "data.kind",
    "data.max_train",
    "data.max_input_length",
    "data.max_target_length",
    "train.max_epochs",
    "train.learning_rate.",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds.

    Attributes:
      sd: sample standard deviation (over n - 1); None for one seed.
      count: of seeds; 0 where it is not known, as in the paper.
      error: of one seed, the standard error over its test rows; None where that is not known, or of several seeds.
    """

    mean: float
    sd: float | None
    count: int
    low: float
    high: float
    error: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | int | None]) -> "Spread | None":
        """The spread of those values that are there; None without any."""
        known = [float(value) + 0.0 for value in values if value is not None]  # -0.0 is 0.0
        if not known:
            return None
        mean, n = math.fsum(known) / len(known), len(known)
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1)) if n > 1 else None
        return cls(mean, sd, n, min(known), max(known))

    @classmethod
    def single(cls, value: float | int | None) -> "Spread | None":
        """A published number, of which no spread is known."""
        return None if value is None else cls(float(value), None, 0, float(value), float(value))

    def clear_of(self, other: "Spread") -> bool:
        """Whether the means differ by more than a difference's spread, √(sd² + sd²); 0 where none is known."""
        spread = math.hypot(self.sd or 0.0, other.sd or 0.0)
        return abs(self.mean - other.mean) > spread


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Key:
    """A cell of the grid, or one on rows of a user's own.

    Attributes:
      data: the name of the rows; empty for those of the benchmark's tasks.
      variant: of settings besides, where a cell was run with several; empty for the one that stands for it.
    """

    method: str
    task: str
    scale: str
    ablation: str = ""
    data: str = ""
    variant: str = ""

    @property
    def is_papers(self) -> bool:
        """Whether it is of a kind that the paper has: a task and a scale of its own, its rows, nothing varied."""
        return self.task in PAPER_TASKS and self.scale in PAPER_SCALES and not self.data and not self.variant


@dataclasses.dataclass(frozen=True, slots=True)
class CellMeans:
    """A cell of a grid with its numbers, means over its seeds; None where missing. The paper's have no `results`."""

    key: Key
    metric: Spread | None
    best_epoch: Spread | None = None
    total_seconds: Spread | None = None
    seconds_to_best: Spread | None = None
    parameters: Spread | None = None
    results: tuple[Result, ...] = ()

    @classmethod
    def of(cls, key: Key, results: Iterable[Result]) -> "CellMeans":
        """The means over the results of one cell, one for each seed."""
        ordered = tuple(sorted(results, key=lambda result: result.seed))
        mean = lambda get: Spread.of(get(result) for result in ordered)
        metric = _with_error(mean(lambda r: r.metric), [result.uncertainty for result in ordered])
        return cls(
            key=key,
            metric=metric,
            best_epoch=mean(lambda r: r.lowest_loss_epoch),
            total_seconds=mean(lambda r: r.seconds["total"]),
            seconds_to_best=mean(lambda r: r.seconds_to_best),
            parameters=mean(lambda r: r.trainable_parameters),
            results=ordered,
        )

    def mean(self, get: Callable[[Result], float | int | None]) -> Spread | None:
        """Mean over seeds of what `get` takes from each result; None where no result has it."""
        return Spread.of(get(result) for result in self.results)

    def number(self, name: str) -> Spread | None:
        """Mean over seeds of a number of the test split; of one seed, with its standard error where that is known."""
        mean = self.mean(lambda result: result.metrics.get(name))
        return _with_error(mean, [result.uncertainties.get(name) for result in self.results])


def _with_error(mean: Spread | None, known: Sequence[Uncertainty | None]) -> Spread | None:
    """The mean with the standard error over test rows, where it is of one seed and that is known."""
    if mean is None or len(known) != 1 or known[0] is None:
        return mean
    return dataclasses.replace(mean, error=known[0].standard_error)


@dataclasses.dataclass(frozen=True)
class Group:
    """The cells of one model, kept in as few bits, source and reading: what may stand in one table.

    Attributes:
      quantization: how the model was kept, such as `nf4,double`; None where it was wide.
      data: of a part of such a group, the rows that all of its cells are of; see `by_data`.
    """

    model: str
    source: str
    reading: str
    cells: Mapping[Key, CellMeans]
    data: str = ""
    quantization: str | None = None

    def get(self, method: str, task: str, scale: str, ablation: str | None = None) -> CellMeans | None:
        """The cell of that method, task, scale and ablation on the benchmark's rows; None where it was not run."""
        return self.cells.get(Key(method, task, scale, ablation or ""))

    def metric(self, method: str, task: str, scale: str, ablation: str | None = None) -> Spread | None:
        """The task's own metric of that cell, as `get` finds it; None where there is none."""
        cell = self.get(method, task, scale, ablation)
        return cell.metric if cell else None

    def by_data(self) -> "list[Group]":
        """One for each name of rows, in which `get` finds what is of these; the benchmark's own first."""
        parts = []
        for data in sorted({key.data for key in self.cells}):
            cells = {dataclasses.replace(k, data=""): cell for k, cell in self.cells.items() if k.data == data}
            parts.append(dataclasses.replace(self, cells=cells, data=data))
        return parts

    @property
    def own(self) -> list[CellMeans]:
        """Cells that are not of the paper's kind: rows of a user's own, another scale, other settings."""
        return [cell for key, cell in self.cells.items() if not key.is_papers]

    @property
    def has_papers(self) -> bool:
        """Whether any cell is of the paper's kind."""
        return any(key.is_papers for key in self.cells)

    @functools.cached_property
    def results(self) -> tuple[Result, ...]:
        """The results of all cells, seed by seed; empty for the paper's."""
        return tuple(result for cell in self.cells.values() for result in cell.results)

    @property
    def generated(self) -> bool:
        """Whether the rows were generated: such results say nothing about a model or a method."""
        return self.source == "sample"

    @property
    def is_paper_model(self) -> bool:
        """Whether the runs were of the paper's model, FLAN-T5-XL, kept wide: their numbers may be held against its."""
        return self.model == PAPER_MODEL and self.quantization is None

    @property
    def base(self) -> str:
        """The model's name, and in how few bits it was where it was not wide."""
        return named_in_bits(self.model, self.quantization)

    @property
    def title(self) -> str:
        """A heading: the model and its bits, its data and, where it is not the paper's, the reading of the methods."""
        data = "generated data (source `sample`)" if self.generated else f"source `{self.source}`"
        if self.source == "local" and all(key.task not in PAPER_TASKS for key in self.cells):
            data = self.data or "rows of your own"
        return f"{self.base}, {data}" + ("" if self.reading == "paper" else f", {self.reading} reading")

    def zero_shot(self, task: str, name: str | None = None) -> Spread | None:
        """A number of the untrained model, by default the task's metric.

        Prompt tuning's untrained prompt, and an adapter that a run started from, are no part of that model.
        """
        values = [
            result.zero_shot.get(name or result.metric_name)
            for result in self.results
            if result.task == task
            and not (task in PAPER_TASKS and result.data)
            and result.zero_shot is not None
            and result.method != "prompt"
            and dict(result.settings or ()).get("method.from_adapter", "None") == "None"
        ]
        known = Spread.of(values)
        # Every run measured the same model on the same rows: the count is of no seeds.
        return known and dataclasses.replace(known, count=1, sd=known.sd if known.low != known.high else None)


def group(results: Iterable[Result]) -> list[Group]:
    """Results by model, its bits, source and reading, in the order of these; never two of them in one group."""
    by_group: dict[tuple[str, str, str, str], dict[Key, list[Result]]] = {}
    for result in results:
        key = Key(
            result.method, result.task, result.scale, result.ablation or "", data=result.data, variant=result.variant
        )
        cells = by_group.setdefault((result.model, result.quantization or "", result.source, result.reading), {})
        cells.setdefault(key, []).append(result)
    return [
        Group(
            model,
            source,
            reading,
            {key: CellMeans.of(key, found) for key, found in sorted(cells.items())},
            quantization=quantization or None,
        )
        for (model, quantization, source, reading), cells in sorted(by_group.items())
    ]


@functools.cache
def published_group() -> Group:
    """The paper's tables 1 to 4 as cells, so that what is asked of runs can be asked of the paper."""
    tables, counts = published(), published_parameters()
    cells = {}

    def add(method: str, task: str, scale: str, ablation: str | None, metric: float | None) -> None:
        timing = tables["table4_convergence"].get(scale, {}).get(method, {}).get(task, {}) if not ablation else {}
        key = Key(method, task, scale, ablation or "")
        cells[key] = CellMeans(
            key,
            Spread.single(metric),
            best_epoch=Spread.single(timing.get("epoch")),
            total_seconds=Spread.single(timing.get("seconds")),
            parameters=Spread.single(counts.get((method, ablation))),
        )

    for scale, methods in tables["table1_metric"].items():
        for method, tasks in methods.items():
            for task, metric in tasks.items():
                add(method, task, scale, None, metric)
    for method, ablations in PAPER_ABLATIONS.items():
        for ablation in ablations:
            for task in PAPER_TEST_ROWS:
                add(method, task, "medium", ablation, published_metric(method, task, "medium", ablation))
    return Group(PAPER_MODEL, "the paper", "paper", cells)


# --- what may not be compared without a word ---


def cautions(group: Group) -> list[str]:
    """Warnings about results in one group that were made differently, such as on other rows; a sentence each."""
    found = [_differing(what, values) for what, values in _provenance(group).items()]
    found += _row_counts(group)
    found += _cut_texts(group)
    found += _parameter_counts(group)
    found += _settings(group)
    if group.generated:
        found.insert(
            0,
            "These results are on generated data (source `sample`): they show that the machinery works and say nothing "
            "about a model or a method. No published number stands beside them.",
        )
    return [text for text in found if text]


def _provenance(group: Group) -> dict[str, Counter[str]]:
    get: dict[str, Callable[[Result], str]] = {
        "commits of jpeft": lambda r: (
            "none (installed package)" if r.commit is None else r.commit[:10] + "-dirty" * r.commit.endswith("-dirty")
        ),
        "versions": lambda r: _in_a_line(r.versions),
        "devices": lambda r: f"{r.device_count} × {r.device}",
        "meshes": lambda r: _in_a_line(r.mesh),
    }
    return {what: Counter(of(result) for result in group.results) for what, of in get.items()}


def _in_a_line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{printable(name)} {printable(part)}" for name, part in values.items())


def _differing(what: str, values: Counter[str]) -> str:
    if len(values) < 2:
        return ""
    listed = _only_what_differs(values) if what == "versions" else values
    shown = "; ".join(f"{value} ({counted(count, 'result')})" for value, count in listed.most_common(4))
    more = f"; and {len(listed) - 4} more" if len(listed) > 4 else ""
    seconds = " Their seconds and their memory are not comparable." if what in ("devices", "meshes") else ""
    return f"The results were made by {len(values)} different {what}: {shown}{more}.{seconds}"


def _only_what_differs(values: Counter[str]) -> Counter[str]:
    parts = {value: value.split(", ") for value in values}
    common = set.intersection(*(set(part) for part in parts.values()))
    short: Counter[str] = Counter()
    for value, count in values.items():
        short[", ".join(part for part in parts[value] if part not in common) or "without these"] += count
    return short


def _row_counts(group: Group) -> list[str]:
    found = []
    for split in ("test", "validation", "train"):
        rows: dict[str, Counter[int]] = {}
        for r in group.results:
            where = place_label(r.task, r.data) + (f" at scale {r.scale}" if split == "train" else "")
            rows.setdefault(where, Counter())[getattr(r, f"{split}_examples")] += 1
        for where, counts in rows.items():
            if len(counts) > 1:
                shown = ", ".join(
                    f"{counted(n, 'row')} ({counted(count, 'result')})" for n, count in sorted(counts.items())
                )
                found.append(f"{where}: not all results have the same {split} rows: {shown}.")
    if not group.generated:
        for task in in_order({r.task for r in group.results}, PAPER_TEST_ROWS):
            fewest = min(r.test_examples for r in group.results if r.task == task)
            if fewest < PAPER_TEST_ROWS.get(task, 0):
                found.append(
                    f"{task_label(task)} was tested on {fewest:,} rows; the paper's test split has "
                    f"{PAPER_TEST_ROWS[task]:,}."
                )
    return found


def place_label(task: str, data: str = "") -> str:
    """`AG News`; of rows of a user's own their name."""
    return (
        (data or "rows of your own")
        if task not in PAPER_TASKS
        else f"{task_label(task)}, {data}"
        if data
        else PAPER_TASKS[task]
    )


def _cut_texts(group: Group) -> list[str]:
    """The lengths that somebody set in the place of the tasks' own."""
    set_here = {(key, value) for r in group.results for key, value in r.settings or () if key in _LENGTHS}
    return [
        f"{_LENGTHS[key]} were cut to {value} tokens, not to the task's own length."
        for key, value in sorted(set_here)
        if value != "None"
    ]


def _parameter_counts(group: Group) -> list[str]:
    counts: dict[tuple[str, str], set[int]] = {}
    for r in group.results:
        counts.setdefault((r.method, r.ablation or ""), set()).add(r.trainable_parameters)
    return [
        f"{method}{f' ({ablation})' if ablation else ''} trains {' or '.join(f'{n:,}' for n in sorted(found))} "
        "parameters: runs of different options stand under one name."
        for (method, ablation), found in sorted(counts.items())
        if len(found) > 1
    ]


def _settings(group: Group) -> list[str]:
    known = Counter(r.settings for r in group.results if r.settings)
    everywhere: dict[str, Counter[str]] = {}
    for settings, count in known.items():
        for key, value in settings or ():
            if not key.startswith(_OF_A_CELL):
                everywhere.setdefault(key, Counter())[value] += count
    found = []
    for key, values in sorted(everywhere.items()):
        if len(values) > 1:
            shown = ", ".join(f"{value} ({counted(count, 'result')})" for value, count in values.most_common(4))
            found.append(f"The runs differ in `{key}`: {shown}{', ...' if len(values) > 4 else ''}.")
    for cell in group.cells.values():
        inside = {r.settings for r in cell.results if r.settings}
        keys = sorted(key for key in _keys_that_differ(inside) if key.startswith(_OF_A_CELL))
        if keys:
            key = cell.key
            name = " ".join(
                part for part in (key.method, key.ablation, key.data or key.task, key.scale, key.variant) if part
            )
            found.append(
                f"The seeds of {name} differ in {', '.join(f'`{key}`' for key in keys)}: their mean mixes these."
            )
    return found


def _keys_that_differ(settings: Iterable[tuple[tuple[str, str], ...] | None]) -> set[str]:
    values: dict[str, set[str]] = {}
    every = [dict(one or ()) for one in settings]
    for one in every:
        for key in one:
            values.setdefault(key, set()).update(other.get(key, "not there") for other in every)
    return {key for key, found in values.items() if len(found) > 1}


def median_seed(cell: CellMeans) -> Result:
    """The run whose metric is the median of its cell's: the one to show where one has to stand for all."""
    middle = statistics.median_low(result.metric for result in cell.results)
    return next(result for result in cell.results if result.metric == middle)
