"""Attention's heart: values mixed by how well queries and keys agree. Nothing as large as all the scores is kept.

A score for each query and each key is the largest thing that a step of long rows makes. The backward pass makes them
anew from queries and keys, as Dao et al. (2022) do; two numbers a query are kept of them, the largest and the sum that
the softmax divides by.

While answers are written one query of each row attends to keys and values that are kept, in parts (`CachedParts`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Bool, Float, Key

from jpeft.model.layers import MASKED, dropout
from jpeft.model.placement import placed

# What is added to scores, in parts: each `[batch, heads, queries, keys]`, of which any but the keys may be 1.
ScoreBias = tuple[Float[Array, "_ _ _ _"], ...]


class Before(NamedTuple):
    """Keys and values that stand before those of the text, which every query sees: a prefix (Li & Liang 2021).

    Attributes:
      keys, values: float32 `[rows, before, width]`, heads side by side as the maps to keys and values make them; `rows`
        is 1 where all rows have the same.
      shown: `[rows, before]`, those that are seen; None for all.
    """

    keys: Array
    values: Array
    shown: Array | None


class KeysValues(NamedTuple):
    """Keys and values of whole texts, each `[batch, kv_heads, length, d_kv]`."""

    keys: Array
    values: Array

    @property
    def length(self) -> int:
        return self.values.shape[2]

    def cached(self) -> "Cached":
        """The same, for queries that come one by one."""
        return Cached(jnp.swapaxes(self.keys, -1, -2), self.values)

    def behind(
        self, keys: Float[Array, "rows kv_heads before d_kv"], values: Float[Array, "rows kv_heads before d_kv"]
    ) -> "KeysValues":
        """These with others before them, of one row where all rows have the same.

        Args:
          keys, values: float32, in which a batch's gradients of what its rows share are summed.
        """

        def joined(first: Array, then: Array) -> Array:
            spread = jnp.broadcast_to(first, (then.shape[0], *first.shape[1:])).astype(then.dtype)
            return placed(jnp.concatenate([placed(spread, "heads"), then], axis=2), "heads")

        return KeysValues(joined(keys, self.keys), joined(values, self.values))

    def mixed_by(
        self,
        q: Float[Array, "batch num_heads q_len d_kv"],
        bias: ScoreBias,
        *,
        scale: float = 1.0,
        dropout_rate: float = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch num_heads q_len d_kv"]:
        """What queries make of the values (`attend`)."""
        return attend(q, self.keys, self.values, bias, scale=scale, dropout_rate=dropout_rate, key=key)


class Cached(NamedTuple):
    """Keys and values that are kept while answers are written.

    Attributes:
      keys: `[rows, kv_heads, d_kv, length]`: the product of one query with them reads memory in its order.
      values: `[rows, kv_heads, length, d_kv]`.
    """

    keys: Array
    values: Array

    def whole(self) -> KeysValues:
        """The same in the order of texts that are read at once."""
        return KeysValues(jnp.swapaxes(self.keys, -1, -2), self.values)


class CachedParts(NamedTuple):
    """Caches one behind the other, as what one query of each row attends to: the parts are not made into one array.

    A part may have fewer rows than there are queries; each of them serves as many neighbours: the beams of a prompt, or
    all rows where they share a prefix.
    """

    parts: tuple[Cached, ...]

    @property
    def length(self) -> int:
        return sum(part.values.shape[2] for part in self.parts)

    def behind(
        self, keys: Float[Array, "rows kv_heads before d_kv"], values: Float[Array, "rows kv_heads before d_kv"]
    ) -> "CachedParts":
        """These with others before them, of one row where all rows have the same."""
        dtype = self.parts[0].values.dtype
        return CachedParts((KeysValues(keys.astype(dtype), values.astype(dtype)).cached(), *self.parts))

    def mixed_by(
        self,
        q: Float[Array, "batch num_heads 1 d_kv"],
        bias: ScoreBias,
        *,
        scale: float = 1.0,
        dropout_rate: float = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch num_heads 1 d_kv"]:
        """What one query of each row makes of the values, as `attend` says; nothing is dropped."""
        assert dropout_rate == 0.0 or key is None, "nothing is dropped while answers are written"
        of_parts = []
        for keys, values in self.parts:
            folded = _by_keys(q, *values.shape[:2])
            scores = jnp.einsum("bhqd,bhdk->bhqk", folded, keys, preferred_element_type=jnp.float32)
            of_parts.append(_by_queries(scores, *q.shape[:2]))
        scores = jnp.concatenate(of_parts, axis=-1)
        scores = sum(bias, scores if scale == 1.0 else scores * scale)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed, start = jnp.zeros(q.shape, jnp.float32), 0
        for _, values in self.parts:
            stop = start + values.shape[2]
            folded = _by_keys(weights[..., start:stop].astype(q.dtype), *values.shape[:2])
            part = jnp.einsum("bhqk,bhkd->bhqd", folded, values, preferred_element_type=jnp.float32)
            mixed, start = mixed + _by_queries(part, *q.shape[:2]), stop
        return (mixed / total).astype(q.dtype)


def _by_keys(x: Array, rows: int, kv_heads: int) -> Float[Array, "{rows} {kv_heads} queries width"]:
    """Of one query a row, `[batch, num_heads, 1, width]`: those that meet the same keys, behind one another."""
    batch, heads, _, width = x.shape
    x = x.reshape(rows, batch // rows, kv_heads, heads // kv_heads, width)
    return x.swapaxes(1, 2).reshape(rows, kv_heads, -1, width)


def _by_queries(x: Array, batch: int, heads: int) -> Float[Array, "{batch} {heads} 1 width"]:
    """The way back from `_by_keys`."""
    rows, kv_heads, _, width = x.shape
    x = x.reshape(rows, kv_heads, batch // rows, heads // kv_heads, width)
    return x.swapaxes(1, 2).reshape(batch, heads, 1, width)


def with_room(bias: ScoreBias, before: int, shown: Bool[Array, "rows before"] | None, length: int) -> ScoreBias:
    """Biases of scores of `length` keys, where as many as `before` stand before these: which no part hides but `shown`.

    No position tells them apart.
    """
    longer = tuple(jnp.pad(part, ((0, 0), (0, 0), (0, 0), (before, 0))) for part in bias)
    if shown is None:
        return longer
    hidden = jnp.where(shown, 0.0, MASKED)[:, None, None, :]
    return (*longer, jnp.pad(hidden, ((0, 0), (0, 0), (0, 0), (0, length))))


MIXED = "mixed"  # by this name `jax.checkpoint` knows what took scores to make


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
    """The mean of the values, weighted by the softmax of `scale * (q @ k) + bias` over the keys.

    Scores and their sums are float32, as results of their products; what comes out has q's dtype.

    Args:
      k, v: of as many heads as q, or of fewer, each for as many neighbouring heads of q.
      bias: parts that are added up, each of its own size: a position's bias `[1, num_heads, q_len, kv_len]` and a mask
        `[batch, 1, 1, kv_len]` need not be made into one array of all four sizes.
      dropout_rate: share of the weights that are zeroed after the softmax.
      key: draws the dropout of weights; None is without.
    """
    return _attend(q, k, v, bias, key, scale, dropout_rate)


def _scores(q: Array, k: Array, bias: ScoreBias, scale: float) -> Float[Array, "batch num_heads q_len kv_len"]:
    folded = q.reshape(*k.shape[:2], -1, q.shape[-1])  # the heads that share a key behind one another
    scores = jnp.einsum("bhqd,bhkd->bhqk", folded, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(*q.shape[:3], -1)
    return sum(bias, scores if scale == 1.0 else scores * scale)


def _mixed(weights: Array, v: Array) -> Float[Array, "batch num_heads q_len d_kv"]:
    folded = weights.reshape(*v.shape[:2], -1, v.shape[2])
    return jnp.einsum("bhqk,bhkd->bhqd", folded, v).reshape(*weights.shape[:3], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q: Array, k: Array, v: Array, bias: ScoreBias, key: Any, scale: float, rate: float) -> Array:
    return _attend_and_keep(q, k, v, bias, key, scale, rate)[0]


def _attend_and_keep(
    q: Array, k: Array, v: Array, bias: ScoreBias, key: Any, scale: float, rate: float
) -> tuple[Array, Array, Array]:
    """What is mixed, and of each query the largest score and the sum of the exponentials below it."""
    scores = _scores(q, k, bias, scale)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # The division waits for the product with v: on `[q_len, d_kv]` values, not on `[q_len, kv_len]`.
    mixed = _mixed(dropout(weights.astype(q.dtype), rate, key), v) / total.astype(q.dtype)
    return mixed, largest, total


def _forward(
    q: CustomVJPPrimal,
    k: CustomVJPPrimal,
    v: CustomVJPPrimal,
    bias: tuple[CustomVJPPrimal, ...],
    key: CustomVJPPrimal | None,
    scale: float,
    rate: float,
) -> tuple[Array, tuple[Any, ...]]:
    given = (q.value, k.value, v.value, tuple(part.value for part in bias), None if key is None else key.value)
    mixed, largest, total = _attend_and_keep(*given, scale, rate)
    # By its size, which is known when it is traced: of biases whose gradients are asked for it is 1.
    asked = tuple(jnp.zeros(int(part.perturbed)) for part in bias)
    kept = tuple(checkpoint_name(part, MIXED) for part in (mixed, largest, total))
    return kept[0], (*given, *kept, asked)


def _backward(scale: float, rate: float, kept: tuple[Any, ...], by: Array) -> tuple[Any, ...]:
    q, k, v, bias, key, mixed, largest, total, asked = kept
    weights = jnp.exp(_scores(q, k, bias, scale) - largest) / total
    dropped = dropout(weights.astype(q.dtype), rate, key)
    folded = by.reshape(*k.shape[:2], -1, by.shape[-1])
    of_v = jnp.einsum("bhqk,bhqd->bhkd", dropped.reshape(*k.shape[:2], -1, k.shape[2]), folded)
    of_weights = jnp.einsum("bhqd,bhkd->bhqk", folded, v, preferred_element_type=jnp.float32).reshape(weights.shape)
    of_weights = dropout(of_weights, rate, key)
    along = jnp.sum(by.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    of_scores = weights * (of_weights - along)
    narrow = (of_scores if scale == 1.0 else of_scores * scale).astype(q.dtype)
    of_q = _mixed(narrow, k)
    of_k = jnp.einsum(
        "bhqk,bhqd->bhkd",
        narrow.reshape(*k.shape[:2], -1, k.shape[2]),
        q.reshape(*k.shape[:2], -1, q.shape[-1]),
    )
    of_bias = tuple(_summed(of_scores, part.shape) if it.size else None for it, part in zip(asked, bias, strict=True))
    return of_q, of_k, of_v, of_bias, None


def _summed(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum of x over the axes along which an array of `shape` was repeated."""
    axes = tuple(axis for axis, (size, own) in enumerate(zip(x.shape, shape, strict=True)) if own != size)
    return jnp.sum(x, axis=axes, keepdims=True)


_attend.defvjp(_forward, _backward, symbolic_zeros=True)
