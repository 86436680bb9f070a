"""Classification by scoring: how likely a model finds each of a few answers, without generating any."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jpeft.errors import UserError
from jpeft.eval.cross_entropy import target_log_probs
from jpeft.eval.generate import by_row
from jpeft.model.config import T5Config
from jpeft.model.t5 import T5, apart
from jpeft.model.tokenizer import Tokenizer

_MULTIPLE = 8  # of the packed length: it can then be cut into slices for the output layer


@dataclasses.dataclass(frozen=True, eq=False)
class PackedLabels:
    """The token sequences of all labels one behind the other, as one row of the decoder.

    Packed, all labels of an input are scored in one pass that reads the encoder's keys and values once.

    Attributes:
      texts: the labels.
      targets: `[length]` int32, each label's tokens with its `</s>`; padding behind the last.
      inputs: `[length]` int32, `targets` shifted right within each label, behind the start token.
      segments: `[length]` int32, the number of the label that a position belongs to; `len(texts)` on padding.
    """

    texts: tuple[str, ...]
    targets: np.ndarray
    inputs: np.ndarray
    segments: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer, config: T5Config) -> "PackedLabels":
        """Raises `UserError`: fewer than two labels, an empty one, or two that the vocabulary does not tell apart."""
        texts = tuple(text.strip() for text in texts)
        if len(texts) < 2 or not all(texts):
            shown = ", ".join(map(repr, texts)) or "none"
            raise UserError(f"the labels are {shown}; expected two or more, none of them empty.")
        rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer.ids(texts)]
        seen: dict[tuple[int, ...], str] = {}
        for text, row in zip(texts, rows, strict=True):
            if tuple(row) in seen:
                raise UserError(f"the labels {seen[tuple(row)]!r} and {text!r} are the same tokens to this model.")
            seen[tuple(row)] = text
        padding = -sum(map(len, rows)) % _MULTIPLE
        return cls(
            texts,
            targets=np.array([*(token for row in rows for token in row), *[config.pad_token_id] * padding], np.int32),
            inputs=np.array(
                [token for row in rows for token in (config.decoder_start_token_id, *row[:-1])]
                + [config.pad_token_id] * padding,
                np.int32,
            ),
            segments=np.repeat(np.arange(len(rows) + 1), [*map(len, rows), padding]).astype(np.int32),
        )

    @property
    def key(self) -> tuple[int, ...]:
        """What a program that scores these labels depends on."""
        return (*self.targets.tolist(), *self.segments.tolist())

    def num_tokens(self) -> np.ndarray:
        """`[labels]`: tokens of each label, `</s>` counted."""
        return np.bincount(self.segments, minlength=len(self.texts))[: len(self.texts)]


def label_log_probs(
    model: T5, encoder_input_tokens: Int[Array, "batch enc_len"], labels: PackedLabels
) -> Float[Array, "batch labels"]:
    """Log-probability in nats of each label, all of its tokens and `</s>`, as the answer to each input; float32.

    A relative position within a label is the same wherever the label stands, and a label sees its own tokens alone, so
    each has the probability that it has by itself.
    """
    encoded, cross_bias = model.encode(encoder_input_tokens)
    batch, length = encoder_input_tokens.shape[0], len(labels.targets)
    row = lambda ids: jnp.broadcast_to(jnp.asarray(ids), (batch, length))
    x = model.shared(row(labels.inputs)).astype(model.dtype)
    segments = jnp.asarray(labels.segments)[None]
    hidden = model.decoder(x, model.causal_bias(length) + apart(segments, segments), encoded, cross_bias)
    log_probs = target_log_probs(model.logits, hidden, row(labels.targets), vocab_size=model.config.vocab_size)
    by_label = jax.ops.segment_sum(log_probs.T, labels.segments, num_segments=len(labels.texts) + 1)
    return by_label[:-1].T  # without the padding


def make_label_log_probs(graphdef: nnx.GraphDef, labels: PackedLabels) -> Callable:
    """Returns `(adapter, base, encoder_input_tokens) -> [batch, labels]`, ready to compile."""

    def score(adapter: nnx.State, base: nnx.State, encoder_input_tokens: Array):
        return label_log_probs(nnx.merge(graphdef, adapter, base), encoder_input_tokens, labels)

    return score


def likeliest_labels(
    label_log_probs: Callable,
    adapter: nnx.State,
    base: nnx.State,
    inputs: Sequence[np.ndarray],
    labels: PackedLabels,
    **batching: Any,
) -> list[str]:
    """The label of the highest log-probability for each of the token rows; `batching` as of `by_row`."""
    scored = by_row(label_log_probs, adapter, base, inputs, **batching)
    return [labels.texts[int(np.argmax(row))] for row in scored]


def agreement_with_generation(
    chosen: Sequence[str], generated: Sequence[str], numbers: Mapping[str, float]
) -> dict[str, float]:
    """How often the chosen label is what was generated, and the generated answers' own numbers beside it."""
    same = [one == other.strip() for one, other in zip(chosen, generated, strict=True)]
    of_generation = {f"generation_{name}": value for name, value in numbers.items()}
    return {"agreement_with_generation": float(np.mean(same)), **of_generation}
