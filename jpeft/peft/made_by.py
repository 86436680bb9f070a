"""The method that a model's trainable leaves come from: it is remembered, and a given one is checked against them."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from jpeft.errors import UserError
from jpeft.peft.method import AddedModules, Method
from jpeft.peft.sites import is_trained, site_modules
from jpeft.peft.variables import Adapter
from jpeft.peft.wrapping import AttachedMethod, attached_method, is_adapted, remember_method
from jpeft.words import shortened


def require_method(method: Any) -> None:
    """Raises `UserError` if the argument is not an instance of a method, such as its class."""
    if not isinstance(method, Method):
        raise UserError(f"method is {shortened(method)}; expected a method such as jpeft.Lora(rank=8).")


def remember(method: Method, tuned: nnx.Module) -> None:
    """Keeps a method in the modules that it has just been attached to, for `remembered`."""
    attached = AttachedMethod(method)
    for place in trained_places(tuned):
        if attached_method(place.module) is None:
            remember_method(place.module, attached)


def remembered(tuned: nnx.Module) -> list[Method]:
    """The methods that are attached to a model, without repetitions."""
    found = (attached_method(place.module) for place in trained_places(tuned))
    return [attached.method for attached in dict.fromkeys(found) if attached is not None]


def require_made_by(tuned: nnx.Module, method: Method) -> None:
    """Checks that a method attached all trainable leaves of a model and that they are finite.

    Raises:
      UserError: nothing is attached, a leaf is of another method or of other options, or a leaf is not finite.
    """
    places = trained_places(tuned)
    if not places:
        raise UserError("nothing is attached to the model; there is nothing to save.")
    method = method.settled([site for place in places for site in place.sites])
    for place in places:
        path = place.sites[0].told
        if not _is_made_by(place, method, tuned):
            raise UserError(
                f"what trains at {path} is not what {method.describe()} makes; name the method, with its options, that "
                "was attached to all of it, in one call."
            )
    for path, is_finite in nnx.to_flat_state(finite(nnx.state(tuned, Adapter))):
        if not is_finite[...]:
            raise UserError(f"{'/'.join(map(str, path))} holds NaN or infinity; its training has diverged.")


def require_attached_by(tuned: nnx.Module, method: Method) -> None:
    """Checks that a method attached at least some trainable leaves of a model; other methods may have attached more.

    Raises:
      UserError: it attached none of them.
    """
    places = trained_places(tuned)
    if AttachedMethod(method) in [attached_method(place.module) for place in places]:
        return
    # Sites of other methods must not influence the fields that `settled` derives from the sites.
    candidates = [place for place in places if place.sites[0].kind in method.kinds]
    if isinstance(method, AddedModules):
        candidates = [place for place in candidates if _has_class_of(place, method, tuned)]
    settled = method.settled([site for place in candidates for site in place.sites]) if candidates else method
    if places and not any(_is_made_by(place, settled, tuned) for place in candidates):
        raise UserError(
            f"method is {method.describe()}, and what trains in the model, at {places[0].sites[0].told}, is not what "
            "it makes; name the method, with its options, that was attached."
        )


def _has_class_of(place: Any, method: AddedModules, tuned: nnx.Module) -> bool:
    """Whether the module attached at a place is of the class that a method would attach there."""
    if not is_adapted(place.module):
        return False
    alone = cast(AddedModules, method.settled(place.sites))
    made = nnx.eval_shape(lambda: alone.create(place.sites[0], jax.random.key(0), tuned))
    return type(made) is type(cast(Any, place.module).adapter)


def trained_places(tuned: nnx.Module) -> list[Any]:
    """The places of a model that have an adapter, or whose own weights train."""
    return [place for place in site_modules(tuned) if is_adapted(place.module) or is_trained(place.module)]


def _is_made_by(place: Any, method: Method, tuned: nnx.Module) -> bool:
    """Whether the adapter at a place has the class, settings and leaf shapes that a method creates there."""
    module = cast(Any, place.module)
    if method.trains_base != is_trained(module) or is_adapted(module) == method.trains_base:
        return False
    if not isinstance(method, AddedModules):
        return True
    made = nnx.eval_shape(lambda: method.create(place.sites[0], jax.random.key(0), tuned))
    stacked = place.in_stack or place.view.layers is not None
    (ours, shapes), (theirs, their_shapes) = (_description(adapter) for adapter in (made, module.adapter))
    return ours == theirs and shapes == {name: shape[stacked:] for name, shape in their_shapes.items()}


@jax.jit
def finite(leaves: nnx.State) -> nnx.State:
    """Replaces each leaf by whether all of its elements are finite."""
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), leaves)


def _description(adapter: nnx.Module) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The class and settings of an adapter module, and the shapes of its leaves by name."""

    def is_setting(name: str, value: Any) -> bool:
        if name.startswith("_") or isinstance(value, nnx.Variable):
            return False
        return isinstance(value, int | float | str | bool) or dataclasses.is_dataclass(value)

    settings = {name: value for name, value in vars(adapter).items() if is_setting(name, value)}
    shapes = {name: tuple(value.shape) for name, value in vars(adapter).items() if isinstance(value, Adapter)}
    return (type(adapter).__qualname__, settings), shapes
