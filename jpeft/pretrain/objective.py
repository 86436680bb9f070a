"""What a pretraining run learns from a text and from a pair, and how such examples stand in packed rows."""

import abc
from collections.abc import Sequence

import numpy as np

from jpeft.model.family import Batch
from jpeft.pretrain.packing import TokenPair

LEAST_TEXT = 8  # tokens; a shorter text is left out


class Objective(abc.ABC):
    """A pretraining task: examples of texts and pairs, and batches of rows that hold several of them.

    Attributes:
      input_length, target_length: tokens of a row, as the config's section `data` has them.
    """

    def __init__(self, input_length: int, target_length: int):
        self.input_length, self.target_length = input_length, target_length

    @property
    @abc.abstractmethod
    def room(self) -> tuple[int, ...]:
        """Tokens that each side of a row holds: an encoder's and a decoder's, or all in one."""

    @abc.abstractmethod
    def sides(self, lengths: np.ndarray) -> np.ndarray:
        """`[examples, sides]`: how much of each side examples of `lengths` (`[examples, 2]`, input and target) take."""

    @abc.abstractmethod
    def longest_text(self) -> int:
        """Tokens of the longest piece of text that fits a row. Raises `UserError`: none does."""

    @abc.abstractmethod
    def text_lengths(self, length: int, *, is_end: bool) -> tuple[int, int]:
        """Tokens of the input and of the target made of a piece of text of `length`.

        Args:
          is_end: whether the text that it is a piece of ends with it.
        """

    @abc.abstractmethod
    def of_text(self, ids: np.ndarray, *, is_end: bool, rng: np.random.Generator) -> TokenPair:
        """An example made of a piece of text; arguments as of `text_lengths`."""

    @abc.abstractmethod
    def pack(self, rows: Sequence[Sequence[TokenPair]]) -> Batch:
        """A batch of packed rows, the examples of each within its room."""

    @abc.abstractmethod
    def token_counts(self, batch: Batch) -> tuple[int, int]:
        """How many tokens a packed batch has that are read alone, and how many that are targets."""

    @abc.abstractmethod
    def fill(self, input_tokens: int, target_tokens: int, rows: int) -> dict[str, float]:
        """The share of the room of `rows` rows that tokens take, by side."""

    @abc.abstractmethod
    def to_answer(self, batch: Batch, row: int, *, is_text: bool) -> TokenPair:
        """Of a packed row's first example what a model is shown, and what stands behind that, for a person to read.

        Args:
          is_text: whether it is of a text, and of no pair.
        """

    def fits(self, lengths: np.ndarray) -> np.ndarray:
        """`[examples]`: whether an example of these lengths fits a row."""
        return np.all(self.sides(lengths) <= self.room, axis=1)

    def __str__(self) -> str:
        return " + ".join(f"{tokens}" for tokens in self.room)
