"""The interface of pretraining objectives: examples made of texts and pairs, and batches of packed rows."""

import abc
from collections.abc import Sequence

import numpy as np

from jpeft.model.family import Batch
from jpeft.pretrain.packing import TokenPair

LEAST_TEXT = 8  # tokens; shorter texts are left out


class Objective(abc.ABC):
    """A pretraining objective.

    Attributes:
      input_length, target_length: tokens of a row, as in the config's section `data`.
    """

    def __init__(self, input_length: int, target_length: int):
        self.input_length, self.target_length = input_length, target_length

    @property
    @abc.abstractmethod
    def room(self) -> tuple[int, ...]:
        """Tokens that fit on each side of a row: encoder and decoder, or a single sequence."""

    @abc.abstractmethod
    def sides(self, lengths: np.ndarray) -> np.ndarray:
        """`[examples, sides]`: the tokens that examples take on each side of a row.

        Args:
          lengths: `[examples, 2]`, tokens of input and target.
        """

    @abc.abstractmethod
    def longest_text(self) -> int:
        """Tokens of the longest piece of text that fits a row. Raises `UserError` if none fits."""

    @abc.abstractmethod
    def text_lengths(self, length: int, *, is_end: bool) -> tuple[int, int]:
        """Tokens of the input and of the target made of a piece of text.

        Args:
          length: tokens of the piece.
          is_end: whether the piece is the last one of its text.
        """

    @abc.abstractmethod
    def of_text(self, ids: np.ndarray, *, is_end: bool, rng: np.random.Generator) -> TokenPair:
        """Makes an example of a piece of text; arguments as in `text_lengths`."""

    @abc.abstractmethod
    def pack(self, rows: Sequence[Sequence[TokenPair]]) -> Batch:
        """Packs rows of examples into a batch; the examples of a row have to fit its room."""

    @abc.abstractmethod
    def token_counts(self, batch: Batch) -> tuple[int, int]:
        """The numbers of input tokens and of target tokens of a packed batch."""

    @abc.abstractmethod
    def fill(self, input_tokens: int, target_tokens: int, rows: int) -> dict[str, float]:
        """The share of the room of `rows` rows that tokens fill, by side."""

    @abc.abstractmethod
    def to_answer(self, batch: Batch, row: int, *, is_text: bool) -> TokenPair:
        """The input and the expected output of a packed row's first example, for a sample that a person reads.

        Args:
          batch: a packed batch.
          row: index of the row.
          is_text: whether the example is of a text, not of a pair.
        """

    def fits(self, lengths: np.ndarray) -> np.ndarray:
        """`[examples]`: whether examples of these lengths fit a row."""
        return np.all(self.sides(lengths) <= self.room, axis=1)

    def __str__(self) -> str:
        return " + ".join(f"{tokens}" for tokens in self.room)
