"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` when the block ends well, removes it otherwise."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # else a crash of the machine may leave the name without the bytes
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
