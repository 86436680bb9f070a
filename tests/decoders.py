"""A tiny decoder-only model of each kind, with what is particular to it in force on a few tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.model.decoder import Decoder
from jpeft.model.decoder_config import CHOICES, DecoderConfig
from jpeft.model.rotary import RotaryScaling

_SIZES = dict(vocab_size=320, d_model=16, d_head=4, d_ff=24, num_layers=3, num_heads=4, num_kv_heads=4, rotary_width=4)
_IDS = dict(pad_token_id=0, eos_token_id=1, max_positions=64)


def _tiny(model_type: str, **others) -> DecoderConfig:
    return DecoderConfig(**{"model_type": model_type, **CHOICES[model_type], **_SIZES, **_IDS, **others})


LLAMA = _tiny("llama", num_kv_heads=2, tie_word_embeddings=True)
TINY_DECODERS = {
    "llama": LLAMA,
    "gpt_neo": _tiny("gpt_neo", window=4, windowed=(1,)),
    "gptj": _tiny("gptj", rotary_width=2, tie_word_embeddings=False),
    "bloom": _tiny("bloom", d_model=24, d_ff=96, num_heads=6, num_kv_heads=6, max_positions=2048),
}
MORE = {
    "mistral": _tiny("mistral", num_kv_heads=1, window=5, windowed=(0, 1, 2), tie_word_embeddings=False),
    "qwen2": _tiny("qwen2", num_kv_heads=2),
    "qwen3": _tiny("qwen3", num_kv_heads=2, d_head=6, rotary_width=6, tie_word_embeddings=False),
}

# Of the four frequencies of a head some stay, some are divided by the factor and some lie in between.
_HEADS = dict(num_kv_heads=2, d_head=8, rotary_width=8, rotary_base=1000.0)
SCALED = {
    "linear": _tiny("llama", **_HEADS, rotary_scaling=RotaryScaling("linear", 2.5)),
    "llama3": _tiny("llama", **_HEADS, rotary_scaling=RotaryScaling("llama3", 8.0, 64)),
    "yarn": _tiny("qwen2", **_HEADS, rotary_scaling=RotaryScaling("yarn", 4.0, 64, 1.0, 8.0, size=1.2)),
    "yarn_exact": _tiny("qwen3", **_HEADS, rotary_scaling=RotaryScaling("yarn", 4.0, 64, 1.0, 8.0, whole_pairs=False)),
}


def random_decoder(config: DecoderConfig, *, dtype=jnp.float32, seed: int = 0) -> Decoder:
    """A model whose biases and norms are random, too: as they are made they would hide a mistake.

    It is drawn once: each call gives another around copies of the same weights.
    """
    graphdef, weights = _drawn(config, dtype, seed)
    return nnx.merge(graphdef, jax.device_put(jax.tree.map(np.copy, weights)))


@functools.lru_cache(maxsize=32)
def _drawn(config: DecoderConfig, dtype, seed: int):
    model = Decoder(config, dtype=dtype, rngs=nnx.Rngs(seed))
    draw = np.random.default_rng(seed)

    def moved(path, leaf):
        if jax.tree_util.keystr(path).count("bias") or jax.tree_util.keystr(path).count("scale"):
            return jax.device_put(np.asarray(leaf) + 0.3 * draw.standard_normal(leaf.shape, np.float32))
        return leaf

    nnx.update(model, jax.tree_util.tree_map_with_path(moved, nnx.state(model, nnx.Param)))
    graphdef, weights = nnx.split(model)
    return graphdef, jax.tree.map(np.asarray, weights)


def one_layer(config: DecoderConfig) -> DecoderConfig:
    """The same model with a single block."""
    return dataclasses.replace(config, num_layers=1, windowed=tuple(i for i in config.windowed if i == 0))
