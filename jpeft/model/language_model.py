"""The interface of a language model of any family: hidden states for a loss, and step-by-step generation."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

from jpeft.errors import UserError

ArrayBatch = dict[str, Array]  # a batch from `Family.batch`, as JAX arrays


class TooLong(UserError):
    """The error of a text with more tokens than the model has learned positions.

    Attributes:
      tokens: the number of the text's tokens, padding included.
      positions: the number of the model's positions.
    """

    def __init__(
        self, tokens: int, positions: int, remedy: str = "lower data.max_input_length or data.max_target_length"
    ):
        super().__init__(f"{tokens:,} tokens are more than the {positions:,} positions that this model has; {remedy}.")
        self.tokens, self.positions = tokens, positions


@contextlib.contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Replaces the advice of a `TooLong` that the block raises, for callers without the config keys of its default."""
    try:
        yield
    except TooLong as error:
        raise TooLong(error.tokens, error.positions, remedy) from None


@runtime_checkable
class Cache(Protocol):
    """A key-value cache of the generated tokens; a pytree."""

    def reordered(self, rows: Int[Array, " batch"]) -> "Cache":
        """Return a cache whose row `i` is this one's row `rows[i]`."""
        ...


@runtime_checkable
class Decoding(Protocol):
    """The generation of one batch of answers: everything that does not change from step to step.

    Attributes:
      first: the input token of each row at the first step.
      caches: the caches before the first step.
    """

    first: Int[Array, " batch"]
    caches: list[Any]

    def step(
        self, tokens: Int[Array, " batch"], caches: list[Any], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], list[Any]]:
        """Return the logits of the answer's token number `position` (from 0), and the updated caches.

        Args:
          tokens: the previous token of each row.
          caches: the caches of the tokens before it.
          position: the index of the token to predict.
        """
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """The methods that every family's network has; it is also an `nnx.Module`."""

    config: Any  # has vocab_size, padding_id, eos_token_id, ends and context_length

    def hidden_of(self, batch: ArrayBatch, key: Key[Array, ""] | None = None) -> Float[Array, "batch length d_model"]:
        """The final hidden state at every position that has a target.

        Args:
          batch: a padded batch from `Family.batch`, or a packed one from pretraining.
          key: the random key for dropout; None disables it.
        """
        ...

    def hidden_of_labels(
        self,
        inputs: Int[Array, "batch in_length"],
        labels: Int[Array, "batch length"],
        segment_ids: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """Final hidden states for several candidate answers to each input, which do not attend to each other.

        Args:
          inputs: token ids of the inputs, padded.
          labels: the answers packed into one row, each shifted right by one token (the start token comes first).
          segment_ids: the index of the answer that each position belongs to.
        """
        ...

    def logits(self, hidden: Float[Array, "batch length d_model"]) -> Float[Array, "batch length vocab"]:
        """Logits over the vocabulary, float32, from final hidden states."""
        ...

    def longest_input(self, answer_length: int) -> int | None:
        """The largest number of input tokens before answers of `answer_length`; None if it is unlimited."""
        ...

    def begin(self, inputs: Int[Array, "batch length"], max_length: int, num_beams: int = 1) -> Decoding:
        """Read the inputs and prepare generation with `num_beams` neighbouring rows for each."""
        ...
