"""Leaves of a model by name, one entry a layer, however its layers are stored.

`encoder/layers/3/self_attention/q/kernel` is the kernel of the fourth encoder block's query projection; what a method
attached there is `encoder/layers/3/self_attention/q/lora_a`. These names are the interface of files, of selections by
regular expression and of error messages.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from flax import nnx

from jpeft.errors import UserError

Model = TypeVar("Model", bound=nnx.Module)


@runtime_checkable
class LayerStack(Protocol):
    """Layers of equal structure kept in *segments*: blocks whose every leaf has a leading axis of layers.

    Within a segment all layers have the same adapters; `cut` makes segments smaller where they are to differ.
    """

    segments: Any  # nnx.List of blocks

    def layer_counts(self) -> list[int]:
        """How many layers each segment holds, in their order; the sum is the number of layers."""
        ...

    def cut(self, starts: Sequence[int]) -> None:
        """Makes a segment begin at each of these layers, as well as where one begins now."""
        ...


def copied(model: Model) -> Model:
    """New modules and variables around the same arrays: what changes in one is not changed in the other."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))


class Quantized(nnx.Param):
    """A leaf of a frozen weight that is kept in fewer bits, as codes or as their magnitudes; it never trains.

    Made as `Quantized(value, numbers=2)`: how many numbers of the weight an item holds.
    """


WIDE = nnx.All(nnx.Param, nnx.Not(Quantized))  # weights that are kept as numbers of their own


def num_weights(model: nnx.Module) -> int:
    """How many numbers the weights of a model are, in however few bits they are kept."""
    return sum(
        math.prod(variable.shape) * (variable.get_metadata("numbers") if isinstance(variable, Quantized) else 1)
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    )


def weight_bytes(model: nnx.Module, dtype: Any) -> int:
    """How many bytes the weights of a model take, or of shapes in their place; `dtype` is of those kept wide."""
    return sum(
        math.prod(variable.shape) * np.dtype(variable.dtype if isinstance(variable, Quantized) else dtype).itemsize
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    )


@dataclasses.dataclass(frozen=True)
class StackedLeaf:
    """One variable of the model and the names of what it holds: one, or one per layer along its first axis."""

    path: tuple[Any, ...]
    variable: nnx.Variable
    names: tuple[str, ...]
    stacked: bool


def segment_starts(stack: LayerStack) -> list[int]:
    """Index of each segment's first layer within its stack."""
    sizes = stack.layer_counts()
    return [sum(sizes[:i]) for i in range(len(sizes))]


def stacked_leaves(model: nnx.Module, kind: Any) -> Iterator[StackedLeaf]:
    """Every variable of type `kind`, or of a filter of `nnx`, in a fixed order."""
    path: Any
    for path, variable in nnx.to_flat_state(nnx.state(model, kind)):
        at = path.index("segments") if "segments" in path else None
        stack = None if at is None else _at(model, path[:at])
        if at is not None and isinstance(stack, LayerStack):
            segment = path[at + 1]
            first, layers = segment_starts(stack)[segment], stack.layer_counts()[segment]
            above, below = _own_parts(model, path[: at + 2]), _own_parts(model, path)
            names = tuple(_name([*above[:-2], "layers", first + i, *below[len(above) :]]) for i in range(layers))
            yield StackedLeaf(path, variable, names, stacked=True)
        else:
            yield StackedLeaf(path, variable, (_name(_own_parts(model, path)),), stacked=False)


def _own_parts(model: nnx.Module, path: Sequence[Any]) -> list[Any]:
    """A path without the step from a module to what a method has attached to it; one's own `adapter` stays."""
    parts, node = [], model
    for part in path:
        if not (part == "adapter" and hasattr(type(node), "unadapted")):
            parts.append(part)
        node = _at(node, (part,))
    return parts


def _name(parts: Sequence[Any]) -> str:
    return "/".join(map(str, parts))


def named_leaves(model: nnx.Module, kind: Any) -> dict[str, np.ndarray]:
    """The leaves of type `kind` as they are now, on the host, each layer its own array. They may not be written to."""
    named = {}
    for leaf in stacked_leaves(model, kind):
        value = np.asarray(leaf.variable[...])
        for name, own in zip(leaf.names, value, strict=True) if leaf.stacked else [(leaf.names[0], value)]:
            if name in named:
                raise UserError(f"two leaves of the model are called {name}; one of them would be lost in a file.")
            named[name] = own
    return named


Part = tuple[slice, ...]  # of an array, one slice for each dimension
Read = Callable[[str, tuple[int, ...], Part], np.ndarray]
Devices = Callable[[tuple[Any, ...], tuple[int, ...]], jax.sharding.Sharding]


def on_first_device(path: tuple[Any, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """The sharding of any leaf when only one device is used: the first one holds all of it."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def fill(model: nnx.Module, kind: Any, read: Read, dtype: Any, devices: Devices = on_first_device) -> None:
    """Sets every leaf of type `kind`, or of a filter of `nnx`, with one stacked leaf on the host at a time.

    Args:
      dtype: of all of them; None keeps each leaf's own.
      read: `(name, shape, part)` to that part of what one layer's leaf of that name and shape is; asked for what this
        process's devices hold, and no more.
      devices: `(path, shape)` to where a leaf is to be.
    """
    for leaf in stacked_leaves(model, kind):
        shape = leaf.variable.shape
        its_dtype = leaf.variable.dtype if dtype is None else dtype
        parts: dict[Any, np.ndarray] = {}  # replicas ask for the same part

        def part_of(
            index: Any,
            leaf: StackedLeaf = leaf,
            shape: tuple[int, ...] = shape,
            parts: dict = parts,
            its_dtype: Any = its_dtype,
        ):
            bounds = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
            if bounds not in parts:
                inner = tuple(slice(*bound) for bound in bounds[leaf.stacked :])
                if leaf.stacked:
                    host = np.empty([stop - start for start, stop in bounds], its_dtype)
                    for i, name in enumerate(leaf.names[slice(*bounds[0])]):
                        host[i] = read(name, shape[1:], inner)
                else:
                    host = np.asarray(read(leaf.names[0], shape, inner)).astype(its_dtype)
                parts[bounds] = host
            return parts[bounds]

        array = jax.make_array_from_callback(shape, devices(leaf.path, shape), part_of)
        _at(model, leaf.path).set_value(array)


def _at(model: nnx.Module, path: Sequence[Any]) -> Any:
    node: Any = model
    for part in path:
        node = node[part] if isinstance(part, int) or isinstance(node, dict) else getattr(node, part)
    return node


def is_stacked(path: Sequence[Any]) -> bool:
    """Whether the leaf at a `jax.tree_util` path of a model's state has a leading `layers` axis."""
    return any(getattr(part, "key", None) == "segments" for part in path)
