"""The batches of a mixture as training steps."""

import dataclasses
import itertools
from collections.abc import Iterator

from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch
from jpeft.pretrain.mixture import Mixture
from jpeft.train.stream import Position, Step


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An endless stream of a mixture's batches, block by block.

    Its position is the block and the number of its batches that are done.
    """

    mixture: Mixture
    accumulation_steps: int
    layout: Layout

    def start(self) -> dict[str, int]:
        return {"block": 0, "batches_done": 0}

    def where(self, position: Position) -> dict[str, int]:
        return {}

    def steps(self, position: Position) -> Iterator[Step]:
        numbered = self._batches(position["block"], position["batches_done"])
        while True:
            batches, counts = [], {"input_tokens": 0, "target_tokens": 0}
            for batch, after in itertools.islice(numbered, self.accumulation_steps):
                input_tokens, target_tokens = self.mixture.objective.token_counts(batch)
                counts["input_tokens"] += input_tokens
                counts["target_tokens"] += target_tokens
                batches.append(rows_here(batch, self.layout))
                position = after
            yield Step(batches, dict(position), self.mixture.batch_size * len(batches), counts)

    def _batches(self, block: int, done: int) -> Iterator[tuple[Batch, Position]]:
        """Yields batches after the first `done` of a block, each with the position after it."""
        for number in itertools.count(block):
            for i, batch in enumerate(self.mixture.block(number)[done:], start=done + 1):
                yield batch, {"block": number, "batches_done": i}
            done = 0


def rows_here(batch: Batch, layout: Layout) -> Batch:
    """The rows of a batch that this process's devices work on."""
    return {name: rows[layout.rows_here(len(rows))] for name, rows in batch.items()}
