"""The figures of a report, each a function that fills a matplotlib figure; this module does not import matplotlib.

A missing cell leaves a gap in a line, and a cross in the place of a bar.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from jpeft.report.groups import CellMeans, Group, Key, Spread, median_seed, place_label, published_group
from jpeft.report.names import (
    PAPER_ABLATIONS,
    PAPER_METHODS,
    PAPER_SCALES,
    PAPER_TASKS,
    PEFT,
    ablation_label,
    in_order,
    method_label,
    task_label,
)
from jpeft.report.records import training_curve
from jpeft.report.tables import relative_time
from jpeft.words import counted

# For a light background. The page replaces each by a variable of its style sheet, for its light and dark modes.
INK, MUTED, RULE = "#1f2328", "#667085", "#d8dde3"
COLOURS = {
    "full": "#4b5563",
    "ia3": "#c2610c",
    "lora": "#2563eb",
    "bitfit": "#0d8a63",
    "prompt": "#b024c4",
    "adapter": "#0e7490",
    "prefix": "#9f1239",
    "dora": "#6d4aff",
    "vera": "#4d7c0f",
    "ln": "#7c2d12",
    "adalora": "#1e3a8a",
}
_OTHER_COLOUR = "#8a6d1d"
_MARKERS = {
    "full": "s",
    "ia3": "o",
    "lora": "^",
    "bitfit": "D",
    "prompt": "v",
    "adapter": "P",
    "prefix": "X",
    "dora": "<",
    "vera": ">",
    "ln": "p",
    "adalora": "h",
}
_SCALE_MARKERS = {"low": "o", "medium": "s", "high": "^"}
_TASK_MARKERS = {"agnews": "o", "cola": "s", "e2e": "^", "samsum": "D"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, not drawn yet.

    Attributes:
      name: of its files and its anchor.
      caption: what is shown and how to read it.
      label: the model and the data, drawn in the figure, which may be seen without its caption.
      size: in inches.
      draw: draws into a matplotlib `Figure`.
    """

    name: str
    caption: str
    label: str
    size: tuple[float, float]
    draw: Callable[[Any], None]


def pictures(group: Group) -> dict[str, Figure]:
    """The figures that a group has cells for, by the name of their table or, without one, by their own."""
    figures = {
        "table-1": _performance(group),
        "table-2": _ablations(group),
        "figure-1": _run_time(group),
        "pareto-seconds": _pareto(group, "seconds"),
        "pareto-parameters": _pareto(group, "parameters"),
        "validation-curves": _validation_curves(group),
        "training-curves": _training_curves(group),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def colour(method: str) -> str:
    """The colour of a method as `#rrggbb`; methods that are not in the paper share one."""
    return COLOURS.get(method, _OTHER_COLOUR)


# --- the paper's ---


def _performance(group: Group) -> Figure | None:
    if not any(key.is_papers and not key.ablation for key in group.cells):
        return None

    def draw(figure: Any) -> None:
        axes = _panels(figure, 2, 2).flat
        for ax, task in zip(axes, PAPER_TASKS, strict=True):
            for index, method in enumerate(PAPER_METHODS):
                at = [place + 0.07 * (index - 2) for place in range(len(PAPER_SCALES))]
                if not group.generated:
                    paper = [_mean(published_group().metric(method, task, scale)) for scale in PAPER_SCALES]
                    ax.plot(at, paper, ":", marker="_", color=colour(method), linewidth=1, alpha=0.65)
                ours = [group.metric(method, task, scale) for scale in PAPER_SCALES]
                _line(ax, at, ours, method)
            ax.set_xticks(range(len(PAPER_SCALES)), list(PAPER_SCALES))
            ax.set_xlim(-0.35, len(PAPER_SCALES) - 0.65)
            ax.set_title(task_label(task))
            ax.set_ylabel("accuracy" if task in ("agnews", "cola") else "ROUGE-L")
        _legend(figure, PAPER_METHODS)

    caption = (
        f"Metric by scale of the data, {group.title}. Bars are ± one standard deviation over seeds. "
        f"{'' if group.generated else 'Dotted: the paper (FLAN-T5-XL).'}"
    )
    return Figure("performance", caption.strip(), group.title, (8.6, 6.9), draw)


def _ablations(group: Group) -> Figure | None:
    if not any(key.is_papers and key.ablation for key in group.cells):
        return None

    def draw(figure: Any) -> None:
        axes = _panels(figure, 1, 2, left=1.85, wide=2.15)[0]
        for ax, method in zip(axes, PAPER_ABLATIONS, strict=True):
            names = PAPER_ABLATIONS[method]
            for index, task in enumerate(PAPER_TASKS):
                places = [-place + 0.16 * (1.5 - index) for place in range(len(names))]
                for source, filled in ((group, True), *([] if group.generated else [(published_group(), False)])):
                    changes = [_relative_change(source, method, task, name) for name in names]
                    ax.plot(
                        changes,
                        places,
                        linestyle="none",
                        marker=_TASK_MARKERS[task],
                        markersize=6 if filled else 5,
                        color=colour(method),
                        markerfacecolor=colour(method) if filled else "none",
                        alpha=1.0 if filled else 0.7,
                    )
            ax.axvline(0, color=MUTED, linewidth=1)
            ax.set_yticks([-place for place in range(len(names))], [ablation_label(name) for name in names])
            ax.set_ylim(0.5 - len(names), 0.5)
            ax.set_title(method_label(method))
            ax.set_xlabel("change of the metric, %")
        handles = [_handle(_TASK_MARKERS[task], MUTED, task_label(task)) for task in PAPER_TASKS]
        if not group.generated:
            handles.append(_handle("o", MUTED, "the paper", filled=False))
        figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False)

    beside = "" if group.generated else " Hollow: the paper (FLAN-T5-XL)."
    caption = f"Change of the metric by each ablation, relative to all layers, medium scale, {group.title}.{beside}"
    return Figure("ablations", caption, group.title, (9.4, 4.8), draw)


