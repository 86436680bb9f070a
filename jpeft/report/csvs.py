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
    writer.writerow(heads)
    for row in table.rows:
        cells = []
        for value, (sd, count, error, published) in zip(row, extras, strict=True):
            cells += [_plain(value), *[_blank(value.sd)] * sd, *[value.count or ""] * count]
            cells += [_blank(value.error)] * error
            cells += [_blank(value.published), _blank(value.difference)] * published
        writer.writerow(cells)
    return out.getvalue()


def _plain(value: Value) -> str | float | int:
    if isinstance(value.value, str) and value.value[:1] in "=+-@\t":
        return f"'{value.value}" if value.value else ""  # else a spreadsheet would evaluate it as a formula
    return _blank(value.value)


def _blank(value: str | float | int | None) -> str | float | int:
    return "" if value is None else value
