"""Base and adapter as one model without adapters: weights that do alone what both did together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import Model, copied
from jpeft.peft.adapted import is_adapted, take_off
from jpeft.peft.sites import SiteModule, roles_of, site_modules
from jpeft.peft.variables import Adapter


def merge(adapted: Model, *, heads_apart: bool = False) -> Model:
    """A model without adapters whose weights do what base and adapter do together; the two share what is not changed.

    What is kept in few bits is made wide: float32 of the numbers that it stands for. The arithmetic is float32. So are
    the changed weights of jpeft's own models, whatever the base's dtype; those of other modules keep the dtype that
    they had.

    Args:
      heads_apart: of a model that is not jpeft's: that it makes its logits of no table to which something is attached.
        An adapter acts where the table is looked up, and merged it would act in the logits, too.

    Raises:
      UserError: what is attached somewhere is no change of the weights that are there, or may not be (a table, without
        `heads_apart`), or a module does not compute what its weights look like.
    """
    model, is_ours = copied(adapted), bool(roles_of(adapted))
    for place in site_modules(model):
        module: Any = place.module
        if is_adapted(module):
            _fold(place, is_ours, model, heads_apart)
        if hasattr(module, "widen"):
            module.widen(module.dequantized())
        for name, value in list(vars(module).items()):
            if isinstance(value, Adapter):  # full tuning of a selection: the weight itself
                setattr(module, name, nnx.Param(value[...]))
    return model


def _fold(place: SiteModule, is_ours: bool, model: nnx.Module, heads_apart: bool) -> None:
    """Puts what is attached to a module into its weights."""
    module: Any = place.module
    view, path = place.view, place.sites[0].path
    before = None if is_ours or view.kind not in ("linear", "norm") else _outcome(place)
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
    bias = None if view.bias is None else getattr(module, view.bias)[...]
    wide_bias = None if bias is None else _flat(bias.astype(jnp.float32), view.d_out)
    kernel, new_bias = adapter.fold(view.matrix(module).astype(jnp.float32), wide_bias)
    if new_bias is not None and view.bias is None:
        raise UserError(f"{type(adapter).__name__} at {path} needs a bias, and the module has none.")
    kernel_dtype = jnp.float32 if hasattr(module, "widen") else getattr(module, view.kernel)[...].dtype
    view.set_matrix(module, kernel if is_ours else kernel.astype(kernel_dtype))
    if bias is not None and view.bias is not None and new_bias is not None:
        new_bias = new_bias.reshape(bias.shape)
        getattr(module, view.bias).set_value(new_bias if is_ours else new_bias.astype(bias.dtype))
    if before is not None:
        after = _outcome(place)
        off = np.abs(before - after).max() / max(float(np.abs(before).max()), 1e-6)
        if not off < (1e-3 if kernel_dtype == jnp.float32 else 0.1):
            raise UserError(
                f"{path} is a {type(module).__name__}, which does not compute what its weights look like (x @ kernel, "
                f"and bias): merged, it differs by {off:.2g} of its output. It cannot be merged."
            )


def _outcome(place: SiteModule) -> np.ndarray:
    """What a module, or the first of its layers, makes of a random input."""
    module: Any = place.module
    graphdef, state = nnx.split(module)  # a copy: batch statistics are those of no call here
    one = (lambda leaf: leaf[0]) if place.in_stack or place.view.layers is not None else (lambda leaf: leaf)
    module = nnx.merge(graphdef, jax.tree.map(one, state))
    x = place.view.example(jax.random.key(0))
    try:
        return np.asarray(module(x), np.float32)
    except UserError:
        raise
    except Exception as error:  # of a module that nobody here knows
        what = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        raise UserError(
            f"{place.sites[0].path}, a {type(module).__name__}, cannot be merged: a call with a random input of its "
            f"size fails ({what})."
        ) from None


def _flat(bias: Any, d_out: int) -> Any:
    """A bias of any shape as `[d_out]`, or `[layers, d_out]`."""
    return None if bias is None else bias.reshape(*([-1] if bias.size > d_out else []), d_out)
