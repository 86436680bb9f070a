"""Opens files that are packed with gzip, bzip2, xz or Zstandard, however many compressed streams they are made of."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

PACKED = (".gz", ".bz2", ".xz", ".zst")
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}
_CHUNK = 2**16


def open_unpacked(path: Path) -> Any:
    """A file's bytes as they were before packing, by its ending, as a buffered binary file. Raises `OSError`."""
    packed = path.suffix.lower()
    if packed == ".zst":
        stream: Any = pa.input_stream(str(path), compression="zstd")  # has no lines of its own
        return io.BufferedReader(stream)
    if packed in _DECOMPRESSORS:
        return io.BufferedReader(_Streams(path.open("rb"), _DECOMPRESSORS[packed]), _CHUNK)
    return (gzip.open if packed == ".gz" else open)(path, "rb")


class _Streams(io.RawIOBase):
    """All compressed streams of a file, one after the other: Python's own readers end before one that is damaged."""

    def __init__(self, file: BinaryIO, make: Callable[[], Any]):
        self._file, self._make, self._decompressor, self._number = file, make, make(), 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            if self._decompressor.eof:
                packed = self._next_stream()
                if not packed:
                    return 0
                self._decompressor = self._make()
                self._number += 1
            elif self._decompressor.needs_input:
                packed = self._file.read(_CHUNK)
                if not packed:
                    raise EOFError(f"its compressed stream {self._number} is cut short")
            else:
                packed = b""
            found = self._decompressed(packed, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)

    def _next_stream(self) -> bytes:
        """What follows the stream that has ended; nothing where the file ends, too."""
        packed = self._decompressor.unused_data.lstrip(b"\0")  # xz may fill streams up with zeros
        while not packed and (chunk := self._file.read(_CHUNK)):
            packed = chunk.lstrip(b"\0")
        return packed

    def _decompressed(self, packed: bytes, most: int) -> bytes:
        try:
            return self._decompressor.decompress(packed, most)
        except (OSError, lzma.LZMAError):
            which = f"its compressed stream {self._number}"
            if self._number == 1:
                raise OSError(f"{which} is damaged") from None
            raise OSError(f"{which} is damaged, or something else follows the last; pack it again") from None

    def close(self) -> None:
        self._file.close()
        super().close()
