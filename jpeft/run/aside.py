"""Moves a run that is being replaced out of the way, and back if its replacement comes to nothing.

`WORKDIR/replaced/1` holds the replaced run until the new one has its result; files are only renamed, never changed. The
old run is restored if the new one ends before its first checkpoint, by an error or by a kill: after a kill, the next
process to claim the directory restores it.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

NAME = "replaced"
_PARTIAL_0_1_0 = ".half"  # the same, as version 0.1.0 calls it
_PARTIAL = ".partial"  # suffix of a copy that is incomplete: some of the run's files are in their original place


class Aside:
    """Moves a run's files to `replaced/` and back.

    Args:
      directory: the run's directory.
      entries: names of the files and directories that belong to a run; others are the user's and stay.
    """

    def __init__(self, directory: Path, entries: Collection[str]):
        self._directory, self._entries = directory, entries
        self._root = directory / NAME

    def holds_a_run(self) -> bool:
        """Whether there is a run to put back."""
        return bool(self._kept())

    def take(self) -> None:
        """Moves the run's files to `replaced/<number>`, all or none."""
        number = 1 + max((int(place.name) for place in self._kept()), default=0)
        partial = self._root / f"{number}{_PARTIAL}"
        partial.mkdir(parents=True)
        for path in self._own_files():
            path.rename(partial / path.name)
        partial.rename(self._root / str(number))

    def put_back(self) -> None:
        """Removes the files of the current run, and moves back those of the run that was moved aside last."""
        place = self._kept()[-1]
        for path in self._own_files():
            _remove(path)
        partial = place.with_name(f"{place.name}{_PARTIAL}")  # from here on the directory holds the old run's files
        place.rename(partial)
        self._move_back(partial)

    def recover(self) -> None:
        """Completes a `take` or `put_back` that was killed midway, by moving the files back."""
        for partial in (*self._root.glob(f"*{_PARTIAL}"), *self._root.glob(f"*{_PARTIAL_0_1_0}")):
            self._move_back(partial)

    def discard(self) -> None:
        """Deletes every run that was moved aside."""
        if self._root.exists():
            shutil.rmtree(self._root)

    def _move_back(self, partial: Path) -> None:
        for path in list(partial.iterdir()):
            _remove(self._directory / path.name)
            path.rename(self._directory / path.name)
        partial.rmdir()
        if not any(self._root.iterdir()):
            self._root.rmdir()

    def _kept(self) -> list[Path]:
        """Complete copies, the newest last."""
        return sorted((path for path in self._root.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))

    def _own_files(self) -> list[Path]:
        return [path for name in self._entries if (path := self._directory / name).exists() or path.is_symlink()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
