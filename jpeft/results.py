"""The JSON records of runs as typed classes: `result.json` of a finished run, `paused.json` of a paused one.

Records of earlier versions are completed with defaults. A file that is not a record is refused with the reason.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from jpeft.errors import RunFailed
from jpeft.eval.metrics import METRICS
from jpeft.eval.metrics.base import UNBOUNDED
from jpeft.eval.uncertainty import Uncertainty
from jpeft.files import read_json_object
from jpeft.words import clipped, named_in_bits, shortened

_MOST_CHARACTERS = 300
_ROUNDING = 1e-6  # how far an interval may exceed the range of its metric
_LARGEST_FILE_BYTES = 4 * 2**20
PHASES = ("total", "train", "validation", "test", "compile")


class NotARecord(Exception):
    """A file is not a record of a run. The message says why, for a sentence that begins with the file."""


# --- Types of the fields, each annotated with the function that checks a JSON value and converts it. A check raises
# `NotARecord` with what it expected. ---


def _name(value: Any) -> str:
    # Printable, because reports are shown in terminals, too, and a name could carry control codes.
    if not isinstance(value, str) or not value or len(value) > _MOST_CHARACTERS or not value.isprintable():
        raise NotARecord("a name")
    return value


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise NotARecord("a whole number, 0 or more")
    return value


def _positive(value: Any) -> int:
    if _natural(value) == 0:
        raise NotARecord("a whole number, 1 or more")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300 or value != value:
        raise NotARecord("a finite number")
    return float(value)


def _not_negative(value: Any) -> float:
    if _number(value) < 0:
        raise NotARecord("a finite number, 0 or more")
    return float(value)


def _by_name(of: Callable[[Any], Any], what: str) -> Callable[[Any], dict[str, Any]]:
    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise NotARecord(f"{what} by name")
        return {_name(name): of(part) for name, part in value.items()}

    return check


def _list_of(of: Callable[[Any], Any], what: str) -> Callable[[Any], tuple[Any, ...]]:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise NotARecord(f"a list of {what}")
        return tuple(of(part) for part in value)

    return check


def _optional(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else of(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NotARecord("texts")
    return value


def _seconds(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not set(PHASES) <= value.keys():
        raise NotARecord(f"seconds of {', '.join(PHASES)}")
    return {_name(phase): _not_negative(part) for phase, part in value.items()}


def _uncertainty(value: Any) -> Uncertainty:
    expected = "standard_error, interval, method and rows"
    if not isinstance(value, dict) or not {"standard_error", "interval", "method", "rows"} <= value.keys():
        raise NotARecord(expected)
    error, interval = value["standard_error"], value["interval"]
    if not isinstance(interval, list) or len(interval) != 2:
        raise NotARecord(f"{expected}, the interval of two numbers")
    if _number(interval[0]) > _number(interval[1]):
        raise NotARecord(f"{expected}, the interval from the lower number to the higher")
    return Uncertainty(
        _name(value["metric"]) if value.get("metric") else "",
        None if error is None else _not_negative(error),
        (_number(interval[0]), _number(interval[1])),
        _name(value["method"]),
        _natural(value["rows"]),
    )


def _per_class(value: Any) -> dict[str, Any]:
    majority = value.get("majority") if isinstance(value, dict) else None
    if not isinstance(majority, dict) or not isinstance(majority.get("label"), str):
        raise NotARecord("macro_f1 and the majority's label and share")
    return {
        "macro_f1": _number(value.get("macro_f1")),
        "majority": {"label": majority["label"], "share": _number(majority.get("share"))},
    }


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotARecord("values by name")
    return value


_numbers = _by_name(_number, "numbers")


def _part(value: Any) -> dict[str, Any]:
    checks = {
        "validation_examples": _natural,
        "test_examples": _natural,
        "validation_loss": _number,
        "metrics": _numbers,
    }
    if not isinstance(value, dict) or not checks.keys() <= value.keys():
        raise NotARecord(f"of each file {', '.join(checks)}")
    return {name: check(value[name]) for name, check in checks.items()}


_Name = Annotated[str, _name]
_NameOrNone = Annotated[str | None, _optional(_name)]
_Natural = Annotated[int, _natural]
_Positive = Annotated[int, _positive]
_Number = Annotated[float, _number]
_NotNegative = Annotated[float, _not_negative]
_Numbers = Annotated[Mapping[str, float], _numbers]
_NumbersOrNone = Annotated[Mapping[str, float] | None, _optional(_numbers)]
_Object = Annotated[Mapping[str, Any], _object]
_Losses = Annotated[tuple[float, ...], _list_of(_number, "numbers")]
_Seconds = Annotated[Mapping[str, float], _seconds]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The record of a finished run, `result.json`. Keys that earlier versions did not write have defaults.

    Attributes:
      source: where the rows came from: `data.source` with `auto` resolved.
      data_digest: hash of the rows' content; None in records of versions that did not write it.
      answer: how the test rows were answered, `generate` or `score`.
      quantization: of the frozen base, such as `nf4,double`, whether the run or its files quantized it; None for a base
        that is not quantized.
      labels: the classes of a classification; None for a generation.
      metric_name, metric: the task's main metric, and its value on the test split.
      rouge_tokenizer: the tokenizer of ROUGE; None for a classification.
      metrics: all metrics of the test split by name, including `metric`.
      computed_by: tokenizers and versions, by name of the metrics that have them.
      uncertainty: of the main metric; `uncertainties` are those of all metrics that have one, by name.
      per_class: macro F1 and majority class of a classification.
      warnings: why the metric may mislead, one line each.
      zero_shot: metrics of the base before training, if the run measured them.
      monitor: the number that selected the best epoch.
      validation_loss: of the best epoch, in nats per target token; `validation_losses` are those of all epochs.
      validation_metrics: by epoch, the numbers of the monitor's evaluator; None if the monitor is the loss.
      best_epoch: counted from 0, as in the paper.
      trained_on_after: `max_epochs` before each time that training was continued.
      by_source: row counts and numbers by file, for a run on several files.
      seconds: by phase; `total` is the sum of the others except `zero_shot`, and only `compile` includes compilation.
      mesh: number of devices along each axis.
      together: the largest number of runs, including this one, that shared the device's calls; `seconds` then covers
        all of them.
      settled: resolved values of config keys that were `auto`, by key.
      versions: of packages by name.
    """

    status: _Name = "done"
    method: _Name
    reading: _Name
    ablation: _NameOrNone
    task: _Name
    scale: _Name
    seed: _Natural
    model: _Name
    quantization: _NameOrNone = None
    source: _Name
    data_digest: _NameOrNone = None
    trainable_parameters: _Natural
    total_parameters: _Natural
    answer: _Name = "generate"
    labels: Annotated[tuple[str, ...] | None, _optional(_list_of(_text, "texts"))] = None
    metric_name: _Name
    metric: _Number
    rouge_tokenizer: _NameOrNone = None
    metrics: _Numbers
    computed_by: Annotated[Mapping[str, str], _by_name(_name, "names")] = dataclasses.field(default_factory=dict)
    uncertainty: Annotated[Uncertainty | None, _optional(_uncertainty)] = None
    uncertainties: Annotated[Mapping[str, Uncertainty], _by_name(_uncertainty, "uncertainties")] = dataclasses.field(
        default_factory=dict
    )
    per_class: Annotated[Mapping[str, Any] | None, _optional(_per_class)] = None
    warnings: Annotated[tuple[str, ...], _list_of(_text, "texts")] = ()
    zero_shot: _NumbersOrNone
    monitor: _Name = "validation/loss"
    validation_loss: _NotNegative
    validation_losses: _Losses
    validation_metrics: Annotated[
        tuple[Mapping[str, float], ...] | None, _optional(_list_of(_numbers, "numbers by name"))
    ] = None
    best_epoch: _Natural
    epochs_run: _Natural
    trained_on_after: Annotated[tuple[int, ...], _list_of(_natural, "whole numbers")] = ()
    train_examples: _Natural
    validation_examples: _Natural
    test_examples: _Natural
    by_source: Annotated[Mapping[str, Mapping[str, Any]] | None, _optional(_by_name(_part, "each file's part"))] = None
    seconds: _Seconds
    tokens_per_second: _NotNegative
    peak_memory_bytes: _Natural
    adapter_bytes: _Natural
    device: _Name
    device_count: _Positive
    mesh: _Object
    together: _Positive = 1
    settled: _Object = dataclasses.field(default_factory=dict)
    versions: _Object
    commit: _NameOrNone
    started: _Name
    finished: _Name

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RunRecord":
        """Returns the record in a JSON object; unknown keys are ignored.

        Raises:
          NotARecord: the run did not finish, the object is from another program, lacks a key that every version writes,
            or has a value that no run writes.
        """
        if values.get("status", "done") != "done":
            why = f": {shortened(values['error'])}" if values.get("error") else ""
            raise NotARecord(f"its status is {shortened(values['status'])}{why}")
        missing = [name for name in _REQUIRED if name not in values]
        if len(missing) > len(_REQUIRED) // 2:
            raise NotARecord("is no result of a run, but of another program or of `jpeft pretrain`")
        if missing:
            raise NotARecord(f"lacks {', '.join(missing)}: of an older version, or edited")
        record = cls(**_checked(cls, values))
        record._check_consistency()
        return record

    @classmethod
    def read(cls, file: Path) -> "RunRecord":
        """Reads a `result.json`. Raises `NotARecord` like `of`, or if the file is not a JSON object."""
        return cls.of(read_object(file))

    @property
    def base(self) -> str:
        """The model's name, with its quantization if it has one: `mini in nf4`."""
        return named_in_bits(self.model, self.quantization)

    def _check_consistency(self) -> None:
        known = METRICS.get(self.metric_name)
        low, high = known.range if known is not None else UNBOUNDED
        if not low <= self.metric <= high:
            raise NotARecord(f"metric is {self.metric}; expected {low:g} to {high:g}")
        for where, numbers in (("metrics", self.metrics), ("zero_shot", self.zero_shot or {})):
            _require_in_range(where, numbers.items())
        for uncertainty in filter(None, (self.uncertainty, *self.uncertainties.values())):
            _require_in_range("uncertainty", ((uncertainty.metric, end) for end in uncertainty.interval))
        if self.metrics.get(self.metric_name, self.metric) != self.metric:
            raise NotARecord(f"metric and metrics[{self.metric_name!r}] are not the same number")
        if self.zero_shot and self.metric_name not in self.zero_shot:
            raise NotARecord(f"zero_shot lacks {shortened(self.metric_name)}")
        if len(self.validation_losses) != self.epochs_run:
            raise NotARecord(f"validation_losses are {len(self.validation_losses)}, of {self.epochs_run} epochs")
        if self.best_epoch >= max(self.epochs_run, 1):
            raise NotARecord(f"best_epoch is {self.best_epoch} of {self.epochs_run} epochs, counted from 0")
        by_epoch, monitored = self.validation_metrics or (), self.monitor.partition("/")[2]
        if by_epoch and (self.best_epoch >= len(by_epoch) or not all(monitored in numbers for numbers in by_epoch)):
            raise NotARecord(f"validation_metrics lack {shortened(monitored)} of an epoch, the monitor's number")

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as the JSON object of `result.json`."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


