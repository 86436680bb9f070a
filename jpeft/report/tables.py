"""The paper's tables and the numbers of its Figure 1, from cells of any results, and the further tables of a report."""

import dataclasses
from collections.abc import Callable, Iterable

from jpeft.report.groups import CellMeans, Group, Spread, place_label, published_group
from jpeft.report.names import (
    METRIC_LABELS,
    PAPER_ABLATIONS,
    PAPER_METHODS,
    PAPER_MODEL,
    PAPER_SCALES,
    PAPER_TASKS,
    PEFT,
    ablation_label,
    in_order,
    method_label,
    row_label,
    task_label,
)
from jpeft.report.published import TABLE_2_LABELS, published, published_parameters
from jpeft.report.table import Column, Style, Table, Value, mark_best
from jpeft.words import counted

_SEEDS_NOTE = (
    "± is the sample standard deviation over seeds (n - 1), n their number; without ± there is one seed. se is the "
    "standard error of one seed's metric over its test rows."
)


def paper_tables(group: Group) -> list[Table]:
    """The paper's tables from a group's cells: Tables 1 to 6, the numbers of Figure 1, the speed-ups."""
    make = (table_1, table_2, table_3, table_4, figure_1, speedups, table_5, table_6)
    return [shown for table in make if (shown := _what_is_there(table(group))) is not None]


def further_tables(group: Group) -> list[Table]:
    """The tables that the paper does not have: other metrics, times, sizes, and all cells."""
    others = [other_metrics(group)] if group.has_papers else []
    return [*others, times(group), sizes(group), all_cells(group)]


def own_tables(group: Group) -> list[Table]:
    """The tables of cells that are not of the paper's kind: a user's own rows, other scales and settings."""
    return [own_results(group), *own_metrics(group), *each_file(group)] if group.own else []


def _what_is_there(table: Table) -> Table | None:
    """The table without empty rows and columns; None if all are empty."""
    known = [[i for i, value in enumerate(row) if i and value.value is not None] for row in table.rows]
    columns = [0, *sorted({i for found in known for i in found})]
    rows = [[row[i] for i in columns] for row, found in zip(table.rows, known, strict=True) if found]
    if not rows:
        return None
    left_out = len(table.rows) - len(rows)
    if not left_out and len(columns) == len(table.columns):
        return table
    parts = [counted(left_out, "row")] * bool(left_out)
    parts += [counted(len(table.columns) - len(columns), "column")] * (len(columns) < len(table.columns))
    note = f"Not shown, since nothing of them was run: {' and '.join(parts)} of the paper's table."
    return dataclasses.replace(
        table, columns=[table.columns[i] for i in columns], rows=rows, notes=(*table.notes, note)
    )


# --- the paper's tables ---


def table_1(group: Group) -> Table:
    """Table 1 of the paper: the metric of each method at each scale, by task, with the untrained model above it."""
    rows = [[Value("Zero-shot"), *(Value.of(group.zero_shot(task)) for task in PAPER_TASKS)]]
    for scale in PAPER_SCALES:
        of_scale = []
        for method in PAPER_METHODS:
            values = [_beside(group, lambda g, m=method, t=task, s=scale: g.metric(m, t, s)) for task in PAPER_TASKS]
            of_scale.append([Value(row_label(method, scale)), *values])
        rows += mark_best(of_scale, range(1, len(PAPER_TASKS) + 1))
    return Table(
        "table-1",
        _title(group, "Table 1: performance by method, task and scale"),
        _task_columns("metric"),
        rows,
        (
            "Accuracy by exact string match for AG News and CoLA, ROUGE-L (F-measure) for E2E NLG and SAMSum; higher "
            f"is better. Bold: best method of its scale. {_SEEDS_NOTE} The zero-shot row, the model before any "
            "training, is not in the paper.",
            *_comparison_note(group),
        ),
    )


