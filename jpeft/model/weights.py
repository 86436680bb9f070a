"""Loads the weights of any family from checkpoint files, after checking names and shapes, and writes them."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jpeft.errors import UserError
from jpeft.files import most_bytes_of, write_whole
from jpeft.leaves import WIDE, Devices, Model, Read, fill, num_weights, stacked_leaves
from jpeft.model.bitsandbytes import file_forms, quantization_config
from jpeft.model.gguf import is_gguf
from jpeft.model.quantized import (
    Form,
    Quantization,
    chosen_forms,
    fill_quantized,
    from_kernels,
    host_dequantized,
    host_dequantized_absmax,
    quantize,
    quantize_modules,
)
from jpeft.model.weight_files import Checkpoint, weight_files
from jpeft.words import one_line


@dataclasses.dataclass(frozen=True)
class Filling(Generic[Model]):
    """A model with shapes in the place of weights, and how to read them from its files.

    Attributes:
      model: the model, to be filled in place.
      checkpoint: the files.
      read: maps name, shape and slice of one of our weights to its values, in the files' dtype.
      stored_name: maps the name of one of our weights to its name in the files and, if it is part of a fused map, the
        third that it is (else None).
      third_rows: maps a third to its rows of the fused map; None for families without fused maps.
      source: the files' name in error messages.
      hub_weight: maps the name of one of our weights to its `transformers` name and whether it is transposed there.
    """

    model: Model
    checkpoint: Checkpoint
    read: Read
    stored_name: Callable[[str], tuple[str, int | None]]
    third_rows: Callable[[int], np.ndarray] | None
    source: str
    hub_weight: Callable[[str], tuple[str, bool]]

    def fill(self, dtype: Any, place: Devices, quantization: Quantization | None = None) -> None:
        """Read all weights, quantizing maps one by one; maps that are quantized in the files are taken as they are.

        Args:
          dtype: the dtype of the weights that are not quantized; None keeps each weight's own.
          place: maps a weight's path and shape to the devices that hold it.
          quantization: how to quantize the model; None leaves it as the files are.

        Raises:
          UserError: as `chosen_forms` and `quantize`; or the files are quantized in another way than asked for.
          RunFailed: a file is damaged.
        """
        packed, model = self.checkpoint.packed, self.model
        stored_forms: Mapping[tuple[Any, ...], Form] = {}
        if packed is not None and (quantization is None or quantization.kind != "none"):
            stored_forms = file_forms(model, packed, self.stored_name, self.source)
        forms = {} if quantization is None else chosen_forms(model, quantization)
        # The form of a third of a fused map is not double where the file's is.
        double = packed is not None and any(held.double for held in packed.maps.values())
        for path, form in stored_forms.items():
            asked = None if path not in forms else Quantization(forms[path].kind, forms[path].double)
            found = Quantization(form.kind, double and form.kind == "nf4")
            if asked is not None and asked != found:
                raise UserError(
                    f"{self.source} is in {found}, and {asked} is asked for, to which it is not converted; give the "
                    "original in 16 or 32 bits, or leave quantization open (auto)."
                )
        if stored_forms:  # of a quantized file's unquantized maps, only `kept_wide` may be quantized
            kept = getattr(type(model), "kept_wide", ())
            forms = {path: form for path, form in forms.items() if path in stored_forms or str(path[-1]) in kept}
        forms = {**forms, **stored_forms}
        quantize_modules(model, forms)
        fill(model, WIDE, self.read, dtype, place)
        made = from_kernels(self.read)

        def leaves_of(module: str, form: Form) -> Mapping[str, np.ndarray]:
            stored, third = self.stored_name(f"{module}/kernel")
            if packed is None or stored not in packed.maps:
                return made(module, form)
            leaves = packed.leaves(stored)
            if third is None or self.third_rows is None:
                return leaves
            rows = self.third_rows(third)
            if form.kind == "nf4":  # a third's maxima fall into other outer blocks
                leaves = {"codes": leaves["codes"], "absmax": host_dequantized_absmax(packed.form(stored), leaves)}
            return {name: leaf[..., rows] for name, leaf in leaves.items()}

        fill_quantized(model, forms, leaves_of, place)

    def lost_by(self, quantization: Quantization) -> Callable[[str], np.ndarray | None]:
        """The quantization error of each map, for LoftQ.

        Returns:
          A function from the path of a layer's map, such as `encoder/layers/0/self_attention/q`, to its original minus
          its quantized kernel, `[d_in, d_out]`; None for a map that is not quantized. Each call reads one map.

        Raises:
          UserError: the files are quantized, so that the original is not known.
        """
        if self.checkpoint.packed is not None:
            raise UserError(
                f"{self.source} is quantized already, so that its quantization error is not known; give the original "
                "in 16 or 32 bits."
            )
        by_path, forms = chosen_forms(self.model, quantization), {}
        for leaf in stacked_leaves(self.model, nnx.Param):
            if leaf.path[-1] == "kernel" and leaf.path[:-1] in by_path:
                forms |= {name.rpartition("/")[0]: by_path[leaf.path[:-1]] for name in leaf.names}

        def lost(path: str) -> np.ndarray | None:
            if path not in forms:
                return None
            form, name = forms[path], f"{path}/kernel"
            shape = (form.d_in, form.d_out)
            kernel = np.asarray(self.read(name, shape, tuple(slice(0, size) for size in shape)), np.float32)
            return kernel - host_dequantized(form, quantize(kernel, form, name))

        return lost


def refuse_oversize(directory: Path, model: nnx.Module) -> None:
    """Raise `UserError` if files of a format that is read whole are far larger than the model.

    Args:
      directory: the checkpoint directory or GGUF file.
      model: the model, with shapes in the place of weights.
    """
    if is_gguf(directory):
        return
    name, files = weight_files(directory)
    if name == "model.safetensors":  # like GGUF, it is read one weight at a time
        return
    largest = most_bytes_of(num_weights(model))
    size = sum(file.stat().st_size for file in files)
    if size > largest:
        raise UserError(
            f"{directory} has {size:,} bytes of weights; a model of the sizes in config.json has {largest:,} at most."
        )


def refuse_misfits(
    model: nnx.Module,
    checkpoint: Checkpoint,
    stored_as: Callable[[str, tuple[int, ...]], tuple[str, tuple[int, ...]]],
    *,
    unread: set[str],
    source: str,
    what: str,
) -> None:
    """Check the names and shapes of all weights of a checkpoint, before memory is allocated.

    Args:
      model: the model, with shapes in the place of weights.
      checkpoint: the files.
      stored_as: maps the name and shape of one of our weights to those of the tensor that holds it.
      unread: names of tensors that the checkpoint may have and the model does not read.
      source, what: the name of the files, and of a model of this family, in error messages.

    Raises:
      UserError: a weight is missing, unexpected or of the wrong shape.
    """
    there = checkpoint.names()
    absent, unread = [], there - unread
    for leaf in stacked_leaves(model, nnx.Param):
        for name in leaf.names:
            stored, asked = stored_as(name, leaf.variable.shape[leaf.stacked :])
            if stored not in there:
                absent.append(stored)
                continue
            unread.discard(stored)
            shape = checkpoint.shape(stored)
            if shape != asked:
                raise UserError(
                    f"{source}: {stored} has shape {_shape(shape)} where config.json asks for {asked}; the weights and "
                    "the config are of different models."
                )
    if absent or unread:
        found = f"lacks {_a_few(absent)}" if absent else f"holds weights that {what} has no place for: {_a_few(unread)}"
        raise UserError(f"{source} {found}; the weights and config.json are of different models.")


def _shape(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 4 else f"of {len(shape)} dimensions"


def _a_few(names: list[str] | set[str]) -> str:
    shown = [one_line(name) for name in sorted(set(names))]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def quantization_entry(packed: Mapping[str, tuple[Form, Any]], wide: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` entry of `config.json`, or an empty dict if no map is quantized.

    Args:
      packed: the quantized maps by path; only the forms, first in each pair, are used.
      wide: names of modules that are listed as not quantized, unless `packed` has them.
    """
    if not packed:
        return {}
    wide = [module for module in wide if not any(name.endswith(f"/{module}") for name in packed)]
    return {"quantization_config": quantization_config([form for form, _ in packed.values()], wide)}


def write_model(directory: Path, weights: dict[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, with weights by their `transformers` names, and `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    with write_whole(directory / "model.safetensors") as beside:
        save_file(weights, beside, metadata={"format": "pt"})
    write_config(directory, config)


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write a model's `config.json`."""
    with write_whole(directory / "config.json") as beside:
        beside.write_text(json.dumps(config, indent=2) + "\n")
