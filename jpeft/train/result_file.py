"""`result.json` as it may be found again: cut short, edited, of another program."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import RunFailed

_TEXTS = ("method", "task", "model", "metric_name")
_NUMBERS = ("metric", "validation_loss", "best_epoch", "epochs_run", "test_examples", "adapter_bytes")
_OF_NUMBERS = ("metrics", "seconds")
_WHOLE_NUMBERS = ("best_epoch", "epochs_run", "test_examples", "adapter_bytes")


def damage_of(result: Mapping[str, Any], *, lacking: bool = False) -> str | None:
    """What a tuning run's result cannot hold and this one does, in words; None where there is nothing.

    Args:
      lacking: whether a key that every such result has must be there.
    """
    for name in (*_TEXTS, *_NUMBERS, *_OF_NUMBERS):
        if name not in result:
            if lacking:
                return f"it lacks {name}"
            continue
        value = result[name]
        kind = str if name in _TEXTS else Mapping if name in _OF_NUMBERS else int if name in _WHOLE_NUMBERS else float
        fits = _is_number(value) if kind is float else isinstance(value, kind) and not isinstance(value, bool)
        if not fits or (kind is Mapping and not all(map(_is_number, value.values()))):
            return f"its {name} is {repr(value)[:60]}"
    zero_shot = result.get("zero_shot")
    if zero_shot and not (isinstance(zero_shot, Mapping) and all(map(_is_number, zero_shot.values()))):
        return f"its zero_shot is {repr(zero_shot)[:60]}"
    if zero_shot and result.get("metric_name") not in zero_shot:
        return f"its zero_shot lacks {str(result.get('metric_name'))[:60]}"
    by_epoch = result.get("validation_metrics") or []
    if by_epoch and _damaged_history(by_epoch, result):
        return f"its validation_metrics is {repr(by_epoch)[:60]}"
    others = result.get("uncertainties") or {}
    if not isinstance(others, Mapping):
        return f"its uncertainties is {repr(others)[:60]}"
    for record in (result.get("uncertainty"), *others.values()):
        if damage := _damage_of_uncertainty(record):
            return damage
    if not isinstance(result.get("computed_by") or {}, Mapping):
        return f"its computed_by is {repr(result['computed_by'])[:60]}"
    return _damage_of_classes(result.get("per_class"))


def _damaged_history(by_epoch: Any, result: Mapping[str, Any]) -> bool:
    """Whether `validation_metrics` is not numbers by epoch, the monitored one among them."""
    best = result.get("best_epoch")
    if not isinstance(by_epoch, list) or not isinstance(best, int) or not 0 <= best < len(by_epoch):
        return True
    metric = str(result.get("monitor")).partition("/")[2]
    return not all(isinstance(e, Mapping) and metric in e and all(map(_is_number, e.values())) for e in by_epoch)


def check_result(result: Mapping[str, Any], file: Path) -> None:
    """Raises `RunFailed`: a key is missing or of another type."""
    damage = damage_of(result, lacking=True)
    if damage is not None:
        raise RunFailed(f"{file} is damaged ({damage}); give --overwrite to run again from the start.")


def _damage_of_uncertainty(record: Any) -> str | None:
    if not record:
        return None
    shown = f"its uncertainty is {repr(record)[:60]}"
    if not isinstance(record, Mapping):
        return shown
    interval, error = record.get("interval"), record.get("standard_error")
    fits = isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_is_number, interval))
    return None if fits and "standard_error" in record and (error is None or _is_number(error)) else shown


def _damage_of_classes(record: Any) -> str | None:
    if not record:
        return None
    majority = record.get("majority") if isinstance(record, Mapping) else None
    fits = isinstance(majority, Mapping) and "label" in majority and _is_number(majority.get("share"))
    return None if fits and _is_number(record.get("macro_f1")) else f"its per_class is {repr(record)[:60]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
