"""Stacked blocks of equal structure, run over whole sequences or one token at a time.

Every leaf of a stacked block has a leading `layers` axis, over which `jax.lax.scan` runs. A stack is a list of such
*segments*, usually a single one. Attaching to some layers only splits it, so that all layers of a segment have the same
adapters.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jpeft.leaves import segment_starts
from jpeft.model.attention import MIXED, Cached, KeysValues
from jpeft.model.placement import Place, current_place, placed
from jpeft.model.products import PRODUCT

# What the backward pass of a block recomputes, cheapest first: operations that are cheap beside a matrix product; also
# attention; everything.
REMAT_POLICIES = ("none", "dots", "block")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SegmentCache:
    """The key-value cache of a decoder segment for the tokens generated so far.

    A segment of a single layer has no `layers` axis, with which XLA would copy the whole cache for every token.

    Attributes:
      keys: `[layers, batch, kv_heads, d_kv, max_length]`.
      values: `[layers, batch, kv_heads, max_length, d_kv]`.
    """

    keys: Array
    values: Array

    @classmethod
    def empty(cls, like: Cached, max_length: int, num_beams: int) -> "SegmentCache":
        """Allocate a cache of `max_length` tokens for `num_beams` beams of each row of `like`."""
        *layers, rows, heads, _, width = like.values.shape
        shape, dtype = (*layers, rows * num_beams, heads), like.values.dtype
        kind = "cache" if layers else "heads"
        return cls(
            placed(jnp.zeros((*shape, width, max_length), dtype), kind),
            placed(jnp.zeros((*shape, max_length, width), dtype), kind),
        )

    def write(self, layer: Array | None, position: Array, new: KeysValues) -> "SegmentCache":
        """Write the keys and values of one token at `position` of `layer` (in place under jit, if XLA can)."""
        keys, values = new.cached()
        first, at_keys, at_values = (), (0, 0, 0, position), (0, 0, position, 0)
        if layer is not None:
            first, keys, values = (layer,), keys[None], values[None]
        indices = lambda at: [jnp.asarray(index, jnp.int32) for index in (*first, *at)]  # of one dtype also under x64
        return SegmentCache(
            jax.lax.dynamic_update_slice(self.keys, keys, indices(at_keys)),
            jax.lax.dynamic_update_slice(self.values, values, indices(at_values)),
        )

    def of(self, layer: Array | None) -> Cached:
        """The cache of a layer; `layer` is None if the segment has only one."""
        return Cached(self.keys, self.values) if layer is None else Cached(self.keys[layer], self.values[layer])

    def reordered(self, rows: Int[Array, " batch"]) -> "SegmentCache":
        """Return a cache whose row `i` is this one's row `rows[i]`, for beam search."""
        return SegmentCache(*(jnp.take(x, rows, axis=x.ndim - 4) for x in (self.keys, self.values)))


@functools.lru_cache(maxsize=32)
def block_program(remat: str, traced_under: Place) -> Callable[..., Array]:
    """A jitted function that runs one block over whole sequences, traced once for all layers of equal structure.

    It is cached, so that calls outside of a compiled program do not compile it again.

    Args:
      remat: one of `REMAT_POLICIES`.
      traced_under: the current `Place`, part of the cache's key only, since the traced block depends on it (`placed`).
    """
    del traced_under

    def body(x, block, key, *others):
        return block(x, *others, key)

    policies = jax.checkpoint_policies
    dots = policies.dots_with_no_batch_dims_saveable
    policy = {
        "none": policies.save_from_both_policies(dots, policies.save_only_these_names(MIXED, PRODUCT)),
        "dots": policies.save_from_both_policies(dots, policies.save_only_these_names(PRODUCT)),
        "block": policies.nothing_saveable,
    }[remat]
    # `prevent_cse=False` lets the compiler reuse forward results instead of recomputing them, as it does on a CPU.
    return jax.jit(jax.checkpoint(body, policy=policy, prevent_cse=remat != "none"))


def num_stacked(block: Any) -> int:
    """The number of layers of a stacked block: the size of the first axis of all its leaves."""
    return jax.tree.leaves(block)[0].shape[0]


def only_layer(stacked: Any) -> Any:
    """Remove the `layers` axis, of size 1, from every leaf of a tree."""
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def concatenate_heads(kept: Sequence[KeysValues]) -> tuple[Array, Array]:
    """Concatenate the layers of all segments and the heads of each, for a batch of one row.

    Args:
      kept: keys and values of each segment.

    Returns:
      Keys and values, each `[layers, length, width]`.
    """
    whole = []
    for parts in zip(*kept, strict=True):
        stacked = [part.reshape(-1, *part.shape[-3:]) for part in parts]  # merges the batch axis into `layers`
        heads = jnp.concatenate(stacked)
        whole.append(heads.swapaxes(1, 2).reshape(heads.shape[0], heads.shape[2], -1))
    return whole[0], whole[1]


