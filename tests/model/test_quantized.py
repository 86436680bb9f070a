"""Layers in 8 and 4 bits: their values, products and gradients, and that no step materialises a dequantized kernel."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.errors import RunFailed, UserError
from jpeft.eval.labels import packed_log_probs
from jpeft.eval.loss import loss_sums
from jpeft.leaves import Quantized, named_leaves, num_weights
from jpeft.model import t5_weights
from jpeft.model.decode import greedy
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.decoder_weights import load_tensors, stored
from jpeft.model.quantized import (
    DYNAMIC,
    NF4,
    Form,
    Quantization,
    QuantizedLinear,
    dequantized,
    dequantized_absmax,
    is_quantized,
    nf4_values,
    quantize,
    quantize_absmax,
    quantized_product,
)
from jpeft.model.stack import arrange
from jpeft.model.t5_config import T5Config
from jpeft.model.weight_files import InMemory
from jpeft.peft.attaching import attach, split
from jpeft.peft.full import Full
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.plan.program_text import Text
from tests.conftest import make_batch, random_t5
from tests.decoders import LLAMA
from tests.peft.test_laws import METHODS

# Its kernels all have one size; activations, tables and adapters are smaller.
SMALL = T5Config(
    vocab_size=96,
    d_model=128,
    d_kv=64,
    d_ff=128,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    dropout_rate=0.0,
)
MAP = 128 * 128
KINDS = {"int8": Quantization("int8", wo=True), "nf4": Quantization("nf4", wo=True)}
KINDS |= {"double": Quantization("nf4", double=True, wo=True)}


def kernel_of(d_in: int, d_out: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(d_in, d_out)).astype(np.float32)


def on_device(leaves):
    return {name: jnp.asarray(leaf) for name, leaf in leaves.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    t5_weights.save(random_t5(SMALL, seed=3), path)
    return path


# --- values ---


def test_int8_is_off_by_half_a_step_at_most_and_keeps_the_largest():
    kernel, form = kernel_of(48, 10), Form("int8", 48, 10, "in")
    kernel[:, 3] = 0  # a channel of zeros has no scale
    leaves = quantize(kernel, form)
    again = np.asarray(dequantized(form, on_device(leaves)))
    step = np.abs(kernel).max(axis=0) / 127
    assert (np.abs(again - kernel) <= 0.5001 * step).all() and not again[:, 3].any()
    assert np.abs(leaves["codes"]).max(axis=0)[[0, 9]].tolist() == [127, 127]
    tiny = quantize(np.array([[1e-38], [0], [-1e-38], [5e-39]], np.float32), Form("int8", 4, 1, "in"))
    assert tiny["codes"][:, 0].tolist() == [127, 0, -127, 64]  # although 127 / largest overflows float32
    second = quantize(again, form)  # quantizing twice changes nothing
    np.testing.assert_array_equal(second["codes"], leaves["codes"])


@pytest.mark.parametrize("d_in", [128, 96, 10])  # whole blocks, a short last block, a single short block
def test_nf4_is_the_nearest_of_sixteen_values_times_its_blocks_magnitude(d_in):
    kernel, form = kernel_of(d_in, 6), Form("nf4", d_in, 6, "in")
    leaves = quantize(kernel, form)
    assert leaves["codes"].shape == (d_in // 2, 6) and leaves["absmax"].shape == (-(-d_in // 64), 6)
    again = np.asarray(dequantized(form, on_device(leaves)))
    for start in range(0, d_in, 64):
        block = kernel[start : start + 64]
        largest = np.abs(block).max(axis=0)
        candidates = NF4[:, None, None] * largest
        best = np.abs(candidates - block).min(axis=0)
        np.testing.assert_allclose(np.abs(again[start : start + 64] - block), best, atol=1e-6)


def test_the_first_input_of_a_byte_is_in_its_upper_half():
    kernel = np.zeros((64, 1), np.float32)
    kernel[0], kernel[1] = 1.0, -1.0
    assert quantize(kernel, Form("nf4", 64, 1, "in"))["codes"][0, 0] == (15 << 4 | 0)


def test_values_chosen_by_bits_are_those_of_the_table():
    np.testing.assert_array_equal(nf4_values(jnp.arange(16, dtype=jnp.uint8)), NF4)
    assert len(DYNAMIC) == 256 and (np.diff(DYNAMIC) > 0).all() and DYNAMIC[-1] == 1 and 0 in DYNAMIC


def test_magnitudes_in_8_bits_lie_in_blocks_of_256_along_the_inputs_around_their_mean():
    form = Form("nf4", 192, 100, "in", double=True)  # 300 magnitudes: two blocks, the second one short
    absmax = np.abs(kernel_of(3, 100)) + 1
    leaves = quantize_absmax(absmax)
    assert leaves["outer_absmax"].shape == (2,)
    flat = absmax.T.reshape(-1) - absmax.mean()
    np.testing.assert_allclose(leaves["outer_absmax"], [np.abs(flat[:256]).max(), np.abs(flat[256:]).max()], rtol=1e-5)
    again = np.asarray(dequantized_absmax(form, on_device({"codes": np.zeros(1), **leaves})))
    assert np.abs(again - absmax).max() < 0.02 * np.abs(flat).max()
    assert np.abs(again - absmax).max() > 0


def test_what_cannot_be_kept_so_is_refused():
    with pytest.raises(UserError, match="packs two inputs into a byte, and here has 7"):
        quantize(kernel_of(7, 4), Form("nf4", 7, 4, "in"), "here")
    for kind in ("int8", "nf4"):
        broken = kernel_of(64, 4)
        broken[5, 2] = np.nan
        with pytest.raises(RunFailed, match="here holds NaN or infinity"):
            quantize(broken, Form(kind, 64, 4, "in"), "here")


@pytest.mark.parametrize("text", ["int8", "nf4", "nf4,double", "nf4,double,wo", "int8,wo", "none"])
def test_a_quantization_in_words_is_read_back(text):
    assert str(Quantization.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("int4", "expected one of auto, none, int8, nf4"),
        ("int8,double", "double quantization is for nf4"),
        ("none,wo", "the quantization is none"),
        ("auto,double", "model.quantization is not; set that, too"),
        ("nf4,head", "optionally followed by"),
    ],
)
def test_a_quantization_that_cannot_be_meant_is_refused(text, why):
    with pytest.raises(UserError, match=why):
        Quantization.parse(text)


# --- the product ---

FORMS = [
    Form("int8", 96, 64, "in"),
    Form("int8", 96, 64, "out"),
    Form("nf4", 192, 64, "in"),
    Form("nf4", 96, 64, "in"),  # no whole blocks: tiled along the other dimension
    Form("nf4", 192, 63, "out", double=True),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradient_are_those_of_the_dequantized_map(form, dtype):
    leaves = on_device(quantize(kernel_of(form.d_in, form.d_out), form))
    side, count = form.tiles()
    assert count >= 2 and (side == form.tiled or form.d_in % 64)
    x = jnp.asarray(kernel_of(5, form.d_in, seed=1), dtype)
    by = jnp.asarray(kernel_of(5, form.d_out, seed=2), dtype)

    def of(x):
        return quantized_product(form, x.dtype, jnp.dtype(dtype), x, leaves)

    wide = np.asarray(dequantized(form, leaves), np.float64)
    y, back = jax.vjp(of, x)
    assert y.dtype == x.dtype and back(by)[0].dtype == x.dtype
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    for made, right in ((y, np.asarray(x, np.float64) @ wide), (back(by)[0], np.asarray(by, np.float64) @ wide.T)):
        np.testing.assert_allclose(np.asarray(made, np.float64), right, atol=tolerance * np.abs(right).max())


@pytest.mark.parametrize("d_in", [2, 62, 64, 66, 130])
@pytest.mark.parametrize("double", [False, True])
def test_a_map_with_one_output_is_one_tile_where_its_inputs_are_no_blocks(d_in, double):
    form = Form("nf4", d_in, 1, "in", double)
    leaves = on_device(quantize(kernel_of(d_in, 1), form))
    x, wide = kernel_of(3, d_in, seed=1), np.asarray(dequantized(form, leaves))
    y, back = jax.vjp(lambda x: quantized_product(form, x.dtype, x.dtype, x, leaves), jnp.asarray(x))
    np.testing.assert_allclose(y, x @ wide, atol=1e-5)
    np.testing.assert_allclose(back(jnp.ones((3, 1)))[0], np.ones((3, 1)) @ wide.T, atol=1e-5)


# --- a model ---


def lora_of(model):
    method = Lora(rank=2)
    return attach(model, method, select(model, method), jax.random.key(1))


def filled(model):
    """LoRA on a model, with every leaf nonzero."""
    return moved(lora_of(model), start=0.0)


def moved(model, *, start: float = 1.0):
    """A model whose trainable leaves are `start` times their values plus small deterministic numbers.

    They are small because with large activations the order of summation changes more than the last bits.
    """
    graphdef, adapter, base = split(model)
    wave = lambda leaf: 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: start * leaf + wave(leaf), adapter), base)


def widened(model):
    """The same model with its quantized layers dequantized."""
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, QuantizedLinear):
            module.widen(module.dequantized())
    return model


def loss_and_gradient(model, batch):
    graphdef, adapter, base = split(model)

    def loss(adapter, base):
        total, tokens = loss_sums(nnx.merge(graphdef, adapter, base), batch)
        return total / tokens

    return jax.jit(jax.value_and_grad(loss)), (adapter, base)


def wide_arrays(text: str, least: int) -> list[str]:
    """Floating-point arrays of at least `least` elements that a compiled program materialises outside fusions."""
    parsed = Text.of(text)
    found = []
    for name in parsed.repeats:
        for instruction in parsed.computations.get(name, {}).values():
            if instruction.operation in ("parameter", "get-tuple-element", "tuple", "while", "call", "conditional"):
                continue
            for kind, sizes in re.findall(r"\b(f32|bf16|f16|f64)\[([\d,]*)\]", instruction.shape):
                if math.prod(int(size) for size in sizes.split(",") if size) >= least:
                    found.append(f"{instruction.operation} {kind}[{sizes}]")
    return found


CASES = [("double", True, "none"), ("int8", True, "none"), ("nf4", True, "none")]
CASES += [(kind, scan, remat) for kind in ("int8", "nf4") for scan, remat in ((False, "none"), (True, "block"))]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scan", "remat"), CASES)
def test_lora_on_few_bits_is_lora_on_their_numbers_and_no_wide_map_is_made(kind, scan, remat, directory):
    batch = make_batch(SMALL, rows=2, enc_len=8, dec_len=4)
    model = t5_weights.load(directory, quantization=KINDS[kind])
    assert is_quantized(model) and not is_quantized(widened(model))
    results, memory, texts = [], [], []
    for base in (model, widened(model)):
        arrange((base.encoder, base.decoder), scan=scan, remat=remat)
        program, trees = loss_and_gradient(filled(base), batch)
        compiled = program.lower(*trees).compile()
        texts.append(compiled.as_text())
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(program(*trees))
    (loss, gradient), (loss_of_wide, gradient_of_wide) = results
    np.testing.assert_allclose(loss, loss_of_wide, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_of_wide), strict=True):
        assert float(jnp.abs(other).max()) > 0
        np.testing.assert_allclose(one, other, atol=2e-4 * float(jnp.abs(other).max()))
    assert wide_arrays(texts[0], MAP) == []
    assert wide_arrays(texts[1], MAP) or not scan  # the search finds such arrays where they exist
    if scan:
        assert memory[0] < memory[1]


# DoRA's norms and PiSSA's initialisation need the whole dequantized kernel.
ASKS_FOR_THE_MAP = ("dora", "lora_pissa")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_every_method_on_few_bits_is_as_on_their_numbers(name, directory):
    batch, key = make_batch(SMALL, rows=2, enc_len=8, dec_len=4), jax.random.key(0)
    model, method = t5_weights.load(directory, quantization=KINDS["double"]), METHODS[name]
    results, texts = [], []
    for base in (model, widened(model)):
        arrange((base.encoder, base.decoder), scan=True, remat="none")
        tuned = attach(base, method, select(base, method), key)
        program, trees = loss_and_gradient(moved(tuned), batch)
        texts.append(program.lower(*trees).compile().as_text())
        results.append(program(*trees))
    (loss, gradient), (loss_of_wide, gradient_of_wide) = results
    np.testing.assert_allclose(loss, loss_of_wide, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient_of_wide))
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_of_wide), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * max(float(jnp.abs(other).max()), 1e-3 * largest))
    assert (wide_arrays(texts[0], MAP) == []) or name in ASKS_FOR_THE_MAP


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_scores_are_those_of_the_dequantized_weights(kind, directory):
    model = t5_weights.load(directory, quantization=KINDS[kind])
    tokens = make_batch(SMALL, rows=2, enc_len=8, dec_len=4, seed=5)["encoder_input_tokens"]
    labels = jnp.asarray([[0, 7, 9, 0, 8, 11]] * 2), jnp.asarray([[7, 9, 1, 8, 11, 1]] * 2)
    segments = jnp.asarray([[0, 0, 0, 1, 1, 1]] * 2)
    found = []
    for base in (model, widened(model)):
        base = filled(base)
        answers = jax.jit(lambda base: greedy(base, tokens, max_length=6).tokens)(base)
        scores = jax.jit(lambda base: packed_log_probs(base, tokens, *labels, segments, num_labels=2))(base)
        found.append((answers, scores))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)


def test_what_is_quantized_and_what_stays(directory):
    model = t5_weights.load(directory, quantization=Quantization("nf4"), dtype=jnp.bfloat16)
    kept = {name.split("/", 3)[-1] for name in named_leaves(model, Quantized)}
    assert {name.rpartition("/")[2] for name in kept} == {"codes", "absmax"}
    maps = {name.rpartition("/")[0] for name in kept}
    assert maps == {f"{part}_attention/{name}" for part in ("self", "cross") for name in "qkvo"} | {
        "feed_forward/wi_0",
        "feed_forward/wi_1",
    }
    assert num_weights(model) == num_weights(t5_weights.load(directory))
    whole = t5_weights.load(directory, quantization=Quantization("nf4", wo=True))
    assert num_weights(whole) == num_weights(model)
    assert any(name.endswith("wo/codes") for name in named_leaves(whole, Quantized))


def test_full_tuning_of_few_bits_is_refused(directory):
    model = t5_weights.load(directory, quantization=Quantization("int8"))
    with pytest.raises(UserError, match="attention/. is kept in 8 or 4 bits, which do not train"):
        attach(model, Full(), select(model, Full()), jax.random.key(0))


def test_a_decoder_has_all_maps_in_few_bits_and_no_wo():
    config = dataclasses.replace(LLAMA, d_model=64, d_ff=64)
    tensors = InMemory(tensors_of(DECODER_FAMILY.build(config, dtype=jnp.float32)))
    model = load_tensors(config, tensors, source="here", quantization=Quantization("int8"))
    maps = {name.split("/", 3)[-1].rpartition("/")[0] for name in named_leaves(model, Quantized)}
    assert maps == {f"self_attention/{name}" for name in "qkvo"} | {f"feed_forward/{n}" for n in ("gate", "up", "down")}
    with pytest.raises(UserError, match="a Decoder has no wo"):
        load_tensors(config, tensors, source="here", quantization=Quantization("int8", wo=True))


def tensors_of(model):
    """A decoder's weights by their names in checkpoint files."""
    found = {}
    for name, value in named_leaves(model, nnx.Param).items():
        at = stored(model.config, name)
        found[at.name] = np.asarray(value).T if at.transposed else np.asarray(value)
    return found
