"""What the functions of `import jpeft` are given, looked at before it is used: of another kind, it is one line."""

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
from jpeft.words import shortened, told_of_no_text


def require_module(name: str, model: Any) -> None:
    """Raises `UserError`: an argument is no module of Flax NNX."""
    if not isinstance(model, nnx.Module):
        raise UserError(f"{name} is {shortened(model)}; expected a flax.nnx.Module.")


def require_sizes(sizes: Mapping[str, Any], least: int = 1) -> None:
    """Raises `UserError`: one of these arguments is no whole number, of whatever library's, of at least so many."""
    for name, size in sizes.items():
        number = _whole_number(size)
        if number is None or number < least:
            raise UserError(f"{name} is {shortened(size)}; expected a whole number, {least} or more.")


def require_seed(seed: Any) -> None:
    """Raises `UserError`: an argument is no seed, of those that a config may have."""
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
    """A batch with an array in the place of each number of Python's. Raises `UserError`: it holds something else."""

    def array_of(leaf: Any) -> Any:
        with contextlib.suppress(TypeError, OverflowError):
            if isinstance(leaf, bool | int | float | complex):
                return jnp.asarray(leaf)
            jax.typeof(leaf)
            return leaf
        raise UserError(f"a batch holds {shortened(leaf)}; expected arrays of numbers, in a tree.")

    return jax.tree.map(array_of, batch)


def require_texts(name: str, texts: Any) -> None:
    """Raises `UserError`: no sequence of texts is given (of one text, each letter would be one), or UTF-8 lacks one."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"{name} is {shortened(texts)}; expected a list of texts.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name} holds {shortened(text)}; expected texts.")
        if said := told_of_no_text(text):
            raise UserError(f"{name}[{i}]: {said}.")


def float_dtype_of(given: Any) -> np.dtype:
    """A dtype of numbers with a fraction, by whatever names it. Raises `UserError`: it is none."""
    dtype = None
    with contextlib.suppress(TypeError):
        dtype = jnp.dtype(given)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"dtype is {shortened(given)}; expected one with a fraction, such as 'bfloat16'; fewer bits are asked for "
            "by quantization='int8'."
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
    """Raises `UserError` for what is no path."""
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{name} is {shortened(given)}; expected a path.")


def rate_of(given: Any) -> float:
    """A learning rate as a number, of whatever library's. Raises `UserError`: it is none above 0."""
    number = math.nan
    if not isinstance(given, bool | str | bytes) and np.ndim(given) == 0:
        with contextlib.suppress(TypeError, ValueError):
            number = float(given)
    if not 0 < number < math.inf:
        raise UserError(f"learning_rate is {shortened(given)}; expected a number above 0, or a schedule of optax.")
    return number


def require_scalar_loss(value: Any) -> None:
    """Raises `UserError`: what a loss of the caller's gave is not one number with a fraction."""
    if not isinstance(value, jax.Array | np.generic | np.ndarray | float | int):
        raise UserError(f"the loss gives {type(value).__name__}; expected one number, and nothing beside it.")
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        shape = f"{jnp.result_type(value)}{list(jnp.shape(value))}"
        raise UserError(f"the loss gives {shape}; expected one number with a fraction, such as a mean.")
