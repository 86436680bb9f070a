"""Finding the adapter at a path that a user gives, which may be a run's directory or an adapter's own."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jpeft.adapters.files import CONFIGS, PEFTS, adapters_below, layout_of, stored_base_name
from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object


@dataclasses.dataclass(frozen=True)
class Located:
    """An adapter's directory and its origin.

    Attributes:
      directory: the directory with the adapter's files.
      base_name: name of the model that it was trained on; None if its config has none.
      result: content of the run's `result.json`; None if the adapter is not in a run's directory with one.
    """

    directory: Path
    base_name: str | None
    result: dict[str, Any] | None


def locate(path: Path) -> Located:
    """Finds the adapter, in either layout, of a run's directory or of an adapter directory.

    Raises:
      UserError: there is none, the run is not finished, or it is a whole model, the result of full tuning.
      RunFailed: a file is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path} is {'a file' if path.exists() else 'not there'}; name a run or an adapter directory.")
    directory = adapter_directory(path)
    if whole_model(path) is not None:
        raise UserError(
            f"{directory} is already a whole model that transformers opens, the result of full tuning; use it as it is."
        )
    if layout_of(directory) is None:
        is_unfinished_run = (path / "config.json").is_file() and (path / "checkpoint").is_dir()
        why = (
            "a run that has not finished; the adapter comes at its end"
            if is_unfinished_run
            else f"looked for {' or '.join(CONFIGS)}"
        )
        instead = adapters_below(path)
        raise UserError(f"{path} holds no adapter ({why}){f'; {instead}' if instead else ''}.")
    result = _result(directory.parent) if directory.absolute().name == "adapter" else None
    return Located(directory, stored_base_name(directory), result)


def base_of(found: Located, model: str | None, flag: str = "--model") -> str:
    """The name of an adapter's base.

    Args:
      found: the adapter.
      model: the base that the user gave, which takes precedence over the adapter's config.
      flag: the flag of `model`, for messages.

    Raises:
      UserError: neither names a base.
    """
    name = model or found.base_name
    if name is None:
        raise UserError(f"{found.directory} does not name the model that it was trained on; give {flag}.")
    return name


def stored_reading(path: str) -> str:
    """The reading of the adapter at the path `method.from_adapter`: `official` in PEFT's layout, else `paper`.

    A missing or damaged adapter counts as `paper`; loading it reports the error.
    """
    with contextlib.suppress(UserError, RunFailed, OSError, RuntimeError, ValueError):
        if layout_of(adapter_directory(Path(path).expanduser())) == PEFTS:
            return "official"
    return "paper"


def words_for(found: Located, model: str | None, flag: str = "--model") -> dict[str, str]:
    """Keyword arguments for loading the base of `base_of`: its name in messages, and the flag that gives another."""
    what = f"the base that {found.directory} names," if model is None else flag
    return {"what": what, "flag": flag}


def whole_model(path: Path) -> Path | None:
    """The directory of a fully tuned model: `path` or its subdirectory `adapter/`; None if neither holds one."""
    directory = adapter_directory(path)
    return directory if (directory / "model.safetensors").is_file() else None


def adapter_directory(path: Path) -> Path:
    """The directory of a run's adapter, or `path` itself where it is no run's directory."""
    return path if layout_of(path) or not (path / "adapter").is_dir() else path / "adapter"


def _result(run: Path) -> dict[str, Any] | None:
    file = run / "result.json"
    return read_json_object(file, error=RunFailed) if file.is_file() else None