def _run_time(group: Group) -> Figure | None:
    scales = ("low", "medium")
    if not any(relative_time(group, m, task, scale) for m in PEFT for task in PAPER_TASKS for scale in scales):
        return None

    def draw(figure: Any) -> None:
        for ax, scale in zip(_panels(figure, 1, 2)[0], scales, strict=True):
            for index, method in enumerate(PEFT):
                at = [place + 0.2 * (index - 1.5) for place in range(len(PAPER_TASKS))]
                ours = [_mean(relative_time(group, method, task, scale)) for task in PAPER_TASKS]
                ax.bar(at, ours, width=0.18, color=colour(method))
                gaps = [x for x, height in zip(at, ours, strict=True) if math.isnan(height)]
                ax.plot(gaps, [0.06] * len(gaps), "x", color=colour(method), markersize=5)
                if not group.generated:
                    paper = [_mean(relative_time(published_group(), method, task, scale)) for task in PAPER_TASKS]
                    ax.plot(at, paper, "_", color=INK, markersize=9, markeredgewidth=1.4)
            ax.axhline(1, color=MUTED, linewidth=1, linestyle="--")
            ax.set_xticks(range(len(PAPER_TASKS)), list(PAPER_TASKS.values()))
            ax.set_title(f"{scale} scale")
            ax.set_ylabel("run time / full tuning's run time")
            ax.set_ylim(bottom=0)
        extra = [] if group.generated else [_handle("_", INK, "the paper")]
        _legend(figure, PEFT, colours_only=True, extra=[*extra, _handle("x", MUTED, "missing")])

    caption = (
        f"Figure 1: total run time relative to full tuning (dashed line), low scale left, medium right, {group.title}. "
        f"{'' if group.generated else 'Short lines: the paper (FLAN-T5-XL on 4 × A10).'}"
    )
    return Figure("figure-1-run-time", caption.strip(), group.title, (9.2, 4.6), draw)


# --- what the paper lacks ---


