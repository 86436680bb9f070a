"""That annotations are checked at all while tests run: of plain values, of arrays' shapes, and of dataclasses."""

import jax.numpy as jnp
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from jpeft.eval.cross_entropy import summed_cross_entropy
from jpeft.peft.sites import Site
from jpeft.words import size


def test_a_plain_value_of_another_type_is_an_error():
    with pytest.raises(BeartypeCallHintViolation, match="amount='much' violates type hint"):
        size("much")  # pyright: ignore[reportArgumentType]


def test_a_field_of_another_type_is_an_error():
    with pytest.raises(BeartypeCallHintViolation, match="path"):
        Site(1, "linear", 4, 4)  # pyright: ignore[reportArgumentType]


def test_arrays_whose_dimensions_do_not_fit_each_other_are_an_error():
    hidden, targets, weights = jnp.ones((2, 3, 4)), jnp.ones((2, 5), jnp.int32), jnp.ones((2, 3))
    with pytest.raises(TypeCheckError, match="targets"):
        summed_cross_entropy(lambda x: x, hidden, targets, weights, vocab_size=4)
