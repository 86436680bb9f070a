"""Adapters with something in them."""

import jax
from flax import nnx

from jpeft.model.t5 import T5
from jpeft.peft.base import split


def filled(model: T5, key) -> T5:
    """The model with every adapter leaf moved at random: a fresh one proves nothing where it starts at the identity."""
    graphdef, adapter, base = split(model)
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(key, len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, moved), base)
