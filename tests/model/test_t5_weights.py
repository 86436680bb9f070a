"""Loading and saving T5: names, tied and untied output layers, dtypes, and weights of another model."""

import dataclasses
import json
import os
import stat

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.errors import UserError
from jpeft.model import t5_weights, weights
from jpeft.model.t5_config import T5Config
from tests.conftest import TINY, random_t5
from tests.model.conftest import TIED, rewrite, same, values


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
    """Logits of the same decoder output: scaled or not, with an untied output layer or the embedding."""
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
    }  # as written by transformers 5, without a key for scaling
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


@pytest.mark.parametrize(
    ("change", "activation", "gated"),
    [
        ({"dense_act_fn": "gelu"}, "gelu", True),  # takes precedence over the meaning of `gated-gelu`
        ({"is_gated_act": False, "dense_act_fn": "relu"}, "relu", False),
        ({"feed_forward_proj": "gated-swish", "dense_act_fn": "swish"}, "silu", True),
        ({"feed_forward_proj": "relu", "dense_act_fn": None, "is_gated_act": None}, "relu", False),
    ],
)
def test_gate_and_activation_are_read_as_transformers_reads_them(change, activation, gated):
    config = T5Config.from_dict({**TINY.to_dict(), **change})
    assert (config.activation, config.is_gated) == (activation, gated)
    assert T5Config.from_dict(config.to_dict()) == config


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


def test_files_are_for_whoever_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        t5_weights.save(random_t5(TIED, seed=5), tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}
