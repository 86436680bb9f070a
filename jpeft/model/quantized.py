"""Quantized frozen linear maps in 8 or 4 bits, and their product with activations that are not quantized.

`int8`: a weight is an integer from -127 to 127, times the absolute maximum of its output channel, divided by 127.
`nf4`: a weight is one of sixteen values (Dettmers et al. 2023, appendix E), times the absolute maximum of its block, 64
weights along the input dimension. With *double quantization* (section 3 there) the block maxima take 8 bits in place of
32: they are quantized in blocks of 256 after subtracting their mean. All three are bitsandbytes' formats.

A product dequantizes its map tile by tile, in the forward and again in the backward pass, so that no array of the map's
size is made.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jpeft.errors import RunFailed, UserError
from jpeft.leaves import Devices, Part, Quantized, Read, fill, stacked_leaves
from jpeft.model.layers import Linear
from jpeft.model.placement import placed
from jpeft.model.products import PRODUCT

QUANTIZATIONS = ("int8", "nf4")
CHOICES = ("auto", "none", *QUANTIZATIONS)  # of `model.quantization`
BLOCK = 64  # weights of an nf4 map that share an absolute maximum
OUTER_BLOCK = 256  # absolute maxima that share a scale, with double quantization
_LEAST_DIVISOR = 1e-36  # below it, 127 / x overflows or loses precision in float32
_TILE = 2**23  # the largest number of weights that are dequantized at once
# The values of 4-bit NormalFloat in ascending order; a weight is rounded to the nearest.
NF4 = np.asarray(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_NF4_BORDERS = ((NF4[1:].astype(np.float64) + NF4[:-1]) / 2).astype(np.float32)


def _dynamic_map() -> np.ndarray:
    """The 256 values of bitsandbytes' dynamic 8-bit data type, in ascending order.

    A value has a sign, a power of ten and a linear fraction of it. A few differ from bitsandbytes' own in the last bit.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        borders = np.linspace(0.1, 1.0, 2**exponent + 1)
        parts = 10.0 ** (exponent - 6) * (borders[:-1] + borders[1:]) / 2
        values += [*parts, *-parts]
    return np.sort(np.asarray(values, np.float32))


