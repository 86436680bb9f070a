"""Released checkpoints (Hugging Face layout) to our tree and back.

Reads `model.safetensors`, sharded safetensors with its index, `flax_model.msgpack` and, where PyTorch is installed,
`pytorch_model.bin` by `torch.load(weights_only=True)`. Nothing is ever unpickled otherwise.
"""

import abc
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, serialization, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jpeft.errors import RunFailed, UserError
from jpeft.files import write_whole
from jpeft.model.config import T5Config
from jpeft.model.leaves import Part, Place, fill, named_leaves, on_first_device
from jpeft.model.t5 import T5

# What checkpoints hold besides, and may: copies of the shared embedding, and a bias that T5 1.0 trained but never used.
_IGNORED = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
_SHARED_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


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


class Checkpoint(abc.ABC):
    """Weights under their `transformers` names, in PyTorch's orientation, read one at a time."""

    @abc.abstractmethod
    def names(self) -> set[str]:
        """Names of every weight that is there."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Of one weight."""

    @abc.abstractmethod
    def read(self, name: str, part: Part) -> np.ndarray:
        """A part of one weight."""


class _Safetensors(Checkpoint):
    def __init__(self, files: list[Path]):
        self._file_of = {}
        for path in files:
            try:
                with safe_open(path, framework="numpy") as file:
                    self._file_of.update(dict.fromkeys(file.keys(), path))
            except SafetensorError as error:
                raise RunFailed(f"{path} is damaged or cut short ({error}); download or copy it again.") from None

    def names(self) -> set[str]:
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._file_of[name], framework="numpy") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str, part: Part) -> np.ndarray:
        with safe_open(self._file_of[name], framework="numpy") as file:
            return file.get_slice(name)[part]


class _InMemory(Checkpoint):
    def __init__(self, weights: Mapping[str, np.ndarray]):
        self._weights = weights

    def names(self) -> set[str]:
        return set(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights[name].shape

    def read(self, name: str, part: Part) -> np.ndarray:
        return self._weights[name][part]


def _read_msgpack(files: list[Path]) -> _InMemory:
    weights = {}
    for path in files:
        try:
            tree = serialization.msgpack_restore(path.read_bytes())
            flat: Any = traverse_util.flatten_dict(tree, sep=".")
        except Exception as error:  # msgpack has no common base for what damaged bytes raise
            raise RunFailed(f"{path} is damaged or cut short ({error}); download or copy it again.") from None
        for name, value in flat.items():
            module, _, leaf = name.rpartition(".")
            weights[f"{module}.weight"] = value.T if leaf == "kernel" else value
    return _InMemory(weights)


def _read_torch(files: list[Path]) -> _InMemory:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{files[0]} can be read only where PyTorch is installed; install it, or save the model as safetensors."
        ) from None
    weights: dict[str, Any] = {}
    for path in files:
        try:
            weights.update(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged zip, an unexpected pickle opcode: all mean the same to the caller
            reason = str(error).partition("\n")[0]
            raise RunFailed(f"{path} is damaged, or holds more than plain weights ({reason}).") from None
    return _InMemory({name: value.float().numpy() for name, value in weights.items()})


_FORMATS: dict[str, Callable[[list[Path]], Checkpoint]] = {
    "model.safetensors": _Safetensors,
    "flax_model.msgpack": _read_msgpack,
    "pytorch_model.bin": _read_torch,
}
INDEXES = {
    "model.safetensors": "model.safetensors.index.json",
    "flax_model.msgpack": "flax_model.msgpack.index.json",
    "pytorch_model.bin": "pytorch_model.bin.index.json",
}


def weight_files(directory: Path) -> tuple[str, list[Path]]:
    """The best format that a directory has weights in, a key of `INDEXES`, and the files of it.

    Raises:
      UserError: no weights, or an index that names a file which is absent or lies outside the directory.
      RunFailed: the index is damaged.
    """
    for name in _FORMATS:
        if (directory / name).is_file():
            return name, [directory / name]
        if (directory / INDEXES[name]).is_file():
            return name, _shards(directory / INDEXES[name])
    looked_for = ", ".join([*_FORMATS, *INDEXES.values()])
    raise UserError(f"{directory} holds no weights; looked for {looked_for}.")


def open_checkpoint(directory: Path) -> Checkpoint:
    """The weights of a directory. Raises as `weight_files`, or `RunFailed`: a file is damaged or cut short."""
    name, files = weight_files(directory)
    return _FORMATS[name](files)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError):
        raise RunFailed(f"{index} is damaged: it has no 'weight_map'; download it again.") from None
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names {name!r}; a shard must be a file of the same directory.")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not in {index.parent}; is the download complete?")
        files.append(index.parent / name)
    return files


