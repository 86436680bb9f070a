"""Texts in, texts out, by a bank: a few padded shapes, every one of them compiled before the first request."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from jpeft.serve.bank import AdapterBank, UnknownAdapter


@dataclasses.dataclass(frozen=True)
class Row:
    """One input on its way to an answer.

    Attributes:
      tokens: of the input, `</s>` included.
      adapter: None for the base alone.
      max_output_tokens: after which the answer is cut.
    """

    tokens: Sequence[int]
    adapter: str | None
    max_output_tokens: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a row was answered.

    Attributes:
      output_tokens: of the text, `</s>` included.
      ended: False where the answer was cut at the row's limit.
    """

    text: str
    output_tokens: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What batches are padded to: any of `batch_sizes` rows, of `input_lengths` and `output_lengths` tokens."""

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    input_lengths: tuple[int, ...] = (64, 256, 512)
    output_lengths: tuple[int, ...] = (16, 64)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not values or min(values) < 1 or list(values) != sorted(set(values)):
                raise UserError(f"{field.name} are {values}; expected numbers of at least 1 that rise.")

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return itertools.product(self.batch_sizes, self.input_lengths, self.output_lengths)

    def of(self, row: Row) -> tuple[int, int]:
        """The input and output length that a row is padded to when it is alone."""
        return _at_least(self.input_lengths, len(row.tokens)), _at_least(self.output_lengths, row.max_output_tokens)


def _at_least(sizes: Sequence[int], needed: int) -> int:
    return next(size for size in sizes if size >= needed)


class Engine:
    """Answers rows of many adapters together."""

    def __init__(self, bank: AdapterBank, tokenizer: Tokenizer, shapes: Shapes):
        self.bank = bank
        self.shapes = shapes
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, `</s>` included. Raises `UserError`: a text is longer than any shape."""
        longest = self.shapes.input_lengths[-1]
        rows = [[*ids, self._tokenizer.eos_token_id] for ids in self._tokenizer.ids(texts)]
        for i, row in enumerate(rows):
            if len(row) > longest:
                raise UserError(f"inputs[{i}] has {len(row)} tokens; at most {longest} are taken.")
        return rows

    def compile(self) -> int:
        """Compiles a program for each shape, by answering rows of padding with it; returns how many there are."""
        for batch_size, input_length, output_length in self.shapes:
            tokens = np.zeros((batch_size, input_length), np.int32)
            jax.block_until_ready(self.bank.generate(tokens, [None] * batch_size, max_length=output_length))
        return self.bank.num_programs

    def fit_together(self, first: Row, row: Row) -> bool:
        """Whether a row may join a batch that is padded as `first` needs it."""
        return all(mine <= its for mine, its in zip(self.shapes.of(row), self.shapes.of(first), strict=True))

    def answer(self, rows: Sequence[Row]) -> list[Answer | UnknownAdapter]:
        """An answer for each row, or that its adapter is not there (any more). At most the largest batch of rows."""
        answers: dict[int, Answer | UnknownAdapter] = {}
        left = list(range(len(rows)))
        while left:
            try:
                answers.update(zip(left, self._answer([rows[i] for i in left]), strict=True))
                break
            except UnknownAdapter as gone:  # the others are answered without them
                answers.update({i: UnknownAdapter([name]) for i in left if (name := rows[i].adapter) in gone.names})
                left = [i for i in left if i not in answers]
        return [answers[i] for i in range(len(rows))]

    def _answer(self, rows: Sequence[Row]) -> list[Answer]:
        shapes = [self.shapes.of(row) for row in rows]
        input_length, output_length = map(max, zip(*shapes, strict=True))
        batch_size = _at_least(self.shapes.batch_sizes, len(rows))
        inputs = np.zeros((batch_size, input_length), np.int32)
        for tokens, row in zip(inputs, rows, strict=False):
            tokens[: len(row.tokens)] = row.tokens
        names = [row.adapter for row in rows] + [None] * (batch_size - len(rows))
        generated = np.asarray(self.bank.generate(inputs, names, max_length=output_length))
        outputs = [self._until_end(ids[: row.max_output_tokens]) for ids, row in zip(generated, rows, strict=False)]
        texts = self._tokenizer.decode(outputs)
        eos = self._tokenizer.eos_token_id
        return [Answer(text, len(ids), bool(ids) and ids[-1] == eos) for text, ids in zip(texts, outputs, strict=True)]

    def _until_end(self, ids: np.ndarray) -> list[int]:
        """The ids up to and with `</s>`; what is after it is padding."""
        ends = np.flatnonzero(ids == self._tokenizer.eos_token_id)
        return ids[: ends[0] + 1].tolist() if len(ends) else ids.tolist()