class Segments(nnx.Module):
    """A `jpeft.leaves.LayerStack`: blocks stored as segments, which run one after the other."""

    segments: Any

    def __init__(self, blocks: nnx.Module):
        self.segments = nnx.List([blocks])
        self.remat = "none"

    def layer_counts(self) -> list[int]:
        """The number of layers of each segment, in order; their sum is the number of the stack's layers."""
        return [num_stacked(block) for block in self.segments]

    def cut(self, starts: Sequence[int]) -> None:
        """Split segments so that one begins at each layer of `starts`; existing boundaries stay.

        The arrays of a segment are copied once if it is split, and shared otherwise.
        """
        segments = []
        for first, block in zip(segment_starts(self), self.segments, strict=True):
            size = num_stacked(block)
            cuts = sorted({0, size, *(start - first for start in starts if 0 < start - first < size)})
            for begin, end in zip(cuts, cuts[1:], strict=False):
                part = block if end - begin == size else jax.tree.map(lambda leaf, b=begin, e=end: leaf[b:e], block)
                segments.append(part)
        self.segments = nnx.List(segments)

    def per_segment(self, of_layers: Array) -> list[Array]:
        """Split an array `[layers, ...]` into one for each segment."""
        starts = segment_starts(self)
        return [of_layers[i : i + n] for i, n in zip(starts, self.layer_counts(), strict=True)]

    def run(
        self,
        x: Float[Array, "batch length d_model"],
        keys: Sequence[Key[Array, ""] | None],
        *others: Any,
        each: Sequence[Array] = (),
    ) -> Float[Array, "batch length d_model"]:
        """Run all blocks over whole sequences, calling `block(x, *others, *each, key)`.

        Args:
          x: the input of the first block.
          keys: a random key for each segment; None disables dropout.
          others: further arguments, the same for all blocks.
          each: arrays `[layers, ...]`, of which each block gets its own entry.
        """
        body = block_program(self.remat, current_place())
        cut = [self.per_segment(one) for one in each]
        for i, (block, segment_key) in enumerate(zip(self.segments, keys, strict=True)):
            layers, own = num_stacked(block), tuple(one[i] for one in cut)
            layer_keys = None if segment_key is None else jax.random.split(segment_key, layers)
            if layers == 1:  # a loop would copy its operands out of the stacked leaves at every call
                block, layer_keys, own = only_layer((block, layer_keys, own))
                x = body(x, block, layer_keys, *others, *own)
            else:
                x, _ = jax.lax.scan(
                    lambda x, layer: (body(x, *layer[:2], *others, *layer[2]), None), x, (block, layer_keys, own)
                )
        return x

    def run_step(
        self,
        x: Float[Array, "batch 1 d_model"],
        caches: Sequence[SegmentCache],
        kept: Sequence[Any],
        step: Callable[..., tuple[Array, SegmentCache]],
    ) -> tuple[Float[Array, "batch 1 d_model"], list[SegmentCache]]:
        """Run all blocks over one new token; returns the output and the updated caches.

        Args:
          x: the input of the first block.
          caches: the cache of each segment.
          kept: for each segment, further values that its layers need, stacked like them.
          step: `(block, x, kept, cache, layer) -> (x, cache)` of a single block; `layer` is None in a segment of one.
        """

        def body(carry, layer):
            x, cache = carry
            index, block, its_own = layer
            return step(block, x, its_own, cache, index), None

        new_caches = []
        for block, its_own, cache in zip(self.segments, kept, caches, strict=True):
            if num_stacked(block) == 1:
                x, cache = step(only_layer(block), x, its_own, cache, None)
            else:
                (x, cache), _ = jax.lax.scan(body, (x, cache), (jnp.arange(num_stacked(block)), block, its_own))
            new_caches.append(cache)
        return x, new_caches


_MOST_LAYERS_UNROLLED = 8  # an unrolled layer takes CPU seconds to compile, per program and shape (docs/log.md)


def arrange(stacks: Sequence[Segments], *, scan: bool | None, remat: str | None = None) -> None:
    """Choose between scanned and unrolled layers, and set what the backward pass recomputes.

    Unrolled layers, each a segment of its own, take longer to compile and run without the overhead of a loop.

    Args:
      stacks: the stacks of a model.
      scan: whether to scan over the layers; None scans stacks of more than eight.
      remat: one of `REMAT_POLICIES`; None keeps each stack's own.
    """
    for stack in stacks:
        stack.remat = stack.remat if remat is None else remat
    sizes = [sum(stack.layer_counts()) for stack in stacks]
    if scan is None:
        scan = max(sizes) > _MOST_LAYERS_UNROLLED
    if not scan:
        for stack, size in zip(stacks, sizes, strict=True):
            stack.cut(range(size))
