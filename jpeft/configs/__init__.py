"""Configs that come with the package, known by name: `--config lora_agnews_low`, `custom`, `mini:ia3_samsum_low`.

`--config` takes a file of the user's own as well. The directory `configs/` of the repository holds such files, one a
cell of the paper, each a few lines over what stands here.
"""

import dataclasses
import difflib
import os
from pathlib import Path

from jpeft.errors import UserError

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A config file as `--config` names it: a Python file, or one that comes with jpeft.

    Attributes:
      path: of the Python file.
      argument: for its `get_config`; empty where it is called without.
      name: that a run's directory takes from it.
    """

    path: Path
    argument: str
    name: str


def names() -> list[str]:
    """Configs that come with the package, without the cells, each of which is a name of its own."""
    files = (path.relative_to(_HERE).with_suffix("") for path in _HERE.rglob("*.py") if path.name != "__init__.py")
    return sorted(file.as_posix() for file in files)


def find(given: str) -> ConfigFile:
    """The config that `FILE[:ARGUMENT]`, `NAME[:ARGUMENT]` or the name of a cell stands for; a file comes first.

    Raises:
      UserError: there is neither a file nor a config of that name.
    """
    name, _, argument = given.partition(":")
    path = Path(os.path.expanduser(name))
    try:
        if path.is_file():
            return _config(path, argument)
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
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
    """The cells of the paper's Table 1, each a config of its own; ablations are named in them."""
    from jpeft.data.tasks import BENCHMARK
    from jpeft.peft.methods import OF_THE_PAPER

    return [
        f"{method}_{task}_{scale}"
        for method in OF_THE_PAPER
        for task in BENCHMARK
        for scale in ("low", "medium", "high")
    ]


def _hint(path: Path, argument: str) -> str:
    if path.suffix == ".py" and (path.stem in names() or _is_cell(path.stem)):  # the README's, without the checkout
        named = f"{path.stem}:{argument}" if argument else path.stem
        return f"; without a file, --config {named} is the one that comes with jpeft."
    known = [str(file) for file in path.parent.glob("*.py")] if path.suffix == ".py" else [*names(), *cells()]
    close = difflib.get_close_matches(str(path), known, n=1, cutoff=0.6)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{meant or '.'} Configs that come with jpeft: {', '.join(names())}, and cells such as lora_agnews_low."
