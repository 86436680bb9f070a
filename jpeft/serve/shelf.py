"""The adapters that may be served: directories below the one that the operator named, by their plain names."""

import logging
import re
from pathlib import Path

from jpeft.adapters.files import layout_of
from jpeft.adapters.locate import locate
from jpeft.errors import RunFailed, UserError

# Of one directory alone: no separators, no leading dot. What stands here has to mean the same to Python's `re`, to
# pydantic's engine and to whoever reads the OpenAPI document.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+=@,()-]{0,127}$"
NAME_RULE = "a letter or digit, then up to 127 letters, digits, spaces or ._+=@,()-"

_log = logging.getLogger(__name__)


class NotOnShelf(UserError):
    """No adapter of that name may be served."""


class Shelf:
    """A directory of adapters; each is an adapter's directory, or a run's. Or such a directory itself: then it has one.

    Names come from clients: one that is no plain name is answered as one that is not there, and so is what leads out of
    the directory by a link, unless the operator said that links are to be followed.
    """

    def __init__(self, directory: Path, *, follow_links: bool = False):
        """Raises `UserError`: there is no such directory."""
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory; --adapters names one that holds adapters' directories.")
        self._root = directory.resolve()
        self._follow_links = follow_links
        own_name = self._root.name if _is_plain(self._root.name) else "adapter"
        self._only = own_name if _is_adapter_itself(self._root) else None

    def names(self) -> list[str]:
        """Names of the adapters that are there now."""
        return self.survey()[0]

    def not_served(self) -> dict[str, str]:
        """Directories and links that are there now and can be no adapter, each with the reason in one line."""
        return self.survey()[1]

    def survey(self) -> tuple[list[str], dict[str, str]]:
        """`names` and `not_served` by one look at every directory."""
        found = self._look_at_all()
        names = sorted(name for name, here in found.items() if isinstance(here, Path))
        return names, {name: here for name, here in sorted(found.items()) if isinstance(here, str)}

    def find(self, name: str) -> Path:
        """The directory with the adapter's files. Raises `NotOnShelf`."""
        found = self._look_at(name) if _is_plain(name) else None
        if not isinstance(found, Path):
            why = "" if found is None else f" ({found.rstrip('.')})"
            raise NotOnShelf(f"there is no adapter {name!r} to load{why}.")
        return found

    def _look_at_all(self) -> dict[str, Path | str]:
        found: dict[str, Path | str] = {}
        try:
            names = [path.name for path in self._root.iterdir()] if self._only is None else [self._only]
        except OSError:  # taken away since
            return found
        for name in names:
            here = self._look_at(name)
            if here is not None:
                shown = name.encode(errors="replace").decode()  # a name need not be text
                found[shown] = here if _is_plain(name) else f"its name is not plain: {NAME_RULE}; rename it."
        return found

    def _look_at(self, name: str) -> Path | str | None:
        """The adapter's directory, why it is none, or None for what nobody takes for one: files, hidden names."""
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
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, names with NUL
            return f"it cannot be read ({error})."
        except Exception as error:  # one damaged adapter must not hide the others
            _log.exception("%s cannot be looked at", path)
            return f"it cannot be read ({type(error).__name__})."
        if layout_of(directory) is None:
            return "it holds no adapter."
        if not self._follow_links and not all(file.is_relative_to(self._root) for file in files):
            return "it leads out of the directory by a link; copy it here, or start with --follow-links."
        return directory


def _is_adapter_itself(directory: Path) -> bool:
    """Whether a directory is a run's or an adapter's, not one that holds several."""
    if layout_of(directory) is not None:
        return True
    is_run = (directory / "config.json").is_file() and not (directory / "model.safetensors").is_file()
    return is_run and (directory / "adapter").is_dir()


def _is_plain(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None and not name.endswith("\n")
