"""Saved models, for tests of weight files and of loading a T5."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
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
    """A model and the directory that it was saved to."""
    model = random_t5(CONFIGS[request.param], seed=5)
    t5_weights.save(model, tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.fixture
def directory(tmp_path):
    """A directory with a saved model of the `TINY` sizes."""
    t5_weights.save(random_t5(TINY, seed=5), tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(directory, change):
    """Rewrite the checkpoint's weights after `change(weights)`."""
    path = directory / "model.safetensors"
    stored = load_file(path)
    change(stored)
    save_file(stored, path)
