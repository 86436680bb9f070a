"""Frozen maps whose numbers take 8 or 4 bits, and their product with activations, which are not rounded.

`int8`: each number is an integer from -127 to 127, times the largest magnitude of its output channel, over 127.
`nf4`: each number is one of sixteen (Dettmers et al. 2023, appendix E), times the largest magnitude of the 64 numbers
that it stands among, along the input. Both are as bitsandbytes has them, so its files hold the same numbers; 16 bits of
every 64 numbers' magnitude are saved again where magnitudes are quantised themselves (section 3, *double quantisation*:
8 bits each, blocks of 256 around their mean).

In a product the numbers are made wide tile by tile, in the backward pass again: no array of a map's size is made.
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

QUANTIZATIONS = ("int8", "nf4")
CHOICES = ("auto", "none", *QUANTIZATIONS)  # of `model.quantization`
BLOCK = 64  # numbers of a map that share one magnitude
OUTER_BLOCK = 256  # magnitudes that share one, where they are quantised
PRODUCT = "quantized_product"  # by which `jpeft.model.stack` keeps what a product gives for the backward pass
_LEAST_DIVISOR = 1e-36  # of 127 in float32
_TILE = 2**23  # numbers that are wide at once
# The values of 4-bit NormalFloat, rising; a number is the nearest of them.
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
    """The 256 values of bitsandbytes' 8-bit numbers, rising: a sign, a power of ten, and linear parts of it.

    It rounds a few of them the other way in their last bit.
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
    """How a frozen base is kept.

    Attributes:
      kind: of `QUANTIZATIONS`; `none` makes wide what a file holds in fewer bits.
      double: magnitudes in 8 bits, of nf4.
      wo: also those maps that a model keeps wide unless asked: T5's `wo`, whose sums overflow half precision.
    """

    kind: str
    double: bool = False
    wo: bool = False

    def __post_init__(self):
        if self.kind not in (*QUANTIZATIONS, "none"):
            raise UserError(f"quantization is {self.kind[:40]!r}; expected one of {', '.join(CHOICES)}.")
        if self.double and self.kind != "nf4":
            raise UserError(f"double quantization is of nf4's magnitudes; {self.kind} has none to quantise.")
        if self.wo and self.kind == "none":
            raise UserError("wo can be quantised where the other maps are; the quantization is none.")

    @classmethod
    def of(cls, kind: str, *, double: bool = False, wo: bool = False) -> "Quantization | None":
        """What three keys of a config say; None is to leave the files as they are. Raises `UserError`."""
        if kind == "auto":
            if double or wo:
                what = "double_quantization" if double else "quantize_wo"
                raise UserError(f"model.{what} is of a base that is quantised: set model.quantization, too.")
            return None
        return cls(kind, double, wo)

    @classmethod
    def parse(cls, text: str) -> "Quantization | None":
        """What `str` gives, as `nf4,double,wo`. Raises `UserError`."""
        kind, *more = text.split(",")
        if set(more) - {"double", "wo"} or len(set(more)) < len(more):
            raise UserError(
                f"quantization is {text[:40]!r}; expected one of {', '.join(CHOICES)}, and behind it `,double` for "
                "magnitudes in 8 bits or `,wo` for T5's wo, too."
            )
        return cls.of(kind, double="double" in more, wo="wo" in more)

    def __str__(self) -> str:
        return ",".join([self.kind, *(["double"] if self.double else []), *(["wo"] if self.wo else [])])


