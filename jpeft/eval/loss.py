"""Cross-entropy of target tokens, of a batch and of a whole split."""

from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jpeft.eval.cross_entropy import LARGEST_FORWARD_SLICE, LARGEST_SLICE, summed_cross_entropy
from jpeft.model.family import Batch
from jpeft.model.language_model import LanguageModel


def loss_sums(
    model: LanguageModel,
    batch: dict[str, Array],
    key: Key[Array, ""] | None = None,
    *,
    largest_slice: int = LARGEST_SLICE,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the cross-entropy in nats over the batch's real target tokens, and how many those are. Float32.

    Sums, not a mean: batches of different token counts then add up to the mean per token of a whole step or split.
    Where rows have weights (`jpeft.data.weighting`), each token counts as often as its row's weight says in both.

    Args:
      batch: as `jpeft.model.family.Family.batch` makes it, or a pretraining objective's `pack` with its segment_ids.
      key: draws dropout masks; None for evaluation.
      largest_slice: how many logits may exist at once.
      label_smoothing: as of `summed_cross_entropy`.
    """
    hidden = model.hidden_of(batch, key)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    sizes = {"vocab_size": model.config.vocab_size, "largest_slice": largest_slice}
    total = summed_cross_entropy(model.logits, hidden, targets, weights, **sizes, label_smoothing=label_smoothing)
    return total, jnp.sum(weights)


def make_loss(graphdef: nnx.GraphDef) -> Callable:
    """Returns `(adapter, base, batch) -> (loss sum, number of tokens)`, ready to compile."""

    def loss(adapter: nnx.State, base: nnx.State, batch: dict[str, Array]):
        return loss_sums(nnx.merge(graphdef, adapter, base), batch, largest_slice=LARGEST_FORWARD_SLICE)

    return loss


def mean_loss(loss: Callable, adapter: nnx.State, base: nnx.State, batches: Iterable[Batch]) -> float:
    """Mean cross-entropy per target token of a whole split, every token weighing the same."""
    # Fetched at the end: the host prepares the next batch while the device works on this one.
    sums = [loss(adapter, base, batch) for batch in batches]
    total, tokens = np.sum(np.asarray(sums, np.float64), axis=0)
    return float(total / tokens)
