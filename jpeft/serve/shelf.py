"""The adapters that may be served: the directories below the operator's directory, by their plain names."""

import logging
import re
from pathlib import Path

from jpeft.adapters.files import layout_of
from jpeft.adapters.locate import locate
from jpeft.errors import RunFailed, UserError

# The name of one directory: no separators, no leading dot. The pattern has to mean the same in Python's `re`, in
# pydantic's engine and in JSON Schema.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+=@,()-]{0,127}$"
NAME_RULE = "a letter or digit, then up to 127 letters, digits, spaces or ._+=@,()-"

_log = logging.getLogger(__name__)


class NotOnShelf(UserError):
    """Raised for a name of which no adapter may be served."""


class Shelf:
    """A directory of adapters' or runs' directories; or one such directory itself.

    Names come from clients. Anything but a plain name is treated as missing, and so is a link that leads out of the
    directory, unless the operator allows links.
    """

    def __init__(self, directory: Path, *, follow_links: bool = False):
        """Raises `UserError` if there is no such directory."""
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory; --adapters names one that holds adapters' directories.")
        self._root = directory.resolve()
        self._follow_links = follow_links
        own_name = self._root.name if _is_plain(self._root.name) else "adapter"
        self._only = own_name if _is_adapter_itself(self._root) else None

    def survey(self) -> tuple[list[str], dict[str, str]]:
        """The names of the adapters in the directory now, and what cannot be served, with the reason in one line."""
        found = self._look_at_all()
        names = sorted(name for name, here in found.items() if isinstance(here, Path))
        return names, {name: here for name, here in sorted(found.items()) if isinstance(here, str)}

    def find(self, name: str) -> Path:
        """The directory of an adapter. Raises `NotOnShelf` if no adapter of that name may be served."""
        found = self._look_at(name) if _is_plain(name) else None
        if not isinstance(found, Path):
            why = "" if found is None else f" ({found.rstrip('.')})"
            raise NotOnShelf(f"there is no adapter {name!r} to load{why}.")
        return found

    def _look_at_all(self) -> dict[str, Path | str]:
        found: dict[str, Path | str] = {}
        try:
            names = [path.name for path in self._root.iterdir()] if self._only is None else [self._only]
        except OSError:  # removed meanwhile
            return found
        for name in names:
            here = self._look_at(name)
            if here is not None:
                shown = name.encode(errors="replace").decode()  # a file name need not be valid UTF-8
                found[shown] = here if _is_plain(name) else f"its name is not plain: {NAME_RULE}; rename it."
        return found

    def _look_at(self, name: str) -> Path | str | None:
        """The adapter's directory; or why it cannot be served; or None for files and hidden names."""
        if self._only not in (None, name):
            return None
        path = self._root if self._only else self._root / name
        try:
            if name.startswith(".") or not (path.is_dir() or path.is_symlink()):
                return None
            if not path.exists():
                return "it is a link that leads nowhere."
            if path.is_file():
                return None
            directory = locate(path).directory
            run = [] if directory == path else [path, *(path / name for name in ("config.json", "result.json"))]
            files = [each.resolve() for each in (directory, *directory.iterdir(), *run)]
        except (UserError, RunFailed) as error:
            return str(error)
        except (OSError, RuntimeError, ValueError) as error:  # circular links, names with NUL
            return f"it cannot be read ({error})."
        except Exception as error:  # one damaged adapter must not keep the others from being served
            _log.exception("%s cannot be looked at", path)
            return f"it cannot be read ({type(error).__name__})."
        if layout_of(directory) is None:
            return "it holds no adapter."
        if not self._follow_links and not all(file.is_relative_to(self._root) for file in files):
            return "it leads out of the directory by a link; copy it here, or start with --follow-links."
        return directory


def _is_adapter_itself(directory: Path) -> bool:
    """Whether a directory is itself an adapter's or a run's."""
    if layout_of(directory) is not None:
        return True
    is_run = (directory / "config.json").is_file() and not (directory / "model.safetensors").is_file()
    return is_run and (directory / "adapter").is_dir()


def _is_plain(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None and not name.endswith("\n")
