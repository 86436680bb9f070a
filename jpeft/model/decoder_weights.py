"""Decoder-only checkpoints, by the names that `transformers` has for their weights, to our tree and back.

Where a released file has no prefix (`transformer.`, `model.`) before its names, it is as if it had. BLOOM's fused map
of queries, keys and values is three maps here, and one again in a file.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import WIDE, Devices, Part, named_leaves, on_first_device
from jpeft.model.abstract import abstract
from jpeft.model.bitsandbytes import packed_tensors, to_file
from jpeft.model.decoder import Decoder
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.ends import named_by_tokenizer
from jpeft.model.quantized import Quantization
from jpeft.model.weight_files import BUFFERS, Checkpoint, are_equal, open_checkpoint, read_values
from jpeft.model.weights import Filling, refuse_misfits, refuse_oversize, said_of, write_model
from jpeft.words import one_line

# Names of modules: outside of the blocks after the prefix, within a block after `<prefix><blocks>.<index>.`.
_LLAMA = {
    "prefix": "model.",
    "blocks": "layers",
    "shared": "embed_tokens",
    "decoder/final_norm": "norm",
    "self_attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    **{f"self_attention/{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{f"self_attention/{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{f"feed_forward/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_GPT = {
    "prefix": "transformer.",
    "blocks": "h",
    "shared": "wte",
    "positions": "wpe",
    "decoder/final_norm": "ln_f",
    "self_attention_norm": "ln_1",
    "feed_forward_norm": "ln_2",
}
_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "gpt_neo": _GPT
    | {f"self_attention/{name}": f"attn.attention.{name}_proj" for name in ("q", "k", "v")}
    | {"self_attention/o": "attn.attention.out_proj", "feed_forward/up": "mlp.c_fc", "feed_forward/down": "mlp.c_proj"},
    "gptj": _GPT
    | {f"self_attention/{name}": f"attn.{name}_proj" for name in ("q", "k", "v")}
    | {"self_attention/o": "attn.out_proj", "feed_forward/up": "mlp.fc_in", "feed_forward/down": "mlp.fc_out"},
    "bloom": _GPT
    | {"shared": "word_embeddings", "embedding_norm": "word_embeddings_layernorm"}
    | {"self_attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    | {f"self_attention/{name}": "self_attention.query_key_value" for name in ("q", "k", "v")}
    | {"self_attention/o": "self_attention.dense"}
    | {"feed_forward/up": "mlp.dense_h_to_4h", "feed_forward/down": "mlp.dense_4h_to_h"},
}
_HEAD = "lm_head"
KEPT_WIDE = (_HEAD,)  # modules that `transformers` is told of as wide in a file in few bits
FUSED = ("q", "k", "v")  # in the order of a fused map


@dataclasses.dataclass(frozen=True)
class Stored:
    """One of our weights as a file has it.

    Attributes:
      name: of the weight there.
      transposed: whether it is `[out, in]` there.
      third: which of a fused map's three it is; None where it is one by itself.
    """

    name: str
    transposed: bool
    third: int | None = None


def hub_module(config: DecoderConfig, path: str) -> str:
    """Name in `transformers` of the module at one of our paths: `decoder/layers/0/feed_forward/up` and so on."""
    names = _NAMES[config.model_type]
    if path == _HEAD:
        return _HEAD
    block = re.fullmatch(r"decoder/layers/(\d+)/(.*)", path)
    if block:
        return f"{names['prefix']}{names['blocks']}.{block[1]}.{names[block[2]]}"
    return f"{names['prefix']}{names[path]}"


def is_fused(config: DecoderConfig) -> bool:
    """Whether files have queries, keys and values in one map."""
    names = _NAMES[config.model_type]
    return names["self_attention/q"] == names["self_attention/k"]


def stored(config: DecoderConfig, name: str) -> Stored:
    """Where files of such a model have one of our weights: `decoder/layers/0/self_attention/q/kernel` and so on."""
    module, _, leaf = name.rpartition("/")
    file_name = f"{hub_module(config, module)}.{'bias' if leaf == 'bias' else 'weight'}"
    return Stored(file_name, leaf == "kernel", _third(config, module))


def _third(config: DecoderConfig, path: str) -> int | None:
    last = path.rpartition("/")[2]
    return FUSED.index(last) if is_fused(config) and last in FUSED else None


def rows_of(config: DecoderConfig, path: str) -> np.ndarray | None:
    """The rows of a fused map that are the module's at one of our paths; None where it is a map by itself."""
    third = _third(config, path)
    return None if third is None else fused_rows(config, third)


