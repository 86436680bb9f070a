"""A uniform view of modules of any library: linear maps, embeddings, norms, model inputs, attentions, other weights.

Methods are written for maps from vectors `[..., d_in]` to vectors `[..., d_out]`. A `View` presents a module in that
form: it finds the kernel and the bias, and reshapes the arguments of a call to such vectors and the results back.

Modules are recognised by their attributes instead of their class, so that users' modules need no base class:
`kernel: [in, out]` is a linear map, `einsum_str` beside one array (its second operand) an einsum,
`embedding: [rows, width]` an embedding, `scale: [width]` a norm, and a module with a method `dequantized` a quantized
linear map. A module without arrays of its own declares its kind by a class attribute `site_kind`.
"""

import dataclasses
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
    """The original call of an adapted module, as a function, with access to the module's weights.

    Attributes:
      call: the function.
      view: the view of the module.
      module: the adapted module, as an object of its original class.
    """

    call: Compute
    view: "View"
    module: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def by(self, call: Compute) -> "Original":
        """Returns a copy with another function; module and weights are the same."""
        return dataclasses.replace(self, call=call)

    def matrix(self) -> Array:
        """The kernel as `[d_in, d_out]`, in the dtype of the weights."""
        return self.view.matrix(self.module)

    def bias(self) -> Array | None:
        """The bias as `[d_out]`; None if the module has none."""
        return None if self.view.bias is None else getattr(self.module, self.view.bias)[...].reshape(self.view.d_out)

    def with_weights(self, **weights: Array) -> Compute:
        """The original call with some weights replaced, by attribute name; other attributes may change as they do."""

        def call(*args: Any, **kwargs: Any) -> Any:
            own = vars(self.module)
            before = own | {name: nnx.Param(value) for name, value in weights.items()}
            other = instance_of(type(self.module), dict(before))
            y = type(other).__call__(other, *args, **kwargs)
            own.update({name: value for name, value in vars(other).items() if value is not before.get(name)})
            return y

        return call


def instance_of(cls: type[nnx.Module], attributes: dict[str, Any]) -> Any:
    """An object of a class whose attributes are those of the dictionary itself: setting one changes the dictionary."""
    module = object.__new__(cls)
    object.__setattr__(module, "__dict__", attributes)
    return module


@dataclasses.dataclass(frozen=True)
class View:
    """A module as methods see it, with the same interface for all kinds.

    Attributes:
      kind: one of `KINDS`; `other` has weights that only full tuning can train.
      d_in, d_out: widths of input and output vectors; for an embedding, the number of its rows and their width.
      layers: number of layers whose weights the module holds, stacked along a first axis; None if it is a single layer.
      kernel: attribute that holds a linear map's kernel, an embedding's table or a norm's scale, or None.
      bias: attribute that holds the bias of a linear map or a norm, or None.
      feature_axis: the axis of a norm's input and output along which its weights lie.
    """

    kind: str
    d_in: int
    d_out: int
    layers: int | None = None
    kernel: str | None = None
    bias: str | None = None
    feature_axis: int = -1

    def call(self, adapter: Callable[..., Any], compute: Original, *args: Any, **kwargs: Any) -> Any:
        """Calls the module with an adapter attached, which is called as `adapter(compute, ...)`."""
        if self.kind == "embedding":
            rows, on_rows = self._rows(compute, args, kwargs)
            return adapter(compute.by(on_rows), rows)
        if self.kind != "linear":
            args, kwargs = _by_position(compute, args, kwargs)
            return adapter(compute, *args, **kwargs)
        x, on_x = self._activations(compute, args, kwargs)
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise UserError(
                f"a {type(compute.module).__name__} with something attached is called with an array of shape {x.shape} "
                f"first; expected activations of width {self.d_in}."
            )

        def on_vectors(vectors: Array) -> Array:
            return _of_shape((*vectors.shape[:-1], self.d_out), compute, on_x(vectors))

        return adapter(compute.by(on_vectors), x)

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

    def _rows(self, compute: Original, args: tuple, kwargs: dict[str, Any]) -> tuple[Array, Compute]:
        """The rows that an embedding is called with, the argument of its first parameter, and it as a function of them.

        Raises:
          UserError: they are no whole numbers; a table may be multiplied by its input, and an adapter looks rows up.
        """
        rows, on_rows = _with_first(compute, args, kwargs)
        rows = jnp.asarray(rows)
        if not jnp.issubdtype(rows.dtype, jnp.integer):
            raise UserError(
                f"a {type(compute.module).__name__} with something attached is called with {rows.dtype}; expected "
                f"whole numbers, rows of its {self._kernel}; attach to other sites."
            )

        def looked_up(rows: Array) -> Array:
            return _of_shape((*rows.shape, self.d_out), compute, on_rows(rows))

        return rows, looked_up

    def matrix(self, module: nnx.Pytree) -> Array:
        """The kernel or table as `[d_in, d_out]` or `[layers, d_in, d_out]`; a norm's scale as `[width]` likewise."""
        return getattr(module, self._kernel)[...]

    def set_matrix(self, module: nnx.Pytree, matrix: Array) -> None:
        """Replaces the module's kernel, table or scale; `matrix` has the shape that `View.matrix` returns."""
        getattr(module, self._kernel).set_value(matrix)

    def example(self, key: Array) -> Array:
        """Random float32 activations in a shape that the module can be called with."""
        axis = self.feature_axis
        shape = [2] * max(2, axis + 1, -axis)
        shape[axis] = self.d_in
        return jax.random.normal(key, shape)

    def on_features(self, act: Compute, module: nnx.Pytree, y: Any) -> Array:
        """Applies a function of vectors to an output of the module, in which they may lie along an inner axis.

        Raises:
          UserError: the output is no array, or that axis of it has another width.
        """
        axis = self.feature_axis
        if not isinstance(y, jax.Array):
            raise UserError(_returns(module, f"a {type(y).__name__}", "an array"))
        if self.d_out == 1:  # one number for all features
            return act(y)
        if not -y.ndim <= axis < y.ndim or y.shape[axis] != self.d_out:
            expected = f"a width of {self.d_out} along axis {axis}"
            raise UserError(_returns(module, f"an array of shape {y.shape}", expected))
        return jnp.moveaxis(act(jnp.moveaxis(y, axis, -1)), -1, axis)

    @property
    def _kernel(self) -> str:
        assert self.kernel is not None, f"a {self.kind} has no matrix"
        return self.kernel


