"""Networks with shapes in the place of weights: to be counted, planned for, or filled from files."""

import functools
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

Network = TypeVar("Network", bound=nnx.Module)


def abstract(network: type[Network], config: Any, *, dtype: Any = jnp.float32) -> Network:
    """A network of that class and config whose weights are `jax.ShapeDtypeStruct`: nothing is allocated.

    Each call returns one of its own. To find the shapes JAX traces the network's construction, a tenth of a second for
    any size; that is done once for each config.

    Args:
      dtype: that it computes in.
    """
    return nnx.merge(*_shapes_of(network, config, dtype), copy=True)


@functools.lru_cache(maxsize=16)
def _shapes_of(network: type[nnx.Module], config: Any, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: network(config, dtype=dtype, rngs=nnx.Rngs(0))))  # pyright: ignore[reportCallIssue]
