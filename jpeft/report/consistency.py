"""The paper's consistency: its derived tables compared with the same numbers recomputed from its other tables."""

import dataclasses
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from jpeft.report.groups import published_group
from jpeft.report.names import PAPER_TASKS, PEFT, method_label, row_label, task_label
from jpeft.report.published import published, published_parameters
from jpeft.report.table import Column, Table, Value


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """A published entry, and the same entry recomputed exactly from other published entries."""

    label: str
    task: str
    printed: Decimal
    recomputed: Decimal

    @property
    def agrees(self) -> bool:
        """Whether both are equal to the last printed digit, by rounding or by truncation."""
        digit = Decimal(1).scaleb(int(self.printed.as_tuple().exponent))
        return self.printed in {self.recomputed.quantize(digit, rounding) for rounding in (ROUND_HALF_UP, ROUND_DOWN)}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The checks of one published table.

    Attributes:
      name: anchor of its table in the report.
      title: the table, and those that it was recomputed from.
      how: the computation, in words.
      checks: one per entry.
    """

    name: str
    title: str
    how: str
    checks: tuple[Check, ...]

    @property
    def agreeing(self) -> int:
        """The number of entries that agree."""
        return sum(check.agrees for check in self.checks)

    @property
    def summary(self) -> str:
        """`23 of 24 entries agree`."""
        return f"{self.agreeing} of {len(self.checks)} entries agree"


def comparisons() -> list[Comparison]:
    """Table 5 from Tables 1 and 3, Table 6 from Tables 1 and 4, the speed-ups from Table 4, Table 2 from Table 1."""
    return [_table_5(), _table_6(), _speedups(), _table_2()]


def table(comparison: Comparison) -> Table:
    """The checks as a table; failed ones are marked."""
    rows = [
        [
            Value(check.label),
            Value(task_label(check.task)),
            Value(float(check.printed)),
            Value(float(check.recomputed)),
            Value("agrees", tone="good") if check.agrees else Value("disagrees", tone="bad"),
        ]
        for check in comparison.checks
    ]
    columns = (
        Column("Entry"),
        Column("Dataset"),
        Column("printed", "published"),
        Column("recomputed", "exact"),
        Column("to the last printed digit"),
    )
    return Table(comparison.name, f"{comparison.title}: {comparison.summary}", columns, rows, (comparison.how,))


def disagreements(compared: list[Comparison]) -> Table:
    """The entries of all comparisons that disagree."""
    rows = [
        [Value(comparison.title), *row[:-1]]
        for comparison in compared
        for row in table(comparison).rows
        if row[-1].tone == "bad"
    ]
    columns = (
        Column("Table"),
        Column("Entry"),
        Column("Dataset"),
        Column("printed", "published"),
        Column("recomputed", "exact"),
    )
    return Table("paper-disagreements", f"The {len(rows)} entries that disagree", columns, rows)


def remarks() -> list[str]:
    """The statements of section 3.2 that Table 4 contradicts."""
    group = published_group()
    exceptions = []
    for scale in ("low", "medium"):
        for task in PAPER_TASKS:
            full = group.get("full", task, scale)
            for method in PEFT:
                own = group.get(method, task, scale)
                if own and full and own.total_seconds and full.total_seconds:
                    if own.total_seconds.mean < full.total_seconds.mean:
                        seconds = f"{own.total_seconds.mean:.0f} s against {full.total_seconds.mean:.0f} s"
                        exceptions.append(f"{method_label(method)} on {task_label(task)} at {scale} scale ({seconds})")
    return [
        "Section 3.2 says that full tuning converges faster than every PEFT technique except BitFit on CoLA at medium "
        f"scale. In Table 4 the faster ones are: {'; '.join(exceptions)}."
    ]


def _decimal(number: float) -> Decimal:
    return Decimal(repr(number))  # the shortest decimal of this float: the digits as printed


def _derived(table: str, derive: Callable[[str, str, str], Decimal]) -> tuple[Check, ...]:
    """A check per entry of a table; `derive(method, task, scale)` recomputes it from the other tables."""
    return tuple(
        Check(row_label(method, scale), task, _decimal(printed), derive(method, task, scale))
        for scale, methods in published()[table].items()
        for method, tasks in methods.items()
        for task, printed in tasks.items()
    )


def _metric(method: str, task: str, scale: str) -> Decimal:
    return _decimal(published()["table1_metric"][scale][method][task])


def _table_5() -> Comparison:
    counts = published_parameters()
    checks = _derived(
        "table5_metric_per_100k_parameters",
        lambda method, task, scale: _metric(method, task, scale) * 100_000 / counts[method, None],
    )
    how = "Table 1's metric divided by Table 3's parameters, for each hundred thousand of them."
    return Comparison("paper-table-5", "Table 5, metric per 100,000 parameters", how, checks)


def _table_6() -> Comparison:
    run_time = published()["table4_convergence"]
    checks = _derived(
        "table6_metric_per_minute",
        lambda method, task, scale: _metric(method, task, scale) * 60 / run_time[scale][method][task]["seconds"],
    )
    how = "Table 1's metric divided by Table 4's run time in minutes."
    return Comparison("paper-table-6", "Table 6, metric per minute", how, checks)


def _speedups() -> Comparison:
    tables = published()
    checks = []
    for scale, tasks in tables["section_3_2_full_tuning_speedup"].items():
        for task, printed in tasks.items():
            seconds = {m: tables["table4_convergence"][scale][m][task]["seconds"] for m in ("full", *PEFT)}
            mean = Decimal(sum(seconds[method] for method in PEFT)) / len(PEFT)
            checks.append(Check(f"speed-up ({scale})", task, _decimal(printed), 1 - seconds["full"] / mean))
    how = "1 less full tuning's seconds over the mean seconds of the four PEFT methods, from Table 4."
    return Comparison("paper-speed-ups", "Section 3.2, speed-ups of full tuning", how, tuple(checks))


def _table_2() -> Comparison:
    tables = published()
    checks = [
        Check(f"{method_label(method)} (all layers)", task, *sorted_by_digits(printed, single))
        for method, ablations in tables["table2_ablation_metric_medium"].items()
        for task, printed in ablations["all layers"].items()
        for single in [tables["table1_metric"]["medium"][method][task]]
    ]
    how = "The same runs stand in both tables, and are printed with different numbers of digits in one place."
    return Comparison("paper-table-2", "Table 2, rows of all layers, against Table 1", how, tuple(checks))


def sorted_by_digits(one: float, other: float) -> tuple[Decimal, Decimal]:
    """Two published forms of one number, the one with fewer digits first."""
    first, second = sorted((_decimal(one), _decimal(other)), key=lambda d: -int(d.as_tuple().exponent))
    return first, second
