"""Merging adapters into the weights of their base, which gives a model without adapters that computes the same."""

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jpeft.arguments import require_module
from jpeft.errors import UserError
from jpeft.leaves import Model, copied
from jpeft.peft.merge_checks import (
    require_kernel_is_used_linearly,
    require_same_output,
    require_same_whole_output,
    sample_output,
    whole_output,
)
from jpeft.peft.sites import SiteModule, leaf_at, site_modules
from jpeft.peft.variables import Adapter
from jpeft.peft.wrapping import forget_method, is_adapted, take_off


def merge(adapted: Model, *, heads_apart: bool = False, check: Callable[[Model], Any] | None = None) -> Model:
    """Returns a model without adapters whose weights compute what base and adapters do together.

    It shares the unchanged arrays with `adapted`. Merging is computed in float32. Changed weights are float32 in
    jpeft's own modules, and so are weights that full tuning trained; in other modules they keep their dtype. Quantized
    weights become float32. An adapted module that shares a weight with other modules gets its own copy, with a warning;
    a weight that full tuning trained stays shared.

    Args:
      adapted: the model, which stays as it is.
      heads_apart: for models that are not jpeft's: confirms that no adapted embedding is also the output head. An
        adapter acts on the lookup only, and merged it would act on the logits, too.
      check: what the merged model has to compute as before, on inputs of yours: `lambda model: model(inputs)`. Modules
        are tried out alone without it. An adapter acts on the calls of its module; where another part of a model reads
        the weight itself (a tied decoder `h @ self.encoder.kernel.T`), only this notices that the merged model differs.

    Raises:
      UserError: the argument is no `nnx.Module`; an adapter cannot be merged, or (an embedding, without `heads_apart`)
        may not be mergeable; the merged model does not pass the check; or a module does not compute what its weights
        suggest, has integer weights, or is wrapped by one that normalises its weights (`nnx.WeightNorm`,
        `nnx.SpectralNorm`).
    """
    require_module("adapted", adapted)
    if not (check is None or callable(check)):
        raise UserError(f"check is {type(check).__name__}; expected a function, such as lambda model: model(x).")
    before = [] if check is None else whole_output(adapted, check)
    model = copied(adapted)
    _require_not_normalized(model)
    _untie_adapted_weights(model)
    trained: dict[int, nnx.Param] = {}
    for place in site_modules(model):
        module: Any = place.module
        if is_adapted(module):
            _merge_adapter(place, model, heads_apart=heads_apart)
        if hasattr(module, "widen"):
            module.widen(module.dequantized())
        for name, value in list(vars(module).items()):
            if isinstance(value, Adapter):  # a weight trained by full tuning
                setattr(module, name, trained.setdefault(id(value), nnx.Param(value[...])))
                forget_method(module)
    if check is not None:
        require_same_whole_output(before, whole_output(model, check), model)
    return model


def _is_ours(module: nnx.Module) -> bool:
    """Whether jpeft defines the module's class, so that what it computes with its weights is known."""
    return type(module).__module__.partition(".")[0] == __name__.partition(".")[0]


def _require_not_normalized(model: nnx.Module) -> None:
    """Raises `UserError` if an adapted module is wrapped by a module that normalises its weights."""
    for _, node in nnx.iter_graph(model):
        inner: Any = getattr(node, "layer_instance", None)
        if isinstance(node, nnx.WeightNorm | nnx.SpectralNorm) and inner is not None and is_adapted(inner):
            raise UserError(
                f"an adapter is attached to a {type(inner).__name__} within {type(node).__name__}, which would "
                "normalize the merged weights; it cannot be merged."
            )


def _untie_adapted_weights(model: nnx.Module) -> None:
    """Gives each adapted module its own copy of weights that it shares with other modules; warns if there are any."""
    num_holders: dict[int, int] = {}
    for _, node in nnx.iter_graph(model):
        for value in vars(node).values() if isinstance(node, nnx.Pytree) else ():
            if isinstance(value, nnx.Param):
                num_holders[id(value)] = num_holders.get(id(value), 0) + 1
    untied = []
    for place in site_modules(model):
        module: Any = place.module
        for name in (place.view.kernel, place.view.bias) if is_adapted(module) else ():
            weight = None if name is None else getattr(module, name)
            if name is not None and isinstance(weight, nnx.Param) and num_holders[id(weight)] > 1:
                setattr(module, name, weight.copy())
                untied.append(leaf_at(place.sites[0].path, name))
    if untied:
        warnings.warn(
            f"{len(untied)} weights were shared with other modules and are no longer, the first of them {untied[0]}: "
            "their adapter acts in one of them only.",
            stacklevel=3,
        )


