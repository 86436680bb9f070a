"""AdamW over the trainable leaves of a model, each with the learning rate of its group."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from jpeft.leaves import is_stacked

# What a run's updates are made by, given the rates: hashable where programs are to be shared, since it is part of them.
Optimizer = Callable[[optax.Schedule], optax.GradientTransformation]


def decay_mask(adapter: nnx.State) -> nnx.State:
    """True for the leaves that weight decay may shrink: matrices.

    Scales start at 1, biases and norms are vectors: pulling those towards 0 would undo the method, not regularise it.
    """
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim - is_stacked(path) > 1, adapter)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8: PyTorch's, which the paper used), with optional clipping before it.

    It is given the trainable tree alone, so frozen weights have no state, no decay and no share in the gradient's norm.

    Attributes:
      weight_decay: of matrices.
      clip_grad_norm: largest norm of the gradient; None does not clip.
      rate_factors: names of leaves, and by what the learning rate of each is multiplied (`Method.rate_factors`).
    """

    weight_decay: float = 0.0
    clip_grad_norm: float | None = None
    rate_factors: tuple[tuple[str, float], ...] = ()

    def __call__(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        tx = optax.adamw(schedule, weight_decay=self.weight_decay, mask=decay_mask)
        tx = with_rate_factors(tx, dict(self.rate_factors))
        return tx if self.clip_grad_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_grad_norm), tx)


def with_rate_factors(tx: optax.GradientTransformation, factors: Mapping[str, float]) -> optax.GradientTransformation:
    """`tx` with the updates of some leaves multiplied, decay among them: a rate of their own; by the leaves' names."""
    if not factors:
        return tx

    def multiplied(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map_with_path(lambda path, leaf: leaf * factors.get(_name_of(path), 1.0), updates)

    return optax.chain(tx, optax.stateless(multiplied))


def _name_of(path: Sequence[Any]) -> str:
    """The name of a leaf of a model's state at a `jax.tree_util` path, which may end within its variable."""
    return next(str(part.key) for part in reversed(path) if isinstance(part, jax.tree_util.DictKey))
