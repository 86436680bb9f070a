"""Quantized checkpoints: saving and loading keeps the values; intact and damaged bitsandbytes files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed, UserError
from jpeft.leaves import Quantized, named_leaves
from jpeft.model import t5_weights, weight_files
from jpeft.model.decoder_weights import load
from jpeft.model.family import save_model
from jpeft.model.quantized import DYNAMIC, NF4, Quantization, is_quantized, quantization_of
from jpeft.model.stack import arrange
from jpeft.peft.merging import merge
from tests.conftest import make_batch, random_t5
from tests.decoders import TINY_DECODERS, one_layer, random_decoder
from tests.model.test_quantized import KINDS, SMALL, filled, widened

QUERY = "encoder.block.0.layer.0.SelfAttention.q"


def packed(model):
    return {name: np.asarray(value) for name, value in named_leaves(model, Quantized).items()}


def wide(model):
    return {name: np.asarray(value) for name, value in named_leaves(widened(model), nnx.Param).items()}


def same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **tolerance)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original")
    t5_weights.save(random_t5(SMALL, seed=3), path)
    return path


@pytest.fixture(scope="module")
def saved(original, tmp_path_factory):
    """Directories of the quantized model, by kind."""
    made = {}
    for kind, quantization in KINDS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        save_model(t5_weights.load(original, quantization=quantization), made[kind])
    return made


# Unstacking layers compiles a program per shape: only one kind runs in the default suite.
SOME = [pytest.param(kind, marks=[] if kind == "double" else [pytest.mark.slow]) for kind in KINDS]


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.slow
def test_what_is_saved_in_few_bits_is_opened_as_it_was(kind, original, saved):
    before, after = t5_weights.load(original, quantization=KINDS[kind]), t5_weights.load(saved[kind])
    assert packed(before)
    same(packed(before), packed(after), rtol=0)
    same(wide(before), wide(after), rtol=0)
    asked = t5_weights.load(saved[kind], quantization=KINDS[kind])  # already quantized that way
    same(packed(before), packed(asked), rtol=0)
    said = json.loads((saved[kind] / "config.json").read_text())["quantization_config"]
    assert said["load_in_8bit"] == (kind == "int8") and said["llm_int8_skip_modules"] == ["lm_head"]
    size = (saved[kind] / "model.safetensors").stat().st_size
    assert size < (original / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize("kind", SOME)
def test_none_makes_a_file_in_few_bits_wide(kind, saved):
    model = t5_weights.load(saved[kind], quantization=Quantization("none"))
    assert not is_quantized(model)
    same(wide(t5_weights.load(saved[kind])), wide(model), atol=1e-6)


def test_other_bits_than_the_files_are_not_made_of_them(saved):
    with pytest.raises(UserError, match="is in int8, and nf4 is asked for"):
        t5_weights.load(saved["int8"], quantization=Quantization("nf4"))
    with pytest.raises(UserError, match="is in nf4, and nf4,double is asked for"):
        t5_weights.load(saved["nf4"], quantization=KINDS["double"])
    with pytest.raises(UserError, match="is in nf4,double, and nf4 is asked for"):
        t5_weights.load(saved["double"], quantization=KINDS["nf4"])


def by_definition(kernel: np.ndarray, name: str, kind: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The file entries of one kernel `[out, in]` by the definition of bitsandbytes, and its dequantized values."""
    if kind == "int8":
        largest = np.abs(kernel).max(axis=1)
        codes = np.round(kernel * (127 / largest)[:, None]).astype(np.int8)
        tensors = {f"{name}.weight": codes, f"{name}.SCB": largest, f"{name}.weight_format": np.zeros((), np.uint8)}
        return tensors, codes * (largest / 127)[:, None]
    blocks = kernel.reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1)
    codes = np.abs(blocks[..., None] / absmax[:, None, None] - NF4).argmin(axis=-1).reshape(-1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(kernel.shape)}
    tensors = {f"{name}.weight": (codes[::2] * 16 + codes[1::2]).astype(np.uint8).reshape(-1, 1)}
    tensors[f"{name}.weight.quant_map"] = NF4
    if kind == "double":
        mean = absmax.mean()
        outer = np.stack([np.abs(part).max() for part in np.split(absmax - mean, range(256, len(absmax), 256))])
        scaled = (absmax - mean) / np.repeat(outer, 256)[: len(absmax)]
        inner = np.abs(scaled[:, None] - DYNAMIC).argmin(axis=1)
        absmax = DYNAMIC[inner] * np.repeat(outer, 256)[: len(absmax)] + mean
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(mean)}
        tensors |= {f"{name}.weight.absmax": inner.astype(np.uint8), f"{name}.weight.nested_absmax": outer}
        tensors[f"{name}.weight.nested_quant_map"] = DYNAMIC
    else:
        tensors[f"{name}.weight.absmax"] = absmax
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f"{name}.weight.quant_state.bitsandbytes__nf4"] = text
    return tensors, (NF4[codes].reshape(-1, 64) * absmax[:, None]).reshape(kernel.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_written_by_the_formats_definition_holds_its_numbers(kind, original, tmp_path):
    stored = load_file(original / "model.safetensors")
    numbers = {}
    for name in [name for name in stored if name.endswith(("Attention.q.weight", "wi_1.weight"))]:
        tensors, numbers[name] = by_definition(stored.pop(name), name.removesuffix(".weight"), kind)
        stored |= tensors
    save_file({name: np.array(value, order="C") for name, value in stored.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((original / "config.json").read_bytes())
    model = t5_weights.load(tmp_path)
    assert {name.split("/")[-2] for name in packed(model)} == {"q", "wi_1"}  # the rest is not quantized, as in the file
    asked = t5_weights.load(tmp_path, quantization=KINDS[kind])  # layers left unquantized stay so, except wo
    assert {name.split("/")[-2] for name in packed(asked)} == {"q", "wi_1", "wo"}
    kernels = wide(model)
    for layer in range(2):
        kernel = kernels[f"encoder/layers/{layer}/self_attention/q/kernel"]
        right = numbers[f"encoder.block.{layer}.layer.0.SelfAttention.q.weight"]
        np.testing.assert_allclose(kernel, right.T, atol=1e-6)


def _state(**changed):
    def change(tensors):
        name = f"{QUERY}.weight.quant_state.bitsandbytes__nf4"
        state = json.loads(tensors[name].tobytes()) | changed
        tensors[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)

    return change


def _set(part, value):
    return lambda tensors: tensors.update({f"{QUERY}.{part}": value(tensors[f"{QUERY}.{part}"])})


def _cut(part):
    return _set(part, lambda tensor: tensor[:-1].copy())


DAMAGES = {
    "int8 magnitudes": ("int8", _cut("SCB"), RunFailed, "does not have one scale for each output"),
    "int8 infinite": ("int8", _set("SCB", lambda x: x * np.inf), RunFailed, "negative, infinite or non-float scale"),
    "int8 below 0": ("int8", _set("SCB", lambda x: -x), RunFailed, "negative, infinite or non-float scale"),
    "int8 too large": (
        "int8",
        _set("SCB", lambda x: x.astype(np.float64) * 1e200),
        RunFailed,
        "infinite or non-float scale",
    ),
    "int8 of other bits": ("int8", _set("weight", lambda x: x.astype(np.int16)), RunFailed, "is of int16"),
    "int8 alone": ("int8", lambda tensors: tensors.pop(f"{QUERY}.weight"), RunFailed, "scales but no weight"),
    "by columns": (
        "int8",
        lambda t: t.update({f"{QUERY}.weight_format": np.ones((), np.uint8)}),
        UserError,
        "not row-major",
    ),
    "nf4 codes": ("nf4", _cut("weight"), RunFailed, "lacks weight with 8,192 numbers"),
    "nf4 magnitudes": ("nf4", _cut("weight.absmax"), RunFailed, "lacks weight.absmax with 256"),
    "nf4 table": (
        "nf4",
        _set("weight.quant_map", lambda x: x * 0.5),
        UserError,
        "a weight.quant_map that is not nf4.s",
    ),
    "nf4 NaN": ("nf4", _set("weight.absmax", lambda x: x * np.nan), RunFailed, "negative, infinite or non-float scale"),
    "nf4 sizes": ("nf4", _state(shape=[128, -128]), RunFailed, "no valid shape or quant_type"),
    "nf4 huge": ("nf4", _state(shape=[2**30, 2**30]), RunFailed, "lacks weight with"),
    "nf4 blocks": ("nf4", _state(blocksize=128), UserError, "blocks of 128"),
    "nf4 over rows": ("nf4", _state(shape=[512, 32]), UserError, "no multiple of 64"),
    "double mean": ("double", _state(nested_offset=None), RunFailed, "nested_offset of .* is no finite float32"),
    "double true": ("double", _state(nested_offset=True), RunFailed, "nested_offset of .* is no finite float32"),
    "double endless": ("double", _state(nested_offset=10**400), RunFailed, "nested_offset of .* is no finite float32"),
    "double too large": ("double", _state(nested_offset=1e300), RunFailed, "nested_offset of .* is no finite float32"),
    "double table": (
        "double",
        _set("weight.nested_quant_map", lambda x: x[::-1].copy()),
        UserError,
        "that is not nf4.s",
    ),
    "one layer": (
        "nf4",
        lambda tensors: (
            [tensors.pop(n) for n in list(tensors) if n.startswith(QUERY)]
            and tensors.update({f"{QUERY}.weight": np.zeros((128, 128), np.float32)})
        ),
        UserError,
        "other layers",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line(damage, saved, tmp_path):
    kind, change, error, says = DAMAGES[damage]
    tensors = load_file(saved[kind] / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved[kind] / "config.json").read_bytes())
    with pytest.raises(error, match=says) as raised:
        t5_weights.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_bytes_may_be_stored_as_other_numbers(dtype, saved, tmp_path):
    """As with `quant_storage`; a tensor with the right number of elements but another size in bytes is damaged."""
    tensors = load_file(saved["nf4"] / "model.safetensors")
    as_numbers = {
        name: value.reshape(-1).view(jnp.dtype(dtype)).reshape(-1, 1) if f"{name}.quant_map" in tensors else value
        for name, value in tensors.items()
    }
    (tmp_path / "config.json").write_bytes((saved["nf4"] / "config.json").read_bytes())
    save_file(as_numbers, tmp_path / "model.safetensors")
    expected, found = (packed(t5_weights.load(directory)) for directory in (saved["nf4"], tmp_path))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    name = next(name for name in tensors if f"{name}.quant_map" in tensors)
    save_file({**tensors, name: tensors[name].astype(jnp.dtype(dtype))}, tmp_path / "model.safetensors")
    with pytest.raises(RunFailed, match="bytes; expected"):
        t5_weights.load(tmp_path)


def test_other_four_bits_are_refused_by_name(saved, tmp_path):
    tensors = load_file(saved["nf4"] / "model.safetensors")
    name = f"{QUERY}.weight.quant_state.bitsandbytes__"
    tensors[f"{name}fp4"] = tensors.pop(f"{name}nf4")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved["nf4"] / "config.json").read_bytes())
    with pytest.raises(UserError, match="is in fp4; of the 4-bit formats nf4 is read"):
        t5_weights.load(tmp_path)


@pytest.mark.parametrize("kind", ["int8", "double"])
def test_a_fused_map_in_few_bits_is_read_as_three_and_not_written(kind, tmp_path):
    sizes = dict(d_model=64, d_ff=256, d_head=16, num_heads=4, num_kv_heads=4)  # nf4 has blocks of 64
    model = random_decoder(one_layer(dataclasses.replace(TINY_DECODERS["bloom"], **sizes)))
    save_model(model, tmp_path / "wide")
    stored = load_file(tmp_path / "wide/model.safetensors")
    name = next(name for name in stored if name.endswith("h.0.self_attention.query_key_value.weight"))
    numbers = {}
    for layer in range(model.config.num_layers):
        module = name.replace("h.0", f"h.{layer}").removesuffix(".weight")
        tensors, right = by_definition(stored.pop(f"{module}.weight"), module, kind)
        stored |= tensors
        numbers[f"{module}.weight"] = right.astype(np.float32)
    (tmp_path / "few").mkdir()
    save_file(stored, tmp_path / "few/model.safetensors")
    (tmp_path / "few/config.json").write_bytes((tmp_path / "wide/config.json").read_bytes())
    save_file(
        {n: v for n, v in stored.items() if n.endswith(("weight", "bias"))} | numbers,
        tmp_path / "wide/model.safetensors",
    )
    opened = load(tmp_path / "few", quantization=dataclasses.replace(KINDS[kind], wo=False))
    assert {name.split("/")[-2] for name in packed(opened)} == set("qkv")
    same(wide(opened), wide(load(tmp_path / "wide")), atol=1e-6)
    with pytest.raises(UserError, match="queries, keys and values fused in its files"):
        save_model(opened, tmp_path / "again")
    assert jnp.isfinite(opened.shared.embedding[...]).all()


@pytest.mark.slow
def test_a_base_in_few_bits_is_merged_with_its_adapter_into_wide_weights(original):
    model = filled(t5_weights.load(original, quantization=Quantization("int8")))
    merged = merge(model)
    assert not is_quantized(merged) and is_quantized(model)
    arrange((model.encoder, model.decoder), scan=True)
    inputs = make_batch(SMALL, rows=2, enc_len=8, dec_len=4)
    tokens = inputs["encoder_input_tokens"], inputs["decoder_input_tokens"]
    logits = jax.jit(lambda model: model(*tokens))
    np.testing.assert_allclose(logits(model), logits(merged), atol=1e-4)


@pytest.mark.parametrize(
    ("run", "here", "says"),
    [
        ("nf4,double", "nf4,double", None),
        ("nf4,double", None, "was tuned with its base in nf4,double, and answers with it wide: answers may differ"),
        ("auto", "int8", "was tuned with its base wide, and answers with it in int8: answers may differ"),
        ("int8", "nf4", "was tuned with its base in int8, and answers with it in nf4: answers may differ"),
        ("auto", None, None),
        ("none", None, None),
    ],
)
def test_a_task_of_a_base_in_other_bits_says_so(run, here, says):
    said = TaskOfRun("{text}?", quantization=run).in_other_bits(here)
    assert said is None if says is None else said is not None and said.startswith(says)


@pytest.mark.parametrize("text", ["int8", "nf4", "nf4,double", "nf4,double,wo"])
def test_how_a_model_is_kept_is_told_of_the_model_and_of_its_files(text, original, tmp_path):
    model = t5_weights.load(original, quantization=Quantization.parse(text))
    assert quantization_of(model) == text and quantization_of(t5_weights.load(original)) is None
    save_model(model, tmp_path)
    assert str(weight_files.quantization_in(tmp_path)) == text
    assert weight_files.quantization_in(original) is None and weight_files.quantization_in(tmp_path / "nothing") is None
