"""Opens checkpoint files of all supported formats, with access to their weights by name.

Formats are safetensors, Flax's msgpack, GGUF and, if PyTorch is installed, `pytorch_model.bin`; all but GGUF may be
sharded. PyTorch files are read by `torch.load(weights_only=True)`; nothing is unpickled otherwise.
"""

import abc
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object
from jpeft.fingerprints import fingerprint, fingerprints_of
from jpeft.leaves import Part
from jpeft.model.bitsandbytes import Packed
from jpeft.model.config_fields import MOST_CONFIG_BYTES
from jpeft.model.ends import with_generation_tokens
from jpeft.model.gguf import is_gguf
from jpeft.model.quantized import Quantization
from jpeft.trouble import first_line
from jpeft.words import one_line

_MOST_INDEX_BYTES = 16 * 2**20
_MOST_OBJECTS = 2**20  # in a msgpack; a tree has a few per weight
# Masks and rotary frequencies in old files of decoder-only models, which the network computes itself.
BUFFERS = re.compile(r".*(\.attn(\.attention)?\.(bias|masked_bias|embed_positions)|rotary_emb\.inv_freq)")
_COMPARED_ROWS = 4096  # rows of two tables that are compared at a time


class Checkpoint(abc.ABC):
    """Weights by their `transformers` names, in PyTorch's orientation, read one at a time."""

    @abc.abstractmethod
    def names(self) -> set[str]:
        """The names of all weights."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight called `name`, without reading its values."""

    @abc.abstractmethod
    def read(self, name: str, part: Part) -> np.ndarray:
        """Read the slice `part` of a weight."""

    @property
    def packed(self) -> Packed | None:
        """The quantized maps, which `read` dequantizes to float32; None if there are none."""
        return None


class _Safetensors(Checkpoint):
    def __init__(self, files: list[Path]):
        self._file_of: dict[str, Path] = {}
        for path in files:
            with _damage(path, SafetensorError, OSError):
                with safe_open(path, framework="numpy") as file:
                    names = list(file.keys())
            for name in names:
                if name in self._file_of:
                    raise UserError(
                        f"{one_line(name)} is both in {self._file_of[name]} and in {path.name}; keep one of the two."
                    )
                self._file_of[name] = path

        packed = Packed(set(self._file_of), self._stored_shape, self._stored, str(files[0].parent))
        self._packed = packed if packed.maps else None

    @property
    def packed(self) -> Packed | None:
        return self._packed

    def names(self) -> set[str]:
        return set(self._file_of) - (set() if self._packed is None else self._packed.beside)

    def shape(self, name: str) -> tuple[int, ...]:
        if self._packed is not None and name in self._packed.maps:
            return self._packed.maps[name].shape
        return self._stored_shape(name)

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._file_of[name], framework="numpy") as file:
            return tuple(file.get_slice(name).get_shape())

    def _stored(self, name: str) -> np.ndarray:
        return self._taken(name, lambda file: file.get_tensor(name))

    def read(self, name: str, part: Part) -> np.ndarray:
        if self._packed is not None and name in self._packed.maps:
            return self._packed.dequantized(name, part)
        return _as_weight(self._taken(name, lambda file: file.get_slice(name)[part]), self._file_of[name], name)

    def _taken(self, name: str, take: Callable[[Any], Any]) -> Any:
        """What `take` reads from the open file that holds a weight."""
        path = self._file_of[name]
        with _damage(path, SafetensorError, OSError, KeyError):
            with safe_open(path, framework="numpy") as file:
                try:
                    return take(file)
                except (TypeError, AttributeError):  # how the library fails on a dtype that NumPy lacks
                    kind = file.get_slice(name).get_dtype()
                    raise UserError(
                        f"{path}: {one_line(name)} is of {kind}, a dtype that jpeft does not read; save the model in "
                        "bfloat16 or float32."
                    ) from None


