"""The independent plain implementation: against golden logits of `transformers`, and against the network."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jpeft.adapters.merge import probe_logits
from jpeft.model import t5_weights
from jpeft.model.abstract import abstract
from jpeft.model.plain import plain_logits
from jpeft.model.t5 import T5
from jpeft.model.t5_family import T5_FAMILY
from tests.conftest import TINY

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["tied_relu", "untied_gated", "tall_odd"])
def test_it_gives_the_golden_logits(name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    found = plain_logits(GOLDEN / name, expected["encoder_input_tokens"], expected["decoder_input_tokens"])
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("projection", ["gated-silu", "gelu"])
@pytest.mark.parametrize("scaled", [True, False])
def test_it_reads_every_layout_as_the_network_does(projection, scaled, tmp_path):
    config = dataclasses.replace(TINY, feed_forward_proj=projection, scale_decoder_outputs=scaled, pad_token_id=1)
    model = abstract(T5, config)
    draw = np.random.default_rng(0)
    random = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape).astype(np.float32) * 0.2, nnx.state(model))
    nnx.update(model, random)
    t5_weights.save(model, tmp_path)
    np.testing.assert_allclose(plain_logits(tmp_path, *T5_FAMILY.probe(config)), probe_logits(model), rtol=0, atol=1e-4)


def test_it_takes_an_embedding_of_a_stacks_own_where_the_loader_refuses_it(tmp_path):
    """It reads the files by itself and does not depend on the loader."""
    directory = GOLDEN / "tied_relu"
    stored = load_file(directory / "model.safetensors")
    tokens = T5_FAMILY.probe(t5_weights.read_config(directory))
    before = plain_logits(directory, *tokens)
    save_file(stored | {"encoder.embed_tokens.weight": stored["shared.weight"] * 2}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    assert np.abs(plain_logits(tmp_path, *tokens) - before).max() > 0.1
