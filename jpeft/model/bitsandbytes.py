"""Reads and writes linear maps in bitsandbytes' 8-bit and 4-bit safetensors layout, in which jpeft saves its own, too.

8 bits: `weight` int8 `[out, in]`, and `SCB` float32 `[out]`, the absolute maximum of each output row.

4 bits: `weight` uint8 with two codes a byte, the first in the upper half, in the row-major order of `[out, in]`;
`weight.absmax`, the absolute maximum of each block of 64 weights; `weight.quant_map`, the sixteen values;
`weight.quant_state.bitsandbytes__nf4`, the sizes as JSON in bytes. With double quantization `absmax` is uint8, beside
`weight.nested_absmax` and `weight.nested_quant_map`. The bytes of `weight` may be stored as 16-bit or 32-bit numbers
(`quant_storage`, for sharding that wants a single dtype).

Files are untrusted: names, shapes and sizes are checked against each other before memory is allocated.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from jpeft.errors import RunFailed, UserError
from jpeft.leaves import Part, Quantized, named_leaves, stacked_leaves
from jpeft.model.quantized import BLOCK, DYNAMIC, NF4, OUTER_BLOCK, Form, QuantizedLinear, host_dequantized, quantizable

_SCALES = "SCB"
_STATE = "weight.quant_state.bitsandbytes__"
_MOST_STATE_BYTES = 65_536
_LARGEST = float(np.finfo(np.float32).max)
_BESIDE_NF4 = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


@dataclasses.dataclass(frozen=True)
class PackedMap:
    """A quantized linear map of a file.

    Attributes:
      kind: `int8` or `nf4`.
      shape: `(out, in)`.
      double: whether the block maxima are quantized, too (double quantization).
      mean: the mean of the block maxima, with double quantization.
    """

    kind: str
    shape: tuple[int, int]
    double: bool = False
    mean: float = 0.0


class Packed:
    """The quantized linear maps of a safetensors checkpoint.

    Args:
      names: the names of all tensors of the checkpoint.
      shape, read: functions from a tensor's name to its shape and to its values, of any dtype.
      source: the file's name in error messages.

    Attributes:
      maps: the quantized maps by the name of their `weight` tensor.
      beside: the names of the tensors that hold their scales and sizes, which are no weights.

    Raises:
      UserError: a map is quantized in a way that is not supported.
      RunFailed: the tensors of a map do not fit together.
    """

    def __init__(
        self,
        names: set[str],
        shape: Callable[[str], tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        source: str,
    ):
        self._shape, self._read, self._source = shape, read, source
        self.maps: dict[str, PackedMap] = {}
        self.beside: set[str] = set()
        for name in sorted(names):
            if name.endswith(f".{_SCALES}"):
                module = name.removesuffix(f".{_SCALES}")
                self.beside |= {name, f"{module}.weight_format"} & names
                self.maps[self._weight(module, names)] = self._int8(module, names)
            elif f".{_STATE}" in name:
                module, _, kind = name.partition(f".{_STATE}")
                if kind != "nf4":
                    raise UserError(f"{source}: {module[:100]} is in {kind[:20]}; of the 4-bit formats nf4 is read.")
                self.beside |= {name, *(f"{module}.weight.{part}" for part in _BESIDE_NF4)} & names
                self.maps[self._weight(module, names)] = self._nf4(module, names)

    def _weight(self, module: str, names: set[str]) -> str:
        if f"{module}.weight" not in names:
            raise self._damaged(f"{module[:100]} has scales but no weight")
        return f"{module}.weight"

    def _damaged(self, what: str) -> RunFailed:
        return RunFailed(f"{self._source} is damaged: {what}; copy it again.")

    def _int8(self, module: str, names: set[str]) -> PackedMap:
        shape = self._shape(self._weight(module, names))
        if len(shape) != 2 or 0 in shape or self._shape(f"{module}.{_SCALES}") not in ((shape[0],), (1, shape[0])):
            raise self._damaged(f"{module[:100]} does not have one scale for each output")
        if f"{module}.weight_format" in names and self._read(f"{module}.weight_format").any():
            raise UserError(f"{self._source}: {module[:100]} is not row-major; save it again with bitsandbytes.")
        return PackedMap("int8", (shape[0], shape[1]))

    def _nf4(self, module: str, names: set[str]) -> PackedMap:
        name = f"{module}.{_STATE}nf4"
        if math.prod(self._shape(name)) > _MOST_STATE_BYTES:
            raise self._damaged(f"the quant_state of {module[:100]} has {math.prod(self._shape(name)):,} bytes")
        try:
            state = json.loads(self._read(name).astype(np.uint8).tobytes())
            d_out, d_in = state["shape"]
            kind, block = state["quant_type"], state["blocksize"]
            nested, mean = state.get("nested_blocksize"), state.get("nested_offset", 0.0)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._damaged(f"the quant_state of {module[:100]} cannot be read") from None
        if not all(type(size) is int and 0 < size < 2**31 for size in (d_out, d_in)) or kind != "nf4":
            raise self._damaged(f"the quant_state of {module[:100]} has no valid shape or quant_type")
        if block != BLOCK or nested not in (None, OUTER_BLOCK):
            raise UserError(
                f"{self._source}: {module[:100]} has blocks of {str(block)[:20]} and {str(nested)[:20]}; "
                f"{BLOCK} and {OUTER_BLOCK} are read."
            )
        if d_in % BLOCK:
            raise UserError(
                f"{self._source}: blocks of {module[:100]} span two outputs, since its {d_in} inputs are no multiple "
                f"of {BLOCK}; such files are not read."
            )
        double, blocks = nested is not None, d_out * d_in // BLOCK
        sizes = {"weight": d_out * d_in // 2, "weight.absmax": blocks, "weight.quant_map": len(NF4)}
        if double:
            sizes |= {"weight.nested_absmax": -(-blocks // OUTER_BLOCK), "weight.nested_quant_map": len(DYNAMIC)}
        for part, size in sizes.items():
            allowed = {size, size // 2, size // 4} if part == "weight" else {size}
            if f"{module}.{part}" not in names or math.prod(self._shape(f"{module}.{part}")) not in allowed:
                raise self._damaged(f"{module[:100]} lacks {part} with {size:,} numbers")
        for part, values in (("weight.quant_map", NF4), ("weight.nested_quant_map", DYNAMIC)):
            if part in sizes and not np.allclose(self._read(f"{module}.{part}").reshape(-1), values, atol=1e-6):
                raise UserError(f"{self._source}: {module[:100]} has a {part} that is not nf4's; it is not read.")
        if type(mean) not in (int, float) or not abs(mean) <= _LARGEST:
            raise self._damaged(f"the nested_offset of {module[:100]} is no finite float32")
        return PackedMap("nf4", (d_out, d_in), double, float(mean))

    def leaves(self, name: str) -> dict[str, np.ndarray]:
        """The leaves of the map called `name`, with the names, shapes and dtypes of `Form.leaves`."""
        held, module = self.maps[name], name.removesuffix(".weight")
        d_out, d_in = held.shape
        if held.kind == "int8":
            return {
                "codes": self._of(name, np.int8).T,
                "channel_absmax": self._magnitudes(f"{module}.{_SCALES}").reshape(-1),
            }
        codes = {"codes": self._bytes(name, d_out * d_in // 2).reshape(d_out, d_in // 2).T}
        in_order = (d_out, d_in // BLOCK)
        if not held.double:
            return {**codes, "absmax": self._magnitudes(f"{name}.absmax").reshape(in_order).T}
        return {
            **codes,
            "absmax": self._of(f"{name}.absmax", np.uint8).reshape(in_order).T,
            "outer_absmax": self._magnitudes(f"{name}.nested_absmax").reshape(-1),
            "absmax_mean": np.asarray(held.mean, np.float32),
        }

    def form(self, name: str, side: str = "in") -> Form:
        """The quantized form of the map called `name`; `side` becomes `Form.tiled`."""
        held = self.maps[name]
        return Form(held.kind, held.shape[1], held.shape[0], side, held.double)

    def dequantized(self, name: str, part: Part) -> np.ndarray:
        """Dequantize the slice `part` of the map called `name`, `[out, in]` float32."""
        return host_dequantized(self.form(name), self.leaves(name)).T[part]

    def _of(self, name: str, dtype: Any) -> np.ndarray:
        value = self._read(name)
        if value.dtype != dtype:
            raise self._damaged(f"{name[:100]} is of {value.dtype}; expected {np.dtype(dtype).name}")
        return value

    def _bytes(self, name: str, size: int) -> np.ndarray:
        """A tensor's bytes as uint8, whatever dtype it is stored as."""
        value = self._read(name)
        if value.nbytes != size:
            raise self._damaged(f"{name[:100]} has {value.nbytes:,} bytes; expected {size:,}")
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    def _magnitudes(self, name: str) -> np.ndarray:
        """The absolute maxima of rows or blocks, float32."""
        value = self._read(name)
        if value.dtype.kind != "f" or not ((0 <= value) & (value <= _LARGEST)).all():
            raise self._damaged(f"{name[:100]} holds a negative, infinite or non-float scale")
        return value.astype(np.float32)


