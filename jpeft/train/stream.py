"""Streams of training steps, numbered and determined by a seed and a position alone."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jpeft.data.batches import Shape, Tokens, fitting_shape, train_order
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch, family_with

Position = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Step:
    """The micro-batches of one optimizer step, with the rows that this process's devices work on.

    Attributes:
      position: of the stream after this step.
      rows: data rows in all micro-batches, over all processes.
      counts: totals over these rows by name, such as tokens.
      named: describes the rows, for an error message.
    """

    batches: Sequence[Batch]
    position: dict[str, int]
    rows: int
    counts: dict[str, int]
    named: Callable[[], str] = lambda: ""


@runtime_checkable
class Stream(Protocol):
    """An endless sequence of steps. A resumed run continues at the position stored in its checkpoint."""

    def start(self) -> dict[str, int]:
        """The position before the first step, such as `{"epoch": 0, "step_in_epoch": 0}`."""
        ...

    def steps(self, position: Position) -> Iterator[Step]:
        """Yields the steps after a position, building each on demand."""
        ...

    def where(self, position: Position) -> dict[str, int]:
        """The parts of a position that `metrics.jsonl` records beside the step's number."""
        ...


@dataclasses.dataclass(frozen=True)
class PaddedRows:
    """Builds batches from the rows of a split, padded to the smallest of a few shapes, for this process's devices.

    Attributes:
      tokens: the tokenised rows.
      shapes: the shapes to pad to.
      config: of the network, whose family defines what a batch is.
      layout: selects the rows of a batch that this process needs; None for all.
    """

    tokens: Tokens
    shapes: Sequence[Shape]
    config: Any
    layout: Layout | None = None

    def batch(self, rows: list[int], batch_size: int) -> Batch:
        """Builds a batch of `batch_size` rows from these; missing rows are padding."""
        tokens = self.tokens
        shape = fitting_shape(self.shapes, np.array([(len(tokens.inputs[r]), len(tokens.targets[r])) for r in rows]))
        here = slice(0, batch_size) if self.layout is None else self.layout.rows_here(batch_size)
        return family_with(self.config).batch(
            [tokens.inputs[row] for row in rows[here]],
            [tokens.targets[row] for row in rows[here]],
            shape,
            batch_size=here.stop - here.start,
            config=self.config,
            row_weights=None if tokens.weights is None else [float(tokens.weights[row]) for row in rows[here]],
        )


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Every row of a split once per epoch, or several files mixed by rate, in an order drawn from seed and epoch.

    Its position is the epoch and the number of its steps that are done.

    Attributes:
      ids: ids of the rows, for error messages.
    """

    rows: PaddedRows
    ids: Sequence[str]
    batch_size: int
    accumulation_steps: int
    seed: int

    def start(self) -> dict[str, int]:
        return {"epoch": 0, "step_in_epoch": 0}

    def where(self, position: Position) -> dict[str, int]:
        return {"epoch": position["epoch"]}

    def steps(self, position: Position) -> Iterator[Step]:
        tokens, done = self.rows.tokens, position["step_in_epoch"]
        lengths = tokens.lengths()
        for epoch in itertools.count(position["epoch"]):
            steps = train_order(
                lengths,
                batch_size=self.batch_size,
                accumulation_steps=self.accumulation_steps,
                seed=self.seed,
                epoch=epoch,
                mix=tokens.mix,
            )
            for number, micro_batches in enumerate(itertools.islice(steps, done, None), start=done + 1):
                rows = [row for micro_batch in micro_batches for row in micro_batch]
                yield Step(
                    [self.rows.batch(micro_batch, self.batch_size) for micro_batch in micro_batches],
                    {"epoch": epoch, "step_in_epoch": number},
                    len(rows),
                    {"tokens": int(lengths[rows].sum())},
                    lambda rows=rows: f"rows {', '.join(self.ids[row] for row in rows)}",
                )
            done = 0