def _merge_adapter(place: SiteModule, model: nnx.Module, *, heads_apart: bool) -> None:
    """Merges the adapter of one module into its weights, in place.

    A module that is not jpeft's may use its weights in another way than their names suggest, so it is tried out.
    """
    module: Any = place.module
    kind, is_ours = place.view.kind, _is_ours(module)
    dtypes = _weight_dtypes(place)
    adapted_output = sample_output(place) if not is_ours and kind in ("linear", "norm") else None
    adapter: Any = take_off(module)
    if not hasattr(adapter, "fold") or (place.view.kernel is None and kind != "norm"):
        raise UserError(
            f"{type(adapter).__name__} at {place.sites[0].told} is no change of a weight; it cannot be merged."
        )
    if kind == "embedding":
        _require_no_head(place, model, heads_apart=heads_apart)
    if not is_ours and kind == "linear":
        require_kernel_is_used_linearly(place)
    _fold(adapter, place)
    if adapted_output is not None:
        rounded = place.view.kernel or place.view.bias or ""
        require_same_output(place, adapted_output, rounds=dtypes.get(rounded, jnp.float32) != jnp.float32)
    if not is_ours:
        for name, dtype in dtypes.items():
            getattr(module, name).set_value(getattr(module, name)[...].astype(dtype))


def _weight_dtypes(place: SiteModule) -> dict[str, Any]:
    """The dtypes of a module's kernel and bias by attribute, without a quantized kernel.

    Raises:
      UserError: the kernel has integers.
    """
    module: Any = place.module
    kernel = None if hasattr(module, "widen") else place.view.kernel
    dtypes = {name: getattr(module, name)[...].dtype for name in (kernel, place.view.bias) if name is not None}
    if kernel is not None and not jnp.issubdtype(dtypes[kernel], jnp.floating):
        raise UserError(
            f"{place.sites[0].told} keeps its weights as {dtypes[kernel]}, to which merged ones would be rounded; it "
            "cannot be merged."
        )
    return dtypes


def _require_no_head(place: SiteModule, model: nnx.Module, *, heads_apart: bool) -> None:
    """Raises `UserError` if an adapted embedding is also the output head of the model, or may be."""
    path = place.sites[0].told
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        raise UserError(
            f"{path} is also the head of this model, on which the adapter does not act; it cannot be merged."
        )
    if not _is_ours(model) and not heads_apart:
        raise UserError(
            f"{path} is a {type(place.module).__name__}. If the model also computes its logits from that table, "
            "the adapter does not act on them, and merged it would: say heads_apart=True if it does not."
        )


def _fold(adapter: Any, place: SiteModule) -> None:
    """Replaces the weights of a module by those that its adapter's `fold` returns for them, in float32.

    Raises:
      UserError: these include a bias or, of a norm, a scale, and the module has none.
    """
    module: Any = place.module
    view = place.view
    bias = None if view.bias is None else getattr(module, view.bias)[...]
    flat_bias = None if bias is None else _flat(bias.astype(jnp.float32), view.d_out)
    # A norm without a scale is one with a scale of ones.
    kernel = jnp.ones(view.d_out) if view.kernel is None else view.matrix(module).astype(jnp.float32)
    new_kernel, new_bias = adapter.fold(kernel, flat_bias)
    lacks = "bias" if new_bias is not None and bias is None else None
    if view.kernel is None and (new_kernel != 1).any():
        lacks = "scale"
    if lacks is not None:
        raise UserError(
            f"{type(adapter).__name__} at {place.sites[0].told} needs a {lacks}, and the module has none; it cannot be "
            "merged."
        )
    if view.kernel is not None:
        view.set_matrix(module, new_kernel)
    if view.bias is not None and bias is not None and new_bias is not None:
        getattr(module, view.bias).set_value(new_bias.reshape(bias.shape))


def _flat(bias: Any, d_out: int) -> Any:
    """A bias of any shape as `[d_out]` or `[layers, d_out]`."""
    return bias.reshape(*([-1] if bias.size > d_out else []), d_out)
