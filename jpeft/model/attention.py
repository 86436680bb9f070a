"""Softmax attention that recomputes its scores in the backward pass, and attention over a key-value cache.

For long rows, the scores `[batch, num_heads, q_len, kv_len]` are the largest array of a training step. Between the
forward and the backward pass only the inputs, the output and two float32 numbers per query are saved: its largest score
and the softmax denominator. The backward pass recomputes the scores and the attention weights from them, as Dao et al.
(2022, FlashAttention) do. There is no tiling, unlike in FlashAttention: each pass computes the whole score array of one
attention at once, so the peak memory of a single attention is not reduced; what is saved is keeping that array for
every layer.

During generation, one query per row attends to a cache that consists of several parts (`CachedParts`).
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from jpeft.model.layers import MASKED, dropout
from jpeft.model.placement import placed
from jpeft.model.products import einsum

# Additive biases of the scores, each `[batch, num_heads, q_len, kv_len]`; every axis but the last may have size 1.
ScoreBias = tuple[Float[Array, "_ _ _ _"], ...]


class Before(NamedTuple):
    """Keys and values that are prepended to those of the text and visible to every query (prefixes, Li & Liang 2021).

    Attributes:
      keys, values: float32 `[rows, prefix_length, width]` with heads concatenated, as the key and value projections
        return them; `rows` is 1 if all rows of the batch share one prefix.
      shown: bool `[rows, prefix_length]`, True where a prefix position is visible; None if all are.
    """

    keys: Array
    values: Array
    shown: Array | None


class PrefixAdapter(Protocol):
    """What a PEFT method attaches to an attention, as its `adapter`, if it calls it with a prefix (`before`)."""

    def num_before(self) -> tuple[int, Any]:
        """The number of key positions that the prefix takes, and how many of them are visible, as `prefix_length`."""
        ...


def prefix_length(attentions: Iterable[Any]) -> tuple[int, Int[Array, "batch 1"] | int]:
    """The length of the prefixes that are attached to attentions.

    Args:
      attentions: the modules, of which any, all or none may have a `PrefixAdapter`.

    Returns:
      The number of key positions of the longest prefix, and the number of visible ones: an int if it is the same for
      all rows of a batch, else one number per row. Both are 0 without a prefix.
    """
    room, number = 0, 0
    for attention in attentions:
        adapter: Any = getattr(attention, "adapter", None)
        if hasattr(adapter, "num_before"):
            here, counted = adapter.num_before()
            # A row's prefix may be attached to some of the layers only, and another row's to others.
            plain = isinstance(number, int) and isinstance(counted, int)
            room, number = max(room, here), max(number, counted) if plain else jnp.maximum(number, counted)
    return room, number


class KeysValues(NamedTuple):
    """Keys and values of whole sequences, each `[batch, kv_heads, length, d_kv]`."""

    keys: Array
    values: Array

    @property
    def length(self) -> int:
        return self.values.shape[2]

    def cached(self) -> "Cached":
        """The same keys and values in the cache's layout, for queries that come one at a time."""
        return Cached(jnp.swapaxes(self.keys, -1, -2), self.values)

    def prepend(
        self, keys: Float[Array, "rows kv_heads before d_kv"], values: Float[Array, "rows kv_heads before d_kv"]
    ) -> "KeysValues":
        """Return a copy with further keys and values before these.

        Args:
          keys, values: what to prepend, in float32 so that gradients of shared rows are summed over the batch in
            float32; `rows` is the batch size, or 1 to share one prefix among all rows.
        """

        def joined(first: Array, then: Array) -> Array:
            spread = jnp.broadcast_to(first, (then.shape[0], *first.shape[1:])).astype(then.dtype)
            return placed(jnp.concatenate([placed(spread, "heads"), then], axis=2), "heads")

        return KeysValues(joined(keys, self.keys), joined(values, self.values))

    def attend(
        self,
        q: Float[Array, "batch num_heads q_len d_kv"],
        bias: ScoreBias,
        *,
        scale: float = 1.0,
        dropout_rate: float = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch num_heads q_len d_kv"]:
        """Attend to these keys and values; arguments as of the function `attend`."""
        return attend(q, self.keys, self.values, bias, scale=scale, dropout_rate=dropout_rate, key=key)


class Cached(NamedTuple):
    """A key-value cache for generation.

    Attributes:
      keys: `[rows, kv_heads, d_kv, length]`, transposed so that the product with a single query reads memory in order.
      values: `[rows, kv_heads, length, d_kv]`.
    """

    keys: Array
    values: Array

    def whole(self) -> KeysValues:
        """The same keys and values in the layout for whole sequences."""
        return KeysValues(jnp.swapaxes(self.keys, -1, -2), self.values)


class CachedParts(NamedTuple):
    """Several caches that one query per row attends to as if they were concatenated, without copying them.

    A part may have fewer rows than there are queries. Each of its rows then serves an equal number of neighbouring
    queries, such as the beams of one prompt, or all rows if they share a prefix.
    """

    parts: tuple[Cached, ...]

    @property
    def length(self) -> int:
        return sum(part.values.shape[2] for part in self.parts)

    def prepend(
        self, keys: Float[Array, "rows kv_heads before d_kv"], values: Float[Array, "rows kv_heads before d_kv"]
    ) -> "CachedParts":
        """Return a copy with a further part before these; `rows` is 1 if all rows share it."""
        dtype = self.parts[0].values.dtype
        return CachedParts((KeysValues(keys.astype(dtype), values.astype(dtype)).cached(), *self.parts))

    def attend(
        self,
        q: Float[Array, "batch num_heads 1 d_kv"],
        bias: ScoreBias,
        *,
        scale: float = 1.0,
        dropout_rate: float = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch num_heads 1 d_kv"]:
        """Attend with one query per row; arguments as of the function `attend`, but without dropout."""
        assert dropout_rate == 0.0 or key is None, "generation uses no dropout"
        part_scores = []
        for keys, values in self.parts:
            folded = _group_queries(q, *values.shape[:2])
            scores = jnp.einsum("bhqd,bhdk->bhqk", folded, keys, preferred_element_type=jnp.float32)
            part_scores.append(_ungroup_queries(scores, *q.shape[:2]))
        scores = jnp.concatenate(part_scores, axis=-1)
        scores = sum(bias, scores if scale == 1.0 else scores * scale)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed, start = jnp.zeros(q.shape, jnp.float32), 0
        for _, values in self.parts:
            stop = start + values.shape[2]
            folded = _group_queries(weights[..., start:stop].astype(q.dtype), *values.shape[:2])
            part = jnp.einsum("bhqk,bhkd->bhqd", folded, values, preferred_element_type=jnp.float32)
            mixed, start = mixed + _ungroup_queries(part, *q.shape[:2]), stop
        return (mixed / total).astype(q.dtype)


def _group_queries(x: Array, rows: int, kv_heads: int) -> Float[Array, "{rows} {kv_heads} queries width"]:
    """Group single queries `[batch, num_heads, 1, width]` by the cache row and key head that they attend to."""
    batch, heads, _, width = x.shape
    x = x.reshape(rows, batch // rows, kv_heads, heads // kv_heads, width)
    return x.swapaxes(1, 2).reshape(rows, kv_heads, -1, width)


def _ungroup_queries(x: Array, batch: int, heads: int) -> Float[Array, "{batch} {heads} 1 width"]:
    """The inverse of `_group_queries`."""
    rows, kv_heads, _, width = x.shape
    x = x.reshape(rows, kv_heads, batch // rows, heads // kv_heads, width)
    return x.swapaxes(1, 2).reshape(batch, heads, 1, width)


def prefix_bias(bias: ScoreBias, before: int, shown: Bool[Array, "rows before"] | None, length: int) -> ScoreBias:
    """Extend the biases of `length` keys to a prefix before them, which has no positions of its own.

    Args:
      bias: the biases of the text's keys; the prefix gets zeros.
      before: the number of prefix positions.
      shown: True where a prefix position is visible; None if all are.
      length: the number of the text's keys.
    """
    longer = tuple(jnp.pad(part, ((0, 0), (0, 0), (0, 0), (before, 0))) for part in bias)
    if shown is None:
        return longer
    hidden = jnp.where(shown, 0.0, MASKED)[:, None, None, :]
    return (*longer, jnp.pad(hidden, ((0, 0), (0, 0), (0, 0), (0, length))))


# The name under which checkpoint policies save the output and the softmax statistics, which take the scores to compute.
MIXED = "mixed"


def attend(
    q: Float[Array, "batch num_heads q_len d_kv"],
    k: Float[Array, "batch kv_heads kv_len d_kv"],
    v: Float[Array, "batch kv_heads kv_len d_kv"],
    bias: tuple[Float[Array, "#batch #num_heads #q_len kv_len"], ...],
    *,
    scale: float = 1.0,
    dropout_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch num_heads q_len d_kv"]:
    """Compute `softmax(scale * (q @ k) + bias) @ v`, recomputing the scores in the backward pass.

    Scores and softmax are float32; the output has q's dtype.

    Args:
      q: the queries.
      k, v: keys and values with as many heads as q, or with fewer, each of which serves an equal number of neighbouring
        heads of q.
      bias: terms that are added to the scores, each of its own shape: a position bias `[1, num_heads, q_len, kv_len]`
        and a mask `[batch, 1, 1, kv_len]` need not be expanded to one array of all four sizes.
      scale: the factor of `q @ k`.
      dropout_rate: the share of the attention weights that is zeroed after the softmax.
      key: the random key for dropout; None disables it.
    """
    return _attend(q, k, v, bias, key, scale, dropout_rate)


def _scores(q: Array, k: Array, bias: ScoreBias, scale: float) -> Float[Array, "batch num_heads q_len kv_len"]:
    folded = q.reshape(*k.shape[:2], -1, q.shape[-1])  # heads that share a key head are concatenated along q_len
    scores = jnp.einsum("bhqd,bhkd->bhqk", folded, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(*q.shape[:3], -1)
    return sum(bias, scores if scale == 1.0 else scores * scale)


def _mixed(weights: Array, v: Array, dtype: DTypeLike) -> Float[Array, "batch num_heads q_len d_kv"]:
    folded = weights.reshape(*v.shape[:2], -1, v.shape[2])
    return einsum("bhqk,bhkd->bhqd", folded, v, dtype).reshape(*weights.shape[:3], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q: Array, k: Array, v: Array, bias: ScoreBias, key: Any, scale: float, rate: float) -> Array:
    return _attend_with_statistics(q, k, v, bias, key, scale, rate)[0]


def _attend_with_statistics(
    q: Array, k: Array, v: Array, bias: ScoreBias, key: Any, scale: float, rate: float
) -> tuple[Array, Array, Array]:
    """The output, and for each query its largest score and the sum of `exp(score - largest)`."""
    scores = _scores(q, k, bias, scale)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Dividing after the product with v takes `[q_len, d_kv]` divisions instead of `[q_len, kv_len]`.
    # In float32: a rounded total would shift a whole row of the output, and with it the row's gradient.
    mixed = _mixed(dropout(weights.astype(q.dtype), rate, key), v, jnp.float32) / total
    return mixed.astype(q.dtype), largest, total


def _forward(
    q: CustomVJPPrimal,
    k: CustomVJPPrimal,
    v: CustomVJPPrimal,
    bias: tuple[CustomVJPPrimal, ...],
    key: CustomVJPPrimal | None,
    scale: float,
    rate: float,
) -> tuple[Array, tuple[Any, ...]]:
    inputs = (q.value, k.value, v.value, tuple(part.value for part in bias), None if key is None else key.value)
    mixed, largest, total = _attend_with_statistics(*inputs, scale, rate)
    # Residuals have to be arrays. The size of each of these, static under tracing, is 1 if its bias needs a gradient.
    bias_needs_grad = tuple(jnp.zeros(int(part.perturbed)) for part in bias)
    saved = tuple(checkpoint_name(part, MIXED) for part in (mixed, largest, total))
    return saved[0], (*inputs, *saved, bias_needs_grad)


def _backward(scale: float, rate: float, residuals: tuple[Any, ...], grad: Array) -> tuple[Any, ...]:
    q, k, v, bias, key, mixed, largest, total, bias_needs_grad = residuals
    weights = jnp.exp(_scores(q, k, bias, scale) - largest) / total
    dropped = dropout(weights.astype(q.dtype), rate, key)
    folded = grad.reshape(*k.shape[:2], -1, grad.shape[-1])
    grad_v = einsum("bhqk,bhqd->bhkd", dropped.reshape(*k.shape[:2], -1, k.shape[2]), folded, v.dtype)
    grad_weights = jnp.einsum("bhqd,bhkd->bhqk", folded, v, preferred_element_type=jnp.float32).reshape(weights.shape)
    grad_weights = dropout(grad_weights, rate, key)
    # The softmax's gradient needs `sum(weights * grad_weights)` of each query, which is `grad . output`.
    row_sums = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    grad_scores = weights * (grad_weights - row_sums)
    narrow = (grad_scores if scale == 1.0 else grad_scores * scale).astype(q.dtype)
    grad_q = _mixed(narrow, k, k.dtype)
    grad_k = einsum(
        "bhqk,bhqd->bhkd",
        narrow.reshape(*k.shape[:2], -1, k.shape[2]),
        q.reshape(*k.shape[:2], -1, q.shape[-1]),
        k.dtype,
    )
    grad_bias = tuple(
        _sum_to_shape(grad_scores, part.shape) if needed.size else None
        for needed, part in zip(bias_needs_grad, bias, strict=True)
    )
    return grad_q, grad_k, grad_v, grad_bias, None


def _sum_to_shape(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum x over the axes along which an array of `shape` was broadcast."""
    axes = tuple(axis for axis, (size, own) in enumerate(zip(x.shape, shape, strict=True)) if own != size)
    return jnp.sum(x, axis=axes, keepdims=True)


_attend.defvjp(_forward, _backward, symbolic_zeros=True)
