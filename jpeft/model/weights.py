"""Weights between files and a model of any family (Hugging Face layout): held against it, filled into it, written."""

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
    host_magnitudes,
    quantize,
    quantize_modules,
)
from jpeft.model.weight_files import Checkpoint, weight_files
from jpeft.words import one_line


@dataclasses.dataclass(frozen=True)
class Filling(Generic[Model]):
    """A model that has shapes in the place of weights, and how its files are read.

    Attributes:
      read: `(name, shape, part)` to that part of one of our weights, of its dtype in the files.
      stored_name: of one of our weights: its name in the files, and which third it is of a fused map, or None.
      third_rows: of a third the rows of the fused map; None where a family has none.
      source: what messages call the files.
      hub_weight: of one of our weights: its name in `transformers`, and whether it is stored transposed there.
    """

    model: Model
    checkpoint: Checkpoint
    read: Read
    stored_name: Callable[[str], tuple[str, int | None]]
    third_rows: Callable[[int], np.ndarray] | None
    source: str
    hub_weight: Callable[[str], tuple[str, bool]]

    def fill(self, dtype: Any, place: Devices, quantization: Quantization | None = None) -> None:
        """Fills it, and quantises what is to be, map by map; what a file has in few bits is taken as it is.

        Args:
          dtype: of what stays wide.

        Raises:
          UserError: as `chosen_forms` and `quantize`; or the files are in other bits than asked for.
          RunFailed: a file is damaged.
        """
        packed, model = self.checkpoint.packed, self.model
        there: Mapping[tuple[Any, ...], Form] = {}
        if packed is not None and (quantization is None or quantization.kind != "none"):
            there = file_forms(model, packed, self.stored_name, self.source)
        forms = {} if quantization is None else chosen_forms(model, quantization)
        for path, form in there.items():
            if path in forms and form.kind != forms[path].kind:
                raise UserError(
                    f"{self.source} is in {form.kind}, and {forms[path].kind} is asked for; what was rounded once is "
                    "not rounded again: give the wide original, or leave quantization open (auto)."
                )
        if there:  # what a file in few bits leaves wide stays so, but for T5's wo where it is asked for
            kept = getattr(type(model), "kept_wide", ())
            forms = {path: form for path, form in forms.items() if path in there or str(path[-1]) in kept}
        forms = {**forms, **there}
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
            if form.kind == "nf4":  # magnitudes of a third are in other blocks than those of the whole
                leaves = {"codes": leaves["codes"], "absmax": host_magnitudes(packed.form(stored), leaves)}
            return {name: leaf[..., rows] for name, leaf in leaves.items()}

        fill_quantized(model, forms, leaves_of, place)

    def lost_by(self, quantization: Quantization) -> Callable[[str], np.ndarray | None]:
        """What rounding takes away of the map at a path, one layer's: `[d_in, d_out]`; None of one that stays wide.

        A path is such as `encoder/layers/0/self_attention/q`. Each call reads one map.

        Raises:
          UserError: the files are in few bits already, and hold no more than those.
        """
        if self.checkpoint.packed is not None:
            raise UserError(
                f"{self.source} is in few bits already, and what rounding took away of its maps is not there any more; "
                "give the wide original."
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
    """Raises `UserError`: files that are read whole are far larger than a model of these sizes.

    Args:
      model: with shapes in the place of weights.
    """
    if is_gguf(directory):
        return
    name, files = weight_files(directory)
    if name == "model.safetensors":  # of which, as of GGUF files, only the parts that fit are read
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
    """Holds names and shapes of all weights against the model, before room is made for any.

    Args:
      model: with shapes in the place of weights.
      stored_as: name and shape of one of our weights to those of the one that holds it.
      unread: names that may be there without a place in the model.
      source, what: how messages call the weights, and a model of this family.

    Raises:
      UserError: a weight is not there, has no place in the model or is of another shape.
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


def said_of(packed: Mapping[str, tuple[Form, Any]], wide: Sequence[str]) -> dict[str, Any]:
    """What a config says of maps in few bits, `wide` being those that may not be; nothing where there are none."""
    if not packed:
        return {}
    wide = [module for module in wide if not any(name.endswith(f"/{module}") for name in packed)]
    return {"quantization_config": quantization_config([form for form, _ in packed.values()], wide)}


def write_model(directory: Path, weights: dict[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Writes weights by their `transformers` names, and the config that says what they are."""
    directory.mkdir(parents=True, exist_ok=True)
    with write_whole(directory / "model.safetensors") as beside:
        save_file(weights, beside, metadata={"format": "pt"})
    write_config(directory, config)


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Writes a model's `config.json`."""
    with write_whole(directory / "config.json") as beside:
        beside.write_text(json.dumps(config, indent=2) + "\n")
