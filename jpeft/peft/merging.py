"""Base and adapter as one model without adapters: weights that do alone what both did together."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.arguments import require_module
from jpeft.errors import UserError
from jpeft.leaves import Model, copied
from jpeft.peft.sites import SiteModule, roles_of, site_modules
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original, view_of
from jpeft.peft.wrapping import is_adapted, take_off
from jpeft.trouble import kind_and_first_line

# How far a module's outputs may be off: where its weights are float32, where it may round in itself, and where all of
# them are moved.
_EXACT, _ROUNDED, _MOVED = 1e-3, 0.02, 0.05


def merge(adapted: Model, *, heads_apart: bool = False) -> Model:
    """A model without adapters whose weights do what base and adapter do together; the two share what is not changed.

    What is kept in few bits is made wide: float32 of the numbers that it stands for. The arithmetic is float32. So are
    the changed weights of jpeft's own models, whatever the base's dtype, and those that full tuning trained; other
    changed weights of other modules keep the dtype that they had. Modules that share a weight to which something is
    attached have one each afterwards, which is warned of; a weight that full tuning trained is shared as before.

    Args:
      heads_apart: of a model that is not jpeft's: that it makes its logits of no table to which something is attached.
        An adapter acts where the table is looked up, and merged it would act in the logits, too.

    Raises:
      UserError: the argument is no module, what is attached somewhere is no change of the weights that are there, or
        may not be (a table, without `heads_apart`), or a module does not compute what its weights look like, keeps
        them as integers, or stands in one that scales them (`nnx.WeightNorm`, `nnx.SpectralNorm`).
    """
    require_module("adapted", adapted)
    model, is_ours = copied(adapted), bool(roles_of(adapted))
    _require_unscaled(model)
    _give_each_its_own(model)
    trained: dict[int, nnx.Param] = {}
    for place in site_modules(model):
        module: Any = place.module
        if is_adapted(module):
            _fold(place, is_ours, model, heads_apart)
        if hasattr(module, "widen"):
            module.widen(module.dequantized())
        for name, value in list(vars(module).items()):
            if isinstance(value, Adapter):  # full tuning of a selection: the weight itself
                setattr(module, name, trained.setdefault(id(value), nnx.Param(value[...])))
    return model


def _require_unscaled(model: nnx.Module) -> None:
    """Raises `UserError`: a module to which something is attached stands in one that normalizes its weights."""
    for _, node in nnx.iter_graph(model):
        inner: Any = getattr(node, "layer_instance", None)
        if isinstance(node, nnx.WeightNorm | nnx.SpectralNorm) and inner is not None and is_adapted(inner):
            raise UserError(
                f"something is attached to a {type(inner).__name__} within {type(node).__name__}, which would "
                "normalize what is merged into its weights; it cannot be merged."
            )


def _give_each_its_own(model: nnx.Module) -> None:
    """Where modules share a weight, and something is attached to one of them, gives that one a copy; warns of it."""
    holders: dict[int, int] = {}
    for _, node in nnx.iter_graph(model):
        for value in vars(node).values() if isinstance(node, nnx.Pytree) else ():
            if isinstance(value, nnx.Param):
                holders[id(value)] = holders.get(id(value), 0) + 1
    apart = []
    for place in site_modules(model):
        module: Any = place.module
        for name in (place.view.kernel, place.view.bias) if is_adapted(module) else ():
            weight = None if name is None else getattr(module, name)
            if name is not None and isinstance(weight, nnx.Param) and holders[id(weight)] > 1:
                setattr(module, name, weight.copy())
                apart.append(f"{place.sites[0].path}/{name}")
    if apart:
        warnings.warn(
            f"{len(apart)} weights were shared with other modules and are no longer, the first of them {apart[0]}: "
            "what is attached acts in one of them only.",
            stacklevel=3,
        )


def _fold(place: SiteModule, is_ours: bool, model: nnx.Module, heads_apart: bool) -> None:
    """Puts what is attached to a module into its weights."""
    module: Any = place.module
    view, path = place.view, place.sites[0].path
    kernel_dtype = None if view.kernel is None or hasattr(module, "widen") else getattr(module, view.kernel)[...].dtype
    if kernel_dtype is not None and not jnp.issubdtype(kernel_dtype, jnp.floating):
        raise UserError(f"{path} keeps its weights as {kernel_dtype}, which what is merged would be rounded to.")
    looked_at = not is_ours and view.kind in ("linear", "norm")
    before = _outcome(place) if looked_at else None
    adapter: Any = take_off(module)
    if view.kernel is None or not hasattr(adapter, "fold"):
        raise UserError(f"{type(adapter).__name__} at {path} is no change of a weight; it cannot be merged.")
    if view.kind == "embedding":
        if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
            raise UserError(f"{path} is also the head of this model, which the adapter is not; it cannot be merged.")
        if not is_ours and not heads_apart:
            raise UserError(
                f"{path} is a {type(module).__name__}. If the model also makes its logits of that table, the adapter "
                "has no part in them and merging would give it one: say heads_apart=True if it does not."
            )
    off = _off_where_moved(place) if looked_at and view.kind == "linear" else 0.0
    if not off < _MOVED:
        raise UserError(_no_such_map(place, f"with other weights it is off by {off:.2g} of what they change"))
    bias = None if view.bias is None else getattr(module, view.bias)[...]
    wide_bias = None if bias is None else _flat(bias.astype(jnp.float32), view.d_out)
    kernel, new_bias = adapter.fold(view.matrix(module).astype(jnp.float32), wide_bias)
    if new_bias is not None and view.bias is None:
        raise UserError(f"{type(adapter).__name__} at {path} needs a bias, and the module has none.")
    view.set_matrix(module, kernel)
    if bias is not None and view.bias is not None and new_bias is not None:
        getattr(module, view.bias).set_value(new_bias.reshape(bias.shape))
    if before is not None:
        off = np.abs(before - _outcome(place)).max() / max(float(np.abs(before).max()), 1e-6)
        if not off < (_EXACT if kernel_dtype in (None, jnp.float32) else _ROUNDED):
            raise UserError(_no_such_map(place, f"merged, it differs by {off:.2g} of its output"))
    if not is_ours:
        for name, dtype in ((view.kernel, kernel_dtype), (view.bias, None if bias is None else bias.dtype)):
            if name is not None and dtype is not None:
                getattr(module, name).set_value(getattr(module, name)[...].astype(dtype))


def _no_such_map(place: SiteModule, how: str) -> str:
    return (
        f"{place.sites[0].path} is a {type(place.module).__name__}, which does not compute what its weights look like "
        f"(x @ kernel, and bias): {how}. It cannot be merged."
    )


def _off_where_moved(place: SiteModule) -> float:
    """How far a linear module is from `y + x @ change` when as much as all of its matrix is added to it.

    What is attached may change little, and what it changes by is to be right all the same.
    """
    module = _alone(place)
    view = view_of(module)
    assert view is not None, "as it was within the model"
    matrix = view.matrix(module).astype(jnp.float32)
    bias = 0.0 if view.bias is None else jnp.abs(getattr(module, view.bias)[...]).max()
    size = jnp.maximum(jnp.maximum(jnp.std(matrix), 1e-3), bias / matrix.shape[0] ** 0.5)  # seen beside the bias, too
    change = size * jax.random.normal(jax.random.key(1), matrix.shape)
    call = functools.partial(type(module).__call__, module)
    x = view.example(jax.random.key(0))
    with jax.default_matmul_precision("highest"):
        right = view.call(lambda compute, x: x.astype(jnp.float32) @ change, Original(call, view, module), x)
        before = _called(place, lambda: module(x))
        view.set_matrix(module, matrix + change)
        after = _called(place, lambda: module(x))
    right, moved = np.asarray(right, np.float32), np.asarray(after, np.float32) - np.asarray(before, np.float32)
    return float(np.abs(moved - right).max() / np.abs(right).max())


def _outcome(place: SiteModule) -> np.ndarray:
    """What a module, or the first of its layers, makes of a random input."""
    module = _alone(place)
    with jax.default_matmul_precision("highest"):
        return np.asarray(_called(place, lambda: module(place.view.example(jax.random.key(0)))), np.float32)


def _alone(place: SiteModule) -> Any:
    """A copy of a module, or of the first of its layers: its batch statistics are those of no call here."""
    graphdef, state = nnx.split(place.module)
    stacked = place.in_stack or place.view.layers is not None
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0] if stacked else leaf, state))


def _called(place: SiteModule, call: Any) -> Any:
    """What a call of a module gives. Raises `UserError`, naming the module, where it fails."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # of a module that nobody here knows
        raise UserError(
            f"{place.sites[0].path}, a {type(place.module).__name__}, cannot be merged: a call with a random input of "
            f"its size fails ({kind_and_first_line(error, 120)})."
        ) from None


def _flat(bias: Any, d_out: int) -> Any:
    """A bias of any shape as `[d_out]`, or `[layers, d_out]`."""
    return None if bias is None else bias.reshape(*([-1] if bias.size > d_out else []), d_out)
