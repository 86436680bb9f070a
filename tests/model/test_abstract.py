"""Abstract networks (shapes only), which are traced once per config."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jpeft.model import abstract as module
from jpeft.model.abstract import abstract
from jpeft.model.decoder import Decoder
from jpeft.model.t5 import T5
from tests.conftest import TINY, random_t5, spec
from tests.decoders import LLAMA, random_decoder


@pytest.mark.parametrize(("network", "made"), [(T5, random_t5(TINY)), (Decoder, random_decoder(LLAMA))])
def test_it_has_the_shapes_of_one_with_weights(network, made):
    found = abstract(network, made.config)
    assert spec(nnx.state(found)) == spec(nnx.state(made))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(found)))


def test_each_is_its_owners():
    """Filling one or removing its layers does not affect the next."""
    one, other = abstract(T5, TINY), abstract(T5, TINY)
    one.shared.embedding.set_value(jnp.ones((320, 16)))
    one.encoder.segments.pop()
    one.config = None
    for untouched in (other, abstract(T5, TINY)):
        assert isinstance(untouched.shared.embedding.get_value(), jax.ShapeDtypeStruct)
        assert len(untouched.encoder.segments) == 1 and untouched.config == TINY


def test_a_config_is_traced_once_and_another_dtype_is_another(monkeypatch):
    config, traced = dataclasses.replace(TINY, d_ff=40), []
    monkeypatch.setattr(module.nnx, "eval_shape", lambda make, _eval=nnx.eval_shape: traced.append(1) or _eval(make))
    for _ in range(3):
        abstract(T5, config)
    assert len(traced) == 1
    assert abstract(T5, config, dtype=jnp.bfloat16).dtype == jnp.bfloat16 and len(traced) == 2
