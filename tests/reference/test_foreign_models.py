"""Methods on third-party NNX networks: Llama 3 and Qwen from `google-tunix`."""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jpeft
from jpeft.peft.attaching import split

if "tunix" not in sys.modules:  # only its networks: importing the package requires the dependencies of its trainers
    found = importlib.util.find_spec("tunix")
    assert found is not None, "pip install --no-deps google-tunix"
    sys.modules["tunix"] = types.ModuleType("tunix")
    sys.modules["tunix"].__path__ = list(found.submodule_search_locations or ())

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SIZES = {"num_layers": 2, "vocab_size": 64, "embed_dim": 16, "hidden_dim": 24, "num_heads": 4, "num_kv_heads": 2}
SIZES |= {"head_dim": 8, "rope_theta": 10_000, "norm_eps": 1e-6}


def network(name: str):
    """A network with random weights; some of its own start at zero, where gradients vanish."""
    model = _network(name)
    draw = np.random.default_rng(0)
    moved = lambda leaf: leaf + 0.3 * draw.normal(size=leaf.shape).astype(np.float32)
    nnx.update(model, jax.tree.map(moved, nnx.state(model, nnx.Param)))
    return model


def _network(name: str):
    match name:
        case "llama3":
            from tunix.models.llama3 import model

            return model.Llama3(model.ModelConfig(**SIZES), rngs=nnx.Rngs(0))
        case "qwen3":
            from tunix.models.qwen3 import model

            return model.Qwen3(model.ModelConfig(**SIZES), rngs=nnx.Rngs(0))
    from tunix.models.qwen2 import model

    return model.Qwen2(model.ModelConfig(**SIZES), rngs=nnx.Rngs(0))


METHODS = {
    "lora": (jpeft.Lora.official(rank=3), r".*/(q_proj|v_proj|o_proj|gate_proj)"),
    "scaled_lora": (jpeft.Lora(rank=2), r".*/(q_proj|k_proj|v_proj|o_proj)"),
    "ia3": (jpeft.Ia3.official(), r".*/(k_proj|v_proj|up_proj)"),
    "bitfit": (jpeft.BitFit(), r".*/(q_proj|down_proj)"),
    "full": (jpeft.Full(), None),
}


def logits(model, tokens):
    length = tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (len(tokens), length, length))
    return model(tokens, positions, None, mask)[0]


def loss(model, tokens):
    log_probs = jax.nn.log_softmax(logits(model, tokens)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1))


@pytest.mark.parametrize(
    ("name", "method"), [*((name, method) for name in ("llama3", "qwen3") for method in METHODS), ("qwen2", "lora")]
)
def test_a_network_of_somebody_elses_is_attached_trained_saved_loaded_and_merged(name, method, tmp_path):
    model = network(name)
    of, where = METHODS[method]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 7)), jnp.int32)
    start = jax.jit(logits)(model, tokens)
    tuned = jpeft.attach(model, of, where=where)
    np.testing.assert_array_equal(jax.jit(logits)(tuned, tokens), start)
    before = jax.tree.map(np.array, split(tuned))
    fitted = jpeft.fit(tuned, [tokens] * 3, loss, learning_rate=3e-2)
    after = split(fitted.model)
    jax.tree.map(np.testing.assert_array_equal, after[2], before[2])
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after[1], before[1])))
    said = jax.jit(logits)(fitted.model, tokens)
    assert np.abs(said - start).max() > 1e-3
    if of.trains_base:
        return
    jpeft.save(fitted.model, of, tmp_path)
    np.testing.assert_array_equal(jax.jit(logits)(jpeft.load_adapter(tmp_path, model), tokens), said)
    if method == "bitfit":
        with pytest.raises(jpeft.UserError, match="needs a bias, and the module has none"):
            jpeft.merge(fitted.model)
    else:
        merged = jpeft.merge(fitted.model)
        assert not jax.tree.leaves(nnx.state(merged, jpeft.Adapter))
        np.testing.assert_allclose(jax.jit(logits)(merged, tokens), said, atol=1e-5)
