"""AdamW over the trainable leaves of a model, with a learning rate factor per group of leaves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from jpeft.leaves import is_stacked

# Makes the gradient transformation for a schedule. Hashable if compiled programs are shared: it is part of their key.
Optimizer = Callable[[optax.Schedule], optax.GradientTransformation]


def decay_mask(adapter: nnx.State) -> nnx.State:
    """True for the leaves that weight decay applies to: matrices.

    Scales start at 1, and biases and norms are vectors: decay towards 0 would undo the method, not regularise it.
    """
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim - is_stacked(path) > 1, adapter)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with PyTorch's defaults, which the paper used (betas 0.9 and 0.999, epsilon 1e-8), and optional clipping.

    It sees the trainable tree alone, so frozen weights have no optimizer state, no decay and no share in the gradient
    norm.

    Attributes:
      weight_decay: applied to matrices only.
      clip_grad_norm: largest global norm of the gradient; None disables clipping.
      rate_factors: pairs of a leaf name and the factor of its learning rate (`Method.rate_factors`).
    """

    weight_decay: float = 0.0
    clip_grad_norm: float | None = None
    rate_factors: tuple[tuple[str, float], ...] = ()

    def __call__(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        tx = optax.adamw(schedule, weight_decay=self.weight_decay, mask=decay_mask)
        tx = with_rate_factors(tx, dict(self.rate_factors))
        return tx if self.clip_grad_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_grad_norm), tx)


def with_rate_factors(tx: optax.GradientTransformation, factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Wraps `tx` to multiply the updates of some leaves, weight decay included: a learning rate of their own.

    Args:
      tx: the transformation to wrap.
      factors: the factor of each leaf name; leaves without one keep their updates.
    """
    if not factors:
        return tx

    def multiplied(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map_with_path(lambda path, leaf: leaf * factors.get(_name_of(path), 1.0), updates)

    return optax.chain(tx, optax.stateless(multiplied))


def _name_of(path: Sequence[Any]) -> str:
    """The name of a leaf of a model's state, from its `jax.tree_util` path."""
    return next(str(part.key) for part in reversed(path) if isinstance(part, jax.tree_util.DictKey))
