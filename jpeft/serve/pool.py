"""The arrays of a bank: for each leaf that an adapter may have, one entry per slot. Slot 0 is the identity.

Sites, the largest sizes and the number of slots are fixed when a bank is made. The slots that a batch uses, and the one
that is written, are arguments of the compiled programs, so nothing is compiled again.
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

Room = Sequence[tuple[Method, Sequence[Site]]]  # the largest adapters that a bank can hold, and their sites
LeafShapes = Mapping[str, tuple[int, ...]]


def room_for(model: nnx.Module, *methods: Method) -> Room:
    """The room for adapters up to the size of these methods, at all the sites that each selects."""
    return [(method, select(model, method)) for method in methods]


class MadeShapes:
    """The shapes of the leaves that a method makes at a site, by the leaf's name; nothing is allocated."""

    def __init__(self, model: nnx.Module):
        self._model = model
        self._known: dict[tuple, LeafShapes] = {}

    def __call__(self, method: AddedModules, site: Site) -> LeafShapes:
        key = (method, site.kind, site.sublayer, site.name, site.d_in, site.d_out)  # the same in every layer
        if key not in self._known:
            module = nnx.eval_shape(lambda: method.create(site, jax.random.key(0), self._model))
            self._known[key] = {name: leaf.shape for name, leaf in vars(module).items() if isinstance(leaf, Adapter)}
        return self._known[key]


@dataclasses.dataclass(frozen=True)
class RoomAt:
    """The room of a bank at one site: the parts of row-wise adapters, and the largest shape of each leaf."""

    parts: frozenset[Rows] = frozenset()
    shapes: LeafShapes = dataclasses.field(default_factory=dict)

    def __or__(self, other: "RoomAt") -> "RoomAt":
        shapes = dict(self.shapes)
        for name, shape in other.shapes.items():
            shapes[name] = tuple(map(max, shapes.get(name, shape), shape))
        return RoomAt(self.parts | other.parts, shapes)

    def part_of(self, leaf: str) -> Rows:
        """The part that has the leaf of this name."""
        (part,) = (part for part in self.parts if leaf in part.leaves)
        return part


def rooms(model: nnx.Module, room: Room, shapes_of: MadeShapes) -> dict[str, RoomAt]:
    """The room that the largest adapters need at each site, by the site's path."""
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
    """Attaches a pool's adapters to a model, every slot at its identity; the base's arrays are shared with `model`.

    Stacks keep their segments: if one layer of a segment has room for an adapter, all of its layers have.
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
    """One array of a pool: `[slots, *shape]`, or `[layers, slots, *shape]` if its layers are stacked.

    Attributes:
      path: in the model's state.
      names: the names, as of `jpeft.leaves`, of the leaves of one adapter that it holds, one per layer.
      shape: of one leaf.
      part: the part of a row-wise adapter that has it.
    """

    path: tuple[Any, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    part: Rows

    def identity(self) -> np.ndarray:
        """The entry of an adapter that changes nothing: `shape`, or `[layers, *shape]`."""
        layers = (len(self.names),) if self.stacked else ()
        return np.array(np.broadcast_to(self.part.identity(self.leaf), (*layers, *self.shape)))

    @property
    def leaf(self) -> str:
        """The leaf's own name, the last part of its path."""
        return str(self.path[-1])


class PoolLayout:
    """The arrays of a pool, and the pure functions that read and write them.

    A pool is a tuple of arrays and an adapter's entry a tuple of NumPy arrays, both in the order of `leaves`.
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
        """The layout of the pool that `attach_pool` attached to a model, and its arrays."""
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
        """Makes an adapter's entry, with identities where it has no leaf.

        Args:
          values: leaves by name, as of `Method.row_leaves_at`; none larger than the pool's shapes.
        """
        entry = tuple(leaf.identity() for leaf in self.leaves)
        for name, value in values.items():
            i, layer = self._where[name]
            whole = entry[i][layer]
            at_end = self.leaves[i].leaf in self.leaves[i].part.padded_at_start
            whole[len(whole) - len(value) if at_end else 0 :][: len(value)] = value
        return entry

    def write(
        self, pool: tuple[Array, ...], entry: tuple[Array, ...], slot: Int[Array, ""]
    ) -> tuple[Shaped[Array, "..."], ...]:
        """The pool with `entry` at `slot`; written in place if the pool is donated."""
        return tuple(
            jax.lax.dynamic_update_index_in_dim(array, part, slot, axis=int(leaf.stacked))
            for leaf, array, part in zip(self.leaves, pool, entry, strict=True)
        )

    def rows(self, pool: tuple[Array, ...], slots: Int[Array, " batch"]) -> nnx.State:
        """The state to merge with a base so that row `i` of a batch uses the adapter of `slots[i]`."""
        return nnx.from_flat_state(
            (leaf.path, AdapterRows(jnp.take(array, slots, axis=int(leaf.stacked), mode="clip")))
            for leaf, array in zip(self.leaves, pool, strict=True)
        )
