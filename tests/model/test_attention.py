"""Attention against the plain formula, in values and gradients, and the residuals of its backward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.model.attention import CachedParts, KeysValues, attend, prefix_bias
from jpeft.model.layers import MASKED, dropout
from jpeft.model.stack import REMAT_POLICIES
from jpeft.peft.attaching import attach, split
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from tests.conftest import TINY, random_t5

ROWS, HEADS, QUERIES, KEYS, WIDTH = 2, 6, 7, 9, 4


def given(kv_heads=HEADS, dtype=jnp.float32):
    """q, k, v and two biases: for positions, and for padded keys (every key of the last row)."""
    draw = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(draw.normal(size=(ROWS, heads, length, WIDTH)), dtype)
        for heads, length in ((HEADS, QUERIES), (kv_heads, KEYS), (kv_heads, KEYS))
    )
    position = jnp.asarray(draw.normal(size=(1, HEADS, QUERIES, KEYS)), jnp.float32)
    hidden = np.zeros((ROWS, 1, 1, KEYS), np.float32)
    hidden[0, ..., -3:] = hidden[1] = MASKED
    return q, k, v, (position, jnp.asarray(hidden))


def plain(q, k, v, bias, *, scale=1.0, dropout_rate=0.0, key=None):
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) * scale + sum(bias)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype), dropout_rate, key)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"dropout_rate": 0.4, "key": jax.random.key(1)}])
@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
def test_values_and_gradients_are_those_of_the_formula(kv_heads, options):
    arguments = given(kv_heads)
    weigh = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, HEADS, QUERIES, WIDTH)), jnp.float32)

    def of(function):
        return jax.value_and_grad(lambda *args: jnp.sum(function(*args, **options) * weigh), argnums=(0, 1, 2, 3))

    (value, gradients), (expected, its) = of(attend)(*arguments), of(plain)(*arguments)
    assert np.isclose(value, expected, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(its), strict=True):
        assert ours.shape == theirs.shape and np.allclose(ours, theirs, atol=2e-6)


def test_in_bfloat16_sums_are_float32():
    """A bfloat16 sum of 300 weights would lose some: the next number after 256 is 258."""
    ones = jnp.ones((1, 1, 300, 1), jnp.bfloat16)
    value, gradient = jax.value_and_grad(lambda v: attend(ones[:, :, :1], ones, v, ())[0, 0, 0, 0])(ones)
    assert value == 1.0 and gradient.dtype == jnp.bfloat16
    assert np.allclose(np.asarray(gradient, np.float32), 1 / 300, rtol=2**-8)
    # The mean of 100 zeros and 201 ones, rounded once. The total, 301, is no bfloat16, and neither is 201 / 300.
    longer = jnp.ones((1, 1, 301, 1), jnp.bfloat16)
    mean = attend(longer[:, :, :1], longer, longer.at[:, :, :100].set(0), ())
    assert mean[0, 0, 0, 0] == jnp.bfloat16(201 / 301) != jnp.bfloat16(201 / 300)
    jaxpr = str(jax.make_jaxpr(lambda q, k, v, bias: jax.grad(lambda q: attend(q, k, v, bias).sum())(q))(*given()))
    assert jaxpr.count("preferred_element_type=float32") >= 3  # scores, recomputed scores, gradients of weights


@pytest.mark.parametrize("asked", ["q, k and v", "a bias"])
def test_nothing_of_the_size_of_all_scores_is_kept(asked):
    q, k, v, bias = given()
    if asked == "a bias":
        _, back = jax.eval_shape(lambda *bias: jax.vjp(lambda *bias: attend(q, k, v, bias), *bias), *bias)
    else:
        _, back = jax.eval_shape(lambda *qkv: jax.vjp(lambda *qkv: attend(*qkv, bias), *qkv), q, k, v)
    kept = [leaf.shape for leaf in jax.tree.leaves(back)]
    assert kept and (ROWS, HEADS, QUERIES, KEYS) not in kept
    assert sum(np.prod(shape, dtype=int) for shape in kept) < 3 * (q.size + k.size + v.size) + sum(b.size for b in bias)


def test_what_is_frozen_gets_no_gradient():
    """A bias's gradient, a sum over all scores, is only computed if the bias trains."""
    q, k, v, bias = given()
    with_bias, without = (
        str(jax.make_jaxpr(jax.grad(lambda *args: attend(*args).sum(), argnums=of))(q, k, v, bias))
        for of in ((0, 3), (0,))
    )
    assert with_bias.count("reduce_sum") > without.count("reduce_sum")


