"""What a module is to a method: a map of vectors, a table of vectors, a norm, an input, an attention, or bare weights.

A method is written for vectors of one width in and of another out. A `View` shows a module of any library so: it knows
where the matrix and the bias are, and how what the module is called with becomes such vectors and back.

Modules are known by what they hold and not by their class, so that a user's own needs no base class of ours:
`kernel: [in, out]` is a linear map, `einsum_str` beside one array an Einsum, `embedding: [rows, width]` a table,
`scale: [width]` a norm, and what has a method `dequantized` a linear map in few bits. What has no array of its own says
what it is by a class attribute `site_kind`.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jpeft.errors import UserError
from jpeft.peft.variables import Adapter

KINDS = ("linear", "norm", "embedding", "input", "attention", "other")

Compute = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Original:
    """What a module does without what is attached to it, called like a function; and its weights, for who needs them.

    Attributes:
      call: what it does.
      view: of the module.
      module: that something is attached to.
    """

    call: Compute
    view: "View"
    module: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def by(self, call: Compute) -> "Original":
        """The same module and weights with another function in the place of `call`."""
        return dataclasses.replace(self, call=call)

    def matrix(self) -> Array:
        """The linear map as `[d_in, d_out]`, in the dtype that its weights have."""
        return self.view.matrix(self.module)

    def bias(self) -> Array | None:
        """What the module adds to `x @ matrix`, `[d_out]`; None where it adds nothing."""
        return None if self.view.bias is None else getattr(self.module, self.view.bias)[...].reshape(self.view.d_out)

    def with_weights(self, **weights: Array) -> Compute:
        """What the module does with other arrays in the place of its own, by attribute."""
        own, other = type(self.module), object.__new__(type(self.module))
        vars(other).update(vars(self.module))  # the same variables, so that what the module counts goes on
        vars(other).update({name: nnx.Param(value) for name, value in weights.items()})
        return functools.partial(getattr(own, "unadapted", own).__call__, other)


@dataclasses.dataclass(frozen=True)
class View:
    """A module of any kind (linear, embedding, norm) as methods see it, with the same functions for all kinds.

    Attributes:
      kind: one of `KINDS`; `other` holds weights that only full tuning can train.
      d_in, d_out: widths of the vectors that go in and come out; of an embedding, its rows and their width.
      layers: number of layers whose weights the module holds stacked on a first axis; None where it is of one.
      kernel, bias: names of the attributes that hold a linear map's or a norm's, whose kernel is its scale, or, the
        first, a table's; None where it has none.
    """

    kind: str
    d_in: int
    d_out: int
    layers: int | None = None
    kernel: str | None = None
    bias: str | None = None

    def call(self, adapter: Callable[..., Any], compute: Original, *args: Any, **kwargs: Any) -> Any:
        """What the module gives with `adapter` attached, which is called as `adapter(compute, ...)`."""
        if self.kind != "linear":
            return adapter(compute, *args, **kwargs)
        x, on_x = self._activations(compute, args, kwargs)
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise UserError(
                f"a {type(compute.module).__name__} with something attached is called with an array of shape {x.shape} "
                f"first; expected activations of width {self.d_in}."
            )
        return adapter(compute.by(on_x), x)

    def _activations(self, compute: Original, args: tuple, kwargs: dict[str, Any]) -> tuple[Array, Compute]:
        """The activations that a linear map is called with, and the map as a function of them alone.

        They are the argument of its first parameter. Integers and booleans become the floating-point numbers that a
        product with the weights would make of them.

        Raises:
          UserError: they are complex, of which methods would keep the real part alone.
        """
        x, on_x = _with_first(compute, args, kwargs)
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            name = type(compute.module).__name__
            raise UserError(f"a {name} with something attached is called with {x.dtype}; methods act on real numbers.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            kernel = getattr(compute.module, self._kernel)[...].dtype
            x = x.astype(jnp.promote_types(x.dtype, kernel if jnp.issubdtype(kernel, jnp.floating) else jnp.float32))
        return x, on_x

    def matrix(self, module: nnx.Pytree) -> Array:
        """The linear map or table as `[d_in, d_out]`, or `[layers, d_in, d_out]`: what goes in is a row.

        Of a norm its scale, `[width]` or `[layers, width]`.
        """
        return getattr(module, self._kernel)[...]

    def set_matrix(self, module: nnx.Pytree, matrix: Array) -> None:
        """Puts a matrix as `matrix` gives it in the place of the module's."""
        getattr(module, self._kernel).set_value(matrix)

    def example(self, key: Array) -> Array:
        """Random float32 activations in the shape that the module is called with: two rows, of `d_in` numbers."""
        return jax.random.normal(key, (2, self.d_in))

    @property
    def _kernel(self) -> str:
        assert self.kernel is not None, f"a {self.kind} has no matrix"
        return self.kernel


