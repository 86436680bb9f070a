"""A mesh of devices, and where on it a run's arrays are."""

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
    """The leaf, which every process holds whole or JAX already spreads over them, in its place."""
    spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if spread or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def bytes_on_a_device(tree: Any) -> int:
    """Bytes that each device holds of a tree's leaves, or would hold of their descriptions, by their shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices of a run as a mesh, and where on it each array lies. Equal if devices and the mesh's shape are."""

    mesh: Mesh

    @classmethod
    def of_devices(cls, data: int = 1, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> "Layout":
        """A mesh of `data * fsdp * model` devices, neighbours along `model`: what talks most is nearest.

        Raises:
          UserError: there are not so many devices, or a process would have none of them.
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
        if count == len(devices):  # JAX then knows how they are connected
            return cls(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices))
        return cls(Mesh(np.asarray(chosen).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES)))

    @property
    def shape(self) -> dict[str, int]:
        """The number of devices along each axis of the mesh, by the axis's name."""
        return dict(self.mesh.shape)

    @property
    def batch_parts(self) -> int:
        """Into how many parts a batch is cut: the devices along `data` times those along `fsdp`."""
        return int(np.prod([self.mesh.shape[axis] for axis in BATCH_AXES]))

    def sharding(self, path: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
        """The sharding of a leaf of the model, of an adapter or of an optimizer's state, by the table of `rules`.

        Args:
          path: of the leaf in its tree, as `jax.tree_util` has it; its end says what the leaf is.
          shape: of the whole leaf.

        Raises:
          UserError: a dimension cannot be cut into so many equal parts.
          LookupError: no rule is for it.
        """
        spec = spec_of(path, shape)
        if len(spec) > len(shape):  # sums over some of a weight's dimensions, as Adafactor keeps them: small
            spec = P()
        for size, axis in zip(shape, spec, strict=False):
            if axis is not None and size % self.mesh.shape[axis]:
                raise UserError(
                    f"{leaf_name(path)} has a dimension of {size}, which mesh.{axis}={self.mesh.shape[axis]} does not "
                    f"divide; choose a mesh.{axis} that divides it."
                )
        return NamedSharding(self.mesh, spec)

    def sharding_of(self, path: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
        """As `sharding`, of a leaf at a path of plain names and indices."""
        keys = [jax.tree_util.DictKey(part) for part in path]
        return self.sharding(keys, shape)

    def shardings(self, tree: Any) -> Any:
        """A tree of the same structure with the `sharding` of each leaf in its place. Raises as that does."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self.sharding(path, leaf.shape), tree)

    def describe(self, tree: Any) -> Any:
        """Shapes of a tree's leaves with where each would be. Raises as `sharding`."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding(path, leaf.shape)),
            tree,
        )

    def place(self, tree: Any) -> Any:
        """The tree with every leaf where it belongs. Raises as `sharding`."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def for_answers(self, trees: Any) -> "Layout":
        """Where the same devices hold weights while they write answers, token by token.

        Weights that `fsdp` cuts for storage would be gathered anew for every token. Here `model` cuts them instead,
        over as many devices: each reads its own part, as large as before, and has the rows of all of them. Where a
        dimension cannot be cut so, every device has the weights whole and its own rows.

        Args:
          trees: the leaves that answers need, or their shapes.
        """
        parts = self.shape
        if parts["fsdp"] == 1:
            return self
        cut = self._reshaped(data=parts["data"], model=parts["fsdp"] * parts["model"])
        try:
            cut.shardings(trees)
        except UserError:
            return self._reshaped(data=parts["data"] * parts["fsdp"], model=parts["model"])
        return cut

    def _reshaped(self, *, data: int, model: int) -> "Layout":
        """The same devices in the same order, as a mesh of two axes."""
        return Layout(Mesh(self.mesh.devices.reshape(data, 1, model), AXES, axis_types=(AxisType.Auto,) * len(AXES)))

    def rows_here(self, rows: int) -> slice:
        """The slice of a batch of `rows` rows that the devices of this process work on."""
        parts = self.batch.addressable_devices_indices_map((rows,)).values()
        bounds = sorted({index[0].indices(rows)[:2] for index in parts if index is not None})
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(bounds)), "a process's rows have a gap"
        return slice(bounds[0][0], bounds[-1][1])

    @property
    def whole(self) -> NamedSharding:
        """The sharding of what every device has whole, such as a random key or a learning rate."""
        return NamedSharding(self.mesh, P())

    @property
    def batch(self) -> NamedSharding:
        """The sharding of arrays whose first axis is the batch."""
        return NamedSharding(self.mesh, ACTIVATIONS["batch"])

    def traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its activations placed by this layout when it is traced."""

        @functools.wraps(function)
        def within(*args: Any) -> Any:
            with placing(self.constrain):
                return function(*args)

        return within

    def each_part(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of a batch as that of each part into which `data` cuts it, with no message between the parts.

        Args:
          function: of whatever all parts share, a random key, of which each part gets its own, and a batch: arrays
            whose first axis is that of rows.

        Returns:
          A function of the same arguments, to be traced; its results have an axis of parts in front.
        """

        def of_part(*args: Any) -> Any:
            *shared, key, batch = args
            with placing(self._constrain_part):
                made = function(*shared, jax.random.fold_in(key, jax.lax.axis_index("data")), batch)
            return jax.tree.map(lambda leaf: leaf[None], made)

        def of_all(*args: Any) -> Any:
            specs = (*[P()] * (len(args) - 1), P("data"))
            # Not checked for what varies along `data`: JAX would sum the gradient of what all parts share there.
            return jax.shard_map(
                of_part, mesh=self.mesh, axis_names={"data"}, in_specs=specs, out_specs=P("data"), check_vma=False
            )(*args)

        return of_all

    def constrain(self, x: jax.Array, kind: str) -> jax.Array:
        """Says, within a compiled function, how an activation of that kind is cut: a key of `ACTIVATIONS`."""
        return self._constrained(x, ACTIVATIONS[kind], self.mesh)

    def _constrain_part(self, x: jax.Array, kind: str) -> jax.Array:
        """As `constrain` within the function of a part, which `data` does not cut any further."""
        if self.mesh.size == self.mesh.shape["data"]:  # a part is one device's
            return x
        spec = P(*("fsdp" if axis == BATCH_AXES else axis for axis in ACTIVATIONS[kind]))
        return self._constrained(x, spec, jax.sharding.get_abstract_mesh())

    def _constrained(self, x: jax.Array, spec: P, mesh: Mesh | AbstractMesh) -> jax.Array:
        fits = all(
            axis is None or size % int(np.prod([self.mesh.shape[a] for a in np.atleast_1d(axis)])) == 0
            for size, axis in zip(x.shape, spec, strict=False)
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)) if fits else x
