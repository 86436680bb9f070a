"""Opens a file of rows by its ending, and reads it row by row or as columns."""

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

# What an ending says of a file; it may be packed besides (`jpeft.rows.packed`).
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# Where rows are kept in memory: bytes of their values, and rows times columns.
MOST_BYTES = 2**30
MOST_CELLS = 50_000_000


def kind_of(path: Path) -> str | None:
    """`jsonl`, `json`, `csv`, `tsv` or `parquet`, by the ending; None for another."""
    inner = path.name.lower()
    packed = next((ending for ending in PACKED if inner.endswith(ending)), "")
    kind = KINDS.get(Path(inner.removesuffix(packed)).suffix)
    return None if packed and kind == "parquet" else kind


def endings() -> str:
    """The endings that are read, for messages."""
    return f"{', '.join(KINDS)} (all but .parquet also packed as {', '.join(PACKED)})"


def require_file(path: Path, name: str) -> os.stat_result:
    """Raises `UserError`, with the system's reason, if a file of rows cannot be read.

    Args:
      name: what it is called in messages.

    Raises:
      UserError: there is none, it is a directory or anything else than a file, or it cannot be reached.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; name a file of rows.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{clipped(name, 200)} cannot be read ({_reason(error)}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name} is a directory; name a file.")
    # What a shell puts in a file's place is open already; another pipe might keep its reader waiting forever.
    if not stat.S_ISREG(status.st_mode) and path.parent != Path("/dev/fd") and path != Path("/dev/stdin"):
        raise UserError(f"{name} is no regular file; copy what it holds into one.")
    return status


def read_rows(
    path: Path, *, kind: str | None = None, name: str | None = None, report: Callable[[str], None] = lambda line: None
) -> Iterator[FileRow]:
    """The rows of a file, one after the other, never all at once.

    Args:
      kind: as `kind_of`, or `lines`; None is what the ending says.
      name: what the file is called in messages; None for its path.
      report: hears of rows that may not be what was meant.

    Raises:
      UserError: it cannot be read, or a row is malformed or too large; the message says which row, in one line.
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
    """The first line of a file that is not blank; empty if there is none. Raises `UserError`: it cannot be read."""
    with _explained(name), open_unpacked(path) as file:
        return (beginning(file) or [b""])[-1]


def rows_of(
    file: Readable, kind: str, name: str, *, report: Callable[[str], None] = lambda line: None
) -> Iterator[FileRow]:
    """The rows of an open file that is text: `lines`, `jsonl`, `json`, `csv` or `tsv`. As `read_rows`."""
    if kind == "json":
        return json_rows(file, name)
    if kind == "lines":
        return plain_rows(lines(file, name))
    if kind == "jsonl":
        return json_line_rows(lines(file, name), name)
    return csv_rows(lines(file, name), name, tabs=kind == "tsv", report=report)


def read_columns(path: Path, *, report: Callable[[str], None] = lambda line: None) -> Columns:
    """A whole file by column; a value that a row does not have is None.

    Args:
      report: hears of rows that may not be what was meant.

    Raises:
      UserError: as `read_rows`; or it holds more than `MOST_BYTES`, or `MOST_CELLS` values.
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