def _with_first(compute: Original, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """The argument of a module's first parameter, and the module as a function of it alone."""
    if args:
        return args[0], lambda x: compute(x, *args[1:], **kwargs)
    own = type(compute.module)
    _, *parameters = inspect.signature(getattr(own, "unadapted", own).__call__).parameters
    arrays = (name for name, value in kwargs.items() if hasattr(value, "dtype"))
    name = parameters[0] if parameters and parameters[0] in kwargs else next(arrays)
    return kwargs[name], lambda x: compute(**{**kwargs, name: x})


@dataclasses.dataclass(frozen=True)
class _Reshaped(View):
    """A linear map between arrays of several dimensions."""

    shape: tuple[int, ...] = ()  # of one layer's kernel
    order: tuple[int, ...] = ()  # of its dimensions: those that are summed over, then those that come out
    num_in: int = 1  # how many are summed over

    def matrix(self, module: nnx.Pytree) -> Array:
        kernel = getattr(module, self._kernel)[...]
        first = kernel.ndim - len(self.shape)
        turned = jnp.transpose(kernel, (*range(first), *(first + axis for axis in self.order)))
        return turned.reshape(*kernel.shape[:first], self.d_in, self.d_out)

    def set_matrix(self, module: nnx.Pytree, matrix: Array) -> None:
        first = matrix.ndim - 2
        parts = matrix.reshape(*matrix.shape[:first], *(self.shape[axis] for axis in self.order))
        back = [self.order.index(axis) for axis in range(len(self.shape))]
        getattr(module, self._kernel).set_value(jnp.transpose(parts, (*range(first), *(first + axis for axis in back))))

    @property
    def _out_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.order[self.num_in :])


@dataclasses.dataclass(frozen=True)
class _Quantized(View):
    """A linear map kept in few bits, which says by `dequantized` what it stands for and becomes wide by `widen`."""

    def matrix(self, module: Any) -> Array:
        return module.dequantized()

    def set_matrix(self, module: Any, matrix: Array) -> None:
        module.widen(matrix)


@dataclasses.dataclass(frozen=True)
class _General(_Reshaped):
    """`nnx.LinearGeneral`: sums over some axes of its input and puts the new ones at the end."""

    axes: tuple[int, ...] = (-1,)

    def call(self, adapter: Callable[..., Any], compute: Original, *args: Any, **kwargs: Any) -> Any:
        x, on_x = self._activations(compute, args, kwargs)
        ends = tuple(range(-len(self.axes), 0))
        axes = sorted(axis % x.ndim for axis in self.axes)  # as Flax orders them, whatever order they are given in
        turned = jnp.moveaxis(x, axes, ends)
        kept, summed = turned.shape[: -len(ends)], turned.shape[-len(ends) :]

        def on_vectors(vectors: Array) -> Array:
            y = on_x(jnp.moveaxis(vectors.reshape(*kept, *summed), ends, axes))
            return y.reshape(*kept, self.d_out)

        y = adapter(compute.by(on_vectors), turned.reshape(*kept, self.d_in))
        return y.reshape(*kept, *self._out_shape)

    def example(self, key: Array) -> Array:
        ndim = max(len(self.axes) + 1, *(axis + 1 if axis >= 0 else -axis for axis in self.axes))
        axes = sorted(axis % ndim for axis in self.axes)
        sizes = dict(zip(axes, self.shape[: self.num_in], strict=True))
        return jax.random.normal(key, tuple(sizes.get(axis, 2) for axis in range(ndim)))


