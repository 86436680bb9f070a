"""A decoder-only model in plain NumPy, straight from a directory's files: what the network is held against.

As `jpeft.model.plain` for T5: it shares how bytes are read with the first reader, and nothing of what they mean.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jpeft.model.plain import Numbers, activation
from jpeft.model.weight_files import open_checkpoint, read_values


def plain_logits(directory: Path, tokens: Int[np.ndarray, "batch length"]) -> Float[np.ndarray, "batch length vocab"]:
    """Logits of the token after each, of a model directory in Hugging Face layout; float32."""
    config, files = read_values(directory)[0], open_checkpoint(directory)
    kind, names = config["model_type"], files.names()
    length = tokens.shape[1]

    def find(*endings: str) -> str | None:
        return next((n for e in endings for n in (e, f"model.{e}", f"transformer.{e}") if n in names), None)

    def whole(*endings: str) -> Numbers:
        name = find(*endings)
        assert name is not None, f"{directory} lacks {endings[0]}"
        return np.asarray(files.read(name, tuple(slice(0, size) for size in files.shape(name)))).astype(np.float32)

    def linear(x: Numbers, name: str) -> Numbers:
        return x @ whole(f"{name}.weight").T + (whole(f"{name}.bias") if find(f"{name}.bias") else 0)

    def normed(x: Numbers, name: str) -> Numbers:
        if "rms_norm_eps" in config:
            size = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(config["rms_norm_eps"]))
            return x / size * whole(f"{name}.weight")
        x = x - x.mean(axis=-1, keepdims=True)
        size = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(config["layer_norm_epsilon"]))
        return x / size * whole(f"{name}.weight") + whole(f"{name}.bias")

    def attention(q: Numbers, k: Numbers, v: Numbers, bias: Numbers, scale: float) -> Numbers:
        """`[batch, length, heads, width]` each; fewer heads of keys and values serve neighbours."""
        k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) * np.float32(scale) + bias
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), v)
        return mixed.reshape(*mixed.shape[:2], -1)

    def heads(x: Numbers, width: int) -> Numbers:
        return x.reshape(*x.shape[:2], -1, width)

    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    seen = np.where(distance >= 0, np.float32(0), np.float32(-1e9))
    act, embedding = (
        activation(config.get("hidden_act") or config.get("activation_function") or "gelu_new"),
        whole("embed_tokens.weight", "wte.weight", "word_embeddings.weight"),
    )
    x = embedding[tokens]
    layer = 0
    if kind == "bloom":
        x = normed(x, "word_embeddings_layernorm")
        num_heads = config.get("n_head") or config["num_attention_heads"]
        alibi = np.asarray(_slopes(num_heads), np.float32)[:, None, None] * -distance.astype(np.float32)
        while find(f"h.{layer}.input_layernorm.weight"):
            at = f"h.{layer}"
            fused = linear(normed(x, f"{at}.input_layernorm"), f"{at}.self_attention.query_key_value")
            q, k, v = np.moveaxis(fused.reshape(*x.shape[:2], num_heads, 3, -1), 3, 0)
            mixed = attention(q, k, v, seen + alibi, q.shape[-1] ** -0.5)
            x = x + linear(mixed, f"{at}.self_attention.dense")
            h = act(linear(normed(x, f"{at}.post_attention_layernorm"), f"{at}.mlp.dense_h_to_4h"))
            x = x + linear(h, f"{at}.mlp.dense_4h_to_h")
            layer += 1
        x = normed(x, "ln_f")
    elif kind == "gpt_neo":
        x = x + whole("wpe.weight")[:length]
        kinds = [one for several, times in config["attention_types"] for _ in range(times) for one in several]
        width = x.shape[-1] // config["num_heads"]
        while find(f"h.{layer}.ln_1.weight"):
            at = f"h.{layer}"
            h = normed(x, f"{at}.ln_1")
            q, k, v = (heads(linear(h, f"{at}.attn.attention.{name}_proj"), width) for name in "qkv")
            near = np.where(distance < config.get("window_size", 256), np.float32(0), np.float32(-1e9))
            mixed = attention(q, k, v, seen + near if kinds[layer] == "local" else seen, 1.0)
            x = x + linear(mixed, f"{at}.attn.attention.out_proj")
            x = x + linear(act(linear(normed(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
            layer += 1
        x = normed(x, "ln_f")
    elif kind == "gptj":
        width = x.shape[-1] // config["n_head"]
        count = config.get("rotary_dim", 64) or width
        while find(f"h.{layer}.ln_1.weight"):
            at = f"h.{layer}"
            h = normed(x, f"{at}.ln_1")
            q, k, v = (heads(linear(h, f"{at}.attn.{name}_proj"), width) for name in "qkv")
            for each in (q, k):
                _turn(each, np.arange(0, count, 2), np.arange(1, count, 2), 10000.0, count)
            mixed = attention(q, k, v, seen, width**-0.5)
            x = x + linear(mixed, f"{at}.attn.out_proj") + linear(act(linear(h, f"{at}.mlp.fc_in")), f"{at}.mlp.fc_out")
            layer += 1
        x = normed(x, "ln_f")
    else:
        width = config.get("head_dim") or x.shape[-1] // config["num_attention_heads"]
        base = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10000.0
        windows = _windows(config)
        while find(f"layers.{layer}.input_layernorm.weight"):
            at = f"layers.{layer}"
            h = normed(x, f"{at}.input_layernorm")
            q, k, v = (heads(linear(h, f"{at}.self_attn.{name}_proj"), width) for name in "qkv")
            if find(f"{at}.self_attn.q_norm.weight"):
                q, k = normed(q, f"{at}.self_attn.q_norm"), normed(k, f"{at}.self_attn.k_norm")
            for each in (q, k):
                _turn(each, np.arange(width // 2), np.arange(width // 2, width), float(base), width)
            near = np.where(distance < windows(layer, length), np.float32(0), np.float32(-1e9))
            x = x + linear(attention(q, k, v, seen + near, width**-0.5), f"{at}.self_attn.o_proj")
            h = normed(x, f"{at}.post_attention_layernorm")
            x = x + linear(
                act(linear(h, f"{at}.mlp.gate_proj")) * linear(h, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj"
            )
            layer += 1
        x = normed(x, "norm")
    head_bias = whole("lm_head.bias") if find("lm_head.bias") else np.float32(0)
    tied = config.get("tie_word_embeddings", kind in ("bloom", "gpt_neo"))
    return x @ (embedding if tied else whole("lm_head.weight")).T + head_bias


def _turn(x: Numbers, ones: np.ndarray, others: np.ndarray, base: float, count: int) -> None:
    """Turns pairs of numbers of each head, in place, by angles that grow with the position."""
    angles = np.arange(x.shape[1])[:, None] / base ** (np.arange(0, count, 2) / count)
    cosines, sines = np.cos(angles)[:, None].astype(np.float32), np.sin(angles)[:, None].astype(np.float32)
    one, other = x[..., ones].copy(), x[..., others].copy()
    x[..., ones], x[..., others] = one * cosines - other * sines, other * cosines + one * sines


def _slopes(heads: int) -> list[float]:
    """Press et al.'s recursion: of a power of two a series, else that below and every second of that above."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return [*_slopes(below), *_slopes(2 * below)[0::2][: heads - below]]


def _windows(config: dict[str, Any]) -> Callable[[int, int], int]:
    """How many tokens a layer of a text of some length sees."""
    window, types = config.get("sliding_window"), config.get("layer_types")
    kind, uses = config["model_type"], config.get("use_sliding_window")

    def of(layer: int, length: int) -> int:
        if window is None or kind == "llama" or (kind != "mistral" and not uses):
            return length
        if kind == "mistral":
            return window
        slides = types[layer] == "sliding_attention" if types else layer >= config.get("max_window_layers", 28)
        return window if slides else length

    return of
