"""Groups of comparable results, as means over seeds; and warnings about differences between the results of a group."""

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
# Config keys that may differ between the cells of a grid; all others should be equal.
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
      sd: sample standard deviation (n - 1); None for one seed.
      count: number of seeds; 0 if unknown, as in the paper.
      low, high: the smallest and largest value.
      error: for one seed, the standard error over its test rows; None if unknown, or for several seeds.
    """

    mean: float
    sd: float | None
    count: int
    low: float
    high: float
    error: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | int | None]) -> "Spread | None":
        """The spread of the values that are not None; None without any."""
        known = [float(value) + 0.0 for value in values if value is not None]  # -0.0 is 0.0
        if not known:
            return None
        mean, n = math.fsum(known) / len(known), len(known)
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1)) if n > 1 else None
        return cls(mean, sd, n, min(known), max(known))

    @classmethod
    def single(cls, value: float | int | None) -> "Spread | None":
        """A published number, whose spread is unknown."""
        return None if value is None else cls(float(value), None, 0, float(value), float(value))

    def times(self, factor: float) -> "Spread":
        """The spread of the values multiplied by a positive factor; without the error of one seed."""
        sd = None if self.sd is None else self.sd * factor
        return Spread(self.mean * factor, sd, self.count, self.low * factor, self.high * factor)

    def clear_of(self, other: "Spread") -> bool:
        """Whether the means differ by more than the spread of the difference, √(sd² + sd²), with 0 if unknown."""
        spread = math.hypot(self.sd or 0.0, other.sd or 0.0)
        return abs(self.mean - other.mean) > spread


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Key:
    """The key of a cell of the benchmark, or of a cell on a user's own rows.

    Attributes:
      data: the name of the rows; empty for the rows of the benchmark's tasks.
      variant: the settings that differ, if a cell was run with several; empty for the one that represents the cell.
    """

    method: str
    task: str
    scale: str
    ablation: str = ""
    data: str = ""
    variant: str = ""

    @property
    def is_papers(self) -> bool:
        """Whether it is a cell of the paper's kind: its tasks, scales and rows, with no other settings varied."""
        return self.task in PAPER_TASKS and self.scale in PAPER_SCALES and not self.data and not self.variant


@dataclasses.dataclass(frozen=True, slots=True)
class CellMeans:
    """The numbers of a cell, as means over its seeds; None if missing. The paper's cells have no `results`."""

    key: Key
    metric: Spread | None
    best_epoch: Spread | None = None
    total_seconds: Spread | None = None
    seconds_to_best: Spread | None = None
    parameters: Spread | None = None
    results: tuple[Result, ...] = ()

    @classmethod
    def of(cls, key: Key, results: Iterable[Result]) -> "CellMeans":
        """The means over the results of one cell, one per seed."""
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

    @property
    def convergence_seconds(self) -> Spread | None:
        """Seconds to the best validation loss; for the paper, which has no others, the total run time."""
        return self.seconds_to_best or self.total_seconds

    @property
    def metric_per_100k_parameters(self) -> Spread | None:
        """The metric per 100,000 trainable parameters (Table 5); None if either is missing."""
        if self.metric is None or self.parameters is None or not self.parameters.mean:
            return None
        return self.metric.times(100_000 / self.parameters.mean)

    def mean(self, get: Callable[[Result], float | int | None]) -> Spread | None:
        """The mean over seeds of a number that `get` takes from a result; None if no result has it."""
        return Spread.of(get(result) for result in self.results)

    def number(self, name: str) -> Spread | None:
        """The mean over seeds of a test metric; for one seed with its standard error, if known."""
        mean = self.mean(lambda result: result.metrics.get(name))
        return _with_error(mean, [result.uncertainties.get(name) for result in self.results])


def _with_error(mean: Spread | None, known: Sequence[Uncertainty | None]) -> Spread | None:
    """The mean with the standard error over test rows, for one seed if known."""
    if mean is None or len(known) != 1 or known[0] is None:
        return mean
    return dataclasses.replace(mean, error=known[0].standard_error)


