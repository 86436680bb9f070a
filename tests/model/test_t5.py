"""Properties of the T5 network that hold for any weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.eval.loss import loss_sums
from jpeft.leaves import fill, named_leaves
from jpeft.model.abstract import abstract
from jpeft.model.decode import greedy
from jpeft.model.layers import dropout
from jpeft.model.placement import placing
from jpeft.model.products import product
from jpeft.model.stack import REMAT_POLICIES, arrange, block_program, num_stacked
from jpeft.model.t5 import T5, Block, RelativeBias
from jpeft.model.t5_config import RELEASED
from jpeft.model.t5_family import T5_FAMILY
from jpeft.peft.arithmetic import rescaled
from tests.conftest import TINY, make_batch, random_t5, slow_but

DEEP = dataclasses.replace(TINY, num_layers=4, num_decoder_layers=3, dropout_rate=0.1)


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def deep_t5():
    return random_t5(DEEP, seed=1)


@jax.jit
def forward(model, encoder_tokens, decoder_tokens, key=None):
    return model(encoder_tokens, decoder_tokens, key)


def logits_of(model, batch, key=None):
    return np.asarray(forward(model, batch["encoder_input_tokens"], batch["decoder_input_tokens"], key))


def test_more_padding_changes_no_logit(tiny_t5, batch):
    padded = batch | {"encoder_input_tokens": jnp.pad(batch["encoder_input_tokens"], ((0, 0), (0, 7)))}
    np.testing.assert_allclose(logits_of(tiny_t5, padded), logits_of(tiny_t5, batch), rtol=0, atol=1e-5)


def test_rows_of_a_batch_do_not_see_each_other(tiny_t5, batch):
    logits = logits_of(tiny_t5, batch)
    alone = [logits_of(tiny_t5, {name: value[i : i + 1] for name, value in batch.items()})[0] for i in range(3)]
    np.testing.assert_allclose(logits, np.stack(alone), rtol=0, atol=1e-5)


def test_the_future_does_not_change_the_past(tiny_t5, batch):
    tokens = batch["decoder_input_tokens"]
    logits = logits_of(tiny_t5, batch)
    for position in range(1, tokens.shape[1]):
        changed = tokens.at[:, position:].set((tokens[:, position:] + 11) % TINY.vocab_size)
        after = logits_of(tiny_t5, batch | {"decoder_input_tokens": changed})
        np.testing.assert_array_equal(after[:, :position], logits[:, :position])
        assert np.all(np.abs(after[:, position] - logits[:, position]).max(axis=-1) > 1e-3)


def test_every_input_token_counts(tiny_t5, batch):
    tokens = batch["encoder_input_tokens"]
    logits = logits_of(tiny_t5, batch)
    for position in range(tokens.shape[1]):
        changed = tokens.at[0, position].set((tokens[0, position] + 11) % TINY.vocab_size)
        after = logits_of(tiny_t5, batch | {"encoder_input_tokens": changed})
        assert np.abs(after[0] - logits[0]).max() > 1e-4
        np.testing.assert_array_equal(after[1:], logits[1:])


def test_layers_one_by_one_give_the_logits_of_the_loop(deep_t5, batch):
    unrolled = nnx.clone(deep_t5)
    arrange((unrolled.encoder, unrolled.decoder), scan=False)
    assert [len(unrolled.encoder.segments), len(unrolled.decoder.segments)] == [4, 3]
    np.testing.assert_allclose(logits_of(unrolled, batch), logits_of(deep_t5, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "scan", "unrolled"), [(3, None, True), (9, None, False), (9, False, True), (3, True, False)]
)
def test_shallow_stacks_are_not_scanned_unless_asked(layers, scan, unrolled):
    def arranged():
        model = T5(dataclasses.replace(TINY, num_layers=layers), rngs=nnx.Rngs(0))
        arrange((model.encoder, model.decoder), scan=scan)
        return model

    model = nnx.eval_shape(arranged)
    assert len(model.encoder.segments) == (layers if unrolled else 1)


def test_cutting_a_stack_keeps_logits(deep_t5, batch):
    split = nnx.clone(deep_t5)
    split.encoder.cut([1, 3])
    split.decoder.cut([2])
    assert [num_stacked(block) for block in split.encoder.segments] == [1, 2, 1]
    assert [num_stacked(block) for block in split.decoder.segments] == [2, 1]
    split.encoder.cut([1])  # nothing to cut
    assert [num_stacked(block) for block in split.encoder.segments] == [1, 2, 1]
    np.testing.assert_allclose(logits_of(split, batch), logits_of(deep_t5, batch), rtol=0, atol=1e-5)


def test_names_and_values_of_leaves_do_not_depend_on_the_segments(deep_t5):
    whole = named_leaves(deep_t5, nnx.Param)
    split = nnx.clone(deep_t5)
    split.encoder.cut([1, 3])
    split.decoder.cut([1, 2])
    parts = named_leaves(split, nnx.Param)
    assert parts.keys() == whole.keys()
    assert "encoder/layers/3/self_attention/q/kernel" in parts and "decoder/layers/2/feed_forward/wo/kernel" in parts
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)


def test_fill_puts_each_leaf_where_its_name_says(deep_t5):
    values = {name: np.asarray(value) * 2 for name, value in named_leaves(deep_t5, nnx.Param).items()}
    filled = nnx.clone(deep_t5)
    filled.encoder.cut([2])
    fill(filled, nnx.Param, lambda name, shape, part: values[name][part], np.float32)
    for name, value in named_leaves(filled, nnx.Param).items():
        np.testing.assert_array_equal(value, values[name], err_msg=name)


@pytest.mark.parametrize("policy", slow_but((), [policy for policy in REMAT_POLICIES if policy != "none"]))
def test_remat_changes_neither_loss_nor_gradient(policy, batch, key):
    model = random_t5(dataclasses.replace(TINY, dropout_rate=0.1))

    @jax.jit
    def loss_and_gradient(model):
        graphdef, params = nnx.split(model)
        return jax.value_and_grad(lambda params: loss_sums(nnx.merge(graphdef, params), batch, key)[0])(params)

    remat = nnx.clone(model)
    remat.encoder.remat = remat.decoder.remat = policy
    assert any(equation.primitive.name.startswith("remat") for equation in _equations(loss_and_gradient, remat))
    expected_loss, expected = loss_and_gradient(model)
    loss, gradient = loss_and_gradient(remat)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_zeroes_its_share_and_scales_the_rest(key):
    x = jnp.ones((200, 500))
    dropped = np.asarray(dropout(x, 0.3, key))
    assert np.all((dropped == 0) | np.isclose(dropped, 1 / 0.7))
    assert abs(np.mean(dropped == 0) - 0.3) < 0.01  # seven standard deviations
    assert abs(dropped.mean() - 1) < 0.015
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, key) is x


def test_dropout_is_drawn_wherever_t5_has_it(key):
    """Dropout of embedded inputs, attention weights, sublayer outputs, feed-forward activations and stack outputs."""
    model = random_t5(dataclasses.replace(TINY, num_layers=1, num_decoder_layers=1, dropout_rate=0.1))
    tokens = lambda length: jnp.ones((3, length), jnp.int32)
    drawn = _equations(lambda key: model.hidden(tokens(8), tokens(5), key), key)
    masks = [equation.outvars[0].aval.shape for equation in drawn if equation.primitive.name == "random_bits"]
    of_stack = lambda length: [(3, length, 16)] * 2 + [(3, length, 16), (3, length, 24), (3, length, 16)]
    attention = [(3, 2, 8, 8), (3, 2, 5, 5), (3, 2, 5, 8)]  # encoder self-, decoder self- and cross-attention
    assert sorted(masks) == sorted([*of_stack(8), *of_stack(5), (3, 5, 16), *attention])


def test_dropout_of_the_model_follows_its_key(deep_t5, batch):
    first, second = jax.random.key(1), jax.random.key(2)
    without = logits_of(deep_t5, batch)
    np.testing.assert_array_equal(without, logits_of(deep_t5, batch))
    dropped = logits_of(deep_t5, batch, first)
    np.testing.assert_array_equal(dropped, logits_of(deep_t5, batch, first))
    for other in (without, logits_of(deep_t5, batch, second)):
        assert np.abs(dropped - other).max() > 0.1


def test_bfloat16_is_near_float32_and_returns_float32_logits(batch):
    model = random_t5(TINY, dtype=jnp.bfloat16)
    encoded, _ = jax.eval_shape(model.encode, batch["encoder_input_tokens"])
    assert encoded.dtype == jnp.bfloat16
    tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    products = [e for e in _equations(forward, model, *tokens) if e.primitive.name == "dot_general"]
    assert len(products) > 10
    assert {variable.aval.dtype for product in products for variable in product.invars} == {jnp.dtype(jnp.bfloat16)}
    logits = logits_of(model, batch)
    assert logits.dtype == np.float32
    exact = logits_of(random_t5(TINY), batch)
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("tied", [True, False])
def test_the_product_that_makes_logits_is_float32_in_a_pass_in_its_gradient_and_in_generation(tied, batch):
    model = random_t5(dataclasses.replace(TINY, tie_word_embeddings=tied), dtype=jnp.bfloat16)
    encoder, decoder = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    loss = jax.grad(lambda model: loss_sums(model, batch)[0], allow_int=True)
    for function, *tokens in (
        (lambda m, *x: m(*x), encoder, decoder),
        (lambda m: loss(m),),
        (lambda m, x: greedy(m, x, max_length=3).tokens, encoder),
    ):
        products = [e for e in _equations(function, model, *tokens) if e.primitive.name == "dot_general"]
        shapes = [(e, e.outvars[0].aval.shape) for e in products]
        of_logits = [e for e, shape in shapes if len(shape) == 3 and shape[-1] == TINY.vocab_size]
        assert of_logits
        assert {e.outvars[0].aval.dtype for e in of_logits} == {jnp.dtype(jnp.float32)}
        assert {v.aval.dtype for e in of_logits for v in e.invars} == {jnp.dtype(jnp.bfloat16)}


def test_a_large_logit_is_not_rounded_to_bfloat16():
    model = random_t5(TINY, dtype=jnp.bfloat16)
    x = jnp.full((1, 1, 16), 3.0, jnp.bfloat16)
    model.lm_head.kernel.set_value(jnp.full((16, 320), 2.921875))  # exact in bfloat16; the sum, 140.25, is not
    np.testing.assert_array_equal(model.logits(x), np.full((1, 1, 320), 140.25, np.float32))


def test_a_scale_acts_in_float32_and_is_rounded_once():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 16)), jnp.bfloat16)
    scale = jnp.full(16, 1.003)
    exact = np.asarray(x, np.float32) * np.float32(1.003)
    np.testing.assert_array_equal(rescaled(x, scale), exact.astype(jnp.bfloat16))
    assert (np.asarray(rescaled(x, scale)) != np.asarray(x)).mean() > 0.5
    by_hand = jax.grad(lambda *a: jnp.sum(jnp.sin(a[0] * a[1])), argnums=(0, 1))
    ours = jax.grad(lambda *a: jnp.sum(jnp.sin(rescaled(*a))), argnums=(0, 1))
    wide = x.astype(jnp.float32)
    for expected, found in zip(by_hand(wide, scale[None, None]), ours(wide, scale), strict=True):
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-6)
    of_x, of_scale = ours(x, scale)
    assert of_x.dtype == jnp.bfloat16 and of_scale.dtype == jnp.float32


@pytest.mark.parametrize(("trained", "products"), [((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_a_product_works_out_only_the_gradients_that_are_asked_for(trained, products):
    """One product forward and one per operand: plans count products as traced, before dead code is removed."""
    x, kernel = jnp.ones((3, 4, 8)), jnp.ones((8, 16))
    gradients = jax.grad(lambda *operands: product(*operands, jnp.float32).sum(), argnums=trained)
    found = [e for e in _equations(gradients, x, kernel) if e.primitive.name == "dot_general"]
    assert len(found) == products


def test_layers_of_one_structure_are_traced_once(batch, monkeypatch):
    model = random_t5(dataclasses.replace(TINY, num_layers=4, num_decoder_layers=4))
    arrange((model.encoder, model.decoder), scan=False)
    passes = []
    of_block = Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda self, *args: passes.append(self.decoder) or of_block(self, *args))
    block_program.cache_clear()
    for _ in range(2):
        model(batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    assert passes == [False, True]


def test_what_is_traced_under_one_placement_is_not_taken_for_another(batch):
    model, places = random_t5(TINY), []
    tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    model(*tokens)
    with placing(lambda x, kind: places.append(kind) or x):
        model(*tokens)
    assert "hidden" in places


def _equations(function, *args) -> list:
    """Every equation of a jaxpr, including those inside loops and calls."""
    found = []
    programs = [jax.make_jaxpr(function)(*args).jaxpr]
    while programs:
        for equation in programs.pop().eqns:
            found.append(equation)
            programs += _inner(equation.params)
    return found


def _inner(parameters: dict) -> list:
    """The jaxprs in an equation's parameters, single or in a tuple of branches."""
    values = [one for value in parameters.values() for one in (value if isinstance(value, tuple) else [value])]
    return [getattr(one, "jaxpr", one) for one in values if hasattr(getattr(one, "jaxpr", one), "eqns")]


