"""Every method on decoder-only models: parameters, training, saving, merging and cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.adapters.files import OURS, PEFTS, layout_of, load_adapter, save_adapter
from jpeft.adapters.peft_layout import peft_lacks, read_peft
from jpeft.errors import RunFailed, UserError
from jpeft.leaves import named_leaves
from jpeft.model.decoder_config import RELEASED
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import abstract_model
from jpeft.peft.adalora import AdaLora
from jpeft.peft.adapter import BottleneckAdapter
from jpeft.peft.attaching import attach, count, split
from jpeft.peft.bitfit import BitFit
from jpeft.peft.counting import counts_of_the_paper, trainable_parameters
from jpeft.peft.dora import Dora
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.ln import NormTuning
from jpeft.peft.lora import Lora
from jpeft.peft.merging import merge
from jpeft.peft.methods import ablation_of
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from jpeft.peft.vera import Vera
from jpeft.train.optimizer import AdamW
from jpeft.train.schedule import constant
from jpeft.train.step import init_state, make_accumulate, make_update, zero_sums
from tests.conftest import slow_but
from tests.decoders import LLAMA, TINY_DECODERS, one_layer, random_decoder
from tests.peft.filled import filled

METHODS = {
    "full": Full(),
    "lora": Lora(),
    "lora_official": Lora.official(rank=3),
    "ia3": Ia3(),
    "ia3_official": Ia3.official(),
    "bitfit": BitFit(),
    "bitfit_official": BitFit.official(),
    "prompt": Prompt(prompt_length=6),
    "adapter": BottleneckAdapter(bottleneck=5),
    "prefix": Prefix(prefix_length=6),
    "ln": NormTuning(),
    "vera": Vera(rank=7),
    "dora": Dora(rank=3),
    "adalora": AdaLora(rank=2),
}
# Formulas for LLAMA: d = 16, queries 16 wide, keys and values 8, f = 24; 3 layers.
COUNTS = {
    "lora": 3 * (2 * 3 * (16 + 16) + 2 * 3 * (16 + 8)),  # rank 2 and two vectors, at q and o, and at k and v
    "lora_official": 3 * 3 * ((16 + 16) + (16 + 8)),
    "ia3": 3 * (2 * (16 + 8) + (16 + 24)),
    "ia3_official": 3 * (8 + 8 + 24),
    "bitfit": 3 * (16 + 8 + 8 + 16 + 24 + 24 + 16),  # Llama has no biases, so each map gets one
    "bitfit_official": 3 * (16 + 8 + 8 + 16 + 24 + 24 + 16) + (2 * 3 + 1) * 16,
    "prompt": 6 * 16,
    "dora": 3 * (3 * (16 + 16) + 16 + 2 * (3 * (16 + 8) + 8) + 2 * 3 * (16 + 24) + 24 + 16),
    "vera": 3 * (7 + 16 + 7 + 8),
    "ln": (2 * 3 + 1) * 16,
    "adapter": 3 * 2 * (2 * 16 * 5 + 5 + 16),
    "adalora": 3 * 3 * (2 * (16 + 16 + 1) + 2 * (16 + 8 + 1) + 3 * (16 + 24 + 1)),
    "prefix": 3 * 2 * 6 * 8,  # two heads of keys and values for four of queries
}
# The models' own biases, of linear maps and norms.
BIASES = {
    "EleutherAI/gpt-neo-125m": 74_496,
    "EleutherAI/gpt-neo-1.3B": 395_264,
    "EleutherAI/gpt-j-6b": 692_224,
    "bigscience/bloom-560m": 272_384,
    "bigscience/bloom-7b1": 1_359_872,
}
SMOLLM2 = abstract_model(RELEASED["HuggingFaceTB/SmolLM2-135M-Instruct"])


def batch_of(config, seed=0):
    draw = np.random.default_rng(seed)
    inputs, targets = (
        [draw.integers(3, config.vocab_size, n).astype(np.int32) for n in lengths] for lengths in ((7, 4, 6), (4, 2, 3))
    )
    return jax.tree.map(jnp.asarray, DECODER_FAMILY.batch(inputs, targets, (8, 4), batch_size=3, config=config))


@jax.jit
def logits(model, batch):
    return model.logits(model.hidden_of(batch))


def adapted(name, model, key, selection=None):
    return attach(model, METHODS[name], select(model, METHODS[name], selection or Selection()), key)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_equal_the_formulas(name, key):
    model = random_decoder(LLAMA)
    assert count(split(adapted(name, model, key))[1]) == COUNTS[name]


@pytest.mark.parametrize("name", BIASES)
def test_bitfit_trains_the_biases_that_there_are(name):
    model = abstract_model(RELEASED[name])
    assert trainable_parameters(model, BitFit.official()) == BIASES[name]
    chosen = select(model, BitFit())
    assert all(site.has_bias and site.kind == "linear" for site in chosen)


def test_smollm2_has_these_counts():
    """d_model 576, keys and values 192, d_ff 1536, 30 layers."""
    counted = {(row.method, row.ablation): row.parameters for row in counts_of_the_paper(SMOLLM2)}
    assert counted["full", None] == 134_515_008
    assert counted["lora", None] == 30 * (2 * 3 * (576 + 576) + 2 * 3 * (576 + 192))
    assert counted["lora", "drop_query_output"] == 30 * 2 * 3 * (576 + 192)
    assert counted["lora", "early"] == counted["lora", None] // 2
    assert counted["ia3", None] == 30 * (2 * (576 + 192) + 576 + 1536)
    assert counted["ia3", "drop_attention"] == 30 * (576 + 1536)
    assert counted["prompt", None] == 100 * 576
    assert not {("lora", "drop_cross_attention"), ("lora", "drop_self_attention")} & counted.keys()


@pytest.mark.parametrize("name", ["drop_cross_attention", "drop_self_attention"])
def test_an_ablation_without_a_counterpart_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"'{name}', which is for models with cross_attention, and a Decoder has none"):
        ablation_of(SMOLLM2, "lora", name)


@pytest.mark.parametrize("name", slow_but(("lora", "prompt"), METHODS))
def test_steps_lower_the_loss_and_move_every_leaf_but_none_of_the_base(name, key):
    """Also: all but a prompt start as a no-op, and a saved adapter is loaded unchanged."""
    model = random_decoder(one_layer(LLAMA))
    graphdef, adapter, base = split(adapted(name, model, key))
    before = jax.tree.map(np.array, (adapter, base))
    optimizer, batch = AdamW(), batch_of(LLAMA)
    accumulate, update = jax.jit(make_accumulate(graphdef)), jax.jit(make_update(optimizer))
    state, sums, losses = init_state(adapter, optimizer), zero_sums(adapter), []
    for step in range(6):
        sums = accumulate(sums, state.adapter, base, key, np.int32(step), np.int32(0), batch)
        state, sums, metrics = update(state, sums, constant(3e-2))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    after = named_leaves(nnx.merge(graphdef, state.adapter, base), Adapter)
    start = named_leaves(nnx.merge(graphdef, *before), Adapter)
    assert not [leaf for leaf in after if np.array_equal(after[leaf], start[leaf])]
    jax.tree.map(np.testing.assert_array_equal, before[1], base)


@pytest.mark.parametrize("kind", slow_but(("llama",), ["llama", "bloom"]))
@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_save_and_load_round_trips(name, kind, key, tmp_path):
    model, method = random_decoder(TINY_DECODERS[kind]), METHODS[name]
    tuned = filled(adapted(name, model, key), key)
    save_adapter(tuned, method, select(model, method), tmp_path, base_name="tiny")
    loaded, loaded_method, sites = load_adapter(tmp_path, model)
    assert type(loaded_method) is type(method) and sites == select(model, method)
    ours, theirs = named_leaves(tuned, Adapter), named_leaves(loaded, Adapter)
    assert list(ours) == list(theirs) and split(loaded)[0] == split(tuned)[0]
    for leaf, value in ours.items():
        np.testing.assert_array_equal(theirs[leaf], value)


@pytest.mark.parametrize("kind", slow_but(("llama",), ["llama", "bloom"]))
@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "ia3_official",
        "bitfit_official",
        "ln",
        "dora",
        "vera",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("lora_official", "ia3")),
    ],
)
def test_merged_weights_do_what_base_and_adapter_do(name, kind, key):
    config = TINY_DECODERS[kind] if name in ("bitfit_official", "vera") else one_layer(TINY_DECODERS[kind])
    model, batch = random_decoder(config), batch_of(config)
    tuned = filled(adapted(name, model, key), key)
    if name == "bitfit_official" and kind == "llama":
        with pytest.raises(UserError, match="(needs a bias, and the module has none|is no change of a weight)"):
            merge(tuned)
        return
    with jax.default_matmul_precision("highest"):
        together = logits(tuned, batch)
        assert np.abs(together - logits(model, batch)).max() > 1e-2
        np.testing.assert_allclose(logits(merge(tuned), batch), together, atol=1e-4)


def test_a_frozen_prefix_of_layers_is_a_segment_of_its_own(key):
    model = random_decoder(TINY_DECODERS["gpt_neo"])
    tuned = filled(adapted("lora", model, key, Selection(layers=[2])), key)
    assert tuned.decoder.layer_counts() == [2, 1]
    assert all("layers/2/" in name for name in named_leaves(tuned, Adapter))
    batch = batch_of(TINY_DECODERS["gpt_neo"])
    untouched = attach(model, METHODS["lora"], select(model, METHODS["lora"], Selection(layers=[2])), key)
    np.testing.assert_allclose(logits(untouched, batch), logits(model, batch), atol=1e-5)  # each layer keeps its window
    assert np.abs(logits(tuned, batch) - logits(model, batch)).max() > 1e-2


@pytest.mark.parametrize(
    "name", slow_but(("lora", "prefix"), ["lora", "ia3_official", "bitfit_official", "prompt", "prefix"])
)
def test_a_bfloat16_model_has_its_adapter_in_float32_and_feels_it(name, key):
    model = random_decoder(one_layer(LLAMA), dtype=jnp.bfloat16)
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    tuned, batch = adapted(name, model, key), batch_of(LLAMA)
    hidden = jax.eval_shape(lambda model: model.hidden_of(batch), tuned)
    assert hidden.dtype == jnp.bfloat16 and jax.eval_shape(logits, tuned, batch).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(split(tuned)[1])} == {jnp.dtype("float32")}


FUSED = r".*h\.0\.self_attention\.query_key_value"


def of_fused_map(leaves, seed=0):
    """PEFT's tensors for the fused map of the first layer of a BLOOM of width 24 with 6 heads."""
    draw = np.random.default_rng(seed)
    module = "base_model.model.transformer.h.0.self_attention.query_key_value"
    return {f"{module}.{leaf}": draw.standard_normal(shape, np.float32) for leaf, shape in leaves.items()}


