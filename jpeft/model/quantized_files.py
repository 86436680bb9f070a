"""Writes a quantized copy of a model's files, one map at a time, so that the whole model is never in memory.

The output is what `transformers` and bitsandbytes write: `config.json` with a `quantization_config`, and
`model.safetensors` or, for larger models, shards with an index.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jpeft.errors import UserError
from jpeft.files import write_whole
from jpeft.leaves import stacked_leaves
from jpeft.model.bitsandbytes import refuse_split_blocks, to_file
from jpeft.model.family import family_with
from jpeft.model.quantized import Form, Quantization, chosen_forms, quantize, require_finite
from jpeft.model.weights import Filling, quantization_entry, write_config

MOST_BYTES = 2**30  # of a shard, which is held in memory


@dataclasses.dataclass(frozen=True)
class QuantizedFiles:
    """A summary of written files.

    Attributes:
      maps: the number of quantized maps.
      wide: the number of weights that were not quantized.
      files: the number of weight files.
      bytes: the size of all tensors.
      bytes_before: the size of the weights that were read.
    """

    maps: int
    wide: int
    files: int
    bytes: int
    bytes_before: int


class _Parts:
    """Writes tensors to a directory as shards of bounded size."""

    def __init__(self, directory: Path, most_bytes: int):
        self._directory, self._most_bytes = directory, most_bytes
        self._open: dict[str, np.ndarray] = {}
        self._written: list[list[str]] = []
        self.bytes = 0

    def add(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Add tensors that have to be in the same shard."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._open and sum(tensor.nbytes for tensor in self._open.values()) + size > self._most_bytes:
            self._write()
        self._open |= tensors
        self.bytes += size

    def _write(self) -> None:
        self._written.append(list(self._open))
        save_file(self._open, self._part(len(self._written)), metadata={"format": "pt"})
        self._open = {}

    def _part(self, number: int) -> Path:
        return self._directory / f".part-{number:05d}.safetensors"

    def finish(self) -> int:
        """Rename the shards, write an index if there are several, and return their number."""
        self._write()
        count, weight_map = len(self._written), {}
        for number, names in enumerate(self._written, start=1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            part = self._part(number)
            with write_whole(self._directory / name) as beside:
                part.replace(beside)
            weight_map |= dict.fromkeys(names, name)
        if count > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(weight_map.items()))}
            with write_whole(self._directory / "model.safetensors.index.json") as beside:
                beside.write_text(json.dumps(index, indent=2) + "\n")
        return count


def tensor_count(filling: Filling[Any]) -> int:
    """The number of weights of a model, counting layers separately: the steps of `write_quantized`."""
    return sum(len(leaf.names) for leaf in stacked_leaves(filling.model, nnx.Param))


def write_quantized(
    filling: Filling[Any],
    directory: Path,
    quantization: Quantization,
    *,
    dtype: Any = None,
    on_tensor: Callable[[], None] = lambda: None,
    most_bytes: int = MOST_BYTES,
) -> QuantizedFiles:
    """Quantize a model's linear maps and write its config and weights.

    Args:
      filling: the model, whose weights are not yet read.
      directory: an existing directory to write to.
      quantization: how to quantize.
      dtype: the dtype of the other weights; None keeps each weight's own.
      on_tensor: called after each of the `tensor_count` weights.
      most_bytes: the largest size of a shard, unless a single map takes more.

    Raises:
      UserError: the files are quantized already, or the family or a map's width does not allow it; nothing is written.
      RunFailed: a file is damaged.
    """
    model, source = filling.model, filling.source
    if filling.checkpoint.packed is not None:
        kind = next(iter(filling.checkpoint.packed.maps.values())).kind
        raise UserError(
            f"{source} is in {kind} already, and is not quantized a second time; use it as it is, or give the original "
            "in 16 or 32 bits."
        )
    family = family_with(model.config)
    wide_modules, copies = family.quantized_layout(model.config)
    forms: dict[str, Form] = {}
    by_path = chosen_forms(model, quantization)
    leaves = list(stacked_leaves(model, nnx.Param))
    for leaf in leaves:
        form = by_path.get(leaf.path[:-1])
        if form is not None and leaf.path[-1] == "kernel":
            for name in leaf.names:
                refuse_split_blocks(filling.hub_weight(name)[0], form)
                forms[name] = form
    before = 0
    parts = _Parts(directory, most_bytes)
    for leaf in leaves:
        shape = tuple(leaf.variable.shape[int(leaf.stacked) :])
        for name in leaf.names:
            stored, transposed = filling.hub_weight(name)
            value = filling.read(name, shape, tuple(slice(0, size) for size in shape))
            before += value.nbytes
            if name in forms:
                parts.add(to_file(stored, forms[name], quantize(value, forms[name], name)))
            else:
                value = value if dtype is None else value.astype(dtype)
                require_finite(value, name)
                wide = np.ascontiguousarray(value.T if transposed else value)
                copied = [copy for copy, original in copies.items() if original == stored]
                parts.add({stored: wide} | {copy: wide.copy() for copy in copied})
            on_tensor()
    files = parts.finish()
    modules = {name.rpartition("/")[0]: (form, None) for name, form in forms.items()}
    write_config(directory, model.config.to_dict() | quantization_entry(modules, wide_modules))
    return QuantizedFiles(len(forms), tensor_count(filling) - len(forms), files, parts.bytes, before)
