"""GGUF files: the same weights and sizes as in Hugging Face's files, and damaged files from untrusted sources."""

import dataclasses
import random
import shutil
import struct
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from jpeft.errors import RunFailed, UserError
from jpeft.model import t5_weights, weight_files
from jpeft.model.family import family_in, load_model
from jpeft.model.gguf import GgufFile, gguf_in
from jpeft.model.gguf_weights import GgufWeights, gguf_config
from jpeft.model.settings import settings_of
from jpeft.model.source import INSTALLED, resolve
from jpeft.model.t5 import T5
from jpeft.model.tokenizer import Tokenizer
from tests.conftest import TINY
from tests.model.gguf_files import CHAT, HEADS, KV_HEADS, SPECIAL, byte_level, llama_weights, write_llama, write_t5


def whole(checkpoint, name):
    return checkpoint.read(name, tuple(slice(0, size) for size in checkpoint.shape(name)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Llama's file, and its weights by Hugging Face's names."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    values = llama_weights()
    write_llama(path, values)
    return path, values


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_have_the_names_and_the_order_of_rows_that_hugging_face_has(tmp_path, arch, tied):
    values = llama_weights(arch, tied=tied)
    write_llama(tmp_path / "a.gguf", values, arch=arch)
    found = GgufWeights(tmp_path / "a.gguf")
    assert found.names() == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(whole(found, name), value)
        assert found.shape(name) == value.shape


def test_a_part_of_a_weight_is_that_part_of_the_whole(made):
    path, values = made
    found = GgufWeights(path)
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        part = (slice(3, 11), slice(5, 20))
        np.testing.assert_array_equal(found.read(name, part), values[name][part])


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16", "BF16"])
def test_quantized_weights_are_the_numbers_that_the_quantization_has(tmp_path, kind):
    kind = GGMLQuantizationType[kind]
    values = llama_weights()
    write_llama(tmp_path / "a.gguf", values, kind=kind)
    found = GgufWeights(tmp_path / "a.gguf")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        expected = quants.dequantize(quants.quantize(values[name], kind), kind)
        np.testing.assert_array_equal(whole(found, name), expected)
        assert np.abs(whole(found, name) - values[name]).max() < 0.15
    assert found.stored_dtype == ("bfloat16" if kind.name == "BF16" else "float32")


def test_sizes_are_those_of_a_config_json(made):
    config = gguf_config(made[0])
    assert config["model_type"] == "llama"
    assert {key: config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")} == {
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": 8,
    }
    assert config["vocab_size"] == 320 and config["hidden_size"] == 32 and config["intermediate_size"] == 64
    assert config["num_hidden_layers"] == 2 and config["max_position_embeddings"] == 128
    assert config["rms_norm_eps"] == 1e-5 and config["rope_theta"] == 100_000.0
    assert config["tie_word_embeddings"] is True and config["eos_token_id"] == 2 and config["pad_token_id"] == 2


@pytest.mark.parametrize(
    "entries",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0},
        {"llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.factor": 0.0},
        {"llama.rope.scale_linear": 1.0},
    ],
)
def test_positions_that_are_not_scaled_need_no_scaling(tmp_path, entries):
    write_llama(tmp_path / "a.gguf", llama_weights(), entries=entries)
    assert "rope_scaling" not in gguf_config(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    "entries, scaling",
    [
        ({"llama.rope.scaling.factor": 8.0}, {"rope_type": "linear", "factor": 8}),  # llama.cpp's default type
        ({"llama.rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4}),  # its older key
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 64,
                "llama.rope.scaling.yarn_beta_fast": 16.0,
            },
            {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "beta_fast": 16},
        ),
    ],
)
def test_scaled_positions_are_those_of_the_file(tmp_path, entries, scaling):
    write_llama(tmp_path / "a.gguf", llama_weights(), entries=entries)
    assert gguf_config(tmp_path / "a.gguf")["rope_scaling"] == scaling
    assert load_model(tmp_path / "a.gguf").config.rotary_scaling.factor == scaling["factor"]


