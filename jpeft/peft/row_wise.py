"""Batches in which each row has its own adapter, so that one program serves many adapters of one base.

A method describes how its adapters act on the rows of a batch by *parts* (`Rows`). A part takes leaves with one entry
per row, `[batch, ...]`, and wraps the original call of the module or another part. Methods may share a part: LoRA with
scaling vectors and (IA)³ use the same `Rescale`, so that a batch of both is rescaled once.
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
    """One part of the effect of adapters on the rows of a batch. Parts that are equal compute the same.

    Attributes:
      leaves: names of the leaves that it takes.
      order: position among the parts of a site; smaller ones are nearer to the original call.
      padded_at_start: leaves that are padded at the start, where they are shorter than the allocated size, instead of
        at the end.
    """

    leaves: tuple[str, ...]
    order: ClassVar[int] = 0
    padded_at_start: ClassVar[tuple[str, ...]] = ()

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        """The value of a leaf with which the part is a no-op: a scalar or an array of its shape; 0 by default."""
        return np.float32(0)

    def num_before(self, leaves: Leaves) -> tuple[int, Any]:
        """The number of keys that it puts before the text, as allocated and as used in each row; 0 by default."""
        return 0, 0

    @abc.abstractmethod
    def __call__(self, leaves: Leaves, compute: Original, *args: Any) -> Any:
        """Calls `compute` with the arguments and applies to each row its own leaves."""


@dataclasses.dataclass(frozen=True)
class Rescale(Rows):
    """`s_out * W (s_in * x)`, with one of the two vectors or both."""

    leaves: tuple[str, ...] = ("scale_in", "scale_out")

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.float32(1)

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        rescale_rows = jax.vmap(rescaled)  # one vector per row
        y = compute(rescale_rows(x, leaves["scale_in"]) if "scale_in" in leaves else x)
        return rescale_rows(y, leaves["scale_out"]) if "scale_out" in leaves else y


def per_row(leaf: Array) -> Float[Array, "batch 1 width"]:
    """Float32 vectors `[batch, width]` as `[batch, 1, width]`, to apply each at all positions of its row."""
    return leaf.astype(jnp.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class EachRow(Rows):
    """The default part of a method: its own module, mapped over the rows.

    Attributes:
      graphdef: structure of the module; its leaves are passed as arguments.
      leaves: names of the module's leaves.
      start: the initial values of the leaves, with which the module is a no-op.
    """

    graphdef: nnx.GraphDef
    leaves: tuple[str, ...]
    start: tuple["_Fixed", ...] = dataclasses.field(compare=False)
    order: ClassVar[int] = -1

    @classmethod
    def of(cls, module: nnx.Module) -> "EachRow":
        """The part for modules like this freshly created one, whose leaves must make it a no-op."""
        graphdef, state = nnx.split(module, Adapter)
        flat = dict(nnx.to_flat_state(state))
        names = tuple(str(path[0]) for path in flat)
        assert all(len(path) == 1 for path in flat), "a method's module holds its leaves as its own attributes"
        return cls(graphdef, names, tuple(_Fixed(leaf[...]) for leaf in flat.values()))

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.asarray(self.start[self.leaves.index(leaf)].value)

    def __call__(self, leaves: Leaves, compute: Original, *args: Any) -> Any:
        state = nnx.from_flat_state([((name,), Adapter(value)) for name, value in leaves.items()])
        return nnx.merge(self.graphdef, state)(compute, *args)


class _Fixed:
    """Wraps an array, which is not hashable, for a frozen dataclass."""

    def __init__(self, value: Any):
        self.value = value


class RowAdapters(nnx.Module):
    """The adapter of a site in a batch of many adapters: the parts of all methods that such a batch may mix there."""

    def __init__(self, parts: Collection[Rows], leaves: Leaves):
        self.parts = nnx.static(tuple(sorted(set(parts), key=lambda part: part.order)))
        for name, value in leaves.items():
            setattr(self, name, AdapterRows(value))

    def _leaves(self, part: Rows) -> Leaves:
        return {name: getattr(self, name)[...] for name in part.leaves if hasattr(self, name)}

    def num_before(self) -> tuple[int, Any]:
        """The largest `Rows.num_before` of its parts: the allocated number of keys, and those in use in each row."""
        counts = [part.num_before(self._leaves(part)) for part in self.parts]
        return max(counts, key=lambda count: count[0], default=(0, 0))

    def __call__(self, compute: Original, *args: Any) -> Any:
        mapped = [part for part in self.parts if isinstance(part, EachRow)]
        if mapped:
            on_rows = functools.partial(_over_rows, mapped, [self._leaves(part) for part in mapped], compute)
            compute = compute.by(on_rows)
        for part in self.parts:
            if not isinstance(part, EachRow):
                compute = compute.by(functools.partial(part, self._leaves(part), compute))
        return compute(*args)


def _over_rows(parts: Sequence[EachRow], leaves: Sequence[Leaves], compute: Original, *args: Any) -> Any:
    """Applies modules to each row separately; `compute` is then called with batches of one row."""

    def one(leaves: Sequence[Leaves], *args: Any) -> Any:
        inner = compute
        for part, own in zip(parts, leaves, strict=True):
            inner = inner.by(functools.partial(part, own, inner))
        return jax.tree.map(lambda y: y[0], inner(*(x[None] for x in args)))

    return jax.vmap(one)(list(leaves), *args)
