"""Classification by scoring: the log-probability that a model gives to each label, without generation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jpeft.data.task_file import MOST_SCORED
from jpeft.data.tasks import Task
from jpeft.errors import RunFailed, UserError
from jpeft.eval.cross_entropy import target_log_probs
from jpeft.eval.generate import NOT_FINITE, Batching, by_row
from jpeft.model.language_model import LanguageModel
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import can_be_seen
from jpeft.words import short

_MOST_TOKENS = 4096  # of all labels together: the memory of attention among them grows with the square
_MULTIPLE = 8  # of the packed length, so that the output layer can process it in slices
_DIGITS = 6  # of confidences and probabilities in files; float32 has about seven


@dataclasses.dataclass(frozen=True, eq=False)
class PackedLabels:
    """The tokens of all labels, packed into one decoder row, so that one pass over the encoder's output scores all.

    Attributes:
      texts: the labels.
      targets: `[length]` int32, each label's tokens with `</s>`, then padding.
      inputs: `[length]` int32, `targets` shifted right within each label, starting with the decoder's start token.
      segment_ids: `[length]` int32, index of the label of each position; `len(texts)` on padding.
      pad_token_id: of the padding.
    """

    texts: tuple[str, ...]
    targets: np.ndarray
    inputs: np.ndarray
    segment_ids: np.ndarray
    pad_token_id: int = 0

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer, config: Any) -> "PackedLabels":
        """Packs labels.

        Args:
          config: of the model, for `pad_token_id` and `decoder_start_token_id`.

        Raises:
          UserError: there are fewer than two labels or too many tokens, one is empty, or two have the same tokens.
        """
        texts = tuple(text.strip() for text in texts)
        if len(texts) < 2 or not all(map(can_be_seen, texts)):
            shown = ", ".join(map(short, texts)) or "none"
            raise UserError(f"the labels are {shown}; expected two or more, none of them empty.")
        rows = tokenizer.answers(texts)
        seen: dict[tuple[int, ...], str] = {}
        for text, row in zip(texts, rows, strict=True):
            if tuple(row) in seen:
                raise UserError(
                    f"the labels {short(seen[tuple(row)])} and {short(text)} are the same tokens to this model; "
                    "rename one."
                )
            seen[tuple(row)] = text
        together = sum(map(len, rows))
        if together > _MOST_TOKENS:
            raise UserError(
                f"the {len(texts):,} labels have {together:,} tokens together, and {_MOST_TOKENS:,} at most can be "
                "scored at once; have the answers generated instead (eval.answer=generate, or --generate of predict)."
            )
        padding = -together % _MULTIPLE
        return cls(
            texts,
            targets=np.array([*(token for row in rows for token in row), *[config.pad_token_id] * padding], np.int32),
            inputs=np.array(
                [token for row in rows for token in (config.decoder_start_token_id, *row[:-1])]
                + [config.pad_token_id] * padding,
                np.int32,
            ),
            segment_ids=np.repeat(np.arange(len(rows) + 1), [*map(len, rows), padding]).astype(np.int32),
            pad_token_id=config.pad_token_id,
        )

    @property
    def key(self) -> tuple[int, ...]:
        """A hashable key; labels with equal keys can share one compiled scoring program."""
        return (*self.targets.tolist(), *self.segment_ids.tolist())

    def num_tokens(self) -> np.ndarray:
        """Returns `[labels]`: the number of tokens of each label, `</s>` included."""
        return np.bincount(self.segment_ids, minlength=len(self.texts))[: len(self.texts)]

    def filled_up(self, length: int, num_labels: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """Pads the arrays for a batch with rows of other labels.

        Args:
          length: of the padded arrays, at least that of this one.
          num_labels: of the row with the most labels; it becomes the segment id of the padding.

        Returns:
          `inputs`, `targets` and `segment_ids`, each `[length]`.
        """
        own = len(self.texts)
        segment_ids = np.where(self.segment_ids == own, num_labels, self.segment_ids)
        missing = length - len(self.targets)
        pad = self.targets.dtype.type(self.pad_token_id)
        fill = lambda ids, value: np.pad(ids, (0, missing), constant_values=value)
        return fill(self.inputs, pad), fill(self.targets, pad), fill(segment_ids, num_labels)

    def choose(self, log_probs: np.ndarray) -> "ChosenLabel":
        """Returns the most likely label.

        Args:
          log_probs: `[labels]`, log-probability of each label's whole text, in nats.

        Raises:
          RunFailed: a log-probability is not finite.
        """
        rounded(log_probs.min())  # raises for -inf and for NaN, which `min` propagates
        best = int(np.argmax(log_probs))
        confidence = rounded(log_probs[best] / self.num_tokens()[best])
        probabilities = map(rounded, label_probabilities(log_probs))
        return ChosenLabel(self.texts[best], confidence, dict(zip(self.texts, probabilities, strict=True)))


@dataclasses.dataclass(frozen=True)
class ChosenLabel:
    """The most likely label of a row, with rounded numbers.

    Attributes:
      confidence: mean log-probability per token, `</s>` included, as for a generated answer.
      probabilities: by label, normalised over the labels.
    """

    text: str
    confidence: float
    probabilities: dict[str, float]


def label_probabilities(log_probs: np.ndarray) -> np.ndarray:
    """Normalises finite log-probabilities over the labels: `[..., labels]`, float64."""
    log_probs = np.asarray(log_probs, np.float64)
    odds = np.exp(log_probs - log_probs.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def rounded(value: Any) -> float:
    """Rounds a probability or a log-probability for output. Raises `RunFailed` if it is not finite."""
    if not math.isfinite(value):
        raise RunFailed(f"the model computes {value} where a log-probability should be; {NOT_FINITE}.")
    return round(float(value), _DIGITS)


def answer_in_use(answer: str, task: Task) -> str:
    """Resolves `eval.answer`: `auto` scores the 2 to `MOST_SCORED` labels of a custom task, and generates otherwise."""
    if answer != "auto":
        return answer
    return "score" if task.is_custom and 2 <= len(task.answers) <= MOST_SCORED else "generate"


def label_log_probs(
    model: LanguageModel, inputs: Int[Array, "batch in_length"], labels: PackedLabels
) -> Float[Array, "batch labels"]:
    """Returns the log-probability of each label, `</s>` included, as the answer to each input; float32, in nats.

    Packing does not change it: a label attends to its own tokens only, and relative positions within it stay the same.
    """
    packed = (jnp.asarray(ids)[None] for ids in (labels.inputs, labels.targets, labels.segment_ids))
    return packed_log_probs(model, inputs, *packed, num_labels=len(labels.texts))


def packed_log_probs(
    model: LanguageModel,
    inputs: Int[Array, "batch in_length"],
    labels: Int[Array, "#batch length"],
    targets: Int[Array, "#batch length"],
    segment_ids: Int[Array, "#batch length"],
    *,
    num_labels: int,
) -> Float[Array, "batch {num_labels}"]:
    """Computes `label_log_probs` with separate labels for each row, given as the arrays of `PackedLabels`.

    Args:
      inputs: token ids of the prompts.
      labels, targets, segment_ids: `inputs`, `targets` and `segment_ids` of `PackedLabels`.
      num_labels: the largest number of labels of a row, which is also the segment id of padding. A row with fewer
        labels gets 0 for the missing ones.
    """
    batch, length = inputs.shape[0], targets.shape[1]
    row = lambda ids: jnp.broadcast_to(ids, (batch, length))
    hidden = model.hidden_of_labels(inputs, row(labels), segment_ids)
    log_probs = target_log_probs(model.logits, hidden, row(targets), vocab_size=model.config.vocab_size)
    add_up = functools.partial(jax.ops.segment_sum, num_segments=num_labels + 1)
    return jax.vmap(add_up)(log_probs, row(segment_ids))[:, :num_labels]  # without the padding


def make_label_log_probs(graphdef: nnx.GraphDef, labels: PackedLabels) -> Callable:
    """Returns a function `(adapter, base, inputs) -> log-probabilities: [batch, labels]`, ready to compile."""

    def score(adapter: nnx.State, base: nnx.State, inputs: Array):
        return label_log_probs(nnx.merge(graphdef, adapter, base), inputs, labels)

    return score


@dataclasses.dataclass(frozen=True)
class ChosenLabels:
    """The most likely label of each row of a split.

    Attributes:
      texts: the labels.
      probabilities: `[rows, labels]`, normalised over the labels, not rounded.
    """

    texts: list[str]
    probabilities: np.ndarray


def likeliest_labels(
    label_log_probs: Callable,
    adapter: nnx.State,
    base: nnx.State,
    inputs: Sequence[np.ndarray],
    labels: PackedLabels,
    batching: Batching,
) -> ChosenLabels:
    """Chooses the most likely label of each row, with a program of `make_label_log_probs`.

    Args:
      inputs: token ids of each row.

    Raises:
      RunFailed: a log-probability is not finite.
    """
    scored = np.array(by_row(label_log_probs, adapter, base, inputs, batching), np.float64)
    if not (finite := np.isfinite(scored)).all():
        row, label = np.argwhere(~finite)[0]
        raise RunFailed(
            f"the model computes {scored[row, label]} as the log-probability of {labels.texts[label]!r} for row {row}; "
            f"{NOT_FINITE}."
        )
    chosen = [labels.texts[i] for i in np.argmax(scored, axis=1)]
    return ChosenLabels(chosen, label_probabilities(scored))


def agreement_with_generation(
    chosen: Sequence[str], generated: Sequence[str], numbers: Mapping[str, float]
) -> dict[str, float]:
    """Returns the fraction of rows whose chosen label was also generated, and the metrics of the generated answers.

    Args:
      numbers: metrics of the generated answers, by name; returned with the prefix `generation_`.
    """
    same = [one == other.strip() for one, other in zip(chosen, generated, strict=True)]
    of_generation = {f"generation_{name}": value for name, value in numbers.items()}
    return {"agreement_with_generation": float(np.mean(same)), **of_generation}
