"""The paper's decision framework, section 3.2: which method, by the task, the number of rows and what is scarce.

Methods are ranked by numbers alone, the published ones or a user's own. The recommendation then says whether the
paper's own sentence names the method that these numbers rank first; the two do not always agree.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from jpeft.report.groups import CellMeans, Group, Spread, cautions
from jpeft.report.names import PEFT, method_label, task_label
from jpeft.report.published import published
from jpeft.report.ranking import (
    CLOSE_METRIC,
    CLOSE_SHARE,
    CRITERIA,
    Criterion,
    Ranked,
    Scarce,
    is_paper,
    rank,
)
from jpeft.report.table import Column, Style, Table, Value, show
from jpeft.report.tables import per_minute
from jpeft.words import listed

Verdict = Literal["agrees", "agrees within a tie", "disagrees", "cannot be said"]
TASKS_OF = {"classification": ("agnews", "cola"), "generation": ("e2e", "samsum")}

_FAST = ("full tuning across low/medium data splits […] for time-constrained scenarios", ("full",))
_GOOD = ("(IA)³, LoRA or BitFit for low/medium-resource", ("ia3", "lora", "bitfit"))
_SMALL = ("(IA)³ performs best in medium/high-resource scenarios", ("ia3",))
# By scarce resource and scale: the quotation of section 3.2, and the methods that it names.
_SECTION_3_2: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "time": {
        "low": _FAST,
        "medium": _FAST,
        "high": ("PEFT techniques in high-resource for time-constrained scenarios", PEFT),
    },
    "memory": {
        "low": ("BitFit and (IA)³ perform best in low-resource scenarios", ("bitfit", "ia3")),
        "medium": _SMALL,
        "high": _SMALL,
    },
    "quality": {"low": _GOOD, "medium": _GOOD, "high": ("full tuning in high-resource", ("full",))},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """The results, tasks and scale of a question for the best method, what is scarce, and the ranking that follows."""

    group: Group
    tasks: tuple[str, ...]
    scale: str
    scarce: Scarce
    ranking: tuple[Ranked, ...]

    @property
    def criterion(self) -> Criterion:
        return CRITERIA[self.scarce]

    @property
    def placed(self) -> list[Ranked]:
        """The ranked methods, best first; those without usable numbers are left out."""
        return [ranked for ranked in self.ranking if ranked.place is not None]

    @property
    def ties(self) -> list[str]:
        """The methods that tie with the first."""
        return [ranked.method for ranked in self.ranking if ranked.tied]


@dataclasses.dataclass(frozen=True)
class PaperSentence:
    """Section 3.2's sentence for a case, the verdict whether the numbers agree with it, and a line that says so."""

    sentence: str
    verdict: Verdict
    line: str


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A ranking in words and tables.

    Attributes:
      answer: the method to use, in a line.
      reasons: `(label, sentence)` pairs.
      paper: how the ranking compares with the paper's sentence.
      cautions: warnings.
      tables: the ranking, and further numbers of the methods.
    """

    case: Case
    answer: str
    reasons: tuple[tuple[str, str], ...]
    paper: PaperSentence
    cautions: tuple[str, ...]
    tables: tuple[Table, ...]


def scale_of(examples: int) -> tuple[str, str]:
    """The paper's scale for a number of training examples, and a remark if it is beyond the largest scale, or ""."""
    limits = published()["scales"]
    for scale, limit in limits.items():
        if examples <= limit["max_train"]:
            return scale, ""
    return "high", (
        f"{examples:,} examples are more than the {limits['high']['max_train']:,} of the paper's largest scale: what "
        "follows is of that scale, and extrapolates."
    )


def recommend(group: Group, tasks: Sequence[str], scale: str, scarce: Scarce) -> Recommendation:
    """Recommends a method of a group for these tasks at this scale; methods with missing numbers are not ranked."""
    case = Case(group, tuple(tasks), scale, scarce, rank(group, tasks, scale, scarce))
    return Recommendation(
        case, _answer(case), tuple(_reasons(case)), _compare(case), tuple(_cautions(case)), _tables(case)
    )


# --- words ---


def _answer(case: Case) -> str:
    if not case.placed:
        if any(ranked.not_above_0 for ranked in case.ranking):
            where = "; ".join(line for _, line in _not_ranked(case))
        else:
            where = "the paper prints none" if is_paper(case.group) else "the runs have none"
        return f"cannot be said: no {case.criterion.name} for every task at {case.scale} scale ({where})"
    ties = f", which cannot be told from {_labels(case.ties)}" if case.ties else ""
    return f"{method_label(case.placed[0].method)}{ties}"


