"""Layers that all families share: linear maps, norms, embeddings and dropout.

The compute dtype travels with the activations: every layer casts its weights to the dtype of its input. Norms compute
their statistics and scales in float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from jpeft.errors import UserError
from jpeft.model.products import product

# Added to the score of a masked key. Finite, so that a query whose keys are all masked does not become NaN.
MASKED = -1e9

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def activated(
    activation: str, x: Float[Array, "*batch width"], factor: Float[Array, "*batch width"] | None = None
) -> Float[Array, "*batch width"]:
    """Compute `act(x)`, or `act(x) * factor`, in float32 and round the result once to the dtype of `x`.

    A CPU would otherwise round after every operation of an activation and its gradient, which takes longer than those.
    """
    y = ACTIVATIONS[activation](x.astype(jnp.float32))
    return (y if factor is None else y * factor.astype(jnp.float32)).astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zero each element with probability `rate` and scale the rest by `1 / (1 - rate)`; a no-op if `key` is None.

    It draws 32-bit integers, which the `rbg` generator makes ten times as fast as 16-bit ones on a CPU.
    """
    if key is None or rate == 0.0:
        return x
    keep = _random_bits(x.shape)(key) < np.uint32(round((1.0 - rate) * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


@functools.cache
def _random_bits(shape: tuple[int, ...]) -> Callable[[Any], Array]:
    """A function from a key to random 32-bit integers of this shape, which `jax.vmap` leaves independent of the batch.

    Under `jax.vmap` keys are processed one at a time, since the `rbg` generator would draw other bits from several keys
    at once: runs that are trained together would differ from the same runs alone.
    """
    return jax.custom_batching.sequential_vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))


def split_key(key: Key[Array, ""] | None, num: int) -> Sequence[Key[Array, ""] | None]:
    """Split a key into `num`; `num` times None if it is None (no dropout)."""
    return [None] * num if key is None else list(jax.random.split(key, num))


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def _normal(key: Key[Array, ""], shape: tuple[int, ...], stddev: float | Array) -> Array:
    return jax.random.normal(key, shape) * stddev


class Linear(nnx.Module):
    """A linear map `x @ kernel`, plus a bias if it has one; results have x's dtype, or float32 (`float32_result`)."""

    bias: nnx.Param

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        stddev: float,
        rngs: nnx.Rngs,
        float32_result: bool = False,
        has_bias: bool = False,
    ):
        self.float32_result = float32_result
        self.kernel = nnx.Param(_normal(rngs.params(), (d_in, d_out), stddev))
        if has_bias:
            self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        dtype = jnp.dtype(jnp.float32) if self.float32_result else x.dtype
        y = self._product(x, dtype)
        if hasattr(self, "bias"):
            y = (y.astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(dtype)
        return y

    def _product(self, x: Float[Array, "*batch d_in"], dtype: DTypeLike) -> Float[Array, "*batch d_out"]:
        return product(x, self.kernel[...].astype(x.dtype), dtype)


class RMSNorm(nnx.Module):
    """RMSNorm over the last axis, `x / rms(x) * scale` (Zhang & Sennrich 2019), with statistics in float32."""

    def __init__(self, d_model: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        return self._normalize(x)

    def _normalize(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        # In float32, since the squares of bfloat16 activations would lose small channels.
        wide = x.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (normal * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, `(x - mean) / std * scale + bias` (Ba et al. 2016), with statistics in float32."""

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
    """A lookup table, `embedding: [num_rows, width]`."""

    def __init__(self, num_rows: int, width: int, *, stddev: float, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_normal(rngs.params(), (num_rows, width), stddev))

    def __call__(self, rows: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        return self.embedding[...][rows]

    def scores(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch num_rows"]:
        """The product of x with every row, float32: the logits of a model whose head is tied to its embedding."""
        return product(x, self.embedding[...].astype(x.dtype).T, jnp.dtype(jnp.float32))


class EmbeddedInput(nnx.Module):
    """The identity on the embedded input and its mask: the site at which prompt tuning prepends a soft prompt."""

    site_kind: ClassVar[str] = "input"

    def __init__(self, d_model: int):
        self.site_widths = (d_model, d_model)

    def __call__(
        self, x: Float[Array, "batch length d_model"], mask: Bool[Array, "batch length"]
    ) -> tuple[Float[Array, "batch new_len d_model"], Bool[Array, "batch new_len"]]:
        return x, mask


def lengths_of(rows: Int[Array, "batch length"], padding_id: int) -> Int[Array, "batch 1"]:
    """The lengths of rows without the padding at their end; the id may occur before that."""
    until = np.arange(1, rows.shape[1] + 1)
    return jnp.max(jnp.where(rows != padding_id, until, 0), axis=1, keepdims=True)


def apart(queries: Int[Array, "batch q_len"], keys: Int[Array, "batch kv_len"]) -> Float[Array, "batch 1 q_len kv_len"]:
    """The additive score bias that masks other examples of a packed row; arguments are segment ids."""
    return jnp.where(queries[:, :, None] == keys[:, None, :], 0.0, MASKED)[:, None]


def refuse_longer(x: Float[Array, "batch new_len d_model"], length: int, *, instead: str) -> None:
    """Raise `UserError` if an adapter has lengthened packed rows, whose segment ids have no place for that.

    Args:
      x: the embedded input with what the adapter adds.
      length: the number of tokens of a row.
      instead: how a batch of the model is made that is not packed.
    """
    if x.shape[1] != length:
        raise UserError(
            f"a batch of packed rows of {length} tokens was given to a model with a soft prompt of "
            f"{x.shape[1] - length}, which belongs before each example; give each a row of its own, {instead}, or "
            "choose a method without a soft prompt."
        )