def _kept(remat: str) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the residuals of LoRA's backward pass on a bfloat16 T5."""
    config = dataclasses.replace(TINY, num_layers=3, num_decoder_layers=3, dropout_rate=0.1)
    model = random_t5(config, dtype=jnp.bfloat16)
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    model.encoder.remat = model.decoder.remat = remat
    graphdef, adapter, base = split(attach(model, Lora(), select(model, Lora()), jax.random.key(0)))
    tokens = jnp.ones((ROWS, 24), jnp.int32)

    def hidden(adapter):
        return nnx.merge(graphdef, adapter, base).hidden(tokens, tokens[:, :20], jax.random.key(0))

    _, back = jax.eval_shape(lambda adapter: jax.vjp(hidden, adapter), adapter)
    return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(back)]


def test_a_block_keeps_its_products_and_makes_the_rest_anew():
    """No elementwise float32 result and no dropout mask is kept, and each policy keeps less than the one before."""
    kept = {remat: _kept(remat) for remat in REMAT_POLICIES}
    layers = [one for one in kept["none"] if len(one[0]) == 4 and one[0][0] == 3 and one[0][1] == ROWS]
    assert layers and not [one for one in layers if one[1] == "float32" or one[1] == "bool"]
    sizes = [sum(np.prod(shape, dtype=int) for shape, _ in kept[remat]) for remat in REMAT_POLICIES]
    assert sizes[0] > sizes[1] > sizes[2]


BEAMS = 3


@pytest.mark.parametrize(
    ("prefixes", "beams", "kv_heads", "dtype"),
    [
        ("none", 1, HEADS, jnp.float32),
        ("none", BEAMS, 2, jnp.float32),
        pytest.param("none", BEAMS, 1, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("shared", 1, 1, jnp.float32, marks=pytest.mark.slow),
        ("shared", BEAMS, 2, jnp.bfloat16),
        pytest.param("each its own", 1, HEADS, jnp.float32, marks=pytest.mark.slow),
        ("each its own", BEAMS, 2, jnp.float32),
    ],
)
def test_a_query_makes_of_caches_in_parts_what_it_makes_of_one_text(prefixes, beams, kv_heads, dtype):
    """The parts: keys read once per row, keys written by each beam, and a prefix before both."""
    draw = np.random.default_rng(3)

    def drawn(rows, length):
        return jnp.asarray(draw.normal(size=(rows, kv_heads, length, WIDTH)), dtype)

    q = jnp.asarray(draw.normal(size=(ROWS * beams, HEADS, 1, WIDTH)), dtype)
    read, written = (KeysValues(drawn(rows, length), drawn(rows, length)) for rows, length in ((ROWS, 5), (len(q), 4)))
    hidden = np.zeros((len(q), 1, 1, 9), np.float32)
    hidden[0, ..., :2] = hidden[-1, ..., 7:] = MASKED
    position = jnp.asarray(draw.normal(size=(1, HEADS, 1, 9)), jnp.float32)
    bias = (position, jnp.asarray(hidden))
    parts = CachedParts((read.cached(), written.cached()))
    whole = KeysValues(
        *(jnp.concatenate([jnp.repeat(one, beams, axis=0), x], 2) for one, x in zip(read, written, strict=True))
    )
    if prefixes != "none":
        rows = 1 if prefixes == "shared" else len(q)
        keys, values = (jnp.asarray(draw.normal(size=(rows, kv_heads, 2, WIDTH)), jnp.float32) for _ in range(2))
        shown = None if prefixes == "shared" else jnp.asarray(draw.random((rows, 2)) > 0.5)
        bias = prefix_bias(bias, 2, shown, whole.length)
        parts, whole = parts.prepend(keys, values), whole.prepend(keys, values)
    assert parts.length == whole.length == bias[0].shape[-1]
    found, expected = parts.attend(q, bias, scale=0.3), whole.attend(q, bias, scale=0.3)
    assert found.dtype == dtype
    within = {jnp.float32: 1e-6, jnp.bfloat16: 0.02}[dtype]
    assert np.allclose(found.astype(jnp.float32), expected.astype(jnp.float32), atol=within, rtol=within)


def test_keys_before_the_text_that_are_not_shown_are_as_none():
    q, k, v, bias = given()
    first, shown = jnp.full((ROWS, HEADS, 2, WIDTH), 3.0), jnp.zeros((ROWS, 2), bool)
    before = KeysValues(k, v).prepend(first, first).attend(q, prefix_bias(bias, 2, shown, KEYS))
    assert np.allclose(before[0], attend(q, k, v, bias)[0], atol=1e-6)  # the other row sees no key at all


def test_caches_in_parts_drop_nothing():
    q, k, v, bias = given()
    parts = CachedParts((KeysValues(k, v).cached(),))
    with pytest.raises(AssertionError, match="no dropout"):
        parts.attend(q[:, :, :1], bias, dropout_rate=0.1, key=jax.random.key(0))
