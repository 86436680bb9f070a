"""The adapters that may be served: directories below the one that the operator named, by their plain names."""

import re
from pathlib import Path

from jpeft.errors import UserError
from jpeft.peft.hub import layout_of
from jpeft.peft.locate import locate

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # no separators, no leading dot: of one directory alone


class NotOnShelf(UserError):
    """No adapter of that name may be served."""


class Shelf:
    """A directory of adapters; each is an adapter's directory, or a run's.

    Names come from clients. One that is no plain name, or that leads out of the directory by a symbolic link, is
    answered as one that is not there.
    """

    def __init__(self, directory: Path):
        """Raises `UserError`: there is no such directory."""
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory; --adapters names one that holds adapters' directories.")
        self._root = directory.resolve()

    def names(self) -> list[str]:
        """Names of the adapters that are there now."""
        return sorted(path.name for path in self._root.iterdir() if self._adapter_at(path.name) is not None)

    def find(self, name: str) -> Path:
        """The directory with the adapter's files. Raises `NotOnShelf`."""
        directory = self._adapter_at(name)
        if directory is None:
            raise NotOnShelf(f"there is no adapter {name!r} to load.")
        return directory

    def _adapter_at(self, name: str) -> Path | None:
        if not re.fullmatch(NAME_PATTERN, name) or name.endswith("\n"):
            return None
        try:
            directory = locate(self._root / name).directory
            files = [path.resolve() for path in (directory, *directory.iterdir())]
        except (UserError, OSError):
            return None
        inside = all(path.is_relative_to(self._root) for path in files)
        return directory if inside and layout_of(directory) is not None else None
