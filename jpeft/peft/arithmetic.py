"""What methods do to activations: multiply by a vector and add, in float32, rounded once to the activations' dtype."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def widened(x: Array) -> Array:
    """`x` in float32, or in its own dtype where that is wider (float64)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rescaled(x: Float[Array, "*batch width"], scale: Float[Array, " width"]) -> Float[Array, "*batch width"]:
    """`x * scale`, multiplied in float32 and rounded once: as a bfloat16, a scale of 1.003 is 1."""
    return _rescaled(x, scale) if x.dtype in (jnp.bfloat16, jnp.float16) else x * scale.astype(x.dtype)


@jax.custom_vjp
def _rescaled(x: Float[Array, "*batch width"], scale: Float[Array, " width"]) -> Float[Array, "*batch width"]:
    """`rescaled` for a narrower x, which is kept for the gradient as it is: JAX would keep it in float32."""
    return (x.astype(jnp.float32) * scale.astype(jnp.float32)).astype(x.dtype)


def _rescaled_backward(kept: tuple[Array, Array], by: Array) -> tuple[Array, Array]:
    x, scale = kept
    wide = by.astype(jnp.float32)
    of_scale = jnp.sum(wide * x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
    return (wide * scale.astype(jnp.float32)).astype(x.dtype), of_scale.astype(scale.dtype)


_rescaled.defvjp(lambda x, scale: (_rescaled(x, scale), (x, scale)), _rescaled_backward)


def added(y: Float[Array, "*batch width"], *more: Float[Array, "..."]) -> Float[Array, "*batch width"]:
    """The sum of `y` and what a method adds to it, made in float32 and rounded once."""
    return sum(map(widened, more), widened(y)).astype(y.dtype)
