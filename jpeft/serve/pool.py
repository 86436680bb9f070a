"""The arrays of a bank: for each leaf that an adapter may have, one entry a slot. Slot 0 is no adapter at all.

All of it is fixed when a bank is made: where adapters may act, how large they may be, how many there are. Which slots a
batch uses and which one is written are arguments of compiled programs, so that none has to be compiled again.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Shaped

from jpeft.leaves import Model, copied, stacked_leaves
from jpeft.peft.method import AddedModules, Method
from jpeft.peft.row_wise import RowAdapters, Rows
from jpeft.peft.selection import select
from jpeft.peft.sites import Site, site_modules
from jpeft.peft.variables import Adapter, AdapterRows
from jpeft.peft.wrapping import put

Room = Sequence[tuple[Method, Sequence[Site]]]  # the largest adapters that a bank is to hold, and where they act
LeafShapes = Mapping[str, tuple[int, ...]]


def room_for(model: nnx.Module, *methods: Method) -> Room:
    """Room for adapters up to the size of these, wherever they act unless a selection says otherwise."""
    return [(method, select(model, method)) for method in methods]


class MadeShapes:
    """Shape of each leaf that a method makes at a site of a base, by the leaf's name; nothing is allocated."""

    def __init__(self, model: nnx.Module):
        self._model = model
        self._known: dict[tuple, LeafShapes] = {}

    def __call__(self, method: AddedModules, site: Site) -> LeafShapes:
        key = (method, site.kind, site.sublayer, site.name, site.d_in, site.d_out)  # layers are alike
        if key not in self._known:
            module = nnx.eval_shape(lambda: method.create(site, jax.random.key(0), self._model))
            self._known[key] = {name: leaf.shape for name, leaf in vars(module).items() if isinstance(leaf, Adapter)}
        return self._known[key]


@dataclasses.dataclass(frozen=True)
class RoomAt:
    """What a bank has room for at one site: parts of row-wise adapters, and the largest shape of each leaf."""

    parts: frozenset[Rows] = frozenset()
    shapes: LeafShapes = dataclasses.field(default_factory=dict)

    def __or__(self, other: "RoomAt") -> "RoomAt":
        shapes = dict(self.shapes)
        for name, shape in other.shapes.items():
            shapes[name] = tuple(map(max, shapes.get(name, shape), shape))
        return RoomAt(self.parts | other.parts, shapes)

    def part_of(self, leaf: str) -> Rows:
        """The part among those there is room for that takes the leaf of this name."""
        (part,) = (part for part in self.parts if leaf in part.leaves)
        return part


def rooms(model: nnx.Module, room: Room, shapes_of: MadeShapes) -> dict[str, RoomAt]:
    """For each site's path, the parts and leaf shapes that the largest adapters need there."""
    at: dict[str, RoomAt] = {}
    for method, chosen in room:
        assert isinstance(method, AddedModules), "full tuning adds nothing that could be held beside the base"
        method = method.settled(chosen)
        for site in chosen:
            blank = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(method, site).items()}
            shapes = {name: value.shape for name, value in method.row_leaves_at(site, blank, None).items()}
            here = RoomAt(frozenset(method.rows(site, model)), shapes)
            at[site.path] = at.get(site.path, RoomAt()) | here
    return at


def attach_pool(model: Model, slots: int, at: Mapping[str, RoomAt]) -> Model:
    """A model whose adapters are those of a pool, every slot at its identity; it shares the base's arrays with `model`.

    Stacks stay cut as they are: where one layer of a segment has room for something, all of them have.
    """
    model = copied(model)
    for place in site_modules(model):
        here = functools.reduce(RoomAt.__or__, (at.get(site.path, RoomAt()) for site in place.sites))
        if here.parts:
            layers = (len(place.sites),) if place.in_stack else ()
            leaves = {
                name: jax.device_put(np.broadcast_to(here.part_of(name).identity(name), (*layers, slots, *shape)))
                for name, shape in here.shapes.items()
            }
            put(place, RowAdapters(here.parts, leaves))
    return model


@dataclasses.dataclass(frozen=True)
class PoolLeaf:
    """One array of a pool: `[slots, *shape]`, or `[layers, slots, *shape]` where its layers are stacked.

    Attributes:
      path: in the model's state.
      names: of what it holds of one adapter, one a layer, as `jpeft.leaves` names leaves.
      shape: of one name's entry.
      part: of a row-wise adapter, that has it.
    """

    path: tuple[Any, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    part: Rows

    def identity(self) -> np.ndarray:
        """The entry of an adapter that does nothing here: `shape`, or `[layers, *shape]`."""
        layers = (len(self.names),) if self.stacked else ()
        return np.array(np.broadcast_to(self.part.identity(self.leaf), (*layers, *self.shape)))

    @property
    def leaf(self) -> str:
        """The name of the leaf itself, the last part of its path."""
        return str(self.path[-1])


class PoolLayout:
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
    def of(cls, model: nnx.Module, at: Mapping[str, RoomAt]) -> tuple["PoolLayout", tuple[Array, ...]]:
        """The layout of what `attach_pool` attached, and its arrays."""
        leaves, arrays = [], []
        for leaf in stacked_leaves(model, AdapterRows):
            array = leaf.variable[...]
            arrays.append(array)
            name = str(leaf.path[-1])
            rooms_here = (at.get(whole.rpartition("/")[0], RoomAt()) for whole in leaf.names)
            part = next(room.part_of(name) for room in rooms_here if name in room.shapes)
            leaves.append(PoolLeaf(leaf.path, leaf.names, array.shape[leaf.stacked + 1 :], leaf.stacked, part))
        return cls(leaves), tuple(arrays)

    def entry(self, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """An adapter's entry from its leaves by name as `Method.row_leaves_at` has them; identities elsewhere.

        None is larger than `shapes`.
        """
        entry = tuple(leaf.identity() for leaf in self.leaves)
        for name, value in values.items():
            i, layer = self._where[name]
            whole = entry[i][layer]
            at_end = self.leaves[i].leaf in self.leaves[i].part.filled_at_start
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
            (leaf.path, AdapterRows(jnp.take(array, slots, axis=int(leaf.stacked), mode="clip")))
            for leaf, array in zip(self.leaves, pool, strict=True)
        )
