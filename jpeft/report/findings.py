"""The paper's findings, and whether they hold in a set of results, with the evidence.

A finding consists of comparisons. A comparison with missing cells, or a difference within the spread over seeds, is
undecided and counted separately; the verdict is over the others.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from jpeft.report.groups import Group, Spread, published_group
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
from jpeft.report.table import Column, Style, Table, Value

# Half of the parameters is "enough" if its metric is at most this much below that of all layers.
HALF_MARGIN = 0.02
_HALVES = {"ia3": ("early", "later", "random"), "lora": ("early", "later", "random", "drop_query_output")}

FINDINGS_NOTE = (
    "A finding is a number of comparisons. It holds where all that decide agree, mostly holds from 3/4 of them on, is "
    "mixed below, and does not hold up to 1/4. A difference smaller than its spread over seeds, √(sd² + sd²), decides "
    "nothing, and neither does one whose cells are missing: where less than half decide, there is no "
    "verdict. With one seed no spread is known and every difference counts."
)

ClaimHolds = Literal["yes", "no", "within the spread", "cannot be said"]
_TONES: dict[str, Literal["good", "bad", "weak"]] = {
    "yes": "good",
    "no": "bad",
    "within the spread": "weak",
    "cannot be said": "weak",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding of the paper.

    Attributes:
      claim: the paper's statement.
      verdict: `holds`, `mostly holds`, `mixed`, `does not hold`, `within the spread` or `cannot be said`.
      summary: the counts, in words.
      of_paper: the verdict for the paper's own tables; empty if the results are the paper's.
      evidence: a table of all comparisons.
      decides: whether any comparison is decided; if not, none of the runs that it needs are there.
    """

    name: str
    claim: str
    verdict: str
    summary: str
    of_paper: str
    evidence: Table
    decides: bool = True


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The result of a finding's comparisons; `given` replaces the verdict over `outcomes`."""

    outcomes: Sequence[ClaimHolds]
    summary: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    note: str = ""
    verdict_given: str | None = None

    @property
    def verdict(self) -> str:
        return self.verdict_given or verdict(self.outcomes)

    @property
    def sentence(self) -> str:
        if set(self.outcomes) == {"cannot be said"}:
            return "The cells that it needs are missing."
        return self.summary[0].upper() + self.summary[1:]


def findings(group: Group) -> list[Finding]:
    """All findings, for a group and, beside it, for the paper's own tables."""
    found = []
    for name, (claim, ask) in _FINDINGS.items():
        answer, of_paper = ask(group), ask(published_group())
        beside = "" if group is published_group() or group.generated else f"{of_paper.verdict}. {of_paper.sentence}"
        notes = (answer.note,) if answer.note else ()
        title = claim if group is published_group() else f"{claim} ({group.title})"
        table = Table(f"finding-{name}", title, answer.columns, answer.rows, notes)
        decides = any(outcome != "cannot be said" for outcome in answer.outcomes)
        found.append(Finding(name, claim, answer.verdict, answer.sentence, beside, table, decides))
    return found


# --- verdicts ---


def more(one: Spread | None, other: Spread | None) -> ClaimHolds:
    """Whether `one` is larger than `other` by more than their spread over seeds."""
    if one is None or other is None:
        return "cannot be said"
    if (one.sd or other.sd) and not one.clear_of(other):
        return "within the spread"
    return "yes" if one.mean > other.mean else "no"


def verdict(outcomes: Iterable[ClaimHolds]) -> str:
    """The verdict over comparisons.

    `holds` if all decided ones are yes, `mostly holds` from 3/4 on, `does not hold` up to 1/4, else `mixed`. If fewer
    than half are decided, it is the most frequent reason for that.
    """
    outcomes = list(outcomes)
    yes, no = outcomes.count("yes"), outcomes.count("no")
    if 2 * (yes + no) < len(outcomes):  # most are undecided: the more frequent reason
        missing, within = outcomes.count("cannot be said"), outcomes.count("within the spread")
        return "cannot be said" if missing >= within else "within the spread"
    share = yes / (yes + no)
    return "holds" if share == 1 else "mostly holds" if share >= 0.75 else "does not hold" if share <= 0.25 else "mixed"


