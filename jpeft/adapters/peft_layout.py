"""Hugging Face PEFT's layout of an adapter: what a method attached in PEFT's words, and such an adapter as a method.

What PEFT calls a method's settings and tensors is the method's to say; here is what they share.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jpeft.adapters.peft_tensors import own_tensors
from jpeft.errors import UserError
from jpeft.leaves import num_weights
from jpeft.model.family import Family, family_of
from jpeft.peft.interchange import KNOWN, REFUSED, PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS
from jpeft.peft.sites import Site, sites


def peft_methods() -> list[type[Any]]:
    """The methods of `METHODS` that Hugging Face PEFT has, too, in the table's order."""
    return [method for method in METHODS.values() if issubclass(method, PeftLayout)]


def peft_lacks(method: Method, chosen: Sequence[Site] = (), model: nnx.Module | None = None) -> str | None:
    """Tells what Hugging Face PEFT's format cannot hold of a method at these sites; None if it holds all of it.

    Args:
      model: the base, where it may be of no family that PEFT knows.
    """
    if model is not None:
        family = family_of(model)
        if family is None:
            return "modules of this model"
        config: Any = getattr(model, "config", None)
        if any(site.kind == "linear" and family.fused_rows(config, site.path) is not None for site in chosen):
            return "changes of queries, keys and values apart, which this base's files have in one map"
    lacks = [method.peft_lacks, *(method.peft_lacks_at(site) for site in chosen)]
    if model is not None:
        lacks.append(method.peft_lacks_of(chosen, peft_names(model)))
    return next((what for what in lacks if what is not None), None)


def peft_names(model: Any) -> PeftNames:
    """The names that Hugging Face PEFT has for a base's modules; the base may have shapes in place of weights.

    Raises:
      UserError: it is of no family of `transformers`, so PEFT knows nothing of it.
    """
    family = _family_of(model)
    return PeftNames(
        sites(model),
        functools.partial(family.module_name, model.config),
        functools.partial(family.fused_rows, model.config),
        task_type=family.task_type,
        tied_head=model.config.tie_word_embeddings,
        num_layers=model.config.num_layers,
        num_heads=model.config.num_heads,
        num_kv_heads=getattr(model.config, "num_kv_heads", model.config.num_heads),
        num_weights=num_weights(model),
        window=model.config.window if getattr(model.config, "windowed", ()) else None,
    )


def _family_of(model: nnx.Module) -> Family:
    family = family_of(model)
    if family is None:
        raise UserError(f"{type(model).__name__} is of no family that Hugging Face PEFT knows of.")
    return family


def peft_config(model: nnx.Module, method: Method, chosen: Sequence[Site]) -> dict[str, Any]:
    """`adapter_config.json` of a method of which PEFT lacks nothing, without the name of the base."""
    assert isinstance(method, PeftLayout), f"{method.name} has no layout of PEFT's"
    names = peft_names(model)
    config = {"task_type": names.task_type, "inference_mode": True, "peft_type": method.peft_type}
    return config | method.peft_config(chosen, names)


def peft_tensors(model: Any, method: type[Method], named: Mapping[str, np.ndarray]) -> Tensors:
    """Leaves by our names as PEFT names and shapes them in `adapter_model.safetensors`."""
    assert issubclass(method, PeftLayout), f"{method.name} has no layout of PEFT's"
    return method.peft_tensors(named, functools.partial(_family_of(model).module_name, model.config))


def read_peft(
    config: Mapping[str, Any], tensors: Tensors, model: nnx.Module, *, source: str
) -> tuple[Method, Tensors, tuple[str, ...]]:
    """The method, its leaves by our names (float32, our orientation), and notes on what was written in another way.

    Args:
      tensors: what `adapter_model.safetensors` holds, by name.
      model: the base, or shapes in its place.
      source: what messages call the adapter.

    Raises:
      UserError: PEFT's type or a setting of it has no equal here, or the adapter does not fit the base.
      RunFailed: config or tensors contradict each other.
    """
    names = peft_names(model)
    tensors, told = own_tensors(tensors, model, names, source=source)
    file = PeftFile(config, tensors, source, names)
    kind, known = config.get("peft_type"), peft_methods()
    fitting = [method for method in known if method.peft_type == kind and method.peft_reads(config)]
    if not fitting:
        types = dict.fromkeys(method.peft_type for method in known)
        raise UserError(f"{source} is of PEFT type {repr(kind)[:60]}; jpeft reads {', '.join(types)}.")
    for key in REFUSED:
        if config.get(key):
            raise UserError(f"{source} uses PEFT's {key}, which jpeft does not have; have PEFT merge it.")
    method, leaves, notes = fitting[0].from_peft(file)
    unknown = sorted(key for key, value in config.items() if value and key not in KNOWN)
    if unknown:
        notes.append(f"settings that jpeft does not know were passed over: {', '.join(unknown)}")
    return method, leaves, (*told, *notes)
