"""Fingerprints of model files by sampled content: for an 11 GB model a few megabytes are read.

Files of up to 32 MiB are hashed whole: settings, vocabularies, adapters, small models. For a larger file its size is
hashed and, for safetensors, the header (names, dtypes, shapes and offsets of all tensors), every tensor of up to
64 KiB, and four evenly spaced samples of 1 KiB of each larger tensor; for other formats the first 16 MiB and a thousand
samples.

Training or merging changes nearly every number of a matrix, so the samples detect it. They miss a change that lies
wholly between them: a few rows of an embedding edited by hand, or a bit flipped on disk.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from jpeft.errors import RunFailed, UserError

# All in bytes, except numbers of samples.
_LARGEST_HASHED_WHOLE = 32 * 2**20
_SMALL_TENSOR = 64 * 2**10
_SAMPLE, _SAMPLES_PER_TENSOR = 2**10, 4
_BEGINNING, _SAMPLES_PER_FILE = 16 * 2**20, 1000  # a GGUF file begins with its settings and its vocabulary
_MOST_HEADER = 100 * 2**20

_content_hashes: dict[Hashable, str] = {}  # a cache: every cell of a grid asks for the same files


def fingerprint(files: Sequence[Path]) -> str:
    """Returns the hex SHA-256 of the files' names (without directories), sizes and sampled contents.

    Cached within the process for files whose status is unchanged. Raises `OSError` if a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        # A copy can keep the size and mtime of the file that it replaces, but not its inode and ctime.
        key = (str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in _content_hashes:
            _content_hashes[key] = _content_hash(file, status.st_size)
        entry = f"{len(file.name)} {file.name} {status.st_size} {_content_hashes[key]} "
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()


def fingerprints_of(functions: Mapping[str, Callable[[], str | None]]) -> dict[str, str]:
    """Calls functions that compute fingerprints, and returns those that are not None, under the same names.

    A function that fails is left out, too: its files are missing, damaged or have an impossible path (a `~` of an
    unknown user raises `RuntimeError`, a NUL `ValueError`). Fingerprints are taken before anything is loaded; the code
    that loads such a file raises the error with its explanation.
    """
    found = {}
    for name, compute in functions.items():
        with contextlib.suppress(UserError, RunFailed, OSError, RuntimeError, ValueError):
            if (value := compute()) is not None:
                found[name] = value
    return found


def _content_hash(path: Path, size: int) -> str:
    with path.open("rb") as file:
        if size <= _LARGEST_HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start, length in _samples(file, size, is_safetensors=path.suffix == ".safetensors"):
            file.seek(start)
            digest.update(file.read(length))
        return digest.hexdigest()


def _samples(file: BinaryIO, size: int, *, is_safetensors: bool) -> Iterator[tuple[int, int]]:
    """Yields `(offset, length)` in bytes of each part of a large file to hash."""
    tensors = _tensor_ranges(file) if is_safetensors else None
    if tensors is None:
        yield 0, _BEGINNING
        yield from _evenly_spaced(_BEGINNING, size, _SAMPLES_PER_FILE)
        return
    begin = min((start for start, _ in tensors), default=size)
    yield 0, begin
    for start, end in tensors:
        if end - start <= _SMALL_TENSOR:
            yield start, end - start
        else:
            yield from _evenly_spaced(start, end, _SAMPLES_PER_TENSOR)


def _evenly_spaced(start: int, end: int, samples: int) -> Iterator[tuple[int, int]]:
    """Yields `(offset, length)` of `samples` samples between two offsets, from the very beginning to the very end."""
    last = max(start, end - _SAMPLE)
    for i in range(samples):
        yield start + (last - start) * i // (samples - 1), _SAMPLE


def _tensor_ranges(file: BinaryIO) -> list[tuple[int, int]] | None:
    """Returns the byte ranges of a safetensors file's tensors, in order; None if its header is damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER:
        return None
    try:
        header = json.loads(file.read(length))
        offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return sorted((8 + length + int(start), 8 + length + int(end)) for start, end in offsets)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
