"""The sharding rules: a table from the name of a leaf to the mesh axes that shard its dimensions.

The axes of the mesh:
  data: shards batches (data parallelism).
  fsdp: shards batches and, for storage, weights; each device gathers a layer's weights where it uses them.
  model: shards heads, inner widths and the vocabulary (tensor parallelism, Shoeybi et al. 2019): the first matrix
    product of a sublayer by columns, the second by rows, followed by a sum over devices.

Which maps of a model are a sublayer's first and which its second follows from their roles (`site_roles` of the family's
network). The leaves of a PEFT method follow the weight of their site: dimensions that `model` shards there are sharded
alike, all others are replicated, as are leaves without an entry in `Method.leaf_axes`. Optimizer state follows the leaf
that it belongs to.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jpeft.leaves import is_stacked
from jpeft.model.family import families, stack_names
from jpeft.peft.methods import leaf_axes

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")
# Leaves below a node of this name have a leading axis: the parts into which `data` splits a batch.
BY_PART = "by_part"


def _modules(*roles: str) -> str:
    """A pattern for the last path parts of all families' modules that have one of these roles."""
    tables = [getattr(family.network, "site_roles", {}) for family in families()]
    return f"({'|'.join(sorted({name for table in tables for name, role in table.items() if role in roles}))})"


# Linear maps whose output dimension `model` shards, and those whose input dimension it shards.
_COLUMNS = rf"(.*attention/{_modules('q', 'k', 'v')}|feed_forward/{_modules('gate', 'up')}|lm_head)"
_ROWS = rf"(.*attention/{_modules('o')}|feed_forward/{_modules('down')})"

# The first pattern that matches the whole name (as of `leaf_name`) decides.
WEIGHTS: tuple[tuple[str, P], ...] = (
    (rf"{_modules('vocabulary')}/embedding", P("model", "fsdp")),
    # The codes of a quantized map, and the maxima of its blocks of inputs, are sharded like its kernel.
    (_COLUMNS + r"/(kernel|codes|absmax)", P("fsdp", "model")),
    (_ROWS + r"/(kernel|codes|absmax)", P("model", "fsdp")),
    (_COLUMNS + r"/channel_absmax", P("model")),
    (_ROWS + r"/channel_absmax", P("fsdp")),
    (r".*/(outer_absmax|absmax_mean)", P()),
    (_COLUMNS + r"/bias", P("model")),
    (_ROWS + r"/bias", P()),
    (r"positions/embedding", P(None, "fsdp")),
    (r"relative_attention_bias/embedding", P(None, "model")),
    (r".*norm/(scale|bias)", P()),
)
ACTIVATIONS: dict[str, P] = {
    "batch": P(BATCH_AXES),
    "hidden": P(BATCH_AXES, None, None),  # [batch, length, d_model]
    "heads": P(BATCH_AXES, "model", None, None),  # [batch, num_heads, length, d_kv]
    "cache": P(None, BATCH_AXES, "model", None, None),  # [layers, batch, num_heads, length, d_kv]
    "logits": P(BATCH_AXES, None, "model"),  # [batch, length, vocab]
    # A quantized map's codes or maxima in a product, gathered from the devices over which `fsdp` shards their storage.
    "columns": P(None, "model"),  # [in, out]
    "rows": P("model", None),
}


def leaf_name(path: Sequence[Any]) -> str:
    """The name of a leaf in the rules, such as `self_attention/q/lora_a`, from its `jax.tree_util` path.

    The name leaves out the stack, the segment, and whatever contains the model's tree, such as an optimizer's state.
    """
    parts = [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path]
    if "segments" in parts:
        parts = parts[parts.index("segments") + 2 :]
    elif any(part in _ROOTS for part in parts):
        parts = parts[next(i for i, part in enumerate(parts) if part in _ROOTS) :]
    return "/".join(part for part in parts if part not in _OMITTED)


_ROOTS = frozenset(name for family in families() for name in family.modules)
_OMITTED = frozenset(("adapter", "value", *stack_names()))


def spec_of(path: Sequence[Any], shape: Sequence[int]) -> P:
    """The mesh axes that shard each dimension of a leaf; scalars, such as an optimizer's step count, are replicated.

    Args:
      path: the leaf's path in its tree, as `jax.tree_util` has it.
      shape: the leaf's global shape, including the `layers` axis if it is stacked.

    Raises:
      LookupError: no rule matches a weight of the base, none of which is to be replicated by oversight.
      UserError: two methods declare different axes for one leaf name.
    """
    if any(getattr(part, "name", None) == BY_PART for part in path):
        whole = spec_of([part for part in path if getattr(part, "name", None) != BY_PART], shape[1:])
        return P("data", *whole)
    if not shape:
        return P()
    name = leaf_name(path)
    is_added = _is_within_an_adapter(path)  # such a leaf may have the name of a weight, and another shape
    spec = None if is_added else _spec_of_weight(name)  # compared with None, since an empty spec is falsy
    spec = _spec_of_leaf(name) if spec is None else spec
    spec = P() if spec is None and is_added else spec
    if spec is not None:
        return P(None, *spec) if is_stacked(tuple(path)) else spec
    raise LookupError(f"no sharding rule for {jax.tree_util.keystr(tuple(path))} ({name}) of shape {tuple(shape)}.")


def _is_within_an_adapter(path: Sequence[Any]) -> bool:
    """Whether a leaf belongs to a module that a method added, and does not take the place of one of the base's weights.

    A model's tree has keys; the field `TrainState.adapter`, which contains all that trains, is an attribute.
    """
    return any(getattr(part, "key", None) == "adapter" for part in path)


def _spec_of_weight(name: str) -> P | None:
    return next((spec for pattern, spec in WEIGHTS if re.fullmatch(pattern, name)), None)


def _spec_of_leaf(name: str) -> P | None:
    """The spec of a PEFT method's leaf: sharded along `model` where the weight of its site is."""
    site, _, leaf = name.rpartition("/")
    axes = leaf_axes().get(leaf)
    if axes is None:
        return None
    weight = _spec_of_weight(f"{site}/kernel")
    weight = _spec_of_weight(f"{site}/k/kernel") if weight is None else weight  # of an attention, that of its keys
    weight = tuple(weight or (None, None))
    cut = {"in": weight[0], "out": weight[-1], None: None}
    spec = [axis if (axis := cut[dimension]) == "model" else None for dimension in axes]
    return P(*spec) if any(spec) else P()