@dataclasses.dataclass(frozen=True)
class _Einsum(_Reshaped):
    """`nnx.Einsum`, or any module with an `einsum_str` of two operands and one array: the second operand."""

    of_x: str = ""  # letters of the dimensions
    of_y: str = ""
    summed: str = ""  # over which is summed, as the input has them
    made: str = ""  # that come from the kernel, as the output has them

    def call(self, adapter: Callable[..., Any], compute: Original, *args: Any, **kwargs: Any) -> Any:
        x, on_x = self._activations(compute, args, kwargs)
        for given in (*args[1:], kwargs.get("einsum_str")):
            if isinstance(given, str) and given.replace(" ", "") != compute.module.einsum_str.replace(" ", ""):
                raise UserError(
                    f"a {type(compute.module).__name__} of {compute.module.einsum_str!r} with something attached is "
                    f"called with {given!r}, for which that was not made; attach to other sites."
                )
        kept = "".join(letter for letter in self.of_x if letter not in self.summed)
        to_vectors = [self.of_x.index(letter) for letter in kept + self.summed]
        from_vectors = [(kept + self.summed).index(letter) for letter in self.of_x]
        turned = jnp.transpose(x, to_vectors)
        shape = turned.shape[: len(kept)]
        results = [self.of_y.index(letter) for letter in kept + self.made]
        placed = [(kept + self.made).index(letter) for letter in self.of_y]

        def on_vectors(vectors: Array) -> Array:
            y = on_x(jnp.transpose(vectors.reshape(turned.shape), from_vectors))
            return jnp.transpose(y, results).reshape(*shape, self.d_out)

        y = adapter(compute.by(on_vectors), turned.reshape(*shape, self.d_in))
        return jnp.transpose(y.reshape(*shape, *self._out_shape), placed)

    def example(self, key: Array) -> Array:
        sizes = dict(zip(self.summed, (self.shape[axis] for axis in self.order[: self.num_in]), strict=True))
        return jax.random.normal(key, tuple(sizes.get(letter, 2) for letter in self.of_x))


def view_of(module: Any, *, layers: int | None = None) -> View | None:
    """The `View` of a module; None if it is of no kind known here and holds no weights itself.

    Args:
      layers: of the stack that the module stands in, where whoever asks knows; otherwise told from shapes.
    """
    kind = getattr(type(module), "site_kind", None)
    if kind is not None:
        assert kind in KINDS, f"{type(module).__name__}.site_kind is {kind!r}; one of {KINDS}"
        return View(kind, *module.site_widths, layers=layers)
    params = _params(module)
    if not params:
        return None
    if isinstance(module, nnx.bridge.ToNNX):  # it hands every attribute to Linen: nothing can be attached
        return View("other", 0, 0, layers)
    if hasattr(type(module), "dequantized"):
        bias = "bias" if "bias" in params else None
        return _Quantized("linear", *module.site_widths, layers=module.layers, kernel="codes", bias=bias)
    return _linear(module, params, layers) or _table(module, params, layers) or View("other", 0, 0, layers)


