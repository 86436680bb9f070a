"""Profiled operations of a program: their FLOPs are those of the network, and their times add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import ours
from benchmarks.breakdown import by_kind
from benchmarks.operations import Product, measure, products_of, shared_time
from benchmarks.work import SIZES, config_of, write_checkpoint
from jpeft.leaves import named_leaves
from jpeft.model.family import family_with


def test_what_runs_side_by_side_shares_the_time():
    events = [(0.0, 10.0, "a"), (4.0, 8.0, "b"), (20.0, 23.0, "b")]
    assert shared_time(events) == {"a": 8.0, "b": 5.0}


def test_a_products_sizes_are_read_from_the_compiled_text():
    def both(x, y, z):
        return jnp.einsum("bhqd,bhkd->bhqk", x, y).sum() + (z @ z.T).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3, 16, 8), (2, 3, 32, 8), (64, 48))]
    text = jax.jit(both).lower(*shapes).compile().as_text()
    found = {product for products in products_of(text).values() for product in products}
    assert found == {Product((2, 3, 16, 32), 8), Product((64, 64), 48)}


@pytest.mark.parametrize("of", ["tiny", "tiny-llama"])
def test_random_weights_are_spread_as_those_of_a_new_network(of):
    size = SIZES[of]
    made = ours.random_model(size, dtype="bfloat16", stored_dtype="bfloat16")
    config = config_of(size, dropout_rate=0.0)
    new = family_with(config).build(config, dtype=jnp.float32)
    expected, found = (named_leaves(model, nnx.Param) for model in (new, made))
    for name, leaf in found.items():
        assert leaf.dtype == jnp.bfloat16 and leaf.shape == expected[name].shape
        if "relative" not in name:
            spread, wanted = (float(np.sqrt(np.mean(np.square(x, dtype=np.float32)))) for x in (leaf, expected[name]))
            assert spread == pytest.approx(wanted, rel=0.1), name


@pytest.mark.slow
@pytest.mark.parametrize("of", ["tiny", "tiny-llama"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_steps_products_are_those_of_the_network(tmp_path, method, of):
    size = SIZES[of]
    write_checkpoint(size, tmp_path, dropout_rate=0.0)
    work = ours.train_step(tmp_path, size, method)
    work()
    operations, seconds = measure(work, work.program.compiled[0].as_text(), runs=3)
    kinds = by_kind(operations, size)
    of_network = sum(share.flops for kind, share in kinds.items() if kind != "adapter")
    assert of_network == pytest.approx(size.train_flops(method), rel=0.03)
    assert ("adapter" in kinds) == (method == "lora")
    assert 0 < sum(share.seconds for share in kinds.values()) < seconds
