"""Classification by scoring: how likely a model finds each of a few answers, without generating any."""

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
from jpeft.eval.generate import by_row
from jpeft.model.language_model import LanguageModel
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import can_be_seen
from jpeft.words import short

_MOST_TOKENS = 4096  # of all labels together: attention among them takes memory by its square
_MULTIPLE = 8  # of the packed length: it can then be cut into slices for the output layer
_DIGITS = 6  # of confidences and probabilities; float32 has about seven


@dataclasses.dataclass(frozen=True, eq=False)
class PackedLabels:
    """The token sequences of all labels one behind the other, as one row of the decoder.

    Packed, all labels of an input are scored in one pass that reads the encoder's keys and values once.

    Attributes:
      texts: the labels.
      targets: `[length]` int32, each label's tokens with its `</s>`; padding behind the last.
      inputs: `[length]` int32, `targets` shifted right within each label, behind the token that answers start with.
      segment_ids: `[length]` int32, the number of the label that a position belongs to; `len(texts)` on padding.
      pad_token_id: what padding is.
    """

    texts: tuple[str, ...]
    targets: np.ndarray
    inputs: np.ndarray
    segment_ids: np.ndarray
    pad_token_id: int = 0

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer, config: Any) -> "PackedLabels":
        """Raises `UserError`: fewer than two labels or too many, an empty one, or two that are the same tokens."""
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
        """Hashable; two sets of labels with equal keys can share one compiled scoring program."""
        return (*self.targets.tolist(), *self.segment_ids.tolist())

    def num_tokens(self) -> np.ndarray:
        """`[labels]`: tokens of each label, `</s>` counted."""
        return np.bincount(self.segment_ids, minlength=len(self.texts))[: len(self.texts)]

    def filled_up(self, length: int, num_labels: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """`inputs`, `targets`, `segment_ids` of `length`, padding numbered `num_labels`, beside rows of other labels.

        Both are at least as large as they are here.
        """
        own = len(self.texts)
        segment_ids = np.where(self.segment_ids == own, num_labels, self.segment_ids)
        missing = length - len(self.targets)
        pad = self.targets.dtype.type(self.pad_token_id)
        fill = lambda ids, value: np.pad(ids, (0, missing), constant_values=value)
        return fill(self.inputs, pad), fill(self.targets, pad), fill(segment_ids, num_labels)

    def choose(self, log_probs: np.ndarray) -> "ChosenLabel":
        """The likeliest of the labels.

        Args:
          log_probs: `[labels]`, of each label's whole text, in nats.

        Raises:
          RunFailed: one is not finite.
        """
        rounded(log_probs.min())  # of finite logits none is -inf; of NaN and others the least is NaN
        best = int(np.argmax(log_probs))
        confidence = rounded(log_probs[best] / self.num_tokens()[best])
        probabilities = map(rounded, label_probabilities(log_probs))
        return ChosenLabel(self.texts[best], confidence, dict(zip(self.texts, probabilities, strict=True)))


@dataclasses.dataclass(frozen=True)
class ChosenLabel:
    """The label that was chosen, with numbers as they are written: rounded.

    Attributes:
      confidence: mean log-probability of its tokens, `</s>` counted: what it would have if generated.
      probabilities: of each label, among these labels.
    """

    text: str
    confidence: float
    probabilities: dict[str, float]


def label_probabilities(log_probs: np.ndarray) -> np.ndarray:
    """`[..., labels]` float64: how likely each label is among these, by their log-probabilities, which are finite."""
    log_probs = np.asarray(log_probs, np.float64)
    odds = np.exp(log_probs - log_probs.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def rounded(value: Any) -> float:
    """A log-probability or a probability as it is written. Raises `RunFailed`: it is not finite."""
    if not math.isfinite(value):
        raise RunFailed(f"the model computes {value} where a log-probability should be; try --dtype float32.")
    return round(float(value), _DIGITS)


def answer_in_use(answer: str, task: Task) -> str:
    """Resolves `eval.answer`: `auto` scores a user's own labels, unless there is one or very many, else generates."""
    if answer != "auto":
        return answer
    return "score" if task.name == "custom" and 2 <= len(task.answers) <= MOST_SCORED else "generate"


def label_log_probs(
    model: LanguageModel, inputs: Int[Array, "batch in_length"], labels: PackedLabels
) -> Float[Array, "batch labels"]:
    """Log-probability in nats of each label, all of its tokens and `</s>`, as the answer to each input; float32.

    A relative position within a label is the same wherever the label stands, and a label sees its own tokens alone, so
    each has the probability that it has by itself.
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
    """`label_log_probs` for rows that each have labels of their own, given as arrays like those of `PackedLabels`.

    Args:
      inputs: tokens of the prompts.
      labels: as `PackedLabels.inputs`, tokens of all labels, each label's shifted right; `targets` are not shifted.
      segment_ids: the number of the label that each of these belongs to.
      num_labels: of every row; those that a row does not have get 0. Padding has this number as its segment id.
    """
    batch, length = inputs.shape[0], targets.shape[1]
    row = lambda ids: jnp.broadcast_to(ids, (batch, length))
    hidden = model.hidden_of_labels(inputs, row(labels), segment_ids)
    log_probs = target_log_probs(model.logits, hidden, row(targets), vocab_size=model.config.vocab_size)
    add_up = functools.partial(jax.ops.segment_sum, num_segments=num_labels + 1)
    return jax.vmap(add_up)(log_probs, row(segment_ids))[:, :num_labels]  # without the padding


def make_label_log_probs(graphdef: nnx.GraphDef, labels: PackedLabels) -> Callable:
    """Returns `(adapter, base, inputs) -> [batch, labels]`, ready to compile."""

    def score(adapter: nnx.State, base: nnx.State, inputs: Array):
        return label_log_probs(nnx.merge(graphdef, adapter, base), inputs, labels)

    return score


@dataclasses.dataclass(frozen=True)
class ChosenLabels:
    """The likeliest label of each of a split's rows.

    Attributes:
      texts: the labels.
      probabilities: `[rows, labels]`, of each label among all of them; not rounded.
    """

    texts: list[str]
    probabilities: np.ndarray


def likeliest_labels(
    label_log_probs: Callable,
    adapter: nnx.State,
    base: nnx.State,
    inputs: Sequence[np.ndarray],
    labels: PackedLabels,
    **batching: Any,
) -> ChosenLabels:
    """The label of the highest log-probability for each of the token rows; `batching` as of `by_row`.

    Raises:
      RunFailed: a label's is not finite.
    """
    scored = np.array(by_row(label_log_probs, adapter, base, inputs, **batching), np.float64)
    if not (finite := np.isfinite(scored)).all():
        row, label = np.argwhere(~finite)[0]
        raise RunFailed(
            f"the model computes {scored[row, label]} as the log-probability of {labels.texts[label]!r} for row {row}; "
            "try float32 (model.dtype)."
        )
    chosen = [labels.texts[i] for i in np.argmax(scored, axis=1)]
    return ChosenLabels(chosen, label_probabilities(scored))


def agreement_with_generation(
    chosen: Sequence[str], generated: Sequence[str], numbers: Mapping[str, float]
) -> dict[str, float]:
    """How often the chosen label is what was generated, and the generated answers' own numbers beside it."""
    same = [one == other.strip() for one, other in zip(chosen, generated, strict=True)]
    of_generation = {f"generation_{name}": value for name, value in numbers.items()}
    return {"agreement_with_generation": float(np.mean(same)), **of_generation}
