"""Configs that ship with the package and are selected by name: `--config lora_agnews_low`, `custom`, `mini:CELL`.

`--config` also takes the path of a config file. The repository's directory `configs/` holds such files, one for each
cell of the paper; each imports `jpeft.configs.benchmark` and names its cell.
"""

import dataclasses
import difflib
import os
from pathlib import Path

from jpeft.errors import UserError

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The config that a value of `--config` selects: a file of the user or one that ships with jpeft.

    Attributes:
      path: the Python file that defines `get_config`.
      argument: the argument of `get_config`; empty to call it without one.
      name: the config's part of a run directory's name.
    """

    path: Path
    argument: str
    name: str


def names() -> list[str]:
    """The config modules that ship with the package, sorted; the names of cells are listed by `cells`."""
    files = (path.relative_to(_HERE).with_suffix("") for path in _HERE.rglob("*.py") if path.name != "__init__.py")
    return sorted(file.as_posix() for file in files)


def find(given: str) -> ConfigFile:
    """Resolve a value of `--config`: `FILE[:ARGUMENT]`, `NAME[:ARGUMENT]` or a cell; an existing file takes precedence.

    Raises:
      UserError: neither a file nor a config has that name.
    """
    name, _, argument = given.partition(":")
    path = Path(os.path.expanduser(name))
    try:
        if path.is_file():
            return _config(path, argument)
    except (OSError, ValueError) as error:  # the name is too long or contains a NUL
        raise UserError(f"--config {given[:80]!r} is no file's name ({error.args[-1]}).") from None
    if name in names():
        return _config(_HERE / f"{name}.py", argument)
    if not argument and _is_cell(name):
        return ConfigFile(_HERE / "benchmark.py", name, name)
    raise UserError(f"--config {given[:200]} does not exist{_hint(path, argument)}")


def _config(path: Path, argument: str) -> ConfigFile:
    return ConfigFile(path, argument, f"{path.stem}_{argument}" if argument else path.stem)


def _is_cell(name: str) -> bool:
    from jpeft.configs.benchmark import parts

    try:
        parts(name)
    except ValueError:
        return False
    return True


def cells() -> list[str]:
    """The names of the 60 cells of the paper's Table 1; the ablations of Table 2 are not listed."""
    from jpeft.data.tasks import BENCHMARK
    from jpeft.peft.methods import OF_THE_PAPER

    return [
        f"{method}_{task}_{scale}"
        for method in OF_THE_PAPER
        for task in BENCHMARK
        for scale in ("low", "medium", "high")
    ]


def _hint(path: Path, argument: str) -> str:
    if path.suffix == ".py" and (path.stem in names() or _is_cell(path.stem)):  # a path that only a checkout has
        named = f"{path.stem}:{argument}" if argument else path.stem
        return f"; without a file, --config {named} is the one that comes with jpeft."
    known = [str(file) for file in path.parent.glob("*.py")] if path.suffix == ".py" else [*names(), *cells()]
    close = difflib.get_close_matches(str(path), known, n=1, cutoff=0.6)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{meant or '.'} Configs that come with jpeft: {', '.join(names())}, and cells such as lora_agnews_low."
