"""A quantized base gives the same results on four devices as on one, and is sharded like its kernels."""

import dataclasses

import jax
import numpy as np
import pytest

from jpeft.errors import UserError
from jpeft.mesh.layout import Layout
from jpeft.model import t5_weights
from jpeft.model.quantized import Quantization
from tests.conftest import make_batch, random_t5
from tests.model.test_quantized import KINDS, SMALL

HEADS = dataclasses.replace(SMALL, d_model=256, d_ff=256, num_heads=4, num_layers=1, num_decoder_layers=1)
MESHES = {"4x1": {"data": 4}, "1x4": {"model": 4}, "2x2": {"data": 2, "model": 2}, "fsdp": {"fsdp": 4}}
CASES = [(kind, mesh) for kind in ("int8", "double") for mesh in MESHES]


@pytest.mark.slow  # compiling for four devices takes seconds
@pytest.mark.parametrize(("kind", "mesh"), CASES)
def test_logits_on_four_devices_are_those_of_one(kind, mesh, tmp_path):
    t5_weights.save(random_t5(HEADS, seed=3), tmp_path)
    batch = make_batch(HEADS, rows=4, enc_len=8, dec_len=4)
    tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    logits = []
    for axes in ({}, MESHES[mesh]):
        layout = Layout.of_devices(**axes)
        model = t5_weights.load(tmp_path, quantization=KINDS[kind], place=layout.sharding_of)
        program = jax.jit(layout.traced(lambda model, *tokens: model(*tokens)))
        logits.append(np.asarray(program(model, *(jax.device_put(rows, layout.batch) for rows in tokens))))
    np.testing.assert_allclose(*logits, atol=2e-5)
    codes = model.encoder.segments[0].self_attention.q.codes[...]
    parts = MESHES[mesh].get("model", 1) * MESHES[mesh].get("fsdp", 1)
    assert np.prod(codes.sharding.shard_shape(codes.shape)) * parts == codes.size


def test_blocks_that_a_mesh_would_cut_are_refused_by_name(tmp_path):
    t5_weights.save(random_t5(dataclasses.replace(HEADS, d_model=192), seed=3), tmp_path)
    place = Layout.of_devices(fsdp=4).sharding_of
    with pytest.raises(UserError, match="k/absmax has a dimension of 3, which mesh.fsdp=4 does not divide"):
        t5_weights.load(tmp_path, quantization=Quantization("nf4"), place=place)
