"""Finds the settings with which a run fits the device at hand, to resolve the config keys that are `auto`.

Candidates are checked by compiling the run's own programs for its largest batches. Training needs these programs
anyway, so they are kept.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.config import Run, monitored_metric
from jpeft.data.batches import fitting_shape
from jpeft.data.prepare import Data
from jpeft.errors import RunFailed, UserError
from jpeft.mesh.layout import Layout, bytes_on_a_device
from jpeft.model.family import family_of
from jpeft.peft.attaching import split
from jpeft.program import Program, free_memory, needed_memory
from jpeft.run.directory import RunDirectory
from jpeft.run.processes import from_first, is_first, minimum_over_processes
from jpeft.train import fitting
from jpeft.train.programs import Programs
from jpeft.train.setup import Setup
from jpeft.train.step import TrainState, zero_sums
from jpeft.trouble import out_of_memory
from jpeft.words import counted, size


class DeviceFit:
    """Finds which values of the open settings (`auto`) fit the device.

    Args:
      asked: the run with its `auto` values.
      state, base: arrays as the layout places them.
      programs_of: builds the run's programs for a model structure.
    """

    def __init__(
        self,
        asked: Run,
        setup: Setup,
        layout: Layout,
        data: Data,
        state: TrainState,
        base: nnx.State,
        programs_of: Callable[[nnx.GraphDef], Programs],
    ):
        self._asked, self._first, self._setup, self._layout = asked, asked.mildest(), setup, layout
        self._data, self._state, self._base, self._programs_of = data, state, base, programs_of
        self._programs_by_remat: dict[str, tuple[Programs, nnx.GraphDef]] = {}
        self._family = family_of(setup.model)
        self._free: float | None = None
        self._accepted: list[int] = []  # bytes
        self._refused: list[tuple[int | None, int]] = []  # bytes, rows

    def programs(self, remat: str) -> tuple[Programs, nnx.GraphDef]:
        """Returns the run's programs and its model's structure under a rematerialisation policy (`model.remat`)."""
        if remat not in self._programs_by_remat:
            assert self._family is not None, "models of jpeft's own are trained"
            self._family.arrange(self._setup.model, scan_layers=self._first.model.scan_layers, remat=remat)
            graphdef, _, _ = split(self._setup.model)
            self._programs_by_remat[remat] = self._programs_of(graphdef), graphdef
        return self._programs_by_remat[remat]

    def mildest(self) -> Run:
        """Returns the run with the mildest settings that fit, or its first ones if the device's memory is unknown.

        Raises:
          RunFailed: no settings fit.
        """
        free = free_memory()
        if free is None:
            return self._first
        sums = jax.eval_shape(zero_sums, self._state.adapter)
        # The gradient buffer is not allocated yet.
        self._free = minimum_over_processes(free - bytes_on_a_device(self._layout.describe(sums.grads)))
        try:
            return fitting.mildest_fitting(
                self._first,
                fitting.open_keys(self._asked),
                training_needs=self._training_needs,
                evaluation_needs=self._evaluation_needs,
                room=self._free,
            )
        except fitting.NothingFits as error:
            raise self._nothing_fits(str(error)) from None

    def _nothing_fits(self, what: str) -> RunFailed:
        assert self._free is not None
        measured = [(needs, rows) for needs, rows in self._refused if needs is not None]
        if measured:
            needs = "needs {} at {}".format(size(min(measured)[0]), counted(min(measured)[1], "row"))
        else:
            needs = "is refused by the compiler" if self._refused else "has no room beside what the run holds"
        return RunFailed(
            f"nothing that `auto` may choose fits: {what} {needs}, and {size(max(self._free, 0))} of this device are "
            "free; take more devices (mesh.fsdp, mesh.model), a smaller model, fewer tokens with "
            "data.max_input_length, or leave more keys to `auto`."
        )

    def words(self, run: Run) -> str:
        """Describes in one line what each `auto` was resolved to, and the memory it takes."""
        kept = "keeps all for the backward pass" if run.model.remat == "none" else f"remat {run.model.remat}"
        of = "" if self._free is None else f"of {size(self._free)} that are free "
        needs = f": takes {size(max(self._accepted))} {of}beside what the run holds" if self._accepted else ""
        rows, evaluated = run.rows()
        return (
            f"auto: {kept}, micro-batches of {counted(rows, 'row')} x {run.train.accumulation_steps}, "
            f"{counted(evaluated, 'row')} evaluated at once{needs}"
        )

    def _training_needs(self, setting: fitting.Training) -> int | None:
        programs = self.programs(setting.remat)[0]
        sums = self._layout.describe(jax.eval_shape(programs.zero_sums, self._state.adapter))
        key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self._layout.whole)
        number = np.int32(0)
        batch = self._batch(setting.rows, self._data.shapes[-1])
        args = (sums, self._state.adapter, self._base, key, number, number, batch)
        return self._record(self._bytes_needed(programs.accumulate, *args), setting.rows)

    def _evaluation_needs(self, run: Run) -> int | None:
        programs, rows = self.programs(run.model.remat)[0], run.rows()[1]
        trees = self._state.adapter, self._base
        inputs = jax.ShapeDtypeStruct((rows, self._longest_input()), jnp.int32)
        answering = programs.answering
        moved = trees if answering.move is None else answering.layout.describe(trees)
        copies = bytes_on_a_device(self._state.adapter)  # the best adapter is loaded beside the last one
        copies += 0 if answering.move is None else bytes_on_a_device(moved)
        needs = [
            (self._bytes_needed(answering.generate, *moved, inputs), copies),
            (self._bytes_needed(programs.loss, *trees, self._batch(rows, self._data.shapes[-1])), 0),
        ]
        if answering.label_log_probs is not None:
            needs.append((self._bytes_needed(answering.label_log_probs, *moved, inputs), copies))
        known = [taken + beside for taken, beside in needs if taken is not None]
        return self._record(max(known) if len(known) == len(needs) else None, rows)

    def _longest_input(self) -> int:
        """Tokens of the longest padded input that answers are generated for: test rows, and validation if monitored."""
        monitored = monitored_metric(self._first.train.monitor) is not None
        splits = ["test", "validation"] if monitored else ["test"]
        longest = max(self._data.tokens[split].lengths()[:, 0].max() for split in splits)
        return fitting_shape(self._data.shapes, np.array([(longest, 1)]))[0]

    def _record(self, needs: int | None, rows: int) -> int | None:
        """Returns `needs` unchanged, after recording it for `words` and for the error message."""
        assert self._free is not None
        if needs is not None and needs <= self._free:
            self._accepted.append(needs)
        else:
            self._refused.append((needs, rows))
        return needs

    def _batch(self, rows: int, shape: tuple[int, int]) -> Any:
        assert self._family is not None
        return self._family.batch_shapes(rows, shape)

    def _bytes_needed(self, program: Program, *args: Any) -> int | None:
        """Returns the bytes that the compiler reports for a program; None if it refuses it for lack of memory."""
        try:
            return needed_memory(program.prepare(*args))
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None


def resolve_auto(asked: Run, fit: DeviceFit, directory: RunDirectory, *, report: Callable[[str], None]) -> Run:
    """Resolves each `auto` of a config: as an earlier start of the run did, or else by what fits the device.

    All processes of the run have to call it, and get the same result.

    Args:
      asked: the config with its `auto` values.
      fit: of that config.
      directory: the run's, which may record an earlier resolution in `settled.json`.
      report: called with a line about the result.

    Raises:
      RunFailed: nothing fits, or `settled.json` is damaged.
    """
    recorded = directory.settled() if is_first() else None
    recorded = json.loads(from_first(json.dumps(recorded)))
    if not recorded:
        run = fit.mildest()
        report(fit.words(run))
        return run
    try:
        run = fitting.with_settled(asked, recorded)
    except UserError as error:
        file = directory.path / "settled.json"
        raise RunFailed(f"{file} is damaged ({error}); give --overwrite to run again from the start.") from None
    report(f"{fit.words(run)}, as before")
    return run