def _pareto(group: Group, what: str) -> Figure | None:
    axis = {"seconds": "total seconds of the run", "parameters": "trainable parameters"}[what]
    # A single point shows nothing. Each set of a user's own rows has its own panel, since metrics are not comparable.
    several = Counter(_place(key) for key in group.cells)
    places, more = _first_panels(
        [place for place in _places(group.cells) if several[place] > 1 or place[0] in PAPER_TASKS]
    )
    if not places:
        return None
    scales = in_order({key.scale for key in group.cells}, PAPER_SCALES)

    def draw(figure: Any) -> None:
        rows = math.ceil(len(places) / 2)
        axes = list(_panels(figure, rows, 2, legend=2).flat)
        for ax in axes[len(places) :]:
            ax.set_axis_off()
        for ax, place in zip(axes, places, strict=False):
            costs = []
            for scale in scales:
                cells = [c for key, c in group.cells.items() if _place(key) == place and key.scale == scale]
                points = [(x, cell.metric.mean, cell) for cell in cells if (x := _cost(cell, what)) and cell.metric]
                costs += [x for x, _, _ in points]
                for ablated in (False, True):
                    some = [point for point in points if bool(point[2].key.ablation) == ablated]
                    colours = [colour(cell.key.method) for _, _, cell in some]
                    ax.scatter(
                        [x for x, _, _ in some],
                        [y for _, y, _ in some],
                        marker=_SCALE_MARKERS.get(scale, "P"),
                        edgecolors=colours,
                        facecolors="none" if ablated else colours,
                        s=26 if ablated else 46,
                        zorder=2.5,
                    )
                front = frontier((x, y) for x, y, _ in points)
                if len(front) > 1:
                    xs, ys = zip(*front, strict=True)
                    ax.step(xs, ys, where="post", color=MUTED, linewidth=0.9, alpha=0.8)
            _log(ax.xaxis, costs)
            ax.set_title(_panel_title(place))
            ax.set_xlabel(axis)
            ax.set_ylabel("metric")
        marks = [_handle(_SCALE_MARKERS.get(scale, "P"), MUTED, _scale_name(scale)) for scale in scales]
        if any(key.ablation for key in group.cells):
            marks.append(_handle("o", MUTED, "an ablation", filled=False))
        _legend(figure, in_order({key.method for key in group.cells}, PAPER_METHODS), colours_only=True, extra=marks)

    caption = (
        f"Metric against {axis}, {group.title}. Further up and further left is better; the grey steps join, for each "
        f"scale, the cells that none beats in both.{more}"
    )
    return Figure(f"pareto-{what}", caption, group.title, (8.6, 0.9 + 3.1 * math.ceil(len(places) / 2)), draw)


_Place = tuple[str, str]  # task, and the name of the rows if they are not the task's own
_MOST_PANELS = 24


def _place(key: Key) -> _Place:
    return key.task, key.data


def _places(keys: Iterable[Key]) -> list[_Place]:
    """The data sets of these cells: the paper's in its order, then a user's own alphabetically."""
    found = {_place(key) for key in keys}
    tasks = in_order({task for task, _ in found}, PAPER_TASKS)
    return sorted(found, key=lambda place: (tasks.index(place[0]), place[1]))


def _first_panels(places: list[_Place]) -> tuple[list[_Place], str]:
    """The data sets that a figure has room for, and a note on how many others are left out."""
    more = len(places) - _MOST_PANELS
    return places[:_MOST_PANELS], f" {counted(more, 'more data set')} not drawn." if more > 0 else ""


def _panel_title(place: _Place) -> str:
    label = place_label(*place)
    return label if len(label) <= 40 else f"{label[:18]}…{label[-20:]}"