def table_2(group: Group) -> Table:
    """Table 2 of the paper: the metric of (IA)³ and LoRA at medium scale with parts of the layers left out."""
    rows = []
    for ablation in dict.fromkeys(
        (None, *PAPER_ABLATIONS["ia3"][:3], *PAPER_ABLATIONS["lora"][3:], *PAPER_ABLATIONS["ia3"][3:])
    ):
        for method, ablations in PAPER_ABLATIONS.items():
            if ablation is None or ablation in ablations:
                values = [
                    _beside(group, lambda g, m=method, t=task, a=ablation: g.metric(m, t, "medium", a))
                    for task in PAPER_TASKS
                ]
                rows.append([Value(f"{method_label(method)} ({TABLE_2_LABELS[ablation]})"), *values])
    notes = (f"At medium scale. {_SEEDS_NOTE}", *_comparison_note(group))
    return Table("table-2", _title(group, "Table 2: ablations of (IA)³ and LoRA"), _task_columns("metric"), rows, notes)


def table_3(group: Group) -> Table:
    """Table 3 of the paper: how many parameters each method and ablation trains, and their share of the model."""
    total = Spread.single(max((result.total_parameters for result in group.results), default=None))
    rows: list[list[Value]] = []

    def add(label: str, count: Spread | None, method: str, ablation: str | None) -> None:
        share = count.mean / total.mean if count and total else None
        paper = None if group.generated else published_parameters().get((method, ablation))
        rows.append([Value(label), Value.of(count, paper), Value(share)])

    add("Total Parameters (no PEFT)", total, "full", None)
    for method in ("ia3", "lora", "bitfit", "prompt"):
        for ablation in (None, *PAPER_ABLATIONS.get(method, ())):
            if ablation or method in PAPER_ABLATIONS:
                label = f"{method_label(method)} ({ablation_label(ablation) if ablation else 'full layers/modules'})"
            else:
                label = method_label(method)
            add(label, _parameters(group, method, ablation), method, ablation)
    columns = (Column("Ablation technique"), Column("Parameters", "count"), Column("Share of the model", "percent"))
    notes = ("BitFit and prompt tuning are from the text of appendix A.4.", *_comparison_note(group))
    return Table("table-3", _title(group, "Table 3: trainable parameters"), columns, rows, notes)


def table_4(group: Group) -> Table:
    """Table 4 of the paper: the epoch of the lowest validation loss and the total run time in seconds, by task."""
    rows = []
    for scale in ("low", "medium"):
        for method in PAPER_METHODS:
            row = [Value(row_label(method, scale))]
            for task in PAPER_TASKS:
                row.append(_beside(group, lambda g, m=method, t=task, s=scale: _of(g.get(m, t, s), "best_epoch")))
                row.append(_beside(group, lambda g, m=method, t=task, s=scale: _of(g.get(m, t, s), "total_seconds")))
            rows.append(row)
    columns = [Column("PEFT/Dataset")]
    for task in PAPER_TASKS:
        columns += [Column("epoch", "count", task_label(task)), Column("seconds", "seconds", task_label(task))]
    notes = (
        "Epoch of the lowest validation loss, counted from 0, and total run time in seconds; lower is better. Ours is "
        "training, validation, test and compilation together, on the device named above; the paper used 4 × NVIDIA "
        f"A10. The high scale has one epoch. {_SEEDS_NOTE}",
        *_comparison_note(group),
    )
    return Table("table-4", _title(group, "Table 4: convergence"), columns, rows, notes)


def figure_1(group: Group) -> Table:
    """The numbers of the paper's Figure 1: run time of each PEFT method over that of full tuning, by task."""
    rows = []
    for scale in ("low", "medium"):
        for method in PEFT:
            values = [
                _beside(group, lambda g, m=method, t=task, s=scale: relative_time(g, m, t, s), spread=False)
                for task in PAPER_TASKS
            ]
            rows.append([Value(row_label(method, scale)), *values])
    notes = (
        "Total run time of the method divided by full tuning's; below 1 the method is faster. Means over seeds are "
        "divided, so no spread is shown.",
        *_comparison_note(group),
    )
    return Table(
        "figure-1", _title(group, "Figure 1: run time relative to full tuning"), _task_columns("ratio"), rows, notes
    )


def speedups(group: Group) -> Table:
    """Section 3.2 of the paper: how much faster full tuning is than the mean of the PEFT methods, by scale and task."""
    printed = {} if group.generated else published()["section_3_2_full_tuning_speedup"]
    rows = [
        [
            Value(scale),
            *(Value(speedup(group, task, scale), published=printed.get(scale, {}).get(task)) for task in PAPER_TASKS),
        ]
        for scale in ("low", "medium")
    ]
    notes = (
        "1 less full tuning's seconds over the mean seconds of the four PEFT methods; below 0 full tuning is slower. "
        "All five methods are needed.",
        *_comparison_note(group),
    )
    columns = [Column("Scale"), *_task_columns("percent")[1:]]
    return Table("speed-ups", _title(group, "Section 3.2: speed-up of full tuning"), columns, rows, notes)


