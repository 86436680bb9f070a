"""Orbax checkpoints of what training changes, never of the frozen base.

Orbax notices a missing or truncated file but not a changed byte, so a checkpoint carries a checksum of its contents.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
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

Saved = TypeVar("Saved")  # a dataclass of plain values: the run's progress


def _flatten_with_names(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under flat names, which stay readable in the checkpoint."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path): leaf
        for path, leaf in leaves
    }


# Orbax numbers the saves of a process across threads: two at once would wait for each other's files for ever.
_ONE_AT_A_TIME = threading.RLock()
_CHECKSUM = "checksum"  # stored beside the fields of the progress; checkpoints of earlier versions have none


def checksum(arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of named arrays and plain values, independent of the devices that the arrays are on."""
    names = sorted(arrays)
    # Arrays sharded over several processes are gathered, by all processes in the same order. Hashing releases the GIL.
    spread = [name for name in names if not _is_local(arrays[name])]
    digests = {name: _digest(host_copy(arrays[name])) for name in spread}
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        local = [name for name in names if name not in digests]
        digests |= zip(local, pool.map(lambda name: _digest(arrays[name]), local), strict=True)
    whole = [*([name, digests[name]] for name in names), dict(progress)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _is_local(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def _digest(leaf: Any) -> str:
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)  # a new array object, which alone holds the copy on the host
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check(arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raises `ValueError` if arrays and plain values do not match the checksum among the plain values."""
    plain = dict(plain)
    expected = plain.pop(_CHECKSUM, None)
    if expected is not None and checksum(arrays, plain) != expected:
        raise ValueError("its contents do not match its checksum")


class Checkpoints(Generic[Saved]):
    """The last two checkpoints of a run, each a tree of arrays and a `Saved`.

    Saving continues in the background, and an incomplete checkpoint is never visible. Where several runs have threads
    of their own, they save one after the other, and each waits until its checkpoint is written.
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
        """Starts to write a checkpoint, after waiting for the previous one.

        Args:
          number: identifies the state; a later state of the run has a larger number. An existing number is not written
            again.
          arrays: a tree of arrays.
          progress: the run's progress.

        Raises:
          RunFailed: this checkpoint or the previous one cannot be written, because the disk is full for example.
        """
        with self._explained(), _ONE_AT_A_TIME:
            self._manager.wait_until_finished()
            if number in self._manager.all_steps():
                return
            self._require_writable()
            named, plain = _flatten_with_names(arrays), dataclasses.asdict(typing.cast(Any, progress))
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
        """Raises `OSError` if the directory cannot be written; Orbax's threads would wait for minutes."""
        if not self._directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is no directory")
        if not os.access(self._directory, os.W_OK | os.X_OK):  # false on a read-only file system, for root, too
            raise PermissionError(errno.EACCES, "it may not be written to")

    def finish(self) -> None:
        """Waits until the last checkpoint is on disk. Raises `RunFailed` as `save` does."""
        with self._explained():
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, Saved] | None:
        """Reads the newest intact checkpoint.

        Damaged ones that are newer are reported and moved to `damaged/`, not deleted: the cause may lie elsewhere.

        Args:
          like: a tree of the expected structure, shapes, dtypes and shardings.

        Returns:
          Arrays and progress; None if there is no checkpoint.

        Raises:
          RunFailed: there are checkpoints, but none can be read; all stay where they are.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flatten_with_names(like))
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            # Processes agree twice: the checksum gathers arrays, so all of them compute it or none does.
            read, failure = agreed(lambda step=step: self._read(step, target))
            if read is not None:
                failure = agreed(lambda read=read: _check(read[0], read[2]))[1]
            if failure is not None:
                damaged[step] = first_line(failure, 200)
                continue
            assert read is not None, "a failed read has a reason"
            arrays, progress, _ = read
            self._move_damaged(damaged)
            leaves = [arrays[name] for name in _flatten_with_names(like)]
            return jax.tree.unflatten(jax.tree.structure(like), leaves), progress
        if damaged:
            raise RunFailed(
                f"no checkpoint in {self._directory} can be read; start again with --overwrite "
                f"({damaged[max(damaged)]})."
            )
        return None

    def _read(self, step: int, target: Mapping[str, Any]) -> tuple[Mapping[str, Any], Saved, dict[str, Any]]:
        """Reads arrays, progress, and the plain values of the progress with its checksum.

        For damaged files Orbax and TensorStore raise exceptions of many types.
        """
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a failed read leaves coroutines that were never awaited
            restored = self._manager.restore(step, args=args)
        plain = dict(restored["progress"])
        progress = self._progress_type(**{name: value for name, value in plain.items() if name != _CHECKSUM})
        return restored["arrays"], progress, plain

    def _move_damaged(self, damaged: Mapping[int, str]) -> None:
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
    """Turns the error of a failed write into a one-line `RunFailed` with what to do."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            reason = disk_trouble(error) or getattr(error, "strerror", None) or first_line(error)
            remedy = "solve this" if isinstance(error, NotADirectoryError | PermissionError) else "free some space"
            raise RunFailed(
                f"the checkpoint cannot be written to {self._directory} ({reason}); {remedy} and give the same command "
                "again: the run goes on from the checkpoint before."
            ) from None
