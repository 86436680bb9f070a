"""What the rest of the house asks of a network of any family: hidden states for a loss, and tokens one by one."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

ArrayBatch = dict[str, Array]  # as `Family.batch` makes it


@runtime_checkable
class Cache(Protocol):
    """The state of a decoder while it writes: keys and values of the tokens that it has seen. A pytree."""

    def reordered(self, rows: Int[Array, " batch"]) -> "Cache":
        """Row `i` of the batch becomes what row `rows[i]` was."""
        ...


@runtime_checkable
class Decoding(Protocol):
    """The generation of one batch of answers: what stays the same over its steps.

    Attributes:
      first: the token of each row that the first step is given.
      caches: before the first step.
    """

    first: Int[Array, " batch"]
    caches: list[Any]

    def step(
        self, tokens: Int[Array, " batch"], caches: list[Any], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], list[Any]]:
        """Logits of the token after `tokens`, the answer's `position`-th, and the extended caches."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A network that answers: an `nnx.Module` with these methods."""

    config: Any  # with vocab_size, pad_token_id, eos_token_id and ends

    def hidden_of(self, batch: ArrayBatch, key: Key[Array, ""] | None = None) -> Float[Array, "batch length d_model"]:
        """The last hidden state at every position that has a target; `key` draws dropout masks, None is without."""
        ...

    def hidden_of_labels(
        self,
        inputs: Int[Array, "batch in_length"],
        labels: Int[Array, "batch length"],
        segment_ids: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """The same for several answers to each input, one behind the other, which do not see each other.

        Args:
          labels: tokens, each label's shifted right behind the token that an answer starts with.
          segment_ids: the number of the label that a position belongs to.
        """
        ...

    def logits(self, hidden: Float[Array, "batch length d_model"]) -> Float[Array, "batch length vocab"]:
        """Scores of every token of the vocabulary as the next one, before softmax, float32."""
        ...

    def longest_input(self, answer_length: int) -> int | None:
        """How many tokens an input may have before answers of `answer_length`; None where nothing limits them."""
        ...

    def begin(self, inputs: Int[Array, "batch length"], max_length: int, num_beams: int = 1) -> Decoding:
        """Reads the inputs; of `num_beams` rows for each, as neighbours."""
        ...