def fused_rows(config: DecoderConfig, third: int) -> np.ndarray:
    """The rows of a fused map `[head, (q, k, v), d_head]` that are one of the three."""
    rows = np.arange(3 * config.num_heads * config.d_head).reshape(config.num_heads, 3, config.d_head)
    return rows[:, third].reshape(-1)


def load(directory: Path, *, dropout_rate: float | None = None, **options: Any) -> Decoder:
    """The model of a directory in Hugging Face layout, or of a GGUF file; other options as of `load_tensors`.

    Args:
      dropout_rate: None takes the checkpoint's.

    Raises:
      UserError: as `read_directory` and `load_tensors`.
      RunFailed: a file is damaged or cut short.
    """
    config, tensors = read_directory(directory, dropout_rate=dropout_rate)
    return load_tensors(config, tensors, source=str(directory), **options)


def read_config(directory: Path) -> DecoderConfig:
    """The config of a directory in Hugging Face layout, or of a GGUF file; where it names no end, the tokenizer's.

    Raises:
      UserError: as `DecoderConfig.from_dict`, or nothing names a token that ends a text.
    """
    values, source = read_values(directory)
    return DecoderConfig.from_dict(named_by_tokenizer(directory, values), source)


def read_directory(directory: Path, *, dropout_rate: float | None = None) -> tuple[DecoderConfig, Checkpoint]:
    """The config of a directory in Hugging Face layout, or of a GGUF file, and its weights, not yet read.

    Raises:
      UserError: as `DecoderConfig.from_dict` and `open_checkpoint`; or the weights do not fit `config.json`.
      RunFailed: a file is damaged or cut short.
    """
    config = read_config(directory)
    if dropout_rate is not None:
        config = dataclasses.replace(config, dropout_rate=dropout_rate)
    refuse_oversize(directory, abstract(Decoder, config))
    return config, open_checkpoint(directory)


def load_tensors(
    config: DecoderConfig,
    tensors: Checkpoint,
    *,
    source: str,
    dtype: Any = jnp.float32,
    stored_dtype: Any = None,
    place: Devices = on_first_device,
    quantization: Quantization | None = None,
) -> Decoder:
    """A model of weights that stand under their `transformers` names, in PyTorch's orientation, wherever they are.

    Every weight is either used, a copy of one that is, or an error. Each device receives its own part of a weight; the
    host holds one stacked weight at a time.

    Args:
      tensors: is asked for a weight at a time. Names may lack the prefix that `transformers` has before them.
      source: what messages call the weights.
      dtype: that the model computes in.
      stored_dtype: of the weights in memory; None is `dtype`.
      place: `(path, shape)` to the devices of a weight.
      quantization: of the maps within the blocks; None leaves them as the tensors are.

    Raises:
      UserError: as `open_filling` and `chosen_forms`.
    """
    filling = open_filling(config, tensors, source=source, dtype=dtype)
    filling.fill(stored_dtype or dtype, place, quantization)
    return filling.model