def table_5(group: Group) -> Table:
    """Table 5 of the paper: the metric per 100,000 trainable parameters (`per_parameters`)."""
    return _efficiency(
        group,
        "table-5",
        "Table 5: metric per 100,000 trainable parameters",
        per_parameters,
        "table5_metric_per_100k_parameters",
        PAPER_SCALES,
    )


def table_6(group: Group) -> Table:
    """Table 6 of the paper: the metric per minute of total run time (`per_minute`)."""
    return _efficiency(
        group,
        "table-6",
        "Table 6: metric per minute of run time",
        per_minute,
        "table6_metric_per_minute",
        ("low", "medium"),
    )


def _efficiency(
    group: Group,
    name: str,
    title: str,
    of: Callable[[Group, str, str, str], float | None],
    printed: str,
    scales: Iterable[str],
) -> Table:
    paper = {} if group.generated else published()[printed]
    rows = []
    for scale in scales:
        of_scale = [
            [
                Value(row_label(method, scale)),
                *(
                    Value(of(group, method, task, scale), published=paper.get(scale, {}).get(method, {}).get(task))
                    for task in PAPER_TASKS
                ),
            ]
            for method in ("full", "ia3", "lora", "bitfit")
        ]
        rows += mark_best(of_scale, range(1, len(PAPER_TASKS) + 1))
    notes = (
        "From the means over seeds; higher is better. As in the paper, prompt tuning is left out. The paper's entries "
        "are those that it prints; some do not follow from its own Tables 1, 3 and 4 (`jpeft report --paper`).",
        *_comparison_note(group),
    )
    return Table(name, _title(group, title), _task_columns("number"), rows, notes)


# --- derived quantities ---


def per_parameters(group: Group, method: str, task: str, scale: str) -> float | None:
    """The metric per 100,000 trainable parameters (Table 5)."""
    ratio = (cell := group.get(method, task, scale)) and cell.metric_per_100k_parameters
    return ratio.mean if ratio else None


def per_minute(group: Group, method: str, task: str, scale: str) -> float | None:
    """The metric per minute of total run time (Table 6)."""
    cell = group.get(method, task, scale)
    if cell is None or cell.metric is None or cell.total_seconds is None or not cell.total_seconds.mean:
        return None
    return cell.metric.mean / (cell.total_seconds.mean / 60)


def relative_time(group: Group, method: str, task: str, scale: str) -> Spread | None:
    """The total run time divided by that of full tuning (Figure 1)."""
    own, full = (_of(group.get(m, task, scale), "total_seconds") for m in (method, "full"))
    return Spread.single(own.mean / full.mean) if own and full and full.mean else None


def speedup(group: Group, task: str, scale: str) -> float | None:
    """1 - seconds of full tuning / mean seconds of the four PEFT methods (section 3.2); None if one is missing."""
    full = _of(group.get("full", task, scale), "total_seconds")
    others = [_of(group.get(method, task, scale), "total_seconds") for method in PEFT]
    known = [other.mean for other in others if other]
    if full is None or len(known) < len(PEFT) or not sum(known):
        return None
    return 1 - full.mean / (sum(known) / len(known))


# --- what the paper lacks ---


def other_metrics(group: Group) -> Table:
    """The table of further test metrics, such as Matthews correlation and multi-reference ROUGE-L."""
    columns: list[tuple[str, str]] = []
    for task in in_order({key.task for key in group.cells if key.is_papers}, PAPER_TASKS):
        own = {r.metric_name for r in group.results if r.task == task}
        names = {name for r in group.results if r.task == task for name in r.metrics}
        columns += [(task, name) for name in in_order(names - own, METRIC_LABELS)]
    rows = [[Value("Zero-shot"), *(Value.of(group.zero_shot(task, name)) for task, name in columns)]]
    for method, scale in _method_rows(group):
        values = [Value.of(cell.number(name)) if (cell := group.get(method, task, scale)) else Value(None)
                  for task, name in columns]  # fmt: skip
        rows.append([Value(row_label(method, scale)), *values])
    notes = (
        "Matthews correlation is 0 for whoever always gives the same answer, whatever the accuracy. Multi-reference "
        f"ROUGE-L takes the best of all human references of a row. {_SEEDS_NOTE}",
    )
    heads = [Column(METRIC_LABELS.get(name, name), "metric", task_label(task)) for task, name in columns]
    return Table("other-metrics", _title(group, "Other metrics"), [Column("Method"), *heads], rows, notes)


