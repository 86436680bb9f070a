"""Tensors of an adapter that Hugging Face PEFT wrote, by the names that its methods know; others are told."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import stacked_leaves
from jpeft.peft.interchange import LEAVES, PREFIX, PeftNames, Tensors
from jpeft.words import one_line

_COPY = ".base_layer."
_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
# As a state dict has them: `q.lora_A.default.weight`, of the adapter `default`.
_STEMS = "|".join(sorted({leaf.partition(".")[0] for leaf in LEAVES}))
_NAMED = re.compile(rf"(?P<stem>.+\.(?:{_STEMS}))\.(?P<adapter>[^.]+)(?P<rest>\.weight|\.bias|)")
_ROUNDING = 2.0**-7  # a copy may be in bfloat16 where the base is not, or the other way round


def own_tensors(tensors: Tensors, model: nnx.Module, names: PeftNames, *, source: str) -> tuple[Tensors, list[str]]:
    """The tensors of one adapter without its name in theirs and without copies of the base's weights, and notes.

    Args:
      model: the base, or shapes in its place: a copy is then known by its shape alone.

    Raises:
      UserError: they are of several adapters, a base's weight is not this base's, or an embedding is adapted.
    """
    tensors = _without_adapters_name(tensors, source)
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
            notes.append(_copy_of_the_base(module, leaf, value, model, names, source))
        else:
            own[name] = value
    return own, notes


def _without_adapters_name(tensors: Tensors, source: str) -> Tensors:
    found, adapters = {}, set()
    for name, value in tensors.items():
        match = None if name.endswith(tuple(f".{leaf}" for leaf in LEAVES)) else _NAMED.fullmatch(name)
        plain = name
        if match is not None:
            # DoRA's vector is a module of its own in a state dict, and a tensor in a file.
            rest = "" if match["stem"].endswith(".lora_magnitude_vector") else match["rest"]
            plain = f"{match['stem']}{rest}"
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


def _copy_of_the_base(
    module: str, leaf: str, value: np.ndarray, model: nnx.Module, names: PeftNames, source: str
) -> str:
    """A note on a tensor that is the base's own weight. Raises `UserError`: it is another base's."""
    called = one_line(f"{module}{_COPY}{leaf}")
    sites = [site for site in names.sites if site.kind == "linear" and names.module(site.path) == module]
    if len(sites) != 1 or leaf not in ("weight", "bias"):  # none, or several of ours that are one there
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
    """The base's weight of a name, if it is here, and wide."""
    for leaf in stacked_leaves(model, nnx.Param):
        value: Any = leaf.variable.get_value()
        if name in leaf.names and isinstance(value, jax.Array | np.ndarray):
            if isinstance(value, jax.Array) and not value.is_fully_addressable:
                return
            yield np.asarray(value[leaf.names.index(name)] if leaf.stacked else value, np.float32)
