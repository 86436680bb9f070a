"""By what files are known again, at a cost that hardly grows with them: of 11 GB a few megabytes are read.

A file of up to 32 MiB is read whole: settings, vocabularies, adapters, small models. Of a larger one its size counts
and, of safetensors, the header (names, dtypes, shapes and places of all tensors), every tensor of up to 64 KiB, and
four pieces of a KiB of each other one, evenly spaced; of other formats the first 16 MiB and a thousand pieces. What
training or merging does to a matrix changes nearly every number of it, and is seen. What is missed is a change of a
large file between those pieces alone: a few rows of an embedding set by hand, or a bit that a disk has lost.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from jpeft.errors import RunFailed, UserError

_WHOLE = 32 * 2**20  # bytes of a file
_SMALL_TENSOR = 64 * 2**10
_PIECE, _PIECES_OF_TENSOR = 2**10, 4
_BEGINNING, _PIECES_OF_FILE = 16 * 2**20, 1000  # a GGUF file begins with its settings and its vocabulary
_MOST_HEADER = 100 * 2**20

_known: dict[Hashable, str] = {}  # a grid asks for the same files once a cell


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256, in hex, of files' names (without their directories), sizes and contents, these as this module says.

    Files that look unchanged are read once a process. Raises `OSError`: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        # A copy may have the size and the time of writing of what it replaces, not its number and time of change.
        key = (str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in _known:
            _known[key] = _of_content(file, status.st_size)
        digest.update(f"{len(file.name)} {file.name} {status.st_size} {_known[key]} ".encode(errors="surrogateescape"))
    return digest.hexdigest()


def fingerprints_of(asked: Mapping[str, Callable[[], str | None]]) -> dict[str, str]:
    """The fingerprints that these functions take, by the same names; a name whose function takes none is left out.

    So is one whose files are not there, are damaged or have no name that a file can have (a `~` of nobody's: a
    `RuntimeError`; a NUL: a `ValueError`). It is no error yet: fingerprints are asked for before anything is loaded,
    and whoever loads such a file says what is wrong with it and what to do.
    """
    found = {}
    for name, fingerprint_now in asked.items():
        with contextlib.suppress(UserError, RunFailed, OSError, RuntimeError, ValueError):
            if (value := fingerprint_now()) is not None:
                found[name] = value
    return found


def _of_content(path: Path, size: int) -> str:
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start, length in _pieces(file, size, is_safetensors=path.suffix == ".safetensors"):
            file.seek(start)
            digest.update(file.read(length))
        return digest.hexdigest()


def _pieces(file: BinaryIO, size: int, *, is_safetensors: bool) -> Iterator[tuple[int, int]]:
    """Where to read, and how many bytes."""
    tensors = _tensors(file) if is_safetensors else None
    if tensors is None:
        yield 0, _BEGINNING
        yield from _spaced(_BEGINNING, size, _PIECES_OF_FILE)
        return
    begin = min((start for start, _ in tensors), default=size)
    yield 0, begin
    for start, end in tensors:
        if end - start <= _SMALL_TENSOR:
            yield start, end - start
        else:
            yield from _spaced(start, end, _PIECES_OF_TENSOR)


def _spaced(start: int, end: int, pieces: int) -> Iterator[tuple[int, int]]:
    """So many pieces between two places, the first at the beginning and the last at the end."""
    last = max(start, end - _PIECE)
    for i in range(pieces):
        yield start + (last - start) * i // (pieces - 1), _PIECE


def _tensors(file: BinaryIO) -> list[tuple[int, int]] | None:
    """Where the tensors of a safetensors file begin and end, in order; None of one that is damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER:
        return None
    try:
        header = json.loads(file.read(length))
        offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return sorted((8 + length + int(start), 8 + length + int(end)) for start, end in offsets)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
