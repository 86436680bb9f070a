"""Loads and saves decoder-only checkpoints under the weight names of `transformers`.

Names may lack the prefix (`transformer.`, `model.`), as in some released files. BLOOM's fused map of queries, keys and
values is split into three maps on loading and fused again on saving.
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
from jpeft.model.weights import Filling, quantization_entry, refuse_misfits, refuse_oversize, write_model
from jpeft.words import one_line

# `transformers` names of our modules: `<prefix><name>` outside of blocks, `<prefix><blocks>.<index>.<name>` in a block.
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
KEPT_WIDE = (_HEAD,)  # modules that `quantization_config` lists as not quantized
FUSED = ("q", "k", "v")  # the order within a fused map


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a file holds one of our weights.

    Attributes:
      name: the weight's name in the file.
      transposed: whether the file has it as `[out, in]`.
      third: which third of a fused map it is (an index into `FUSED`); None if the map is not fused.
    """

    name: str
    transposed: bool
    third: int | None = None


def hub_module(config: DecoderConfig, path: str) -> str:
    """The `transformers` name of the module at one of our paths, such as `decoder/layers/0/feed_forward/up`."""
    names = _NAMES[config.model_type]
    if path == _HEAD:
        return _HEAD
    block = re.fullmatch(r"decoder/layers/(\d+)/(.*)", path)
    if block:
        return f"{names['prefix']}{names['blocks']}.{block[1]}.{names[block[2]]}"
    return f"{names['prefix']}{names[path]}"


def is_fused(config: DecoderConfig) -> bool:
    """Whether files hold queries, keys and values as one fused map."""
    names = _NAMES[config.model_type]
    return names["self_attention/q"] == names["self_attention/k"]


def stored(config: DecoderConfig, name: str) -> Stored:
    """Where files of such a model hold one of our weights, such as `decoder/layers/0/self_attention/q/kernel`."""
    module, _, leaf = name.rpartition("/")
    file_name = f"{hub_module(config, module)}.{'bias' if leaf == 'bias' else 'weight'}"
    return Stored(file_name, leaf == "kernel", _third(config, module))


def _third(config: DecoderConfig, path: str) -> int | None:
    last = path.rpartition("/")[2]
    return FUSED.index(last) if is_fused(config) and last in FUSED else None


def rows_of(config: DecoderConfig, path: str) -> np.ndarray | None:
    """The rows of a fused map that belong to the module at one of our paths; None if the map is not fused."""
    third = _third(config, path)
    return None if third is None else fused_rows(config, third)


def fused_rows(config: DecoderConfig, third: int) -> np.ndarray:
    """The rows of a fused map, laid out as `[num_heads, 3, d_head]`, that belong to one third of it."""
    rows = np.arange(3 * config.num_heads * config.d_head).reshape(config.num_heads, 3, config.d_head)
    return rows[:, third].reshape(-1)


def load(directory: Path, *, dropout_rate: float | None = None, **options: Any) -> Decoder:
    """Load a model from a directory in Hugging Face layout or from a GGUF file; `options` as of `load_tensors`.

    Args:
      directory: the directory or GGUF file.
      dropout_rate: the dropout rate in training; None takes the checkpoint's.

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
    """Open a directory in Hugging Face layout or a GGUF file; returns its config and its weights, not yet read.

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
    """Load a model from tensors that have `transformers` names and PyTorch's orientation.

    Every tensor has to be used or to be a copy of one that is. Each device receives only its shard of a weight; the
    host holds one stacked weight at a time.

    Args:
      config: the model's config.
      tensors: the weights, read one at a time; names may lack the prefix that `transformers` has before them.
      source: the name of the weights in error messages.
      dtype: the dtype that the model computes in.
      stored_dtype: the dtype of the weights in memory; None is `dtype`.
      place: maps a weight's path and shape to the devices that hold it.
      quantization: how to quantize the linear maps within the blocks; None leaves them as the tensors are.

    Raises:
      UserError: as `open_filling` and `chosen_forms`.
    """
    filling = open_filling(config, tensors, source=source, dtype=dtype)
    filling.fill(stored_dtype or dtype, place, quantization)
    return filling.model


def open_filling(
    config: DecoderConfig, tensors: Checkpoint, *, source: str, dtype: Any = jnp.float32
) -> Filling[Decoder]:
    """Match tensors to a model without reading them; arguments as of `load_tensors`.

    Returns:
      The model, with shapes in the place of weights, and how to fill it.

    Raises:
      UserError: a weight is missing, unexpected, duplicated or of the wrong shape.
    """
    model = abstract(Decoder, config, dtype=dtype)
    file_name = _file_names(config, tensors, source)

    def stored_as(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        at = stored(config, name)
        if at.third is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        return file_name.get(at.name, at.name), shape[::-1] if at.transposed else shape

    ignored = {name for name in tensors.names() if BUFFERS.fullmatch(name)}
    if config.tie_word_embeddings and f"{_HEAD}.weight" in tensors.names():
        embedding = stored_as("shared/embedding", ())[0]
        if embedding in tensors.names() and not are_equal(tensors, embedding, f"{_HEAD}.weight"):
            raise UserError(
                f"{source}: config.json ties the head to the embedding, but {_HEAD}.weight differs from it; set "
                "tie_word_embeddings to false there if the model has a separate head."
            )
        ignored.add(f"{_HEAD}.weight")
    what = f"a model of type {config.model_type}"
    refuse_misfits(model, tensors, stored_as, unread=ignored, source=source, what=what)

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
    """The name in the file of each weight, by its `transformers` name."""
    prefix, found = _NAMES[config.model_type]["prefix"], {}
    for name in sorted(tensors.names()):
        whole = name if name.startswith((prefix, f"{_HEAD}.")) else f"{prefix}{name}"
        if whole in found:
            raise UserError(
                f"{source} holds both {one_line(found[whole])} and {one_line(name)}, names of one weight; remove one."
            )
        found[whole] = name
    return found


def refuse_fused(config: DecoderConfig) -> None:
    """Raise `UserError` if files of such a model hold fused maps, which are not written quantized."""
    if is_fused(config):
        raise UserError(
            f"a {config.model_type} has queries, keys and values fused in its files, which jpeft does not write in 8 "
            "or 4 bits; save it wide, and quantize it when it is loaded (model.quantization)."
        )


def save(model: Decoder, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers` can open.

    Args:
      model: the model to save.
      directory: where to write; made if it does not exist.
      kind: the type of variable that holds the weights; `Adapter` after full tuning.
      dtype: the dtype of the stored weights; None keeps each weight's own.

    Raises:
      UserError: as `refuse_fused`, if the model is quantized.
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
    write_model(directory, weights, config.to_dict() | quantization_entry(packed, KEPT_WIDE))
