"""Base and adapter as one model without adapters: weights that do alone what both did together."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jpeft.errors import UserError
from jpeft.peft.adapted import is_adapted, take_off
from jpeft.peft.attaching import Model
from jpeft.peft.method import Method
from jpeft.peft.sites import site_modules
from jpeft.peft.variables import Adapter


def refuse_unmergeable(method: type[Method]) -> None:
    """Raises `UserError` where what a method does is no change of weights."""
    if method.unmergeable is not None:
        raise UserError(f"{method.name} cannot be merged into a T5: {method.unmergeable}.")


def merge(adapted: Model) -> Model:
    """A model without adapters whose weights do what base and adapter do together; the two share what is not changed.

    The arithmetic and the changed weights are float32, whatever the base's dtype.

    Raises:
      UserError: what is attached somewhere is no change of the weights that are there.
    """
    model = nnx.merge(*nnx.split(adapted))  # new modules around the same arrays
    for place in site_modules(model):
        module: Any = place.module
        if is_adapted(module):
            adapter: Any = take_off(module)
            view, path = place.view, place.sites[0].path
            if view.kernel is None or not hasattr(adapter, "fold"):
                raise UserError(f"{type(adapter).__name__} at {path} is no change of a weight; it cannot be merged.")
            bias = None if view.bias is None else getattr(module, view.bias)[...].astype(jnp.float32)
            kernel, new_bias = adapter.fold(view.matrix(module).astype(jnp.float32), _flat(bias, view.d_out))
            if new_bias is not None and view.bias is None:
                raise UserError(f"{type(adapter).__name__} at {path} needs a bias, and the module has none.")
            view.set_matrix(module, kernel)
            if bias is not None and view.bias is not None and new_bias is not None:
                setattr(module, view.bias, nnx.Param(new_bias.reshape(bias.shape)))
        for name, value in list(vars(module).items()):
            if isinstance(value, Adapter):  # full tuning of a selection: the weight itself
                setattr(module, name, nnx.Param(value[...]))
    return model


def _flat(bias: Any, d_out: int) -> Any:
    """A bias of any shape as `[d_out]`, or `[layers, d_out]`."""
    return None if bias is None else bias.reshape(*([-1] if bias.size > d_out else []), d_out)
