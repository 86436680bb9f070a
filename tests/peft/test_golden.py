"""Comparison with outputs of PyTorch and Hugging Face PEFT for the same weights (`tests/golden/make_golden.py`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jpeft.adapters.files import load_adapter
from jpeft.adapters.peft_layout import peft_tensors
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.peft.attaching import split
from jpeft.peft.variables import Adapter

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("tied_relu", "untied_gated", "tall_odd")
ADAPTERS = ("lora", "ia3", "prompt")


# The default suite has each architecture and each method once; the other pairs are slow tests.
QUICK = set(zip(MODELS, ADAPTERS, strict=True))
PAIRS = [
    pytest.param((model, adapter), marks=[] if (model, adapter) in QUICK else pytest.mark.slow, id=f"{model}-{adapter}")
    for model in MODELS
    for adapter in ADAPTERS
]


def golden_base(name):
    """`(directory, model, batch, logits)` of one architecture without an adapter."""
    directory = GOLDEN / name
    expected = load_file(directory / "expected.safetensors")
    labels = expected["labels"]
    batch = {
        "encoder_input_tokens": jnp.asarray(expected["encoder_input_tokens"], jnp.int32),
        "decoder_input_tokens": jnp.asarray(expected["decoder_input_tokens"], jnp.int32),
        "decoder_target_tokens": jnp.asarray(np.maximum(labels, 0), jnp.int32),
        "decoder_loss_weights": jnp.asarray(labels != -100, jnp.float32),
    }
    return directory, t5_weights.load(directory), batch, expected["logits"]


@pytest.fixture(scope="module", params=PAIRS)
def golden_adapter(request):
    """`(logits, gradients in PEFT's layout, PEFT's gradients, logits of the base)`."""
    architecture, name = request.param
    directory, model, batch, base_logits = golden_base(architecture)
    adapted, method, _ = load_adapter(directory / name, model)
    assert method.name == name
    graphdef, adapter, frozen = split(adapted)

    def mean_loss(adapter):
        model = nnx.merge(graphdef, adapter, frozen)
        total, tokens = loss_sums(model, batch)
        return total / tokens, model(batch["encoder_input_tokens"], batch["decoder_input_tokens"])

    with jax.default_matmul_precision("highest"):
        gradient, logits = jax.jit(jax.grad(mean_loss, has_aux=True))(adapter)
    named = named_leaves(nnx.merge(graphdef, gradient, frozen), Adapter)
    ours = peft_tensors(adapted, type(method), {name: np.asarray(value) for name, value in named.items()})
    return logits, ours, load_file(directory / name / "expected.safetensors"), base_logits


def test_logits_with_an_adapter(golden_adapter):
    logits, _, expected, base_logits = golden_adapter
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)
    assert np.abs(logits - base_logits).max() > 0.5  # the adapter is no no-op


def test_gradient_of_every_adapter_leaf(golden_adapter):
    _, gradient, expected, _ = golden_adapter
    theirs = {name.removeprefix("gradient/"): value for name, value in expected.items() if name != "logits"}
    assert gradient.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.abs(value).max() > 2e-3, name
        np.testing.assert_allclose(gradient[name], value, rtol=0, atol=1e-4, err_msg=name)
