"""Finds result files and reads them into `Result`; unusable files are left out and reported with the reason."""

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.report.names import PAPER_TASKS
from jpeft.results import NotARecord, RunRecord, printable, read_object
from jpeft.words import counted, shortened

# Subdirectories of a run that hold no results and may hold thousands of files.
_NO_RESULTS_IN = {"checkpoint", "adapter", "tensorboard", "damaged", "model", "replaced", ".git"}
# Config keys that may differ between runs that are averaged: the seed, and paths on this machine.
_OF_THE_RUN_ALONE = {"train.seed", "data.path", "train.checkpoint_every_seconds"}
_LOSS = "validation/loss"  # `RunRecord.monitor` of runs whose adapter is that of the lowest validation loss
# Settings of how a run is computed, which do not change its result.
_NOT_WHAT = ("mesh.", "eval.batch_size", "model.scan_layers", "model.remat", "data.source")
# The values of keys that configs of earlier versions lack.
_MEANT_BEFORE = {"eval.answer": "'generate'"}
# Reasons for leaving a file out.
_UNFINISHED, _CANNOT_BE_READ = "has no result.json: the run has not finished", "cannot be read"
_MOST_CURVE_POINTS = 120
_MOST_CURVE_BYTES = 64 * 2**20
_DIGEST_SHOWN = 7  # characters of a digest of rows, as of a commit


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result(RunRecord):
    """A `result.json`, with what distinguishes it from the others that were read.

    Attributes:
      path: the file.
      settings: the `config.json` beside it as sorted `(key, value)` pairs, without the seed and paths; None without
        one. Runs with equal settings share one object.
      data_path: the path of the rows in the config; None without a config or a path.
      data: a unique name of the rows: `reviews.jsonl 3f2a9c1`, or `reviews.jsonl 3f2a9c1 by macro_f1` if results on the
        same rows have different metrics. Empty for a benchmark's task, unless its rows differ from those of most
        results of the task.
      setting: this result's settings, such as `rank 8`, if results of its cell and seed differ in them.
      variant: the same, but empty for the setting that represents the cell: that with most seeds, or else the latest.
    """

    path: Path
    settings: tuple[tuple[str, str], ...] | None = None
    data_path: str | None = None
    data: str = ""
    setting: str = ""
    variant: str = ""

    @property
    def examples_per_second(self) -> float | None:
        """Training rows per second of training time."""
        return self.train_examples * self.epochs_run / self.seconds["train"] if self.seconds["train"] > 0 else None

    @property
    def lowest_loss_epoch(self) -> int:
        """The epoch of the lowest validation loss, from 0; not the adapter's if another number was monitored."""
        if self.monitor == _LOSS or not self.validation_losses:
            return self.best_epoch
        return self.validation_losses.index(min(self.validation_losses))

    @property
    def seconds_to_best(self) -> float | None:
        """Seconds of training and validation up to the lowest validation loss, if all epochs take equally long."""
        if not self.epochs_run:
            return None
        return (self.seconds["train"] + self.seconds["validation"]) * (self.lowest_loss_epoch + 1) / self.epochs_run

    @property
    def untuned(self) -> Mapping[str, float] | None:
        """The test metrics of the base alone, `zero_shot`; None if it was not tested.

        None, too, of a version that tested the base with the untrained method, which for a prompt is another model: its
        results have no phase `zero_shot`.
        """
        return self.zero_shot if "zero_shot" in self.seconds else None


@dataclasses.dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that was left out, entirely or in part, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else "?" for c in f"{self.path}: {self.reason}")


def load(paths: Iterable[Path | str]) -> tuple[list[Result], list[LeftOut]]:
    """Reads all results under the given run directories, directories of runs, and result files.

    A file that is reached twice is read once. Of two results of the same cell, rows, settings and seed, the one that
    finished last counts and the other is left out: a copy is not a second seed.

    Returns:
      The results, and the files that were left out.

    Raises:
      UserError: a path does not exist, or no result file is found.
    """
    files, problems = _find(Path(path) for path in paths)
    if not files:
        raise UserError(_why_none(", ".join(str(path) for path in paths), problems))
    results: list[Result] = []
    shared = _Shared()
    for file in files:
        try:
            result = _result(file, shared)
        except NotARecord as why:
            problems.append(LeftOut(file, str(why)))
            continue
        try:
            settings, data_path = _settings(file.with_name("config.json"), shared)
            result = dataclasses.replace(result, settings=settings, data_path=data_path)
            result = dataclasses.replace(result, quantization=result.quantization or _asked_for(settings))
        except NotARecord as why:
            problems.append(LeftOut(file.with_name("config.json"), f"{why}; the result counts, its settings do not"))
        results.append(result)
    results, repeated = _one_per_seed(_with_variants(_with_data(results)))
    return results, problems + repeated


