"""Tables as CSV, with unformatted numbers; the spread and the paper's number have columns of their own."""

import csv
import io

from jpeft.report.table import Table, Value


def render(table: Table) -> str:
    """Renders one table. A missing number is empty; units are the table's (seconds, bytes, fractions of 1)."""
    extras = [
        (
            any(row[i].sd is not None for row in table.rows),
            any(row[i].count > 1 for row in table.rows),
            any(row[i].error is not None for row in table.rows),
            any(row[i].published is not None for row in table.rows),
        )
        for i in range(len(table.columns))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = []
    for column, (sd, count, error, published) in zip(table.columns, extras, strict=True):
        name = column.full_name
        heads += [name, *[f"{name}, sd"] * sd, *[f"{name}, seeds"] * count]
        heads += [f"{name}, standard error"] * error
        heads += [f"{name}, paper", f"{name}, difference"] * published
    writer.writerow([_safe(head) for head in heads])  # metrics are called as result files call them
    for row in table.rows:
        cells = []
        for value, (sd, count, error, published) in zip(row, extras, strict=True):
            cells += [_plain(value), *[_blank(value.sd)] * sd, *[value.count or ""] * count]
            cells += [_blank(value.error)] * error
            cells += [_blank(value.published), _blank(value.difference)] * published
        writer.writerow(cells)
    return out.getvalue()


def _plain(value: Value) -> str | float | int:
    return _safe(value.value) if isinstance(value.value, str) else _blank(value.value)


def _safe(text: str) -> str:
    """A text that a spreadsheet does not evaluate as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _blank(value: str | float | int | None) -> str | float | int:
    return "" if value is None else value
