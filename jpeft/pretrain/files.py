"""Rows of a corpus file, one at a time: JSON Lines (plain, .gz, .xz, .zst) or Parquet."""

import gzip
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jpeft.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet")


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of `columns`, row by row, without the whole file in memory.

    Raises:
      UserError: the file is absent, damaged, of another kind, or a row lacks one of the columns as text.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{path} has an unknown ending; a corpus file ends in {', '.join(ENDINGS)}.")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    try:
        for number, row in enumerate(rows, start=1):
            values = tuple(value for column in columns if isinstance(value := row.get(column), str))
            if len(values) < len(columns):
                raise UserError(
                    f"{path}, row {number}: expected text under {' and '.join(columns)}; there are: "
                    f"{', '.join(row) or 'no keys'}."
                )
            yield values
    except (pa.ArrowException, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} can not be read ({str(error).partition(chr(10))[0]}).") from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is {str(row)[:40]!r}, not an object")
                yield row


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        stream: Any = pa.input_stream(str(path), compression="zstd")  # has no lines of its own
        return io.BufferedReader(stream)
    return path.open("rb")