def _scale_name(scale: str) -> str:
    return f"{scale} scale" if scale in PAPER_SCALES else f"{scale} rows"


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto-optimal `(cost, metric)` points: no other point costs as little or less and has a higher metric."""
    best, kept = -math.inf, []
    for cost, metric in sorted(points, key=lambda point: (point[0], -point[1])):
        if metric > best:
            best = metric
            kept.append((cost, metric))
    return kept


def _validation_curves(group: Group) -> Figure | None:
    cells = [c for key, c in group.cells.items() if not key.ablation and any(r.epochs_run > 1 for r in c.results)]
    grid, more = _grid_of(cells)
    if grid is None:
        return None

    def draw(figure: Any) -> None:
        drawn: dict[Any, list[float]] = {}
        most: dict[Any, int] = {}
        for cell, ax in _on_grid(figure, cells, grid, "epoch", "validation loss"):
            runs = [result.validation_losses for result in cell.results]
            by_epoch = [[run[e] for run in runs if e < len(run)] for e in range(max(map(len, runs)))]
            drawn.setdefault(ax, []).extend(loss for losses in by_epoch for loss in losses)
            _line(ax, list(range(len(by_epoch))), [Spread.of(losses) for losses in by_epoch], cell.key.method)
            best = min(range(len(by_epoch)), key=lambda e: sum(by_epoch[e]) / len(by_epoch[e]))
            low = sum(by_epoch[best]) / len(by_epoch[best])
            ax.plot(best, low, "o", markersize=11, markerfacecolor="none", color=colour(cell.key.method))
            most[ax] = max(most.get(ax, 0), len(by_epoch))
            ax.set_xticks(range(0, most[ax], max(2 if most[ax] > 6 else 1, math.ceil(most[ax] / 8))))
        for ax, losses in drawn.items():
            _log(ax.yaxis, losses)
        _legend(figure, in_order({cell.key.method for cell in cells}, PAPER_METHODS))

    caption = (
        f"Validation loss (nats a token) after each epoch, counted from 0, {group.title}; mean over the seeds that ran "
        "so far, bars ± one standard deviation, a ring at the lowest. A line ends where early stopping ended the runs."
        f"{more}"
    )
    return Figure("validation-curves", caption, group.title, _grid_size(grid), draw)


def _training_curves(group: Group) -> Figure | None:
    cells = [cell for key, cell in group.cells.items() if not key.ablation]
    curves = {cell.key: training_curve(median_seed(cell)) for cell in cells}
    cells = [cell for cell in cells if curves[cell.key]]
    grid, more = _grid_of(cells)
    if grid is None:
        return None

    def draw(figure: Any) -> None:
        drawn: dict[Any, list[float]] = {}
        for cell, ax in _on_grid(figure, cells, grid, "optimizer step", "training loss"):
            steps, losses = zip(*curves[cell.key], strict=True)
            ax.plot(steps, losses, color=colour(cell.key.method), linewidth=1.2)
            drawn.setdefault(ax, []).extend(losses)
        for ax, losses in drawn.items():
            _log(ax.yaxis, losses)
        _legend(figure, in_order({cell.key.method for cell in cells}, PAPER_METHODS), line=True)

    caption = (
        f"Training loss (nats a token) by optimizer step, {group.title}; of each cell the seed whose metric is the "
        f"median, averaged over stretches of steps.{more}"
    )
    return Figure("training-curves", caption, group.title, _grid_size(grid), draw)


# --- helpers ---


def _panels(figure: Any, rows: int, columns: int, *, left: float = 0.75, wide: float = 0.75, legend: int = 1) -> Any:
    """Makes a grid of axes.

    The layout is computed here, since matplotlib's own layouts draw everything twice.

    Args:
      left: inches at the left of the figure, for labels.
      wide: inches between columns, for labels.
      legend: lines of the legend below.
    """
    width, height = figure.get_size_inches()
    bottom, top, high = 0.55 + 0.25 * legend, 0.55, 0.75
    panel_width = (width - left - 0.15 - (columns - 1) * wide) / columns
    panel_height = (height - bottom - top - (rows - 1) * high) / rows
    return figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - 0.15 / width,
            "bottom": bottom / height,
            "top": 1 - top / height,
            "wspace": wide / panel_width,
            "hspace": high / panel_height,
        },
    )


def _log(axis: Any, values: Iterable[float]) -> None:
    """Makes an axis logarithmic, with few plain ticks; if the values are close to each other it stays linear."""
    known = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = min(known, default=1.0), max(known, default=1.0)
    if high < 3 * low:
        return
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    steps = (1, 2, 5) if high < 100 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_ticks([tick for tick in ticks if low * 0.9 <= tick <= high * 1.1])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, _: _plain(value))


def _plain(value: float | int) -> str:
    """A short form of a number: `200k` for 200,000."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _mean(spread: Spread | None) -> float:
    return math.nan if spread is None else spread.mean