def _with_first(compute: Original, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """The argument of a module's first parameter, and the module as a function of it alone."""
    if args:
        return args[0], lambda x: compute(x, *args[1:], **kwargs)
    _, *parameters = inspect.signature(type(compute.module).__call__).parameters
    arrays = (name for name, value in kwargs.items() if hasattr(value, "dtype"))
    name = parameters[0] if parameters and parameters[0] in kwargs else next(arrays)
    return kwargs[name], lambda x: compute(**{**kwargs, name: x})


def _of_shape(shape: tuple[int, ...], compute: Original, y: Any) -> Array:
    """The output of a map or an embedding, which has to be an array of this shape for methods to act on its vectors.

    Raises:
      UserError: it is not; an adapter's part would not fit, or would be broadcast to another output than the base's.
    """
    if not isinstance(y, jax.Array) or y.shape != shape:
        found = f"an array of shape {y.shape}" if isinstance(y, jax.Array) else f"a {type(y).__name__}"
        raise UserError(_returns(compute.module, found, f"an array of shape {shape}"))
    return y


def _returns(module: Any, found: str, expected: str) -> str:
    name = type(module).__name__
    return f"a {name} with something attached returns {found}; expected {expected}; attach to other sites."


def _by_position(compute: Original, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call, those of positional parameters in their positions, where an adapter takes them."""
    if not kwargs:
        return args, kwargs
    bound = inspect.signature(compute.call).bind(*args, **kwargs)
    return bound.args, bound.kwargs


@dataclasses.dataclass(frozen=True)
class _Reshaped(View):
    """A linear map between arrays of several dimensions."""

    shape: tuple[int, ...] = ()  # of one layer's kernel
    order: tuple[int, ...] = ()  # its dimensions as [contracted ones, output ones]
    num_in: int = 1  # number of contracted dimensions

    def matrix(self, module: nnx.Pytree) -> Array:
        kernel = getattr(module, self._kernel)[...]
        first = kernel.ndim - len(self.shape)
        ordered = jnp.transpose(kernel, (*range(first), *(first + axis for axis in self.order)))
        return ordered.reshape(*kernel.shape[:first], self.d_in, self.d_out)

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
    """A quantized linear map, which `dequantized` converts to a float matrix and `widen` replaces by one."""

    def matrix(self, module: Any) -> Array:
        return module.dequantized()

    def set_matrix(self, module: Any, matrix: Array) -> None:
        module.widen(matrix)


@dataclasses.dataclass(frozen=True)
class _General(_Reshaped):
    """`nnx.LinearGeneral`: contracts some axes of its input and puts the new ones at the end."""

    axes: tuple[int, ...] = (-1,)

    def call(self, adapter: Callable[..., Any], compute: Original, *args: Any, **kwargs: Any) -> Any:
        x, on_x = self._activations(compute, args, kwargs)
        ends = tuple(range(-len(self.axes), 0))
        axes = sorted(axis % x.ndim for axis in self.axes)  # Flax sorts them, too
        moved = jnp.moveaxis(x, axes, ends)
        batch, contracted = moved.shape[: -len(ends)], moved.shape[-len(ends) :]

        def on_vectors(vectors: Array) -> Array:
            y = on_x(jnp.moveaxis(vectors.reshape(*batch, *contracted), ends, axes))
            return _of_shape((*batch, *self._out_shape), compute, y).reshape(*batch, self.d_out)

        y = adapter(compute.by(on_vectors), moved.reshape(*batch, self.d_in))
        return y.reshape(*batch, *self._out_shape)

    def example(self, key: Array) -> Array:
        ndim = max(len(self.axes) + 1, *(axis + 1 if axis >= 0 else -axis for axis in self.axes))
        axes = sorted(axis % ndim for axis in self.axes)
        sizes = dict(zip(axes, self.shape[: self.num_in], strict=True))
        return jax.random.normal(key, tuple(sizes.get(axis, 2) for axis in range(ndim)))


@dataclasses.dataclass(frozen=True)
class _Einsum(_Reshaped):
    """`nnx.Einsum`, or any module with an `einsum_str` of two operands and one array: the second operand."""

    x_axes: str = ""  # subscripts of the input
    y_axes: str = ""  # subscripts of the output
    contracted: str = ""  # subscripts of input and kernel only, in the order of the input
    new: str = ""  # subscripts of kernel and output only, in the order of the output

    def call(self, adapter: Callable[..., Any], compute: Original, *args: Any, **kwargs: Any) -> Any:
        x, on_x = self._activations(compute, args, kwargs)
        for given in (*args[1:], kwargs.get("einsum_str")):
            if isinstance(given, str) and given.replace(" ", "") != compute.module.einsum_str.replace(" ", ""):
                raise UserError(
                    f"a {type(compute.module).__name__} of {compute.module.einsum_str!r} with something attached is "
                    f"called with {given!r}, for which that was not made; attach to other sites."
                )
        batch = "".join(letter for letter in self.x_axes if letter not in self.contracted)
        x_to_vectors = [self.x_axes.index(letter) for letter in batch + self.contracted]
        vectors_to_x = [(batch + self.contracted).index(letter) for letter in self.x_axes]
        y_to_vectors = [self.y_axes.index(letter) for letter in batch + self.new]
        vectors_to_y = [(batch + self.new).index(letter) for letter in self.y_axes]
        moved = jnp.transpose(x, x_to_vectors)
        shape = moved.shape[: len(batch)]

        def on_vectors(vectors: Array) -> Array:
            y = on_x(jnp.transpose(vectors.reshape(moved.shape), vectors_to_x))
            y = _of_shape(tuple((*shape, *self._out_shape)[axis] for axis in vectors_to_y), compute, y)
            return jnp.transpose(y, y_to_vectors).reshape(*shape, self.d_out)

        y = adapter(compute.by(on_vectors), moved.reshape(*shape, self.d_in))
        return jnp.transpose(y.reshape(*shape, *self._out_shape), vectors_to_y)

    def example(self, key: Array) -> Array:
        sizes = self._sizes()
        return jax.random.normal(key, tuple(sizes.get(letter, 2) for letter in self.x_axes))

    def fits(self, module: nnx.Pytree) -> bool:
        """Whether the shape of the module's output follows from that of its input as it does in this view.

        The axes of a batch get sizes that the kernel does not have. A module that raises does not fit.
        """
        batch = [letter for letter in self.x_axes if letter not in self.contracted]
        sizes = self._sizes() | {letter: max(self.shape) + 1 + i for i, letter in enumerate(batch)}
        graphdef, state = nnx.split(module)

        def call(state: nnx.State, x: Array) -> Any:
            one = jax.tree.map(lambda leaf: leaf if self.layers is None else leaf[0], state)
            return nnx.merge(graphdef, one)(x)

        x = jax.ShapeDtypeStruct(tuple(sizes[letter] for letter in self.x_axes), jnp.float32)
        try:
            return jax.eval_shape(call, state, x).shape == tuple(sizes[letter] for letter in self.y_axes)
        except Exception:  # users' modules may raise anything
            return False

    def _sizes(self) -> dict[str, int]:
        """The sizes of the kernel's axes, by subscript."""
        return {letter: self.shape[axis] for letter, axis in zip(self.contracted + self.new, self.order, strict=True)}


def with_kernel_second(module: Any, view: View) -> str | None:
    """The `einsum_str` that a module should have whose array is the first operand; None if it is the second.

    The shapes may allow both, so a module is tried out, in shapes alone. Those of `nnx.Einsum` are known.
    """
    if not isinstance(view, _Einsum) or isinstance(module, nnx.Einsum):
        return None
    operands, arrow, y_axes = module.einsum_str.replace(" ", "").partition("->")
    swapped = ",".join(reversed(operands.split(","))) + arrow + y_axes
    other = _einsum(swapped, _params(module), view.bias, view.layers)
    return swapped if isinstance(other, _Einsum) and other.fits(module) and not view.fits(module) else None


def view_of(module: Any, *, layers: int | None = None) -> View | None:
    """The `View` of a module; None if it has no weights of its own and declares no `site_kind`.

    Args:
      module: the module.
      layers: number of layers stacked in its weights, for a module of a `LayerStack`; otherwise inferred from shapes.
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
    return _linear(module, params, layers) or _embedding_or_norm(module, params, layers) or View("other", 0, 0, layers)


def _params(module: nnx.Pytree) -> dict[str, nnx.Variable]:
    """The module's own weights, trainable ones included, by attribute."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, nnx.Param | Adapter) and hasattr(value.get_value(), "shape")
    }


def _linear(module: Any, params: dict[str, nnx.Variable], layers: int | None) -> View | None:
    bias = "bias" if "bias" in params else None
    if isinstance(getattr(module, "einsum_str", None), str):
        return _einsum(module.einsum_str, params, bias, layers)
    if "kernel" not in params or hasattr(module, "kernel_size"):  # a convolution has one
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
    if _as_tuple(getattr(module, "batch_axis", ())):  # a separate map for each index of an axis
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
    if hasattr(value, "items"):  # nnx.LinearGeneral has its batch axes as keys of a dict
        return tuple(value)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _einsum(text: str, params: dict[str, nnx.Variable], bias: str | None, layers: int | None) -> View | None:
    arrays = [name for name in params if name != bias]
    operands, arrow, y_axes = text.replace(" ", "").partition("->")
    x_axes, comma, kernel_axes = operands.partition(",")
    if len(arrays) != 1 or not (arrow and comma) or "." in text or "," in kernel_axes:
        return None
    shape = params[arrays[0]].shape
    stacked = len(shape) - len(kernel_axes)
    contracted = "".join(letter for letter in x_axes if letter in kernel_axes and letter not in y_axes)
    new = "".join(letter for letter in y_axes if letter in kernel_axes and letter not in x_axes)
    # A subscript in all three would be a separate map for each index; one in the kernel only is summed out of it.
    is_no_map = len(contracted) + len(new) != len(kernel_axes) or not (contracted and new)
    if stacked not in (0, 1) or (layers is not None and not stacked) or is_no_map:
        return None
    if set(x_axes) - set(contracted) != set(y_axes) - set(new):
        return None
    if any(len(set(axes)) < len(axes) for axes in (x_axes, y_axes)):  # a repeated subscript takes a diagonal
        return None
    sizes = dict(zip(kernel_axes, shape[stacked:], strict=True))
    return _Einsum(
        "linear",
        math.prod(sizes[letter] for letter in contracted),
        math.prod(sizes[letter] for letter in new),
        layers=shape[0] if stacked else None,
        kernel=arrays[0],
        bias=bias,
        shape=tuple(shape[stacked:]),
        order=tuple(kernel_axes.index(letter) for letter in contracted + new),
        num_in=len(contracted),
        x_axes=x_axes,
        y_axes=y_axes,
        contracted=contracted,
        new=new,
    )


def _embedding_or_norm(module: Any, params: dict[str, nnx.Variable], layers: int | None) -> View | None:
    """The view of an embedding, which has `embedding: [rows, width]`, or of a norm, which has vectors only."""
    shape: tuple[int, ...] = params["embedding"].shape if "embedding" in params else ()
    if len(shape) == 2 and layers is None:
        return View("embedding", *shape, kernel="embedding")
    if len(shape) == 3 and _is_stacked(module, shape, layers, "features"):
        return View("embedding", *shape[1:], layers=shape[0], kernel="embedding")
    shapes = {value.shape for value in params.values()}
    is_norm = "scale" in params or type(module).__name__.lower().endswith("norm")
    if not is_norm or len(shapes) > 1:
        return None
    (shape,) = shapes
    stacked = len(shape) - 1
    if stacked == 0 and layers is None or stacked == 1 and _is_stacked(module, shape, layers, "num_features"):
        bias = "bias" if "bias" in params else None
        scale = "scale" if "scale" in params else None
        axis, layers = _feature_axis(module), shape[0] if stacked else None
        return View("norm", shape[-1], shape[-1], layers, kernel=scale, bias=bias, feature_axis=axis)
    return None


def _feature_axis(module: Any) -> int:
    """The axis along which a norm's weights lie, by Flax's names for it; the last one where it does not say."""
    own = getattr(module, "feature_axes", module.axis if isinstance(module, nnx.BatchNorm) else -1)
    axes = _as_tuple(own)
    return axes[0] if len(axes) == 1 and isinstance(axes[0], int) else -1


def _is_stacked(module: Any, shape: tuple[int, ...], layers: int | None, width: str) -> bool:
    return layers == shape[0] if layers is not None else getattr(module, width, None) == shape[-1]
