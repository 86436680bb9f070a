"""The records that runs leave, each a typed class, written by the run and read by all who ask: `result.json` of one
that is finished, `paused.json` of one that waits.

A record of an earlier version is read with today's meaning of what it lacks. What is no record is refused by name.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import RunFailed
from jpeft.eval.metrics import METRICS
from jpeft.eval.metrics.base import UNBOUNDED
from jpeft.eval.uncertainty import Uncertainty
from jpeft.files import read_json_object
from jpeft.words import clipped, named_in_bits, shortened

_MOST_CHARACTERS = 300
_ROUNDING = 1e-6  # by which an interval may go over the end of its metric's range
_LARGEST_FILE_BYTES = 4 * 2**20
PHASES = ("total", "train", "validation", "test", "compile")


class NotARecord(Exception):
    """Why something is no record of a finished run, in words for a sentence that begins with its file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The record of a finished run, `result.json`. Keys that earlier versions did not write have defaults.

    Attributes:
      source: where the rows came from, as `data.source` with `auto` resolved.
      data_digest: of the rows' content; None of runs that did not record it.
      answer: how test rows were answered, `generate` or `score`.
      quantization: how the frozen base was kept, such as `nf4,double`, whether the run rounded it or its files have it
        so; None where it was wide.
      labels: of a classification; None of texts.
      metric_name, metric: what the task is judged by, and its value on the test split.
      rouge_tokenizer: what ROUGE counted; None of a classification.
      metrics: all numbers of the test split by name, `metric` among them.
      computed_by: tokenizers and versions of metrics that have such.
      uncertainty: of the metric; `uncertainties` are those of all that have one, by name.
      per_class: macro F1 and majority class of a classification.
      warnings: where the metric is not what it seems, a line each.
      zero_shot: the numbers of the untrained model, where the run measured them.
      monitor: the number whose best value chose the epoch.
      validation_loss: of the best epoch, in nats a token; `validation_losses` are those of all.
      validation_metrics: of each epoch, what the monitor's evaluator computed beside the loss; None where that is the
        monitor.
      best_epoch: counted from 0, as in the paper.
      trained_on_after: epochs that it was allowed each time before it was asked to train on.
      by_source: of a run on several files, rows and numbers of each file's part.
      seconds: by phase; `total` is the sum of the others but for `zero_shot`, and compilation is in `compile` alone.
      mesh: parts along each axis of devices.
      together: the most runs, this one among them, that asked the device together; the seconds are then of all of them.
      settled: what the config's `auto` became, by config key; empty where nothing was.
      versions: of packages by name.
    """

    status: str = "done"
    method: str
    reading: str
    ablation: str | None
    task: str
    scale: str
    seed: int
    model: str
    quantization: str | None = None
    source: str
    data_digest: str | None = None
    trainable_parameters: int
    total_parameters: int
    answer: str = "generate"
    labels: tuple[str, ...] | None = None
    metric_name: str
    metric: float
    rouge_tokenizer: str | None = None
    metrics: Mapping[str, float]
    computed_by: Mapping[str, str] = dataclasses.field(default_factory=dict)
    uncertainty: Uncertainty | None = None
    uncertainties: Mapping[str, Uncertainty] = dataclasses.field(default_factory=dict)
    per_class: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    zero_shot: Mapping[str, float] | None
    monitor: str = "validation/loss"
    validation_loss: float
    validation_losses: tuple[float, ...]
    validation_metrics: tuple[Mapping[str, float], ...] | None = None
    best_epoch: int
    epochs_run: int
    trained_on_after: tuple[int, ...] = ()
    train_examples: int
    validation_examples: int
    test_examples: int
    by_source: Mapping[str, Mapping[str, Any]] | None = None
    seconds: Mapping[str, float]
    tokens_per_second: float
    peak_memory_bytes: int
    adapter_bytes: int
    device: str
    device_count: int
    mesh: Mapping[str, Any]
    together: int = 1
    settled: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any]
    commit: str | None
    started: str
    finished: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RunRecord":
        """The record that a JSON object holds; keys that this version does not know are left out.

        Raises:
          NotARecord: it is of a run that did not finish, of another program, lacks a key that every version writes, or
            has a value that no run writes.
        """
        if values.get("status", "done") != "done":
            why = f": {shortened(values['error'])}" if values.get("error") else ""
            raise NotARecord(f"its status is {shortened(values['status'])}{why}")
        missing = [name for name in _REQUIRED if name not in values]
        if len(missing) > len(_REQUIRED) // 2:
            raise NotARecord("is no result of a run, but of another program or of `jpeft pretrain`")
        if missing:
            raise NotARecord(f"lacks {', '.join(missing)}: of an older version, or edited")
        read = {}
        for name, check in _CHECKS.items():
            if name not in values:
                continue
            try:
                read[name] = check(values[name])
            except NotARecord as why:
                raise NotARecord(f"{name} is {shortened(values[name])}; expected {why}") from None
        made = cls(**read)
        made._check()
        return made

    @classmethod
    def read(cls, file: Path) -> "RunRecord":
        """The record in a `result.json`. Raises `NotARecord`: as `of`, or it is no JSON object."""
        return cls.of(read_object(file))

    @property
    def base(self) -> str:
        """The model by its name, and in how few bits it was where it was not wide: `mini in nf4`."""
        return named_in_bits(self.model, self.quantization)

    def _check(self) -> None:
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
        """The record as `result.json` holds it."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PausedRecord:
    """The record of a run that waits after some of its epochs, `paused.json`: whoever compares runs may let it go on.

    Attributes:
      validation_losses: of each epoch so far, in nats a token.
      seconds: by phase, so far.
    """

    validation_losses: tuple[float, ...]
    train_examples: int
    validation_examples: int
    seconds: Mapping[str, float]

    @property
    def epochs(self) -> int:
        """How many it has trained."""
        return len(self.validation_losses)

    @classmethod
    def read(cls, file: Path) -> "PausedRecord":
        """The record in a `paused.json`. Raises `NotARecord`: what is there is none."""
        values, read = read_object(file), {}
        for name in (field.name for field in dataclasses.fields(cls)):
            if name not in values:
                raise NotARecord(f"lacks {name}")
            try:
                read[name] = _CHECKS[name](values[name])
            except NotARecord as why:
                raise NotARecord(f"{name} is {shortened(values[name])}; expected {why}") from None
        if not read["validation_losses"]:
            raise NotARecord("is of a run without an epoch")
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """The record as `paused.json` holds it."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def check_result(result: Mapping[str, Any], file: Path) -> None:
    """Raises `RunFailed`: what a finished run's file holds is no record, having been damaged since."""
    try:
        RunRecord.of(result)
    except NotARecord as why:
        raise RunFailed(f"{file} is damaged ({why}); give --overwrite to run again from the start.") from None


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a size that such files have. Raises `NotARecord`."""
    try:
        return read_json_object(file, error=NotARecord, most_bytes=_LARGEST_FILE_BYTES)
    except NotARecord as why:
        text = str(why).removeprefix(f"{file} ").removeprefix(f"{str(file)!r} ").rstrip(".")
        raise NotARecord("is empty" if file.is_file() and not file.stat().st_size else text) from None


def printable(value: Any) -> str:
    """A name from a stranger's file as a report shows it: its printable characters, 120 and `...` at most."""
    return clipped("".join(c for c in str(value) if c.isprintable()), 120)