@dataclasses.dataclass(frozen=True)
class Form:
    """How one map's numbers are kept.

    Attributes:
      kind: of `QUANTIZATIONS`.
      d_in, d_out: its widths.
      tiled: the side, `in` or `out`, along which it is made wide tile by tile: the one that a mesh's `model` leaves
        whole.
      double: whether magnitudes are in 8 bits.
    """

    kind: str
    d_in: int
    d_out: int
    tiled: str
    double: bool = False

    @property
    def blocks(self) -> int:
        """How many magnitudes each output has, of nf4."""
        return -(-self.d_in // BLOCK)

    def leaves(self) -> dict[str, tuple[tuple[int, ...], Any, int]]:
        """Of each leaf by name: shape, dtype, and how many numbers of the map one of its items holds."""
        if self.kind == "int8":
            return {
                "codes": ((self.d_in, self.d_out), jnp.int8, 1),
                "channel_absmax": ((self.d_out,), jnp.float32, 0),
            }
        magnitudes = (self.blocks, self.d_out)
        codes = {"codes": ((self.d_in // 2, self.d_out), jnp.uint8, 2)}
        if not self.double:
            return {**codes, "absmax": (magnitudes, jnp.float32, 0)}
        outer = -(-math.prod(magnitudes) // OUTER_BLOCK)
        return {
            **codes,
            "absmax": (magnitudes, jnp.uint8, 0),
            "outer_absmax": ((outer,), jnp.float32, 0),
            "absmax_mean": ((), jnp.float32, 0),
        }

    def tiles(self) -> tuple[str, int]:
        """Along which side there are how many tiles: two at least, so that no array has the map's size."""
        wanted = max(2, -(-self.d_in * self.d_out // _TILE))
        for side in (self.tiled, "out" if self.tiled == "in" else "in"):
            length = self.d_in if side == "in" else self.d_out
            unit = BLOCK if side == "in" and self.kind == "nf4" else 1
            if length % unit == 0:
                counts = [n for n in range(wanted, length // unit + 1) if length % (n * unit) == 0]
                if counts:
                    return side, counts[0]
        return "out", 1  # of a map with one output and inputs that are no blocks, there is no part


# --- making them, on the host ---


def quantize(kernel: Float[np.ndarray, "d_in d_out"], form: Form, name: str = "a map") -> dict[str, np.ndarray]:
    """One map's leaves by name, as `Form.leaves` has them.

    Raises:
      UserError: nf4 of an odd number of inputs, of which two share a byte.
      RunFailed: a number is not finite.
    """
    kernel = np.asarray(kernel, np.float32)
    if form.kind == "int8":
        largest = np.abs(kernel).max(axis=0)
        _require_finite(largest, name)
        scale = np.where(largest > 0, largest, 1)
        if (scale < _LEAST_DIVISOR).any():
            codes = np.rint(kernel.astype(np.float64) * (127 / scale.astype(np.float64)))
        else:
            codes = np.rint(kernel * (np.float32(127) / scale))
        return {"codes": codes.astype(np.int8), "channel_absmax": largest}
    if form.d_in % 2:
        raise UserError(f"nf4 keeps two inputs of a map in a byte, and {name} has {form.d_in}; take int8.")
    whole = np.zeros((form.blocks * BLOCK, form.d_out), np.float32)
    whole[: form.d_in] = kernel
    blocks = whole.reshape(form.blocks, BLOCK, form.d_out)
    largest = np.abs(blocks).max(axis=1)
    _require_finite(largest, name)
    codes = np.empty(blocks.shape, np.uint8)
    for block, magnitude, out in zip(blocks, largest, codes, strict=True):  # a block of rows: it stays in the cache
        np.divide(block, np.where(magnitude > 0, magnitude, 1), out=block)
        out[...] = nearest(block, _NF4_BORDERS)
    codes = codes.reshape(-1, form.d_out)[: form.d_in]
    leaves = {"codes": codes[0::2] << 4 | codes[1::2], "absmax": largest}
    return leaves | (quantize_magnitudes(largest) if form.double else {})


def _require_finite(largest: np.ndarray, name: str) -> None:
    if not np.isfinite(largest).all():
        raise RunFailed(f"{name} holds NaN or infinity, which 8 bits do not; is the file damaged?")


def nearest(values: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Index of the nearest of the values between which the borders lie; on a border of the lower one."""
    if len(borders) > 32:
        return np.searchsorted(borders, values, side="left").astype(np.uint8)
    index = np.zeros(values.shape, np.uint8)
    for border in borders:
        index += values > border
    return index


def quantize_magnitudes(absmax: Float[np.ndarray, "blocks d_out"]) -> dict[str, np.ndarray]:
    """Magnitudes in 8 bits, in bitsandbytes' order: those of one output after the other."""
    flat = absmax.T.reshape(-1)
    mean = flat.mean(dtype=np.float32)
    count = -(-flat.size // OUTER_BLOCK)
    around = np.zeros(count * OUTER_BLOCK, np.float32)
    around[: flat.size] = flat - mean
    groups = around.reshape(count, OUTER_BLOCK)
    outer = np.abs(groups).max(axis=1)
    codes = nearest(groups / np.where(outer > 0, outer, 1)[:, None], _DYNAMIC_BORDERS)
    codes = codes.reshape(-1)[: flat.size].reshape(absmax.shape[1], absmax.shape[0]).T
    return {"absmax": np.ascontiguousarray(codes), "outer_absmax": outer, "absmax_mean": np.asarray(mean)}


def host_dequantized(form: Form, leaves: Mapping[str, np.ndarray]) -> Float[np.ndarray, "d_in d_out"]:
    """The map that leaves on the host stand for, float32."""
    codes = leaves["codes"]
    if form.kind == "int8":
        return codes.astype(np.float32) * (leaves["channel_absmax"] * np.float32(1 / 127))
    values = NF4[np.stack([codes >> 4, codes & 15], axis=1).reshape(form.d_in, form.d_out)]
    return values * np.repeat(host_magnitudes(form, leaves), BLOCK, axis=0)[: form.d_in]


def host_magnitudes(form: Form, leaves: Mapping[str, np.ndarray]) -> Float[np.ndarray, "blocks d_out"]:
    """As `magnitudes`, on the host."""
    absmax = leaves["absmax"]
    if not form.double:
        return absmax
    outer = np.repeat(leaves["outer_absmax"], OUTER_BLOCK)[: absmax.size]
    return DYNAMIC[absmax] * outer.reshape(form.d_out, form.blocks).T + leaves["absmax_mean"]


# --- making them wide again ---


MapLeaves = Mapping[str, Array]


def magnitudes(form: Form, leaves: MapLeaves) -> Float[Array, "blocks d_out"]:
    """The largest magnitude of each block of an nf4 map, float32."""
    if not form.double:
        return leaves["absmax"]
    of_each = jnp.repeat(leaves["outer_absmax"], OUTER_BLOCK)[: form.blocks * form.d_out]
    of_each = of_each.reshape(form.d_out, form.blocks).T
    return jnp.asarray(DYNAMIC)[leaves["absmax"].astype(jnp.int32)] * of_each + leaves["absmax_mean"]


def nf4_values(codes: Array) -> Array:
    """The value of each code, float32. Chosen by its bits: a table looked up is slow where there are vectors."""
    values: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@functools.partial(jax.jit, static_argnames="form", inline=True)
def dequantized(form: Form, leaves: MapLeaves) -> Float[Array, "d_in d_out"]:
    """The map as it is multiplied with, float32."""
    if form.kind == "int8":
        return leaves["codes"].astype(jnp.float32) * _channel_scales(leaves)
    return _wide(leaves["codes"], magnitudes(form, leaves))


def _channel_scales(leaves: MapLeaves) -> Float[Array, " d_out"]:
    return leaves["channel_absmax"] * np.float32(1 / 127)


def _wide(codes: Array, absmax: Array) -> Array:
    """Of an nf4 map, or of a part of it that begins with a block."""
    both = jnp.stack([codes >> 4, codes & 15], axis=1).reshape(-1, codes.shape[1])  # two inputs in a byte
    values = nf4_values(both)
    if len(values) == BLOCK * len(absmax):
        return (values.reshape(len(absmax), BLOCK, -1) * absmax[:, None]).reshape(values.shape)
    return values * jnp.repeat(absmax, BLOCK, axis=0)[: len(values)]


# --- the product ---


def _tile(form: Form, leaves: MapLeaves, index: Array, dtype: Any) -> Array:
    """One tile of the map in `dtype`; of int8 without the scale of its channel, which is the product's to have."""
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
    """`x` times the map, or the map transposed, float32: a tile adds to the sum or is a part of what comes out."""
    side, count = form.tiles()
    width = form.d_in if transposed else form.d_out
    size = (form.d_in if side == "in" else form.d_out) // count
    adds = (side == "in") != transposed  # the tiles cut what is summed over
    if form.kind == "nf4":
        leaves = {"codes": leaves["codes"], "absmax": magnitudes(form, leaves)}
    # What a mesh cuts for storage alone is gathered here, in few bits; within the loop it would be for every tile.
    kind = "columns" if form.tiled == "in" else "rows"
    leaves = {name: placed(leaf, kind) if leaf.ndim == 2 else leaf for name, leaf in leaves.items()}

    def turn(y: Array, index: Array) -> tuple[Array, None]:
        tile = _tile(form, leaves, index, dtype)
        tile = tile.T if transposed else tile
        part = jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=-1) if adds else x
        made = jnp.matmul(part, tile, preferred_element_type=jnp.float32)
        if adds:
            return y + made, None
        return jax.lax.dynamic_update_slice_in_dim(y, made, index * size, axis=-1), None

    start = jnp.zeros((*x.shape[:-1], width), jnp.float32)
    return jax.lax.scan(turn, start, jnp.arange(count))[0]


# What a tile gives is not worth keeping for the backward pass, whatever a policy says of products.
_opaque = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def quantized_product(
    form: Form, x_dtype: DTypeLike, dtype: DTypeLike, x: Float[Array, "*batch d_in"], leaves: dict[str, Array]
) -> Float[Array, "*batch d_out"]:
    """`x`, of `x_dtype`, times a map, in `dtype`. The map has no gradient; for that of `x` its few bits are kept."""

    def forward(x: Array, leaves: dict[str, Array]) -> Array:
        y = _over_tiles(form, x, leaves, x_dtype, transposed=False)
        return (y * _channel_scales(leaves) if form.kind == "int8" else y).astype(dtype)

    return _opaque(forward)(x, leaves)


def _product_forward(form: Form, x_dtype: Any, dtype: Any, x: Array, leaves: Any) -> tuple[Array, Any]:
    return quantized_product(form, x_dtype, dtype, x, leaves), leaves


def _product_backward(form: Form, x_dtype: Any, dtype: Any, leaves: Any, by: Array) -> tuple[Array, None]:
    if form.kind == "int8":
        by = by.astype(jnp.float32) * _channel_scales(leaves)
    of_x = _opaque(lambda by, leaves: _over_tiles(form, by, leaves, x_dtype, transposed=True))
    return of_x(by.astype(x_dtype), leaves).astype(x_dtype), None


quantized_product.defvjp(_product_forward, _product_backward)


class QuantizedLinear(Linear):
    """A `Linear` whose kernel is kept in few bits: `codes` and magnitudes, of which the kernel is made in the product.

    Not built but made of a `Linear` by `quantize_modules`. It has no gradient of its own; its bias stays as it is.
    """

    form: Form
    codes: Quantized
    LEAVES: ClassVar[tuple[str, ...]] = ("codes", "channel_absmax", "absmax", "outer_absmax", "absmax_mean")

    @property
    def site_widths(self) -> tuple[int, int]:
        """Widths of what goes in and comes out."""
        return self.form.d_in, self.form.d_out

    @property
    def layers(self) -> int | None:
        """Number of layers whose numbers are here, stacked; None where they are of one."""
        return self.codes.shape[0] if self.codes.ndim == 3 else None

    def leaves(self) -> dict[str, Array]:
        """Its leaves by name."""
        return {name: getattr(self, name)[...] for name in self.form.leaves()}

    def _product(self, x: Float[Array, "*batch d_in"], dtype: DTypeLike) -> Float[Array, "*batch d_out"]:
        y = quantized_product(self.form, x.dtype, jnp.dtype(dtype), x, self.leaves())
        return checkpoint_name(y, PRODUCT)

    def dequantized(self) -> Float[Array, "*layers d_in d_out"]:
        """The kernel that it stands for, float32, whole: for what is done once and not in a step."""
        make = functools.partial(dequantized, self.form)
        return (jax.vmap(make) if self.layers is not None else make)(self.leaves())

    def widen(self, kernel: Array) -> None:
        """Makes it a plain `Linear` with another kernel."""
        for name in self.form.leaves():
            delattr(self, name)
        del self.form
        self.kernel = nnx.Param(kernel)
        self.__class__ = Linear  # pyright: ignore[reportAttributeAccessIssue]


# --- a model ---


def quantizable(model: nnx.Module) -> dict[str, str]:
    """Names of the maps that are quantised, by the last part of their paths, and the side along which each is tiled.

    All within the blocks: the embedding, norms and the head stay wide.
    """
    roles: Mapping[str, str] = getattr(type(model), "site_roles", {})
    sides = {"q": "in", "k": "in", "v": "in", "gate": "in", "up": "in", "o": "out", "down": "out"}
    return {name: sides[role] for name, role in roles.items() if role in sides}


def chosen_forms(model: nnx.Module, quantization: Quantization) -> dict[tuple[Any, ...], Form]:
    """The form of each map of a model to quantise, by the path of its module.

    Raises:
      UserError: `wo` is asked for of a model that keeps no map wide.
    """
    if quantization.kind == "none":
        return {}
    kept: tuple[str, ...] = getattr(type(model), "kept_wide", ())
    if quantization.wo and not kept:
        raise UserError(
            f"quantize_wo is of a T5; a {type(model).__name__} has no wo, and all of its blocks' maps are quantised."
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
    """Makes the modules at some paths `QuantizedLinear`s.

    Args:
      forms: by path.
      make: `(shape, dtype)` to the value of a leaf; shapes in the place of values if not given.
    """
    module: Any
    for path, module in list(nnx.iter_modules(model)):
        if path in forms:
            of_layers = module.kernel.shape[:-2]
            del module.kernel
            module.form = forms[path]
            for name, (shape, dtype, numbers) in forms[path].leaves().items():
                setattr(module, name, Quantized(make((*of_layers, *shape), dtype), numbers=numbers))
            module.__class__ = QuantizedLinear


def fill_quantized(
    model: nnx.Module,
    forms: Mapping[tuple[Any, ...], Form],
    leaves_of: Callable[[str, Form], Mapping[str, np.ndarray]],
    place: Devices,
) -> None:
    """Fills the leaves of quantised modules, one stacked map on the host at a time.

    Args:
      leaves_of: `(name, form)` to the leaves of one layer's module, such as `encoder/layers/0/self_attention/q`.
    """
    if not forms:
        return
    kept: dict[str, Mapping[str, np.ndarray]] = {}  # of one stacked map: its leaves come one after the other
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
    """The leaves of a module, of its wide kernel as a file has it."""

    def leaves_of(module: str, form: Form) -> Mapping[str, np.ndarray]:
        shape = (form.d_in, form.d_out)
        kernel = read(f"{module}/kernel", shape, tuple(slice(0, size) for size in shape))
        return quantize(kernel, form, f"{module}/kernel")

    return leaves_of


def is_quantized(model: nnx.Module) -> bool:
    """Whether a model has maps in few bits."""
    return quantization_of(model) is not None


def quantization_of(model: nnx.Module) -> str | None:
    """How a model is kept, whoever rounded it, in the words of `Quantization`: `nf4,double`; None where all is wide.

    Of a stranger's file that has maps of several kinds, all of these: `int8+nf4`.
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