_REQUIRED = [
    field.name
    for field in dataclasses.fields(RunRecord)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PausedRecord:
    """The record of a run that paused after some of its epochs, `paused.json`. The run can be resumed.

    Attributes:
      validation_losses: of each epoch so far, in nats per target token.
      seconds: by phase, so far.
    """

    validation_losses: _Losses
    train_examples: _Natural
    validation_examples: _Natural
    seconds: _Seconds

    @property
    def epochs(self) -> int:
        """The number of epochs trained so far."""
        return len(self.validation_losses)

    @classmethod
    def read(cls, file: Path) -> "PausedRecord":
        """Reads a `paused.json`. Raises `NotARecord` if it is not one."""
        values = read_object(file)
        for field in dataclasses.fields(cls):
            if field.name not in values:
                raise NotARecord(f"lacks {field.name}")
        record = cls(**_checked(cls, values))
        if not record.validation_losses:
            raise NotARecord("is of a run without an epoch")
        return record

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as the JSON object of `paused.json`."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _checked(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and converts those values that are fields of a record class, by the functions in its annotations."""
    checked = {}
    for name, annotation in typing.get_type_hints(record, include_extras=True).items():
        if name in values:
            (check,) = annotation.__metadata__
            try:
                checked[name] = check(values[name])
            except NotARecord as why:
                raise NotARecord(f"{name} is {shortened(values[name])}; expected {why}") from None
    return checked


def check_result(result: Mapping[str, Any], file: Path) -> None:
    """Raises `RunFailed` if the content of a finished run's `result.json` is damaged."""
    try:
        RunRecord.of(result)
    except NotARecord as why:
        raise RunFailed(f"{file} is damaged ({why}); give --overwrite to run again from the start.") from None


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file of at most 4 MiB. Raises `NotARecord` if it cannot be read."""
    try:
        return read_json_object(file, error=NotARecord, most_bytes=_LARGEST_FILE_BYTES)
    except NotARecord as why:
        text = str(why).removeprefix(f"{file} ").removeprefix(f"{str(file)!r} ").rstrip(".")
        raise NotARecord("is empty" if file.is_file() and not file.stat().st_size else text) from None


def printable(value: Any) -> str:
    """Returns a name from an untrusted file for a report: its printable characters, cut to 120 of them."""
    return clipped("".join(c for c in str(value) if c.isprintable()), 120)


def plain(value: Any) -> Any:
    """Converts a value to JSON types: dataclasses to objects, tuples to lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _require_in_range(where: str, numbers: Iterable[tuple[str, float]]) -> None:
    """Raises `NotARecord` if a number is outside the range of its metric by more than rounding."""
    for name, number in numbers:
        known = METRICS.get(name)
        low, high = known.range if known is not None else UNBOUNDED
        if not low - _ROUNDING <= number <= high + _ROUNDING:
            raise NotARecord(f"{where} has {shortened(name)} at {number:g}; expected {low:g} to {high:g}")
