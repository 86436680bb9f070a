"""Checkpoints in every format that releases come in, whole, damaged and of another model."""

import dataclasses
import json
import os
import shutil
import stat
import sys
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx, serialization, traverse_util
from safetensors.numpy import load_file, save_file

from jpeft.errors import RunFailed, UserError
from jpeft.files import write_whole
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights, weights
from jpeft.model.t5_config import T5Config
from tests.conftest import TINY, random_t5

TIED = dataclasses.replace(TINY, feed_forward_proj="relu", tie_word_embeddings=True, num_decoder_layers=3)
CONFIGS = {"gated-untied": TINY, "tied": TIED}


def values(model):
    return {name: np.asarray(value) for name, value in named_leaves(model, nnx.Param).items()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(params=CONFIGS)
def saved(request, tmp_path):
    """A model and the directory that it is saved in."""
    model = random_t5(CONFIGS[request.param], seed=5)
    t5_weights.save(model, tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.fixture
def directory(tmp_path):
    """A directory with a saved model of the `TINY` sizes."""
    t5_weights.save(random_t5(TINY, seed=5), tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(directory, change):
    """Saves the checkpoint's weights again after `change(weights)`."""
    path = directory / "model.safetensors"
    stored = load_file(path)
    change(stored)
    save_file(stored, path)


def as_msgpack(stored):
    """The weights as Flax names and turns them: `kernel`s are (in, out), tables are called `embedding`."""
    flat = {}
    for name, value in stored.items():
        *module, _ = name.split(".")
        if module[-1] in ("shared", "relative_attention_bias"):
            flat[(*module, "embedding")] = value
        elif module[-1].endswith("layer_norm"):
            flat[(*module, "weight")] = value
        else:
            flat[(*module, "kernel")] = np.ascontiguousarray(value.T)
    return serialization.msgpack_serialize(traverse_util.unflatten_dict(flat))


def test_a_saved_model_is_loaded_as_it_was(saved):
    model, directory = saved
    loaded = t5_weights.load(directory)
    assert loaded.config == model.config
    same(values(loaded), values(model))


def test_a_saved_model_has_the_names_and_orientation_of_transformers(saved):
    model, directory = saved
    stored = {name: value.shape for name, value in load_file(directory / "model.safetensors").items()}
    assert stored["shared.weight"] == (320, 16)
    assert stored["encoder.block.1.layer.0.SelfAttention.q.weight"] == (8, 16)  # (out, in)
    assert stored["decoder.block.0.layer.1.EncDecAttention.o.weight"] == (16, 8)
    assert stored["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (32, 2)
    assert stored["decoder.block.1.layer.2.layer_norm.weight"] == (16,)
    assert stored["encoder.final_layer_norm.weight"] == (16,)
    assert ("lm_head.weight" in stored) == (not model.config.tie_word_embeddings)
    gated = model.config.is_gated
    assert stored[f"encoder.block.0.layer.1.DenseReluDense.{'wi_1' if gated else 'wi'}.weight"] == (24, 16)
    assert len(stored) == len(values(model))
    kernel = values(model)["encoder/layers/1/self_attention/q/kernel"]
    stored_kernel = load_file(directory / "model.safetensors")["encoder.block.1.layer.0.SelfAttention.q.weight"]
    np.testing.assert_array_equal(stored_kernel, kernel.T)


def test_shards_with_an_index_are_the_same_model(saved):
    model, directory = saved
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(stored)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: stored[name] for name in part}, directory / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    same(values(t5_weights.load(directory)), values(model))


def test_a_flax_checkpoint_is_the_same_model(saved):
    model, directory = saved
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    (directory / "flax_model.msgpack").write_bytes(as_msgpack(stored))
    names: Any = traverse_util.flatten_dict(
        serialization.msgpack_restore((directory / "flax_model.msgpack").read_bytes()), sep="/"
    )
    assert names["encoder/block/0/layer/0/SelfAttention/q/kernel"].shape == (16, 8)
    assert {"shared/embedding", "encoder/block/0/layer/0/layer_norm/weight"} < set(names)
    same(values(t5_weights.load(directory)), values(model))


def test_bfloat16_weights_are_read_as_they_are_and_computed_with_in_the_dtype_asked_for(directory):
    exact = values(t5_weights.load(directory))
    t5_weights.save(t5_weights.load(directory), directory, dtype=jnp.bfloat16)
    assert {value.dtype for value in load_file(directory / "model.safetensors").values()} == {np.dtype("bfloat16")}
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in exact.items()}
    widened = t5_weights.load(directory)
    assert {str(value.dtype) for value in values(widened).values()} == {"float32"}
    same(values(widened), {name: value.astype(np.float32) for name, value in rounded.items()})
    narrow = t5_weights.load(directory, dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    same(values(narrow), rounded)


def test_weights_may_be_kept_in_another_dtype_than_they_are_computed_in(directory):
    model = t5_weights.load(directory, dtype=jnp.bfloat16, stored_dtype=jnp.float32)
    assert model.dtype == jnp.bfloat16
    same(values(model), values(t5_weights.load(directory)))


def test_the_dropout_rate_is_the_checkpoints_unless_one_is_given(directory):
    assert t5_weights.load(directory).config.dropout_rate == TINY.dropout_rate
    assert t5_weights.load(directory, dropout_rate=0.25).config.dropout_rate == 0.25


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "flax_model.msgpack", pytest.param("pytorch_model.bin", marks=pytest.mark.reference)],
)
@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1], ids=lambda keep: f"first {keep}")
def test_a_file_that_is_cut_short_is_one_line_that_names_it(directory, name, keep):
    stored = load_file(directory / "model.safetensors")
    whole = as_msgpack(stored) if name == "flax_model.msgpack" else (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(RunFailed, match=rf"{name} is damaged, or|{name} is damaged or cut short") as raised:
        t5_weights.load(directory)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack"])
def test_a_file_that_is_something_else_is_one_line_that_names_it(directory, name):
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 307867048\n")
    with pytest.raises(RunFailed, match=f"{name} is damaged") as raised:
        t5_weights.load(directory)
    assert "\n" not in str(raised.value)


def test_a_missing_weight_is_named(directory):
    rewrite(directory, lambda stored: stored.pop("encoder.block.1.layer.0.SelfAttention.k.weight"))
    with pytest.raises(
        UserError, match=r"lacks encoder.block.1.layer.0.SelfAttention.k.weight; the weights and config"
    ):
        t5_weights.load(directory)


def test_of_many_missing_weights_a_few_are_named(directory):
    def change(stored):
        for name in [name for name in stored if name.startswith("decoder.block.1")]:
            del stored[name]

    rewrite(directory, change)
    with pytest.raises(UserError, match=r"lacks decoder.block.1.*, .*, .* and 11 more; the weights and config.json"):
        t5_weights.load(directory)


def test_a_weight_that_has_no_place_is_named(directory):
    rewrite(directory, lambda stored: stored.update({"encoder.block.7.layer.0.layer_norm.weight": np.ones(16)}))
    with pytest.raises(UserError, match="a T5 has no place for: encoder.block.7.layer.0.layer_norm.weight"):
        t5_weights.load(directory)


def test_copies_of_the_embedding_and_the_bias_that_t5_never_used_may_be_there(directory):
    before = values(t5_weights.load(directory))

    def change(stored):
        for stack in ("encoder", "decoder"):
            stored[f"{stack}.embed_tokens.weight"] = stored["shared.weight"].copy()
        stored["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((32, 2), np.float32)

    rewrite(directory, change)
    same(values(t5_weights.load(directory)), before)


def test_an_embedding_that_is_stored_under_the_encoder_alone_is_found(directory):
    before = values(t5_weights.load(directory))
    rewrite(directory, lambda stored: stored.update({"encoder.embed_tokens.weight": stored.pop("shared.weight")}))
    same(values(t5_weights.load(directory)), before)


def test_a_weight_of_another_shape_is_named_with_both_shapes(directory):
    rewrite(directory, lambda stored: stored.update({"shared.weight": np.ones((319, 16), np.float32)}))
    with pytest.raises(UserError, match=r"shared.weight has shape \(319, 16\) where config.json asks for \(320, 16\)"):
        t5_weights.load(directory)


def test_a_head_that_the_file_does_not_hold_is_the_embedding_and_stays_it_when_saved(directory, tmp_path):
    rewrite(directory, lambda stored: stored.pop("lm_head.weight"))
    model = t5_weights.load(directory)
    assert model.config == dataclasses.replace(TINY, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert "lm_head/kernel" not in values(model)
    assert t5_weights.read_config(directory) == model.config
    t5_weights.save(model, tmp_path / "again")
    stored = load_file(tmp_path / "again/model.safetensors")
    np.testing.assert_array_equal(stored["lm_head.weight"], stored["shared.weight"])  # transformers 4 would scale
    again = t5_weights.load(tmp_path / "again")
    assert again.config == model.config
    same(values(again), values(model))


def test_a_tied_checkpoint_may_hold_its_head_all_the_same(tmp_path):
    t5_weights.save(random_t5(TIED, seed=5), tmp_path)
    rewrite(tmp_path, lambda stored: stored.update({"lm_head.weight": stored["shared.weight"].copy()}))
    model = t5_weights.load(tmp_path)
    assert "lm_head/kernel" not in values(model) and model.config == TIED == t5_weights.read_config(tmp_path)


def test_a_head_that_differs_from_the_embedding_counts_whatever_the_config_says(tmp_path):
    t5_weights.save(random_t5(TIED, seed=5), tmp_path)
    head = np.random.default_rng(0).standard_normal((320, 16)).astype(np.float32)
    rewrite(tmp_path, lambda stored: stored.update({"lm_head.weight": head}))
    model = t5_weights.load(tmp_path)
    np.testing.assert_array_equal(values(model)["lm_head/kernel"], head.T)
    assert model.config == dataclasses.replace(TIED, tie_word_embeddings=False, scale_decoder_outputs=True)
    assert t5_weights.read_config(tmp_path) == model.config
    t5_weights.save(model, tmp_path / "again")
    assert t5_weights.load(tmp_path / "again").config == model.config


def test_the_layout_says_what_logits_are():
    """Golden: scaled or not, by an own head or by the embedding, of the same decoder's output."""
    hidden = np.random.default_rng(1).standard_normal((1, 2, 16)).astype(np.float32)
    for tied in (True, False):
        for scaled in (True, False):
            config = dataclasses.replace(TINY, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
            model = random_t5(config, seed=2)
            table = model.shared.embedding[...].T if tied else model.lm_head.kernel[...]
            expected = (hidden * (0.25 if scaled else 1.0)) @ np.asarray(table)
            np.testing.assert_allclose(model.logits(jnp.asarray(hidden)), expected, atol=1e-5)


def test_an_mt5_is_never_scaled_and_its_head_is_what_the_file_holds(directory):
    config = {
        "model_type": "mt5",
        "tie_word_embeddings": True,
    }  # as transformers 5 writes it, without a word on scaling
    values_ = {k: v for k, v in TINY.to_dict().items() if k != "scale_decoder_outputs"} | config
    (directory / "config.json").write_text(json.dumps(values_))
    assert t5_weights.load(directory).config == TINY
    rewrite(directory, lambda stored: stored.pop("lm_head.weight"))
    tied = t5_weights.load(directory).config
    assert tied.tie_word_embeddings and not tied.scales_outputs


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_a_stack_with_an_embedding_of_its_own_is_refused(directory, name):
    def change(stored):
        stored[name] = stored["shared.weight"].copy()
        stored[name][-1, -1] += 1

    rewrite(directory, change)
    with pytest.raises(UserError, match=f"{name} differs from shared.weight; a T5 has one embedding for encoder and"):
        t5_weights.load(directory)


def test_a_head_that_is_all_there_is_is_the_embedding(tmp_path):
    model = random_t5(TIED, seed=5)
    t5_weights.save(model, tmp_path)
    rewrite(tmp_path, lambda stored: stored.update({"lm_head.weight": stored.pop("shared.weight")}))
    same(values(t5_weights.load(tmp_path)), values(model))


def test_a_weight_in_two_shards_is_refused(directory):
    shutil.copyfile(directory / "model.safetensors", directory / "model-00002-of-00002.safetensors")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError, match="is both in .*model-00001.* and in model-00002.*; which one counts"):
        t5_weights.load(directory)


@pytest.mark.parametrize(
    ("change", "activation", "gated"),
    [
        ({"dense_act_fn": "gelu"}, "gelu", True),  # counts before what `gated-gelu` means
        ({"is_gated_act": False, "dense_act_fn": "relu"}, "relu", False),
        ({"feed_forward_proj": "gated-swish", "dense_act_fn": "swish"}, "silu", True),
        ({"feed_forward_proj": "relu", "dense_act_fn": None, "is_gated_act": None}, "relu", False),
    ],
)
def test_gate_and_activation_are_read_as_transformers_reads_them(change, activation, gated):
    config = T5Config.from_dict({**TINY.to_dict(), **change})
    assert (config.activation, config.is_gated) == (activation, gated)
    assert T5Config.from_dict(config.to_dict()) == config


def test_files_are_for_whoever_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        t5_weights.save(random_t5(TIED, seed=5), tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}


def write_index(directory, index):
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize(
    "shard", ["../evil.safetensors", "/etc/passwd", "sub/evil.safetensors", 3, ["b"], "a\0b", "..", "", "x" * 999]
)
def test_an_index_that_leads_out_of_its_directory_is_refused(directory, shard):
    (directory.parent / "evil.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    write_index(directory, json.dumps({"weight_map": {"shared.weight": shard}}))
    with pytest.raises(UserError, match="a shard must be a file of the same directory"):
        t5_weights.load(directory)


def test_an_index_that_names_an_absent_shard_is_refused(directory):
    write_index(directory, json.dumps({"weight_map": {"shared.weight": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="names model-00002-of-00002.safetensors, which is not in .*download complete"):
        t5_weights.load(directory)


@pytest.mark.parametrize("index", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '"text"', "[" * 99999])
def test_a_damaged_index_is_one_line(directory, index):
    write_index(directory, index)
    with pytest.raises(RunFailed, match=r"index.json (is damaged: it has no 'weight_map'|is not|holds a|is nested)"):
        t5_weights.load(directory)


def test_a_directory_without_weights_is_told_what_was_looked_for(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights; looked for model.safetensors, flax_model.msgpack, pytorch_"):
        t5_weights.load(directory)


def test_pytorch_weights_without_pytorch_say_what_to_do(directory, monkeypatch):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="only where PyTorch is installed; install it, or save the model as"):
        t5_weights.load(directory)


def test_safetensors_are_taken_before_formats_that_are_slower_to_open(directory):
    for name in ("flax_model.msgpack", "pytorch_model.bin"):
        (directory / name).write_bytes(b"never read")
    t5_weights.load(directory)


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "result.json"
    with write_whole(path) as beside:
        beside.write_text("{}")
        assert not path.exists()
        assert beside.parent == tmp_path
    assert path.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_was_not_finished_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "result.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(OSError, match="disk full"):
        with write_whole(path) as beside:
            beside.write_text("half")
            raise OSError("disk full")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"result.json": "old"} if before else {})


def test_a_save_that_fails_leaves_the_earlier_checkpoint(directory, monkeypatch):
    before = (directory / "model.safetensors").read_bytes()

    def fail(stored, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        t5_weights.save(random_t5(TINY, seed=6), directory)
    assert (directory / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.reference
def test_pytorch_weights_are_the_same_model(saved):
    import torch

    model, directory = saved
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(value) for name, value in stored.items()}, directory / "pytorch_model.bin")
    same(values(t5_weights.load(directory)), values(model))


@pytest.mark.reference
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(directory, tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (directory / "model.safetensors").unlink()
    torch.save({"shared.weight": Evil()}, directory / "pytorch_model.bin")
    with pytest.raises(RunFailed, match="pytorch_model.bin is damaged, or holds more than plain weights"):
        t5_weights.load(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.int(),
        lambda weight: weight > 0,
        lambda weight: weight.cfloat(),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
    ],
    ids=["whole numbers", "true and false", "complex", "sparse", "without values"],
)
def test_pytorch_weights_of_another_kind_are_one_line(directory, change):
    torch = pytest.importorskip("torch")
    stored = {
        name: torch.from_numpy(value.copy()) for name, value in load_file(directory / "model.safetensors").items()
    }
    (directory / "model.safetensors").unlink()
    torch.save(stored | {"shared.weight": change(stored["shared.weight"])}, directory / "pytorch_model.bin")
    with pytest.raises((UserError, RunFailed)) as raised:
        t5_weights.load(directory)
    assert "\n" not in str(raised.value)


def test_a_pytorch_weight_in_two_shards_is_refused_and_one_that_was_trained_is_read(directory):
    torch = pytest.importorskip("torch")
    stored = {
        name: torch.from_numpy(value.copy()) for name, value in load_file(directory / "model.safetensors").items()
    }
    (directory / "model.safetensors").unlink()
    stored["shared.weight"] = torch.nn.Parameter(stored["shared.weight"])
    torch.save(stored, directory / "pytorch_model.bin")
    t5_weights.load(directory)
    (directory / "pytorch_model.bin").rename(directory / "a.bin")
    torch.save({"shared.weight": stored["shared.weight"] + 1}, directory / "b.bin")
    index = {"weight_map": dict.fromkeys(stored, "a.bin") | {"shared.weight": "b.bin"}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"shared.weight is there twice"):
        t5_weights.load(directory)
