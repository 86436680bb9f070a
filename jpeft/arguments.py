"""Checks of arguments of the functions of `import jpeft`: a wrong one raises `UserError` with a one-line message."""

import contextlib
import math
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.typed_config import SEEDS
from jpeft.words import shortened, why_not_utf8


def require_module(name: str, model: Any) -> None:
    """Raises `UserError` if the argument `name` is not a Flax NNX module."""
    if not isinstance(model, nnx.Module):
        raise UserError(f"{name} is {shortened(model)}; expected a flax.nnx.Module.")


def require_sizes(sizes: Mapping[str, Any], least: int = 1) -> None:
    """Raises `UserError` if an argument is not an integer (of Python, NumPy or JAX) of at least `least`.

    Args:
      sizes: argument values by argument name.
    """
    for name, size in sizes.items():
        number = _whole_number(size)
        if number is None or number < least:
            raise UserError(f"{name} is {shortened(size)}; expected a whole number, {least} or more.")


def require_seed(seed: Any) -> None:
    """Raises `UserError` if `seed` is not an integer within `jpeft.typed_config.SEEDS`."""
    number, (least, most) = _whole_number(seed), SEEDS
    if number is None or not least <= number <= most:
        raise UserError(f"seed is {shortened(seed)}; expected a whole number from {least} to {most:,}.")


def _whole_number(given: Any) -> int | None:
    if isinstance(given, bool):
        return None
    with contextlib.suppress(TypeError):
        return operator.index(given)
    return None


def arrays_of(batch: Any) -> Any:
    """Returns a batch with its Python numbers converted to JAX arrays.

    Raises:
      UserError: a leaf is neither an array nor a number.
    """

    def array_of(leaf: Any) -> Any:
        with contextlib.suppress(TypeError, OverflowError):
            if isinstance(leaf, bool | int | float | complex):
                return jnp.asarray(leaf)
            jax.typeof(leaf)
            return leaf
        raise UserError(f"a batch holds {shortened(leaf)}; expected a tree of arrays and numbers.")

    return jax.tree.map(array_of, batch)


def require_texts(name: str, texts: Any) -> None:
    """Raises `UserError` if `texts` is not a sequence of strings that UTF-8 can encode.

    A single string is refused: it would be read as a sequence of letters.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"{name} is {shortened(texts)}; expected a list of texts.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name} holds {shortened(text)}; expected texts.")
        if reason := why_not_utf8(text):
            raise UserError(f"{name}[{i}]: {reason}.")


def float_dtype_of(given: Any) -> np.dtype:
    """Returns the floating-point dtype that an argument names. Raises `UserError` if it names no such dtype."""
    dtype = None
    with contextlib.suppress(TypeError):
        dtype = jnp.dtype(given)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"dtype is {shortened(given)}; expected a floating-point dtype, such as 'bfloat16'; for fewer bits give "
            "quantization='int8'."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UserError(f"dtype is {dtype}, which JAX has only where jax_enable_x64 is set; set it, or take float32.")
    return dtype


def require_batches(given: Any) -> None:
    """Raises `UserError` for batches that are one batch, or cannot be iterated over."""
    if isinstance(given, Mapping):
        raise UserError("batches is one batch; expected as many as there are to be steps: a list of them.")
    try:
        iter(given)
    except TypeError:
        raise UserError(f"batches is {shortened(given)}; expected a list of batches, one for each step.") from None


def require_loss(given: Any) -> None:
    """Raises `UserError` for a loss that is no function."""
    if not (given is None or callable(given)):
        raise UserError(f"loss is {shortened(given)}; expected a function of the model and a batch.")


def require_optimizer(given: Any) -> None:
    """Raises `UserError` for an optimizer that is not one of optax's, such as the function that makes one."""
    is_one = all(callable(getattr(given, name, None)) for name in ("init", "update")) and not isinstance(given, type)
    if given is not None and not is_one:
        raise UserError(f"optimizer is {shortened(given)}; expected one of optax's, such as optax.adamw(1e-3).")


def require_path(name: str, given: Any) -> None:
    """Raises `UserError` for a value that is not a path."""
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{name} is {shortened(given)}; expected a path.")


def rate_of(given: Any) -> float:
    """Returns a learning rate as a Python float. Raises `UserError` if it is not a finite number above 0."""
    number = math.nan
    if not isinstance(given, bool | str | bytes) and np.ndim(given) == 0:
        with contextlib.suppress(TypeError, ValueError):
            number = float(given)
    if not 0 < number < math.inf:
        raise UserError(f"learning_rate is {shortened(given)}; expected a number above 0, or a schedule of optax.")
    return number


def require_scalar_loss(value: Any) -> None:
    """Raises `UserError` if the caller's loss function returned anything but one floating-point scalar."""
    if not isinstance(value, jax.Array | np.generic | np.ndarray | float | int):
        raise UserError(f"the loss gives {type(value).__name__}; expected one number, without auxiliary outputs.")
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        shape = f"{jnp.result_type(value)}{list(jnp.shape(value))}"
        raise UserError(f"the loss gives {shape}; expected one floating-point number, such as a mean.")