@dataclasses.dataclass(frozen=True)
class Group:
    """The cells of one model, quantization, source of data and reading: those that may share a table.

    Attributes:
      model: name of the base.
      source: where the rows are from, as `data.source`.
      reading: of the methods, `paper` or `official`.
      data: for a part made by `by_data`, the name of the rows of all its cells.
      quantization: of the base, such as `nf4,double`; None for float weights.
    """

    model: str
    source: str
    reading: str
    cells: Mapping[Key, CellMeans]
    data: str = ""
    quantization: str | None = None

    def get(self, method: str, task: str, scale: str, ablation: str | None = None) -> CellMeans | None:
        """The cell of a method, task, scale and ablation on the benchmark's rows; None if it was not run."""
        return self.cells.get(Key(method, task, scale, ablation or ""))

    def metric(self, method: str, task: str, scale: str, ablation: str | None = None) -> Spread | None:
        """The task's metric of a cell as of `get`; None if there is none."""
        cell = self.get(method, task, scale, ablation)
        return cell.metric if cell else None

    def by_data(self) -> "list[Group]":
        """A group per name of rows, for `get` to find their cells; the benchmark's rows first."""
        parts = []
        for data in sorted({key.data for key in self.cells}):
            cells = {dataclasses.replace(k, data=""): cell for k, cell in self.cells.items() if k.data == data}
            parts.append(dataclasses.replace(self, cells=cells, data=data))
        return parts

    @property
    def own(self) -> list[CellMeans]:
        """The cells that are not of the paper's kind: a user's own rows, another scale, other settings."""
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
        """Whether the rows were generated (`data.source=sample`); such results say nothing about models or methods."""
        return self.source == "sample"

    @property
    def is_paper_model(self) -> bool:
        """Whether the model is the paper's, FLAN-T5-XL, not quantized, so that its numbers compare with the paper's."""
        return self.model == PAPER_MODEL and self.quantization is None

    @property
    def base(self) -> str:
        """The model's name, with its quantization if any."""
        return named_in_bits(self.model, self.quantization)

    @property
    def title(self) -> str:
        """A heading: the model with its quantization, its data and, if it is not the paper's, the reading."""
        data = "generated data (source `sample`)" if self.generated else f"source `{self.source}`"
        if self.source == "local" and all(key.task not in PAPER_TASKS for key in self.cells):
            data = self.data or "rows of your own"
        return f"{self.base}, {data}" + ("" if self.reading == "paper" else f", {self.reading} reading")

    def zero_shot(self, task: str, name: str | None = None) -> Spread | None:
        """A test metric of the untuned model, by default the task's."""
        values = [
            result.untuned.get(name or result.metric_name)
            for result in self.results
            if result.task == task and not (task in PAPER_TASKS and result.data) and result.untuned is not None
        ]
        known = Spread.of(values)
        # Every run measured the same model on the same rows: the runs do not count as seeds.
        return known and dataclasses.replace(known, count=1, sd=known.sd if known.low != known.high else None)


def group(results: Iterable[Result]) -> list[Group]:
    """Groups results by model, quantization, source and reading, sorted by these."""
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
    """The paper's Tables 1 to 4 as a group, so that everything computed from runs can be computed from the paper."""
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
    """Warnings about differences between the results of a group, such as other rows or devices; a sentence each."""
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
    """The label of a task, such as `AG News`, or the name of a user's own rows."""
    if task not in PAPER_TASKS:
        return data or "rows of your own"
    label = task_label(task)
    return f"{label}, {data}" if data else label


def _cut_texts(group: Group) -> list[str]:
    """Warnings about maximal lengths that were set instead of the tasks' own."""
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
    """The run with the median metric of its cell, to represent the cell."""
    middle = statistics.median_low(result.metric for result in cell.results)
    return next(result for result in cell.results if result.metric == middle)
