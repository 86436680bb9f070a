"""The device mesh of a run, and the placement of arrays on it."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jpeft.errors import UserError
from jpeft.mesh.rules import ACTIVATIONS, AXES, BATCH_AXES, leaf_name, spec_of
from jpeft.model.placement import placing


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Place a leaf that every process holds whole, or that is already distributed over processes."""
    spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if spread or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def bytes_on_a_device(tree: Any) -> int:
    """Bytes per device of a tree of sharded arrays, or of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh of a run's devices, with the shardings of all its arrays; equal if devices and mesh shape are equal."""

    mesh: Mesh

    @classmethod
    def of_devices(cls, data: int = 1, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> "Layout":
        """Make a mesh of `data * fsdp * model` devices.

        Neighbouring devices lie along `model`, the axis with the most communication.

        Args:
          data, fsdp, model: the number of devices along each axis.
          devices: the devices to use; None is all of them.

        Raises:
          UserError: there are too few devices, or a process would have none of them.
        """
        shape = (data, fsdp, model)
        count = data * fsdp * model
        devices = jax.devices() if devices is None else devices
        if count > len(devices):
            raise UserError(
                f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.model={model} asks for {count} devices; "
                f"there {'is' if len(devices) == 1 else 'are'} {len(devices)} ({devices[0].device_kind})."
            )
        if jax.process_count() > 1 and count != len(devices):
            raise UserError(
                f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.model={model} uses {count} of the {len(devices)} devices "
                f"of {jax.process_count()} processes; the product has to be {len(devices)}."
            )
        chosen = devices[:count]
        if count == len(devices):  # `make_mesh` then orders them by how they are connected
            return cls(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices))
        return cls(Mesh(np.asarray(chosen).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES)))

    @property
    def shape(self) -> dict[str, int]:
        """The number of devices along each mesh axis, by the axis's name."""
        return dict(self.mesh.shape)

    @property
    def batch_parts(self) -> int:
        """The number of shards of a batch: the devices along `data` times those along `fsdp`."""
        return int(np.prod([self.mesh.shape[axis] for axis in BATCH_AXES]))

    def sharding(self, path: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
        """The sharding of a leaf of a model, an adapter or an optimizer's state, by the table of `rules`.

        Args:
          path: the leaf's path in its tree, as `jax.tree_util` has it; only its end matters.
          shape: the leaf's global shape.

        Raises:
          UserError: the mesh axis does not divide the dimension that it shards.
          LookupError: no rule matches.
        """
        spec = spec_of(path, shape)
        if len(spec) > len(shape):  # Adafactor's row and column statistics lack some dimensions; they are small
            spec = P()
        for size, axis in zip(shape, spec, strict=False):
            if axis is not None and size % self.mesh.shape[axis]:
                raise UserError(
                    f"{leaf_name(path)} has a dimension of {size}, which mesh.{axis}={self.mesh.shape[axis]} does not "
                    f"divide; choose a mesh.{axis} that divides it."
                )
        return NamedSharding(self.mesh, spec)

    def sharding_of(self, path: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
        """Like `sharding`, for a path of plain names and indices."""
        keys = [jax.tree_util.DictKey(part) for part in path]
        return self.sharding(keys, shape)

    def shardings(self, tree: Any) -> Any:
        """Map each leaf of a tree to its `sharding`, with the same errors."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self.sharding(path, leaf.shape), tree)

    def describe(self, tree: Any) -> Any:
        """Map each leaf of a tree to a `jax.ShapeDtypeStruct` with its `sharding`, with the same errors."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding(path, leaf.shape)),
            tree,
        )

    def place(self, tree: Any) -> Any:
        """Move each leaf of a tree to the devices of its `sharding`, with the same errors."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def for_answers(self, trees: Any) -> "Layout":
        """The layout of the same devices for generation and for scoring labels.

        Weights that `fsdp` shards for storage would have to be gathered for every token. Here the devices along `fsdp`
        are added to `model`: each computes with a shard of the same size as before, for the rows of all of them. If
        `model` cannot shard a dimension that far, they are added to `data`, with whole weights and rows of their own.

        Args:
          trees: the leaves to be placed, or their shapes.
        """
        parts = self.shape
        if parts["fsdp"] == 1:
            return self
        tensor_parallel = self._reshaped(data=parts["data"], model=parts["fsdp"] * parts["model"])
        try:
            tensor_parallel.shardings(trees)
        except UserError:
            return self._reshaped(data=parts["data"] * parts["fsdp"], model=parts["model"])
        return tensor_parallel

    def _reshaped(self, *, data: int, model: int) -> "Layout":
        """The same devices in the same order, with an `fsdp` axis of size 1."""
        return Layout(Mesh(self.mesh.devices.reshape(data, 1, model), AXES, axis_types=(AxisType.Auto,) * len(AXES)))

    def rows_here(self, rows: int) -> slice:
        """The slice of a batch of `rows` rows that lies on this process's devices."""
        parts = self.batch.addressable_devices_indices_map((rows,)).values()
        bounds = sorted({index[0].indices(rows)[:2] for index in parts if index is not None})
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(bounds)), "a process's rows have a gap"
        return slice(bounds[0][0], bounds[-1][1])

    @property
    def whole(self) -> NamedSharding:
        """The sharding of replicated values, such as a random key or a learning rate."""
        return NamedSharding(self.mesh, P())

    @property
    def batch(self) -> NamedSharding:
        """The sharding of arrays whose first axis is the batch."""
        return NamedSharding(self.mesh, ACTIVATIONS["batch"])

    def traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that tracing it constrains its activations' shardings to this layout."""

        @functools.wraps(function)
        def within(*args: Any) -> Any:
            with placing(self.constrain):
                return function(*args)

        return within

    def each_part(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Apply a function to each shard of a batch along `data`, without communication between the shards.

        Args:
          function: called as `function(*shared, key, batch)`: values that all shards share, a random key, which is
            different for each shard, and arrays whose first axis is the batch.

        Returns:
          A function of the same arguments, to be traced; its results have a leading axis of shards.
        """

        def apply_to_part(*args: Any) -> Any:
            *shared, key, batch = args
            with placing(self._constrain_part):
                made = function(*shared, jax.random.fold_in(key, jax.lax.axis_index("data")), batch)
            return jax.tree.map(lambda leaf: leaf[None], made)

        def apply(*args: Any) -> Any:
            specs = (*[P()] * (len(args) - 1), P("data"))
            # With `check_vma`, JAX would sum the gradients of shared values over `data` in each call.
            return jax.shard_map(
                apply_to_part, mesh=self.mesh, axis_names={"data"}, in_specs=specs, out_specs=P("data"), check_vma=False
            )(*args)

        return apply

    def constrain(self, x: jax.Array, kind: str) -> jax.Array:
        """Constrain an activation's sharding within a traced function; `kind` is a key of `ACTIVATIONS`.

        The activation is left as it is if the mesh does not divide one of the sharded dimensions.
        """
        return self._constrained(x, ACTIVATIONS[kind], self.mesh)

    def _constrain_part(self, x: jax.Array, kind: str) -> jax.Array:
        """Like `constrain`, within `each_part`, where `data` is already split."""
        if self.mesh.size == self.mesh.shape["data"]:  # each shard is on a single device
            return x
        spec = P(*("fsdp" if axis == BATCH_AXES else axis for axis in ACTIVATIONS[kind]))
        return self._constrained(x, spec, jax.sharding.get_abstract_mesh())

    def _constrained(self, x: jax.Array, spec: P, mesh: Mesh | AbstractMesh) -> jax.Array:
        fits = all(
            axis is None or size % int(np.prod([self.mesh.shape[a] for a in np.atleast_1d(axis)])) == 0
            for size, axis in zip(x.shape, spec, strict=False)
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)) if fits else x
