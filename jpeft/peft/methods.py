"""The table of methods by name, and lookups over it. `METHODS[name] = MyMethod` adds a method from outside."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from jpeft.errors import UserError
from jpeft.peft.ablations import Stacks
from jpeft.peft.adalora import AdaLora
from jpeft.peft.adapter import BottleneckAdapter
from jpeft.peft.bitfit import BitFit
from jpeft.peft.dora import Dora
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.ln import NormTuning
from jpeft.peft.lora import Lora
from jpeft.peft.method import Method
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection
from jpeft.peft.sites import sites
from jpeft.peft.vera import Vera

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (Full, Lora, Ia3, BitFit, Prompt, BottleneckAdapter, Prefix, NormTuning, Dora, AdaLora, Vera)
}
READINGS = ("paper", "official")  # as counted by Pu et al., or as published by the method's authors
OF_THE_PAPER = ("full", "lora", "ia3", "bitfit", "prompt")  # the methods in the tables of Pu et al.


def build(name: str, reading: str = "paper", options: Mapping[str, Any] | None = None) -> Method:
    """Builds a method from its name, a reading and options.

    The `paper` reading is the class with its defaults, which for the methods of Pu et al. are theirs. The `official`
    reading is the class's `official` constructor where it has one, and the same as `paper` otherwise.

    Args:
      name: a key of `METHODS`.
      reading: `paper` or `official`.
      options: values by config key under `method.`; they override the defaults of the reading.

    Raises:
      UserError: the name or the reading is unknown, the method has no such option in this reading, or a value is wrong.
    """
    if name not in METHODS:
        raise UserError(f"method.name is {name!r}; expected one of {', '.join(METHODS)}.")
    if reading not in READINGS:
        raise UserError(f"method.reading is {reading!r}; expected 'paper' or 'official'.")
    method, known = METHODS[name], _options_in(METHODS[name], reading)
    for option in options or {}:
        if option not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            depends = _options_in(method, "paper") != _options_in(method, "official")
            where = f" with method.reading={reading}" if depends else ""
            raise UserError(f"method.{option} is no option of {name}{where}; {has}.")
    return _constructor(method, reading)(**{known[key]: value for key, value in (options or {}).items()})


def require_registered(method: Method) -> None:
    """Checks that a method can be built again from its name, as loading an adapter does.

    Raises:
      UserError: the table has no method of that name, or another one.
    """
    cls, found = type(method), METHODS.get(method.name)
    if found is not cls:
        has = "has no method" if found is None else f"has {found.__name__}"
        raise UserError(
            f"{cls.__name__} cannot be loaded again: jpeft.peft.methods.METHODS {has} under its name {method.name!r}; "
            f"give the class a `name` of its own and set METHODS[{cls.__name__}.name] = {cls.__name__}."
        )


def _constructor(method: type[Method], reading: str) -> Callable[..., Method]:
    return getattr(method, "official", method) if reading == "official" else method


def _options_in(method: type[Method], reading: str) -> dict[str, str]:
    """Fields by config key of the options that the constructor of a reading takes; `official` may fix some of them."""
    parameters = inspect.signature(_constructor(method, reading)).parameters
    return {key: field for key, field in method.options.items() if field in parameters}


def method_options() -> list[str]:
    """The config keys under `method.` that are an option of at least one method."""
    return list(dict.fromkeys(key for method in METHODS.values() for key in method.options))


def ablations() -> dict[str, tuple[str, ...]]:
    """Names of the paper's ablations (Table 2) by method name, for each method that has any."""
    return {name: tuple(method.ablations) for name, method in METHODS.items() if method.ablations}


def require_ablation(method: str, name: str) -> None:
    """Checks that the paper has an ablation of this name for this method.

    Raises:
      UserError: it has none.
    """
    known = METHODS[method].ablations
    if name not in known:
        has = ", ".join(ablations())
        there = f"there are: {', '.join(known)}" if known else f"the ones that have any are {has}"
        raise UserError(f"ablation.name is {name!r}, which {method} does not have; {there}.")


def ablation(method: str, name: str, stacks: Stacks, *, seed: int = 0) -> Selection:
    """The sites that an ablation leaves to a method, as a selection.

    Args:
      method: name of the method.
      name: name of the ablation.
      stacks: number of blocks of each stack of the model.
      seed: seed of the random half of each stack's blocks in the ablation `random`.

    Raises:
      UserError: the paper has no such ablation of this method.
    """
    require_ablation(method, name)
    return METHODS[method].ablations[name](stacks, seed)


def missing_sublayer(model: nnx.Module, method: str, name: str) -> str | None:
    """The first sublayer that an ablation needs and the model does not have; None if the model has all of them."""
    present = {site.sublayer for site in sites(model)}
    return next((part for part in getattr(METHODS[method].ablations[name], "needs", ()) if part not in present), None)


def ablation_of(model: nnx.Module, method: str, name: str, *, seed: int = 0) -> Selection:
    """Like `ablation`, for the stacks of a model, whose sublayers are checked.

    Raises:
      UserError: the paper has no such ablation of this method, or the model lacks a sublayer that it needs.
    """
    selection = ablation(method, name, stacks_of(model), seed=seed)
    missing = missing_sublayer(model, method, name)
    if missing is not None:
        raise UserError(
            f"ablation.name is {name!r}, which is for models with {missing}, and a {type(model).__name__} has none; "
            "choose another ablation."
        )
    if selection.sublayers is not None:  # of those that it leaves, a decoder-only model has no cross-attention
        present = {site.sublayer for site in sites(model)}
        selection = dataclasses.replace(selection, sublayers=[part for part in selection.sublayers if part in present])
    return selection


def stacks_of(model: nnx.Module) -> dict[str, int]:
    """The number of blocks of each stack of a model, by the stack's name, in the model's order."""
    layers: dict[str, set[int]] = {}
    for site in sites(model):
        if site.layer is not None and site.stack is not None:
            layers.setdefault(site.stack, set()).add(site.layer)
    return {stack: len(indices) for stack, indices in layers.items()}


def leaf_axes() -> dict[str, tuple[str | None, ...]]:
    """The `Method.leaf_axes` of all methods in one table, by leaf name.

    Raises:
      UserError: two methods declare different axes for one name.
    """
    axes: dict[str, tuple[str | None, ...]] = {}
    declared_by: dict[str, str] = {}
    for method in METHODS.values():
        for leaf, own_axes in method.leaf_axes.items():
            first = declared_by.setdefault(leaf, method.name)
            if axes.setdefault(leaf, own_axes) != own_axes:
                raise UserError(
                    f"leaf_axes of {method.name} has {own_axes} for the leaf {leaf!r}, and that of {first} "
                    f"{axes[leaf]}; give the leaf of one of them another name."
                )
    return axes
