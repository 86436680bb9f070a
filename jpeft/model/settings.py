"""Settings that a model recommends for its own tuning, in the file `jpeft.json` of its directory.

    {"format_version": 1,
     "settings": {"train.batch_size": 4, "train.patience": 3},
     "learning_rates": {"lora": {"initial": 0.001, "warmup": 0.01, "annealing": 0.001}}}

They are the defaults of config keys that a user leaves open; a key that neither sets has the method's default, which is
the paper's. Only local directories and models known by a plain name (`mini`, `smollm2`), whose settings come with
jpeft, are considered, not hub ids: a run's config must not depend on what is in the local hub cache.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.files import check_fields, json_kind, read_json_object, write_whole
from jpeft.model.source import INSTALLED, PACKAGED, packaged_models

FILE = "jpeft.json"
_MOST_BYTES = 2**20

# Config keys that a model may recommend a value for.
KEYS: dict[str, type] = {
    "model.dropout_rate": float,
    "data.max_input_length": int,
    "data.max_target_length": int,
    "train.batch_size": int,
    "train.accumulation_steps": int,
    "train.patience": int,
    "train.warmup_fraction": float,
    "train.weight_decay": float,
    "train.clip_grad_norm": float,
    "eval.batch_size": int,
}
_POINTS = {"initial": float, "warmup": float, "annealing": float}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The content of a model's `jpeft.json`.

    Attributes:
      file: the file.
      values: recommended values by config key.
      learning_rates: by method, or method and reading (`lora:official`), and then by the point of the schedule.
    """

    file: Path
    values: Mapping[str, Any]
    learning_rates: Mapping[str, Mapping[str, float]]

    def for_method(self, method: str, reading: str) -> dict[str, Any]:
        """Recommended values by config key for a method; rates of `lora:official` take precedence over `lora`'s."""
        rates = self.learning_rates.get(f"{method}:{reading}", self.learning_rates.get(method, {}))
        return {**self.values, **{f"train.learning_rate.{point}": rate for point, rate in rates.items()}}


def settings_of(model: str) -> ModelSettings | None:
    """Read the settings that a model recommends; None if it has none, or is not local.

    Raises:
      UserError: the file is damaged, or holds an unknown key or a value of the wrong type.
    """
    directory = _directory(model)
    if directory is None or not (directory / FILE).exists():
        return None
    file = directory / FILE
    held = read_json_object(file, most_bytes=_MOST_BYTES)
    check_fields(held, {"format_version": int, "settings": dict, "learning_rates": dict}, str(file))
    if held.get("format_version") != 1:
        raise UserError(f"{file}: format_version is {held.get('format_version')!r}; expected 1: upgrade jpeft.")
    values = held.get("settings") or {}
    _known(file, "settings", values, KEYS)
    check_fields(values, KEYS, f"{file}: settings")
    rates = held.get("learning_rates") or {}
    for method, points in rates.items():
        if not isinstance(points, dict):
            raise UserError(f"{file}: learning_rates of {method[:40]} is {json_kind(points)}; expected an object.")
        _known(file, f"learning_rates of {method[:40]}", points, _POINTS)
        check_fields(points, _POINTS, f"{file}: learning_rates of {method[:40]}")
    return ModelSettings(
        file,
        {key: KEYS[key](value) for key, value in values.items() if value is not None},
        {
            method: {point: float(rate) for point, rate in points.items() if rate is not None}
            for method, points in rates.items()
        },
    )


def pass_on(model: str, directory: Path) -> None:
    """Copy a model's settings to the directory of a model that was derived from it, and so has the same size.

    Raises:
      UserError: as `settings_of`.
    """
    settings = settings_of(model)
    if settings is not None:
        with write_whole(directory / FILE) as beside:
            beside.write_bytes(settings.file.read_bytes())


def in_words(model: str, taken: Mapping[str, Any]) -> str:
    """One line for the user that lists the settings that a run takes from its model."""
    listed = " ".join(f"{key}={value:g}" for key, value in taken.items())
    return f"what the config leaves open is as {model} recommends ({FILE}): {listed}"


def _directory(model: str) -> Path | None:
    try:
        directory = Path(model).expanduser()
        if directory.is_dir():
            return directory
    except (OSError, RuntimeError, ValueError):  # not a valid path; resolving the model reports it
        return None
    return PACKAGED / model if model in (*packaged_models(), *INSTALLED) else None


def _known(file: Path, where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{file}: {where} has {key[:60]!r}, which is none of {', '.join(known)}.")
