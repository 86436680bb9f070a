"""What a run trains on, step by step: numbered, and a function of a seed and a position alone."""

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
    """The micro-batches of one optimizer step, those rows of each that this process's devices work on.

    Attributes:
      position: of the stream after this step.
      rows: of data in all of them.
      counts: of what is in them, by name: tokens.
      named: which rows these are, for a message that has to tell.
    """

    batches: Sequence[Batch]
    position: dict[str, int]
    rows: int
    counts: dict[str, int]
    named: Callable[[], str] = lambda: ""


@runtime_checkable
class Stream(Protocol):
    """Steps without end. A restarted run asks for those after the position that its checkpoint holds."""

    def start(self) -> dict[str, int]:
        """The position before the first step, numbers by name for a checkpoint: `{"epoch": 0, "step_in_epoch": 0}`."""
        ...

    def steps(self, position: Position) -> Iterator[Step]:
        """The steps after a position, each made when it is asked for."""
        ...

    def where(self, position: Position) -> dict[str, int]:
        """What the record of a step in metrics.jsonl says of its place beside its number."""
        ...


@dataclasses.dataclass(frozen=True)
class PaddedRows:
    """Makes batches of a split's rows, padded to the smallest of a few shapes, for the devices of this process.

    Attributes:
      config: of the network, whose family says what a batch is.
      layout: whose rows of a batch are made; None for all of them.
    """

    tokens: Tokens
    shapes: Sequence[Shape]
    config: Any
    layout: Layout | None = None

    def batch(self, rows: list[int], batch_size: int) -> Batch:
        """These rows as a batch of so many, missing ones being padding."""
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
    """Every row of a split once an epoch, or of several files by their rates; in an order of the seed and the epoch.

    Its position is the epoch and the steps of it that are done; an epoch that is done altogether leads to the next.

    Attributes:
      ids: the ids of the rows.
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