def test_frequencies_that_are_divided_as_in_llama_3_are_its_scaling(tmp_path):
    # Of the four feature pairs' frequencies two stay, one lies between the bounds, one is divided by the factor.
    turns = 8192 / (2 * np.pi) * 500_000.0 ** (-np.arange(0, 8, 2) / 8)
    kept = np.clip((turns - 1) / 3, 0, 1)
    assert 0 < kept[2] < 1 and list(kept[[0, 1, 3]]) == [1, 1, 0]
    divisors = (1 / (kept + (1 - kept) / 32)).astype(np.float32)
    path = tmp_path / "a.gguf"
    write_llama(path, llama_weights(), rotary_base=500_000.0, divisors=divisors)
    expected = {"rope_type": "llama3", "factor": 32, "low_freq_factor": 1, "high_freq_factor": 4}
    assert gguf_config(path)["rope_scaling"] == {**expected, "original_max_position_embeddings": 8192}
    frequencies = load_model(path).config.rotary_frequencies()
    np.testing.assert_allclose(frequencies, 500_000.0 ** (-np.arange(0, 8, 2) / 8) / divisors, rtol=1e-5)

    write_llama(path, llama_weights(), rotary_base=500_000.0, divisors=divisors * np.float32([1, 1, 1.01, 1]))
    with pytest.raises(UserError, match="divides rotary frequencies in another way than Llama 3.1 to 3.3"):
        gguf_config(path)
    write_llama(
        path,
        llama_weights(),
        rotary_base=500_000.0,
        divisors=divisors,
        entries={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
    )
    with pytest.raises(UserError, match="has both rope_freqs.weight and llama.rope.scaling"):
        gguf_config(path)


def test_factors_of_yarn_that_are_not_read_are_refused(tmp_path):
    entries = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    write_llama(tmp_path / "a.gguf", llama_weights(), entries=entries | {"llama.rope.scaling.attn_factor": 1.5})
    with pytest.raises(UserError, match="llama.rope.scaling.attn_factor, which jpeft does not read"):
        gguf_config(tmp_path / "a.gguf")


# --- untrusted files ---


def test_a_file_that_is_damaged_anywhere_is_one_line_or_read(made, tmp_path):
    raw, path = made[0].read_bytes(), tmp_path / "damaged.gguf"
    header = raw.index(b"token_embd.weight") + 1500
    draw = random.Random(0)
    for _ in range(120):
        data = bytearray(raw)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(header)] = draw.choice([0, 1, 255, draw.randrange(256)])
        path.write_bytes(data)
        try:
            file = GgufFile(path)
            for name in list(file.tensors)[:3]:
                file.read(name)
            GgufWeights(path)
            Tokenizer.load(path, vocab_size=320, eos_token_id=2, continues=True)
        except (UserError, RunFailed) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_one_line(made, tmp_path, share):
    raw = made[0].read_bytes()
    (tmp_path / "short.gguf").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises((RunFailed, UserError), match="cut short|is no GGUF file"):
        GgufFile(tmp_path / "short.gguf")


@pytest.mark.parametrize(
    "at, layout, value, said",
    [
        (0, "<4s", b"PK\3\4", "is no GGUF file"),
        (4, "<I", 1, "is a GGUF file, but of version 1; versions 2 and 3"),
        (4, ">I", 3, "is a GGUF file, but big-endian"),
        (8, "<Q", 2**60, "1,152,921,504,606,846,976 tensors; expected at most 65,536"),
        (16, "<Q", 2**60, "metadata entries; expected at most 65,536"),
        (24, "<Q", 2**62, "bytes of a key; expected at most 65,535"),
    ],
)
def test_numbers_of_a_header_are_held_against_what_can_be(made, tmp_path, at, layout, value, said):
    data = bytearray(made[0].read_bytes())
    struct.pack_into(layout, data, at, value)
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises((RunFailed, UserError), match=said):
        GgufFile(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("dimensions", 9, "has 9 dimensions"),
        ("rows", 2**50, "has the shape"),
        ("kind", 77, "has the type 77, which the installed gguf does not know"),
        ("offset", 2**40, "is cut short: token_embd.weight ends at byte"),
        ("offset", 33, "unaligned"),
    ],
)
def test_what_an_array_says_of_itself_is_held_against_the_file(made, tmp_path, field, value, said):
    data = bytearray(made[0].read_bytes())
    name = b"token_embd.weight"
    at = data.index(name) + len(name)  # dimensions u32, two sizes u64, kind u32, offset u64
    place, layout = {"dimensions": (0, "<I"), "rows": (12, "<Q"), "kind": (20, "<I"), "offset": (24, "<Q")}[field]
    struct.pack_into(layout, data, at + place, value)
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises((RunFailed, UserError), match=said):
        GgufFile(tmp_path / "x.gguf")


def test_arrays_that_share_bytes_are_refused(made, tmp_path):
    data = bytearray(made[0].read_bytes())
    name = b"output_norm.weight"
    struct.pack_into("<Q", data, data.index(name) + len(name) + 16, 0)  # where the first array begins
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(RunFailed, match="in another or unaligned"):
        GgufFile(tmp_path / "x.gguf")


def test_an_architecture_that_is_not_read_is_named(tmp_path):
    write_llama(tmp_path / "a.gguf", {}, arch="mamba")
    with pytest.raises(UserError, match="has the architecture mamba; expected one of llama, qwen2, qwen3, t5"):
        gguf_config(tmp_path / "a.gguf")


def test_arrays_that_have_no_place_are_named(tmp_path):
    values = llama_weights()
    write_llama(tmp_path / "a.gguf", values, arch="llama")
    data = (tmp_path / "a.gguf").read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(UserError, match=r"holds blk\.1\.ffn_xx\.weight, which is no weight of its architecture"):
        GgufWeights(tmp_path / "b.gguf")


