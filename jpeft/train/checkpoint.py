"""Orbax checkpoints of what training changes: never of the frozen base."""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from jpeft.errors import RunFailed
from jpeft.train.background import disk_trouble
from jpeft.train.step import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports each save at length, each failure at more


@dataclasses.dataclass
class Progress:
    """Where a run is, beside its arrays: what a restarted run has to know to go on as if it had never stopped."""

    epoch: int = 0
    step_in_epoch: int = 0
    stopped: bool = False
    best_epoch: int | None = None
    best_loss: float | None = None
    validation_losses: list[float] = dataclasses.field(default_factory=list)
    zero_shot: dict[str, float] | None = None
    train_tokens: int = 0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.0, "validation": 0.0, "test": 0.0, "compile": 0.0}
    )
    started: str = ""


@dataclasses.dataclass
class Snapshot:
    """All that a checkpoint holds. `best` is the adapter of the lowest validation loss so far."""

    state: TrainState
    best: nnx.State
    progress: Progress


def _named(tree: Any) -> dict[str, Any]:
    """Leaves of a tree under flat names, which a reader of the checkpoint understands."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path): leaf
        for path, leaf in leaves
    }


class Checkpoints:
    """The last two checkpoints of a run. Saving goes on in the background; a half-written one is never seen."""

    def __init__(self, directory: Path, *, report: Callable[[str], None]):
        self._directory = directory
        self._report = report
        # Absolute, as Orbax wants it.
        self._manager = ocp.CheckpointManager(directory.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2))

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write; waits first for the one before.

        Raises:
          RunFailed: this one or the one before can not be written, because the disk is full for example.
        """
        arrays = {"state": snapshot.state, "best": snapshot.best}
        step = int(snapshot.state.step) * 2 + (snapshot.progress.step_in_epoch == 0)
        with self._explained():
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(_named(arrays)),
                    progress=ocp.args.JsonSave(dataclasses.asdict(snapshot.progress)),
                ),
            )

    def finish(self) -> None:
        """Waits until what was saved is on disk. Raises `RunFailed` as `save`."""
        with self._explained():
            self._manager.wait_until_finished()

    def restore(self, like: Snapshot) -> Snapshot | None:
        """The newest checkpoint that can be read, or None when there is none.

        Newer ones that can not are set aside, under `damaged/`, and reported: why one could not be read may be
        something else than the file.

        Raises:
          RunFailed: there are checkpoints and none can be read; all stay where they are.
        """
        arrays = {"state": like.state, "best": like.best}
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(arrays))
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
            try:
                restored = self._manager.restore(step, args=args)
                progress = Progress(**restored["progress"])
            except Exception as error:  # Orbax and TensorStore raise many types for damaged files
                damaged[step] = str(error).partition("\n")[0][:200]
                continue
            self._set_aside(damaged)
            leaves = [restored["arrays"][name] for name in _named(arrays)]
            tree = jax.tree.unflatten(jax.tree.structure(arrays), leaves)
            return Snapshot(tree["state"], tree["best"], progress)
        if damaged:
            raise RunFailed(
                f"no checkpoint in {self._directory} can be read; start again with --overwrite "
                f"({damaged[max(damaged)]})."
            )
        return None

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        for step, reason in damaged.items():
            place = self._directory.parent / "damaged" / str(step)
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(place)
            self._report(f"a checkpoint can not be read and is set aside in {place}, the one before is used ({reason})")
        if damaged:
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
            reason = disk_trouble(error) or str(error).partition("\n")[0][:300]
            raise RunFailed(
                f"the checkpoint can not be written to {self._directory} ({reason}); free some space and give the same "
                "command again: the run goes on from the checkpoint before."
            ) from None