def open_filling(
    config: DecoderConfig, tensors: Checkpoint, *, source: str, dtype: Any = jnp.float32
) -> Filling[Decoder]:
    """The model of a config with shapes in the place of weights, and how these are read.

    Arguments as of `load_tensors`.

    Raises:
      UserError: a weight is absent, of another shape, without a place in the model, or there twice.
    """
    model = abstract(Decoder, config, dtype=dtype)
    file_name = _file_names(config, tensors, source)

    def stored_as(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        at = stored(config, name)
        if at.third is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        return file_name.get(at.name, at.name), shape[::-1] if at.transposed else shape

    passed_over = {name for name in tensors.names() if BUFFERS.fullmatch(name)}
    if config.tie_word_embeddings and f"{_HEAD}.weight" in tensors.names():
        embedding = stored_as("shared/embedding", ())[0]
        if embedding in tensors.names() and not are_equal(tensors, embedding, f"{_HEAD}.weight"):
            raise UserError(
                f"{source}: config.json says that the head is the embedding, and {_HEAD}.weight is another table; set "
                "tie_word_embeddings to false in it if the head is one of its own."
            )
        passed_over.add(f"{_HEAD}.weight")
    what = f"a model of type {config.model_type}"
    refuse_misfits(model, tensors, stored_as, unread=passed_over, source=source, what=what)

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        at, (file, _) = stored(config, name), stored_as(name, shape)
        if at.third is None:
            return tensors.read(file, part[::-1]).T if at.transposed else tensors.read(file, part)
        whole = slice(0, 3 * shape[-1])
        rows = fused_rows(config, at.third)[part[-1]]
        return tensors.read(file, (whole, *part[:-1]))[rows].T

    def stored_name(name: str) -> tuple[str, int | None]:
        return stored_as(name, (0, 0))[0], stored(config, name).third

    def hub_weight(name: str) -> tuple[str, bool]:
        at = stored(config, name)
        return at.name, at.transposed

    return Filling(model, tensors, read, stored_name, lambda third: fused_rows(config, third), source, hub_weight)


def _file_names(config: DecoderConfig, tensors: Checkpoint, source: str) -> dict[str, str]:
    """The name in the file of each weight, by the one that `transformers` has for it."""
    prefix, found = _NAMES[config.model_type]["prefix"], {}
    for name in sorted(tensors.names()):
        whole = name if name.startswith((prefix, f"{_HEAD}.")) else f"{prefix}{name}"
        if whole in found:
            raise UserError(f"{source} holds {one_line(found[whole])} and {one_line(name)}; which one counts?")
        found[whole] = name
    return found


def refuse_fused(config: DecoderConfig) -> None:
    """Raises `UserError`: files of such a model have several maps in one, which is not written in few bits."""
    if is_fused(config):
        raise UserError(
            f"a {config.model_type} has queries, keys and values in one map of its files, which in 8 or 4 bits is not "
            "written; save it wide, and quantise it when it is loaded (model.quantization)."
        )


def save(model: Decoder, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
    """Writes `config.json` and `model.safetensors`, which `transformers` opens as the model that it is.

    Args:
      kind: the type of variable that holds the weights; `Adapter` after full tuning.
      dtype: of the stored weights; None keeps each as it is.
    """
    config, weights, fused = model.config, {}, {}
    packed = packed_tensors(model)
    if packed:
        refuse_fused(config)
    for name, (form, leaves) in packed.items():
        weights |= to_file(stored(config, f"{name}/kernel").name, form, leaves)
    for name, value in named_leaves(model, WIDE if kind is nnx.Param else kind).items():
        at = stored(config, name)
        host = value if dtype is None else value.astype(dtype)
        host = np.ascontiguousarray(host.T if at.transposed else host)
        if at.third is None:
            weights[at.name] = host
        else:
            fused.setdefault(at.name, {})[at.third] = host
    for name, thirds in fused.items():
        whole = np.empty((3 * len(thirds[0]), *thirds[0].shape[1:]), np.result_type(*(thirds[i] for i in range(3))))
        for third, rows in thirds.items():
            whole[fused_rows(config, third)] = rows
        weights[name] = whole
    write_model(directory, weights, config.to_dict() | said_of(packed, KEPT_WIDE))