def test_an_update_of_a_fused_map_is_one_of_each_of_its_three(key):
    """All three share A, and each has its own rows of B, which are ordered by head, then q, k and v."""
    model = random_decoder(TINY_DECODERS["bloom"])
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": FUSED}
    tensors = of_fused_map({"lora_A.weight": (2, 24), "lora_B.weight": (72, 2)})
    method, leaves, _ = read_peft(config, tensors, model, source="here")
    assert method.rank == 2 and len(leaves) == 6
    a, b = tensors.values()
    for third, name in enumerate(("q", "k", "v")):
        np.testing.assert_array_equal(leaves[f"decoder/layers/0/self_attention/{name}/lora_a"], a.T)
        rows = b.reshape(6, 3, 4, 2)[:, third].reshape(24, 2)
        np.testing.assert_array_equal(leaves[f"decoder/layers/0/self_attention/{name}/lora_b"], rows.T)


def test_vectors_of_a_fused_map_are_those_of_its_three():
    model = random_decoder(TINY_DECODERS["bloom"])
    config = {"peft_type": "IA3", "target_modules": FUSED, "feedforward_modules": []}
    tensors = of_fused_map({"ia3_l": (72, 1)})
    _, leaves, _ = read_peft(config, tensors, model, source="here")
    (vector,) = tensors.values()
    assert len(leaves) == 3
    for third, name in enumerate(("q", "k", "v")):
        own = vector.reshape(6, 3, 4)[:, third].reshape(24)
        np.testing.assert_array_equal(leaves[f"decoder/layers/0/self_attention/{name}/scale_out"], own)


def test_a_fused_map_of_another_base_is_one_line():
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": FUSED}
    tensors = of_fused_map({"lora_A.weight": (2, 24), "lora_B.weight": (48, 2)})
    with pytest.raises(RunFailed, match="query_key_value.lora_B.weight has shape .48, 2., too few rows for this base"):
        read_peft(config, tensors, random_decoder(TINY_DECODERS["bloom"]), source="here")


def test_updates_of_maps_that_are_one_in_files_are_kept_in_our_layout(key, tmp_path):
    model, method = random_decoder(TINY_DECODERS["bloom"]), Lora.official(rank=2)
    for names, layout in ((("q", "v"), OURS), (("o", "down"), PEFTS)):
        chosen = select(model, method, Selection(names=names))
        assert (peft_lacks(method, chosen, model) is None) == (layout == PEFTS)
        save_adapter(attach(model, method, chosen, key), method, chosen, tmp_path, base_name="tiny")
        assert layout_of(tmp_path) == layout