def _why_none(where: str, problems: Sequence[LeftOut]) -> str:
    """Why no result was found: unreadable directories, or runs that have not finished."""
    unreadable = [problem for problem in problems if problem.reason.startswith(_CANNOT_BE_READ)]
    if unreadable:
        more = f", nor can {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        return f"no result.json was found under {where}: {unreadable[0].path} {unreadable[0].reason}{more}."
    unfinished = sum(problem.reason == _UNFINISHED for problem in problems)
    said = f" {counted(unfinished, 'run')} there did not finish." if unfinished else ""
    return f"no result.json under {where}; name directories of finished runs.{said}"


def training_curve(result: Result) -> list[tuple[float, float]]:
    """The training loss from `metrics.jsonl` beside the result, as at most 120 `(step, mean loss)`; empty without it.

    Damaged lines are skipped: the curve is for a figure only.
    """
    points = []
    file = result.path.with_name("metrics.jsonl")
    try:
        if not file.is_file():  # reading a pipe would block
            return []
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines.read(_MOST_CURVE_BYTES).splitlines():
                try:
                    record = json.loads(line)
                    step, loss = float(record["step"]), float(record["loss"])
                except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                    continue
                if math.isfinite(step) and math.isfinite(loss):
                    points.append((step, loss))
    except OSError:
        return []
    width = max(1, math.ceil(len(points) / _MOST_CURVE_POINTS))
    stretches = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in stretches]


# --- finding ---


def _find(paths: Iterable[Path]) -> tuple[list[Path], list[LeftOut]]:
    found: dict[str, Path] = {}  # by real path, so that links and directories named twice do not count twice
    problems: list[LeftOut] = []
    for path in paths:
        if path.is_dir():
            for directory, inner, names in os.walk(path, onerror=lambda e: problems.append(_unreadable(e))):
                inner[:] = sorted(name for name in inner if name not in _NO_RESULTS_IN)
                if "search.json" in names:  # of `jpeft recommend`
                    short = [name for name in inner if name.startswith("short_")]
                    waiting = [name for name in inner if _waits(Path(directory, name))]
                    inner[:] = [name for name in inner if name not in [*short, *waiting]]
                    for runs, what, why in (
                        (short, "short run", "each tests one row"),
                        (waiting, "waiting run", "not among the best"),
                    ):
                        if runs:
                            left_out = f"{counted(len(runs), what)} of a search left out: {why}"
                            problems.append(LeftOut(Path(directory), left_out))
                if "result.json" in names:
                    file = Path(directory, "result.json")
                    found.setdefault(os.path.realpath(file), file)
                elif "config.json" in names and "metrics.jsonl" in names:
                    problems.append(LeftOut(Path(directory), _UNFINISHED))
        elif path.exists():
            found.setdefault(os.path.realpath(path), path)
        else:
            raise UserError(f"{path} does not exist; name run directories, directories of them, or result files.")
    return list(found.values()), problems


def _waits(directory: Path) -> bool:
    return (directory / "paused.json").is_file() and not (directory / "result.json").exists()


def _unreadable(error: OSError) -> LeftOut:
    return LeftOut(Path(str(error.filename)), f"{_CANNOT_BE_READ} ({error.strerror})")


# --- telling apart ---


def _with_data(results: Sequence[Result]) -> list[Result]:
    """The results with the names of their rows set."""
    by_place: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        where = () if result.task not in PAPER_TASKS else (result.model, result.source, result.reading)
        by_place.setdefault((result.task, *where), []).append(result)
    named: dict[Path, str] = {}
    for (task, *_), here in by_place.items():
        names = _names_of_data(here)
        if task in PAPER_TASKS:
            # The task's rows are those of most results, and are assumed for results without a digest.
            known = Counter(identity for result in here if (identity := _identity(result)))
            for identity, _ in [*known.most_common(1), ("", 0)]:
                names[identity] = ""
        metrics: dict[str, set[str]] = {}
        for result in here:
            metrics.setdefault(_identity(result), set()).add(result.metric_name)
        for result in here:
            identity = _identity(result)
            judged = f"by {printable(result.metric_name)}" if len(metrics[identity]) > 1 else ""
            named[result.path] = " ".join(filter(None, (names[identity], judged)))
    return [dataclasses.replace(result, data=named[result.path]) for result in results]


def _identity(result: Result) -> str:
    """A key that is equal for runs on the same rows: their digest if known, else the path of the file."""
    if result.data_digest is not None:
        return result.data_digest
    if result.task in PAPER_TASKS:
        return ""
    if result.data_path is not None:
        return f"path {result.data_path}"
    return f"{result.train_examples} + {result.validation_examples} + {result.test_examples} rows"


def _names_of_data(results: Sequence[Result]) -> dict[str, str]:
    """A unique name per identity: the file's name with the digest or, without one, with its directory."""
    names: dict[str, str] = {}
    for result in sorted(results, key=lambda one: (_identity(one), one.finished)):
        file = printable(",".join(result.by_source) if result.by_source else Path(result.data_path or "").name)[:60]
        digest = (result.data_digest or "")[:_DIGEST_SHOWN]
        names[_identity(result)] = " ".join(filter(None, (file, digest))) or _identity(result)
    shown = Counter(names.values())
    for identity, name in names.items():
        if shown[name] > 1:
            names[identity] = printable(identity.removeprefix("path "))
    return names