def _tally(outcomes: Iterable[ClaimHolds]) -> str:
    """`7 of 8; 1 more within the spread; 24 cannot be said, cells are missing`."""
    outcomes = list(outcomes)
    yes, no = outcomes.count("yes"), outcomes.count("no")
    parts = [f"{yes} of {yes + no}"] if yes + no else []
    within, missing = outcomes.count("within the spread"), outcomes.count("cannot be said")
    parts += [f"{within} more within the spread"] * bool(within)
    parts += [f"{missing} cannot be said, cells are missing"] * bool(missing)
    return "; ".join(parts)


def _outcome(outcome: ClaimHolds) -> Value:
    return Value(outcome, tone=_TONES[outcome])


# --- (a) to (f) ---


def _slower_to_converge(group: Group) -> _Answer:
    """The verdict is by seconds, as in section 3.2; epochs are counted for information."""
    rows, by_epoch, by_seconds = [], [], []
    for scale in ("low", "medium"):
        for task in PAPER_TASKS:
            full = group.get("full", task, scale)
            for method in PEFT:
                own = group.get(method, task, scale)
                epochs = more(own and own.best_epoch, full and full.best_epoch)
                seconds = more(own and own.convergence_seconds, full and full.convergence_seconds)
                by_epoch.append(epochs)
                by_seconds.append(seconds)
                rows.append(
                    [
                        Value(f"{method_label(method)}, {task_label(task)} ({scale})"),
                        Value.of(own and own.best_epoch),
                        Value.of(full and full.best_epoch),
                        _outcome(epochs),
                        Value.of(own and own.convergence_seconds),
                        Value.of(full and full.convergence_seconds),
                        _outcome(seconds),
                    ]
                )
    ours = bool(group.results)
    what = "seconds to the best validation loss" if ours else "total run time"
    columns = [Column("Cell")]
    kinds: list[tuple[str, Style]] = [
        ("Best epoch", "count"),
        ("Seconds to the best loss" if ours else "Total seconds", "seconds"),
    ]
    for kind, style in kinds:
        columns += [Column("PEFT", style, kind), Column("full", style, kind), Column("PEFT later", "text", kind)]
    return _Answer(
        by_seconds,
        f"slower by {what}: {_tally(by_seconds)}. Later by epochs: {_tally(by_epoch)}.",
        columns,
        rows,
        "The verdict is by seconds. An equal epoch counts as not later. "
        + (
            "Seconds to the best validation loss: training and validation, times (best epoch + 1) / epochs run."
            if ours
            else "The paper prints total run times only, and takes them for convergence times."
        ),
    )


def _later_over_early(group: Group) -> _Answer:
    rows, outcomes = [], []
    for task in PAPER_TASKS:
        later, early = (group.metric("ia3", task, "medium", name) for name in ("later", "early"))
        outcomes.append(more(later, early))
        rows.append([Value(task_label(task)), Value.of(later), Value.of(early), _outcome(outcomes[-1])])
    columns = (
        Column("Task"),
        Column("later layers", "metric"),
        Column("early layers", "metric"),
        Column("later better"),
    )
    return _Answer(outcomes, f"later layers better: {_tally(outcomes)}.", columns, rows)


def _attention_falls_most(group: Group) -> _Answer:
    rows, outcomes, furthest = [], [], []
    others = [name for name in PAPER_ABLATIONS["ia3"] if name != "drop_attention"]
    over_dense: list[ClaimHolds] = []
    for task in PAPER_TASKS:
        without = group.metric("ia3", task, "medium", "drop_attention")
        row = [Value(task_label(task)), Value.of(group.metric("ia3", task, "medium")), Value.of(without)]
        of_task: list[ClaimHolds] = []
        for name in others:
            other = group.metric("ia3", task, "medium", name)
            outcome = more(other, without)
            of_task.append(outcome)
            row.append(dataclasses.replace(Value.of(other), tone=_TONES[outcome] if other and without else ""))
            if name == "drop_dense":
                over_dense.append(outcome)
        outcomes += of_task
        furthest.append(_all(of_task))
        rows.append([*row, _outcome(furthest[-1])])
    columns = [
        Column("Task"),
        Column("all", "metric"),
        Column("drop attention", "metric"),
        *(Column(ablation_label(name), "metric", "Other ablations") for name in others),
        Column("attention falls furthest"),
    ]
    summary = (
        f"dropping attention falls further than another ablation, pair by pair: {_tally(outcomes)}. Than dropping the "
        f"dense activation: {_tally(over_dense)}. Than all four others of its task: {_tally(furthest)}."
    )
    return _Answer(outcomes, summary, columns, rows, "The verdict is over the pairs.")


