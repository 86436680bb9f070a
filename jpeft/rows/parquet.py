"""Rows of a Parquet file, in batches: kilobytes may hold gigabytes, which is refused before they are unpacked."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from jpeft.errors import UserError
from jpeft.rows.text import MOST_ROW_BYTES, FileRow, column_names
from jpeft.rows.values import NoMoment, Unreadable
from jpeft.trouble import first_line

MOST_VALUES = 100_000_000  # of a column within a row group; where they are missing or equal they take no bytes at all
_ROWS_AT_ONCE = 256
_ROWS_AT_ONCE_OF_DELTAS = 8  # an encoding in which each row may repeat megabytes of the row before in a few bytes
_MOST_NESTED_BYTES = 64 * 2**20  # of a batch's lists and objects
_SUSPECT_BYTES, _SUSPECT_RATIO = 256 * 2**20, 100  # text packs to a twentieth at best


def batches(file: IO[bytes], name: str) -> Iterator[dict[str, list[Any]]]:
    """Columns of some hundred rows at a time.

    Raises:
      UserError: it is no Parquet, would unpack to what no text does, holds a value of more than `MOST_ROW_BYTES`, has
        two columns of one name, or a column that cannot be read.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(file)
        file.seek(0)
        _open_columns(file, metadata)
        deltas = _check(metadata, name)
        schema = metadata.schema.to_arrow_schema()
        columns = column_names(schema.names, name)
        if "" in columns:
            raise UserError(f"{name} has a column without a name; give it one.")
        # Texts that repeat are then references to one: a thousand rows of the same megabyte are one megabyte.
        shared = [field.name for field in schema if _is_text(field.type) and field.name not in deltas]
        opened = pyarrow.parquet.ParquetFile(file, read_dictionary=shared)
        for chunk in opened.iter_batches(batch_size=_ROWS_AT_ONCE_OF_DELTAS if deltas else _ROWS_AT_ONCE):
            yield {
                column: _values_of_column(array, f"column {column!r} of {name}")
                for column, array in zip(columns, chunk.columns, strict=True)
            }
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise _no_parquet(name, error) from None


def count_rows(file: IO[bytes], name: str) -> int:
    """How many rows a file says that it has. Raises `UserError`: it is no Parquet."""
    try:
        rows = pyarrow.parquet.read_metadata(file).num_rows
        file.seek(0)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(name, error) from None
    return rows


