"""Files and directories that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jpeft.errors import UserError


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


@contextlib.contextmanager
def write_directory(path: Path) -> Iterator[Path]:
    """As `write_whole` for a directory: what the block puts into the one it is given becomes `path` when it ends well.

    Raises:
      UserError: `path` is there already and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already; name a directory that is empty or still to be made.")
    path = path.absolute()  # `.` has no name to write beside
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    beside.mkdir()
    try:
        yield beside
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
