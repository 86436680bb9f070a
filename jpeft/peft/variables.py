"""Variable types of the leaves that methods add to a model, trainable and not."""

from flax import nnx


class Adapter(nnx.Variable):
    """A trainable leaf. `nnx.split(model, Adapter, ...)` separates the trainable tree from the frozen base."""


class Frozen(nnx.Param):
    """A leaf that a method adds and does not train; it belongs to the frozen tree, and is saved with the adapter."""


class AdapterRows(nnx.Variable):
    """A leaf of many adapters: `[slots, ...]` in a pool of adapters, `[batch, ...]` gathered for the rows of a batch.

    Where the layers of a block are stacked, an axis of layers comes first.
    """
