"""GGUF files, llama.cpp's: a model's sizes, weights and tokenizer in one file, often quantised.

A file comes from anywhere. Its header is walked here, bounded and held against the file's size, before room is made for
anything; the package `gguf`, kept by llama.cpp's authors, knows the kinds of quantisation and makes numbers of them.
(Its own reader trusts the header: a count of 2^60 is a loop of as many steps.)
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
_ALIGNMENT = 32  # of the tensors' bytes, where the file does not say another
_MOST_ENTRIES = 65_536  # of metadata, and of tensors; released models have some dozens, and some thousands
_MOST_ITEMS = 2**22  # of one array; the largest vocabularies have 262,144 pieces and some 500,000 merges
_MOST_HEADER = 512 * 2**20  # bytes of the whole header
_MOST_TEXT = 2**22  # bytes of one text; chat templates have some thousands
_MOST_KEY = 65_535
_MOST_NAME = 256
_MOST_DIMENSIONS = 4
_TEXT, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

_INSTALL = "install it with: pip install gguf (or jpeft[gguf])"


def is_gguf(model: Path) -> bool:
    """Whether a model's place is a GGUF file rather than a directory."""
    return model.suffix.lower() == ".gguf" and model.is_file()


def gguf_in(directory: Path) -> Path | None:
    """The GGUF file of a directory that holds one and no `config.json`; None where it is no such directory.

    Raises:
      UserError: there are several.
    """
    if (directory / "config.json").is_file():
        return None
    files = sorted(path for path in directory.iterdir() if is_gguf(path))
    if len(files) > 1:
        raise UserError(
            f"{directory} holds {len(files)} GGUF files, {files[0].name} and {files[1].name} among them; name one."
        )
    return files[0] if files else None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one array's bytes are.

    Attributes:
      shape: rows first, as NumPy has it; a file has the dimensions the other way round.
      kind: number of the type, as `gguf.GGMLQuantizationType` has it.
      row_bytes: of each row, which is quantised by itself.
      start: of its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    row_bytes: int
    start: int

    @property
    def rows(self) -> int:
        """How many rows it has, each of which runs along the last dimension."""
        return math.prod(self.shape[:-1])


class _Walk:
    """Steps through a header; never past its end."""

    def __init__(self, path: Path, data: memoryview):
        self._path, self._data, self.at = path, data, 0

    def fail(self, what: str) -> RunFailed:
        return RunFailed(f"{self._path} is damaged or cut short ({what} at byte {self.at:,}); copy it again.")

    def bytes(self, number: int) -> memoryview:
        if number > min(len(self._data), _MOST_HEADER) - self.at:
            raise self.fail(f"{number:,} bytes are expected")
        self.at += number
        return self._data[self.at - number : self.at]

    def number(self, code: str) -> Any:
        layout = f"<{code}"
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0]

    def count(self, what: str, most: int) -> int:
        number = self.number("Q")
        if number > most:
            raise self.fail(f"{number:,} {what}, where {most:,} are the most")
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
            raise self.fail(f"{one_line(key)} is of the unknown type {kind}")
        of, items = self.number("I"), self.count(f"items of {one_line(key)}", _MOST_ITEMS)
        if of == _TEXT:
            return [self.text(f"an item of {one_line(key)}", _MOST_TEXT) for _ in range(items)]
        if of not in _SCALARS:
            raise self.fail(f"{one_line(key)} holds items of the type {of}")
        dtype = np.dtype(f"<{_SCALARS[of]}" if of != 7 else "?")
        return np.frombuffer(self.bytes(items * dtype.itemsize), dtype).tolist()


