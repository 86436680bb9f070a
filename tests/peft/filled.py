"""Adapters with random values, as after training."""

import jax
import numpy as np
from flax import nnx

from jpeft.model.t5 import T5
from jpeft.peft.attaching import split


def filled(model: T5, key, *, by: float = 0.3) -> T5:
    """Adds Gaussian noise of standard deviation `by` to every adapter leaf of a model.

    A new adapter often starts as a no-op, with which most tests would prove nothing.
    """
    graphdef, adapter, base = split(model)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # NumPy needs no compilation per shape

    def moved(leaf):
        return jax.device_put(np.asarray(leaf) + by * draw.standard_normal(leaf.shape, np.float32))

    return nnx.merge(graphdef, jax.tree.map(moved, adapter), base)
