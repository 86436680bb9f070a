"""Pairs of texts as batches that a model of jpeft's trains on, for whoever trains in code of their own."""

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
    """Every row once an epoch, in an order of the seed and the epoch; the same batches each time they are asked for.

    Attributes:
      tokens: of all rows.
      shapes: that batches are padded to, few and rising.
      config: of the network, whose family says what a batch is.
      batch_size: rows of a batch; of the last one of an epoch those that are missing are padding without weight.
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
        """Tokenizes the pairs; lengths are in tokens, and what is longer loses its end.

        Raises:
          UserError: a target is empty, or `max_input_length` leaves no room for text.
        """
        pairs = enumerate(zip(inputs, targets, strict=True))
        examples = [Example(str(number), input_, target, (target,)) for number, (input_, target) in pairs]
        tokens = tokenize(examples, tokenizer, max_input_length=max_input_length, max_target_length=max_target_length)
        require_text(tokens, examples)
        made = cls(tokens, (), config, batch_size, epochs, seed)
        shapes = choose_shapes(longest_of(tokens.lengths(), list(made._rows())))
        return dataclasses.replace(made, shapes=tuple(shapes))

    def __len__(self) -> int:
        return self.epochs * -(-len(self.tokens) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        padded = PaddedRows(self.tokens, self.shapes, self.config)
        for rows in self._rows():
            yield padded.batch(rows, self.batch_size)

    def _rows(self) -> Iterator[list[int]]:
        lengths = self.tokens.lengths()
        for epoch in range(self.epochs):
            of_epoch = train_order(
                lengths, batch_size=self.batch_size, accumulation_steps=1, seed=self.seed, epoch=epoch
            )
            for (rows,) in of_epoch:
                yield rows
