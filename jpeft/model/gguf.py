"""Reads GGUF files, llama.cpp's format for a model's config, weights and tokenizer in a single, often quantized file.

Files are untrusted. The header is parsed here, with limits and checks against the file's size, before memory is
allocated; the reader of the package `gguf` trusts the header, so that a count of 2^60 would make it loop 2^60 times.
That package, by llama.cpp's authors, is used to dequantize.
"""

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jpeft.errors import RunFailed, UserError
from jpeft.words import one_line

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # default alignment of the tensors' bytes
_MOST_ENTRIES = 65_536  # metadata entries, and tensors; released models have dozens, and a few thousand
_MOST_ITEMS = 2**22  # items of an array; the largest vocabularies have 262,144 pieces and about 500,000 merges
_MOST_HEADER = 512 * 2**20  # bytes of the whole header
_MOST_TEXT = 2**22  # bytes of a string; chat templates have a few thousand
_MOST_KEY = 65_535
_MOST_NAME = 256
_MOST_DIMENSIONS = 4
_TEXT, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

_INSTALL = "install it with: pip install gguf (or jpeft[gguf])"


def is_gguf(model: Path) -> bool:
    """Whether a model's path is a GGUF file rather than a directory."""
    return model.suffix.lower() == ".gguf" and model.is_file()


def gguf_in(directory: Path) -> Path | None:
    """The single GGUF file of a directory without a `config.json`; None if the directory has that or no GGUF file.

    Raises:
      UserError: there are several GGUF files.
    """
    if (directory / "config.json").is_file():
        return None
    files = sorted(path for path in directory.iterdir() if is_gguf(path))
    if len(files) > 1:
        raise UserError(
            f"{directory} holds {len(files)} GGUF files, {files[0].name} and {files[1].name} among them; give the path "
            "of one."
        )
    return files[0] if files else None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The location and type of a tensor in a file.

    Attributes:
      name: llama.cpp's name.
      shape: in NumPy's order, rows first (a file stores dimensions in reverse).
      kind: the value of its `gguf.GGMLQuantizationType`.
      row_bytes: bytes of a row; rows are quantized independently.
      start: the offset of its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    row_bytes: int
    start: int

    @property
    def rows(self) -> int:
        """The number of rows, the vectors along the last dimension."""
        return math.prod(self.shape[:-1])


class _Cursor:
    """Parses a header from start to end, with bounds checks."""

    def __init__(self, path: Path, data: memoryview):
        self._path, self._data, self.at = path, data, 0

    def fail(self, what: str) -> RunFailed:
        return RunFailed(f"{self._path} is damaged or cut short ({what} at byte {self.at:,}); copy it again.")

    def bytes(self, number: int) -> memoryview:
        if number > min(len(self._data), _MOST_HEADER) - self.at:
            raise self.fail(f"{number:,} more bytes are expected")
        self.at += number
        return self._data[self.at - number : self.at]

    def number(self, code: str) -> Any:
        layout = f"<{code}"
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0]

    def count(self, what: str, most: int) -> int:
        number = self.number("Q")
        if number > most:
            raise self.fail(f"{number:,} {what}; expected at most {most:,}")
        return number

    def text(self, what: str, most: int) -> str:
        raw = self.bytes(self.count(f"bytes of {what}", most))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _TEXT:
            return self.text(f"the text of {one_line(key)}", _MOST_TEXT)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.fail(f"{one_line(key)} has the unknown type {kind}")
        item_type, items = self.number("I"), self.count(f"items of {one_line(key)}", _MOST_ITEMS)
        if item_type == _TEXT:
            return [self.text(f"an item of {one_line(key)}", _MOST_TEXT) for _ in range(items)]
        if item_type not in _SCALARS:
            raise self.fail(f"{one_line(key)} holds items of the unknown type {item_type}")
        dtype = np.dtype(f"<{_SCALARS[item_type]}" if item_type != 7 else "?")
        return np.frombuffer(self.bytes(items * dtype.itemsize), dtype).tolist()


