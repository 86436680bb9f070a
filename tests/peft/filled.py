"""Adapters with something in them."""

import jax
import numpy as np
from flax import nnx

from jpeft.model.t5 import T5
from jpeft.peft.attaching import split


def filled(model: T5, key, *, by: float = 0.3) -> T5:
    """The model with every adapter leaf moved at random, by that standard deviation.

    A fresh adapter proves nothing where it starts at the identity.
    """
    graphdef, adapter, base = split(model)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # numpy: nothing to compile for each shape

    def moved(leaf):
        return jax.device_put(np.asarray(leaf) + by * draw.standard_normal(leaf.shape, np.float32))

    return nnx.merge(graphdef, jax.tree.map(moved, adapter), base)