def _cost(cell: CellMeans, what: str) -> float | None:
    spread = cell.total_seconds if what == "seconds" else cell.parameters
    return spread.mean if spread else None


def _relative_change(group: Group, method: str, task: str, ablation: str) -> float:
    own, full = group.metric(method, task, "medium", ablation), group.metric(method, task, "medium")
    return 100 * (own.mean / full.mean - 1) if own and full and full.mean else math.nan


def _line(ax: Any, at: list[float] | list[int], spreads: list[Spread | None], method: str) -> None:
    """Draws means with their spread, and lines between neighbours that are not missing."""
    ax.errorbar(
        at,
        [_mean(spread) for spread in spreads],
        yerr=[spread.sd or 0.0 if spread else 0.0 for spread in spreads],
        color=colour(method),
        marker=_MARKERS.get(method, "P"),
        markersize=5,
        linewidth=1.6,
        elinewidth=1.2,
    )


_Panel = tuple[str, _Place] | None  # a scale and a data set; None for an empty place


def _grid_of(cells: list[CellMeans]) -> tuple[list[list[_Panel]] | None, str]:
    """Arranges panels: scales by tasks for the benchmark; three in a row for a user's own rows.

    Returns:
      Rows of panels, or None; and a note on those that are not drawn.
    """
    if not cells:
        return None, ""
    places = _places(cell.key for cell in cells)
    scales = in_order({cell.key.scale for cell in cells}, PAPER_SCALES)
    if all(task in PAPER_TASKS and not data for task, data in places):
        return [[(scale, place) for place in places] for scale in scales], ""
    there = {(cell.key.scale, _place(cell.key)) for cell in cells}
    panels = [(scale, place) for place in places for scale in scales if (scale, place) in there]
    more = len(panels) - _MOST_PANELS
    said = f" {counted(more, 'more panel')} not drawn." if more > 0 else ""
    panels = panels[:_MOST_PANELS]
    rows: list[list[_Panel]] = [list(panels[i : i + 3]) for i in range(0, len(panels), 3)]
    if len(rows) > 1:
        rows[-1] += [None] * (3 - len(rows[-1]))
    return rows, said


def _on_grid(
    figure: Any, cells: list[CellMeans], grid: list[list[_Panel]], x: str, y: str
) -> list[tuple[CellMeans, Any]]:
    """Makes the axes of the panels; returns each cell that has a panel with its axes."""
    axes = _panels(figure, len(grid), len(grid[0]), wide=0.55)
    by_panel: dict[_Panel, Any] = {}
    there = {(cell.key.scale, _place(cell.key)) for cell in cells}
    for row, panels in enumerate(grid):
        for column, panel in enumerate(panels):
            ax = axes[row][column]
            if panel is None:
                ax.set_axis_off()
                continue
            by_panel[panel] = ax
            scale, place = panel
            ax.set_title(_panel_title(place) + (f", {scale}" if scale != "all" else ""))
            if row == len(grid) - 1 or grid[row + 1][column] is None:
                ax.set_xlabel(x)
            if column == 0:
                ax.set_ylabel(y)
            if panel not in there:
                ax.text(0.5, 0.5, "missing", transform=ax.transAxes, ha="center", va="center", color=MUTED)
                ax.set_xticks([])
                ax.set_yticks([])
    return [(c, by_panel[p]) for c in cells if (p := (c.key.scale, _place(c.key))) in by_panel]


def _grid_size(grid: list[list[_Panel]]) -> tuple[float, float]:
    return (max(4.6, 2.7 * len(grid[0]) + 0.4), 2.4 * len(grid) + 0.95)


def _handle(marker: str, color: str, label: str, *, filled: bool = True, line: bool = False) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color=color,
        marker=marker,
        markersize=6,
        linestyle="-" if line else "none",
        markerfacecolor=color if filled else "none",
        label=label,
    )


def _legend(
    figure: Any, methods: Iterable[str], *, extra: Iterable[Any] = (), line: bool = False, colours_only: bool = False
) -> None:
    marker = lambda method: "" if line else "o" if colours_only else _MARKERS.get(method, "P")
    handles = [_handle(marker(m), colour(m), method_label(m), line=line) for m in methods]
    handles += list(extra)
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 6), frameon=False)