def _bucket(relative: int, *, bidirectional: bool, num_buckets: int, max_distance: int) -> int:
    """The bucket of one relative position (key minus query), as in the code of Raffel et al."""
    bucket = 0
    if bidirectional:
        num_buckets //= 2
        bucket = num_buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = num_buckets // 2
    if distance < exact:
        return bucket + distance
    steps = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    # Rounding must not turn an exact whole number of steps into the next lower one.
    return bucket + min(exact + math.floor(steps + 1e-6), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_relative_position_buckets(bidirectional, num_buckets, max_distance):
    config = dataclasses.replace(
        TINY,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
        num_heads=1,
    )
    module = RelativeBias(config, bidirectional=bidirectional, rngs=nnx.Rngs(0))
    module.embedding.set_value(jnp.arange(num_buckets, dtype=jnp.float32)[:, None])  # the bias equals the bucket
    size = max_distance + 30
    sizes = {"bidirectional": bidirectional, "num_buckets": num_buckets, "max_distance": max_distance}
    expected = [[_bucket(key - query, **sizes) for key in range(size)] for query in range(size)]
    np.testing.assert_array_equal(module.bias(size, size)[0, 0], expected)


def test_parameters_of_the_released_xl():
    model = abstract(T5, RELEASED["google/flan-t5-xl"])
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 2_849_757_184


def test_a_row_of_padding_alone_stays_finite(tiny_t5):
    batch = make_batch(TINY, rows=2, enc_len=6, dec_len=3)
    batch["encoder_input_tokens"] = batch["encoder_input_tokens"].at[1].set(TINY.pad_token_id)
    assert np.all(np.isfinite(logits_of(tiny_t5, batch)))


@pytest.mark.parametrize("pad", [2, 1], ids=["unknown", "end"])
def test_a_token_of_an_input_that_pads_too_is_not_masked(pad):
    """The end of every input may also be the padding, and so may the unknown token."""
    rows = [np.array([7, 2, 9, 8, 1]), np.array([2, 5, 1])], [np.array([4, 1])] * 2
    found = []
    for config in (TINY, dataclasses.replace(TINY, pad_token_id=pad)):
        batch = T5_FAMILY.batch(*rows, (7, 2), batch_size=2, config=config)
        found.append(logits_of(random_t5(config), jax.tree.map(jnp.asarray, batch)))
    np.testing.assert_array_equal(*found)