def test_without_the_package_that_reads_them_one_line_says_what_to_install(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(UserError, match=r"need the package gguf, which is not installed; install it with: pip install"):
        GgufFile(made[0])


# --- names ---


def test_a_directory_with_one_such_file_and_no_config_is_that_file(made, tmp_path):
    shutil.copy(made[0], tmp_path / "one.gguf")
    assert resolve(str(tmp_path)) == tmp_path / "one.gguf" == resolve(str(tmp_path / "one.gguf"))
    assert gguf_in(tmp_path) == tmp_path / "one.gguf"
    shutil.copy(made[0], tmp_path / "two.gguf")
    with pytest.raises(UserError, match=r"holds 2 GGUF files, one\.gguf and two\.gguf among them; give the path of"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path


def test_a_model_in_a_package_that_is_not_installed_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(INSTALLED, "smollm2", INSTALLED["smollm2"].__class__("no-such-package", "x.gguf", "do this"))
    with pytest.raises(UserError, match=r"^model\.name 'smollm2' is in a package that is not installed: do this"):
        resolve("smollm2")
    assert INSTALLED["smollm2"].find() is None


def test_a_name_alone_brings_its_settings():
    settings = settings_of("smollm2")
    assert settings is not None and settings.file.parent.name == "smollm2"
    assert settings.for_method("lora", "paper")["train.learning_rate.warmup"] > 0


# --- T5 ---


@pytest.fixture(scope="module")
def t5_file(tmp_path_factory, deeper_checkpoint):
    """A T5's directory, and the same model as a GGUF file."""
    held = weight_files.open_checkpoint(deeper_checkpoint)
    values = {name: whole(held, name) for name in held.names()}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces += [("\u2581the", -2.5), ("\u2581goal", -3.0)]
    pieces += [(f"[PAD{number}]", -1000.0) for number in range(len(pieces), 320)]
    path = tmp_path_factory.mktemp("t5") / "t5.gguf"
    write_t5(path, values, TINY.to_dict(), pieces=pieces)
    return deeper_checkpoint, path


def test_a_t5_of_a_gguf_file_is_the_same_model(t5_file):
    directory, path = t5_file
    family = family_in(path)
    assert family.name == "T5"
    sizes = dataclasses.replace(family.read_config(path), dropout_rate=TINY.dropout_rate)  # not stored in the file
    assert sizes == t5_weights.read_config(directory)
    from jpeft.adapters.merge import probe_logits

    loaded, expected = t5_weights.load(path), t5_weights.load(directory)
    assert isinstance(loaded, T5)
    np.testing.assert_array_equal(probe_logits(loaded), probe_logits(expected))
    np.testing.assert_allclose(
        family.plain_logits(path, *family.probe(loaded.config)), probe_logits(expected), atol=1e-4
    )


def test_the_tokenizer_of_a_t5_has_its_pieces_and_sentinels(t5_file):
    tokenizer = Tokenizer.load(t5_file[1], vocab_size=320)
    assert tokenizer.encode(["the goal"], max_length=9).ids == [[30, 31, 1]]
    assert tokenizer.decode([[30, 31, 1]]) == ["the goal"]
    assert len(tokenizer.sentinels) == 100 and tokenizer.sentinels[0] == 32 + 99
    assert tokenizer.ids(["</s>"])[0] != [1]


# --- the tokenizer ---


def test_a_byte_level_tokenizer_is_the_one_that_was_written(made, tmp_path):
    tokenizer = Tokenizer.load(made[0], vocab_size=320, eos_token_id=2, continues=True)
    expected = byte_level()
    texts = ["the coach saw 1234 goals", " a  b\n\nc\t", "caf\u00e9 \U0001f642 na\u00efve", "don't", ""]
    assert tokenizer.ids(texts) == [expected.encode(text).ids for text in texts]
    assert tokenizer.decode(tokenizer.ids(texts)) == [text.strip() for text in texts]
    assert not {0, 1, 2} & set(tokenizer.ids([" ".join(SPECIAL)])[0])  # special tokens in a text are read as text
    assert tokenizer.special_names("a <|im_end|> b") == ["<|im_end|>"]
    assert tokenizer.unknown_token_id is None
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path, vocab_size=320, eos_token_id=2, continues=True)
    assert again.ids(texts) == tokenizer.ids(texts)
    assert again.wording == tokenizer.wording and again.wording.chat_template == CHAT


def test_a_way_of_splitting_text_that_is_not_known_is_refused_by_name(tmp_path):
    write_llama(tmp_path / "a.gguf", {}, pre="other")
    with pytest.raises(UserError, match="its pre-tokenizer is 'other'; expected one of gpt-2, "):
        Tokenizer.load(tmp_path / "a.gguf", continues=True)
