"""The sharding rules: one table from the name of a leaf to the mesh axes that cut its dimensions.

Axes: `data` cuts batches alone; `fsdp` cuts batches and, for storage, weights (each device gathers what it needs for a
layer); `model` cuts heads, inner widths and the vocabulary, whose parts are computed apart (Shoeybi et al. 2019: the
first matrix product of a sublayer by its columns, the second by its rows, one sum over devices after it).

What a method adds at a site follows the site's weight: what acts on a dimension that `model` cuts is cut alike, the
rest is whole on every device (`Method.leaf_axes`). Optimizer state follows the leaf that it belongs to.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jpeft.leaves import is_stacked
from jpeft.peft.methods import leaf_axes

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")
BY_PART = (
    "by_part"  # leaves below a node of this name have an axis in front, of the parts into which `data` cuts a batch
)

_COLUMNS = r"(.*attention/(q|k|v)|feed_forward/(wi|wi_0|wi_1|gate|up)|lm_head)"  # maps into a cut dimension
_ROWS = r"(.*attention/o|feed_forward/(wo|down))"  # maps out of one

# The first pattern that matches a whole name decides. Names are those of `leaf_name`.
WEIGHTS: tuple[tuple[str, P], ...] = (
    (r"shared/embedding", P("model", "fsdp")),
    # Of a map in few bits its codes and, a block of inputs each, their magnitudes are cut as its kernel would be.
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
    # One map's codes or magnitudes, as they are multiplied with: gathered where `fsdp` cuts them for storage.
    "columns": P(None, "model"),  # [in, out]
    "rows": P("model", None),
}


def leaf_name(path: Sequence[Any]) -> str:
    """Name of a leaf at a `jax.tree_util` path, wherever its tree hangs: `self_attention/q/lora_a`.

    Without what says nothing of its place in the network: stack, segment and what holds the tree.
    """
    parts = [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path]
    if "segments" in parts:
        parts = parts[parts.index("segments") + 2 :]
    elif any(root in parts for root in _ROOTS):
        parts = parts[next(i for i, part in enumerate(parts) if part in _ROOTS) :]
    silent = ("adapter", "value", "encoder", "decoder")
    return "/".join(part for part in parts if part not in silent)


_ROOTS = (
    "shared",
    "encoder_input",
    "encoder",
    "decoder_input",
    "positions",
    "embedding_norm",
    "decoder",
    "lm_head",
)


def spec_of(path: Sequence[Any], shape: Sequence[int]) -> P:
    """The axes that cut each dimension of a leaf; scalars, such as an optimizer's step count, are whole everywhere.

    Args:
      path: of the leaf in its tree, as `jax.tree_util` has it.
      shape: of the whole leaf, with its axis of layers where it is stacked.

    Raises:
      LookupError: no rule matches. Every leaf has to have one: what nobody thought of must not be whole in silence.
    """
    if any(getattr(part, "name", None) == BY_PART for part in path):
        whole = spec_of([part for part in path if getattr(part, "name", None) != BY_PART], shape[1:])
        return P("data", *whole)
    if not shape:
        return P()
    name = leaf_name(path)
    spec = _spec_of_weight(name)  # a spec that cuts nothing is false
    spec = _spec_of_leaf(name) if spec is None else spec
    if spec is not None:
        return P(None, *spec) if is_stacked(tuple(path)) else spec
    raise LookupError(f"no sharding rule for {jax.tree_util.keystr(tuple(path))} ({name}) of shape {tuple(shape)}.")


def _spec_of_weight(name: str) -> P | None:
    return next((spec for pattern, spec in WEIGHTS if re.fullmatch(pattern, name)), None)


def _spec_of_leaf(name: str) -> P | None:
    """How a leaf of a method is cut over devices: along the axis `model` where its site's weight is."""
    site, _, leaf = name.rpartition("/")
    axes = leaf_axes().get(leaf)
    if axes is None:
        return None
    weight = _spec_of_weight(f"{site}/kernel")
    weight = _spec_of_weight(f"{site}/k/kernel") if weight is None else weight  # of an attention, what makes its keys
    weight = tuple(weight or (None, None))
    cut = {"in": weight[0], "out": weight[-1], None: None}
    spec = [axis if (axis := cut[dimension]) == "model" else None for dimension in axes]
    return P(*spec) if any(spec) else P()
