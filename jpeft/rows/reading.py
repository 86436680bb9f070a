"""Reads files of rows, by their ending, row by row or as columns."""

import contextlib
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jpeft.errors import UserError
from jpeft.rows import parquet
from jpeft.rows.packed import PACKED, open_unpacked
from jpeft.rows.separated import csv_rows
from jpeft.rows.text import FileRow, Readable, beginning, json_line_rows, json_rows, lines, plain_rows
from jpeft.trouble import first_line
from jpeft.words import clipped

Columns = dict[str, list[Any]]

# Formats by ending; a further ending may say that the file is compressed (`jpeft.rows.packed`).
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# Limits of a file that is read into memory: bytes of its values, and rows times columns.
MOST_BYTES = 2**30
MOST_CELLS = 50_000_000


def kind_of(path: Path) -> str | None:
    """Returns the format of a file by its ending: `jsonl`, `json`, `csv`, `tsv` or `parquet`; None if unknown."""
    inner = path.name.lower()
    packed = next((ending for ending in PACKED if inner.endswith(ending)), "")
    kind = KINDS.get(Path(inner.removesuffix(packed)).suffix)
    return None if packed and kind == "parquet" else kind


def endings() -> str:
    """Lists the supported endings, for messages."""
    return f"{', '.join(KINDS)} (all but .parquet also packed as {', '.join(PACKED)})"


def require_lines_ending(path: Path, named: str) -> None:
    """Raises `UserError` if the ending of an output file promises another format than plain JSON lines.

    Args:
      named: of the file in messages.
    """
    if path.suffix.lower() in (".csv", ".tsv", ".parquet", *PACKED):
        raise UserError(
            f"{named} ends in {path.suffix}, and what is written are plain JSON lines; name a file that ends in .jsonl."
        )


def require_file(path: Path, name: str) -> os.stat_result:
    """Returns the status of a file of rows.

    Args:
      name: of the file in messages.

    Raises:
      UserError: the file does not exist, cannot be accessed, or is not a regular file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; name a file of rows.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{clipped(name, 200)} cannot be read ({_reason(error)}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name} is a directory; name a file.")
    # A shell's process substitution and standard input have a writer; any other pipe may block forever.
    if not stat.S_ISREG(status.st_mode) and path.parent != Path("/dev/fd") and path != Path("/dev/stdin"):
        raise UserError(f"{name} is not a regular file; copy its contents into one.")
    return status


def read_rows(
    path: Path, *, kind: str | None = None, name: str | None = None, report: Callable[[str], None] = lambda line: None
) -> Iterator[FileRow]:
    """Yields the rows of a file, which is never read into memory as a whole.

    Args:
      kind: a format of `kind_of`, or `lines`; None is that of the file's ending.
      name: of the file in messages; None for its path.
      report: called with a line about rows that may be misread.

    Raises:
      UserError: the file cannot be read, or a row is malformed or too large; the one-line message names the row.
    """
    name = name or str(path)
    kind = kind or kind_of(path)
    status = require_file(path, name)
    if kind is None:
        raise UserError(f"{clipped(name, 200)} has the ending {path.suffix[:20]!r}; jpeft reads {endings()}.")
    with _explained(name), open_unpacked(path) as file:
        if kind == "parquet":
            yield from parquet.rows(file, name, status.st_size)
        else:
            yield from rows_of(file, kind, name, report=report)


def read_beginning(path: Path, name: str) -> bytes:
    """Returns the first line of a file that is not blank, or b"". Raises `UserError` if the file cannot be read."""
    with _explained(name), open_unpacked(path) as file:
        return (beginning(file) or [b""])[-1]


def rows_of(
    file: Readable, kind: str, name: str, *, report: Callable[[str], None] = lambda line: None
) -> Iterator[FileRow]:
    """Yields the rows of an open text file of the format `lines`, `jsonl`, `json`, `csv` or `tsv`; see `read_rows`."""
    if kind == "json":
        return json_rows(file, name)
    if kind == "lines":
        return plain_rows(lines(file, name))
    if kind == "jsonl":
        return json_line_rows(lines(file, name), name)
    return csv_rows(lines(file, name), name, tabs=kind == "tsv", report=report)


def read_columns(path: Path, *, report: Callable[[str], None] = lambda line: None) -> Columns:
    """Reads a whole file by column; a value that a row lacks is None.

    Args:
      report: called with a line about rows that may be misread.

    Raises:
      UserError: see `read_rows`; or the file exceeds `MOST_BYTES` or `MOST_CELLS`.
    """
    name = str(path)
    if kind_of(path) == "parquet":
        return _parquet_columns(path, name)
    columns: Columns = {}
    size = count = 0
    for row in read_rows(path, report=report):
        for column in row.fields:
            if column not in columns:
                columns[column] = [None] * count
        for column, values in columns.items():
            values.append(row.fields.get(column))
        size += row.size
        count += 1
        _check_whole(name, size, count * len(columns))
    return columns


def _parquet_columns(path: Path, name: str) -> Columns:
    columns: Columns = {}
    size = 0
    require_file(path, name)
    with _explained(name), path.open("rb") as file:
        rows = parquet.count_rows(file, name)
        for batch in parquet.batches(file, name):
            size += sum(len(value) for values in batch.values() for value in values if isinstance(value, str | bytes))
            _check_whole(name, size, rows * len(batch))
            for column, values in batch.items():
                columns.setdefault(column, []).extend(values)
    return columns


def _check_whole(name: str, size: int, cells: int) -> None:
    if size > MOST_BYTES:
        raise UserError(f"{name} holds more than {MOST_BYTES:,} bytes of rows; take fewer of them.")
    if cells > MOST_CELLS:
        raise UserError(f"{name} holds more than {MOST_CELLS:,} values, rows times columns; take fewer of them.")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{name} cannot be read ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or first_line(error)).rstrip(".")
