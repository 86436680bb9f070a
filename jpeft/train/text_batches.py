"""Batches of text pairs for training loops outside of `jpeft train`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jpeft.data.batches import (
    Shape,
    Tokens,
    choose_shapes,
    longest_of,
    require_text,
    tokenize,
    train_order,
)
from jpeft.data.tasks import Example
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer
from jpeft.train.stream import PaddedRows


@dataclasses.dataclass(frozen=True)
class TextBatches:
    """Batches with every row once per epoch, in an order drawn from seed and epoch; the same at each iteration.

    Attributes:
      tokens: of all rows.
      shapes: the few shapes that batches are padded to, smallest first.
      config: of the network, whose family defines what a batch is.
      batch_size: rows of a batch; the last batch of an epoch is filled up with padding rows of weight 0.
    """

    tokens: Tokens
    shapes: tuple[Shape, ...]
    config: Any
    batch_size: int
    epochs: int
    seed: int

    @classmethod
    def of(
        cls,
        config: Any,
        tokenizer: Tokenizer,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        max_input_length: int,
        max_target_length: int,
    ) -> "TextBatches":
        """Tokenises the pairs. Lengths are in tokens; longer texts are truncated at the end.

        Raises:
          UserError: a target is empty, or `max_input_length` leaves no room for text.
        """
        pairs = enumerate(zip(inputs, targets, strict=True))
        examples = [Example(str(number), input_, target, (target,)) for number, (input_, target) in pairs]
        tokens = tokenize(examples, tokenizer, max_input_length=max_input_length, max_target_length=max_target_length)
        require_text(tokens, examples)
        batches = cls(tokens, (), config, batch_size, epochs, seed)
        shapes = choose_shapes(longest_of(tokens.lengths(), list(batches._rows())))
        return dataclasses.replace(batches, shapes=tuple(shapes))

    def __len__(self) -> int:
        return self.epochs * -(-len(self.tokens) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        padded = PaddedRows(self.tokens, self.shapes, self.config)
        for rows in self._rows():
            yield padded.batch(rows, self.batch_size)

    def _rows(self) -> Iterator[list[int]]:
        lengths = self.tokens.lengths()
        for epoch in range(self.epochs):
            epoch_batches = train_order(
                lengths, batch_size=self.batch_size, accumulation_steps=1, seed=self.seed, epoch=epoch
            )
            for (rows,) in epoch_batches:
                yield rows
