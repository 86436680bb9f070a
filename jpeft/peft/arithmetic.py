"""Scaling and adding activations in float32, with a single rounding to the dtype of the activations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own dtype where that is wider (float64)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rescaled(x: Float[Array, "*batch width"], scale: Float[Array, " width"]) -> Float[Array, "*batch width"]:
    """`x * scale` in float32, rounded once to the dtype of `x`; as a bfloat16, a scale of 1.003 would be 1."""
    return _rescaled(x, scale) if x.dtype in (jnp.bfloat16, jnp.float16) else x * scale.astype(x.dtype)


def _rounded_product(x: Float[Array, "*batch width"], scale: Float[Array, " width"]) -> Float[Array, "*batch width"]:
    return (x.astype(jnp.float32) * scale.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def _rescaled(x: Float[Array, "*batch width"], scale: Float[Array, " width"]) -> Float[Array, "*batch width"]:
    """`rescaled` for `x` below float32; saves `x` for the backward pass in its dtype, where JAX would save float32."""
    return _rounded_product(x, scale)


def _rescaled_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """JAX's own gradients, which under `jax.shard_map` are summed over the devices that share the scale."""
    return jax.vjp(_rounded_product, *saved)[1](grad)


_rescaled.defvjp(lambda x, scale: (_rescaled(x, scale), (x, scale)), _rescaled_backward)


def added(y: Float[Array, "*batch width"], *more: Float[Array, "..."]) -> Float[Array, "*batch width"]:
    """The sum of all arguments in float32, rounded once to the dtype of `y`."""
    return sum(map(at_least_float32, more), at_least_float32(y)).astype(y.dtype)