DYNAMIC = _dynamic_map()
_DYNAMIC_BORDERS = ((DYNAMIC[1:].astype(np.float64) + DYNAMIC[:-1]) / 2).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The quantization of a frozen base.

    Attributes:
      kind: one of `QUANTIZATIONS`, or `none`, which dequantizes the maps of a quantized file.
      double: double quantization of nf4's block maxima.
      wo: whether to quantize also the maps in the network's `kept_wide` (T5's `wo`).
    """

    kind: str
    double: bool = False
    wo: bool = False

    def __post_init__(self):
        if self.kind not in (*QUANTIZATIONS, "none"):
            raise UserError(f"quantization is {self.kind[:40]!r}; expected one of {', '.join(CHOICES)}.")
        if self.double and self.kind != "nf4":
            raise UserError(f"double quantization is for nf4, and the quantization is {self.kind}; leave it out.")
        if self.wo and self.kind == "none":
            raise UserError("wo can be quantized only with the other maps, and the quantization is none; leave wo out.")

    @classmethod
    def of(cls, kind: str, *, double: bool = False, wo: bool = False) -> "Quantization | None":
        """Make a `Quantization` of three config values; None for `auto`, which leaves the files as they are.

        Raises:
          UserError: the values are invalid or do not fit together.
        """
        if kind == "auto":
            if double or wo:
                what = "double_quantization" if double else "quantize_wo"
                raise UserError(f"model.{what} is set and model.quantization is not; set that, too.")
            return None
        return cls(kind, double, wo)

    @classmethod
    def parse(cls, text: str) -> "Quantization | None":
        """Parse the string form, such as `nf4,double,wo`. Raises `UserError` if it is invalid."""
        kind, *more = text.split(",")
        if set(more) - {"double", "wo"} or len(set(more)) < len(more):
            raise UserError(
                f"quantization is {text[:40]!r}; expected one of {', '.join(CHOICES)}, optionally followed by "
                "`,double` (double quantization) or `,wo` (quantize T5's wo, too)."
            )
        return cls.of(kind, double="double" in more, wo="wo" in more)

    def __str__(self) -> str:
        return ",".join([self.kind, *(["double"] if self.double else []), *(["wo"] if self.wo else [])])


@dataclasses.dataclass(frozen=True)
class Form:
    """The quantized form of a single map.

    Attributes:
      kind: one of `QUANTIZATIONS`.
      d_in, d_out: the map's widths.
      tiled: the dimension, `in` or `out`, along which it is dequantized in tiles: the one that the mesh axis `model`
        does not shard.
      double: whether the block maxima are quantized, too.
    """

    kind: str
    d_in: int
    d_out: int
    tiled: str
    double: bool = False

    @property
    def blocks(self) -> int:
        """The number of nf4 blocks of each output, of which the last may be shorter."""
        return -(-self.d_in // BLOCK)

    def leaves(self) -> dict[str, tuple[tuple[int, ...], Any, int]]:
        """Shape, dtype and number of weights per item (0 for scales) of each leaf, by name."""
        if self.kind == "int8":
            return {
                "codes": ((self.d_in, self.d_out), jnp.int8, 1),
                "channel_absmax": ((self.d_out,), jnp.float32, 0),
            }
        maxima = (self.blocks, self.d_out)
        codes = {"codes": ((self.d_in // 2, self.d_out), jnp.uint8, 2)}
        if not self.double:
            return {**codes, "absmax": (maxima, jnp.float32, 0)}
        outer = -(-math.prod(maxima) // OUTER_BLOCK)
        return {
            **codes,
            "absmax": (maxima, jnp.uint8, 0),
            "outer_absmax": ((outer,), jnp.float32, 0),
            "absmax_mean": ((), jnp.float32, 0),
        }

    def tiles(self) -> tuple[str, int]:
        """The dimension that is split into tiles, and their number: at least two, so that none has the map's size."""
        wanted = max(2, -(-self.d_in * self.d_out // _TILE))
        for side in (self.tiled, "out" if self.tiled == "in" else "in"):
            length = self.d_in if side == "in" else self.d_out
            unit = BLOCK if side == "in" and self.kind == "nf4" else 1
            if length % unit == 0:
                counts = [n for n in range(wanted, length // unit + 1) if length % (n * unit) == 0]
                if counts:
                    return side, counts[0]
        return "out", 1  # a map with a single output and inputs that are no whole blocks cannot be split


# --- quantizing, on the host ---


def quantize(kernel: Float[np.ndarray, "d_in d_out"], form: Form, name: str = "a map") -> dict[str, np.ndarray]:
    """Quantize a map; returns the leaves that `form.leaves()` describes.

    Args:
      kernel: the map.
      form: the quantized form.
      name: the map's name in error messages.

    Raises:
      UserError: the form is nf4 and the number of inputs is odd.
      RunFailed: a weight is not finite.
    """
    kernel = np.asarray(kernel, np.float32)
    if form.kind == "int8":
        largest = np.abs(kernel).max(axis=0)
        require_finite(largest, name)
        scale = np.where(largest > 0, largest, 1)
        if (scale < _LEAST_DIVISOR).any():
            codes = np.rint(kernel.astype(np.float64) * (127 / scale.astype(np.float64)))
        else:
            codes = np.rint(kernel * (np.float32(127) / scale))
        return {"codes": codes.astype(np.int8), "channel_absmax": largest}
    if form.d_in % 2:
        raise UserError(f"nf4 packs two inputs into a byte, and {name} has {form.d_in}, an odd number; take int8.")
    whole = np.zeros((form.blocks * BLOCK, form.d_out), np.float32)
    whole[: form.d_in] = kernel
    blocks = whole.reshape(form.blocks, BLOCK, form.d_out)
    largest = np.abs(blocks).max(axis=1)
    require_finite(largest, name)
    codes = np.empty(blocks.shape, np.uint8)
    for block, magnitude, out in zip(blocks, largest, codes, strict=True):  # a block at a time fits the CPU cache
        np.divide(block, np.where(magnitude > 0, magnitude, 1), out=block)
        out[...] = nearest(block, _NF4_BORDERS)
    codes = codes.reshape(-1, form.d_out)[: form.d_in]
    leaves = {"codes": codes[0::2] << 4 | codes[1::2], "absmax": largest}
    return leaves | (quantize_absmax(largest) if form.double else {})


def require_finite(values: np.ndarray, name: str) -> None:
    """Raises `RunFailed` if a weight of this name, or the largest values of its blocks, are not all finite."""
    if not np.isfinite(values).all():
        raise RunFailed(f"{name} holds NaN or infinity, which is not quantized; is the file damaged?")


def nearest(values: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """The index of the value nearest to each number, given the midpoints between values; ties go to the lower one."""
    if len(borders) > 32:
        return np.searchsorted(borders, values, side="left").astype(np.uint8)
    index = np.zeros(values.shape, np.uint8)
    for border in borders:
        index += values > border
    return index


def quantize_absmax(absmax: Float[np.ndarray, "blocks d_out"]) -> dict[str, np.ndarray]:
    """Quantize block maxima to 8 bits, in blocks of 256 in bitsandbytes' order, which goes output by output."""
    flat = absmax.T.reshape(-1)
    mean = flat.mean(dtype=np.float32)
    count = -(-flat.size // OUTER_BLOCK)
    centred = np.zeros(count * OUTER_BLOCK, np.float32)
    centred[: flat.size] = flat - mean
    groups = centred.reshape(count, OUTER_BLOCK)
    outer = np.abs(groups).max(axis=1)
    codes = nearest(groups / np.where(outer > 0, outer, 1)[:, None], _DYNAMIC_BORDERS)
    codes = codes.reshape(-1)[: flat.size].reshape(absmax.shape[1], absmax.shape[0]).T
    return {"absmax": np.ascontiguousarray(codes), "outer_absmax": outer, "absmax_mean": np.asarray(mean)}


def host_dequantized(form: Form, leaves: Mapping[str, np.ndarray]) -> Float[np.ndarray, "d_in d_out"]:
    """Dequantize a map on the host, float32."""
    codes = leaves["codes"]
    if form.kind == "int8":
        return codes.astype(np.float32) * (leaves["channel_absmax"] * np.float32(1 / 127))
    values = NF4[np.stack([codes >> 4, codes & 15], axis=1).reshape(form.d_in, form.d_out)]
    return values * np.repeat(host_dequantized_absmax(form, leaves), BLOCK, axis=0)[: form.d_in]


def host_dequantized_absmax(form: Form, leaves: Mapping[str, np.ndarray]) -> Float[np.ndarray, "blocks d_out"]:
    """Like `dequantized_absmax`, on the host."""
    absmax = leaves["absmax"]
    if not form.double:
        return absmax
    outer = np.repeat(leaves["outer_absmax"], OUTER_BLOCK)[: absmax.size]
    return DYNAMIC[absmax] * outer.reshape(form.d_out, form.blocks).T + leaves["absmax_mean"]


# --- dequantizing, on the device ---


MapLeaves = Mapping[str, Array]


def dequantized_absmax(form: Form, leaves: MapLeaves) -> Float[Array, "blocks d_out"]:
    """The absolute maximum of each block of an nf4 map, float32."""
    if not form.double:
        return leaves["absmax"]
    outer = jnp.repeat(leaves["outer_absmax"], OUTER_BLOCK)[: form.blocks * form.d_out]
    outer = outer.reshape(form.d_out, form.blocks).T
    return jnp.asarray(DYNAMIC)[leaves["absmax"].astype(jnp.int32)] * outer + leaves["absmax_mean"]


def nf4_values(codes: Array) -> Array:
    """The value of each 4-bit code, float32, by selecting on its bits: a table lookup does not vectorise."""
    values: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@functools.partial(jax.jit, static_argnames="form", inline=True)
def dequantized(form: Form, leaves: MapLeaves) -> Float[Array, "d_in d_out"]:
    """Dequantize a whole map, float32."""
    if form.kind == "int8":
        return leaves["codes"].astype(jnp.float32) * _channel_scales(leaves)
    return _wide(leaves["codes"], dequantized_absmax(form, leaves))


def _channel_scales(leaves: MapLeaves) -> Float[Array, " d_out"]:
    return leaves["channel_absmax"] * np.float32(1 / 127)


def _wide(codes: Array, absmax: Array) -> Array:
    """Dequantize an nf4 map, or a part of it that begins with a block."""
    both = jnp.stack([codes >> 4, codes & 15], axis=1).reshape(-1, codes.shape[1])  # two inputs per byte
    values = nf4_values(both)
    if len(values) == BLOCK * len(absmax):
        return (values.reshape(len(absmax), BLOCK, -1) * absmax[:, None]).reshape(values.shape)
    return values * jnp.repeat(absmax, BLOCK, axis=0)[: len(values)]


# --- the product ---


def _tile(form: Form, leaves: MapLeaves, index: Array, dtype: Any) -> Array:
    """Dequantize a tile of the map in `dtype`; an int8 one without channel scales, which the product applies."""
    side, count = form.tiles()
    size = (form.d_in if side == "in" else form.d_out) // count
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, axis=0 if side == "in" else 1)
    if form.kind == "int8":
        return cut(leaves["codes"], index * size, size).astype(dtype)
    if side == "in":
        codes = cut(leaves["codes"], index * (size // 2), size // 2)
        return _wide(codes, cut(leaves["absmax"], index * (size // BLOCK), size // BLOCK)).astype(dtype)
    return _wide(cut(leaves["codes"], index * size, size), cut(leaves["absmax"], index * size, size)).astype(dtype)


def _over_tiles(form: Form, x: Array, leaves: MapLeaves, dtype: Any, *, transposed: bool) -> Array:
    """Multiply `x` by the map or its transpose tile by tile, float32; int8's channel scales are left out."""
    side, count = form.tiles()
    width = form.d_in if transposed else form.d_out
    size = (form.d_in if side == "in" else form.d_out) // count
    adds = (side == "in") != transposed  # tiles along the contracted dimension are summed, others concatenated
    if form.kind == "nf4":
        leaves = {"codes": leaves["codes"], "absmax": dequantized_absmax(form, leaves)}
    # Gather shards along `fsdp` here, quantized; within the loop they would be gathered for every tile.
    kind = "columns" if form.tiled == "in" else "rows"
    leaves = {name: placed(leaf, kind) if leaf.ndim == 2 else leaf for name, leaf in leaves.items()}

    def add_tile(y: Array, index: Array) -> tuple[Array, None]:
        tile = _tile(form, leaves, index, dtype)
        tile = tile.T if transposed else tile
        part = jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=-1) if adds else x
        made = jnp.matmul(part, tile, preferred_element_type=jnp.float32)
        if adds:
            return y + made, None
        return jax.lax.dynamic_update_slice_in_dim(y, made, index * size, axis=-1), None

    start = jnp.zeros((*x.shape[:-1], width), jnp.float32)
    return jax.lax.scan(add_tile, start, jnp.arange(count))[0]


# Keeps a checkpoint policy that saves matrix products from saving those of single tiles.
_opaque = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def quantized_product(
    form: Form, x_dtype: DTypeLike, dtype: DTypeLike, x: Float[Array, "*batch d_in"], leaves: dict[str, Array]
) -> Float[Array, "*batch d_out"]:
    """Multiply `x` by a quantized map, which has no gradient; the backward pass saves only the quantized map.

    Args:
      form: the map's quantized form.
      x_dtype: the dtype of x, in which tiles are multiplied.
      dtype: the dtype of the output.
      x: the input.
      leaves: the map's leaves.
    """

    def forward(x: Array, leaves: dict[str, Array]) -> Array:
        y = _over_tiles(form, x, leaves, x_dtype, transposed=False)
        return (y * _channel_scales(leaves) if form.kind == "int8" else y).astype(dtype)

    return _opaque(forward)(x, leaves)


def _product_forward(form: Form, x_dtype: Any, dtype: Any, x: Array, leaves: Any) -> tuple[Array, Any]:
    return quantized_product(form, x_dtype, dtype, x, leaves), leaves


def _product_backward(form: Form, x_dtype: Any, dtype: Any, leaves: Any, grad: Array) -> tuple[Array, None]:
    if form.kind == "int8":
        grad = grad.astype(jnp.float32) * _channel_scales(leaves)
    grad_x = _opaque(lambda grad, leaves: _over_tiles(form, grad, leaves, x_dtype, transposed=True))
    return grad_x(grad.astype(x_dtype), leaves).astype(x_dtype), None


quantized_product.defvjp(_product_forward, _product_backward)


class QuantizedLinear(Linear):
    """A frozen `Linear` with a quantized kernel: `codes` and scales in place of `kernel`; the bias is not quantized.

    It is not constructed directly: `quantize_modules` converts a `Linear`.
    """

    form: Form
    codes: Quantized
    LEAVES: ClassVar[tuple[str, ...]] = ("codes", "channel_absmax", "absmax", "outer_absmax", "absmax_mean")

    @property
    def site_widths(self) -> tuple[int, int]:
        """The widths of input and output."""
        return self.form.d_in, self.form.d_out

    @property
    def layers(self) -> int | None:
        """The number of stacked layers; None if the module holds a single layer without a `layers` axis."""
        return self.codes.shape[0] if self.codes.ndim == 3 else None

    def leaves(self) -> dict[str, Array]:
        """The arrays of the leaves by name."""
        return {name: getattr(self, name)[...] for name in self.form.leaves()}

    def _product(self, x: Float[Array, "*batch d_in"], dtype: DTypeLike) -> Float[Array, "*batch d_out"]:
        y = quantized_product(self.form, x.dtype, jnp.dtype(dtype), x, self.leaves())
        return checkpoint_name(y, PRODUCT)

    def dequantized(self) -> Float[Array, "*layers d_in d_out"]:
        """Dequantize the whole kernel, float32; not meant for use in every step."""
        make = functools.partial(dequantized, self.form)
        return (jax.vmap(make) if self.layers is not None else make)(self.leaves())

    def widen(self, kernel: Array) -> None:
        """Turn the module into a plain `Linear` with `kernel`, in place."""
        for name in self.form.leaves():
            delattr(self, name)
        del self.form
        self.kernel = nnx.Param(kernel)
        self.__class__ = Linear  # pyright: ignore[reportAttributeAccessIssue]


# --- a model ---


def quantizable(model: nnx.Module) -> dict[str, str]:
    """The maps that are quantized, by the last part of their paths, and the dimension along which each is tiled.

    These are all linear maps within the blocks; embedding, norms and head are not quantized.
    """
    roles: Mapping[str, str] = getattr(type(model), "site_roles", {})
    sides = {"q": "in", "k": "in", "v": "in", "gate": "in", "up": "in", "o": "out", "down": "out"}
    return {name: sides[role] for name, role in roles.items() if role in sides}


def chosen_forms(model: nnx.Module, quantization: Quantization) -> dict[tuple[Any, ...], Form]:
    """The form of each map of a model that `quantization` quantizes, by the path of its module.

    Raises:
      UserError: `quantization.wo` is set for a model without `kept_wide`.
    """
    if quantization.kind == "none":
        return {}
    kept: tuple[str, ...] = getattr(type(model), "kept_wide", ())
    if quantization.wo and not kept:
        raise UserError(
            f"quantize_wo is for a T5; a {type(model).__name__} has no wo, and all of its blocks' maps are quantized "
            "anyway; leave it out."
        )
    sides, forms = quantizable(model), {}
    for path, module in nnx.iter_modules(model):
        name = str(path[-1]) if path else ""
        if isinstance(module, Linear) and name in sides and (quantization.wo or name not in kept):
            d_in, d_out = module.kernel.shape[-2:]
            forms[path] = Form(quantization.kind, d_in, d_out, sides[name], quantization.double)
    return forms


def quantize_modules(
    model: nnx.Module,
    forms: Mapping[tuple[Any, ...], Form],
    make: Callable[[tuple[int, ...], Any], Any] = jax.ShapeDtypeStruct,
) -> None:
    """Convert modules of a model to `QuantizedLinear`s, in place.

    Args:
      model: the model to change.
      forms: the form of each map to convert, by the path of its module.
      make: maps shape and dtype to the value of a leaf; by default a `jax.ShapeDtypeStruct`.
    """
    module: Any
    for path, module in list(nnx.iter_modules(model)):
        if path in forms:
            layers = module.kernel.shape[:-2]
            del module.kernel
            module.form = forms[path]
            for name, (shape, dtype, numbers) in forms[path].leaves().items():
                setattr(module, name, Quantized(make((*layers, *shape), dtype), numbers=numbers))
            module.__class__ = QuantizedLinear


def fill_quantized(
    model: nnx.Module,
    forms: Mapping[tuple[Any, ...], Form],
    leaves_of: Callable[[str, Form], Mapping[str, np.ndarray]],
    place: Devices,
) -> None:
    """Fill the leaves of quantized modules, with one stacked map on the host at a time.

    Args:
      model: the model, converted by `quantize_modules`.
      forms: the form of each map, by the path of its module.
      leaves_of: maps the path of a layer's module, such as `encoder/layers/0/self_attention/q`, and its form to leaves.
      place: maps a leaf's path and shape to the devices that hold it.
    """
    if not forms:
        return
    kept: dict[str, Mapping[str, np.ndarray]] = {}  # of one stacked map, whose leaves are read one after the other
    stack: list[frozenset[str]] = [frozenset()]
    modules = {}
    for leaf in stacked_leaves(model, Quantized):
        names = frozenset(name.rpartition("/")[0] for name in leaf.names)
        for name in names:
            modules[name] = (forms[leaf.path[:-1]], names)

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        module, _, leaf = name.rpartition("/")
        form, together = modules[module]
        if together != stack[0]:
            kept.clear()
            stack[0] = together
        if module not in kept:
            kept[module] = leaves_of(module, form)
        return np.asarray(kept[module][leaf][part])

    fill(model, Quantized, read, None, place)


def from_kernels(read: Read) -> Callable[[str, Form], Mapping[str, np.ndarray]]:
    """A `leaves_of` for `fill_quantized` that quantizes kernels read by `read`."""

    def leaves_of(module: str, form: Form) -> Mapping[str, np.ndarray]:
        shape = (form.d_in, form.d_out)
        kernel = read(f"{module}/kernel", shape, tuple(slice(0, size) for size in shape))
        return quantize(kernel, form, f"{module}/kernel")

    return leaves_of


def is_quantized(model: nnx.Module) -> bool:
    """Whether a model has quantized maps."""
    return quantization_of(model) is not None


def quantization_of(model: nnx.Module) -> str | None:
    """A model's quantization in `Quantization`'s string form, such as `nf4,double`; None if nothing is quantized.

    For a model with maps of several kinds, which only foreign files have, the kinds are joined: `int8+nf4`.
    """
    kept: tuple[str, ...] = getattr(type(model), "kept_wide", ())
    found, wo = set(), False
    for path, module in nnx.iter_modules(model):
        if isinstance(module, QuantizedLinear):
            found.add((module.form.kind, module.form.double))
            wo = wo or str(path[-1]) in kept
    if not found:
        return None
    kinds = sorted({kind for kind, _ in found})
    return str(Quantization(kinds[0], any(double for _, double in found), wo)) if len(kinds) == 1 else "+".join(kinds)
