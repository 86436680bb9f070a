"""T5 checkpoints, by the names that `transformers` has for their weights, to our tree and back."""

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
from jpeft.model.weights import Filling, refuse_misfits, refuse_oversize, said_of, write_model

# A bias that T5 1.0 trained and never used, as transformers knows, too.
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# The embedding may be stored under any of these, or under several as copies.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"
KEPT_WIDE = ("lm_head", "wo")  # modules that `transformers` is told of as wide in a file in few bits, where they are


def hub_module(path: str) -> str:
    """Name in `transformers` of the module at one of our paths: `encoder/layers/0/feed_forward/wo` and so on."""
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
    """Name in `transformers` of one of our weights, and whether it is stored transposed there, as (out, in)."""
    module, _, leaf = name.rpartition("/")
    return f"{hub_module(module)}.weight", leaf == "kernel"


def read_config(directory: Path) -> T5Config:
    """The sizes of a model directory; whether its head is tied is what its weights say, where safetensors are there.

    Raises:
      UserError: as `T5Config.from_dict` and `read_values`.
      RunFailed: the weights are damaged.
    """
    config = T5Config.from_dict(*read_values(directory))
    if is_gguf(directory) or not any(
        (directory / name).is_file() for name in ("model.safetensors", INDEXES["model.safetensors"])
    ):
        return config  # weights of other formats are read whole, and of versions whose config says it
    return config.with_head(tied=_tables(open_checkpoint(directory), directory)[1] is None)


def _tables(checkpoint: Checkpoint, directory: Path) -> tuple[str | None, str | None]:
    """Under which names the embedding stands, and a head of its own; None where there is none.

    As `transformers` 5 ties: whatever a config says, a head that is absent is the embedding, and so is one of the same
    values; any other counts. Where a head is all that there is, it is the embedding.

    Raises:
      UserError: encoder and decoder have embeddings of their own that differ, which this network does not have.
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
    """The model of a checkpoint directory, computing in `dtype`.

    What the file holds decides: a head in it counts, one that is absent is the embedding, and every weight is either
    used, a copy of one that is, or an error. Each device receives its own part of a weight straight from the file; the
    host holds one stacked weight at a time.

    Args:
      stored_dtype: of the weights in memory; None is `dtype`.
      dropout_rate: None takes the checkpoint's.
      place: `(path, shape)` to the devices of a weight.
      quantization: of the maps within the blocks; None leaves them as the files have them.

    Raises:
      UserError: as `open_filling` and `chosen_forms`.
      RunFailed: a file is damaged or cut short.
    """
    filling = open_filling(directory, dtype=dtype, dropout_rate=dropout_rate)
    filling.fill(stored_dtype or dtype, place, quantization)
    return filling.model


def open_filling(directory: Path, *, dtype: Any = jnp.float32, dropout_rate: float | None = None) -> Filling[T5]:
    """The model of a checkpoint directory with shapes in the place of weights, and how these are read.

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
    """Writes `config.json` and `model.safetensors`, which `transformers` opens as a `T5ForConditionalGeneration`.

    Args:
      kind: the type of variable that holds the weights; `Adapter` after full tuning.
      dtype: of the stored weights; None keeps each as it is.
    """
    config, weights = model.config, {}
    for name, value in named_leaves(model, WIDE if kind is nnx.Param else kind).items():
        stored, transposed = hub_weight(name)
        host = value if dtype is None else value.astype(dtype)
        weights[stored] = np.ascontiguousarray(host.T if transposed else host)
    for name, copied in repeated(config).items():
        weights[name] = weights[copied].copy()
    packed = packed_tensors(model)
    for name, (form, leaves) in packed.items():
        weights |= to_file(hub_weight(f"{name}/kernel")[0], form, leaves)
    write_model(directory, weights, config.to_dict() | said_of(packed, KEPT_WIDE))


def repeated(config: T5Config) -> dict[str, str]:
    """Tensors of a file that are copies of others, with these: without, transformers 4 would scale, or find no head."""
    return {_HEAD: "shared.weight"} if config.tie_word_embeddings and not config.scales_outputs else {}
