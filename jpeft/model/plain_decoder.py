"""Decoder-only models in plain NumPy, straight from a directory's files, against which saved models are verified.

Like `jpeft.model.plain` for T5, it shares how bytes are read with the loader, but nothing of their interpretation.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jpeft.model.plain import Numbers, activation
from jpeft.model.weight_files import Checkpoint, open_checkpoint, read_values


def plain_logits(directory: Path, tokens: Int[np.ndarray, "batch length"]) -> Float[np.ndarray, "batch length vocab"]:
    """Logits, float32, of each token's successor by the model in a directory in Hugging Face layout."""
    config = read_values(directory)[0]
    stored, kind = _Stored(open_checkpoint(directory), config, directory), config["model_type"]
    embedding = stored.whole("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
    x = {"bloom": _bloom, "gpt_neo": _gpt_neo, "gptj": _gptj}.get(kind, _llama)(stored, config, embedding[tokens])
    head_bias = stored.whole("lm_head.bias") if stored.find("lm_head.bias") else np.float32(0)
    tied = config.get("tie_word_embeddings", kind in ("bloom", "gpt_neo"))
    return x @ (embedding if tied else stored.whole("lm_head.weight")).T + head_bias


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The weights of a directory by their names without the prefix (`model.`, `transformer.`), which is optional."""

    files: Checkpoint
    config: dict[str, Any]
    directory: Path

    def find(self, *endings: str) -> str | None:
        names = self.files.names()
        return next((n for e in endings for n in (e, f"model.{e}", f"transformer.{e}") if n in names), None)

    def whole(self, *endings: str) -> Numbers:
        name = self.find(*endings)
        assert name is not None, f"{self.directory} lacks {endings[0]}"
        everything = tuple(slice(0, size) for size in self.files.shape(name))
        return np.asarray(self.files.read(name, everything)).astype(np.float32)

    def layers(self, name: str, first: str) -> Iterator[str]:
        """The prefix of each layer's weights, up to the last layer that has a weight called `first`."""
        layer = 0
        while self.find(f"{name}.{layer}.{first}"):
            yield f"{name}.{layer}"
            layer += 1

    def linear(self, x: Numbers, name: str) -> Numbers:
        return x @ self.whole(f"{name}.weight").T + (self.whole(f"{name}.bias") if self.find(f"{name}.bias") else 0)

    def normed(self, x: Numbers, name: str) -> Numbers:
        if "rms_norm_eps" in self.config:
            size = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(self.config["rms_norm_eps"]))
            return x / size * self.whole(f"{name}.weight")
        x = x - x.mean(axis=-1, keepdims=True)
        size = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(self.config["layer_norm_epsilon"]))
        return x / size * self.whole(f"{name}.weight") + self.whole(f"{name}.bias")

    @property
    def act(self) -> Callable[[Numbers], Numbers]:
        return activation(self.config.get("hidden_act") or self.config.get("activation_function") or "gelu_new")


def _bloom(stored: _Stored, config: dict[str, Any], x: Numbers) -> Numbers:
    x = stored.normed(x, "word_embeddings_layernorm")
    num_heads = config.get("n_head") or config["num_attention_heads"]
    distance = _distances(x)
    alibi = np.asarray(_slopes(num_heads), np.float32)[:, None, None] * -distance.astype(np.float32)
    for at in stored.layers("h", "input_layernorm.weight"):
        h = stored.normed(x, f"{at}.input_layernorm")
        fused = stored.linear(h, f"{at}.self_attention.query_key_value")
        q, k, v = np.moveaxis(fused.reshape(*x.shape[:2], num_heads, 3, -1), 3, 0)
        mixed = _attention(q, k, v, _hiding(distance >= 0) + alibi, q.shape[-1] ** -0.5)
        x = x + stored.linear(mixed, f"{at}.self_attention.dense")
        h = stored.normed(x, f"{at}.post_attention_layernorm")
        x = x + stored.linear(stored.act(stored.linear(h, f"{at}.mlp.dense_h_to_4h")), f"{at}.mlp.dense_4h_to_h")
    return stored.normed(x, "ln_f")