def times(group: Group) -> Table:
    """The table of each cell's seconds by phase: training, validation, test, compilation, and so on."""
    columns = [
        Column("Cell"),
        Column("best epoch", "count"),
        Column("epochs run", "count"),
        Column("to best validation loss", "seconds", "Seconds"),
        *(Column(name, "seconds", "Seconds") for name in ("total", "train", "validation", "test", "compile")),
        Column("examples", "number", "Training, a second"),
        Column("tokens", "number", "Training, a second"),
    ]
    rows = []
    for cell in _ordered(group):
        seconds = [
            Value.of(cell.mean(lambda r, n=name: r.seconds[n]))
            for name in ("total", "train", "validation", "test", "compile")
        ]
        rows.append(
            [
                Value(cell_label(cell)),
                Value.of(cell.best_epoch),
                Value.of(cell.mean(lambda r: r.epochs_run)),
                Value.of(cell.seconds_to_best),
                *seconds,
                Value.of(cell.mean(lambda r: r.examples_per_second)),
                Value.of(cell.mean(lambda r: r.tokens_per_second)),
            ]
        )
    notes = (
        "Training and validation apart: with 2,500 validation rows an epoch, validation dominates the low scale. "
        "Seconds to the best validation loss are those of training and validation times (best epoch + 1) / epochs run, "
        "since all epochs of a run do the same work. Examples and tokens a second are over the training seconds. "
        f"{_SEEDS_NOTE}",
    )
    return Table("times", _title(group, "Times"), columns, rows, notes)


def sizes(group: Group) -> Table:
    """The table of parameters, adapter sizes and memory by method and ablation."""
    by_method: dict[tuple[str, str], list[CellMeans]] = {}
    for cell in _ordered(group):
        by_method.setdefault((cell.key.method, cell.key.ablation), []).append(cell)
    tasks = in_order({key.task for key in group.cells}, PAPER_TASKS)
    rows = []
    for method in in_order({method for method, _ in by_method}, PAPER_METHODS):
        for ablation in in_order({a for m, a in by_method if m == method}, ("", *PAPER_ABLATIONS.get(method, ()))):
            results = [result for cell in by_method[method, ablation] for result in cell.results]
            label = method_label(method) + (f" ({ablation_label(ablation)})" if ablation else "")
            peak = {
                task: [r.peak_memory_bytes for r in results if r.task == task and r.peak_memory_bytes] for task in tasks
            }
            rows.append(
                [
                    Value(label),
                    Value(max((r.trainable_parameters for r in results), default=None)),
                    Value(max((r.adapter_bytes for r in results), default=None)),
                    *(Value(max(found) if found else None) for found in peak.values()),
                ]
            )
    columns = [
        Column("Method"),
        Column("Trainable parameters", "count"),
        Column("Adapter file", "bytes"),
        *(Column(place_label(task), "bytes", "Peak memory, largest of all runs") for task in tasks),
    ]
    notes = (
        "Where runs differ in parameters or file size, the largest is given. Peak memory is the device's where it "
        "tells, the highest since its process began; on CPU it is the run's own.",
    )
    return Table("sizes", _title(group, "Parameters, adapter size and memory"), columns, rows, notes)


