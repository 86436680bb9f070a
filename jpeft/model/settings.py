"""Settings that a model recommends for its own tuning: `jpeft.json` in its directory, as `mini` has one.

    {"format_version": 1,
     "settings": {"train.batch_size": 4, "train.patience": 3},
     "learning_rates": {"lora": {"initial": 0.001, "warmup": 0.01, "annealing": 0.001}}}

A config that leaves one of these keys open takes the model's value; what the user sets wins, and what neither sets is
the method's own, which is the paper's. Only a directory and a model that is known by its name alone are looked at, of
which jpeft has the settings itself: a run's config must not depend on whether the hub has been asked before.
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
    """Settings that a model recommends for its own tuning, read from its `jpeft.json`.

    Attributes:
      file: that says so.
      values: by config key.
      learning_rates: by method, or by method and reading (`lora:official`), then by the schedule's points.
    """

    file: Path
    values: Mapping[str, Any]
    learning_rates: Mapping[str, Mapping[str, float]]

    def for_method(self, method: str, reading: str) -> dict[str, Any]:
        """Every value by its config key, for a run with that method; rates of `lora:official` come before `lora`'s."""
        rates = self.learning_rates.get(f"{method}:{reading}", self.learning_rates.get(method, {}))
        return {**self.values, **{f"train.learning_rate.{point}": rate for point, rate in rates.items()}}


def settings_of(model: str) -> ModelSettings | None:
    """The settings that a model recommends; None if its name is no directory, or one without any.

    Raises:
      UserError: the file is damaged, or holds a key or a value of a kind that it may not.
    """
    directory = _directory(model)
    if directory is None or not (directory / FILE).exists():
        return None
    file = directory / FILE
    held = read_json_object(file, most_bytes=_MOST_BYTES)
    check_fields(held, {"format_version": int, "settings": dict, "learning_rates": dict}, str(file))
    if held.get("format_version") != 1:
        raise UserError(
            f"{file}: format_version is {held.get('format_version')!r}; this jpeft reads 1: take a newer one."
        )
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
    """Gives a model that was made of another one what that one recommends: it is of the same size.

    Raises:
      UserError: as `settings_of`.
    """
    settings = settings_of(model)
    if settings is not None:
        with write_whole(directory / FILE) as beside:
            beside.write_bytes(settings.file.read_bytes())


def in_words(model: str, taken: Mapping[str, Any]) -> str:
    """One line that says what a run takes from its model, for whoever starts it."""
    listed = " ".join(f"{key}={value:g}" for key, value in taken.items())
    return f"what the config leaves open is as {model} recommends ({FILE}): {listed}"


def _directory(model: str) -> Path | None:
    try:
        directory = Path(model).expanduser()
        if directory.is_dir():
            return directory
    except (OSError, RuntimeError, ValueError):  # no name of a directory; whoever resolves the model says so
        return None
    return PACKAGED / model if model in (*packaged_models(), *INSTALLED) else None


def _known(file: Path, where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{file}: {where} has {key[:60]!r}, which is none of {', '.join(known)}.")
