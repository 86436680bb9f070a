"""Orbax checkpoints of what training changes: never of the frozen base.

Orbax finds a file that is cut short or gone; a byte that has changed on the disk it does not, so a checkpoint carries a
checksum of what was saved.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from jpeft.errors import RunFailed
from jpeft.run.background import disk_trouble
from jpeft.run.processes import agreed, host_copy, is_first, wait_for_all
from jpeft.trouble import first_line

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports each save at length, each failure at more


Saved = TypeVar("Saved")  # a dataclass of plain values: how far the run is


def _named(tree: Any) -> dict[str, Any]:
    """Leaves of a tree under flat names, which a reader of the checkpoint understands."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path): leaf
        for path, leaf in leaves
    }


# Orbax numbers what a process saves, whoever in it does: two at once would wait for each other's files for ever.
_ONE_AT_A_TIME = threading.RLock()
_CHECKSUM = "checksum"  # beside the fields of the progress; checkpoints of earlier versions have none


def checksum(arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of named arrays and of plain values, whatever devices the arrays are on."""
    names = sorted(arrays)
    # Threads: hashing does not hold Python's lock. An array over several processes is gathered, by all of them at once.
    spread = [name for name in names if not _is_here(arrays[name])]
    digests = {name: _digest_of(host_copy(arrays[name])) for name in spread}
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        here = [name for name in names if name not in digests]
        digests |= zip(here, pool.map(lambda name: _digest_of(arrays[name]), here), strict=True)
    whole = [*([name, digests[name]] for name in names), dict(progress)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _is_here(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def _digest_of(leaf: Any) -> str:
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)  # an array of its own: the copy on the host goes with it
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check(arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raises `ValueError`: arrays and plain values are not those whose checksum stands among the plain values."""
    plain = dict(plain)
    expected = plain.pop(_CHECKSUM, None)
    if expected is not None and checksum(arrays, plain) != expected:
        raise ValueError("what it holds is not what was saved: its checksum is another")


class Checkpoints(Generic[Saved]):
    """The last two checkpoints of a run. Saving goes on in the background; a half-written one is never seen.

    A checkpoint is a tree of arrays and a `Saved`. Where runs have threads of their own, one saves after the other, and
    each waits until it is written.
    """

    def __init__(self, directory: Path, progress_type: Callable[..., Saved], *, report: Callable[[str], None]):
        self._directory = directory
        self._progress_type = progress_type
        self._report = report
        # Absolute, as Orbax wants it.
        with _ONE_AT_A_TIME:
            self._manager = ocp.CheckpointManager(
                directory.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
            )

    def save(self, number: int, arrays: Any, progress: Saved) -> None:
        """Starts to write; waits first for the one before. A later state of the run has a higher `number`.

        Raises:
          RunFailed: this one or the one before cannot be written, because the disk is full for example.
        """
        with self._explained(), _ONE_AT_A_TIME:
            self._manager.wait_until_finished()
            if number in self._manager.all_steps():
                return
            self._require_writable()
            named, plain = _named(arrays), dataclasses.asdict(typing.cast(Any, progress))
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(named),
                    progress=ocp.args.JsonSave({**plain, _CHECKSUM: checksum(named, plain)}),
                ),
            )
            if threading.current_thread() is not threading.main_thread():
                self._manager.wait_until_finished()

    def _require_writable(self) -> None:
        """Raises `OSError`, before Orbax has threads at work that would wait minutes for a directory never made."""
        if not self._directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is no directory")
        if not os.access(self._directory, os.W_OK | os.X_OK):  # false on a read-only file system, for root, too
            raise PermissionError(errno.EACCES, "it may not be written to")

    def finish(self) -> None:
        """Waits until what was saved is on disk. Raises `RunFailed` as `save`."""
        with self._explained():
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, Saved] | None:
        """Arrays and progress of the newest checkpoint that can be read, or None when there is none.

        Newer ones that cannot are set aside, under `damaged/`, and reported: why one could not be read may be
        something else than the file.

        Raises:
          RunFailed: there are checkpoints and none can be read; all stay where they are.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            # Two agreements: in between the checksum is made, of spread arrays by all processes together or by none.
            read, failure = agreed(lambda step=step: self._read(step, target))
            if read is not None:
                failure = agreed(lambda read=read: _check(read[0], read[2]))[1]
            if failure is not None:
                damaged[step] = first_line(failure, 200)
                continue
            assert read is not None, "what cannot be read has a reason"
            arrays, progress, _ = read
            self._set_aside(damaged)
            leaves = [arrays[name] for name in _named(like)]
            return jax.tree.unflatten(jax.tree.structure(like), leaves), progress
        if damaged:
            raise RunFailed(
                f"no checkpoint in {self._directory} can be read; start again with --overwrite "
                f"({damaged[max(damaged)]})."
            )
        return None

    def _read(self, step: int, target: Mapping[str, Any]) -> tuple[Mapping[str, Any], Saved, dict[str, Any]]:
        """Arrays, progress, and that as the plain values that were saved, the checksum among them.

        Orbax and TensorStore raise many types for damaged files.
        """
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where Orbax fails it leaves coroutines behind
            restored = self._manager.restore(step, args=args)
        plain = dict(restored["progress"])
        progress = self._progress_type(**{name: value for name, value in plain.items() if name != _CHECKSUM})
        return restored["arrays"], progress, plain

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        for step, reason in damaged.items():
            place = self._directory.parent / "damaged" / str(step)
            if is_first():
                shutil.rmtree(place, ignore_errors=True)
                place.parent.mkdir(exist_ok=True)
                (self._directory / str(step)).rename(place)
            self._report(f"a checkpoint cannot be read and is set aside in {place}, the one before is used ({reason})")
        if damaged:
            wait_for_all("damaged checkpoints are set aside")
            self._manager.reload()

    def close(self) -> None:
        """Ends the background threads."""
        self._manager.close()

    def _explained(self) -> "_Explained":
        return _Explained(self._directory)


class _Explained:
    """Turns whatever a failed write raises into one line that says what to do."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            reason = disk_trouble(error) or getattr(error, "strerror", None) or first_line(error)
            mend = "mend that" if isinstance(error, NotADirectoryError | PermissionError) else "free some space"
            raise RunFailed(
                f"the checkpoint cannot be written to {self._directory} ({reason}); {mend} and give the same command "
                "again: the run goes on from the checkpoint before."
            ) from None