def _cell(result: Result) -> tuple[Any, ...]:
    return (
        result.model,
        result.quantization,
        result.source,
        result.reading,
        result.method,
        result.ablation,
        result.task,
        result.scale,
        result.data,
    )


def _with_variants(results: Sequence[Result]) -> list[Result]:
    """The results with `setting` and `variant` set, for cells whose results of one seed differ in settings."""
    by_cell: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        by_cell.setdefault(_cell(result), []).append(result)
    settings: dict[Path, tuple[str, str]] = {}
    for here in by_cell.values():
        if len({result.seed for result in here}) == len(here):
            continue
        keys = _differing_settings(here)
        by_setting: dict[str, list[Result]] = {}
        for result in here:
            by_setting.setdefault(_setting(result, keys), []).append(result)
        if len(by_setting) > 1:
            weight = lambda found: (len({r.seed for r in found}), max(r.finished for r in found))
            first = max(by_setting, key=lambda one: weight(by_setting[one]))
            settings |= {r.path: (s, "" if s == first else s) for s, found in by_setting.items() for r in found}
    return [
        dataclasses.replace(result, setting=settings[result.path][0], variant=settings[result.path][1])
        if result.path in settings
        else result
        for result in results
    ]


def _differing_settings(results: Sequence[Result]) -> list[str]:
    """The config keys that differ between these results; a key that an earlier version lacked has its old meaning."""
    values: dict[str, set[str]] = {}
    for settings in {result.settings for result in results}:
        for key, value in settings or ():
            if not key.startswith(_NOT_WHAT):
                values.setdefault(key, set()).add(value)
    keys = sorted(key for key, found in values.items() if len(found) > 1)
    rates = {f"train.learning_rate.{name}" for name in ("initial", "annealing")}
    return [key for key in keys if key not in rates or "train.learning_rate.warmup" not in keys]


def _setting(result: Result, keys: Sequence[str]) -> str:
    own = dict(result.settings or ())
    shown = [f"{key.rpartition('.')[2]} {own.get(key, 'None').strip(chr(39)).replace('None', 'unset')}" for key in keys]
    return ", ".join(part.replace("warmup ", "learning rate ") for part in shown)


def _one_per_seed(results: list[Result]) -> tuple[list[Result], list[LeftOut]]:
    latest: dict[tuple[Any, ...], Result] = {}
    problems = []
    for result in results:
        key = (*_cell(result), result.setting, result.seed)
        kept = latest.setdefault(key, result)
        if kept is result:
            continue
        older, newer = sorted((kept, result), key=lambda r: r.finished)
        latest[key] = newer
        problems.append(LeftOut(older.path, f"is of the same cell and seed as {newer.path}, which finished later"))
    return list(latest.values()), problems


# --- reading ---


def _asked_for(settings: tuple[tuple[str, str], ...] | None) -> str | None:
    """The quantization in a run's config, for results of versions that did not record it."""
    asked = {key: value.strip("'") for key, value in settings or ()}
    kind = asked.get("model.quantization")
    if kind in (None, "auto", "none", "None"):
        return None
    more = (("double", "model.double_quantization"), ("wo", "model.quantize_wo"))
    return ",".join([kind, *(word for word, key in more if asked.get(key) == "True")])


class _Shared:
    """Interns equal texts and settings: ten thousand results repeat a few hundred of them."""

    def __init__(self) -> None:
        self.objects: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        return self.objects.setdefault(value, value)

    def alike(self, value: Any) -> Any:
        """The shared object of a value that is not hashable, such as a mapping, by its repr."""
        return self.objects.setdefault(repr(value), value)


def _result(file: Path, shared: _Shared) -> Result:
    record = RunRecord.read(file)
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    texts = {name: shared(value) for name, value in values.items() if isinstance(value, str)}
    mappings = {name: shared.alike(value) for name, value in values.items() if isinstance(value, Mapping)}
    return Result(path=file, **{**values, **texts, **mappings})


def _settings(file: Path, shared: _Shared) -> tuple[tuple[tuple[str, str], ...] | None, str | None]:
    """The settings and the path of the rows, from the config beside a result."""
    if not file.exists():
        return None, None
    config = read_object(file)
    data = config.get("data")
    path = data.get("path") if isinstance(data, dict) else None

    def flat(section: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
        for key, value in section.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif f"{prefix}{key}" not in _OF_THE_RUN_ALONE:
                yield printable(f"{prefix}{key}"), shortened(value)

    settings = shared(tuple(sorted((_MEANT_BEFORE | dict(flat(config, ""))).items())))
    return settings, shared(path) if isinstance(path, str) and path else None