def _params(module: nnx.Pytree) -> dict[str, nnx.Variable]:
    """The arrays that a module holds itself as weights, trainable ones too, by attribute."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, nnx.Param | Adapter) and hasattr(value.get_value(), "shape")
    }


def _linear(module: Any, params: dict[str, nnx.Variable], layers: int | None) -> View | None:
    bias = "bias" if "bias" in params else None
    if isinstance(getattr(module, "einsum_str", None), str):
        return _einsum(module.einsum_str, params, bias, layers)
    if "kernel" not in params or hasattr(module, "kernel_size"):  # of a convolution
        return None
    shape = params["kernel"].shape
    widths = tuple(getattr(module, name, None) for name in ("in_features", "out_features"))
    if any(isinstance(width, tuple | list) for width in widths):
        return _general(module, shape, bias, layers)
    if len(shape) == 2 and layers is None:
        return View("linear", *shape, kernel="kernel", bias=bias)
    stacked = len(shape) == 3 and (layers == shape[0] or shape[1:] == widths)
    return View("linear", *shape[1:], layers=shape[0], kernel="kernel", bias=bias) if stacked else None


def _general(module: Any, shape: tuple[int, ...], bias: str | None, layers: int | None) -> View | None:
    into, out = _as_tuple(module.in_features), _as_tuple(module.out_features)
    if _as_tuple(getattr(module, "batch_axis", ())):  # a map of its own for each place of an axis
        return None
    stacked = len(shape) - len(into) - len(out)
    if shape[stacked:] != (*into, *out) or stacked not in (0, 1) or (layers is not None and not stacked):
        return None
    return _General(
        "linear",
        math.prod(into),
        math.prod(out),
        layers=shape[0] if stacked else None,
        kernel="kernel",
        bias=bias,
        shape=(*into, *out),
        order=tuple(range(len(into) + len(out))),
        num_in=len(into),
        axes=_as_tuple(module.axis),
    )


def _as_tuple(value: Any) -> tuple:
    if hasattr(value, "items"):  # nnx.LinearGeneral keeps batch axes by number
        return tuple(value)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _einsum(text: str, params: dict[str, nnx.Variable], bias: str | None, layers: int | None) -> View | None:
    arrays = [name for name in params if name != bias]
    operands, arrow, of_y = text.replace(" ", "").partition("->")
    of_x, comma, of_kernel = operands.partition(",")
    if len(arrays) != 1 or not (arrow and comma) or "." in text or "," in of_kernel:
        return None
    shape = params[arrays[0]].shape
    stacked = len(shape) - len(of_kernel)
    summed = "".join(letter for letter in of_x if letter in of_kernel and letter not in of_y)
    made = "".join(letter for letter in of_y if letter in of_kernel and letter not in of_x)
    # A letter that all three have would be a map of its own for each place of it; one that is lost is no linear map.
    apart = len(summed) + len(made) != len(of_kernel) or not (summed and made)
    if stacked not in (0, 1) or (layers is not None and not stacked) or apart:
        return None
    if set(of_x) - set(summed) != set(of_y) - set(made) or any(len(set(part)) < len(part) for part in (of_x, of_y)):
        return None
    sizes = dict(zip(of_kernel, shape[stacked:], strict=True))
    return _Einsum(
        "linear",
        math.prod(sizes[letter] for letter in summed),
        math.prod(sizes[letter] for letter in made),
        layers=shape[0] if stacked else None,
        kernel=arrays[0],
        bias=bias,
        shape=tuple(shape[stacked:]),
        order=tuple(of_kernel.index(letter) for letter in summed + made),
        num_in=len(summed),
        of_x=of_x,
        of_y=of_y,
        summed=summed,
        made=made,
    )


def _table(module: Any, params: dict[str, nnx.Variable], layers: int | None) -> View | None:
    """An embedding or a norm: `embedding: [rows, width]`, or vectors alone."""
    shape: tuple[int, ...] = params["embedding"].shape if "embedding" in params else ()
    if len(shape) == 2 and layers is None:
        return View("embedding", *shape, kernel="embedding")
    if len(shape) == 3 and _is_stacked(module, shape, layers, "features"):
        return View("embedding", *shape[1:], layers=shape[0], kernel="embedding")
    vectors = [value.shape for name, value in params.items()]
    is_norm = "scale" in params or type(module).__name__.lower().endswith("norm")
    if not is_norm or len(set(vectors)) > 1:
        return None
    (shape,) = set(vectors)
    stacked = len(shape) - 1
    if stacked == 0 and layers is None or stacked == 1 and _is_stacked(module, shape, layers, "num_features"):
        bias = "bias" if "bias" in params else None
        scale = "scale" if "scale" in params else None
        return View("norm", shape[-1], shape[-1], layers=shape[0] if stacked else None, kernel=scale, bias=bias)
    return None


def _is_stacked(module: Any, shape: tuple[int, ...], layers: int | None, width: str) -> bool:
    return layers == shape[0] if layers is not None else getattr(module, width, None) == shape[-1]
