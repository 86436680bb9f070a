"""Where a path that a user names has an adapter: in a run's directory, or in a directory of its own."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jpeft.adapters.files import CONFIGS, PEFTS, layout_of, stored_base_name
from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object


@dataclasses.dataclass(frozen=True)
class Located:
    """An adapter's directory, and what is known of where it comes from.

    Attributes:
      base_name: of the model that it was trained on, None where nothing names it.
      result: the run's `result.json`, None where the adapter comes without one.
    """

    directory: Path
    base_name: str | None
    result: dict[str, Any] | None


def locate(path: Path) -> Located:
    """The adapter of a run's directory, or of a directory that holds one in either layout.

    Raises:
      UserError: there is none, the run has not got so far, or full tuning left a whole model in its place.
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
        begun = (path / "config.json").is_file() and (path / "checkpoint").is_dir()
        why = (
            "a run that has not finished; the adapter comes at its end"
            if begun
            else f"looked for {' or '.join(CONFIGS)}"
        )
        raise UserError(f"{path} holds no adapter ({why}).")
    result = _result(directory.parent) if directory.absolute().name == "adapter" else None
    return Located(directory, stored_base_name(directory), result)


def base_of(found: Located, model: str | None, flag: str = "--model") -> str:
    """The base that `model` names, called `flag` in messages, or else the adapter. Raises `UserError`: neither does."""
    name = model or found.base_name
    if name is None:
        raise UserError(f"{found.directory} does not name the model that it was trained on; give {flag}.")
    return name


def stored_reading(path: str) -> str:
    """The reading of the adapter that `method.from_adapter` names: PEFT's layout holds only what is `official`.

    `paper` where there is no adapter: whoever loads it says so.
    """
    with contextlib.suppress(UserError, RunFailed, OSError, RuntimeError, ValueError):
        if layout_of(adapter_directory(Path(path).expanduser())) == PEFTS:
            return "official"
    return "paper"


def words_for(found: Located, model: str | None, flag: str = "--model") -> dict[str, str]:
    """What error messages call the base that `base_of` found, and what they say of how to name another."""
    what = f"the base that {found.directory} names," if model is None else flag
    return {"what": what, "flag": flag}


def whole_model(path: Path) -> Path | None:
    """The directory of a fully tuned model that lies at `path` or in its `adapter/`; None if there is none."""
    directory = adapter_directory(path)
    return directory if (directory / "model.safetensors").is_file() else None


def adapter_directory(path: Path) -> Path:
    """The directory of a run's adapter, or `path` itself where it is no run's directory."""
    return path if layout_of(path) or not (path / "adapter").is_dir() else path / "adapter"


def _result(run: Path) -> dict[str, Any] | None:
    file = run / "result.json"
    return read_json_object(file, error=RunFailed) if file.is_file() else None
