"""A T5 in plain NumPy, straight from a directory's files, against which saved models are verified.

It shares with `t5_weights` and `t5` how bytes are read, but nothing of their interpretation: which tensor is the head,
whether outputs are scaled, how many layers there are. A mistake made there is thus not repeated here.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jpeft.model.weight_files import Checkpoint, open_checkpoint, read_values

Numbers = Float[np.ndarray, "..."]


def plain_logits(
    directory: Path, inputs: Int[np.ndarray, "batch enc_len"], targets: Int[np.ndarray, "batch dec_len"]
) -> Float[np.ndarray, "batch dec_len vocab"]:
    """Logits, float32, of a model directory as `transformers` 5 interprets it, reading one weight at a time.

    Args:
      directory: a directory in Hugging Face layout.
      inputs: tokens of the encoder; padding at their end is masked.
      targets: input tokens of the decoder.
    """
    config, files = read_values(directory)[0], open_checkpoint(directory)
    names = files.names()

    def table(*candidates: str) -> Numbers:
        return _whole(files, next(name for name in candidates if name in names))

    shared = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    is_padding = (inputs == config.get("pad_token_id", 0)) | (inputs < 0)
    is_padding = np.logical_and.accumulate(is_padding[:, ::-1], axis=1)[:, ::-1]  # none that other tokens follow
    padding = np.where(is_padding, np.float32(-1e9), np.float32(0))[:, None, None, :]
    encoded = _stack(files, config, "encoder", table("encoder.embed_tokens.weight", *shared)[inputs], padding)
    hidden = _stack(
        files, config, "decoder", table("decoder.embed_tokens.weight", *shared)[targets], padding, encoded=encoded
    )
    if config.get("model_type") == "mt5":
        scaled = False
    else:
        scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    head = table("lm_head.weight", *shared)
    return (hidden * np.float32(hidden.shape[-1] ** -0.5) if scaled else hidden) @ head.T


def _whole(files: Checkpoint, name: str) -> Numbers:
    return np.asarray(files.read(name, tuple(slice(0, size) for size in files.shape(name)))).astype(np.float32)


def _stack(
    files: Checkpoint,
    config: dict[str, Any],
    name: str,
    x: Numbers,
    padding: Numbers,
    *,
    encoded: Numbers | None = None,
) -> Numbers:
    """Run the blocks and the final norm of the encoder or, if the encoder's output is given, of the decoder."""
    names, length, heads = files.names(), x.shape[1], config["num_heads"]

    def linear(x: Numbers, weight: str) -> Numbers:
        return x @ _whole(files, f"{weight}.weight").T

    def normed(x: Numbers, weight: str) -> Numbers:
        size = np.sqrt(
            np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(config.get("layer_norm_epsilon", 1e-6))
        )
        return x / size * _whole(files, f"{weight}.weight")

    def attention(x_q: Numbers, x_kv: Numbers, layer: str, bias: Numbers) -> Numbers:
        q, k, v = (
            np.moveaxis(linear(source, f"{layer}.{part}").reshape(*source.shape[:2], heads, -1), 2, 1)
            for source, part in ((x_q, "q"), (x_kv, "k"), (x_kv, "v"))
        )
        logits = q @ np.swapaxes(k, -1, -2) + bias
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return linear(np.moveaxis(mixed, 1, 2).reshape(*x_q.shape[:2], -1), f"{layer}.o")

    distances = np.arange(length)[None, :] - np.arange(length)[:, None]
    table = _whole(files, f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    buckets = _buckets(distances, len(table), config.get("relative_attention_max_distance", 128), encoded is None)
    bias = np.moveaxis(table[buckets], -1, 0)[None]
    bias = bias + (padding if encoded is None else np.where(distances > 0, np.float32(-1e9), np.float32(0)))
    layer = 0
    while f"{name}.block.{layer}.layer.0.layer_norm.weight" in names:
        parts = [f"{name}.block.{layer}.layer.{i}" for i in range(3)]
        h = normed(x, f"{parts[0]}.layer_norm")
        x = x + attention(h, h, f"{parts[0]}.SelfAttention", bias)
        if encoded is not None:
            h = normed(x, f"{parts[1]}.layer_norm")
            x = x + attention(h, encoded, f"{parts[1]}.EncDecAttention", padding)
        last = parts[1 if encoded is None else 2]
        h, act = normed(x, f"{last}.layer_norm"), _activation(config)
        dense = f"{last}.DenseReluDense"
        if f"{dense}.wi_0.weight" in names:
            h = act(linear(h, f"{dense}.wi_0")) * linear(h, f"{dense}.wi_1")
        else:
            h = act(linear(h, f"{dense}.wi"))
        x = x + linear(h, f"{dense}.wo")
        layer += 1
    return normed(x, f"{name}.final_layer_norm")


def _buckets(distances: Int[np.ndarray, "q k"], buckets: int, most: int, both_ways: bool) -> Int[np.ndarray, "q k"]:
    """The relative position bucket of each distance from query to key.

    Half of the buckets of a direction are for exact distances; the last is for `most` and above.
    """
    first = np.zeros_like(distances)
    if both_ways:
        buckets //= 2
        first = np.where(distances > 0, buckets, 0)
    far, exact = (np.abs(distances) if both_ways else np.maximum(-distances, 0)), buckets // 2
    spread = np.log(np.maximum(far, 1).astype(np.float32) / exact) / np.float32(math.log(most / exact))
    return first + np.where(far < exact, far, np.minimum(exact + (spread * (buckets - exact)).astype(int), buckets - 1))


def _activation(config: dict[str, Any]) -> Callable[[Numbers], Numbers]:
    name = config.get("feed_forward_proj") or ("gated-gelu" if config.get("model_type") == "mt5" else "relu")
    return activation(config.get("dense_act_fn") or ("gelu_new" if name == "gated-gelu" else name.rpartition("-")[2]))


def activation(name: str) -> Callable[[Numbers], Numbers]:
    """The activation with this `transformers` name; the tanh approximation of GELU for any other name."""
    if name == "relu":
        return lambda x: np.maximum(x, 0)
    if name in ("silu", "swish"):
        return lambda x: x * np.float32(0.5) * (1 + np.tanh(x / 2))
    if name in ("gelu", "gelu_python"):
        erf = np.vectorize(math.erf, otypes=[np.float32])
        return lambda x: x * np.float32(0.5) * (1 + erf(x / np.float32(math.sqrt(2))))
    return lambda x: np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x**3)))