def _all(outcomes: Sequence[ClaimHolds]) -> ClaimHolds:
    """`yes` if all are, `no` if one is, else the reason why it is undecided."""
    for outcome in ("no", "cannot be said", "within the spread"):
        if outcome in outcomes:
            return outcome
    return "yes"


def _half_is_enough(group: Group) -> _Answer:
    """The same half has to suffice on every task: choosing one per task would be a choice by test metric."""
    rows, parts = [], []
    by_half: dict[tuple[str, str], list[ClaimHolds]] = {}
    for method, halves in _HALVES.items():
        for half in halves:
            for task in PAPER_TASKS:
                full, own = group.metric(method, task, "medium"), group.metric(method, task, "medium", half)
                outcome: ClaimHolds = "cannot be said"
                if full and own:
                    outcome = _within_margin(own, full)
                by_half.setdefault((method, half), []).append(outcome)
                rows.append(
                    [
                        Value(f"{method_label(method)}, {ablation_label(half)}, {task_label(task)}"),
                        Value.of(own),
                        Value.of(full),
                        Value(own.mean - full.mean if own and full else None),
                        _outcome(outcome),
                    ]
                )
    enough: list[ClaimHolds] = []
    for method, halves in _HALVES.items():
        passed = [half for half in halves if set(by_half[method, half]) == {"yes"}]
        failed = [half for half in halves if "no" in by_half[method, half]]
        undecided = (
            "cannot be said" if any("cannot be said" in by_half[method, h] for h in halves) else "within the spread"
        )
        enough.append("yes" if passed else "no" if len(failed) == len(halves) else undecided)
        shown = ", ".join(f"{ablation_label(half)} {_tally(by_half[method, half])}" for half in halves)
        parts.append(f"{method_label(method)}: {shown}")
    summary = f"tasks where half of the parameters stays within {HALF_MARGIN} of all. {'. '.join(parts)}."
    columns = (
        Column("Cell"),
        Column("half", "metric"),
        Column("all", "metric"),
        Column("difference", "signed"),
        Column(f"within {HALF_MARGIN}"),
    )
    note = "For a method the finding holds where one and the same half is within the margin on all four tasks."
    return _Answer(enough, summary, columns, rows, note)


def _within_margin(own: Spread, full: Spread) -> ClaimHolds:
    room = own.mean - (full.mean - HALF_MARGIN)
    if abs(room) < math.hypot(own.sd or 0.0, full.sd or 0.0):
        return "within the spread"
    return "yes" if room >= -1e-12 else "no"  # a difference equal to the margin counts as within it


def _lora_more_robust(group: Group) -> _Answer:
    rows: list[list[Value]] = []
    outcomes: list[ClaimHolds] = []
    both: list[tuple[float, float]] = []
    for task in PAPER_TASKS:
        lora, ia3 = (_mean_relative_loss(group, method, task) for method in ("lora", "ia3"))
        outcomes.append(more(ia3, lora))
        if lora and ia3:
            both.append((lora.mean, ia3.mean))
        rows.append([Value(task_label(task)), Value.of(lora), Value.of(ia3), _outcome(outcomes[-1])])
    summary = f"LoRA loses less: {_tally(outcomes)}."
    if both:
        lora, ia3 = (sum(losses) / len(losses) for losses in zip(*both, strict=True))
        where = "the four tasks" if len(both) == len(PAPER_TASKS) else f"the {len(both)} tasks where none is missing"
        summary += f" Mean relative loss over {where}: LoRA {100 * lora:.1f} %, (IA)³ {100 * ia3:.1f} %."
        rows.append([Value("mean"), Value(lora), Value(ia3), Value("")])
    columns = (Column("Task"), Column("LoRA", "percent"), Column("(IA)³", "percent"), Column("LoRA loses less"))
    note = (
        "Relative loss: 1 less the metric of the ablation over that of all layers, mean over the method's ablations "
        "(six of LoRA, five of (IA)³). Negative: the ablations are better on average. A task counts where none of them "
        "is missing."
    )
    return _Answer(outcomes, summary, columns, rows, note)


