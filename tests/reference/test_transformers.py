"""Network, generation and checkpoints against the installed `transformers`, on other models than the golden files."""

import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jpeft.errors import RunFailed
from jpeft.eval.loss import loss_sums
from jpeft.model import t5_weights
from jpeft.model.decode import beam_search, greedy
from jpeft.model.t5 import T5
from jpeft.model.t5_config import T5Config
from tests.conftest import random_t5
from tests.golden import make_golden

pytestmark = [
    pytest.mark.reference,
    # transformers' own T5 still asks under the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
SEEDS = {"tied_relu": 3, "untied_gated": 2, "tall_odd": 10}


@pytest.fixture(scope="module", params=SEEDS)
def pair(request, tmp_path_factory):
    """`(torch model, directory that it was saved to, batch)`."""
    sizes, tied, golden_seed = make_golden.ARCHITECTURES[request.param]
    seed = SEEDS[request.param]
    assert seed != golden_seed
    theirs = make_golden.build_model(sizes, tied=tied, seed=seed)
    directory = tmp_path_factory.mktemp("reference") / request.param
    make_golden.save_model(theirs, directory)
    return theirs, directory, make_golden.make_batch(sizes["vocab_size"], seed=seed)


@pytest.fixture(scope="module")
def expected(pair):
    theirs, _, batch = pair
    with torch.no_grad():
        return {name: value.numpy() for name, value in make_golden.expectations(theirs, batch).items()}


@pytest.fixture(scope="module")
def ours(pair):
    return t5_weights.load(pair[1])


def logits_of(model: T5, expected) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda model, *tokens: model(*tokens))
        return np.asarray(
            forward(model, _ids(expected["encoder_input_tokens"]), _ids(expected["decoder_input_tokens"]))
        )


def test_logits_and_loss(ours, expected):
    np.testing.assert_allclose(logits_of(ours, expected), expected["logits"], rtol=0, atol=1e-4)
    labels = expected["labels"]
    batch = {
        "encoder_input_tokens": _ids(expected["encoder_input_tokens"]),
        "decoder_input_tokens": _ids(expected["decoder_input_tokens"]),
        "decoder_target_tokens": _ids(np.maximum(labels, 0)),
        "decoder_loss_weights": jnp.asarray(labels != -100, jnp.float32),
    }
    with jax.default_matmul_precision("highest"):
        total, tokens = jax.jit(loss_sums)(ours, batch)
    np.testing.assert_allclose(total / tokens, expected["loss"], rtol=0, atol=1e-5)


def test_generated_tokens(ours, expected):
    searches = {
        "greedy": lambda model, tokens: greedy(model, tokens, max_length=64).tokens,
        "beam_4": lambda model, tokens: beam_search(model, tokens, max_length=64, num_beams=4).tokens,
        "beam_4_sum": lambda model, x: beam_search(model, x, max_length=64, num_beams=4, length_penalty=0.0).tokens,
    }
    for name, search in searches.items():
        lengths = np.sum(expected[name] != 0, axis=1)
        assert len(set(lengths)) >= 3 and min(lengths) < 20, name  # constant or endless text would prove little
        with jax.default_matmul_precision("highest"):
            tokens = jax.jit(search)(ours, _ids(expected["encoder_input_tokens"]))
        np.testing.assert_array_equal(tokens, expected[name], err_msg=name)


def test_transformers_opens_what_we_save(pair, ours, expected, tmp_path):
    theirs, _, batch = pair
    t5_weights.save(ours, tmp_path)
    opened: Any = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    again, loading = opened
    assert not any(loading[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (again.lm_head.weight is again.shared.weight) == (theirs.lm_head.weight is theirs.shared.weight)
    with torch.no_grad():
        np.testing.assert_array_equal(make_golden.run(again.eval(), batch).logits.numpy(), expected["logits"])


def test_we_open_what_transformers_saves(pair, expected, tmp_path):
    theirs, _, _ = pair
    theirs.save_pretrained(tmp_path)
    np.testing.assert_allclose(logits_of(t5_weights.load(tmp_path), expected), expected["logits"], rtol=0, atol=1e-4)


def test_we_open_the_shards_that_transformers_saves(pair, expected, tmp_path):
    theirs, _, _ = pair
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    np.testing.assert_allclose(logits_of(t5_weights.load(tmp_path), expected), expected["logits"], rtol=0, atol=1e-4)


def test_we_open_a_pytorch_model_bin(pair, expected, tmp_path):
    theirs, directory, _ = pair
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    np.testing.assert_allclose(logits_of(t5_weights.load(tmp_path), expected), expected["logits"], rtol=0, atol=1e-4)


def test_a_decoder_of_another_depth(tmp_path):
    """Only logits: `generate` of transformers fails on such a model."""
    sizes = make_golden.ARCHITECTURES["untied_gated"][0] | {"num_layers": 1, "num_decoder_layers": 4}
    theirs = make_golden.build_model(sizes, tied=False, seed=5)
    make_golden.save_model(theirs, tmp_path / "uneven")
    batch = make_golden.make_batch(sizes["vocab_size"], seed=5)
    tokens = {
        "encoder_input_tokens": batch["input_ids"].numpy(),
        "decoder_input_tokens": theirs._shift_right(batch["labels"]).numpy(),
    }
    with torch.no_grad():
        logits = make_golden.run(theirs, batch).logits.numpy()
    np.testing.assert_allclose(logits_of(t5_weights.load(tmp_path / "uneven"), tokens), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("projection", ["gated-silu", "gelu", "gelu_new"])
def test_other_activations(projection, tmp_path):
    sizes = make_golden.ARCHITECTURES["untied_gated"][0] | {"feed_forward_proj": projection}
    theirs = make_golden.build_model(sizes, tied=False, seed=6)
    make_golden.save_model(theirs, tmp_path / "other")
    batch = make_golden.make_batch(sizes["vocab_size"], seed=6)
    tokens = {
        "encoder_input_tokens": batch["input_ids"].numpy(),
        "decoder_input_tokens": theirs._shift_right(batch["labels"]).numpy(),
    }
    with torch.no_grad():
        logits = make_golden.run(theirs, batch).logits.numpy()
    np.testing.assert_allclose(logits_of(t5_weights.load(tmp_path / "other"), tokens), logits, rtol=0, atol=1e-4)


class _Malicious:
    """Creates a file when unpickled unsafely."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("by_torch", [True, False], ids=["in torch's archive", "a bare pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(by_torch, tmp_path):
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)
    t5_weights.save(random_t5(config), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    harm = tmp_path / "harm"
    content = {"shared.weight": _Malicious(str(harm))}
    if by_torch:
        torch.save(content, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(RunFailed, match="holds more than plain weights"):
        t5_weights.load(tmp_path)
    assert not harm.exists()
    pickle.loads(pickle.dumps(content))["shared.weight"].close()
    assert harm.exists()  # the trap works


def test_config_of_transformers_4(pair, expected, tmp_path):
    """Released checkpoints have `tie_word_embeddings: false` and lack `scale_decoder_outputs`."""
    theirs, directory, _ = pair
    config = json.loads((directory / "config.json").read_text())
    config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    np.testing.assert_allclose(logits_of(t5_weights.load(tmp_path), expected), expected["logits"], rtol=0, atol=1e-4)


def _ids(tokens: np.ndarray) -> jax.Array:
    return jnp.asarray(tokens, jnp.int32)
