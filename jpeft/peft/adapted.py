"""Attaching a module to another, of any class, without a change to its code, its attributes or its paths."""

import functools
from typing import Any

from flax import nnx

from jpeft.errors import UserError
from jpeft.peft.sites import SiteModule
from jpeft.peft.views import view_of


@functools.cache
def _adapted(original: type[nnx.Module]) -> type[nnx.Module]:
    """The class of `original` modules with something attached: as theirs, but that calls go through `adapter`."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        view = view_of(self)
        assert view is not None, f"{original.__name__} has changed since something was attached to it"
        return view.call(self.adapter, functools.partial(original.__call__, self), *args, **kwargs)

    names = {"__call__": call, "unadapted": original, "__doc__": original.__doc__, "__module__": original.__module__}
    return type(original.__name__, (original,), names)


def put(place: SiteModule, adapter: nnx.Module) -> None:
    """Attaches a module where another stands: that stays the object it was, and its calls go through `adapter`.

    Raises:
      UserError: something is attached there already, or the module has an attribute `adapter` of its own.
    """
    module: Any = place.module
    if hasattr(module, "adapter"):
        why = "has an adapter already" if is_adapted(module) else "has an attribute `adapter` of its own"
        raise UserError(f"{place.sites[0].path} {why}; attach to a model without it, or at other sites.")
    module.adapter = adapter
    module.__class__ = _adapted(type(module))


def take_off(module: Any) -> nnx.Module:
    """Undoes `put` and returns what was attached."""
    adapter = module.adapter
    del module.adapter
    module.__class__ = type(module).unadapted
    return adapter


def is_adapted(module: nnx.Module) -> bool:
    """Whether something is attached to the module itself."""
    return hasattr(type(module), "unadapted")