def load(
    directory: Path,
    *,
    dtype: Any = jnp.float32,
    stored_dtype: Any = None,
    dropout_rate: float | None = None,
    place: Place = on_first_device,
) -> T5:
    """The model of a checkpoint directory, computing in `dtype`.

    Each device receives its own part of a weight straight from the file; the host holds one stacked weight at a time.

    Args:
      stored_dtype: of the weights in memory; None is `dtype`.
      dropout_rate: None takes the checkpoint's.
      place: `(path, shape)` to the devices of a weight.

    Raises:
      UserError: as `T5Config.from_file` and `open_checkpoint`; or the weights do not fit `config.json`.
      RunFailed: a file is damaged or cut short.
    """
    config = T5Config.from_file(directory / "config.json")
    if dropout_rate is not None:
        config = dataclasses.replace(config, dropout_rate=dropout_rate)
    checkpoint = open_checkpoint(directory)
    model: T5 = nnx.eval_shape(lambda: T5(config, dtype=dtype, rngs=nnx.Rngs(0)))
    unread = {name for name in checkpoint.names() if not _IGNORED.fullmatch(name)}
    if config.tie_word_embeddings:
        unread.discard("lm_head.weight")
    absent = []

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        stored, transposed = hub_weight(name)
        source = _stored_as(stored, checkpoint.names())
        if source is None:
            absent.append(stored)
            return np.zeros([s.stop - s.start for s in part], np.float32)
        unread.discard(source)
        there = checkpoint.shape(source)
        if (there[::-1] if transposed else there) != shape:
            raise UserError(
                f"{directory}: {source} has shape {there} where config.json asks for "
                f"{shape[::-1] if transposed else shape}; the weights and the config are of different models."
            )
        return checkpoint.read(source, part[::-1]).T if transposed else checkpoint.read(source, part)

    fill(model, nnx.Param, read, stored_dtype or dtype, place)
    if absent or unread:
        what = f"lacks {_a_few(absent)}" if absent else f"holds weights that a T5 has no place for: {_a_few(unread)}"
        raise UserError(f"{directory} {what}; the weights and config.json are of different models.")
    return model


def _stored_as(name: str, names: set[str]) -> str | None:
    """Where a weight is found: under its name, or where `transformers` keeps just one of several tied copies."""
    candidates = [name]
    if name == "shared.weight":
        candidates += _SHARED_COPIES
    if name == "lm_head.weight":  # transformers 5 ties the head and then saves the embedding alone
        candidates += ["shared.weight", *_SHARED_COPIES]
    return next((candidate for candidate in candidates if candidate in names), None)


def _a_few(names: list[str] | set[str]) -> str:
    shown = sorted(set(names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def save(model: T5, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
    """Writes `config.json` and `model.safetensors`, which `transformers` opens as a `T5ForConditionalGeneration`.

    Args:
      kind: the type of variable that holds the weights; `Adapter` after full tuning.
      dtype: of the stored weights; None keeps each as it is.
    """
    weights = {}
    for name, value in named_leaves(model, kind).items():
        stored, transposed = hub_weight(name)
        host = np.asarray(value if dtype is None else value.astype(dtype))
        weights[stored] = np.ascontiguousarray(host.T if transposed else host)
    directory.mkdir(parents=True, exist_ok=True)
    with write_whole(directory / "model.safetensors") as beside:
        save_file(weights, beside, metadata={"format": "pt"})
    with write_whole(directory / "config.json") as beside:
        beside.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
