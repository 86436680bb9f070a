"""Results against those of PyTorch and transformers for the same weights, from `tests/golden/make_golden.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.eval.loss import loss_sums
from jpeft.model import t5_weights
from jpeft.model.decode import beam_search, greedy

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("tied_relu", "untied_gated", "tall_odd")


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    """`(model, expected)` of one architecture."""
    return t5_weights.load(GOLDEN / request.param), load_file(GOLDEN / request.param / "expected.safetensors")


def test_logits_of_a_padded_batch(golden):
    model, expected = golden
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda model, tokens, decoder_input: model(tokens, decoder_input))
        logits = forward(model, _ids(expected["encoder_input_tokens"]), _ids(expected["decoder_input_tokens"]))
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_logits_of_each_row_without_padding(golden):
    model, expected = golden
    forward = jax.jit(lambda model, tokens, decoder_input: model(tokens, decoder_input))
    for row in (1, 3):  # with 4 and 2 tokens
        tokens = expected["encoder_input_tokens"][row]
        with jax.default_matmul_precision("highest"):
            ours = forward(model, _ids(tokens[None, tokens != 0]), _ids(expected["decoder_input_tokens"][row][None]))
        np.testing.assert_allclose(ours[0], expected["unpadded_logits"][row], rtol=0, atol=1e-4)


def test_loss_is_the_mean_over_real_target_tokens(golden):
    model, expected = golden
    labels = expected["labels"]
    batch = {
        "encoder_input_tokens": _ids(expected["encoder_input_tokens"]),
        "decoder_input_tokens": _ids(expected["decoder_input_tokens"]),
        "decoder_target_tokens": _ids(np.maximum(labels, 0)),
        "decoder_loss_weights": jnp.asarray(labels != -100, jnp.float32),
    }
    with jax.default_matmul_precision("highest"):
        total, tokens = jax.jit(loss_sums)(model, batch)
    assert tokens == np.sum(labels != -100) < labels.size
    np.testing.assert_allclose(total / tokens, expected["loss"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("greedy", lambda model, tokens: greedy(model, tokens, max_length=64).tokens),
        ("beam_4", lambda model, tokens: beam_search(model, tokens, max_length=64, num_beams=4).tokens),
        pytest.param(
            "beam_4_sum",
            lambda model, tokens: beam_search(model, tokens, max_length=64, num_beams=4, length_penalty=0.0).tokens,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["greedy", "beam", "beam without length penalty"],
)
def test_generated_tokens(golden, name, search):
    model, expected = golden
    with jax.default_matmul_precision("highest"):
        tokens = jax.jit(search)(model, _ids(expected["encoder_input_tokens"]))
    np.testing.assert_array_equal(tokens, expected[name])


def test_the_expected_text_is_varied(golden):
    """Constant or endless texts would agree with any search."""
    _, expected = golden
    searches = ("greedy", "beam_4", "beam_4_sum")
    for name in searches:
        lengths = np.sum(expected[name] != 0, axis=1)
        assert len(set(lengths)) >= 3 and min(lengths) < 20, name
    assert np.sum(expected["greedy"] != 0, axis=1).max() == expected["greedy"].shape[1]  # a row that never ends
    for name in ("greedy", "beam_4"):
        assert max(len(set(row)) for row in expected[name]) >= 8, name
    assert np.any(expected["beam_4"] != expected["greedy"]) and np.any(expected["beam_4"] != expected["beam_4_sum"])


def _ids(tokens: np.ndarray) -> jax.Array:
    return jnp.asarray(tokens, jnp.int32)
