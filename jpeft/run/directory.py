"""A run's directory: whose it is, what was measured, what came out."""

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from jpeft.errors import Busy, RunFailed, Stopped, UserError
from jpeft.files import read_json_object, unfinished_target, write_whole
from jpeft.run.aside import NAME as REPLACED
from jpeft.run.aside import Aside
from jpeft.run.background import explain_disk_trouble, quiet_threads
from jpeft.run.processes import any_of, entered_by_first, is_first, wait_for_all
from jpeft.typed_config import differences
from jpeft.words import counted, the_first

_LOCK = ".lock"
_LONGEST_LOOK = 0.5  # seconds; `is_claimed` holds the lock for an instant, which must not pass for a process at work


def is_claimed(path: Path) -> bool:
    """Whether a process is at work in a run's directory, by its lock.

    Raises:
      RunFailed: the file system does not say.
    """
    try:
        with (path / _LOCK).open("r+") as lock:  # network file systems lock only what may be written
            return not _lock(lock, seconds=0.0)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # not ours to write to, so not to hold either
        return False
    except OSError as error:
        raise RunFailed(f"{path} cannot be looked at ({error.strerror or error}).") from None


# A stored config, and the one asked for, to the stored one with every key of today's.
OfToday = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


def _as_it_is(config: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    return config


PAUSE_FILE = "paused.json"  # of a run that waits, until it is finished
# All that a run, or the worker of a grid that does it, leaves in its directory.
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
_SAME = "the same command"  # as who was stopped says it
_ANEW = "give --overwrite to run again from the start."
_ROWS_FROM = ("data.path", "data.source")
# What a run reads beside its rows and knows by content, as `splits.json` calls it, and what messages say of another.
ORIGINS = {
    "base": "the weights or the config of model.name are others than those it was run on",
    "tokenizer": "the tokenizer of model.name is another than the one it was run with",
    "chat_template": "the file of data.chat_template holds another template than the one it was run with",
    "from_adapter": "the adapter of method.from_adapter is another than the one it started from",
    "corpus": "the corpus of data.path is another than the one it was run on",
    "start": "the model of model.start is another than the one it started from",
    "vocabulary": "the tokenizer of tokenizer.path is another than the one it was run with",
}
Origins = Callable[[], Mapping[str, str]]  # fingerprints of what a run would read now, those that can be had


def what_differs(
    path: Path,
    before: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: Callable[[], str | None] | None = None,
    origins: Origins | None = None,
) -> list[str]:
    """What tells the run in a directory from another one, as `differences` says it, with rows known by their content.

    So are those of `ORIGINS`, where their names are the same.

    Args:
      before: the `config.json` of the run that is there.
      rows: `rows_digest` of what the other run would read now, or None where that is known to be the same if it is
        called the same. Asked only where the run that is there says which rows it is of; of versions that did not,
        where the rows lay has to be the same.
      origins: likewise of what else the other run would read.
    """
    others = other_origins(path, origins()) if origins is not None and has_work(path) else []
    return [*others, *_differs_by_config_or_rows(path, before, config, rows)]


def other_origins(path: Path, now: Mapping[str, str]) -> list[str]:
    """What the run in a directory was made of that is another now; earlier versions recorded nothing of it.

    Raises:
      RunFailed: what it recorded is damaged.
    """
    recorded = _recorded_splits(path).get("origins")
    recorded = recorded if isinstance(recorded, dict) else {}
    return [said for name, said in ORIGINS.items() if len({recorded.get(name), now.get(name)} - {None}) > 1]


def _differs_by_config_or_rows(
    path: Path, before: Mapping[str, Any], config: Mapping[str, Any], rows: Callable[[], str | None] | None
) -> list[str]:
    changed = differences(before, config)
    moved = [line for line in changed if line.startswith(_ROWS_FROM)]
    recorded = recorded_digest(path) if rows is not None and has_work(path) else None
    if recorded is None or rows is None or len(moved) < len(changed):
        return changed
    try:
        now = rows()
    except (UserError, RunFailed):
        if moved or not (path / "result.json").exists():
            raise
        return []  # a finished run needs its rows no more
    if now is None:
        return moved
    return [] if now == recorded else [*moved, "the rows are others than those it was run on"]


def _only_longer(before: Mapping[str, Any], config: Mapping[str, Any], changed: Sequence[str]) -> bool:
    """Whether all that differs is that the run is to train on: its epochs or its patience raised."""
    lengths = ("max_epochs", "patience")
    if not {line.partition(":")[0] for line in changed} <= {f"train.{name}" for name in lengths}:
        return False
    pairs = [(before["train"][name], config["train"][name]) for name in lengths]
    return all(type(was) is int and type(now) is int and was <= now for was, now in pairs)


def recorded_digest(path: Path) -> str | None:
    """The digest of the rows that the run in this directory was trained on; None if it does not record one.

    Raises:
      RunFailed: `splits.json` is damaged: it may be of any rows.
    """
    digest = _recorded_splits(path).get("data_digest")
    if digest is None:  # whoever reads the result says where that is damaged
        with contextlib.suppress(UserError):
            digest = read_json_object(path / "result.json").get("data_digest")
    return digest if isinstance(digest, str) else None


def _recorded_splits(path: Path) -> dict[str, Any]:
    """A run's `splits.json`; empty where it is not there. Raises `RunFailed`: it is damaged."""
    file = path / "splits.json"
    return _read_own(file) if file.exists() else {}


def has_work(path: Path) -> bool:
    """Whether a run left anything in the directory that its repetition could use: a result or a checkpoint."""
    return (path / "result.json").exists() or has_checkpoint(path)


def has_checkpoint(path: Path) -> bool:
    """Whether a run left a whole checkpoint in the directory; one that is being written has a longer name."""
    return any(entry.name.isdecimal() for entry in (path / "checkpoint").glob("*"))


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
    """Opens or makes a directory for one run's config, and writes what the run finds.

    A run that replaces another (`--overwrite`, or what was there had come to nothing) writes nothing before `begin`.

    Attributes:
      longer_than: the epochs at most of the run that is there, where this one is the same with more of them, or with
        more patience, and so goes on from its checkpoint; known to the first process.
    """

    def __init__(self, path: Path):
        self.path = path
        self._config: Mapping[str, Any] = {}
        self._replaces = False
        self.longer_than: int | None = None
        self._aside = Aside(path, ENTRIES)

    @property
    def staging(self) -> Path:
        """Where to write what has to be there before `begin`, which moves it in place: the directory itself, or `.new`
        in it where the run that it replaces is still there."""
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
        """Holds the directory for this process, with this config.

        A run that is to be replaced stays as it is until `begin`, and is put back when the block ends by an error
        before the new one has a checkpoint.

        Args:
          rows, origins: as of `what_differs`.
          of_today: reads the `config.json` that is there, which an earlier version may have written.

        Raises:
          Busy: another process is at work in it.
          UserError: it holds a run of another config, of other rows or another base, or it is no run's directory.
          RunFailed: its `config.json` is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir {self.path} is a file; name a directory.")
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as lock:
            if not _lock(lock, seconds=_LONGEST_LOOK):
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
        """Leaves the directory as it has to be after whatever a kill may have cut short."""
        for entry in list(self.path.iterdir()):
            if unfinished_target(entry) in ENTRIES and entry.is_file():
                entry.unlink(missing_ok=True)
        self._aside.mend()
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
        # A run that ended before its first checkpoint has nothing to lose: its directory is free for the next try.
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
        """To be called when all that can be checked is checked: from here on the run may write.

        Args:
          data_digest: `rows_digest` of the rows that it is about to use, where it has such.
          origins: fingerprints of what else it is about to use.

        Raises:
          UserError: the checkpoints that are there are of other rows, or of another base.
          RunFailed: what says so is damaged or gone.
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
        wait_for_all("the run's directory is its own")

    def _check_content(self, data_digest: str | None, origins: Mapping[str, str]) -> None:
        if data_digest is not None and not (self.path / "splits.json").exists():
            raise RunFailed(f"{self.path} has lost its splits.json, which says of which rows it is; {_ANEW}")
        if others := other_origins(self.path, origins):
            raise UserError(
                f"{self.path} holds another run ({the_first(others)}); name another --workdir, or give --overwrite."
            )
        if len({recorded_digest(self.path), data_digest} - {None}) > 1:
            raise UserError(f"{self.path} holds a run of other rows; name another --workdir, or give --overwrite.")

    def _check_longer(self, config: Mapping[str, Any]) -> None:
        """Raises `UserError` where more epochs would train nothing: the run ended because it became no better."""
        if not (self.path / "result.json").exists():
            return
        result, patience = _read_own(self.path / "result.json"), config["train"]["patience"]
        epochs, best = result.get("epochs_run"), result.get("best_epoch")
        if isinstance(epochs, int) and isinstance(best, int) and epochs - 1 - best >= patience:
            raise UserError(
                f"{self.path} ended after {counted(epochs, 'epoch')} since {result.get('monitor', 'validation/loss')} "
                f"became no better after epoch {best}; more epochs alone change nothing: give "
                f"--config.train.patience={epochs - best + 1} or more, too."
            )

    def _reopen(self, epochs: int) -> None:
        """The run is not finished any more: its config is the new one, what it had found is kept in `earlier/`."""
        result = self.path / "result.json"
        if result.exists():
            (self.path / "earlier").mkdir(exist_ok=True)
            result.replace(self.path / "earlier" / f"result_{epochs}_epochs.json")
        self.write_json("config.json", self._config)

    def trained_for(self) -> list[int]:
        """How many epochs it was allowed each time before it was asked to train on."""
        names = (path.stem.split("_") for path in (self.path / "earlier").glob("result_*_epochs.json"))
        return sorted(int(parts[1]) for parts in names if parts[1].isdecimal())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`; a run that this one has replaced goes now."""
        self.write_json("result.json", result)
        if is_first():
            (self.path / PAUSE_FILE).unlink(missing_ok=True)
            self._aside.discard()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes one JSON file, whole or not at all."""
        if not is_first():
            return
        with write_whole(self.path / name) as beside:
            beside.write_text(json.dumps(value, indent=2) + "\n")

    def settled(self) -> dict[str, Any] | None:
        """`settled.json`: what the run that goes on here has made of each `auto`; None where none has begun.

        The first process alone is to ask. Raises `RunFailed`: it is damaged.
        """
        file = self.path / "settled.json"
        return None if self._replaces or not file.is_file() else _read_own(file)

    def read_result(self) -> dict[str, Any] | None:
        """`result.json`, or None when the run has not finished, or is about to be done again.

        Raises:
          RunFailed: it is damaged, or not what a run writes.
        """
        file = self.path / "result.json"
        if self._replaces or self.longer_than is not None or not file.is_file():
            return None
        result = _read_own(file)
        if result.get("status") != "done":
            raise RunFailed(f"{file} is of no finished run; {_ANEW}")
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
    """Does `work` in its directory, claimed for it, and returns its result; what is finished is not done again.

    Args:
      work: calls `begin` of its directory, and `finish` with the result.
      rows, origins, of_today: as of `RunDirectory.claim`.

    Raises:
      UserError: as `RunDirectory.claim`.
      RunFailed: the disk is full, or `work` failed.
    """
    directory = RunDirectory(workdir)
    claim = entered_by_first(
        directory.claim(config, overwrite=overwrite, rows=rows, origins=origins, of_today=of_today)
    )
    with explain_disk_trouble(workdir), claim, quiet_threads():
        if not (workdir / "config.json").is_file():
            raise UserError(f"process {jax.process_index()} does not see {workdir}; name a directory that all share.")
        result = directory.read_result() if is_first() else None  # the first alone knows whether it is to be replaced
        if any_of([result is not None])[0]:
            report(f"{workdir} is finished; give --overwrite to run it again.")
            return result or directory.read_result() or {}
        try:
            return work(directory)
        except Stopped as stopped:  # given again, `--overwrite` begins again
            said = str(stopped)
            raise Stopped(said.replace(_SAME, f"{_SAME}, without --overwrite,") if overwrite else said) from None


def _read_own(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote; anything may have happened to it since."""
    try:
        return read_json_object(path)
    except UserError as error:
        raise RunFailed(f"{path} is damaged ({error}); {_ANEW}") from None
