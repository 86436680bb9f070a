"""A run's directory: who works in it, which config it is of, and the files that the run leaves there."""

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from jpeft.errors import Busy, RunFailed, UserError
from jpeft.files import read_json_object, unfinished_target, write_whole
from jpeft.run.aside import NAME as REPLACED
from jpeft.run.aside import Aside
from jpeft.run.background import explain_disk_trouble, quiet_threads
from jpeft.run.processes import any_of, entered_by_first, is_first, wait_for_all
from jpeft.run.stop import RunStopped
from jpeft.typed_config import differences
from jpeft.words import counted, the_first

_LOCK = ".lock"
_LOCK_SECONDS = 0.5  # to try for: `is_claimed` holds the lock for an instant without being at work


def is_claimed(path: Path) -> bool:
    """Whether a process is at work in a run's directory, according to its lock.

    Raises:
      RunFailed: the file system does not tell.
    """
    try:
        with (path / _LOCK).open("r+") as lock:  # network file systems lock only files that are open for writing
            return not _lock(lock, seconds=0.0)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # without write access, no run can claim it either
        return False
    except OSError as error:
        raise RunFailed(f"{path} cannot be read ({error.strerror or error}).") from None


# Given a stored config and the current one, returns the stored one with defaults for keys that it lacks.
OfToday = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