class GgufFile:
    """One GGUF file: what it says of itself, and its arrays, of which none is read before it is asked for.

    Attributes:
      path: of the file.
      metadata: its entries by name.
      tensors: its arrays by llama.cpp's names.
    """

    def __init__(self, path: Path):
        """Raises `RunFailed`: it is damaged. `UserError`: it is none, or of a kind that this version does not read."""
        self.path = path
        self._data = _mapped(path)
        walk = _Walk(path, memoryview(self._data))
        if len(self._data) < 24 or walk.bytes(4) != _MAGIC:
            raise UserError(f"{path} is no GGUF file: it does not begin as one; copy it again, or name another.")
        version = walk.number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            what = "of a big-endian machine" if swapped else f"of version {version}"
            raise UserError(f"{path} is a GGUF {what}; versions 2 and 3, little-endian, are read.")
        num_tensors, num_entries = walk.count("arrays", _MOST_ENTRIES), walk.count("entries", _MOST_ENTRIES)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = walk.text("a key", _MOST_KEY)
            if key in self.metadata:
                raise walk.fail(f"{one_line(key)} is there twice")
            self.metadata[key] = walk.value(walk.number("I"), key)
        self.tensors = {tensor.name: tensor for tensor in self._tensors(walk, num_tensors)}

    def _tensors(self, walk: _Walk, number: int) -> list[Tensor]:
        if self.number("split.count", default=1) > 1:
            raise UserError(f"{self.path} is one part of several; join them first: llama-gguf-split --merge.")
        sizes, kind_name = _quantisations()
        found: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
        for _ in range(number):
            name = walk.text("an array's name", _MOST_NAME)
            dimensions = walk.number("I")
            if name in found or not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise walk.fail(f"{one_line(name)} is there twice, or has {dimensions:,} dimensions")
            shape = tuple(walk.number("Q") for _ in range(dimensions))[::-1]
            kind, offset = walk.number("I"), walk.number("Q")
            if kind not in sizes:
                raise UserError(
                    f"{self.path}: {one_line(name)} is of the kind {kind}, which the installed gguf does not know."
                )
            block, block_bytes = sizes[kind]
            if min(shape) < 1 or shape[-1] % block or math.prod(shape) > 2**40:
                raise walk.fail(f"{one_line(name)} has the shape {shape}, of {kind_name(kind)}")
            found[name] = (shape, kind, shape[-1] // block * block_bytes, offset)
        alignment = self.number("general.alignment", default=_ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
            raise walk.fail(f"the alignment is {alignment:,}")
        begin = -(-walk.at // alignment) * alignment
        tensors = [
            Tensor(name, shape, kind, row_bytes, begin + offset)
            for name, (shape, kind, row_bytes, offset) in found.items()
        ]
        end = begin
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            if tensor.start < end or tensor.start % alignment:
                raise walk.fail(f"{one_line(tensor.name)} begins at {tensor.start:,}, inside of another or unaligned,")
            end = tensor.start + tensor.rows * tensor.row_bytes
            if end > len(self._data):
                raise RunFailed(
                    f"{self.path} is cut short: {one_line(tensor.name)} ends at byte {end:,} of {len(self._data):,}; "
                    "copy it again."
                )
        return tensors

    # --- what it says ---

    def number(self, key: str, *, default: Any = None, whole: bool = True) -> Any:
        """A number of the metadata. Raises `UserError`: it is absent without a default, or no such number."""
        value = self.metadata.get(key)
        if value is None and default is None:
            raise UserError(f"{self.path} lacks {key}; it is no whole model, or not made by llama.cpp's converter.")
        if value is None:
            return default
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not 0 <= value < 2**31:
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected a number of 0 or more.")
        return value

    def text(self, key: str) -> str | None:
        """A text of the metadata; None where it is absent. Raises `UserError`: it is no text."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected a text.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no of the metadata. Raises `UserError`: it is neither."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected true or false.")
        return value

    def items(self, key: str, kind: type) -> list[Any] | None:
        """An array of the metadata; None where it is absent. Raises `UserError`: it is none, or of another kind."""
        value = self.metadata.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, kind) for item in value[:1])):
            raise UserError(f"{self.path}: {key} is {repr(value)[:40]}; expected an array of {kind.__name__}.")
        return value

    # --- its arrays ---

    def read(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Some rows of an array of two dimensions, or all of any, in float32.

        Raises:
          UserError: the installed `gguf` cannot make numbers of this quantisation.
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
                f"{self.path}: {one_line(name)} is stored as {kind.name}, of which the installed gguf makes no "
                "numbers; take another quantisation of the model, or a newer gguf."
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


def _quantisations() -> tuple[dict[int, tuple[int, int]], Callable[[int], str]]:
    """Numbers of a block and its bytes of each kind that the package `gguf` knows, and the names of kinds."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise UserError(f"GGUF files are read by the package gguf, which is not here; {_INSTALL}.") from None
    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}, lambda kind: kind_of(kind).name


def kind_of(number: int) -> Any:
    """The kind of quantisation of that number, a `gguf.GGMLQuantizationType`."""
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(number)


def open_gguf(path: Path) -> GgufFile:
    """The GGUF file at a path; walked through once, however often it is opened. Raises as `GgufFile`."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    return _opened(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, size: int, changed: int) -> GgufFile:
    return GgufFile(path)
