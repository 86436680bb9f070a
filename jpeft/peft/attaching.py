"""Attaching a method to a model, and splitting a model into its trainable and its frozen tree."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from jpeft.arguments import require_module
from jpeft.errors import UserError
from jpeft.leaves import Model, copied
from jpeft.peft.method import Method
from jpeft.peft.sites import Site, SiteModule, layer_stacks, layers_at, leaf_at, site_modules
from jpeft.peft.variables import Adapter
from jpeft.peft.wrapping import is_adapted


def attach(model: Model, method: Method, chosen: Sequence[Site], key: Key[Array, ""]) -> Model:
    """Returns a copy of a model with `method` attached at the chosen sites; the copy shares the arrays of the base.

    Stacks of layers are cut into segments whose layers have the same sites adapted, so that no gradient is computed for
    the frozen layers below the first adapted one. Only a segment that is cut is copied.

    Args:
      model: the model, which stays as it is.
      method: the method to attach.
      chosen: the sites, as `select` returns them.
      key: PRNG key of the initial values.

    Raises:
      UserError: a site has an adapter already or is not in the model, its weights are complex, or a weight that several
        modules share would train in some of them only.
    """
    model, method = copied(model), method.settled(chosen)
    chosen_at = {site.path for site in chosen}
    for path, stack in layer_stacks(model):
        adapted: dict[int, set[str]] = {}
        for site in chosen:
            if site.stack == (path or "layers") and site.layer is not None:
                inner = site.path.removeprefix(f"{layers_at(path)}/{site.layer}/")
                adapted.setdefault(site.layer, set()).add(inner)
        layers = range(1, sum(stack.layer_counts()))
        stack.cut([i for i in layers if adapted.get(i, set()) != adapted.get(i - 1, set())])
    places = [place for place in site_modules(model) if place.sites[0].path in chosen_at]
    missing = chosen_at - {site.path for place in places for site in place.sites}
    if missing:
        raise UserError(f"the model has no site {min(missing)}; choose among jpeft.sites(model).")
    made: dict[int, Any] = {}
    for place in places:
        _require_real(place)
        method.attach_to(place, key, model, made)
    if method.trains_base:
        _require_tied_weights_chosen(model, made)
    return model


def _require_real(place: SiteModule) -> None:
    """Raises `UserError` if a module has complex weights, to which the methods would add real updates only."""
    for name, value in vars(place.module).items():
        if isinstance(value, nnx.Param) and jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise UserError(
                f"{leaf_at(place.sites[0].path, name)} is {value.dtype}; methods attach to real weights only."
            )


def _require_tied_weights_chosen(model: nnx.Module, made: Mapping[int, Any]) -> None:
    """Raises `UserError` if a module still holds a weight that trains in another module.

    Args:
      made: the trainable weights, by the `id` of the original variables that they replace.
    """
    for path, node in nnx.iter_graph(model):
        for name, value in vars(node).items() if isinstance(node, nnx.Pytree) else ():
            if id(value) in made:
                where = "/".join(map(str, (*path, name)))
                raise UserError(
                    f"{where} is a weight that modules share, and not all of them are chosen; train all or none."
                )


def init_from_residual(tuned: nnx.Module, method: Method, residual: Callable[[str], np.ndarray | None]) -> int:
    """Initialises freshly attached adapters from the quantization residual of their maps, in place.

    Adapters of maps that are not quantized keep their values.

    Args:
      tuned: the model as `attach` returned it.
      method: the method that is attached, with an `init_from_residual` of its own.
      residual: returns wide minus quantized weights `[d_in, d_out]` of the map at a path; None if it is not quantized.

    Returns:
      The number of initialised maps, counting each layer.

    Raises:
      UserError: no adapted map is quantized, or the method's `init_from_residual` refuses one.
    """
    init, num_maps = method.init_from_residual, 0
    assert init is not None, f"{method.name} is not initialised from the quantization residual"
    for place in site_modules(tuned):
        if not is_adapted(place.module):
            continue
        of_layers = [residual(site.path) for site in place.sites]
        for site, part in zip(place.sites, of_layers, strict=True):
            if part is not None and part.shape != (site.d_in, site.d_out):
                raise UserError(
                    f"{site.told} is a map of {site.d_in} to {site.d_out} and in the wide model of {part.shape[0]} to "
                    f"{part.shape[1]}; name the model that this one was quantized from."
                )
        residuals = [part for part in of_layers if part is not None]
        if residuals:  # all layers of a stack or none
            module: Any = place.module
            init(module.adapter, np.stack(residuals) if place.in_stack else residuals[0], place.sites[0].told)
            num_maps += len(residuals)
    if not num_maps:
        raise UserError(
            f"{method.describe()} starts from the quantization residual, and none of the maps that it is attached to "
            "is quantized; attach it to others, or choose another initialisation."
        )
    return num_maps


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into `(graphdef, adapter, base)`: structure, trainable and frozen tree; `nnx.merge` joins them.

    Raises:
      UserError: the argument is no `nnx.Module`.
    """
    require_module("model", model)
    graphdef, adapter, base = nnx.split(model, Adapter, ...)
    return graphdef, adapter, base


def count(tree: nnx.State) -> int:
    """The total number of elements in the arrays, or `jax.ShapeDtypeStruct`s, of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
