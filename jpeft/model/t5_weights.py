"""Loads and saves T5 checkpoints under the weight names of `transformers`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import WIDE, Devices, Part, named_leaves, on_first_device
from jpeft.model.abstract import abstract
from jpeft.model.bitsandbytes import packed_tensors, to_file
from jpeft.model.gguf import is_gguf
from jpeft.model.quantized import Quantization
from jpeft.model.t5 import T5
from jpeft.model.t5_config import T5Config
from jpeft.model.weight_files import INDEXES, Checkpoint, are_equal, open_checkpoint, read_values
from jpeft.model.weights import Filling, quantization_entry, refuse_misfits, refuse_oversize, write_model

# A bias that T5 1.0 checkpoints hold and never use; transformers ignores it, too.
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# Names of the embedding; a file may hold it under any of these, or under several as copies.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"
KEPT_WIDE = ("lm_head", "wo")  # modules that `quantization_config` lists as not quantized


def hub_module(path: str) -> str:
    """The `transformers` name of the module at one of our paths, such as `encoder/layers/0/feed_forward/wo`."""
    parts = path.split("/")
    if parts[0] not in ("encoder", "decoder"):
        return ".".join(parts)
    stack, rest = parts[0], parts[1:]
    if rest[0] == "final_norm":
        return f"{stack}.final_layer_norm"
    if rest[0] == "relative_attention_bias":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    _, index, sublayer, *tail = rest
    order = (
        ["self_attention", "feed_forward"]
        if stack == "encoder"
        else ["self_attention", "cross_attention", "feed_forward"]
    )
    names = {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention", "feed_forward": "DenseReluDense"}
    sublayer, is_norm = sublayer.removesuffix("_norm"), sublayer.endswith("_norm")
    module = "layer_norm" if is_norm else names[sublayer]
    return ".".join([f"{stack}.block.{index}.layer.{order.index(sublayer)}.{module}", *tail])


def hub_weight(name: str) -> tuple[str, bool]:
    """The `transformers` name of one of our weights, and whether it is stored transposed there, as (out, in)."""
    module, _, leaf = name.rpartition("/")
    return f"{hub_module(module)}.weight", leaf == "kernel"


def read_config(directory: Path) -> T5Config:
    """Read the config of a directory or GGUF file; for safetensors, the weights decide whether the head is tied.

    Raises:
      UserError: as `T5Config.from_dict` and `read_values`.
      RunFailed: the weights are damaged.
    """
    config = T5Config.from_dict(*read_values(directory))
    if is_gguf(directory) or not any(
        (directory / name).is_file() for name in ("model.safetensors", INDEXES["model.safetensors"])
    ):
        return config  # other formats would have to be read whole, and come from versions whose config is reliable
    return config.with_head(tied=_tables(open_checkpoint(directory), directory)[1] is None)


def _tables(checkpoint: Checkpoint, directory: Path) -> tuple[str | None, str | None]:
    """The names of the embedding and of a separate head in a checkpoint; each None if there is none.

    Like `transformers` 5, this goes by the weights and not by the config: the head is tied if the file has none, or one
    that equals the embedding. If a file has a head and no embedding, that is the embedding.

    Raises:
      UserError: encoder and decoder have different embeddings, which this network does not support.
    """
    names = checkpoint.names()
    here = [name for name in _EMBEDDINGS if name in names]
    if not here:
        return (_HEAD if _HEAD in names else None), None
    for copy in here[1:]:
        if not are_equal(checkpoint, here[0], copy):
            raise UserError(
                f"{directory}: {copy} differs from {here[0]}; a T5 has one embedding for encoder and decoder."
            )
    own_head = _HEAD in names and not are_equal(checkpoint, here[0], _HEAD)
    return here[0], _HEAD if own_head else None


def load(
    directory: Path,
    *,
    dtype: Any = jnp.float32,
    stored_dtype: Any = None,
    dropout_rate: float | None = None,
    place: Devices = on_first_device,
    quantization: Quantization | None = None,
) -> T5:
    """Load a model from a directory in Hugging Face layout or from a GGUF file.

    The weights decide whether the head is tied to the embedding, and every weight of the file has to be used or to be a
    copy of one that is. Each device receives only its shard of a weight; the host holds one stacked weight at a time.

    Args:
      directory: the directory or GGUF file.
      dtype: the dtype that the model computes in.
      stored_dtype: the dtype of the weights in memory; None is `dtype`.
      dropout_rate: the dropout rate in training; None takes the checkpoint's.
      place: maps a weight's path and shape to the devices that hold it.
      quantization: how to quantize the linear maps within the blocks; None leaves them as the files have them.

    Raises:
      UserError: as `open_filling` and `chosen_forms`.
      RunFailed: a file is damaged or cut short.
    """
    filling = open_filling(directory, dtype=dtype, dropout_rate=dropout_rate)
    filling.fill(stored_dtype or dtype, place, quantization)
    return filling.model


def open_filling(directory: Path, *, dtype: Any = jnp.float32, dropout_rate: float | None = None) -> Filling[T5]:
    """Match a checkpoint to a model without reading the weights; arguments as of `load`.

    Returns:
      The model, with shapes in the place of weights, and how to fill it.

    Raises:
      UserError: as `T5Config.from_dict`, `read_values` and `open_checkpoint`; or the weights do not fit `config.json`.
      RunFailed: a file is damaged or cut short.
    """
    config = T5Config.from_dict(*read_values(directory))
    if dropout_rate is not None:
        config = dataclasses.replace(config, dropout_rate=dropout_rate)
    refuse_oversize(directory, abstract(T5, config.with_head(tied=False)))
    checkpoint = open_checkpoint(directory)
    embedding, head = _tables(checkpoint, directory)
    config = config.with_head(tied=head is None)
    model = abstract(T5, config, dtype=dtype)
    found_as = {"shared.weight": embedding or "shared.weight"}

    def stored_as(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        stored, transposed = hub_weight(name)
        return found_as.get(stored, stored), shape[::-1] if transposed else shape

    copies = {*_EMBEDDINGS, _HEAD, _IGNORED}
    refuse_misfits(model, checkpoint, stored_as, unread=copies, source=str(directory), what="a T5")

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        stored, transposed = hub_weight(name)
        source = found_as.get(stored, stored)
        return checkpoint.read(source, part[::-1]).T if transposed else checkpoint.read(source, part)

    return Filling(
        model, checkpoint, read, lambda name: (stored_as(name, ())[0], None), None, str(directory), hub_weight
    )


def save(model: T5, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers` opens as a `T5ForConditionalGeneration`.

    Args:
      model: the model to save.
      directory: where to write; made if it does not exist.
      kind: the type of variable that holds the weights; `Adapter` after full tuning.
      dtype: the dtype of the stored weights; None keeps each weight's own.
    """
    config, weights = model.config, {}
    for name, value in named_leaves(model, WIDE if kind is nnx.Param else kind).items():
        stored, transposed = hub_weight(name)
        host = value if dtype is None else value.astype(dtype)
        weights[stored] = np.ascontiguousarray(host.T if transposed else host)
    for name, copied in tensor_copies(config).items():
        weights[name] = weights[copied].copy()
    packed = packed_tensors(model)
    for name, (form, leaves) in packed.items():
        weights |= to_file(hub_weight(f"{name}/kernel")[0], form, leaves)
    write_model(directory, weights, config.to_dict() | quantization_entry(packed, KEPT_WIDE))


def tensor_copies(config: T5Config) -> dict[str, str]:
    """Tensors that a file stores as copies of others, by name.

    A tied head whose outputs are not scaled is stored as if it were not tied: transformers 4, which scales the outputs
    of every tied head, then finds an untied one.
    """
    return {_HEAD: "shared.weight"} if config.tie_word_embeddings and not config.scales_outputs else {}
