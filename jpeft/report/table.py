"""The tables of a report and the formatting of their numbers; every output format renders these."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from jpeft.report.groups import Spread
from jpeft.words import size

Style = Literal[
    "text", "metric", "signed", "seconds", "count", "bytes", "ratio", "percent", "number", "published", "exact"
]
MISSING = "missing"


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One entry of a table.

    Attributes:
      value: unformatted, for sorting, CSV and JSON; None if missing, "" for an entry that does not apply.
      sd, count: of a mean over seeds; count is 0 if it is not a mean.
      error: of one seed's metric, the standard error over its test rows.
      published: the paper's number for the same quantity.
      tone: its emphasis: `best` of its column, `good` or `bad` for a check, `weak`.
    """

    value: float | int | str | None
    sd: float | None = None
    count: int = 0
    published: float | int | None = None
    tone: Literal["", "best", "good", "bad", "weak"] = ""
    error: float | None = None

    @classmethod
    def of(cls, spread: Spread | None, published: float | int | None = None, *, scale: float = 1.0) -> "Value":
        """A mean over seeds with its spread, both multiplied by `scale`; `published` is not."""
        if spread is None:
            return cls(None, published=published)
        sd, error = (None if one is None else one * scale for one in (spread.sd, spread.error))
        return cls(spread.mean * scale, sd, spread.count, published, error=error)

    @property
    def difference(self) -> float | int | None:
        """The value minus the paper's; None if either is missing."""
        if self.published is None or not isinstance(self.value, int | float):
            return None
        return round(self.value - self.published, 12)  # removes binary rounding noise


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, the style of its numbers, and `group`, a heading above several columns."""

    name: str
    style: Style = "text"
    group: str = ""

    @property
    def full_name(self) -> str:
        """The heading with its group, for formats with one line of headings: `AG News, seconds`."""
        return f"{self.group}, {self.name}" if self.group else self.name


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values under columns; the first column names the row.

    Attributes:
      name: of its file and its anchor, `table-1`.
      title: one line: the content and the model.
      notes: paragraphs below it, on how numbers were computed and what is not shown.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name

    @property
    def missing(self) -> int:
        """The number of missing entries."""
        return sum(value.value is None for row in self.rows for value in row)


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A formatted entry in three parts: `0.8463`, `± 0.0040 (n=3)`, `paper 0.8588, −0.0125`."""

    main: str
    spread: str = ""
    published: str = ""

    def line(self) -> str:
        """The three parts on one line: `0.8463 ± 0.0040 (n=3) (paper 0.8588, −0.0125)`."""
        return " ".join(part for part in (self.main, self.spread, f"({self.published})" * bool(self.published)) if part)


def show(value: Value, style: Style) -> Shown:
    """Formats an entry, with the number of digits that `style` has."""
    main = MISSING if value.value is None else _text(value.value, style)
    spread = f"± {_number(value.sd, style)}" if value.sd is not None else ""
    if value.count > 1:
        spread = f"{spread} (n={value.count})".strip()
    elif value.error is not None:
        spread = f"se {_number(value.error, style)}"
    published = ""
    if value.published is not None:
        published = f"paper {_number(value.published, style)}"
        if value.difference is not None:
            published += f", {signed(value.difference, style)}"
    return Shown(main, spread, published)


def signed(number: float | int, style: Style) -> str:
    """Formats a number with its sign, `+` or `−` (U+2212, not a hyphen)."""
    text = _number(abs(number), style)
    return ("+" if number >= 0 else "−") + text


def _text(value: float | int | str, style: Style) -> str:
    return value if isinstance(value, str) else _number(value, style)


def _number(number: float | int, style: Style) -> str:
    if style == "signed":
        return signed(number, "metric")
    if number < 0:
        return "−" + _number(-number, style)
    if style == "metric":
        return f"{number:.4f}"
    if style == "percent":
        return f"{100 * number:.3g} %"
    if style == "count":
        return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"
    if style == "bytes":
        return size(number)
    if style == "seconds":
        return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"
    if style == "published":  # with the digits that the paper prints
        return f"{number:.10g}"
    if style == "exact":
        return f"{number:.6g}"
    if style == "ratio":
        return f"{number:.2f}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def mark_best(rows: Iterable[Sequence[Value]], columns: Iterable[int], *, lowest: bool = False) -> list[list[Value]]:
    """Marks the best entry of each of these columns, by value; columns with fewer than two values are left alone."""
    marked = [list(row) for row in rows]
    for column in columns:
        known = [row[column].value for row in marked]
        numbers = [value for value in known if isinstance(value, int | float) and math.isfinite(value)]
        if len(numbers) < 2 or min(numbers) == max(numbers):
            continue
        best = min(numbers) if lowest else max(numbers)
        for row in marked:
            if row[column].value == best:
                row[column] = dataclasses.replace(row[column], tone="best")
    return marked