def file_forms(
    model: nnx.Module, packed: Packed, stored_name: Callable[[str], tuple[str, int | None]], source: str
) -> dict[tuple[Any, ...], Form]:
    """The form of each quantized map of a file, by the path of its module in `model`.

    Args:
      model: the model that the file is loaded into.
      packed: the quantized maps of the file.
      stored_name: from the name of one of our weights to its name in the file and, if the file has queries, keys and
        values fused, which third of that map it is (else None).
      source: the file's name in error messages.

    Raises:
      UserError: a map is quantized differently in different layers, which are one stacked array here.
    """
    sides, forms = quantizable(model), {}
    for leaf in stacked_leaves(model, nnx.Param):
        if leaf.path[-1] != "kernel":
            continue
        kinds = set()
        for name in leaf.names:
            stored, third = stored_name(name)
            held = packed.maps.get(stored)
            kinds.add(None if held is None else (held.kind, held.double and third is None))
        if len(kinds) > 1:
            raise UserError(
                f"{source}: {leaf.names[0]} is not quantized as in the other layers, with which it is one array here."
            )
        (kind,) = kinds
        if kind is not None:
            d_in, d_out = leaf.variable.shape[-2:]
            forms[leaf.path[:-1]] = Form(kind[0], d_in, d_out, sides.get(str(leaf.path[-2]), "in"), kind[1])
    return forms


