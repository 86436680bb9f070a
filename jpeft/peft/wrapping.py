"""Attaching an adapter to a module of any class, without changing its code, its attributes or its paths."""

import copyreg
import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from jpeft.errors import UserError
from jpeft.peft.sites import SiteModule
from jpeft.peft.views import Original, instance_of, view_of, with_kernel_second


@functools.cache
def _adapted(original: type[nnx.Module]) -> type[nnx.Module]:
    """A subclass of `original` whose calls go through the attribute `adapter`."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        view = view_of(self)
        assert view is not None, f"{original.__name__} has changed since an adapter was attached to it"
        if view.layers is not None:
            raise UserError(
                f"a {original.__name__} with an adapter holds {view.layers} layers and is called as one; if its "
                "kernel is no stack of layers, attach to other sites."
            )
        if num_dimensions(self.adapter) != self.adapter_dimensions:
            raise UserError(
                f"the adapter of a {original.__name__} has all layers in a call in which its weights have one; where "
                "nnx.scan or nnx.vmap lists the variables to map over, name jpeft.Adapter, too."
            )
        module = instance_of(original, vars(self))  # a module that calls itself there is not adapted once more
        compute = Original(functools.partial(original.__call__, module), view, module)
        return view.call(self.adapter, compute, *args, **kwargs)

    names = {"__call__": call, "unadapted": original, "__doc__": original.__doc__, "__module__": original.__module__}
    return _findable(type(original))(original.__name__, (original,), names)


@functools.cache
def _findable(metaclass: type[type]) -> type[type]:
    """A subclass of a metaclass whose classes, those of `_adapted`, are in no module and are pickled all the same.

    They are pickled as their originals and made again, so that models with adapters, and what `nnx.split` returns of
    them, can be sent to other processes where their bases can.
    """
    findable = type(metaclass.__name__, (metaclass,), {"__module__": metaclass.__module__})

    def by_its_original(adapted: Any) -> tuple[Any, ...]:
        return _adapted, (adapted.unadapted,)

    copyreg.pickle(findable, by_its_original)
    return findable


def num_dimensions(adapter: nnx.Module) -> int:
    """The total number of dimensions of an adapter's leaves; it is smaller within a call for one layer of a stack."""
    return sum(leaf.ndim for leaf in jax.tree.leaves(adapter))


def put(place: SiteModule, adapter: nnx.Module) -> None:
    """Attaches an adapter to the module at a place, which stays the same object and gets another class.

    Raises:
      UserError: the module is not callable, has an adapter already, has an attribute `adapter` of its own, or is an
        einsum whose first operand is the kernel.
    """
    module: Any = place.module
    if not callable(module):
        raise UserError(
            f"{place.sites[0].told} is a {type(module).__name__}, which is not called itself, so an adapter there "
            "would have no effect; attach to other sites."
        )
    if hasattr(module, "adapter"):
        why = "has an adapter already" if is_adapted(module) else "has an attribute `adapter` of its own"
        raise UserError(f"{place.sites[0].told} {why}; attach to a model without it, or at other sites.")
    swapped = with_kernel_second(module, place.view)
    if swapped is not None:
        raise UserError(
            f"{place.sites[0].told} is a {type(module).__name__} whose einsum_str {module.einsum_str!r} has the kernel "
            f"first; expected the activations first: make it {swapped!r} and swap the operands, or attach elsewhere."
        )
    module.adapter = adapter
    stacked = place.in_stack or place.view.layers is not None
    module.adapter_dimensions = num_dimensions(adapter) - stacked * len(jax.tree.leaves(adapter))
    module.__class__ = _adapted(type(module))


def take_off(module: Any) -> nnx.Module:
    """Undoes `put`: gives the module its own class back and returns the adapter."""
    adapter = module.adapter
    del module.adapter, module.adapter_dimensions
    forget_method(module)
    module.__class__ = type(module).unadapted
    return adapter


class AttachedMethod:
    """A method as a static attribute of a module, where it is part of the model's structure, the `nnx.GraphDef`.

    Two are equal if the methods agree in all options, also in those that their own equality leaves out
    (`compare=False`): of equal structures `nnx.jit` keeps one, and gives it to the models of all of them. A method with
    an option that has no hash, such as a list or an array, equals only itself.
    """

    def __init__(self, method: Any):
        self.method = method
        options = (type(method), *(getattr(method, field.name) for field in dataclasses.fields(method)))
        try:
            self._hash, self._options = hash(options), options
        except TypeError:
            self._hash, self._options = id(method), None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttachedMethod):
            return NotImplemented
        return self.method is other.method or (self._options is not None and self._options == other._options)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return AttachedMethod, (self.method,)  # a hash of this process is none of another

    def __repr__(self) -> str:
        return f"AttachedMethod({self.method!r})"


def remember_method(module: Any, attached: AttachedMethod) -> None:
    """Keeps with a module the method that was attached to it; `attached_method` finds it again."""
    module.attached_method = attached


def attached_method(module: Any) -> AttachedMethod | None:
    """The method that `remember_method` kept with a module, or None."""
    return getattr(module, "attached_method", None)


def forget_method(module: Any) -> None:
    """Undoes `remember_method`."""
    if "attached_method" in vars(module):
        del module.attached_method  # by the module itself, which lists its attributes


def is_adapted(module: Any) -> bool:
    """Whether the module itself has an adapter."""
    return hasattr(type(module), "unadapted")
