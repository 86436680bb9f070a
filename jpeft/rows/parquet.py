"""Reads Parquet files in batches. Files that would decompress from kilobytes to gigabytes are refused beforehand."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from jpeft.errors import UserError
from jpeft.rows.text import MOST_ROW_BYTES, UNNAMED, FileRow, column_names
from jpeft.rows.values import NoMoment, Unreadable
from jpeft.trouble import first_line
from jpeft.words import clipped

MOST_VALUES = 100_000_000  # of a column in a row group: a limit of bytes is not enough, as missing values take none
_ROWS_AT_ONCE = 256
_ROWS_AT_ONCE_OF_DELTAS = 8  # delta encodings can repeat megabytes of the previous row in a few bytes
_MOST_NESTED_BYTES = 64 * 2**20  # of a batch's lists and objects
# Extension types whose values pyarrow converts; those of any other extension would be its storage, such as ordinals.
_EXTENSIONS = ("arrow.uuid", "arrow.bool8", "arrow.json", "arrow.fixed_shape_tensor")
_SUSPECT_BYTES, _SUSPECT_RATIO = 256 * 2**20, 100  # text compresses to a twentieth at best


def batches(file: IO[bytes], name: str) -> Iterator[dict[str, list[Any]]]:
    """Yields the columns of at most `_ROWS_AT_ONCE` rows at a time.

    Raises:
      UserError: the file is not Parquet, decompresses to an implausible size, has a value of more than
        `MOST_ROW_BYTES`, two columns of the same name, or a column that cannot be read.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(file)
        file.seek(0)
        _open_columns(file, metadata)
        deltas = _check(metadata, name)
        schema = metadata.schema.to_arrow_schema()
        columns = column_names(schema.names, name)
        if columns[:1] == [""]:
            columns[0] = UNNAMED
        if "" in columns:
            raise UserError(f"{name} has a column without a name; give it one.")
        # As dictionaries, so that a thousand rows with the same megabyte of text take one megabyte.
        shared = [field.name for field in schema if _is_text(field.type) and field.name not in deltas]
        opened = pyarrow.parquet.ParquetFile(file, read_dictionary=shared)
        for chunk in opened.iter_batches(batch_size=_ROWS_AT_ONCE_OF_DELTAS if deltas else _ROWS_AT_ONCE):
            yield {
                column: _values_of_column(array, field, f"column {column!r} of {name}")
                for column, field, array in zip(columns, schema, chunk.columns, strict=True)
            }
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(name, error) from None


def count_rows(file: IO[bytes], name: str) -> int:
    """Returns the number of rows in the file's metadata. Raises `UserError` if the file is not Parquet."""
    try:
        rows = pyarrow.parquet.read_metadata(file).num_rows
        file.seek(0)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    return rows


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be read as Parquet ({first_line(error).rstrip('.')}).")


def rows(file: IO[bytes], name: str, size: int) -> Iterator[FileRow]:
    """Yields row by row, each with its share of the file's `size` in bytes. Raises like `batches`."""
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
    """Reads one row of each row group, so that damaged column metadata raises an error.

    Reading only that metadata, pyarrow (26.0) aborts the process for some kinds of damage. Groups of a suspicious size
    are skipped, because `_check` has to inspect them before anything is read.
    """
    opened = pyarrow.parquet.ParquetFile(file)
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        if described.total_byte_size <= _SUSPECT_BYTES and described.num_rows <= MOST_VALUES:
            next(opened.iter_batches(batch_size=1, row_groups=[group]), None)
    file.seek(0)


def _check(metadata: pyarrow.parquet.FileMetaData, name: str) -> set[str]:
    """Refuses columns that decompress to too much according to the metadata. Returns the delta-encoded columns."""
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


def _values_of_column(array: pa.Array, field: pa.Field, where: str) -> list[Any]:
    extension = _extension(field)
    if extension is not None and extension not in _EXTENSIONS and not _says_all(field.type):
        return [Unreadable(f"its type is {clipped(extension, 60)!r}, an unknown extension of Arrow")] * len(array)
    try:
        return _values(array, where)
    except UnicodeDecodeError:  # inside lists or objects
        raise UserError(f"{where} holds bytes that are not UTF-8; write text there.") from None
    except pa.ArrowException as error:  # a type that cannot be converted here; the column may not be used at all
        return [Unreadable(first_line(error).rstrip("."))] * len(array)


def _extension(field: pa.Field) -> str | None:
    """Returns the name of a column's extension type; None if it has a type of Arrow itself."""
    if isinstance(field.type, pa.BaseExtensionType):
        return field.type.extension_name
    name = (field.metadata or {}).get(b"ARROW:extension:name")  # of a type that is not registered with pyarrow
    return None if name is None else name.decode(errors="replace")


def _says_all(type_: pa.DataType) -> bool:
    """Whether values of an extension type can be read as what they are stored as; numbers and bytes may be codes."""
    stored = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    return _is_text(stored) or any(
        is_one(stored) for is_one in (pa.types.is_boolean, pa.types.is_floating, pa.types.is_temporal)
    )


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
        # NaN and infinities are missing values; only for them `value - value` is not 0.
        values = [None if value is None or value - value != 0 else value for value in values]
        if array.type.bit_width < 64:  # read a float32 of 0.1 as 0.1, not as 0.10000000149011612; integers are exact
            short = array.type.to_pandas_dtype()
            values = [v if v is None or (v.is_integer() and abs(v) < 2**53) else float(str(short(v))) for v in values]
    return values


_NO_MOMENT = "<value out of range:"  # how Arrow prints dates and times beyond any calendar
_NANOSECONDS = pa.time64("ns")  # a time of day, which pyarrow (26.0) truncates to Python's microseconds


def _python_values(array: pa.Array) -> list[Any]:
    """Converts values to Python; dates and times that Python cannot represent, such as nanoseconds, become text."""
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
    """Replaces times in nanoseconds by text within the type of lists and objects."""
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
    """Decodes bytes, since some programs store text as binary; values that are not UTF-8, such as images, stay bytes.

    Fixed-size values, as written from NumPy, lose the NULs that pad them.
    """
    filling = "\0" if pa.types.is_fixed_size_binary(array.type) else ""

    def read(value: Any) -> Any:
        try:
            return value.decode().rstrip(filling) if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            return value

    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # a string column may hold invalid UTF-8
        values = array.cast(pa.large_binary()).to_pylist()
    return [read(value) for value in values]


def _check_longest(array: pa.Array, where: str) -> None:
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    lengths = pc.call_function("binary_length", [array])
    longest = pc.call_function("max", [lengths]).as_py() if len(array) else 0
    if (longest or 0) > MOST_ROW_BYTES:
        raise UserError(f"{where} has a value of {longest:,} bytes; a row may have {MOST_ROW_BYTES:,} at most.")