def _gpt_neo(stored: _Stored, config: dict[str, Any], x: Numbers) -> Numbers:
    x = x + stored.whole("wpe.weight")[: x.shape[1]]
    distance, width = _distances(x), x.shape[-1] // config["num_heads"]
    kinds = config.get("attention_layers")
    if kinds is None:
        kinds = [one for several, times in config["attention_types"] for _ in range(times) for one in several]
    for kind, at in zip(kinds, stored.layers("h", "ln_1.weight"), strict=True):
        h = stored.normed(x, f"{at}.ln_1")
        q, k, v = (_heads(stored.linear(h, f"{at}.attn.attention.{name}_proj"), width) for name in "qkv")
        sees = distance >= 0
        if kind == "local":
            sees &= distance < config.get("window_size", 256)
        x = x + stored.linear(_attention(q, k, v, _hiding(sees), 1.0), f"{at}.attn.attention.out_proj")
        h = stored.normed(x, f"{at}.ln_2")
        x = x + stored.linear(stored.act(stored.linear(h, f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
    return stored.normed(x, "ln_f")


def _gptj(stored: _Stored, config: dict[str, Any], x: Numbers) -> Numbers:
    width = x.shape[-1] // config["n_head"]
    count = config.get("rotary_dim", 64) or width
    frequencies = 10000.0 ** (-np.arange(0, count, 2) / count)
    for at in stored.layers("h", "ln_1.weight"):
        h = stored.normed(x, f"{at}.ln_1")
        q, k, v = (_heads(stored.linear(h, f"{at}.attn.{name}_proj"), width) for name in "qkv")
        for each in (q, k):
            _turn(each, np.arange(0, count, 2), np.arange(1, count, 2), frequencies)
        mixed = _attention(q, k, v, _hiding(_distances(x) >= 0), width**-0.5)
        dense = stored.linear(stored.act(stored.linear(h, f"{at}.mlp.fc_in")), f"{at}.mlp.fc_out")
        x = x + stored.linear(mixed, f"{at}.attn.out_proj") + dense
    return stored.normed(x, "ln_f")


def _llama(stored: _Stored, config: dict[str, Any], x: Numbers) -> Numbers:
    """Llama, Mistral, Qwen2 and Qwen3."""
    width = config.get("head_dim") or x.shape[-1] // config["num_attention_heads"]
    frequencies, size = _llama_frequencies(config, width)
    distance, windows = _distances(x), _windows(config)
    for layer, at in enumerate(stored.layers("layers", "input_layernorm.weight")):
        h = stored.normed(x, f"{at}.input_layernorm")
        q, k, v = (_heads(stored.linear(h, f"{at}.self_attn.{name}_proj"), width) for name in "qkv")
        if stored.find(f"{at}.self_attn.q_norm.weight"):
            q, k = stored.normed(q, f"{at}.self_attn.q_norm"), stored.normed(k, f"{at}.self_attn.k_norm")
        for each in (q, k):
            _turn(each, np.arange(width // 2), np.arange(width // 2, width), frequencies, size)
        sees = (distance >= 0) & (distance < windows(layer, x.shape[1]))
        x = x + stored.linear(_attention(q, k, v, _hiding(sees), width**-0.5), f"{at}.self_attn.o_proj")
        h = stored.normed(x, f"{at}.post_attention_layernorm")
        gated = stored.act(stored.linear(h, f"{at}.mlp.gate_proj")) * stored.linear(h, f"{at}.mlp.up_proj")
        x = x + stored.linear(gated, f"{at}.mlp.down_proj")
    return stored.normed(x, "norm")


def _attention(q: Numbers, k: Numbers, v: Numbers, bias: Numbers, scale: float) -> Numbers:
    """Attention with q, k and v `[batch, length, heads, width]`, and grouped queries if k and v have fewer heads."""
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * np.float32(scale) + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def _heads(x: Numbers, width: int) -> Numbers:
    return x.reshape(*x.shape[:2], -1, width)


def _distances(x: Numbers) -> Int[np.ndarray, "length length"]:
    """The position of each query minus that of each key."""
    positions = np.arange(x.shape[1])
    return positions[:, None] - positions[None, :]


def _hiding(sees: np.ndarray) -> Numbers:
    return np.where(sees, np.float32(0), np.float32(-1e9))


def _turn(x: Numbers, ones: np.ndarray, others: np.ndarray, frequencies: np.ndarray, size: float = 1.0) -> None:
    """Apply a rotary embedding, in place, to the feature pairs `(ones[i], others[i])` of each head."""
    angles = np.arange(x.shape[1])[:, None, None] * frequencies
    cosines, sines = ((size * wave(angles)).astype(np.float32) for wave in (np.cos, np.sin))
    one, other = x[..., ones].copy(), x[..., others].copy()
    x[..., ones], x[..., others] = one * cosines - other * sines, other * cosines + one * sines


def _llama_frequencies(config: dict[str, Any], width: int) -> tuple[np.ndarray, float]:
    """Rotary frequencies, float64, by their wavelengths in tokens, and the factor of cosines and sines."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    waves = 2 * np.pi * base ** (np.arange(0, width, 2) / width)
    kind, size = scaling.get("rope_type") or scaling.get("type") or "default", 1.0
    text = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    text = text or config["max_position_embeddings"]
    factor: float = scaling.get("factor") or config["max_position_embeddings"] / text
    if kind == "linear":
        waves = waves * factor
    if kind == "llama3":
        shortest, longest = text / scaling["high_freq_factor"], text / scaling["low_freq_factor"]
        mix = (1 / waves - 1 / longest) / (1 / shortest - 1 / longest)
        between = waves / (mix + (1 - mix) / factor)
        waves = np.select([waves < shortest, waves > longest], [waves, waves * factor], between)
    if kind == "yarn":
        bounds = [text / (scaling.get(key) or default) for key, default in (("beta_fast", 32), ("beta_slow", 1))]
        first, last = (width / 2 * np.log(wave / 2 / np.pi) / np.log(base) for wave in bounds)
        if scaling.get("truncate", True):
            first, last = np.floor(first), np.ceil(last)
        ramp = np.interp(np.arange(width // 2), [max(first, 0), min(last, width - 1)], [0, 1])
        waves = waves / (1 - ramp + ramp / factor)
        size = scaling.get("attention_factor")
        if size is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
            ours, all_ = (1 + 0.1 * scaling[key] * np.log(factor) for key in ("mscale", "mscale_all_dim"))
            size = ours / all_
        size = 1 + 0.1 * np.log(factor) if size is None else size
    return 2 * np.pi / waves, size


def _slopes(heads: int) -> list[float]:
    """ALiBi's slopes, by the recursion of Press et al.'s code for numbers of heads that are no power of two."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return [*_slopes(below), *_slopes(2 * below)[0::2][: heads - below]]


def _windows(config: dict[str, Any]) -> Callable[[int, int], int]:
    """A function from layer and text length to the number of tokens that a token attends to in that layer."""
    window, types = config.get("sliding_window"), config.get("layer_types")
    kind, uses = config["model_type"], config.get("use_sliding_window")

    def window_of(layer: int, length: int) -> int:
        if window is None or kind == "llama" or (kind != "mistral" and not uses):
            return length
        if kind == "mistral":
            return window
        slides = types[layer] == "sliding_attention" if types else layer >= config.get("max_window_layers", 28)
        return window if slides else length

    return window_of
