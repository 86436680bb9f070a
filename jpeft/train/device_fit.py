"""The settings with which a run fits the device at hand: what its `auto` is settled by.

The run's own programs are compiled for its largest batches, which it needs anyway, and kept for when they come.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.config import Run, monitored_metric
from jpeft.data.batches import fitting_shape
from jpeft.data.prepare import Data
from jpeft.errors import RunFailed
from jpeft.mesh.layout import Layout, bytes_on_a_device
from jpeft.model.family import family_of
from jpeft.peft.attaching import split
from jpeft.program import Program, free_memory, needed_memory
from jpeft.run.processes import least_of
from jpeft.train import fitting
from jpeft.train.programs import Programs
from jpeft.train.setup import Setup
from jpeft.train.step import TrainState, zero_sums
from jpeft.trouble import out_of_memory
from jpeft.words import counted, size

_NOT_AT_ALL = 2**62  # bytes, of what a compiler refuses


class DeviceFit:
    """A run that leaves settings open, ready to be asked which of them fit.

    Args:
      asked: the run with its `auto`.
      state, base: where the layout has them.
      programs_of: the run's programs for a model of that structure.
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
        self._made: dict[str, tuple[Programs, nnx.GraphDef]] = {}
        self._family = family_of(setup.model)
        self._free: float | None = None
        self._taken: list[int] = []
        self._refused: list[tuple[int, int]] = []  # bytes, rows

    def programs(self, remat: str) -> tuple[Programs, nnx.GraphDef]:
        """The run's programs, and the structure of its model, where the backward pass computes that anew."""
        if remat not in self._made:
            assert self._family is not None, "models of jpeft's own are trained"
            self._family.arrange(self._setup.model, scan_layers=self._first.model.scan_layers, remat=remat)
            graphdef, _, _ = split(self._setup.model)
            self._made[remat] = self._programs_of(graphdef), graphdef
        return self._made[remat]

    def mildest(self) -> Run:
        """The run with the mildest settings that fit the device; with its first ones, where nobody tells its memory.

        Raises:
          RunFailed: none fit.
        """
        free = free_memory()
        if free is None:
            return self._first
        sums = jax.eval_shape(zero_sums, self._state.adapter)
        self._free = least_of(
            free - bytes_on_a_device(self._layout.describe(sums.grads))
        )  # where the gradients will be
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
        told = [(needs, rows) for needs, rows in self._refused if needs < _NOT_AT_ALL]
        if told:
            needs = "needs {} at {}".format(size(min(told)[0]), counted(min(told)[1], "row"))
        else:
            needs = "is refused by the compiler" if self._refused else "has no room beside what the run holds"
        return RunFailed(
            f"nothing that `auto` may choose fits: {what} {needs}, and {size(max(self._free, 0))} of this device are "
            "free; take more devices (mesh.fsdp, mesh.model), a smaller model, fewer tokens with "
            "data.max_input_length, or leave more keys to `auto`."
        )

    def words(self, run: Run) -> str:
        """What each `auto` of the run became, in one line for its user, with the memory that it takes."""
        kept = "keeps all for the backward pass" if run.model.remat == "none" else f"remat {run.model.remat}"
        of = "" if self._free is None else f"of {size(self._free)} that are free "
        needs = f": takes {size(max(self._taken))} {of}beside what the run holds" if self._taken else ""
        rows, evaluated = run.rows()
        return (
            f"auto: {kept}, micro-batches of {counted(rows, 'row')} x {run.train.accumulation_steps}, "
            f"{counted(evaluated, 'row')} evaluated at once{needs}"
        )

    def _training_needs(self, setting: fitting.Training) -> int:
        programs = self.programs(setting.remat)[0]
        sums = self._layout.describe(jax.eval_shape(programs.zero_sums, self._state.adapter))
        key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self._layout.whole)
        number = np.int32(0)
        batch = self._batch(setting.rows, self._data.shapes[-1])
        needs = self._asks(programs.accumulate, sums, self._state.adapter, self._base, key, number, number, batch)
        return self._judged(needs, setting.rows)

    def _evaluation_needs(self, run: Run) -> int:
        programs, rows = self.programs(run.model.remat)[0], run.rows()[1]
        trees = self._state.adapter, self._base
        inputs = jax.ShapeDtypeStruct((rows, self._longest_answered()), jnp.int32)
        answering = programs.answering
        moved = trees if answering.move is None else answering.layout.describe(trees)
        again = bytes_on_a_device(self._state.adapter)  # the best, beside the last
        again += 0 if answering.move is None else bytes_on_a_device(moved)
        needs = [
            self._asks(answering.generate, *moved, inputs) + again,
            self._asks(programs.loss, *trees, self._batch(rows, self._data.shapes[-1])),
        ]
        if answering.label_log_probs is not None:
            needs.append(self._asks(answering.label_log_probs, *moved, inputs) + again)
        return self._judged(max(needs), rows)

    def _longest_answered(self) -> int:
        """The longest padded input that is answered: of the test split, and of validation where that is monitored."""
        monitored = monitored_metric(self._first.train.monitor) is not None
        splits = ["test", "validation"] if monitored else ["test"]
        longest = max(self._data.tokens[split].lengths()[:, 0].max() for split in splits)
        return fitting_shape(self._data.shapes, np.array([(longest, 1)]))[0]

    def _judged(self, needs: int, rows: int) -> int:
        """The same number, which is remembered for what is said of it."""
        assert self._free is not None
        if needs <= self._free:
            self._taken.append(needs)
        else:
            self._refused.append((needs, rows))
        return needs

    def _batch(self, rows: int, shape: tuple[int, int]) -> Any:
        assert self._family is not None
        return self._family.batch_shapes(rows, shape)

    def _asks(self, program: Program, *args: Any) -> int:
        """Bytes that a program takes, of its compiler."""
        try:
            return needed_memory(program.prepare(*args))
        except Exception as error:
            if not out_of_memory(error):
                raise
            return _NOT_AT_ALL