def _as_it_is(config: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    return config


PAUSE_FILE = "paused.json"  # of a paused run, until it is finished
# Everything that a run, or the grid worker that executes it, leaves in its directory.
ENTRIES = (
    "checkpoint",
    "damaged",
    "adapter",
    "tensorboard",
    "tokenizer",
    "samples",
    "model",
    "result.json",
    "metrics.jsonl",
    "predictions.jsonl",
    "zero_shot.jsonl",
    "per_class.json",
    "worst_rows.jsonl",
    "learning_curve.png",
    "splits.json",
    "settled.json",
    PAUSE_FILE,
    "earlier",
    "failure.json",
    "progress.json",
    "log.txt",
    "config.json",
)
_NEW = ".new"
_START_AGAIN = "give --overwrite to run again from the start."
_ROWS_FROM = ("data.path", "data.source")
# What a run reads beside its rows, by its name in `splits.json`, and the message if its content has changed.
ORIGINS = {
    "base": "the weights or the config of model.name differ from those that it was run on",
    "tokenizer": "the tokenizer of model.name differs from the one that it was run with",
    "chat_template": "the template in data.chat_template differs from the one that it was run with",
    "chat_tokens": "texts in the chat template have other tokens than in the version of jpeft that it was run with",
    "from_adapter": "the adapter of method.from_adapter differs from the one that it started from",
    "metrics": "the file of a metric of your own differs from the one that it was judged by",
    "imported_by_metrics": "a file that a metric of your own imports differs from the one that it was judged by",
    "corpus": "the corpus of data.path differs from the one that it was run on",
    "start": "the model of model.start differs from the one that it started from",
    "vocabulary": "the tokenizer of tokenizer.path differs from the one that it was run with",
}
METRIC_ORIGINS = ("metrics", "imported_by_metrics")  # of functions that are metrics of the user's own
_ALWAYS_RECORDED = ("chat_tokens",)  # a run without them is of a version in which they were others
Origins = Callable[[], Mapping[str, str]]  # returns the fingerprints of what a run would read now


def what_differs(
    path: Path,
    before: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: Callable[[], str | None] | None = None,
    origins: Origins | None = None,
) -> list[str]:
    """Lists how the run in a directory differs from another run, one line each, as `typed_config.differences` does.

    Rows and the files of `ORIGINS` are compared by content. Other rows under the same path differ, and the same rows
    under another path do not. Nor do the metrics of a run that has not been tested, unless it follows one of them.

    Args:
      path: the directory.
      before: the `config.json` in it.
      config: the config of the other run.
      rows: returns the `rows_digest` of the rows that the other run would read now, or None if their names identify
        them. Called only if the directory records a digest; without a record, which early versions did not write, the
        names count.
      origins: likewise returns the fingerprints of what else the other run would read.
    """
    others = _origins_that_count(path, origins(), config) if origins is not None and has_work(path) else []
    return [*others, *_differs_by_config_or_rows(path, before, config, rows)]


def _awaits_its_test(path: Path) -> bool:
    """Whether the directory holds a run that goes on from a checkpoint, so that no metric has judged it yet."""
    return has_checkpoint(path) and not (path / "result.json").exists()


def _origins_that_count(path: Path, now: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """`other_origins`, without those that a run which goes on may have changed: metrics that it does not follow."""
    follows_own = ":" in str(config.get("train", {}).get("monitor"))
    if _awaits_its_test(path) and not follows_own:
        now = {name: digest for name, digest in now.items() if name not in METRIC_ORIGINS}
    return other_origins(path, now)


def other_origins(path: Path, now: Mapping[str, str]) -> list[str]:
    """Lists what the run in a directory read that has changed since; versions that recorded nothing count as unchanged.

    Those that recorded no `chat_tokens` had other ones than now.

    Args:
      path: the directory.
      now: the fingerprints of today.

    Raises:
      RunFailed: the record is damaged.
    """
    recorded = _recorded_splits(path).get("origins")
    recorded = recorded if isinstance(recorded, dict) else {}
    return [
        said
        for name, said in ORIGINS.items()
        if name in now and now[name] != recorded.get(name) and (name in recorded or name in _ALWAYS_RECORDED)
    ]


def _differs_by_config_or_rows(
    path: Path, before: Mapping[str, Any], config: Mapping[str, Any], rows: Callable[[], str | None] | None
) -> list[str]:
    changed = differences(before, config)
    if _awaits_its_test(path):
        changed = [line for line in changed if not line.startswith("eval.metrics:")]
    moved = [line for line in changed if line.startswith(_ROWS_FROM)]
    others = [line for line in changed if line not in moved]
    recorded = recorded_digest(path) if rows is not None and has_work(path) else None
    if recorded is None or rows is None or (others and not moved):
        return changed
    try:
        now = rows()
    except (UserError, RunFailed):
        if moved or not (path / "result.json").exists():
            raise
        return []  # a finished run no longer needs its rows
    if now is None:
        return changed
    return others if now == recorded else [*changed, "the rows differ from those that it was run on"]


def _only_longer(before: Mapping[str, Any], config: Mapping[str, Any], changed: Sequence[str]) -> bool:
    """Whether the run differs only in being longer: its epochs or its patience were raised."""
    lengths = ("max_epochs", "patience")
    if not {line.partition(":")[0] for line in changed} <= {f"train.{name}" for name in lengths}:
        return False
    pairs = [(before["train"][name], config["train"][name]) for name in lengths]
    return all(type(was) is int and type(now) is int and was <= now for was, now in pairs)


def recorded_digest(path: Path) -> str | None:
    """The digest of the rows that the run in a directory was trained on; None if it records none.

    Raises:
      RunFailed: `splits.json` is damaged, so that the rows are unknown.
    """
    digest = _recorded_splits(path).get("data_digest")
    if digest is None:  # a damaged result is reported where it is read
        with contextlib.suppress(UserError):
            digest = read_json_object(path / "result.json").get("data_digest")
    return digest if isinstance(digest, str) else None


def _recorded_splits(path: Path) -> dict[str, Any]:
    """A run's `splits.json`, empty if absent. Raises `RunFailed` if it is damaged."""
    file = path / "splits.json"
    return _read_own(file) if file.exists() else {}


def has_work(path: Path) -> bool:
    """Whether the directory holds a result, or a checkpoint to resume from."""
    return (path / "result.json").exists() or has_checkpoint(path)


def has_checkpoint(path: Path) -> bool:
    """Whether the directory holds a complete checkpoint; one that is being written has a longer name."""
    return any(entry.name.isdecimal() for entry in (path / "checkpoint").glob("*"))


def _lock(file: IO, *, seconds: float) -> bool:
    """Locks a file until it is closed, trying for `seconds`; returns False if another process holds the lock."""
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
    """The directory of one run: claims it for a config, and writes the run's files.

    A run that replaces another one (`--overwrite`, or the old one left nothing to resume) writes nothing before
    `begin`.

    Attributes:
      path: of the directory.
      longer_than: None; or, if this run continues the one in the directory with more epochs or patience, the old number
        of epochs. Known to the first process only.
    """

    def __init__(self, path: Path):
        self.path = path
        self._config: Mapping[str, Any] = {}
        self._replaces = False
        self.longer_than: int | None = None
        self._aside = Aside(path, ENTRIES)

    @property
    def staging(self) -> Path:
        """Where to write files before `begin`, which moves them in place.

        It is the directory itself, or `.new` in it while the run that is to be replaced is still there.
        """
        return self.path / _NEW if self._replaces else self.path

    @contextlib.contextmanager
    def claim(
        self,
        config: Mapping[str, Any],
        *,
        overwrite: bool,
        rows: Callable[[], str | None] | None = None,
        origins: Origins | None = None,
        of_today: OfToday = _as_it_is,
    ) -> Iterator[None]:
        """Holds the directory for this process, with this config, while the block runs.

        A run that is to be replaced stays untouched until `begin`, and is restored if the block ends by an error before
        the new run has a checkpoint.

        Args:
          config: of the run.
          overwrite: whether to replace a run that is there.
          rows, origins: as in `what_differs`.
          of_today: fills in the keys that the `config.json` of an earlier version lacks.

        Raises:
          Busy: another process is at work in the directory.
          UserError: the directory holds a run of another config, other rows or another base, or is not a run's
            directory.
          RunFailed: its `config.json` is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir {self.path} is a file; name a directory.")
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as lock:
            if not _lock(lock, seconds=_LOCK_SECONDS):
                raise Busy(f"another process is at work in {self.path}; wait for it or name another --workdir.")
            self._recover()
            self._take(config, overwrite=overwrite, rows=rows, origins=origins, of_today=of_today)
            try:
                yield
            except BaseException:
                if self._aside.holds_a_run() and not has_work(self.path):
                    self._aside.put_back()
                raise
            finally:
                shutil.rmtree(self.path / _NEW, ignore_errors=True)

    def _recover(self) -> None:
        """Repairs whatever a kill may have interrupted."""
        for entry in list(self.path.iterdir()):
            if unfinished_target(entry) in ENTRIES and entry.is_file():
                entry.unlink(missing_ok=True)
        self._aside.recover()
        if (self.path / "result.json").exists():
            self._aside.discard()
        elif self._aside.holds_a_run() and not has_work(self.path):
            self._aside.put_back()
        shutil.rmtree(self.path / _NEW, ignore_errors=True)

    def _take(
        self,
        config: Mapping[str, Any],
        *,
        overwrite: bool,
        rows: Callable[[], str | None] | None,
        origins: Origins | None,
        of_today: OfToday,
    ) -> None:
        self._config = config
        if not (self.path / "config.json").is_file():
            if any(entry.name not in (_LOCK, REPLACED) for entry in self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and holds no run; name another --workdir.")
            self.write_json("config.json", config)
            return
        if overwrite:
            self._replaces = True
            return
        before = of_today(_read_own(self.path / "config.json"), config)
        changed = what_differs(self.path, before, config, rows, origins)
        # A run that ended before its first checkpoint has nothing to lose, so that it may be replaced.
        self._replaces = bool(changed) and not has_work(self.path)
        if changed and has_checkpoint(self.path) and _only_longer(before, config, changed):
            self._check_longer(config)
            self.longer_than = before["train"]["max_epochs"]
        elif changed and not self._replaces:
            raise UserError(
                f"{self.path} holds a run of another config ({the_first(changed)}); name another --workdir, or give "
                "--overwrite."
            )
        if not changed and before != config and not (self.path / "result.json").exists():
            self.write_json("config.json", config)

    def begin(self, data_digest: str | None = None, origins: Mapping[str, str] | None = None) -> None:
        """Lets the run write from here on; to be called once everything that can be checked has been checked.

        Args:
          data_digest: `rows_digest` of the rows about to be used, if any.
          origins: fingerprints of what else is about to be used.

        Raises:
          UserError: the checkpoints in the directory are of other rows, or of another base.
          RunFailed: the record of rows and origins is damaged or missing.
        """
        if is_first():
            if self._replaces:
                self._aside.take()
                self.write_json("config.json", self._config)
                if self.staging.is_dir():
                    for path in self.staging.iterdir():
                        path.rename(self.path / path.name)
                self._replaces = False
            elif self.longer_than is not None:
                self._check_content(data_digest, origins or {})
                self._reopen(self.longer_than)
            elif has_work(self.path):
                self._check_content(data_digest, origins or {})
        wait_for_all("the run's directory is taken over")

    def _check_content(self, data_digest: str | None, origins: Mapping[str, str]) -> None:
        if data_digest is not None and not (self.path / "splits.json").exists():
            raise RunFailed(f"{self.path} has lost its splits.json, which records the rows of the run; {_START_AGAIN}")
        if others := _origins_that_count(self.path, origins, self._config):
            raise UserError(
                f"{self.path} holds another run ({the_first(others)}); name another --workdir, or give --overwrite."
            )
        if len({recorded_digest(self.path), data_digest} - {None}) > 1:
            raise UserError(f"{self.path} holds a run of other rows; name another --workdir, or give --overwrite.")

    def _check_longer(self, config: Mapping[str, Any]) -> None:
        """Raises `UserError` if more epochs would train nothing, because the finished run had stopped early."""
        if not (self.path / "result.json").exists():
            return
        result, patience = _read_own(self.path / "result.json"), config["train"]["patience"]
        epochs, best = result.get("epochs_run"), result.get("best_epoch")
        if isinstance(epochs, int) and isinstance(best, int) and epochs - 1 - best >= patience:
            raise UserError(
                f"{self.path} ended after {counted(epochs, 'epoch')} since {result.get('monitor', 'validation/loss')} "
                f"became no better after epoch {best}; more epochs alone change nothing: give "
                f"--config.train.patience={epochs - best} or more, too."
            )

    def _reopen(self, epochs: int) -> None:
        """Makes a finished run unfinished again: stores the new config, and moves the result to `earlier/`."""
        result = self.path / "result.json"
        if result.exists():
            (self.path / "earlier").mkdir(exist_ok=True)
            result.replace(self.path / "earlier" / f"result_{epochs}_epochs.json")
        self.write_json("config.json", self._config)

    def trained_for(self) -> list[int]:
        """The numbers of epochs after which the run was finished before it was continued with more."""
        names = (path.stem.split("_") for path in (self.path / "earlier").glob("result_*_epochs.json"))
        return sorted(int(parts[1]) for parts in names if parts[1].isdecimal())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`, and deletes the run that this one has replaced."""
        self.write_json("result.json", result)
        if is_first():
            (self.path / PAUSE_FILE).unlink(missing_ok=True)
            self._aside.discard()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file atomically. A no-op in all processes but the first."""
        if not is_first():
            return
        with write_whole(self.path / name) as beside:
            beside.write_text(json.dumps(value, indent=2) + "\n")

    def settled(self) -> dict[str, Any] | None:
        """What each `auto` of a run that is resumed was resolved to (`settled.json`); None if there is no such run.

        To be called by the first process only. Raises `RunFailed` if the file is damaged.
        """
        file = self.path / "settled.json"
        return None if self._replaces or not file.is_file() else _read_own(file)

    def read_result(self) -> dict[str, Any] | None:
        """The content of `result.json`; None if the run is not finished or is about to be executed again.

        Raises:
          RunFailed: the file is damaged, or was not written by a run.
        """
        file = self.path / "result.json"
        if self._replaces or self.longer_than is not None or not file.is_file():
            return None
        result = _read_own(file)
        if result.get("status") != "done":
            raise RunFailed(f"{file} is of no finished run; {_START_AGAIN}")
        return result


def run_once(
    workdir: Path,
    config: Mapping[str, Any],
    work: Callable[[RunDirectory], dict[str, Any]],
    *,
    overwrite: bool,
    report: Callable[[str], None],
    rows: Callable[[], str | None] | None = None,
    origins: Origins | None = None,
    of_today: OfToday = _as_it_is,
) -> dict[str, Any]:
    """Claims a directory, calls `work` in it and returns its result; if the run is finished, returns that result.

    Args:
      workdir: the directory.
      config: of the run.
      work: calls `begin` of the directory that it is given, and `finish` with its result.
      overwrite: whether to replace a run that is there.
      report: called with a line if the run is finished.
      rows, origins, of_today: as in `RunDirectory.claim`.

    Raises:
      UserError: as `RunDirectory.claim` does.
      RunFailed: the disk is full, or `work` failed.
    """
    directory = RunDirectory(workdir)
    claim = entered_by_first(
        directory.claim(config, overwrite=overwrite, rows=rows, origins=origins, of_today=of_today)
    )
    with explain_disk_trouble(workdir), claim, quiet_threads():
        if not (workdir / "config.json").is_file():
            raise UserError(f"process {jax.process_index()} does not see {workdir}; name a directory that all share.")
        result = directory.read_result() if is_first() else None  # only the first process knows whether to replace it
        if any_of([result is not None])[0]:
            report(f"{workdir} is finished; give --overwrite to run it again.")
            return result or directory.read_result() or {}
        try:
            return work(directory)
        except RunStopped as stopped:
            if not overwrite:
                raise
            raise RunStopped(stopped.state, overwrite=True) from None


def _read_own(path: Path) -> dict[str, Any]:
    """Reads a JSON object that a run wrote. Raises `RunFailed` if it has been damaged since."""
    try:
        return read_json_object(path)
    except UserError as error:
        raise RunFailed(f"{path} is damaged ({error}); {_START_AGAIN}") from None
