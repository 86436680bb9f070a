"""Trials of modules that are not jpeft's before and after merging: whether they compute what their weights suggest.

jpeft recognises such modules by their attributes (`jpeft.peft.views`). A module may have a `kernel` and yet not compute
`x @ kernel`, in which case merging into it would silently give a wrong model. So each is called with random inputs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import Model, copied
from jpeft.peft.sites import SiteModule
from jpeft.peft.views import Original, view_of
from jpeft.trouble import kind_and_first_line

# Relative tolerances: of a merged module's output in float32 and in dtypes in which it rounds, and of the change of the
# output when a random matrix is added to the kernel.
_EXACT, _ROUNDED, _CHANGED = 1e-3, 0.02, 0.05


def sample_output(place: SiteModule) -> np.ndarray:
    """The output of a module, or of the first of its layers, for a fixed random input, in the dtype that it has."""
    module = _first_layer(place)
    with jax.default_matmul_precision("highest"):
        return np.asarray(_try_call(place, lambda: module(place.view.example(jax.random.key(0)))))


def require_same_output(place: SiteModule, adapted_output: np.ndarray, *, rounds: bool) -> None:
    """Checks that a merged module computes what it did with its adapter.

    Args:
      place: the merged module.
      adapted_output: its `sample_output` with the adapter.
      rounds: whether the weights are in a dtype below float32; where the output is, the module rounds as well.

    Raises:
      UserError: the outputs differ.
    """
    difference = _difference(adapted_output, sample_output(place))
    rounds = rounds or _is_narrow(adapted_output.dtype)
    if not difference < (_ROUNDED if rounds else _EXACT):
        raise UserError(_message(place, f"merged, it differs by {difference:.2g} of its output"))


def whole_output(model: Model, check: Callable[[Model], Any]) -> list[np.ndarray]:
    """The arrays that a function of the caller's returns for a model, of which it is given a copy.

    Raises:
      UserError: the function raises, or returns something else or nothing.
    """
    try:
        with jax.default_matmul_precision("highest"):
            outputs = [np.asarray(jnp.asarray(leaf)) for leaf in jax.tree.leaves(check(copied(model)))]
    except UserError:
        raise
    except Exception as error:  # the caller's function may raise anything
        raise UserError(
            f"check fails ({kind_and_first_line(error, 120)}); expected a function that returns what a model computes, "
            "such as lambda model: model(x)."
        ) from None
    if not outputs:
        raise UserError("check returns no array; expected what a model computes, such as lambda model: model(x).")
    return outputs


def require_same_whole_output(before: list[np.ndarray], after: list[np.ndarray], merged: nnx.Module) -> None:
    """Checks that a merged model computes what the model with adapters did, both as `whole_output` returns them.

    Raises:
      UserError: the outputs differ.
    """
    rounds = any(_is_narrow(output.dtype) for output in before) or _has_narrow_parts(merged)
    difference = max(map(_difference, before, after))
    if not difference < (_ROUNDED if rounds else _EXACT):
        raise UserError(
            f"merged, the model differs by {difference:.2g} of its output: a part of it seems to read an adapted "
            "weight itself, where the adapter does not act and a merged weight does. It cannot be merged."
        )


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    one, other = (np.asarray(output, np.float32) for output in (before, after))
    equal = (one == other) | (np.isnan(one) & np.isnan(other))  # masked logits are infinite
    difference = np.abs(np.subtract(one, other, where=~equal, out=np.zeros_like(one)))
    largest = np.abs(one).max(initial=1e-6, where=np.isfinite(one))
    return float(difference.max(initial=0) / largest)


def _has_narrow_parts(model: nnx.Module) -> bool:
    """Whether a part of a model has weights, or computes, in a dtype below float32."""
    weights = jax.tree.leaves(nnx.state(model, nnx.Param))
    computing = (vars(node).get("dtype") for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Pytree))
    return any(map(_is_narrow, [*(leaf.dtype for leaf in weights), *(dtype for dtype in computing if dtype)]))


def _is_narrow(dtype: Any) -> bool:
    """Whether a dtype is a floating-point one below float32; what is no dtype, such as "auto", is none."""
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        return False
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def require_kernel_is_used_linearly(place: SiteModule) -> None:
    """Checks that a change of a linear module's kernel changes its output by `x @ change`.

    `require_same_output` would not notice a small error in the effect of an adapter that changes little.

    Raises:
      UserError: the output changes by something else.
    """
    error = _relative_error_of_change(place)
    if not error < _CHANGED:
        raise UserError(_message(place, f"with other weights it is off by {error:.2g} of what they change"))


def _relative_error_of_change(place: SiteModule) -> float:
    module = _first_layer(place)
    view = view_of(module)
    assert view is not None, "the same module has a view within the model"
    matrix = view.matrix(module).astype(jnp.float32)
    bias = 0.0 if view.bias is None else jnp.abs(getattr(module, view.bias)[...]).max()
    # Large enough that rounding does not hide it beside the output of a large bias.
    size = jnp.maximum(jnp.maximum(jnp.std(matrix), 1e-3), bias / matrix.shape[0] ** 0.5)
    change = size * jax.random.normal(jax.random.key(1), matrix.shape)
    call = functools.partial(type(module).__call__, module)
    x = view.example(jax.random.key(0))
    with jax.default_matmul_precision("highest"):
        expected = view.call(lambda compute, x: x.astype(jnp.float32) @ change, Original(call, view, module), x)
        before = _try_call(place, lambda: module(x))
        view.set_matrix(module, matrix + change)
        after = _try_call(place, lambda: module(x))
    expected, found = np.asarray(expected, np.float32), np.asarray(after, np.float32) - np.asarray(before, np.float32)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _first_layer(place: SiteModule) -> Any:
    """A copy of a module, or of the first of its layers, so that trial calls do not change its batch statistics."""
    graphdef, state = nnx.split(place.module)
    stacked = place.in_stack or place.view.layers is not None
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0] if stacked else leaf, state))


def _try_call(place: SiteModule, call: Callable[[], Any]) -> Any:
    """Calls a module. Raises `UserError`, naming the module, if that fails."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # users' modules may raise anything
        raise UserError(
            f"{place.sites[0].told}, a {type(place.module).__name__}, cannot be merged: a call with a random input of "
            f"its size fails ({kind_and_first_line(error, 120)})."
        ) from None


def _message(place: SiteModule, reason: str) -> str:
    return (
        f"{place.sites[0].told} is a {type(place.module).__name__}, which does not compute what its weights look like "
        f"(x @ kernel, and bias): {reason}. It cannot be merged."
    )
