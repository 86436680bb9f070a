"""Networks whose weights are shapes only, for counting parameters, planning memory and loading from files."""

import functools
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

Network = TypeVar("Network", bound=nnx.Module)


def abstract(network: type[Network], config: Any, *, dtype: Any = jnp.float32) -> Network:
    """Build a network whose weights are `jax.ShapeDtypeStruct`, without allocating memory.

    JAX finds the shapes by tracing the constructor, which takes about 0.1 s at any size. The trace is cached by class,
    config and dtype; every call returns a new network.

    Args:
      network: the network's class, called as `network(config, dtype=..., rngs=...)`.
      config: the network's config.
      dtype: the dtype that the network computes in.
    """
    return nnx.merge(*_traced_shapes(network, config, dtype), copy=True)


@functools.lru_cache(maxsize=16)
def _traced_shapes(network: type[nnx.Module], config: Any, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: network(config, dtype=dtype, rngs=nnx.Rngs(0))))  # pyright: ignore[reportCallIssue]
