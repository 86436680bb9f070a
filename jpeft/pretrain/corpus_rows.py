"""Reads the texts of corpus files, one row at a time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jpeft.errors import UserError
from jpeft.rows.reading import read_rows as rows_of_file
from jpeft.rows.text import FileRow
from jpeft.rows.values import as_text, is_missing


def read_texts(
    path: Path, columns: Sequence[str], *, report: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, ...]]:
    """Yields the texts of `columns`, row by row, without loading the whole file; numbers become text as in prompts.

    Args:
      path: of the file.
      columns: their names.
      report: called with a line about rows that may not be what was meant.

    Raises:
      UserError: as `jpeft.rows.reading.read_rows`; or a row lacks a column, or its value is not text.
    """
    for row in rows_of_file(path, report=report):
        yield tuple(_text(row, column, columns, path) for column in columns)


def _text(row: FileRow, column: str, columns: Sequence[str], path: Path) -> str:
    if column not in row.fields:
        reason = f"there are: {', '.join(row.fields) or 'no keys'}"
    elif is_missing(value := row.fields[column]):
        reason = f"{column!r} holds nothing; fill it in or remove the row"
    else:
        try:
            return as_text(value)
        except ValueError as error:
            reason = f"{column!r} {error}"
    raise UserError(f"{row.where} of {path}: expected text under {' and '.join(columns)}; {reason}.")
