"""Texts of a corpus file, one row at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jpeft.errors import UserError
from jpeft.rows.reading import read_rows as rows_of_file


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of `columns`, row by row, without the whole file in memory.

    Raises:
      UserError: as `jpeft.rows.reading.read_rows`; or a row lacks one of the columns as text.
    """
    for row in rows_of_file(path):
        values = tuple(value for column in columns if isinstance(value := row.fields.get(column), str))
        if len(values) < len(columns):
            raise UserError(
                f"{row.where} of {path}: expected text under {' and '.join(columns)}; there are: "
                f"{', '.join(row.fields) or 'no keys'}."
            )
        yield values
