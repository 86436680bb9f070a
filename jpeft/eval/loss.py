"""Cross-entropy of the target tokens of a batch or a whole split."""

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
    """Returns the summed cross-entropy, in nats, of a batch's target tokens without padding, and their number; float32.

    They are sums, so that batches with different numbers of tokens combine to the mean per token of a step or a split.
    With row weights (`jpeft.data.weighting`) each token counts with its row's weight in both sums.

    Args:
      batch: from `jpeft.model.family.Family.batch`, or from a pretraining objective's `pack`, with segment_ids.
      key: of the dropout masks; None for evaluation.
      largest_slice, label_smoothing: see `summed_cross_entropy`.
    """
    hidden = model.hidden_of(batch, key)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    sizes = {"vocab_size": model.config.vocab_size, "largest_slice": largest_slice}
    total = summed_cross_entropy(model.logits, hidden, targets, weights, **sizes, label_smoothing=label_smoothing)
    return total, jnp.sum(weights)


def make_loss(graphdef: nnx.GraphDef) -> Callable:
    """Returns a function `(adapter, base, batch) -> (summed loss, number of tokens)`, ready to compile."""

    def loss(adapter: nnx.State, base: nnx.State, batch: dict[str, Array]):
        return loss_sums(nnx.merge(graphdef, adapter, base), batch, largest_slice=LARGEST_FORWARD_SLICE)

    return loss


def mean_loss(loss: Callable, adapter: nnx.State, base: nnx.State, batches: Iterable[Batch]) -> float:
    """Returns the mean cross-entropy per target token of a whole split, with a program of `make_loss`."""
    # Results are fetched at the end, so that the host prepares the next batch while the device computes.
    sums = [loss(adapter, base, batch) for batch in batches]
    total, tokens = np.sum(np.asarray(sums, np.float64), axis=0)
    return float(total / tokens)
