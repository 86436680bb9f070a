"""Texts of a corpus file, one row at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jpeft.errors import UserError
from jpeft.rows.reading import read_rows as rows_of_file
from jpeft.rows.values import is_missing


def read_texts(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of `columns`, row by row, without the whole file in memory.

    Raises:
      UserError: as `jpeft.rows.reading.read_rows`; or a row lacks one of the columns as text.
    """
    for row in rows_of_file(path):
        values = tuple(value for column in columns if isinstance(value := row.fields.get(column), str))
        if len(values) < len(columns):
            column = next(column for column in columns if not isinstance(row.fields.get(column), str))
            if column not in row.fields:
                holds = f"there are: {', '.join(row.fields) or 'no keys'}"
            elif is_missing(row.fields[column]):
                holds = f"{column!r} holds nothing; fill it in or remove the row"
            else:
                holds = f"{column!r} holds {ascii(row.fields[column])[:40]}; write text there"
            raise UserError(f"{row.where} of {path}: expected text under {' and '.join(columns)}; {holds}.")
        yield values