def _reasons(case: Case) -> Iterator[tuple[str, str]]:
    if not case.placed:
        return
    first, *others = case.placed
    next_one = f" Next is {method_label(others[0].method)}: {_numbers(others[0], case)}." if others else ""
    yield "why", f"{case.criterion.name}: {_numbers(first, case)}.{next_one}"
    if case.ties:
        yield "ties", _tie_rule(case)
    leaders = {task: _leader(case, task) for task in case.tasks}
    if len(set(leaders.values())) > 1:
        yield "by task", ", ".join(f"{method_label(method)} on {task_label(task)}" for task, method in leaders.items())
    yield from _not_ranked(case)


def _tie_rule(case: Case) -> str:
    close = f"{CLOSE_SHARE:.0%}" if case.criterion.shares else f"{CLOSE_METRIC:.0%} of the most that the metric can be"
    if all(ranked.score is not None and ranked.score.sd is not None for ranked in case.placed):
        return "a difference within the spread over seeds is called a tie"
    return f"a difference within {close} is called a tie where no spread over seeds is known"


def _not_ranked(case: Case) -> Iterator[tuple[str, str]]:
    """Why methods are not ranked, as `(label, sentence)` pairs."""
    unplaced = [ranked for ranked in case.ranking if ranked.place is None]
    without_sense = [ranked for ranked in unplaced if ranked.not_above_0]
    if without_sense:
        on = " and ".join(
            task_label(task) for task in case.tasks if any(task in ranked.not_above_0 for ranked in without_sense)
        )
        yield (
            "not above 0",
            f"{_labels([ranked.method for ranked in without_sense])}: not ranked, the {case.criterion.above_0} on {on} "
            f"is not above 0: {case.criterion.name} says nothing there",
        )
    lacking = [ranked.method for ranked in unplaced if not ranked.not_above_0]
    if lacking:
        yield "missing", _missing(case, lacking)


def _missing(case: Case, lacking: list[str]) -> str:
    if is_paper(case.group) and lacking == list(case.criterion.lacks):
        (method,) = lacking
        values = {task: case.criterion.get(case.group, method, task, case.scale) for task in case.tasks}
        shown = ", ".join(f"{value.mean:.4g} on {task_label(task)}" for task, value in values.items() if value)
        return f"the paper leaves {method_label(method)} out of Table 5; by Tables 1 and 3 it has {shown}"
    return f"{_labels(lacking)}: not ranked, a number is missing"


def _numbers(ranked: Ranked, case: Case) -> str:
    style = case.criterion.style
    return " and ".join(f"{show(Value.of(own), style).line()} on {task_label(t)}" for t, own in ranked.by_task.items())


def _leader(case: Case, task: str) -> str:
    sign = 1 if case.criterion.lowest_first else -1
    return min(case.placed, key=lambda ranked: sign * (own.mean if (own := ranked.by_task[task]) else 0.0)).method


def _cautions(case: Case) -> Iterator[str]:
    if case.placed and case.placed[0].far_behind:
        first = case.placed[0]
        behind = first.behind
        assert behind is not None, "it is far behind"
        where = f"its metric on {task_label(behind.task)} is {behind.difference:.4f} below the best method's."
        other = next((ranked.method for ranked in case.placed if not ranked.far_behind), None)
        instead = f" The first that is no more than {behind.most:.3g} below is {method_label(other)}." if other else ""
        yield f"{method_label(first.method)} is first, but {where}{instead}"
    if not is_paper(case.group):
        cells = case.group.cells.items()
        used = {k: c for k, c in cells if k.task in case.tasks and k.scale == case.scale and not k.ablation}
        yield from cautions(dataclasses.replace(case.group, cells=used))


def _compare(case: Case) -> PaperSentence:
    sentence, named = _SECTION_3_2[case.scarce].get(case.scale, ("", ()))
    if not named:
        return PaperSentence("", "cannot be said", "section 3.2 speaks of the paper's scales alone")
    said = f"section 3.2 says “{sentence}”"
    if not case.placed:
        return PaperSentence(sentence, "cannot be said", f"{said}; these numbers cannot tell")
    first = case.placed[0].method
    line = f"{said}; these numbers put {method_label(first)} first"
    if first not in named:
        tied = [method for method in case.ties if method in named]
        if tied:
            return PaperSentence(sentence, "agrees within a tie", f"{line}, level with {_labels(tied)}")
    # One of several named methods may be ranked low.
    low = [r for r in case.placed if r.method in named and (r.place or 0) > len(named)]
    aside = "".join(f", {method_label(ranked.method)} at place {ranked.place}" for ranked in low)
    return PaperSentence(sentence, "agrees" if first in named else "disagrees", f"{line}{aside}")


