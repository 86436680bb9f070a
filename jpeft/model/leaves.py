"""Leaves of a model by name, one entry a layer, whatever the segments its blocks are stacked in.

`encoder/layers/3/self_attention/q/kernel` is the kernel of the fourth encoder block's query projection; what a method
attached there is `encoder/layers/3/self_attention/q/lora_a`. These names are the interface of files, of selections by
regular expression and of error messages.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.model.t5 import T5, num_stacked, segment_starts


@dataclasses.dataclass(frozen=True)
class StackedLeaf:
    """One variable of the model and the names of what it holds: one, or one per layer along its first axis."""

    path: tuple[Any, ...]
    variable: nnx.Variable
    names: tuple[str, ...]
    stacked: bool


def stacked_leaves(model: T5, kind: type[nnx.Variable]) -> Iterator[StackedLeaf]:
    """Every variable of type `kind`, in a fixed order."""
    starts = {name: segment_starts(getattr(model, name)) for name in ("encoder", "decoder")}
    path: Any
    for path, variable in nnx.to_flat_state(nnx.state(model, kind)):
        tail = [str(part) for part in path if part != "adapter"]
        if len(path) > 2 and path[1] == "segments":
            stack, segment = path[0], path[2]
            layers = num_stacked(getattr(model, stack).segments[segment])
            first = starts[stack][segment]
            names = tuple("/".join([stack, "layers", str(first + i), *tail[3:]]) for i in range(layers))
            yield StackedLeaf(path, variable, names, stacked=True)
        else:
            yield StackedLeaf(path, variable, ("/".join(tail),), stacked=False)


def named_leaves(model: T5, kind: type[nnx.Variable]) -> dict[str, Any]:
    """Copies of the leaves of type `kind`, each layer its own array."""
    named = {}
    for leaf in stacked_leaves(model, kind):
        value = leaf.variable[...]
        named.update(zip(leaf.names, value, strict=True) if leaf.stacked else [(leaf.names[0], value)])
    return named


Part = tuple[slice, ...]  # of an array, one slice for each dimension
Read = Callable[[str, tuple[int, ...], Part], np.ndarray]
Place = Callable[[tuple[Any, ...], tuple[int, ...]], jax.sharding.Sharding]


def on_first_device(path: tuple[Any, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """The place of everything where there is one device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def fill(model: T5, kind: type[nnx.Variable], read: Read, dtype: Any, place: Place = on_first_device) -> None:
    """Sets every leaf of type `kind` in `dtype`, with one stacked leaf on the host at a time.

    Args:
      read: `(name, shape, part)` to that part of what one layer's leaf of that name and shape is; asked for what this
        process's devices hold, and no more.
      place: `(path, shape)` to the devices of a leaf.
    """
    for leaf in stacked_leaves(model, kind):
        shape = leaf.variable.shape
        parts: dict[Any, np.ndarray] = {}  # replicas ask for the same part

        def part_of(index: Any, leaf: StackedLeaf = leaf, shape: tuple[int, ...] = shape, parts: dict = parts):
            bounds = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
            if bounds not in parts:
                inner = tuple(slice(*bound) for bound in bounds[leaf.stacked :])
                if leaf.stacked:
                    host = np.empty([stop - start for start, stop in bounds], dtype)
                    for row, name in zip(host, leaf.names[slice(*bounds[0])], strict=True):
                        row[...] = read(name, shape[1:], inner)
                else:
                    host = np.asarray(read(leaf.names[0], shape, inner)).astype(dtype)
                parts[bounds] = host
            return parts[bounds]

        array = jax.make_array_from_callback(shape, place(leaf.path, shape), part_of)
        _variable_at(model, leaf.path).set_value(array)


def _variable_at(model: nnx.Module, path: tuple[Any, ...]) -> nnx.Variable:
    node: Any = model
    for part in path:
        node = node[part] if isinstance(part, int) else getattr(node, part)
    return node


def is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether the leaf at a `jax.tree_util` path of a model's state has a leading `layers` axis."""
    return any(getattr(part, "key", None) == "segments" for part in path)
