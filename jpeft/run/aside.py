"""The run that another one replaces: kept whole in its directory until the new one has its result.

`WORKDIR/replaced/1` holds it meanwhile, each of its files as it was (a rename changes none). It is put back when the
new run ends before it has a checkpoint, by an error or by a kill: whoever claims the directory next does it then.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

NAME = "replaced"
_HALF = ".half"  # at the end of a name: some of the run's files are still, or again, in their place


class Aside:
    """Moves a run's files out of the way and back.

    Args:
      directory: the run's.
      entries: names of what belongs to a run; anything else in its directory is a user's own and stays.
    """

    def __init__(self, directory: Path, entries: Collection[str]):
        self._directory, self._entries = directory, entries
        self._root = directory / NAME

    def holds_a_run(self) -> bool:
        """Whether there is a run to put back."""
        return bool(self._kept())

    def take(self) -> None:
        """Moves the files of the run that is there to `replaced/<number>`, by renames, whole or not at all."""
        number = 1 + max((int(place.name) for place in self._kept()), default=0)
        half = self._root / f"{number}{_HALF}"
        half.mkdir(parents=True)
        for path in self._there():
            path.rename(half / path.name)
        half.rename(self._root / str(number))

    def put_back(self) -> None:
        """Removes what is there of a run, and puts the one that was moved aside last in its place."""
        place = self._kept()[-1]
        for path in self._there():
            _remove(path)
        half = place.with_name(f"{place.name}{_HALF}")  # from here on what lies in the directory is the run's own
        place.rename(half)
        self._empty(half)

    def mend(self) -> None:
        """Ends a `take` or `put_back` that was killed midway: the run is in its place again."""
        for half in self._root.glob(f"*{_HALF}"):
            self._empty(half)

    def discard(self) -> None:
        """Deletes every copy that was set aside."""
        if self._root.exists():
            shutil.rmtree(self._root)

    def _empty(self, half: Path) -> None:
        for path in list(half.iterdir()):
            _remove(self._directory / path.name)
            path.rename(self._directory / path.name)
        half.rmdir()
        if not any(self._root.iterdir()):
            self._root.rmdir()

    def _kept(self) -> list[Path]:
        """The copies set aside that are complete, the newest last."""
        return sorted((path for path in self._root.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))

    def _there(self) -> list[Path]:
        return [path for name in self._entries if (path := self._directory / name).exists() or path.is_symlink()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