def plain(value: Any) -> Any:
    """A value as JSON has it: records as objects, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _require_in_range(where: str, numbers: Iterable[tuple[str, float]]) -> None:
    """Raises `NotARecord`: a number is of a metric that cannot be so high or so low, but for rounding."""
    for name, number in numbers:
        known = METRICS.get(name)
        low, high = known.range if known is not None else UNBOUNDED
        if not low - _ROUNDING <= number <= high + _ROUNDING:
            raise NotARecord(f"{where} has {shortened(name)} at {number:g}; expected {low:g} to {high:g}")


# --- what each key may hold ---


def _name(value: Any) -> str:
    # Printable: reports go to terminals too, and a name could carry their control codes.
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


def _listed(of: Callable[[Any], Any], what: str) -> Callable[[Any], tuple[Any, ...]]:
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


_numbers = _by_name(_number, "numbers")
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "status": _name,
    "method": _name,
    "reading": _name,
    "ablation": _optional(_name),
    "task": _name,
    "scale": _name,
    "seed": _natural,
    "model": _name,
    "quantization": _optional(_name),
    "source": _name,
    "data_digest": _optional(_name),
    "trainable_parameters": _natural,
    "total_parameters": _natural,
    "answer": _name,
    "labels": _optional(_listed(_text, "texts")),
    "metric_name": _name,
    "metric": _number,
    "rouge_tokenizer": _optional(_name),
    "metrics": _numbers,
    "computed_by": _by_name(_name, "names"),
    "uncertainty": _optional(_uncertainty),
    "uncertainties": _by_name(_uncertainty, "uncertainties"),
    "per_class": _optional(_per_class),
    "warnings": _listed(_text, "texts"),
    "zero_shot": _optional(_numbers),
    "validation_loss": _not_negative,
    "monitor": _name,
    "validation_losses": _listed(_number, "numbers"),
    "validation_metrics": _optional(_listed(_numbers, "numbers by name")),
    "best_epoch": _natural,
    "epochs_run": _natural,
    "trained_on_after": _listed(_natural, "whole numbers"),
    "train_examples": _natural,
    "validation_examples": _natural,
    "test_examples": _natural,
    "by_source": _optional(_by_name(_part, "each file's part")),
    "seconds": _seconds,
    "tokens_per_second": _not_negative,
    "peak_memory_bytes": _natural,
    "adapter_bytes": _natural,
    "device": _name,
    "device_count": _positive,
    "mesh": _object,
    "together": _positive,
    "settled": _object,
    "versions": _object,
    "commit": _optional(_name),
    "started": _name,
    "finished": _name,
}
_REQUIRED = [
    field.name
    for field in dataclasses.fields(RunRecord)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
]
assert set(_CHECKS) == set(typing.get_type_hints(RunRecord)), "every key of a record is checked"
