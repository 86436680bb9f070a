"""Opens files compressed with gzip, bzip2, xz or Zstandard, including files of several concatenated streams."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

PACKED = (".gz", ".bz2", ".xz", ".zst")
_CHUNK = 2**16


class _GzipDecompressor:
    """A decompressor of one gzip stream, with the interface of `bz2.BZ2Decompressor`."""

    def __init__(self):
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS + 16)  # + 16: with gzip's header and checksum

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    def decompress(self, packed: bytes, most: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + packed, most)


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": _GzipDecompressor,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}


def open_unpacked(path: Path) -> Any:
    """Opens a file as a buffered binary file, decompressed if its ending says so. Raises `OSError`."""
    packed = path.suffix.lower()
    if packed == ".zst":
        stream: Any = pa.input_stream(str(path), compression="zstd")  # the wrapper adds `readline`
        return io.BufferedReader(stream)
    if packed in _DECOMPRESSORS:
        return io.BufferedReader(_Streams(path.open("rb"), _DECOMPRESSORS[packed]), _CHUNK)
    return path.open("rb")


class _Streams(io.RawIOBase):
    """Reads all compressed streams of a file. Python's own readers end silently before a damaged second stream."""

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
        """Returns the first bytes after the stream that has ended; empty at the end of the file."""
        packed = self._decompressor.unused_data.lstrip(b"\0")  # gzip and xz allow padding with zeros
        while not packed and (chunk := self._file.read(_CHUNK)):
            packed = chunk.lstrip(b"\0")
        return packed

    def _decompressed(self, packed: bytes, most: int) -> bytes:
        try:
            return self._decompressor.decompress(packed, most)
        except (OSError, lzma.LZMAError, zlib.error):
            which = f"its compressed stream {self._number}"
            if self._number == 1:
                raise OSError(f"{which} is damaged, or it is packed otherwise than its ending says") from None
            raise OSError(f"{which} is damaged, or other data follows the last one; pack it again") from None

    def close(self) -> None:
        self._file.close()
        super().close()