class InMemory(Checkpoint):
    """Weights that are arrays in memory, by their `transformers` names."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self._weights = weights

    def names(self) -> set[str]:
        return set(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights[name].shape

    def read(self, name: str, part: Part) -> np.ndarray:
        return self._weights[name][part]


@contextlib.contextmanager
def _damage(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Convert the errors that a library raises for a damaged file to a one-line `RunFailed`."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except errors as error:
        reason = first_line(error, 200)
        raise RunFailed(f"{path} is damaged or cut short ({reason}); download or copy it again.") from None


def _as_weight(value: Any, path: Path, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise UserError(f"{path}: {one_line(name)} is {what}; expected an array of floating-point numbers.")
    return value


def _read_msgpack(files: list[Path]) -> InMemory:
    weights: dict[str, np.ndarray] = {}
    for path in files:
        with _damage(path, Exception):  # the errors for damaged msgpack have no common base class
            raw = path.read_bytes()
            _refuse_many_objects(raw)
            tree = serialization.msgpack_restore(raw)
            flat: Any = traverse_util.flatten_dict(tree)
            named = [(".".join(path), value) for path, value in flat.items()]
        for name, value in named:
            module, _, leaf = name.rpartition(".")
            value = _as_weight(value, path, name)
            stored = f"{module}.{'bias' if leaf == 'bias' else 'weight'}"
            _put(weights, stored, value.T if leaf == "kernel" else value, path)
    return InMemory(weights)


def _refuse_many_objects(raw: bytes) -> None:
    """Raise `ValueError` if msgpack data holds far more objects than a tree of arrays; each may take a single byte."""
    left = _MOST_OBJECTS

    def count_items(items: Any) -> None:
        nonlocal left
        left -= 1 + len(items)
        if left < 0:
            raise ValueError(f"it holds more than {_MOST_OBJECTS:,} objects")

    def count_objects(data: bytes) -> None:
        msgpack.unpackb(
            data,
            ext_hook=lambda code, inner: count_objects(inner),
            list_hook=count_items,
            object_pairs_hook=count_items,
            strict_map_key=False,
            raw=True,
            max_array_len=_MOST_OBJECTS,
            max_map_len=_MOST_OBJECTS,
        )

    count_objects(raw)


def _put(weights: dict[str, np.ndarray], name: str, value: np.ndarray, path: Path) -> None:
    if name in weights:
        raise UserError(f"{one_line(name)} is there twice, the second time in {path}; keep one of the two.")
    weights[name] = value


def _read_torch(files: list[Path]) -> InMemory:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{files[0]} can be read only where PyTorch is installed; install it, or save the model as safetensors."
        ) from None
    weights: dict[str, np.ndarray] = {}
    for path in files:
        try:
            values = dict(torch.load(path, map_location="cpu", weights_only=True))
            plain = {str(name): _as_numpy(value) for name, value in values.items() if not BUFFERS.fullmatch(str(name))}
        except Exception as error:  # a damaged zip, a forbidden pickle opcode and others
            reason = first_line(error, 200)
            raise RunFailed(f"{path} is damaged, or holds more than plain weights ({reason}).") from None
        for name, value in plain.items():
            _put(weights, name, _as_weight(value, path, name), path)
    return InMemory(weights)


def _as_numpy(value: Any) -> Any:
    """Convert a PyTorch tensor, floating-point ones to float32; any other object is returned as it is."""
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.is_floating_point() and not value.is_quantized:
        return value.float().numpy()
    return value.numpy()  # `_as_weight` refuses it and names its dtype


FORMATS: dict[str, Callable[[list[Path]], Checkpoint]] = {
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
    """The best format among a directory's weight files, a key of `FORMATS`, and the files of that format.

    Raises:
      UserError: there are no weights, or an index names a file that is missing or outside of the directory.
      RunFailed: the index is damaged.
    """
    for name in FORMATS:
        if (directory / name).is_file():
            return name, [directory / name]
        if (directory / INDEXES[name]).is_file():
            return name, _shards(directory / INDEXES[name])
    looked_for = ", ".join([*FORMATS, *INDEXES.values()])
    raise UserError(f"{directory} holds no weights; looked for {looked_for}.")


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open the weights of a directory or a GGUF file. Raises as `weight_files`, and `RunFailed` for a damaged file."""
    if is_gguf(directory):
        from jpeft.model.gguf_weights import GgufWeights

        return GgufWeights(directory)
    name, files = weight_files(directory)
    return FORMATS[name](files)


def quantization_in(directory: Path) -> Quantization | None:
    """The quantization of most maps of a directory's files; None if there are no files, or none is quantized.

    Raises as `open_checkpoint`, for safetensors.
    """
    first = next((name for name, index in INDEXES.items() if any((directory / n).is_file() for n in (name, index))), "")
    if is_gguf(directory) or not first.endswith(".safetensors"):  # other formats hold no quantized maps
        return None
    packed = open_checkpoint(directory).packed
    if packed is None:
        return None
    kinds = Counter((held.kind, held.double) for held in packed.maps.values())
    (kind, double), _ = kinds.most_common(1)[0]
    return Quantization(kind, double, any(name.endswith(".wo.weight") for name in packed.maps))


def _shards(index: Path) -> list[Path]:
    mapped = read_json_object(index, error=RunFailed, most_bytes=_MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise RunFailed(f"{index} is damaged: its 'weight_map' is missing or empty; download it again.")
    files = []
    for name in {str(name): name for name in mapped.values()}.values():
        if not isinstance(name, str) or not _is_file_name(name):
            raise UserError(f"{index} names {repr(name)[:80]}; a shard must be a file of the same directory.")
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index} names {one_line(name)}, which is not in {index.parent}; is the download complete?"
            )
        files.append(index.parent / name)
    return sorted(files)


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name) and len(name.encode()) <= 255


def model_files(model: Path) -> list[Path]:
    """The files of a model's config and weights. Raises as `weight_files`."""
    return [model] if is_gguf(model) else [*weight_files(model)[1], model / "config.json"]


def model_fingerprint(model: Path) -> str | None:
    """A fingerprint of a model's weights and config; None if they cannot be read."""
    return fingerprints_of({"model": lambda: fingerprint(model_files(model))}).get("model")


def read_values(model: Path) -> tuple[dict[str, Any], str]:
    """Read the fields of a directory's `config.json`, or the equivalent of a GGUF file; also returns the file's name.

    The tokens of a `generation_config.json` beside it, with which answers begin and end, are among the fields.

    Raises:
      UserError: there is no `config.json`, it is malformed, or the GGUF file's architecture is not supported.
      RunFailed: the GGUF file is damaged.
    """
    if is_gguf(model):
        from jpeft.model.gguf_weights import gguf_config

        return gguf_config(model), str(model)
    path = model / "config.json"
    if not path.exists():
        raise UserError(f"{model} holds no config.json; expected a model directory in Hugging Face layout.")
    return with_generation_tokens(model, read_json_object(path, most_bytes=MOST_CONFIG_BYTES)), str(path)


def are_equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two matrices of a checkpoint hold the same values."""
    shape = checkpoint.shape(first)
    if checkpoint.shape(second) != shape or len(shape) != 2:
        return False
    for start in range(0, shape[0], _COMPARED_ROWS):
        part = (slice(start, min(start + _COMPARED_ROWS, shape[0])), slice(0, shape[1]))
        one, other = (checkpoint.read(name, part).astype(np.float32) for name in (first, second))
        if not np.array_equal(one, other, equal_nan=True):
            return False
    return True
