"""Leaves of a model by name, one name per layer, whether the layers are stacked or stored separately.

`encoder/layers/3/self_attention/q/kernel` is the kernel of the fourth encoder block's query projection, and
`encoder/layers/3/self_attention/q/lora_a` the leaf of a method attached to it. Files, selections by regular expression
and error messages use these names.
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
    """Layers of equal structure, stored in *segments*: blocks whose leaves all have a leading axis of layers.

    All layers of a segment have the same adapters; `cut` splits segments so that layers can differ.
    """

    segments: Any  # nnx.List of blocks

    def layer_counts(self) -> list[int]:
        """Returns the number of layers of each segment, in order."""
        ...

    def cut(self, starts: Sequence[int]) -> None:
        """Splits segments so that one begins at each of these layer indices; existing boundaries stay."""
        ...


def copied(model: Model) -> Model:
    """Copies modules and variables, and shares the arrays: setting a variable of the copy leaves the original alone."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))


class Quantized(nnx.Param):
    """A leaf of a quantized weight, which is frozen: its codes or their scales.

    Created as `Quantized(value, numbers=2)`, with the number of weights that each item of `value` encodes.
    """


WIDE = nnx.All(nnx.Param, nnx.Not(Quantized))  # weights that are not quantized


def num_weights(model: nnx.Module) -> int:
    """Returns the number of parameters of a model, quantized or not."""
    return sum(
        math.prod(variable.shape) * (variable.get_metadata("numbers") if isinstance(variable, Quantized) else 1)
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    )


def weight_bytes(model: nnx.Module, dtype: Any) -> int:
    """Returns the size in bytes of a model's weights, or of their abstract shapes.

    Args:
      dtype: of the weights that are not quantized.
    """
    return sum(
        math.prod(variable.shape) * np.dtype(variable.dtype if isinstance(variable, Quantized) else dtype).itemsize
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    )


@dataclasses.dataclass(frozen=True)
class StackedLeaf:
    """A variable of a model with its leaf names.

    Attributes:
      path: of the variable in the model's state.
      names: one name per layer along the first axis if the variable is stacked, otherwise a single name.
      stacked: whether the first axis is an axis of layers.
    """

    path: tuple[Any, ...]
    variable: nnx.Variable
    names: tuple[str, ...]
    stacked: bool


def segment_starts(stack: LayerStack) -> list[int]:
    """Returns the index, within the stack, of each segment's first layer."""
    sizes = stack.layer_counts()
    return [sum(sizes[:i]) for i in range(len(sizes))]


def stacked_leaves(model: nnx.Module, kind: Any) -> Iterator[StackedLeaf]:
    """Yields the variables that an `nnx` filter, such as a variable type, selects, in a fixed order."""
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
    """Drops the `adapter` part that attaching a method inserts into a path; a model's own `adapter` attribute stays."""
    parts, node = [], model
    for part in path:
        if not (part == "adapter" and hasattr(type(node), "unadapted")):
            parts.append(part)
        node = _at(node, (part,))
    return parts


def _name(parts: Sequence[Any]) -> str:
    return "/".join(map(str, parts))


def named_leaves(model: nnx.Module, kind: Any) -> dict[str, np.ndarray]:
    """Copies the leaves that an `nnx` filter selects to the host, one read-only array per layer, by name.

    Raises:
      UserError: two leaves have the same name.
    """
    named = {}
    for leaf in stacked_leaves(model, kind):
        value = np.asarray(leaf.variable[...])
        for name, own in zip(leaf.names, value, strict=True) if leaf.stacked else [(leaf.names[0], value)]:
            if name in named:
                raise UserError(f"two leaves of the model are called {name}; one of them would be lost in a file.")
            named[name] = own
    return named


Part = tuple[slice, ...]  # a part of an array: one slice per dimension
Read = Callable[[str, tuple[int, ...], Part], np.ndarray]
Devices = Callable[[tuple[Any, ...], tuple[int, ...]], jax.sharding.Sharding]


def on_first_device(path: tuple[Any, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """A `Devices` function that places every leaf on the first device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def fill(model: nnx.Module, kind: Any, read: Read, dtype: Any, devices: Devices = on_first_device) -> None:
    """Sets the leaves that an `nnx` filter selects, holding one stacked leaf at a time in host memory.

    Args:
      kind: the filter, such as a variable type.
      read: `(name, shape, part) -> array`, that part of one layer's leaf of that name and shape. Called only for the
        parts that this process's devices hold.
      dtype: of the new leaves; None keeps each leaf's own.
      devices: `(path, shape) -> sharding` of each leaf.
    """
    for leaf in stacked_leaves(model, kind):
        shape = leaf.variable.shape
        its_dtype = leaf.variable.dtype if dtype is None else dtype
        parts: dict[Any, np.ndarray] = {}  # a cache: replicas ask for the same part

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