def all_cells(group: Group) -> Table:
    """The table of all cells, in the paper or not."""
    rows = []
    for cell in _ordered(group):
        key, metric, trust = cell.key, cell.metric, _interval(cell)
        rows.append(
            [
                Value(method_label(key.method)),
                Value(ablation_label(key.ablation) if key.ablation else ""),
                Value(task_label(key.task)),
                Value(key.data),
                Value(key.scale),
                Value(cell.results[0].setting),
                Value(cell.results[0].metric_name),
                Value.of(metric),
                Value(metric.low if metric else None),
                Value(metric.high if metric else None),
                Value(len(cell.results)),
                Value(trust),
                Value.of(cell.mean(lambda r: r.validation_loss)),
                Value.of(cell.parameters),
                Value.of(cell.mean(lambda r: r.train_examples)),
                Value.of(cell.mean(lambda r: r.validation_examples)),
                Value.of(cell.mean(lambda r: r.test_examples)),
            ]
        )
    columns = [
        Column("Method"),
        Column("Ablation"),
        Column("Task"),
        Column("Data"),
        Column("Scale"),
        Column("Setting"),
        Column("Metric"),
        Column("mean", "metric", "Metric over seeds"),
        Column("lowest", "metric", "Metric over seeds"),
        Column("highest", "metric", "Metric over seeds"),
        Column("seeds", "count", "Metric over seeds"),
        Column("95 % interval of one seed"),
        Column("Validation loss", "number"),
        Column("Parameters", "count"),
        *(Column(name, "count", "Rows") for name in ("train", "validation", "test")),
    ]
    columns, rows = _without_empty(columns, rows)
    return Table("cells", _title(group, "Every cell"), columns, rows, (_SEEDS_NOTE,))