def _labels(methods: Iterable[str]) -> str:
    return listed([method_label(method) for method in methods])


# --- table ---


def _tables(case: Case) -> tuple[Table, ...]:
    """The ranking and, in a second table since terminals are narrow, further numbers of the methods."""
    criterion, several = case.criterion, len(case.tasks) > 1
    columns = [Column("#"), Column("method")]
    columns += [Column(task_label(task), criterion.style, criterion.heading) for task in case.tasks]
    mean = Column("to the best", "ratio") if criterion.shares else Column("mean", "metric")
    rows = []
    for ranked in case.ranking:
        row = [Value("" if ranked.place is None else str(ranked.place)), Value(method_label(ranked.method))]
        row += [Value.of(ranked.by_task[task]) for task in case.tasks]
        row += [Value(ranked.score.mean if ranked.score else None)] * several
        remark = ", ".join(["tie"] * ranked.tied + ["far behind in metric"] * ranked.far_behind)
        rows.append([*row, Value(remark, tone="weak")])
    title = f"By {criterion.name}, {'least' if criterion.lowest_first else 'most'} first"
    title += f" ({criterion.paper_tables} of the paper)" if is_paper(case.group) else ""
    name = f"recommend-{case.scarce}"
    return (Table(name, title, [*columns, *[mean] * several, Column("remark")], rows), *_further(case, name))


def _further(case: Case, name: str) -> Iterator[Table]:
    views, sizes = _views(case), _sizes(case)
    if not views and not sizes:
        return
    columns = [Column("method")]
    columns += [Column(task_label(task), style, heading) for heading, style, _ in views for task in case.tasks]
    columns += [Column(heading, style) for heading, style, _ in sizes]
    rows = [
        [
            Value(method_label(ranked.method)),
            *(get(ranked, task) for _, _, get in views for task in case.tasks),
            *(get(ranked) for _, _, get in sizes),
        ]
        for ranked in case.ranking
    ]
    yield Table(f"{name}-further", "What else there is to know of them", columns, rows)


def _views(case: Case) -> list[tuple[str, Style, Callable[[Ranked, str], Value]]]:
    """The further columns with a number per task, as `(heading, style, get)`; `get` gives a method's value."""

    def metric(ranked: Ranked, task: str) -> Value:
        return Value.of(case.group.metric(ranked.method, task, case.scale))

    def minute(ranked: Ranked, task: str) -> Value:
        table_6 = published()["table6_metric_per_minute"].get(case.scale, {})
        left_out = is_paper(case.group) and ranked.method not in table_6
        return Value(None if left_out else per_minute(case.group, ranked.method, task, case.scale))

    both: list[tuple[str, Style, Callable[[Ranked, str], Value]]]
    both = [("metric/min", "number", minute), ("metric", "metric", metric)]
    return {"time": both, "memory": both[1:], "quality": []}[case.scarce]


def _sizes(case: Case) -> list[tuple[str, Style, Callable[[Ranked], Value]]]:
    """The further columns with one number for all tasks, the largest, as `(heading, style, get)`."""

    def largest(get: Callable[[CellMeans], Spread | None]) -> Callable[[Ranked], Value]:
        def of(ranked: Ranked) -> Value:
            cells = [case.group.get(ranked.method, task, case.scale) for task in case.tasks]
            known = [spread.mean for cell in cells if cell and (spread := get(cell)) is not None]
            return Value(max(known, default=None))

        return of

    if case.scarce != "memory":
        return []
    found: list[tuple[str, Style, Callable[[Ranked], Value]]]
    found = [("parameters", "count", largest(lambda cell: cell.parameters))]
    if not is_paper(case.group):
        found.append(("adapter", "bytes", largest(lambda cell: cell.mean(lambda r: r.adapter_bytes))))
        # 0 means that the device does not report it
        found.append(("peak memory", "bytes", largest(lambda cell: cell.mean(lambda r: r.peak_memory_bytes or None))))
    return found
