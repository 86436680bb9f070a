"""Configs as typed data: dataclasses of sections, read from nested values with every key and every value checked.

Nothing here knows what a config is for: `jpeft.config` has a run's, `jpeft.pretrain.config` that of a pretraining.
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
from jpeft.words import NAME_OR_TEXT, shortened, told_of_no_text

ANY = float("inf")  # no bound
AUTO = "auto"
SEEDS = (0, 2**32 - 1)  # what JAX's keys are made of
_LONGEST_TEXT = 20_000  # of a template, say
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes, on every file system there is


def left_open(default: Any) -> Any:
    """A field that a config may leave open, for something else to fill in; this default where nothing does."""
    return dataclasses.field(default=default, metadata={"open": True})


def or_auto(default: Any) -> Any:
    """A field as `left_open`, which may also be `auto`: what it is is found out when that can be known."""
    return dataclasses.field(default=default, metadata={"open": True, "auto": True})


def placeholders(cls: type) -> ConfigDict:
    """A config with every key of a dataclass at its default; an unset one takes a value of its type from a flag."""
    config = ConfigDict()
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            config[field.name] = placeholders(typing.cast(type, field.type))
        elif field.default is dataclasses.MISSING:
            config[field.name] = ConfigDict()  # keys of the user's own
        elif field.metadata.get("auto"):
            config[field.name] = config_dict.placeholder(object)  # a number or a word; `parse` says what it may be
        elif field.default is None or field.metadata.get("open"):
            config[field.name] = config_dict.placeholder(_value_type(field.type))
        else:
            config[field.name] = field.default
    return config


def parse(cls: type, values: Mapping[str, Any], path: str, root: tuple[type, str] | None = None) -> Any:
    """The dataclass `cls` of a config's values.

    Args:
      path: of the section, from `config` on.
      root: what the whole config is read into, and its path; `cls` and `path` where that is this.

    Raises:
      UserError: an unknown key, or a value of another type.
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
        if said := told_of_no_text(value, NAME_OR_TEXT):
            raise UserError(f"{path}: {said}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} is {value}; expected a number.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{path} is a number of {value.bit_length()} bits; expected one that 64 bits hold.")
    return value


def _value_type(annotation: Any) -> type:
    """`int` of `int | None`, `int` of `int`."""
    if isinstance(annotation, types.UnionType):
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation


def keys_of(cls: type, prefix: str = "") -> list[str]:
    """Every key below a section of a config: `model.name`; of a section with keys of the user's own its name alone."""
    keys = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            keys += keys_of(typing.cast(type, field.type), f"{prefix}{field.name}.")
        else:
            keys.append(f"{prefix}{field.name}")
    return keys


def unknown_key(root: type, key: str, path: str = "config") -> str:
    """The error message for a key that a config at `path` lacks: that it is a section, or which is meant.

    Sections are easily mixed up, so all of them are looked through: what counts is the name itself, by its letters and
    by its words (`lora_rank` is `method.rank`, `lr` a `learning_rate`), and then the section. Of a section within a
    section all keys are told where none is like it.
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
            return f"unknown config key {path}.{key}; there {path}.{section} has {', '.join(within)}."

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
    """The value, which has to be one of those known. Raises `UserError` otherwise."""
    known = list(known)
    if value not in known:
        raise UserError(f"{key} is {shortened(value)}; expected one of {', '.join(known)}.")
    return value


def check_bounds(key: str, value: int | float | str | None, least: int | float, most: int | float = ANY) -> None:
    """Raises `UserError` for a number that is there, is not `auto`, and is below `least` or above `most`."""
    if value is None or value == AUTO:
        return
    assert not isinstance(value, str), "of text there is `auto` alone"
    if not (least <= value <= most and math.isfinite(value)):
        expected = f"at most {most:,.15g}" if value > most else f"at least {least:,g}"
        raise UserError(f"{key} is {value}; expected {expected}.")


def check_path(key: str, value: str | None) -> None:
    """Raises `UserError` for a path, or a name that may be one, that no file can have."""
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
    """The value at `section.key` of nested mappings; None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def with_value(section: Any, key: str, value: Any) -> Any:
    """A section, or a whole run, with another value at `key`, which may lead into sections below."""
    name, _, below = key.partition(".")
    return dataclasses.replace(section, **{name: with_value(getattr(section, name), below, value) if below else value})


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: before -> after` of every key whose value differs between two nested configs of runs.

    But for `mesh`: it says where a run is computed, not what; a run may go on on other devices. Numbers that differ by
    rounding alone are the same.
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
    """Whether two values mean the same: 3e-4 / 10 is not to the last bit 3e-5, and is no other rate."""
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-12)
    return old == new


def filled_in(config: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the keys of `now` that it lacks, each with its value in `defaults` where that has one."""
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
