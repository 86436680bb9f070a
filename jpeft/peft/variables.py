"""The variable types that tell apart what a method trains from what it leaves alone."""

from flax import nnx


class Adapter(nnx.Variable):
    """A trainable leaf. `nnx.split(model, Adapter, ...)` separates these from the frozen base."""


class Frozen(nnx.Param):
    """A leaf that a method adds and does not train: a part of the base that a model has only with that method."""


class AdapterRows(nnx.Variable):
    """A leaf of many adapters at once: `[slots, ...]` where they are kept, `[batch, ...]` where each row has its own.

    Before that axis stands `layers` where the layers of a block are stacked.
    """
