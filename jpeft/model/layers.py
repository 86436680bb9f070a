"""What networks of all families are made of: products, norms, tables, dropout.

Compute dtype travels with the activations: every layer casts its own weights to the dtype of its input. Statistics of
norms, and scales, are float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import CustomVJPPrimal
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

# Added to a logit that must not be attended to: finite, so that a row with nothing to attend stays finite.
MASKED = -1e9

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the rest; the identity when `key` is None.

    The coin is a 32-bit integer: on CPU the `rbg` generator draws those ten times as fast as 16-bit ones.
    """
    if key is None or rate == 0.0:
        return x
    keep = _coins(x.shape)(key) < np.uint32(round((1.0 - rate) * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


@functools.cache
def _coins(shape: tuple[int, ...]) -> Callable[[Any], Array]:
    """Random 32-bit integers of a shape by a key; for the keys of several runs at once, those of each alone."""
    # Drawn one key after the other: the `rbg` generator makes other bits of several keys together than of each.
    return jax.custom_batching.sequential_vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))


def split_key(key: Key[Array, ""] | None, num: int) -> Sequence[Key[Array, ""] | None]:
    """`num` random keys made of one, or as many times None where there is none (no dropout)."""
    return [None] * num if key is None else list(jax.random.split(key, num))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*batch d_in"], kernel: Float[Array, "d_in d_out"], dtype: DTypeLike
) -> Float[Array, "*batch d_out"]:
    """`x @ kernel` in `dtype`; for the kernel's gradient the narrower of x and the output's gradient is transposed.

    JAX always transposes the latter. On a CPU, XLA then works out the elementwise part of a wide one again, column
    by column: for the gated feed-forward that took longer than all products of the step (docs/log.md).
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _product_forward(
    x: CustomVJPPrimal, kernel: CustomVJPPrimal, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    # What is kept is what the backward pass needs: a frozen kernel asks for no x, an input that leads to nothing
    # trainable for no kernel. An empty array stands for what is not kept, and not None: layers share a
    # program, and where the first one's x leads to nothing trainable and the second's does JAX wants one tree of both.
    y = jnp.matmul(x.value, kernel.value, preferred_element_type=dtype)
    nothing = jnp.zeros(0, x.value.dtype)
    return y, (x.value if kernel.perturbed else nothing, kernel.value if x.perturbed else nothing)


def _product_backward(dtype: DTypeLike, kept: tuple[Array, Array], by: Array) -> tuple[Array | None, Array | None]:
    x, kernel = (operand if operand.size else None for operand in kept)
    for operand in (x, kernel):
        by = by if operand is None else by.astype(operand.dtype)  # that of logits comes in float32
    of_x = None if kernel is None else by @ kernel.T
    if x is None:
        return of_x, None
    if x.shape[-1] < by.shape[-1]:
        return of_x, jnp.einsum("...i,...o->io", x, by)
    return of_x, jnp.einsum("...o,...i->oi", by, x).T


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def _normal(key: Key[Array, ""], shape: tuple[int, ...], stddev: float | Array) -> Array:
    return jax.random.normal(key, shape) * stddev


class Linear(nnx.Module):
    """`x @ kernel`, and a bias where it has one. What comes out has the dtype of x, or float32 where it is `wide`."""

    bias: nnx.Param

    def __init__(
        self, d_in: int, d_out: int, *, stddev: float, rngs: nnx.Rngs, wide: bool = False, has_bias: bool = False
    ):
        self.wide = wide
        self.kernel = nnx.Param(_normal(rngs.params(), (d_in, d_out), stddev))
        if has_bias:
            self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        dtype = jnp.dtype(jnp.float32) if self.wide else x.dtype
        y = self._product(x, dtype)
        if hasattr(self, "bias"):
            y = (y.astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(dtype)
        return y

    def _product(self, x: Float[Array, "*batch d_in"], dtype: DTypeLike) -> Float[Array, "*batch d_out"]:
        return product(x, self.kernel[...].astype(x.dtype), dtype)


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` over the last axis (Zhang & Sennrich 2019): no mean is subtracted and no bias added."""

    def __init__(self, d_model: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        return self._normalize(x)

    def _normalize(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        # Statistics in float32: squares of bfloat16 activations lose the small channels.
        wide = x.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (normal * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean) / deviation * scale + bias` over the last axis (Ba et al. 2016); statistics are float32."""

    def __init__(self, d_model: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        return self._normalize(x)

    def _normalize(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
        return (normal * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors, `embedding: [num_rows, width]`, looked up by integer."""

    def __init__(self, num_rows: int, width: int, *, stddev: float, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_normal(rngs.params(), (num_rows, width), stddev))

    def __call__(self, rows: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        return self.embedding[...][rows]

    def scores(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch num_rows"]:
        """The product of x with each row, float32, where the table is also the map to the vocabulary."""
        return jnp.matmul(x, self.embedding[...].astype(x.dtype).T, preferred_element_type=jnp.float32)


class EmbeddedInput(nnx.Module):
    """The embedded input on its way into the blocks, where a soft prompt is put before it."""

    site_kind: ClassVar[str] = "input"

    def __init__(self, d_model: int):
        self.site_widths = (d_model, d_model)

    def __call__(
        self, x: Float[Array, "batch length d_model"], mask: Bool[Array, "batch length"]
    ) -> tuple[Float[Array, "batch new_len d_model"], Bool[Array, "batch new_len"]]:
        return x, mask


def apart(queries: Int[Array, "batch q_len"], keys: Int[Array, "batch kv_len"]) -> Float[Array, "batch 1 q_len kv_len"]:
    """The additive bias that hides what is of another packed example."""
    return jnp.where(queries[:, :, None] == keys[:, None, :], 0.0, MASKED)[:, None]
