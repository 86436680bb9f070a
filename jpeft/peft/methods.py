"""The methods by name: the one table that says which there are. A method of one's own joins it by an assignment."""

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
READINGS = ("paper", "official")
OF_THE_PAPER = ("full", "lora", "ia3", "bitfit", "prompt")  # those that its tables have


def build(name: str, reading: str = "paper", options: Mapping[str, Any] | None = None) -> Method:
    """A method in a reading: `paper` is Pu et al.'s, `official` its authors'.

    Of a method that Pu et al. do not have, `paper` is the default of its class; where it has no `official` builder of
    its own, both readings are the same.

    Args:
      options: by the config's keys under `method.`; they override that reading's own.

    Raises:
      UserError: an unknown name or reading, or an option that this method does not have in this reading.
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
    return _builder(method, reading)(**{known[key]: value for key, value in (options or {}).items()})


def _builder(method: type[Method], reading: str) -> Callable[..., Method]:
    """What builds a method in a reading: its class, or for `official` its `official`, where it has one."""
    return getattr(method, "official", method) if reading == "official" else method


def _options_in(method: type[Method], reading: str) -> dict[str, str]:
    """The options that a method has in a reading: the builder's parameters by the config's keys under `method.`."""
    parameters = inspect.signature(_builder(method, reading)).parameters
    return {key: field for key, field in method.options.items() if field in parameters}


def method_options() -> list[str]:
    """The config's keys under `method.` that are options of some method."""
    return list(dict.fromkeys(key for method in METHODS.values() for key in method.options))


def ablations() -> dict[str, tuple[str, ...]]:
    """Names of the paper's ablations (Table 2) of each method that has any, by the method's name."""
    return {name: tuple(method.ablations) for name, method in METHODS.items() if method.ablations}


def require_ablation(method: str, name: str) -> None:
    """Raises `UserError` unless the paper has an ablation of this name for this method."""
    known = METHODS[method].ablations
    if name not in known:
        has = ", ".join(ablations())
        there = f"there are: {', '.join(known)}" if known else f"the ones that have any are {has}"
        raise UserError(f"ablation.name is {name!r}, which {method} does not have; {there}.")


def ablation(method: str, name: str, stacks: Stacks, *, seed: int = 0) -> Selection:
    """The selection that an ablation stands for. `seed` draws the half of the blocks of each stack for `random`.

    Raises:
      UserError: the paper has no such ablation of this method.
    """
    require_ablation(method, name)
    return METHODS[method].ablations[name](stacks, seed)


def lacks_for(model: nnx.Module, method: str, name: str) -> str | None:
    """The sublayer that an ablation is about and that a model does not have; None if it has all of them."""
    there = {site.sublayer for site in sites(model)}
    return next((part for part in getattr(METHODS[method].ablations[name], "needs", ()) if part not in there), None)


def ablation_of(model: nnx.Module, method: str, name: str, *, seed: int = 0) -> Selection:
    """The selection that an ablation stands for on a model; arguments as of `ablation`.

    Raises:
      UserError: the paper has no such ablation of this method, or the model has no part that it is about.
    """
    selection = ablation(method, name, stacks_of(model), seed=seed)
    lacking = lacks_for(model, method, name)
    if lacking is not None:
        raise UserError(
            f"ablation.name is {name!r}, which is about {lacking}, and a {type(model).__name__} has none; choose "
            "another ablation."
        )
    return selection


def stacks_of(model: nnx.Module) -> dict[str, int]:
    """Number of blocks of each of a model's stacks, by the stack's name, in the model's order."""
    layers: dict[str, set[int]] = {}
    for site in sites(model):
        if site.layer is not None and site.stack is not None:
            layers.setdefault(site.stack, set()).add(site.layer)
    return {stack: len(indices) for stack, indices in layers.items()}


def leaf_axes() -> dict[str, tuple[str | None, ...]]:
    """What the dimensions of every leaf that a method has are, by the leaf's name: see `Method.leaf_axes`."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for method in METHODS.values():
        for leaf, its_axes in method.leaf_axes.items():
            if axes.setdefault(leaf, its_axes) != its_axes:
                raise AssertionError(f"{method.name} has a leaf {leaf!r} as another method has, of other axes")
    return axes