class GgufFile:
    """An open GGUF file, whose tensors are read on demand.

    Attributes:
      path: the file's path.
      metadata: its metadata by key.
      tensors: its tensors by llama.cpp's names.
    """

    def __init__(self, path: Path):
        """Open a file and parse its header.

        Raises:
          UserError: it is no GGUF file, or of a kind that is not supported.
          RunFailed: the header is damaged.
        """
        self.path = path
        self._data = _mapped(path)
        cursor = _Cursor(path, memoryview(self._data))
        if len(self._data) < 24 or cursor.bytes(4) != _MAGIC:
            raise UserError(f"{path} is no GGUF file: it does not begin with GGUF; copy it again, or name another.")
        version = cursor.number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            what = "big-endian" if swapped else f"of version {version}"
            raise UserError(f"{path} is a GGUF file, but {what}; versions 2 and 3, little-endian, are read.")
        num_tensors = cursor.count("tensors", _MOST_ENTRIES)
        num_entries = cursor.count("metadata entries", _MOST_ENTRIES)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = cursor.text("a key", _MOST_KEY)
            if key in self.metadata:
                raise cursor.fail(f"{one_line(key)} occurs twice")
            self.metadata[key] = cursor.value(cursor.number("I"), key)
        self.tensors = {tensor.name: tensor for tensor in self._tensors(cursor, num_tensors)}

    def _tensors(self, cursor: _Cursor, number: int) -> list[Tensor]:
        if self.number("split.count", default=1) > 1:
            raise UserError(f"{self.path} is one part of several; join them first: llama-gguf-split --merge.")
        sizes, kind_name = _quantizations()
        found: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
        for _ in range(number):
            name = cursor.text("a tensor's name", _MOST_NAME)
            dimensions = cursor.number("I")
            if name in found or not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise cursor.fail(f"{one_line(name)} occurs twice, or has {dimensions:,} dimensions")
            shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
            kind, offset = cursor.number("I"), cursor.number("Q")
            if kind not in sizes:
                raise UserError(
                    f"{self.path}: {one_line(name)} has the type {kind}, which the installed gguf does not know; "
                    "upgrade it: pip install -U gguf."
                )
            block, block_bytes = sizes[kind]
            if min(shape) < 1 or shape[-1] % block or math.prod(shape) > 2**40:
                raise cursor.fail(f"{one_line(name)} has the shape {shape}, impossible for {kind_name(kind)},")
            found[name] = (shape, kind, shape[-1] // block * block_bytes, offset)
        alignment = self.number("general.alignment", default=_ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
            raise cursor.fail(f"the alignment is {alignment:,}")
        begin = -(-cursor.at // alignment) * alignment
        tensors = [
            Tensor(name, shape, kind, row_bytes, begin + offset)
            for name, (shape, kind, row_bytes, offset) in found.items()
        ]
        end = begin
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            if tensor.start < end or tensor.start % alignment:
                raise cursor.fail(f"{one_line(tensor.name)} begins at {tensor.start:,}, in another or unaligned,")
            end = tensor.start + tensor.rows * tensor.row_bytes
            if end > len(self._data):
                raise RunFailed(
                    f"{self.path} is cut short: {one_line(tensor.name)} ends at byte {end:,} of {len(self._data):,}; "
                    "copy it again."
                )
        return tensors

    # --- metadata ---

    def number(self, key: str, *, default: Any = None, whole: bool = True) -> Any:
        """A number of the metadata.

        Args:
          key: its key.
          default: what to return if there is no such key; None makes the key mandatory.
          whole: whether it has to be an integer.

        Raises:
          UserError: it is missing and has no default, or is no non-negative number of this kind.
        """
        value = self.metadata.get(key)
        if value is None and default is None:
            raise UserError(f"{self.path} lacks {key}; it is not a complete model from llama.cpp's converter.")
        if value is None:
            return default
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not 0 <= value < 2**31:
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected a number of 0 or more.")
        return value

    def text(self, key: str) -> str | None:
        """A string of the metadata; None if it is missing. Raises `UserError` if it is no string."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected a text.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean of the metadata. Raises `UserError` if it is no boolean."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected true or false.")
        return value

    def items(self, key: str, kind: type) -> list[Any] | None:
        """An array of the metadata; None if it is missing. Raises `UserError` if it is no array of `kind`."""
        value = self.metadata.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, kind) for item in value[:1])):
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected an array of {kind.__name__}.")
        return value

    # --- tensors ---

    def read(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Read a tensor as float32, or only some rows of a two-dimensional one.

        Raises:
          UserError: the installed `gguf` cannot dequantize its type.
        """
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, tensor.rows * tensor.row_bytes, tensor.start)
        raw = raw.reshape(tensor.rows, tensor.row_bytes)[rows]
        kind = kind_of(tensor.kind)
        try:
            if kind.name in ("F32", "F16"):
                made = raw.view(np.dtype("<f4" if kind.name == "F32" else "<f2")).astype(np.float32)
            else:
                made = dequantize(raw, kind)
        except (NotImplementedError, KeyError):
            raise UserError(
                f"{self.path}: {one_line(name)} is stored as {kind.name}, which the installed gguf cannot dequantize; "
                "take another quantization of the model, or a newer gguf."
            ) from None
        return made.reshape(-1, *tensor.shape[1:]) if len(tensor.shape) > 1 else made.reshape(tensor.shape)


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _quantizations() -> tuple[dict[int, tuple[int, int]], Callable[[int], str]]:
    """The block size and bytes per block of each type that the package `gguf` knows, and a function to name types."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise UserError(f"GGUF files need the package gguf, which is not installed; {_INSTALL}.") from None
    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}, lambda kind: kind_of(kind).name


def kind_of(number: int) -> Any:
    """The `gguf.GGMLQuantizationType` with this value."""
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(number)


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; the parsed header is cached for as long as the file does not change. Raises as `GgufFile`."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    return _opened(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, size: int, changed: int) -> GgufFile:
    return GgufFile(path)
