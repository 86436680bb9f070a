"""Attaching a method to a model, and the two trees of what trains and what does not."""

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
from jpeft.peft.sites import Site, SiteModule, layer_stacks, site_modules
from jpeft.peft.variables import Adapter
from jpeft.peft.wrapping import is_adapted


def attach(model: Model, method: Method, chosen: Sequence[Site], key: Key[Array, ""]) -> Model:
    """A model with `method` attached at the chosen sites; `model` stays as it is, and the two share the base's arrays.

    Stacks of layers are cut so that within a segment every layer has the same sites adapted: a frozen prefix of layers
    then costs no gradient work. A segment is copied only where it is cut.

    Raises:
      UserError: something is attached at one of the sites already, the model has no such site, its weights are complex,
        or some of the modules that share a weight would train it and others not.
    """
    model, method = copied(model), method.settled(chosen)
    chosen_at = {site.path for site in chosen}
    for path, stack in layer_stacks(model):
        adapted: dict[int, set[str]] = {}
        for site in chosen:
            if site.stack == path and site.layer is not None:
                inner = site.path.removeprefix(f"{path}/layers/{site.layer}/")
                adapted.setdefault(site.layer, set()).add(inner)
        layers = range(1, sum(stack.layer_counts()))
        stack.cut([i for i in layers if adapted.get(i, set()) != adapted.get(i - 1, set())])
    places = [place for place in site_modules(model) if place.sites[0].path in chosen_at]
    lost = chosen_at - {site.path for place in places for site in place.sites}
    if lost:
        raise UserError(f"the model has no site {min(lost)}; is it of another model?")
    made: dict[int, Any] = {}
    for place in places:
        _require_real(place)
        method.attach_to(place, key, model, made)
    if method.trains_base:
        _require_whole_ties(model, made)
    return model


def _require_real(place: SiteModule) -> None:
    """Raises `UserError`: a module has complex weights, of which what methods add would be the real part alone."""
    for name, value in vars(place.module).items():
        if isinstance(value, nnx.Param) and jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise UserError(f"{place.sites[0].path}/{name} is {value.dtype}; methods attach to real weights only.")


def _require_whole_ties(model: nnx.Module, made: Mapping[int, Any]) -> None:
    """Raises `UserError`: of the modules that share a weight some train it, and some would keep it as it is.

    Args:
      made: the weights that train, by the `id` of those that they were made from.
    """
    for path, node in nnx.iter_graph(model):
        for name, value in vars(node).items() if isinstance(node, nnx.Pytree) else ():
            if id(value) in made:
                where = "/".join(map(str, (*path, name)))
                raise UserError(
                    f"{where} is a weight that modules share, and not all of them are chosen; train all or none."
                )


def begin_with_lost(tuned: nnx.Module, method: Method, lost: Callable[[str], np.ndarray | None]) -> int:
    """Begins a method that has just been attached with what rounding took away of a base in few bits, map by map.

    What is attached to maps that are wide stays as it began. Returns how many maps there were.

    Args:
      tuned: what `attach` gave; it is changed.
      lost: of the map at a path what rounding took away, `[d_in, d_out]`; None of one that is wide.

    Raises:
      UserError: no map that it is attached to is in few bits; or as the method's `begin_with_lost`.
    """
    begin, begun = method.begin_with_lost, 0
    assert begin is not None, f"{method.name} begins as on a wide base"
    for place in site_modules(tuned):
        if not is_adapted(place.module):
            continue
        parts = [lost(site.path) for site in place.sites]
        for site, part in zip(place.sites, parts, strict=True):
            if part is not None and part.shape != (site.d_in, site.d_out):
                raise UserError(
                    f"{site.path} is a map of {site.d_in} to {site.d_out} and in the wide model of {part.shape[0]} to "
                    f"{part.shape[1]}; name the model that this one was quantized from."
                )
        there = [part for part in parts if part is not None]
        if there:  # the layers of a stack are kept alike
            module: Any = place.module
            begin(module.adapter, np.stack(there) if place.in_stack else there[0], place.sites[0].path)
            begun += len(there)
    if not begun:
        raise UserError(
            f"{method.describe()} begins with what rounding took away, and no map that it is attached to is in few "
            "bits; attach to others, or begin otherwise."
        )
    return begun


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """`(graphdef, adapter, base)`: the structure, the trainable tree and the frozen one; `nnx.merge` joins them.

    Raises:
      UserError: the argument is no module.
    """
    require_module("model", model)
    graphdef, adapter, base = nnx.split(model, Adapter, ...)
    return graphdef, adapter, base


def count(tree: nnx.State) -> int:
    """How many numbers the arrays of a tree hold together; shapes in their place count as well."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