def packed_tensors(model: nnx.Module) -> dict[str, tuple[Form, dict[str, np.ndarray]]]:
    """Form and leaves, on the host, of every quantized map, by its module's path within one layer."""
    forms = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, QuantizedLinear):
            forms[path] = module.form
    by_module: dict[str, tuple[Form, dict[str, np.ndarray]]] = {}
    for leaf in stacked_leaves(model, Quantized):
        for name in leaf.names:
            by_module.setdefault(name.rpartition("/")[0], (forms[leaf.path[:-1]], {}))
    for name, value in named_leaves(model, Quantized).items():
        module, _, leaf = name.rpartition("/")
        by_module[module][1][leaf] = value
    return by_module


def to_file(name: str, form: Form, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert a quantized map to bitsandbytes' tensors, by their names in a file.

    Args:
      name: the name of the map's weight in the file, which ends in `.weight`.
      form: the map's quantized form.
      leaves: the map's leaves on the host.

    Raises:
      UserError: as `refuse_split_blocks`.
    """
    transposed = lambda leaf: np.ascontiguousarray(leaves[leaf].T)
    if form.kind == "int8":
        scales = f"{name.removesuffix('.weight')}.{_SCALES}"
        return {name: transposed("codes"), scales: np.array(leaves["channel_absmax"])}
    refuse_split_blocks(name, form)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32"}
    state |= {"shape": [form.d_out, form.d_in]}
    tensors = {
        name: transposed("codes").reshape(-1, 1),
        f"{name}.absmax": transposed("absmax").reshape(-1),
        f"{name}.quant_map": NF4.copy(),
    }
    if form.double:
        state |= {"nested_blocksize": OUTER_BLOCK, "nested_dtype": "float32"}
        state |= {"nested_offset": float(leaves["absmax_mean"])}
        tensors[f"{name}.nested_absmax"] = np.array(leaves["outer_absmax"])
        tensors[f"{name}.nested_quant_map"] = DYNAMIC.copy()
    text = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return {**tensors, f"{name.removesuffix('.weight')}.{_STATE}nf4": text}


def refuse_split_blocks(name: str, form: Form) -> None:
    """Raise `UserError` if an nf4 map's input width is no multiple of 64.

    bitsandbytes splits the flattened map into blocks, so that a block would span two outputs, which jpeft's never do.

    Args:
      name: the map's name in the file, for the message.
      form: the map's quantized form.
    """
    if form.kind == "nf4" and form.d_in % BLOCK:
        raise UserError(f"{name} has {form.d_in} inputs, no multiple of {BLOCK}; it cannot be saved as nf4: take int8.")


def quantization_config(forms: list[Form], wide_modules: list[str]) -> dict[str, Any]:
    """The `quantization_config` of `config.json`, by which `transformers` with bitsandbytes opens the directory.

    Args:
      forms: the forms of the quantized maps, all of one kind.
      wide_modules: names of the modules that are not quantized (`llm_int8_skip_modules`).
    """
    first, made = forms[0], {"quant_method": "bitsandbytes", "llm_int8_skip_modules": wide_modules}
    if first.kind == "int8":
        return {**made, "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 0.0}
    return {
        **made,
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": first.double,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }
