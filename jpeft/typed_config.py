"""Typed configs: nested dataclasses, parsed from nested mappings with every key and value checked.

This module is generic; `jpeft.config` defines the config of a run, `jpeft.pretrain.config` that of a pretraining.
"""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from jpeft.errors import UserError
from jpeft.words import RENAME_OR_REENCODE, shortened, why_not_utf8

ANY = float("inf")  # no bound
ABOVE_ZERO = math.ulp(0.0)  # the least number above 0, a lower bound
AUTO = "auto"
SEEDS = (0, 2**32 - 1)  # the range of seeds of JAX's keys
_LONGEST_TEXT = 20_000  # characters, of a template for example
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes; the limits of common file systems


def left_open(default: Any) -> Any:
    """A dataclass field that a config may leave unset, for the model or the method to fill in; else the default."""
    return dataclasses.field(default=default, metadata={"open": True})


def or_auto(default: Any) -> Any:
    """A field like `left_open` that may also be `auto`: its value is then determined during the run."""
    return dataclasses.field(default=default, metadata={"open": True, "auto": True})


def placeholders(cls: type) -> ConfigDict:
    """Returns a `ConfigDict` with every key of a dataclass: its default, or a placeholder of its type if it is unset.

    A flag can set a placeholder only to a value of that type.
    """
    config = ConfigDict()
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            config[field.name] = placeholders(typing.cast(type, field.type))
        elif field.default is dataclasses.MISSING:
            config[field.name] = ConfigDict()  # a section whose keys the user chooses
        elif field.metadata.get("auto"):
            config[field.name] = config_dict.placeholder(object)  # a number or `auto`; `parse` checks which
        elif field.default is None or field.metadata.get("open"):
            config[field.name] = config_dict.placeholder(_value_type(field.type))
        else:
            config[field.name] = field.default
    return config


def parse(cls: type, values: Mapping[str, Any], path: str, root: tuple[type, str] | None = None) -> Any:
    """Parses a config's values into the dataclass `cls`.

    Args:
      path: the path of this section in messages, from `config` on.
      root: class and path of the whole config, for suggestions of keys; by default `cls` and `path`.

    Raises:
      UserError: a key is unknown, or a value has the wrong type.
    """
    root = root or (cls, path)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            whole, at = root
            raise UserError(unknown_key(whole, f"{path}.{str(key)[:200]}".removeprefix(f"{at}."), at))
    parsed = {}
    for key, value in values.items():
        kind = fields[key].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                first = dataclasses.fields(kind)[0].name
                raise UserError(
                    f"{path}.{key} is {shortened(value)}; it is a section with keys of its own: set these, such as "
                    f"{path}.{key}.{first}."
                )
            parsed[key] = parse(typing.cast(type, kind), value, f"{path}.{key}", root)
        elif fields[key].metadata.get("auto") and value is not None:
            parsed[key] = value if value == AUTO else _checked_value(f"{path}.{key}", value, kind, also=f" or {AUTO}")
        elif not (value is None and fields[key].metadata.get("open")):
            parsed[key] = _checked_value(f"{path}.{key}", value, kind)
    return cls(**parsed)


def _checked_value(path: str, value: Any, annotation: Any, *, also: str = "") -> Any:
    expected = _value_type(annotation)
    if value is None and isinstance(annotation, types.UnionType):
        return None
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UserError(f"{path} is {shortened(value)}; expected {expected.__name__}{also}.")
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{path} is empty; give a value, or leave it out.")
        if "\0" in value or len(value) > _LONGEST_TEXT:
            what = "a NUL character" if "\0" in value else f"{len(value):,} characters"
            raise UserError(f"{path} holds {what}; expected text of {_LONGEST_TEXT:,} characters at most.")
        if reason := why_not_utf8(value, RENAME_OR_REENCODE):
            raise UserError(f"{path}: {reason}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} is {value}; expected a number.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{path} is a number of {value.bit_length()} bits; expected one that 64 bits hold.")
    return value


def _value_type(annotation: Any) -> type:
    """Returns `int` for the annotations `int` and `int | None`."""
    if isinstance(annotation, types.UnionType):
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation


def keys_of(cls: type, prefix: str = "") -> list[str]:
    """Lists every key of a config, such as `model.name`; a section whose keys the user chooses is one key."""
    keys = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            keys += keys_of(typing.cast(type, field.type), f"{prefix}{field.name}.")
        else:
            keys.append(f"{prefix}{field.name}")
    return keys


def unknown_key(root: type, key: str, path: str = "config") -> str:
    """Returns the error message for an unknown key: that it names a section, or which key was probably meant.

    Suggestions come from all sections, since these are easily mixed up. The similarity of the last name counts most, by
    its letters and by its words (`lora_rank` suggests `method.rank`, `lr` a `learning_rate`), then that of the section.
    For a nested section without a similar key the message lists all of its keys.
    """
    key, keys = key[:200], keys_of(root)
    below = [known.removeprefix(f"{key}.") for known in keys if known.startswith(f"{key}.")]
    if below:
        return f"{path}.{key} is a section; give one of its keys: {', '.join(below)}."
    sections = {known.rpartition(".")[0] for known in keys} - {""}
    section, _, name = key.rpartition(".")
    if "." in section and section in sections:
        within = sorted(known.removeprefix(f"{section}.") for known in keys if known.startswith(f"{section}."))
        if not difflib.get_close_matches(name, within, n=1, cutoff=0.5) and len(within) <= 4:
            return f"unknown config key {path}.{key}; {path}.{section} has {', '.join(within)}."

    def likeness(known: str) -> tuple[float, float]:
        its_section, _, its_name = known.rpartition(".")
        alike = lambda one, other: difflib.SequenceMatcher(None, one, other).ratio()
        letters, words, its_words = alike(name, its_name), name.split("_"), its_name.split("_")
        shared = set(words) <= set(its_words) or set(its_words) <= set(words)
        initials = len(its_words) > 1 and name == "".join(word[:1] for word in its_words)
        by_words = 0.8 if shared or initials else 0.0
        return max(letters, by_words) + 0.15 * alike(section, its_section), letters

    meant = max([*keys, *sorted(sections)], key=likeness)
    return f"unknown config key {path}.{key}; did you mean {path}.{meant}?"


def one_of(key: str, value: str, known: Iterable[str]) -> str:
    """Returns `value`. Raises `UserError` if it is not one of the known ones."""
    known = list(known)
    if value not in known:
        raise UserError(f"{key} is {shortened(value)}; expected one of {', '.join(known)}.")
    return value


def check_bounds(key: str, value: int | float | str | None, least: int | float, most: int | float = ANY) -> None:
    """Raises `UserError` if a number is below `least` or above `most`. None and `auto` pass."""
    if value is None or value == AUTO:
        return
    assert not isinstance(value, str), "the only text is `auto`"
    if not (least <= value <= most and math.isfinite(value)):
        above = "more than 0" if least == ABOVE_ZERO else f"at least {least:,g}"
        expected = f"at most {most:,.15g}" if value > most else above
        raise UserError(f"{key} is {value}; expected {expected}.")


def check_path(key: str, value: str | None) -> None:
    """Raises `UserError` if a value that may be a path is too long for one, or has a `~` of an unknown user."""
    if value is None:
        return
    parts = Path(value).parts
    if len(os.fsencode(value)) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise UserError(f"{key} is {shortened(value)}, which is longer than a file's name can be.")
    if value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise UserError(f"{key} is {value!r}: there is no such home directory; write the path in full.") from None


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Returns the value at `section.key` of nested mappings; None if it is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def with_value(section: Any, key: str, value: Any) -> Any:
    """Returns a copy of a config or section with another value at `key`, such as `model.name`."""
    name, _, below = key.partition(".")
    return dataclasses.replace(section, **{name: with_value(getattr(section, name), below, value) if below else value})


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists, as `key: before -> after`, the keys whose values differ between two nested configs of runs.

    `mesh` is left out: it says where a run is computed, and a run may resume on other devices. Floats that differ by
    rounding alone are equal.
    """
    found = []
    for key in sorted({*before, *after} - {"mesh"}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif not _same(old, new):
            found.append(f"{prefix}{key}: {shortened(old)} -> {shortened(new)}")
    return found


def _same(old: Any, new: Any) -> bool:
    """Whether two values are equal up to rounding, as 3e-4 / 10 and 3e-5 are."""
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-12)
    return old == new


def filled_in(config: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a config with its missing keys added.

    Args:
      now: a complete config, for its keys.
      defaults: values of the missing keys; a key without one stays missing.
    """
    filled = dict(config)
    for key, value in now.items():
        default = defaults.get(key)
        if isinstance(value, Mapping):
            if isinstance(config.get(key, {}), Mapping):
                below = default if isinstance(default, Mapping) else {}
                filled[key] = filled_in(config.get(key, {}), value, below)
        elif key not in config and default is not None:
            filled[key] = default
    return filled