def _mean_relative_loss(group: Group, method: str, task: str) -> Spread | None:
    """1 - ablation / all layers, averaged over the ablations; the spread is propagated as if they were independent."""
    full = group.metric(method, task, "medium")
    known = [group.metric(method, task, "medium", ablation) for ablation in PAPER_ABLATIONS[method]]
    own = [spread for spread in known if spread is not None]
    if full is None or not full.mean or len(own) < len(known):
        return None
    ratios = [spread.mean / full.mean for spread in own]
    mean = sum(ratios) / len(ratios)
    sd = None
    if full.sd is not None and all(spread.sd is not None for spread in own):
        parts = [(spread.sd or 0.0) / full.mean / len(own) for spread in own]
        sd = math.hypot(*parts, mean * full.sd / full.mean)
    return Spread(1 - mean, sd, 1, 1 - max(ratios), 1 - min(ratios))


def _no_best_method(group: Group) -> _Answer:
    rows: list[list[Value]] = []
    leads: list[tuple[str, str]] = []  # (scale, best method), without ties
    leaders: set[str] = set()  # those ahead by more than the spread
    outcomes: list[ClaimHolds] = []
    ties = within = 0
    for scale in PAPER_SCALES:
        for task in PAPER_TASKS:
            metrics = {method: group.metric(method, task, scale) for method in PAPER_METHODS}
            known = {method: spread for method, spread in metrics.items() if spread is not None}
            row = [Value(f"{task_label(task)} ({scale})")]
            if len(known) < len(PAPER_METHODS):
                absent = in_order(set(PAPER_METHODS).difference(known), PAPER_METHODS)
                remark = f"cannot be said: {', '.join(map(method_label, absent))} missing"
                rows.append([*row, *[Value(None)] * 5, Value(remark, tone="weak")])
                outcomes.append("cannot be said")
                continue
            first, second = sorted(known, key=lambda method: -known[method].mean)[:2]
            ahead = known[first].mean - known[second].mean
            clear = more(known[first], known[second])
            outcomes.append(clear)
            remark = ""
            if not ahead:
                ties, remark = ties + 1, "a tie"
            else:
                leads.append((scale, first))
                if clear == "yes":
                    leaders.add(first)
                else:
                    within, remark = within + 1, clear
            row += [Value(method_label(first)), Value.of(known[first])]
            row += [Value(method_label(second)), Value.of(known[second])]
            rows.append([*row, Value(ahead), Value(remark, tone="weak")])
    columns = (
        Column("Cell"),
        Column("best"),
        Column("metric", "metric"),
        Column("second"),
        Column("its metric", "metric"),
        Column("ahead by", "signed"),
        Column("remark"),
    )
    by_scale = []
    for scale in PAPER_SCALES:
        of_scale = [method for at, method in leads if at == scale]
        shown = ", ".join(f"{method_label(m)} {of_scale.count(m)}" for m in PAPER_METHODS if m in of_scale)
        by_scale += [f"{scale}: {shown}"] * bool(of_scale)
    missing = outcomes.count("cannot be said")
    parts = [f"best of the five methods, by scale ({'; '.join(by_scale) or 'none'})."]
    parts += [f"{within} of {len(leads)} leads lie within the spread over seeds."] * bool(within)
    parts += [f"{ties} tie{'s' if ties > 1 else ''}."] * bool(ties)
    parts += [f"{missing} of {len(outcomes)} cannot be said, cells are missing."] * bool(missing)
    # Two different clear leaders decide it whatever is missing; a single one only if nothing is missing or unclear.
    if len(leaders) > 1:
        given = "holds"
    elif len({method for _, method in leads}) > 1:
        given = "within the spread"
    elif missing:
        given = "cannot be said"
    else:
        given = "does not hold" if set(outcomes) == {"yes"} else "within the spread"
    note = (
        "A method leads where its mean is the highest of the five, all five being there. The verdict is over the leads "
        "that are larger than the spread."
    )
    return _Answer(outcomes, " ".join(parts), columns, rows, note, given)


_FINDINGS: dict[str, tuple[str, Callable[[Group], _Answer]]] = {
    "convergence": ("PEFT is slower to converge than full tuning at low and medium scale", _slower_to_converge),
    "layers": ("For (IA)³ later layers are better than early ones", _later_over_early),
    "attention": ("Attention is essential for (IA)³: dropping it falls furthest", _attention_falls_most),
    "half": ("Half of the parameters is enough", _half_is_enough),
    "robustness": ("LoRA is more robust to ablation than (IA)³", _lora_more_robust),
    "best": ("No method is best at every scale and on every task", _no_best_method),
}
