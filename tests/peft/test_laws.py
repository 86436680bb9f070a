"""Laws of every PEFT method. A new method adds one line to `METHODS` here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jpeft
from jpeft.adapters.files import load_adapter, save_adapter
from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.eval.loss import loss_sums, make_loss
from jpeft.leaves import named_leaves
from jpeft.mesh.layout import Layout
from jpeft.model.t5 import T5
from jpeft.peft.adalora import AdaLora
from jpeft.peft.adapter import BottleneckAdapter
from jpeft.peft.attaching import attach, count, split
from jpeft.peft.bitfit import BitFit
from jpeft.peft.dora import Dora
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.ln import NormTuning
from jpeft.peft.lora import Lora
from jpeft.peft.methods import METHODS as METHODS_BY_NAME
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from jpeft.peft.vera import Vera
from jpeft.program import Program
from jpeft.train.optimizer import AdamW
from jpeft.train.schedule import constant
from jpeft.train.session import Session
from jpeft.train.setup import set_up
from jpeft.train.step import init_state, make_accumulate, make_update, zero_sums
from tests.conftest import ONE_LAYER, TINY, make_batch, random_t5, slow_but, spec
from tests.own_method import RankOne
from tests.peft.filled import filled

METHODS = {
    "full": Full(),
    "lora": Lora(),
    "lora_official": Lora.official(rank=3),
    "lora_rank_stabilized": Lora.official(rank=4, rank_stabilized=True),
    "lora_pissa": Lora.official(rank=4, init="pissa"),
    "ia3": Ia3(),
    "ia3_official": Ia3.official(),
    "bitfit": BitFit(),
    "bitfit_official": BitFit.official(),
    "prompt": Prompt(prompt_length=6),
    "prompt_uniform": Prompt(prompt_length=6, init="uniform"),
    "adapter": BottleneckAdapter(bottleneck=5),
    "adapter_pfeiffer": BottleneckAdapter(bottleneck=5, placement="pfeiffer", activation="relu"),
    "prefix": Prefix(prefix_length=6),
    "prefix_normal": Prefix(prefix_length=6, init="normal"),
    "prefix_network": Prefix.official(prefix_length=6, projection=5),
    "ln": NormTuning(),
    "dora": Dora(rank=3),
    "adalora": AdaLora(rank=2),
    "vera": Vera(rank=7),
    "rank_one": RankOne(),  # from examples/, as a user would add it
}
# Formulas for TINY: d = d_model 16, h = num_heads * d_kv 8, f = d_ff 24; 6 attentions, 4 feed-forwards.
COUNTS = {
    "full": 2 * 320 * 16 + 2 * 32 * 2 + 6 * 4 * 16 * 8 + 4 * 3 * 16 * 24 + (2 * 2 + 2 * 3 + 2) * 16,
    "lora": 6 * 4 * (2 * (16 + 8) + (16 + 8)),
    "lora_official": 6 * 2 * 3 * (16 + 8),
    "lora_rank_stabilized": 6 * 2 * 4 * (16 + 8),
    "lora_pissa": 6 * 2 * 4 * (16 + 8),
    "ia3": 6 * 2 * (16 + 8) + 4 * (16 + 24),
    "ia3_official": 6 * 2 * 8 + 4 * 24,
    "bitfit": 6 * (3 * 8 + 16) + 4 * (2 * 24 + 16),
    "bitfit_official": 6 * (3 * 8 + 16) + 4 * (2 * 24 + 16) + (2 * 2 + 2 * 3 + 2) * 16,
    "prompt": 6 * 16,
    "prompt_uniform": 6 * 16,
    "adapter": (6 + 4) * (2 * 16 * 5 + 5 + 16),
    "adapter_pfeiffer": 4 * (2 * 16 * 5 + 5 + 16),
    "prefix": 6 * 2 * 6 * 8,
    "prefix_normal": 6 * 2 * 6 * 8,
    "prefix_network": 6 * (6 * 16 + 16 * 5 + 5 + 2 * (5 * 8 + 8)),
    "ln": (2 * 2 + 2 * 3 + 2) * 16,
    "dora": 6 * 3 * (3 * (16 + 8) + 8) + 4 * (2 * 3 * (16 + 24) + 24 + 16),
    "adalora": 3 * (6 * 4 * (16 + 8 + 1) + 4 * 3 * (16 + 24 + 1)),  # starts with a rank of 3
    "vera": 6 * 2 * (7 + 8),
    "rank_one": 6 * 2 * (16 + 8),
}
each_method = pytest.mark.parametrize("name", METHODS)
# Laws that compile a step: the default suite has one method of each kind, the slow tests the others.
each_method_but_mostly_slow = pytest.mark.parametrize("name", slow_but(("lora", "bitfit", "prompt"), METHODS))


@pytest.fixture(autouse=True)
def rank_one_is_a_method(monkeypatch):
    monkeypatch.setitem(METHODS_BY_NAME, "rank_one", RankOne)


adding_methods = pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])


def adapted(name: str, model: T5, key, selection=None) -> T5:
    method = METHODS[name]
    return attach(model, method, select(model, method, selection or Selection()), key)


@jax.jit
def logits(model: T5, batch):
    return model(batch["encoder_input_tokens"], batch["decoder_input_tokens"])


@pytest.mark.parametrize(
    "name",
    slow_but(
        ("full", "lora", "ia3", "bitfit", "lora_pissa", "adapter", "dora"),
        [name for name in METHODS if not name.startswith(("prompt", "prefix"))],
    ),
)
def test_first_forward_pass_is_the_base_models(name, batch, key):
    base = random_t5(ONE_LAYER)
    off = 1e-5 if name == "dora" else 0  # the column norms are computed in two programs, with other summation orders
    np.testing.assert_allclose(logits(adapted(name, base, key), batch), logits(base, batch), rtol=0, atol=off)


def test_first_forward_pass_of_a_prompt_is_the_base_models_on_the_text_that_it_was_copied_from(tiny_t5, batch, key):
    model = adapted("prompt", tiny_t5, key)
    prompt = named_leaves(model, Adapter)["encoder_input/prompt"]
    table = tiny_t5.shared.embedding[...]
    pieces = jnp.argmin(jnp.sum((prompt[:, None] - table[None]) ** 2, axis=-1), axis=-1)
    assert len(set(pieces.tolist())) == 6 and min(pieces.tolist()) > 2  # distinct, and without special tokens
    rows = batch["encoder_input_tokens"]
    prefixed = jnp.concatenate([jnp.tile(pieces[None], (rows.shape[0], 1)), rows], axis=1)
    np.testing.assert_allclose(
        logits(model, batch), logits(tiny_t5, {**batch, "encoder_input_tokens": prefixed}), atol=1e-5
    )


@each_method
def test_a_filled_adapter_changes_what_the_model_says(name, batch, key):
    base = random_t5(ONE_LAYER)
    model = filled(adapted(name, base, key), key)
    assert np.abs(logits(model, batch) - logits(base, batch)).max() > 1e-2


@pytest.mark.parametrize("name", slow_but(("lora", "ia3"), METHODS))
def test_a_small_change_of_any_leaf_is_felt_in_bfloat16(name, batch, key):
    """Near 1, where scales start, bfloat16 has steps of 0.8 %; an update at a usual learning rate must not be lost."""
    model = filled(adapted(name, random_t5(ONE_LAYER, dtype=jnp.bfloat16), key), key)
    graphdef, adapter, base = split(model)

    def at_its_start(path, leaf):
        return jnp.ones_like(leaf) if "scale" in jax.tree_util.keystr(path) else leaf

    leaves, structure = jax.tree.flatten(jax.tree_util.tree_map_with_path(at_its_start, adapter))
    said = jax.jit(lambda leaves: logits(nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), base), batch))
    before = np.asarray(said(leaves))
    for i, leaf in enumerate(leaves):
        assert (np.asarray(said([*leaves[:i], leaf * 1.003, *leaves[i + 1 :]])) != before).any(), i


@each_method
def test_trainable_parameters_equal_the_formula(name, tiny_t5, key):
    adapter = jax.eval_shape(lambda: split(adapted(name, tiny_t5, key))[1])
    assert count(adapter) == COUNTS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}


@adding_methods
def test_no_leaf_is_an_array_of_the_base(name, tiny_t5, key):
    """Training donates the buffers of trainable leaves."""
    _, adapter, base = split(adapted(name, tiny_t5, key))
    pointers = [{leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)} for tree in (adapter, base)]
    assert not pointers[0] & pointers[1]


@each_method_but_mostly_slow
def test_three_steps_move_every_adapter_leaf_and_no_base_leaf(name, tiny_t5, key):
    """Also: the optimizer has two moments per adapter leaf and nothing for the base, and no step recompiles."""
    graphdef, adapter, base = split(adapted(name, tiny_t5, key))
    before = jax.tree.map(np.array, (adapter, base))
    optimizer = AdamW(weight_decay=0.01, clip_grad_norm=1.0)
    state, sums = init_state(adapter, optimizer), zero_sums(adapter)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(adapter)])

    traces, function = 0, make_accumulate(graphdef)

    @functools.wraps(function)  # keeps the name, so that the cached program serves the next test, too
    def counted(*args):
        nonlocal traces
        traces += 1
        return function(*args)

    accumulate, update = jax.jit(counted), jax.jit(make_update(optimizer))
    for step in range(3):
        for micro in range(2):
            data = make_batch(TINY, rows=3, enc_len=8, dec_len=5, seed=2 * step + micro)
            sums = accumulate(sums, state.adapter, base, key, np.int32(step), np.int32(micro), data)
        state, sums, metrics = update(state, sums, constant(1e-2))
        assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert traces == 1

    after = named_leaves(nnx.merge(graphdef, state.adapter, base), Adapter)
    start = named_leaves(nnx.merge(graphdef, *before), Adapter)
    unmoved = [leaf for leaf in after if np.array_equal(after[leaf], start[leaf])]
    assert not unmoved
    jax.tree.map(np.testing.assert_array_equal, before[1], base)


@pytest.mark.parametrize("name", slow_but(("lora",), METHODS))
def test_training_lowers_the_loss(name, batch, key):
    graphdef, adapter, base = split(adapted(name, random_t5(ONE_LAYER), key))
    optimizer = AdamW()
    state, sums = init_state(adapter, optimizer), zero_sums(adapter)
    accumulate, update, loss = (
        jax.jit(make_accumulate(graphdef)),
        jax.jit(make_update(optimizer)),
        jax.jit(make_loss(graphdef)),
    )
    first = loss(adapter, base, batch)[0]
    for step in range(12):
        sums = accumulate(sums, state.adapter, base, key, np.int32(step), np.int32(0), batch)
        state, sums, _ = update(state, sums, constant(3e-2))
    assert loss(state.adapter, base, batch)[0] < 0.97 * first


@adding_methods
def test_save_and_load_round_trips(name, tiny_t5, batch, key, tmp_path):
    method = METHODS[name]
    model = filled(adapted(name, tiny_t5, key), key)
    save_adapter(model, method, select(tiny_t5, method), tmp_path, base_name="tiny")
    loaded, loaded_method, sites = load_adapter(tmp_path, tiny_t5)
    assert type(loaded_method) is type(method) and sites == select(tiny_t5, method)
    if name in ("prefix_network", "lora_pissa"):  # saved without its network; saved as a LoRA of twice the rank
        np.testing.assert_allclose(logits(loaded, batch), logits(model, batch), atol=1e-5)
        return
    assert split(loaded)[0] == split(model)[0]  # scales, seeds, activations and other static attributes
    jax.tree.map(np.testing.assert_array_equal, split(loaded)[1], split(model)[1])


@pytest.mark.parametrize("name", slow_but(("lora", "prompt"), METHODS))
def test_a_bfloat16_base_keeps_its_adapter_in_float32(name, batch, key):
    model = random_t5(ONE_LAYER, dtype=jnp.bfloat16)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(model, nnx.Param))
    nnx.update(model, half)
    graphdef, adapter, base = split(adapted(name, model, key))
    grads = jax.jit(jax.grad(lambda a: loss_sums(nnx.merge(graphdef, a, base), batch)[0]))(adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["lora", "ia3", "bitfit"])
def test_initial_values_do_not_depend_on_which_layers_are_chosen(name, tiny_t5, key):
    later = named_leaves(adapted(name, tiny_t5, key, Selection(layers={"encoder": [1], "decoder": [1]})), Adapter)
    everywhere = named_leaves(adapted(name, tiny_t5, key), Adapter)
    assert set(later) == {leaf for leaf in everywhere if "/layers/1/" in leaf}
    for leaf, value in later.items():
        np.testing.assert_array_equal(value, everywhere[leaf])


def test_lora_tree(tiny_t5, key):
    method = Lora(rank=2)
    chosen = select(tiny_t5, method, Selection(stacks=["encoder"], names=["q"]))
    site = "encoder/segments/0/self_attention/q/adapter"
    assert spec(split(attach(tiny_t5, method, chosen, key))[1]) == {
        f"{site}/lora_a": "f32[2,16,2]",
        f"{site}/lora_b": "f32[2,2,8]",
        f"{site}/scale_in": "f32[2,16]",
        f"{site}/scale_out": "f32[2,8]",
    }


def test_pissa_begins_by_the_principal_part_of_each_map_and_is_kept_as_a_lora_of_twice_the_rank(tiny_t5, key, tmp_path):
    method = METHODS["lora_pissa"]
    model = adapted("lora_pissa", tiny_t5, key)
    leaves, path = named_leaves(model, Adapter), "decoder/layers/1/self_attention/q"
    kernel = np.asarray(named_leaves(tiny_t5, nnx.Param)[f"{path}/kernel"])
    left = kernel - method.scale * leaves[f"{path}/lora_a"] @ leaves[f"{path}/lora_b"]
    values = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(left, compute_uv=False)[:4], values[4:], atol=1e-5)
    assert values[3] > 10 * 1e-5  # the initial update is not negligible
    save_adapter(model, method, select(tiny_t5, method), tmp_path, base_name="tiny")
    assert load_adapter(tmp_path, tiny_t5)[1] == Lora.official(rank=8, alpha=32.0)


def test_attaching_leaves_the_model_that_it_was_given_as_it_was(tiny_t5, batch, key):
    before = logits(tiny_t5, batch)
    adapted("lora", tiny_t5, key, Selection(layers={"encoder": [1], "decoder": [0]}))
    assert len(tiny_t5.encoder.segments) == 1 and not jax.tree.leaves(nnx.state(tiny_t5, Adapter))
    np.testing.assert_array_equal(logits(tiny_t5, batch), before)


@pytest.mark.slow
def test_gradients_of_micro_batches_add_up_to_those_of_the_whole_batch(key):
    graphdef, adapter, base = split(adapted("lora", random_t5(ONE_LAYER), key))
    whole = make_batch(TINY, rows=6, enc_len=8, dec_len=5)
    halves = [jax.tree.map(lambda x, rows=rows: x[rows], whole) for rows in (slice(0, 2), slice(2, 6))]
    optimizer = AdamW()
    accumulate, update = jax.jit(make_accumulate(graphdef)), jax.jit(make_update(optimizer))

    def step(batches):
        sums = zero_sums(adapter)
        for micro, data in enumerate(batches):
            sums = accumulate(sums, adapter, base, key, np.int32(0), np.int32(micro), data)
        return update(init_state(adapter, optimizer), sums, constant(1e-2))

    (_, _, at_once), (_, _, in_parts) = step([whole]), step(halves)
    for metric in ("loss", "grad_norm"):
        np.testing.assert_allclose(in_parts[metric], at_once[metric], rtol=1e-5)


@pytest.mark.slow
def test_padding_rows_change_neither_loss_nor_gradient(batch, key):
    graphdef, adapter, base = split(adapted("lora", random_t5(ONE_LAYER), key))
    padded = {name: jnp.concatenate([value, jnp.zeros_like(value)]) for name, value in batch.items()}

    @jax.jit
    @jax.value_and_grad
    def loss(adapter, data):
        total, tokens = loss_sums(nnx.merge(graphdef, adapter, base), data)
        return total / tokens

    value, grads = loss(adapter, batch)
    padded_value, padded_grads = loss(adapter, padded)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), padded_grads, grads)


def test_a_program_compiles_once_per_shape(tiny_t5, key):
    graphdef, adapter, base = split(adapted("ia3", tiny_t5, key))
    program = Program(make_loss(graphdef))
    for enc_len in (8, 8, 16, 8, 16):
        program(adapter, base, make_batch(TINY, rows=3, enc_len=enc_len, dec_len=5))
    assert program.num_shapes == 2 and program.compile_seconds > 0


NUMBERS = [
    (name, key, field.name)
    for name, method in METHODS_BY_NAME.items()
    for key, option in method.options.items()
    for field in dataclasses.fields(method)
    if field.name == option and field.type is float
]


@pytest.mark.parametrize(("name", "key", "field"), NUMBERS, ids=[f"{name} {key}" for name, key, _ in NUMBERS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_option_that_is_no_finite_number_is_refused(name, key, field, value):
    with pytest.raises(UserError, match=f"method.{key} (is )?{value}"):
        METHODS_BY_NAME[name](**{field: value})


def test_that_holds_of_lora_however_it_begins():
    assert {("lora", "alpha", "alpha"), ("dora", "b_rate_ratio", "b_rate_ratio")} <= set(NUMBERS)
    for init in ("plain", "pissa", "loftq"):
        with pytest.raises(UserError, match="method.alpha is nan; expected"):
            Lora.official(alpha=float("nan"), init=init)


def test_a_scale_of_zero_by_which_nothing_trains_is_refused_where_something_is_to_train(tiny_t5):
    says = "method.alpha is 0, by which the update is multiplied: nothing would train"
    with pytest.raises(UserError, match=says):
        jpeft.attach(tiny_t5, Lora.official(alpha=0.0))
    run = Run.from_config({"method": {"name": "lora", "reading": "official", "alpha": 0.0}})
    with pytest.raises(UserError, match=says):
        set_up(run, Session(), Layout.of_devices())
    jpeft.attach(tiny_t5, METHODS_BY_NAME["dora"](alpha=0.0))  # the magnitudes train
    jpeft.attach(tiny_t5, Lora(alpha=0.0))  # the scaling vectors train
