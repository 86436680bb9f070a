"""Cleaning the tensors of a Hugging Face PEFT adapter: adapter names in tensor names, copies of base weights."""

import re
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import stacked_leaves
from jpeft.peft.interchange import PREFIX, PeftNames, Tensors
from jpeft.words import one_line

_COPY = ".base_layer."
_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
_ROUNDING = 2.0**-7  # relative tolerance of a copy: either it or the base may be in bfloat16


def own_tensors(
    tensors: Tensors, model: nnx.Module, names: PeftNames, leaves: Collection[str], *, source: str
) -> tuple[Tensors, list[str]]:
    """Removes an adapter's name from the names of its tensors, and copies of the base's weights from among them.

    Args:
      tensors: the tensors of the file, by name.
      model: the base. If it holds shapes instead of arrays, a copy is recognised by its shape alone.
      names: module names of the base.
      leaves: last parts of the names of the tensors that the method has (`PeftLayout.peft_leaves`).
      source: how messages name the adapter.

    Returns:
      The remaining tensors, and notes on the copies that were dropped.

    Raises:
      UserError: the file holds several adapters, a copy differs from this base's weight, or an embedding is adapted.
    """
    tensors = _without_adapter_name(tensors, leaves, source)
    for name in tensors:
        module = name.removeprefix(PREFIX).partition(_COPY)[0]
        embedding = next((module.removesuffix(leaf) for leaf in _EMBEDDING if module.endswith(leaf)), None)
        if embedding is not None:
            raise UserError(
                f"{source} adapts {one_line(embedding)}, an embedding, which jpeft does not read; have PEFT merge it, "
                "or train without."
            )
        if _COPY in name and module == "lm_head" and names.tied_head:
            raise UserError(
                f"{source} adapts lm_head, and the head of this base is its embedding; have PEFT merge it, or train "
                "without."
            )
    own, notes = {}, []
    for name, value in tensors.items():
        module, is_copy, leaf = name.removeprefix(PREFIX).partition(_COPY)
        if is_copy and name.startswith(PREFIX):
            notes.append(_note_on_copy(module, leaf, value, model, names, source))
        else:
            own[name] = value
    return own, notes


def _without_adapter_name(tensors: Tensors, leaves: Collection[str], source: str) -> Tensors:
    """Converts names of a state dict, as `q.lora_A.default.weight` of the adapter `default`, to those of a file."""
    ends = tuple(f".{leaf}" for leaf in leaves)
    stems = "|".join(sorted({re.escape(leaf.partition(".")[0]) for leaf in leaves}))
    in_state_dict = re.compile(rf"(?P<stem>.+\.(?:{stems}))\.(?P<adapter>[^.]+)(?P<rest>\.weight|\.bias|)")
    found, adapters = {}, set()
    for name, value in tensors.items():
        match = None if not leaves or name.endswith(ends) else in_state_dict.fullmatch(name)
        plain = name
        if match is not None:
            # A leaf without `.weight` in a file may be a module with a `weight` in a state dict: DoRA's magnitudes.
            whole = f"{match['stem']}{match['rest']}"
            plain = whole if whole.endswith(ends) else match["stem"]
            adapters.add(match["adapter"])
        if len(adapters) > 1:
            listed = " and ".join(repr(one_line(adapter)) for adapter in sorted(adapters))
            raise UserError(f"{source} holds several adapters, {listed}; save one alone.")
        if plain in found:
            raise UserError(
                f"{source} holds {one_line(plain)} twice, with its adapter's name and without; save it again."
            )
        found[plain] = value
    return found


def _note_on_copy(module: str, leaf: str, value: np.ndarray, model: nnx.Module, names: PeftNames, source: str) -> str:
    """A note that a tensor is a copy of the base's own weight. Raises `UserError` if it is not this base's."""
    called = one_line(f"{module}{_COPY}{leaf}")
    sites = [site for site in names.sites if site.kind == "linear" and names.module(site.path) == module]
    if len(sites) != 1 or leaf not in ("weight", "bias"):  # not in this base, or fused from several of our maps
        raise UserError(f"{source} holds {called}, which jpeft does not know.")
    (site,) = sites
    expected = (site.d_out, site.d_in) if leaf == "weight" else (site.d_out,)
    if value.shape != expected:
        raise UserError(
            f"{source} holds {called}, a base's own weight, of shape {value.shape}, and this base has one of "
            f"{expected}; give the base that it was trained on."
        )
    weight = next(_weights(model, f"{site.path}/{'kernel' if leaf == 'weight' else 'bias'}"), None)
    if weight is None:
        return f"{called} has the shape of the base's own weight, of which PEFT writes a copy"
    held = weight.T if leaf == "weight" else weight
    if not np.allclose(value, held, rtol=_ROUNDING, atol=_ROUNDING**2 * float(np.abs(held).max())):
        raise UserError(
            f"{source} holds {called}, a base's own weight, and this base has another; give the base that it was "
            "trained on."
        )
    return f"{called} is a copy of the base's own weight"


def _weights(model: nnx.Module, name: str) -> Iterator[np.ndarray]:
    """The base's weight of a name in float32; nothing if it is a shape, quantized, or partly on other processes."""
    for leaf in stacked_leaves(model, nnx.Param):
        value: Any = leaf.variable.get_value()
        if name in leaf.names and isinstance(value, jax.Array | np.ndarray):
            if isinstance(value, jax.Array) and not value.is_fully_addressable:
                return
            yield np.asarray(value[leaf.names.index(name)] if leaf.stacked else value, np.float32)
