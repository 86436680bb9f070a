"""Conversion of adapters to and from Hugging Face PEFT's layout.

This module has what all methods share. Settings and tensors of a single method are converted by the method itself
(`jpeft.peft.interchange.PeftLayout`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jpeft.adapters.peft_tensors import own_tensors
from jpeft.errors import UserError
from jpeft.leaves import num_weights
from jpeft.model.family import Family, family_of
from jpeft.peft.interchange import PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS
from jpeft.peft.sites import Site, sites
from jpeft.words import shortened


def peft_methods() -> list[type[Any]]:
    """The methods of `METHODS` that Hugging Face PEFT has as well, in the order of the table."""
    return [method for method in METHODS.values() if issubclass(method, PeftLayout)]


def peft_lacks(method: Method, chosen: Sequence[Site] = (), model: nnx.Module | None = None) -> str | None:
    """What Hugging Face PEFT's format cannot hold of a method at these sites, as a phrase; None if it holds all of it.

    Args:
      method: the method.
      chosen: the sites where it is attached.
      model: the base. Without it, only the method's options are considered.
    """
    if model is not None:
        family = family_of(model)
        if family is None:
            return "modules of this model"
        config: Any = getattr(model, "config", None)
        if any(site.kind == "linear" and family.fused_rows(config, site.path) is not None for site in chosen):
            return "separate updates of queries, keys and values, which this base's files fuse into one map"
    if method.peft_lacks is not None or model is None:
        return method.peft_lacks
    if (lacks := method.peft_lacks_at(chosen, peft_names(model))) is not None:
        return lacks
    # A subclass of a method with a layout of PEFT's would be read as that method.
    return None if _reader_of(peft_config(model, method, chosen)) is type(method) else method.name


def peft_names(model: Any) -> PeftNames:
    """The names that Hugging Face PEFT has for the modules of a base, which may hold shapes instead of arrays.

    Raises:
      UserError: the base belongs to no model family of `transformers`.
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
        raise UserError(
            f"{type(model).__name__} is of no model family of transformers, which Hugging Face PEFT adapts; expected "
            "one of jpeft's models, such as jpeft.load gives."
        )
    return family


def peft_config(model: nnx.Module, method: Method, chosen: Sequence[Site]) -> dict[str, Any]:
    """The content of `adapter_config.json`, without the name of the base, for a method that PEFT's format can hold."""
    assert isinstance(method, PeftLayout), f"{method.name} has no layout of PEFT's"
    names = peft_names(model)
    config = {"task_type": names.task_type, "inference_mode": True, "peft_type": method.peft_type}
    return config | method.peft_config(chosen, names)


def peft_tensors(model: Any, method: type[Method], named: Mapping[str, np.ndarray]) -> Tensors:
    """Converts leaves by our names to the tensors of `adapter_model.safetensors`."""
    assert issubclass(method, PeftLayout), f"{method.name} has no layout of PEFT's"
    return method.peft_tensors(named, functools.partial(_family_of(model).module_name, model.config))


def peft_unstored(method: Method, *, all_of_them: bool = False) -> dict[str, Any]:
    """The options of a method for which PEFT's config has no setting and that differ from their defaults, or all."""
    assert isinstance(method, PeftLayout), f"{method.name} has no layout of PEFT's"
    fields = [field for field in dataclasses.fields(method) if field.name in method.peft_unstored]
    values = {field: getattr(method, field.name) for field in fields}
    return {field.name: value for field, value in values.items() if all_of_them or value != field.default}


def read_peft(
    config: Mapping[str, Any], tensors: Tensors, model: nnx.Module, *, source: str
) -> tuple[Method, Tensors, tuple[str, ...]]:
    """Converts an adapter that PEFT wrote.

    Args:
      config: the content of `adapter_config.json`.
      tensors: the tensors of `adapter_model.safetensors`, by name.
      model: the base, which may hold shapes instead of arrays.
      source: how messages name the adapter.

    Returns:
      The method, its leaves by our names (float32, in our orientation), and notes on what was rewritten.

    Raises:
      UserError: jpeft has no equivalent of the PEFT type or of a setting, or the adapter does not fit the base.
      RunFailed: config and tensors contradict each other.
    """
    layout, names = _layout_for(config, source), peft_names(model)
    _refuse_unsupported(config, layout, source)
    tensors, tensor_notes = own_tensors(tensors, model, names, layout.peft_leaves.values(), source=source)
    file = PeftFile(config, tensors, source, names, layout)
    method, leaves, notes = layout.from_peft(file)
    unknown = layout.peft_unknown(config)
    if unknown:
        notes.append(f"settings that jpeft does not know were passed over: {', '.join(unknown)}")
    return method, leaves, (*tensor_notes, *notes)


def _layout_for(config: Mapping[str, Any], source: str) -> type[PeftLayout]:
    """The method that reads a config. Raises `UserError` if none does."""
    layout = _reader_of(config)
    if layout is None:
        types = dict.fromkeys(method.peft_type for method in peft_methods())
        raise UserError(
            f"{source} is of PEFT type {repr(config.get('peft_type'))[:60]}; jpeft reads {', '.join(types)}."
        )
    return layout


def _refuse_unsupported(config: Mapping[str, Any], layout: type[PeftLayout], source: str) -> None:
    """Raises `UserError` if an adapter has or trains what jpeft does not, before its tensors are looked at."""
    unsupported = layout.peft_unsupported(config)
    if unsupported is not None:
        raise UserError(f"{source} uses PEFT's {unsupported}, which jpeft does not have; have PEFT merge it.")
    bias = config.get("bias")
    if bias not in (None, "none"):
        raise UserError(
            f"{source} also trains biases (bias={shortened(bias, 40)}), which jpeft's {layout.peft_type} does not; "
            "have PEFT merge it, or train without."
        )


def _reader_of(config: Mapping[str, Any]) -> type[PeftLayout] | None:
    peft_type = config.get("peft_type")
    return next((one for one in peft_methods() if one.peft_type == peft_type and one.peft_reads(config)), None)
