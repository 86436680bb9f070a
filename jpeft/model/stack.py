"""Blocks of equal structure, stored stacked: how they are run over whole sequences, and a token at a time.

Every leaf of a stack has a leading `layers` axis, along which `jax.lax.scan` goes. A stack is a list of such
*segments*, usually one; attaching to some layers cuts it, so that within a segment every layer has the same adapters.
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
from jpeft.model.quantized import PRODUCT

# What the backward pass of a block makes anew: what costs little beside a matrix product; also attention; all of it.
REMAT_POLICIES = ("none", "dots", "block")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SegmentCache:
    """Keys and values of the tokens that a decoder segment has written so far.

    Those of a segment of one layer have no axis of layers: with it, XLA copies a whole cache for every token.

    Attributes:
      keys: `[layers, batch, kv_heads, d_kv, max_length]`.
      values: `[layers, batch, kv_heads, max_length, d_kv]`.
    """

    keys: Array
    values: Array

    @classmethod
    def empty(cls, like: Cached, max_length: int, num_beams: int) -> "SegmentCache":
        """An empty cache of `max_length` tokens for so many beams of each row that `like` has."""
        *layers, rows, heads, _, width = like.values.shape
        shape, dtype = (*layers, rows * num_beams, heads), like.values.dtype
        kind = "cache" if layers else "heads"
        return cls(
            placed(jnp.zeros((*shape, width, max_length), dtype), kind),
            placed(jnp.zeros((*shape, max_length, width), dtype), kind),
        )

    def write(self, layer: Array | None, position: Array, new: KeysValues) -> "SegmentCache":
        """Puts those of one token at `position` of `layer`, in place where XLA can."""
        keys, values = new.cached()
        first, at_keys, at_values = (), (0, 0, 0, position), (0, 0, position, 0)
        if layer is not None:
            first, keys, values = (layer,), keys[None], values[None]
        return SegmentCache(
            jax.lax.dynamic_update_slice(self.keys, keys, (*first, *at_keys)),
            jax.lax.dynamic_update_slice(self.values, values, (*first, *at_values)),
        )

    def of(self, layer: Array | None) -> Cached:
        """What is kept of `layer`, None where there is but one."""
        return Cached(self.keys, self.values) if layer is None else Cached(self.keys[layer], self.values[layer])

    def reordered(self, rows: Int[Array, " batch"]) -> "SegmentCache":
        """A cache whose row `i` is this one's row `rows[i]`: beam search follows the beams that it keeps."""
        return SegmentCache(*(jnp.take(x, rows, axis=x.ndim - 4) for x in (self.keys, self.values)))


@functools.lru_cache(maxsize=32)
def block_program(remat: str, traced_under: Place) -> Callable[..., Array]:
    """A block's pass over whole sequences, traced once for all layers of one structure and not once a layer.

    Kept, so that a call outside of a compiled program does not compile it anew.

    Args:
      remat: one of `REMAT_POLICIES`.
      traced_under: the place at present. The block finds it by itself (`placed`); here it tells kept programs apart.
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
    # Where the compiler finds out that something is there already, it need not be made anew: as on a CPU.
    return jax.jit(jax.checkpoint(body, policy=policy, prevent_cse=remat != "none"))


def num_stacked(block: Any) -> int:
    """How many layers a stacked block holds: the length of the first axis of its leaves."""
    return block.self_attention_norm.scale.shape[0]


def only_layer(stacked: Any) -> Any:
    """The layer of a segment that holds one: every leaf without its axis of layers. Takes any tree of such leaves."""
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def side_by_side(kept: Sequence[KeysValues]) -> tuple[Array, Array]:
    """Keys and values of the one row that was read, by segment, as `[layers, length, width]`: heads side by side."""
    whole = []
    for parts in zip(*kept, strict=True):
        stacked = [part.reshape(-1, *part.shape[-3:]) for part in parts]  # a row takes no axis of its own
        heads = jnp.concatenate(stacked)
        whole.append(heads.swapaxes(1, 2).reshape(heads.shape[0], heads.shape[2], -1))
    return whole[0], whole[1]


class Segments(nnx.Module):
    """A `jpeft.leaves.LayerStack`: blocks as segments, and how to run them one after the other."""

    segments: Any

    def __init__(self, blocks: nnx.Module):
        self.segments = nnx.List([blocks])
        self.remat = "none"

    def layer_counts(self) -> list[int]:
        """How many layers each segment holds, in order; their sum is the number of the stack's layers."""
        return [num_stacked(block) for block in self.segments]

    def cut(self, starts: Sequence[int]) -> None:
        """Makes a segment begin at each layer of `starts` (and at layer 0), as well as where one begins now.

        A segment whose borders do not change keeps its arrays; a split one is copied, once.
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
        """An array of `[layers, ...]` cut into one `[layers of the segment, ...]` for each segment."""
        starts = segment_starts(self)
        return [of_layers[i : i + n] for i, n in zip(starts, self.layer_counts(), strict=True)]

    def run(
        self,
        x: Float[Array, "batch length d_model"],
        keys: Sequence[Key[Array, ""] | None],
        *others: Any,
        each: Sequence[Array] = (),
    ) -> Float[Array, "batch length d_model"]:
        """Runs every block over whole sequences, as `block(x, *others, *each, key)`.

        Args:
          keys: of each segment.
          each: arrays of one entry a layer, of which a block is given its own.
        """
        body = block_program(self.remat, current_place())
        cut = [self.per_segment(one) for one in each]
        for i, (block, segment_key) in enumerate(zip(self.segments, keys, strict=True)):
            layers, own = num_stacked(block), tuple(one[i] for one in cut)
            layer_keys = None if segment_key is None else jax.random.split(segment_key, layers)
            if layers == 1:  # no loop: its operands would be copied out of the stacked leaves at every call
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
        """Runs every block over one new token; returns its output and the extended caches.

        Args:
          kept: of each segment what its layers keep beside their caches, stacked as they are.
          step: `(block, x, kept, cache, layer) -> (x, cache)` of one block, `layer` being None where there is but one.
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


_MOST_LAYERS_UNROLLED = 8  # compiling costs CPU seconds a layer, program and shape (docs/log.md)


def arrange(stacks: Sequence[Segments], *, scan: bool | None, remat: str | None = None) -> None:
    """Makes every layer a segment of its own unless they are to be scanned; None scans more than eight layers.

    Segments of one layer are slower to compile, and there is no loop around the layers when they run.
    """
    for stack in stacks:
        stack.remat = stack.remat if remat is None else remat
    sizes = [sum(stack.layer_counts()) for stack in stacks]
    if scan is None:
        scan = max(sizes) > _MOST_LAYERS_UNROLLED
    if not scan:
        for stack, size in zip(stacks, sizes, strict=True):
            stack.cut(range(size))
