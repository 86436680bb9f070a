"""The arrays of a bank: for each leaf that an adapter may have, one entry a slot. Slot 0 is no adapter at all.

All of it is fixed when a bank is made: where adapters may act, how large they may be, how many there are. Which slots a
batch uses and which one is written are arguments of compiled programs, so that none has to be compiled again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Shaped

from jpeft.model.leaves import stacked_leaves
from jpeft.model.t5 import T5
from jpeft.peft.base import Adapter, AddedModules, Method, Site, select, sites_by_module
from jpeft.peft.lora import Lora
from jpeft.serve.rows import Pooled, rows_module

Room = Sequence[tuple[Method, Sequence[Site]]]  # the largest adapters that a bank is to hold, and where they act
Shapes = Mapping[str, tuple[int, ...]]

_IDENTITY = {"scale_in": np.float32(1), "scale_out": np.float32(1), "is_prompt": np.False_}  # of the others 0.0
_ENDS_AT_THE_TEXT = ("prompt", "is_prompt")  # a smaller one is filled up at its start; others at their end


def room_for(model: T5, *methods: Method) -> Room:
    """Room for adapters up to the size of these, wherever they act unless a selection says otherwise."""
    return [(method, select(model, method)) for method in methods]


class MadeShapes:
    """Shape of each leaf that a method makes at a site of a base, by the leaf's name; nothing is allocated."""

    def __init__(self, model: T5):
        self._model = model
        self._known: dict[tuple, Shapes] = {}

    def __call__(self, method: AddedModules, site: Site) -> Shapes:
        key = (method, site.kind, site.sublayer, site.name, site.d_in, site.d_out)  # layers are alike
        if key not in self._known:
            module = nnx.eval_shape(lambda: method.create(site, jax.random.key(0), self._model))
            self._known[key] = {name: leaf.shape for name, leaf in vars(module).items() if isinstance(leaf, Adapter)}
        return self._known[key]


def pooled(method: Method, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One site's leaves as a bank keeps them: LoRA's A turned, its scale a leaf; which rows of a prompt there are."""
    values = dict(leaves)
    if isinstance(method, Lora):
        values["lora_a"] = values["lora_a"].T  # [rank, d_in]: products of few rows run along memory
        # Not multiplied into B: the same products in the same order give the same logits, to the last bit.
        values["lora_scale"] = np.full(1, method.scale, np.float32)
    if "prompt" in values:
        values["is_prompt"] = np.ones(len(values["prompt"]), bool)
    return values


def attach_pool(model: T5, slots: int, room: Room, shapes_of: MadeShapes) -> T5:
    """A model whose adapters are those of a pool, every slot at its identity; it shares the base's arrays with `model`.

    Stacks stay cut as they are: where one layer of a segment has room for something, all of them have.
    """
    largest = _largest(room, shapes_of)
    model = nnx.merge(*nnx.split(model))  # new modules around the same arrays
    for module, its_sites in sites_by_module(model):
        shapes = _union(largest.get(site.path, {}) for site in its_sites)
        if shapes:
            layers = () if its_sites[0].layer is None else (len(its_sites),)
            leaves = {name: _filled(name, (*layers, slots, *shape)) for name, shape in shapes.items()}
            module.adapter = rows_module(its_sites[0], leaves)
    return model


def _filled(name: str, shape: tuple[int, ...]) -> Array:
    return jnp.full(shape, _IDENTITY.get(name, np.float32(0)))


def _largest(room: Room, shapes_of: MadeShapes) -> dict[str, Shapes]:
    """The largest shape of each leaf by path of the site, of all that is to fit."""
    largest: dict[str, Shapes] = {}
    for method, chosen in room:
        assert isinstance(method, AddedModules), "full tuning adds nothing that could be held beside the base"
        for site in chosen:
            empty = {name: np.empty(shape) for name, shape in shapes_of(method, site).items()}
            shapes = {name: value.shape for name, value in pooled(method, empty).items()}
            largest[site.path] = _union((largest.get(site.path, {}), shapes))
    return largest


def _union(several) -> dict[str, tuple[int, ...]]:
    union: dict[str, tuple[int, ...]] = {}
    for shapes in several:
        for name, shape in shapes.items():
            union[name] = tuple(map(max, union.get(name, shape), shape))
    return union


@dataclasses.dataclass(frozen=True)
class PoolLeaf:
    """One array of a pool: `[slots, *shape]`, or `[layers, slots, *shape]` where its layers are stacked.

    Attributes:
      path: in the model's state.
      names: of what it holds of one adapter, one a layer, as `jpeft.model.leaves` names leaves.
      shape: of one name's entry.
    """

    path: tuple[Any, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool

    def identity(self) -> np.ndarray:
        """The entry of an adapter that does nothing here: `shape`, or `[layers, *shape]`."""
        layers = (len(self.names),) if self.stacked else ()
        return np.full((*layers, *self.shape), _IDENTITY.get(self.path[-1], np.float32(0)))


class Layout:
    """Which arrays a pool is made of, and the pure functions that read and write them.

    A pool is a tuple of arrays, an adapter's entry in it one of numpy arrays, both in the order of `leaves`.
    """

    def __init__(self, leaves: Sequence[PoolLeaf]):
        self.leaves = tuple(leaves)
        self.shapes = {name: leaf.shape for leaf in self.leaves for name in leaf.names}
        self._where = {
            name: (i, (layer,) if leaf.stacked else ())
            for i, leaf in enumerate(self.leaves)
            for layer, name in enumerate(leaf.names)
        }

    @classmethod
    def of(cls, model: T5) -> tuple["Layout", tuple[Array, ...]]:
        """The layout of what `attach_pool` attached, and its arrays."""
        leaves, arrays = [], []
        for leaf in stacked_leaves(model, Pooled):
            array = leaf.variable[...]
            arrays.append(array)
            leaves.append(PoolLeaf(leaf.path, leaf.names, array.shape[leaf.stacked + 1 :], leaf.stacked))
        return cls(leaves), tuple(arrays)

    def entry(self, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """An adapter's entry from its leaves by name, `pooled` and no larger than `shapes`; identities elsewhere."""
        entry = tuple(leaf.identity() for leaf in self.leaves)
        for name, value in values.items():
            i, layer = self._where[name]
            whole = entry[i][layer]
            at_end = name.endswith(_ENDS_AT_THE_TEXT)
            whole[len(whole) - len(value) if at_end else 0 :][: len(value)] = value
        return entry

    def write(
        self, pool: tuple[Array, ...], entry: tuple[Array, ...], slot: Int[Array, ""]
    ) -> tuple[Shaped[Array, "..."], ...]:
        """The pool with `entry` at `slot`; in place where the pool is donated."""
        return tuple(
            jax.lax.dynamic_update_index_in_dim(array, part, slot, axis=int(leaf.stacked))
            for leaf, array, part in zip(self.leaves, pool, entry, strict=True)
        )

    def rows(self, pool: tuple[Array, ...], slots: Int[Array, " batch"]) -> nnx.State:
        """What to merge with a base so that row `i` of a batch has the adapter of `slots[i]`."""
        return nnx.from_flat_state(
            (leaf.path, Pooled(jnp.take(array, slots, axis=int(leaf.stacked), mode="clip")))
            for leaf, array in zip(self.leaves, pool, strict=True)
        )