def _without_empty(columns: list[Column], rows: list[list[Value]]) -> tuple[list[Column], list[list[Value]]]:
    """The columns and rows without the columns that are empty in every row."""
    kept = [i for i in range(len(columns)) if any(row[i].value != "" for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _interval(cell: CellMeans) -> str:
    trust = cell.results[0].uncertainty if len(cell.results) == 1 else None
    return f"{trust.interval[0]:.3f}–{trust.interval[1]:.3f}" if trust else ""  # no spaces, so that it is not broken


def own_results(group: Group) -> Table:
    """The table of cells that are not of the paper's kind, in a few columns."""
    rows = []
    for cell in _ordered(group, group.own):
        key, results = cell.key, cell.results
        method = method_label(key.method) + (f", {ablation_label(key.ablation)}" if key.ablation else "")
        untuned = [r.untuned.get(r.metric_name) for r in results if r.untuned]
        rows.append(
            [
                Value(place_label(key.task, key.data)),
                Value(method),
                Value("" if key.scale == "all" else key.scale),
                Value(results[0].setting),
                Value(METRIC_LABELS.get(results[0].metric_name, results[0].metric_name)),
                Value.of(cell.metric),
                Value("" if not untuned or untuned[0] is None else untuned[0]),
                Value.of(cell.mean(lambda r: r.validation_loss)),
                Value(_range(r.train_examples for r in results)),
                Value(_range(r.test_examples for r in results)),
                Value.of(cell.total_seconds),
                Value(_interval(cell)),
            ]
        )
    columns = [
        Column("Data"),
        Column("Method"),
        Column("Scale"),
        Column("Setting"),
        Column("Metric"),
        Column("Score", "metric"),
        Column("Untuned", "metric"),
        Column("Validation loss", "metric"),
        Column("Train rows"),
        Column("Test rows"),
        Column("Seconds", "seconds"),
        Column("95 % interval"),
    ]
    columns, rows = _without_empty(columns, rows)
    notes = (
        f"{_SEEDS_NOTE} Scores of different rows cannot be compared with each other. Untuned: the model before any "
        "training, where a run measured it.",
    )
    return Table("own-results", _title(group, "What was run"), columns, rows, notes)


def own_metrics(group: Group) -> list[Table]:
    """The table of further test metrics of these cells; none if there are no such metrics."""
    cells = _ordered(group, group.own)
    names = in_order({n for c in cells for r in c.results for n in r.metrics if n != r.metric_name}, METRIC_LABELS)
    if not names:
        return []
    rows = [[Value(cell_label(cell)), *(Value.of(cell.number(name)) for name in names)] for cell in cells]
    for row in rows:
        row[1:] = [Value("") if value.value is None else value for value in row[1:]]
    columns = [Column("Cell"), *(Column(METRIC_LABELS.get(name, name), "metric") for name in names)]
    note = "Matthews correlation is 0 for whoever always gives the same answer, whatever the accuracy."
    return [Table("own-metrics", _title(group, "Other metrics"), columns, rows, (note,))]


def each_file(group: Group) -> list[Table]:
    """The table of metrics per file, of runs on several files; none if there are no such runs."""
    rows, names = [], []
    for cell in _ordered(group, group.own):
        files = list(dict.fromkeys(file for result in cell.results for file in result.by_source or {}))
        names += [n for r in cell.results for part in (r.by_source or {}).values() for n in part["metrics"]]
        rows += [(cell, file) for file in files]
    if not rows:
        return []
    metrics = in_order(set(names), METRIC_LABELS)
    entries = []
    for cell, file in rows:
        parts = [part for result in cell.results if (part := (result.by_source or {}).get(file))]
        loss = Spread.of(part["validation_loss"] for part in parts)
        entries.append(
            [
                Value(cell_label(cell)),
                Value(file),
                Value(_range(part["test_examples"] for part in parts)),
                *(Value.of(Spread.of(part["metrics"].get(name) for part in parts)) for name in metrics),
                Value.of(loss),
            ]
        )
    columns = [
        Column("Cell"),
        Column("File"),
        Column("Test rows"),
        *(Column(METRIC_LABELS.get(name, name), "metric") for name in metrics),
        Column("Validation loss", "metric"),
    ]
    note = f"Each run trained on all of its files together; a line is of the rows of one. {_SEEDS_NOTE}"
    return [Table("files", _title(group, "Each file"), columns, entries, (note,))]


def _range(values: Iterable[int]) -> str:
    known = sorted(set(values))
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def cell_label(cell: CellMeans) -> str:
    """The label of a cell: `LoRA, select early layers, CoLA (med.)`, or `LoRA, reviews.jsonl 3f2a9c1, rank 8`."""
    key = cell.key
    parts = [
        method_label(key.method),
        ablation_label(key.ablation) if key.ablation else "",
        place_label(key.task, key.data),
        cell.results[0].setting if cell.results else "",
    ]
    scale = "" if key.scale == "all" else f" ({PAPER_SCALES.get(key.scale, key.scale)})"
    return f"{', '.join(part for part in parts if part)}{scale}"


# --- helpers ---


def _of(cell: CellMeans | None, name: str) -> Spread | None:
    return getattr(cell, name) if cell else None


def _beside(group: Group, get: Callable[[Group], Spread | None], *, spread: bool = True) -> Value:
    """An entry with the paper's number for the same quantity, unless the group's data are generated."""
    paper = None if group.generated else get(published_group())
    value = Value.of(get(group), paper.mean if paper else None)
    return value if spread else Value(value.value, published=value.published)


def _title(group: Group, what: str) -> str:
    return f"{what} ({group.title})"


def _comparison_note(group: Group) -> tuple[str, ...]:
    if group.generated:
        return ("Generated data: no published number stands beside these.",)
    if not group.is_paper_model:
        return (
            f"The paper's numbers are of {PAPER_MODEL}, these are of {group.base}: the differences are between two "
            "models, not between two measurements of one.",
        )
    return ()


def _task_columns(style: Style) -> list[Column]:
    return [Column("PEFT/Dataset"), *(Column(label, style) for label in PAPER_TASKS.values())]


def _parameters(group: Group, method: str, ablation: str | None) -> Spread | None:
    counts = [
        cell.parameters.mean
        for key, cell in group.cells.items()
        if key.method == method and key.ablation == (ablation or "") and cell.parameters
    ]
    return Spread.single(max(counts)) if counts else None


def _method_rows(group: Group) -> list[tuple[str, str]]:
    """`(method, scale)` of the rows of Table 1, for the cells without an ablation."""
    found = {(key.method, key.scale) for key in group.cells if not key.ablation and key.is_papers}
    return [
        (method, scale)
        for scale in in_order({s for _, s in found}, PAPER_SCALES)
        for method in in_order({m for m, s in found if s == scale}, PAPER_METHODS)
    ]


def _ordered(group: Group, cells: Iterable[CellMeans] | None = None) -> list[CellMeans]:
    tasks, scales, methods = list(PAPER_TASKS), list(PAPER_SCALES), list(PAPER_METHODS)
    ablations = list(dict.fromkeys(("", *PAPER_ABLATIONS["ia3"], *PAPER_ABLATIONS["lora"])))
    place = lambda name, known: (known.index(name) if name in known else len(known), name)
    return sorted(
        group.cells.values() if cells is None else cells,
        key=lambda c: (
            place(c.key.task, tasks),
            c.key.data,
            place(c.key.scale, scales),
            place(c.key.method, methods),
            place(c.key.ablation, ablations),
            c.key.variant,
        ),
    )