def _no_parquet(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be read as Parquet ({first_line(error).rstrip('.')}).")


def rows(file: IO[bytes], name: str, size: int) -> Iterator[FileRow]:
    """Row by row, each with its share of the file's `size`. Raises as `batches`."""
    count, number = max(1, count_rows(file, name)), 0
    for batch in batches(file, name):
        for values in zip(*batch.values(), strict=True):
            number += 1
            share = size * number // count - size * (number - 1) // count
            yield FileRow(f"row {number}", dict(zip(batch, values, strict=True)), share)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    views = (pa.types.is_string_view, pa.types.is_binary_view)
    return any(test(kind) for test in (*tests, *views, pa.types.is_fixed_size_binary))


def _open_columns(file: IO[bytes], metadata: pyarrow.parquet.FileMetaData) -> None:
    """Reads a row of each row group, so that what is damaged in a column's own description is an error.

    Asked for that description alone, pyarrow (26.0) ends the process over some damages. Where a group may be more than
    text is, nothing is read before it is checked.
    """
    opened = pyarrow.parquet.ParquetFile(file)
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        if described.total_byte_size <= _SUSPECT_BYTES and described.num_rows <= MOST_VALUES:
            next(opened.iter_batches(batch_size=1, row_groups=[group]), None)
    file.seek(0)


def _check(metadata: pyarrow.parquet.FileMetaData, name: str) -> set[str]:
    """Refuses what unpacks to too much, as far as the file says; gives the columns that hold what changes by row."""
    deltas = set()
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for i in range(chunks.num_columns):
            column = chunks.column(i)
            if column.num_values > MOST_VALUES:
                raise UserError(
                    f"column {column.path_in_schema!r} of {name} has {column.num_values:,} values in one row group; "
                    f"expected {MOST_VALUES:,} at most."
                )
            unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
            if unpacked > _SUSPECT_BYTES and unpacked > _SUSPECT_RATIO * packed:
                raise UserError(
                    f"column {column.path_in_schema!r} of {name} unpacks from {packed:,} to {unpacked:,} bytes, which "
                    f"no text does; expected {_SUSPECT_RATIO} times as many at most."
                )
            if any(encoding.startswith("DELTA") for encoding in column.encodings):
                deltas.add(column.path_in_schema)
    return deltas


def _values_of_column(array: pa.Array, where: str) -> list[Any]:
    try:
        return _values(array, where)
    except UnicodeDecodeError:  # within lists or objects
        raise UserError(f"{where} holds bytes that are not UTF-8; write text there.") from None
    except pa.ArrowException as error:  # a type that cannot be converted here; the column may not be used at all
        return [Unreadable(first_line(error).rstrip("."))] * len(array)


def _values(array: pa.Array, where: str) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        return _shared_values(array, where)
    if _is_text(array.type):
        _check_longest(array, where)
        return _as_text(array)
    if pa.types.is_nested(array.type) and array.nbytes > _MOST_NESTED_BYTES:
        raise UserError(f"{where} holds lists or objects of more than {_MOST_NESTED_BYTES:,} bytes; leave it out.")
    values = _python_values(array)
    if pa.types.is_decimal(array.type):  # as digits: as text, a zero of 18 places is "0E-18"
        return [None if value is None else format(value, "f") for value in values]
    if pa.types.is_floating(array.type):
        # Not a number, as pandas writes what is missing; NaN alone differs from itself.
        values = [None if value is None or value - value != 0 else value for value in values]
        if array.type.bit_width < 64:  # 0.1 in 32 bits is 0.1 to whoever wrote it, not 0.10000000149011612
            short = array.type.to_pandas_dtype()
            values = [None if value is None else float(str(short(value))) for value in values]
    return values


_NO_MOMENT = "<value out of range:"  # as Arrow writes days and times of no year
_NANOSECONDS = pa.time64("ns")  # of a day, of which pyarrow (26.0) cuts off what Python's times do not have


def _python_values(array: pa.Array) -> list[Any]:
    """Values as Python has them; moments that it does not have, such as nanoseconds, as text."""
    if array.type == pa.duration("ns"):  # pandas' own, which writes itself otherwise than Python's
        with contextlib.suppress(pa.ArrowInvalid):  # of parts of a microsecond
            return array.cast(pa.duration("us")).to_pylist()
    if array.type == _NANOSECONDS:
        shown, cut = array.cast(pa.string()).to_pylist(), array.to_pylist()
        return [time if text is None or text.endswith("000") else text for text, time in zip(shown, cut, strict=True)]
    if pa.types.is_nested(array.type):
        return array.cast(_with_shown_nanoseconds(array.type)).to_pylist()
    try:
        return array.to_pylist()
    except (ValueError, OverflowError):
        shown = array.cast(pa.string())
        return [_moment(value, text.as_py()) for value, text in zip(array, shown, strict=True)]


def _moment(value: pa.Scalar, shown: str | None) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if shown is None or not shown.startswith(_NO_MOMENT):
            return shown
        return NoMoment(shown.removeprefix(_NO_MOMENT).removesuffix(">").strip())


def _with_shown_nanoseconds(kind: pa.DataType) -> pa.DataType:
    """The type of lists and objects with text in the place of times of nanoseconds."""
    if kind == _NANOSECONDS:
        return pa.string()
    of_field = lambda field: field.with_type(_with_shown_nanoseconds(field.type))
    if pa.types.is_struct(kind):
        return pa.struct([of_field(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(of_field(kind.key_field), of_field(kind.item_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(of_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(of_field(kind.value_field), kind.list_size)
    return pa.list_(of_field(kind.value_field)) if pa.types.is_list(kind) else kind


def _shared_values(array: pa.DictionaryArray, where: str) -> list[Any]:
    used = array.indices.drop_null().unique()
    there = array.dictionary.take(used)
    values: dict[int | None, Any] = dict(zip(used.to_pylist(), _values(there, where), strict=True))
    values[None] = None
    return [values[index] for index in array.indices.to_pylist()]


def _as_text(array: pa.Array) -> list[Any]:
    """Bytes as text, which other programs write so; each as it is where it is not UTF-8, as an image is not.

    Texts of a fixed size, as NumPy has them, lose the NULs that fill them up.
    """
    filling = "\0" if pa.types.is_fixed_size_binary(array.type) else ""

    def read(value: Any) -> Any:
        try:
            return value.decode().rstrip(filling) if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            return value

    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # what is called text need not be any
        values = array.cast(pa.large_binary()).to_pylist()
    return [read(value) for value in values]


def _check_longest(array: pa.Array, where: str) -> None:
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    lengths = pc.call_function("binary_length", [array])
    longest = pc.call_function("max", [lengths]).as_py() if len(array) else 0
    if (longest or 0) > MOST_ROW_BYTES:
        raise UserError(f"{where} has a value of {longest:,} bytes; a row may have {MOST_ROW_BYTES:,} at most.")
