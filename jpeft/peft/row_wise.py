"""The adapters of a batch, each applied to its own row: what serves many adapters of one base in one program.

A method says in *parts* how its adapters act on the rows of a batch. A part names leaves, which have one entry a row
(`[batch, ...]`), and is called around what the model computes, or around another part. Methods may share a part: LoRA
with scaling vectors and (IA)³ rescale by the same one, so that a batch of both is rescaled once.
"""

import abc
import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.peft.arithmetic import rescaled
from jpeft.peft.variables import Adapter, AdapterRows
from jpeft.peft.views import Original

Leaves = Mapping[str, Array]  # by name, each `[batch, ...]`


class Rows(abc.ABC):
    """One part of what adapters do to the rows of a batch. Equal parts compute the same.

    Attributes:
      leaves: names of those that it takes.
      order: parts with a smaller number act nearer to what the model computes.
      filled_at_start: leaves that, where they have fewer entries than there is room for, stand at the end of it.
    """

    leaves: tuple[str, ...]
    order: ClassVar[int] = 0
    filled_at_start: ClassVar[tuple[str, ...]] = ()

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        """The value of a leaf of an adapter that does nothing: a scalar, or of the leaf's shape."""
        return np.float32(0)

    def num_before(self, leaves: Leaves) -> tuple[int, Any]:
        """Room for keys that it puts before the text, and how many it puts there in each row: by default none."""
        return 0, 0

    @abc.abstractmethod
    def __call__(self, leaves: Leaves, compute: Original, *args: Any) -> Any:
        """What `compute` gives of the arguments, each row with its own leaves applied."""


@dataclasses.dataclass(frozen=True)
class Rescale(Rows):
    """`s_out * W (s_in * x)`, with one of the two vectors or both."""

    leaves: tuple[str, ...] = ("scale_in", "scale_out")

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.float32(1)

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        rescale_rows = jax.vmap(rescaled)  # each row by a vector of its own
        y = compute(rescale_rows(x, leaves["scale_in"]) if "scale_in" in leaves else x)
        return rescale_rows(y, leaves["scale_out"]) if "scale_out" in leaves else y


def each(leaf: Array) -> Float[Array, "batch 1 width"]:
    """One vector for each row as `[batch, 1, width]`, to be applied at all positions of its row."""
    return leaf.astype(jnp.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class EachRow(Rows):
    """A method's own module, mapped over rows.

    Attributes:
      graphdef: of the module, whose leaves are arguments.
      start: the leaves as the method makes them, which leave a row as it was.
    """

    graphdef: nnx.GraphDef
    leaves: tuple[str, ...]
    start: tuple["_Fixed", ...] = dataclasses.field(compare=False)
    order: ClassVar[int] = -1

    @classmethod
    def of(cls, module: nnx.Module) -> "EachRow":
        """The part that applies modules such as this one, whose values leave the model as it is."""
        graphdef, state = nnx.split(module, Adapter)
        flat = dict(nnx.to_flat_state(state))
        names = tuple(str(path[0]) for path in flat)
        assert all(len(path) == 1 for path in flat), "a method's module holds its leaves itself"
        return cls(graphdef, names, tuple(_Fixed(leaf[...]) for leaf in flat.values()))

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.asarray(self.start[self.leaves.index(leaf)].value)

    def __call__(self, leaves: Leaves, compute: Original, *args: Any) -> Any:
        state = nnx.from_flat_state([((name,), Adapter(value)) for name, value in leaves.items()])
        return nnx.merge(self.graphdef, state)(compute, *args)


class _Fixed:
    """An array that a frozen dataclass may hold."""

    def __init__(self, value: Any):
        self.value = value


class RowAdapters(nnx.Module):
    """Stands at a site where one adapter would: holds the parts of every method that a batch may mix at that site."""

    def __init__(self, parts: Collection[Rows], leaves: Leaves):
        self.parts = nnx.static(tuple(sorted(set(parts), key=lambda part: part.order)))
        for name, value in leaves.items():
            setattr(self, name, AdapterRows(value))

    def _leaves(self, part: Rows) -> Leaves:
        return {name: getattr(self, name)[...] for name in part.leaves if hasattr(self, name)}

    def num_before(self) -> tuple[int, Any]:
        """Room for keys before the text, and how many of it each row uses, as `PrefixSite.num_before`."""
        counts = [part.num_before(self._leaves(part)) for part in self.parts]
        return max(counts, key=lambda count: count[0], default=(0, 0))

    def __call__(self, compute: Original, *args: Any) -> Any:
        mapped = [part for part in self.parts if isinstance(part, EachRow)]
        if mapped:
            each = functools.partial(_over_rows, mapped, [self._leaves(part) for part in mapped], compute)
            compute = compute.by(each)
        for part in self.parts:
            if not isinstance(part, EachRow):
                compute = compute.by(functools.partial(part, self._leaves(part), compute))
        return compute(*args)


def _over_rows(parts: Sequence[EachRow], leaves: Sequence[Leaves], compute: Original, *args: Any) -> Any:
    """Applies modules to each row by itself: what they call is then given a batch of one row."""

    def one(leaves: Sequence[Leaves], *args: Any) -> Any:
        inner = compute
        for part, own in zip(parts, leaves, strict=True):
            inner = inner.by(functools.partial(part, own, inner))
        return jax.tree.map(lambda y: y[0], inner(*(x[None] for x in args)))

    return jax.vmap(one)(list(leaves), *args)
