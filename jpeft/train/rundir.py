"""A run's directory: whose it is, what was measured, what came out (DESIGN section 7)."""

import contextlib
import fcntl
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from jpeft.config import differences
from jpeft.data.batches import Tokens
from jpeft.data.tasks import Example
from jpeft.errors import Busy, RunFailed, UserError
from jpeft.files import write_whole
from jpeft.mesh.processes import any_of, entered_by_first, is_first
from jpeft.train.background import explain_disk_trouble, quiet_threads

_LOCK = ".lock"
_LONGEST_LOOK = 0.5  # seconds; `is_claimed` holds the lock for an instant, which must not pass for a process at work


def is_claimed(path: Path) -> bool:
    """Whether a process holds the directory."""
    try:
        with (path / _LOCK).open("r+") as lock:  # network file systems lock only what may be written
            return not _lock(lock, seconds=0.0)
    except FileNotFoundError:
        return False


def has_work(path: Path) -> bool:
    """Whether a run left anything in the directory that its repetition could use: a result or a checkpoint."""
    return (path / "result.json").exists() or any((path / "checkpoint").glob("*"))


def _lock(file: IO, *, seconds: float) -> bool:
    """Locks a file until it is closed, trying for so long; false where another process has it."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


class RunDirectory:
    """Opens or makes a directory for one run's config, and writes what the run finds."""

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def claim(self, config: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Holds the directory for this process, with this config.

        Raises:
          Busy: another process is at work in it.
          UserError: it holds a run of another config, or it is no run's directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir {self.path} is a file; name a directory.")
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("w") as lock:
            if not _lock(lock, seconds=_LONGEST_LOOK):
                raise Busy(f"another process is at work in {self.path}; wait for it or name another --workdir.")
            self._take(config, overwrite=overwrite)
            yield

    def _take(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        file = self.path / "config.json"
        if file.is_file():
            # A run that ended before its first checkpoint has nothing to lose: its directory is free for the next try.
            changed = differences(_read_json(file), config)
            if changed and has_work(self.path) and not overwrite:
                shown = "; ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
                raise UserError(
                    f"{self.path} holds a run of another config ({shown}); name another --workdir, or give --overwrite."
                )
            if overwrite or changed:
                self._clear()
        elif any(entry.name != _LOCK for entry in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run; name another --workdir.")
        self.write_json("config.json", config)

    def _clear(self) -> None:
        for name in ("checkpoint", "damaged", "adapter", "tensorboard", "tokenizer", "samples", "model"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (
            "result.json",
            "metrics.jsonl",
            "predictions.jsonl",
            "zero_shot.jsonl",
            "per_class.json",
            "worst_rows.jsonl",
            "learning_curve.png",
            "splits.json",
            "failure.json",
            "log.txt",
            "config.json",
        ):
            (self.path / name).unlink(missing_ok=True)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes one JSON file, whole or not at all."""
        if not is_first():
            return
        with write_whole(self.path / name) as beside:
            beside.write_text(json.dumps(value, indent=2) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """`result.json`, or None when the run has not finished."""
        file = self.path / "result.json"
        return _read_json(file) if file.is_file() else None

    def write_predictions(
        self, name: str, examples: Sequence[Example], predictions: Sequence[str], scores: Sequence[float]
    ) -> None:
        """One line per test row: id, input, target, prediction, score."""
        if not is_first():
            return
        with write_whole(self.path / name) as beside, beside.open("w") as file:
            for example, prediction, score in zip(examples, predictions, scores, strict=True):
                line = {"id": example.id, "input": example.input, "target": example.target}
                file.write(json.dumps({**line, "prediction": prediction, "score": score}, ensure_ascii=False) + "\n")


def run_once(
    workdir: Path,
    config: Mapping[str, Any],
    work: Callable[[RunDirectory], dict[str, Any]],
    *,
    overwrite: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Does `work` in its directory, claimed for it, and returns its result; what is finished is not done again.

    Raises:
      UserError: as `RunDirectory.claim`.
      RunFailed: the disk is full, or `work` failed.
    """
    directory = RunDirectory(workdir)
    claim = entered_by_first(directory.claim(config, overwrite=overwrite))
    with explain_disk_trouble(workdir), claim, quiet_threads():
        if not (workdir / "config.json").is_file():
            raise UserError(f"process {jax.process_index()} does not see {workdir}; name a directory that all share.")
        result = directory.read_result()
        if any_of([result is not None])[0]:
            report(f"{workdir} is finished; give --overwrite to run it again.")
            return result or {}
        return work(directory)


class NoLog:
    """In the place of a `MetricsLog` where another process writes it."""

    def step(self, **values: float | int) -> None:
        """Records nothing."""

    def validation(self, **values: float | int) -> None:
        """Records nothing."""

    def close(self) -> None:
        """Nothing is open."""


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events: one record per optimizer step and one per validation.

    A resumed run first drops the records after its checkpoint, those that `keep` is false of, so that no step stands
    there twice.
    """

    def __init__(self, directory: Path, *, steps_done: int, keep: Callable[[Mapping[str, Any]], bool]):
        self._path = directory / "metrics.jsonl"
        kept = [line for line in _whole_lines(self._path) if keep(json.loads(line))]
        with write_whole(self._path) as beside:
            beside.write_text("".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a")
        self._events_directory = directory / "tensorboard"
        self._purge_step = steps_done + 1 if steps_done else None

    @functools.cached_property
    def _events(self) -> Any:
        """Made at the first record."""
        with _hidden("torch"):  # loaded by tensorboardX for the sake of one annotation, which takes a second
            from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._events_directory), purge_step=self._purge_step)

    def step(self, *, step: int, **values: float | int) -> None:
        """Records one optimizer step, counted from 1."""
        self._write("train", step, {"step": step, **values})

    def validation(self, *, steps_done: int, **values: float | int) -> None:
        """Records a validation after so many steps."""
        self._write("validation", steps_done, {"steps_done": steps_done, **values})

    def close(self) -> None:
        self._file.close()
        if "_events" in vars(self):
            with contextlib.suppress(OSError):  # on a full disk: what it held back is in metrics.jsonl too
                self._events.close()

    def _write(self, group: str, at: int, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, float):  # integers say where the record belongs
                self._events.add_scalar(f"{group}/{name}", value, at)


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within it a module that is not loaded yet seems not to be installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # what `import` takes for "not found"  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[module]


def _whole_lines(path: Path) -> list[str]:
    """Lines of a JSON lines file, without a last one that a kill cut short."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [line for line in lines[:-1] if line]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise RunFailed(f"{path} is damaged; give --overwrite to run again from the start.") from None


def data_record(
    row_ids: Mapping[str, list[str]], tokens: Mapping[str, Tokens], shapes: Sequence[Any]
) -> dict[str, Any]:
    """`splits.json`: row ids of every split, what was cut, the padded shapes."""
    return {
        "rows": dict(row_ids),
        "cut": {name: {"inputs": part.cut_inputs, "targets": part.cut_targets} for name, part in tokens.items()},
        "shapes": [list(shape) for shape in shapes],
    }
