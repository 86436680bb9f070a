"""What a PEFT method is: all that is particular to one stands in its own file, and `jpeft.peft.methods` lists them.

A method is a frozen dataclass whose fields are its options. It says at which sites it acts and builds the module for
one of them; that module is called as `adapter(compute, x)`, where `compute` is what the model does without it.
Everything that the rest of the house asks of a method, from where its leaves lie on a mesh to what a card says of it,
is an attribute or a method here, with a default where there is a right one.
"""

import abc
import dataclasses
import numbers
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from jpeft.errors import UserError
from jpeft.peft.interchange import PeftLayout, PeftNames, Tensors
from jpeft.peft.row_wise import EachRow, Rows
from jpeft.peft.sites import Site, SiteModule
from jpeft.peft.wrapping import put
from jpeft.words import shortened


class LearningRates(NamedTuple):
    """Three points of a schedule: the rate rises linearly from `initial` to `warmup`, then falls to `annealing`."""

    initial: float
    warmup: float
    annealing: float


SiteWeights = tuple[Array, Array | None]  # of one layer of a linear map: `[d_in, d_out]`, and `[d_out]` or None


# By the type that a method gives an option: what it may be, that in words, and what makes it Python's own.
_KINDS_OF_OPTIONS: Mapping[Any, tuple[Any, str, Callable[[Any], Any]]] = {
    bool: (bool | np.bool_, "True or False", bool),
    int: (numbers.Integral, "a whole number", int),
    float: (numbers.Real, "a number", float),
    str: (str, "a text", str),
}
Own = TypeVar("Own", bound="Method")  # the class of a method itself: beartype, in tests, does not take `Self`


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A PEFT method: which sites it acts on, and what it does to the module that stands there.

    Attributes:
      name: by which users call it.
      kinds: of sites at which it can act, each one of `jpeft.peft.views.KINDS`.
      trains_base: whether it trains the model's own weights: its steps reuse their buffers, and nothing can share them.
      unmergeable: why weights cannot hold what it does, of no base or of some; None where they always can.
      learning_rates: those that its authors, or the paper, trained it with.
      options: the config's keys under `method.` that it has, and the fields of the dataclass that they set.
      ablations: by name, those of the paper's Table 2, each a `jpeft.peft.ablations.Ablation`.
      leaf_axes: for each leaf by name, what its dimensions are: `in` and `out` those of the site, None its own. On a
        mesh a leaf is cut where the site's weight is.
      plans_by_steps: whether `after_step` goes by how many steps the run has.
      sizes: leaves whose dimension is an option: `{"rank": ("lora_a", -1)}`; held against an adapter's file before room
        is made for what its config asks for.
      filled_up: config's keys under `method.` in which runs may differ that are trained side by side: the leaves of a
        smaller one are filled up with zeros, which add nothing to what it does, and whose gradients are zero.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    trains_base: ClassVar[bool] = False
    unmergeable: ClassVar[str | None] = None
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-4, 3e-3, 3e-4)
    options: ClassVar[Mapping[str, str]] = {}
    ablations: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    leaf_axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}
    sizes: ClassVar[Mapping[str, tuple[str, int]]] = {}
    plans_by_steps: ClassVar[bool] = False
    filled_up: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        """Numbers become Python's own, which files can hold. A subclass that has more to check calls this first.

        Raises:
          UserError: an option that is a number, a text or a switch is something else.
        """
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if field.init and types[field.name] in _KINDS_OF_OPTIONS:
                kind, words, plain = _KINDS_OF_OPTIONS[types[field.name]]
                value = getattr(self, field.name)
                if value is field.default:
                    continue
                if not isinstance(value, kind) or (isinstance(value, bool) and plain is not bool):
                    keys = {name: f"method.{key}" for key, name in self.options.items()}
                    raise UserError(f"{keys.get(field.name, field.name)} is {shortened(value)}; expected {words}.")
                if not isinstance(value, bool | int | float | str):
                    object.__setattr__(self, field.name, plain(value))

    @property
    def trains_nothing(self) -> str | None:
        """Why training would change nothing, with these options, which a file may have all the same; None otherwise."""
        return None

    @property
    def begin_with_lost(self) -> Callable[[Any, np.ndarray, str], None] | None:
        """Sets initial values by what rounding took away of a base in few bits; None where it begins as on a wide one.

        Called with what is attached to a map, with the wide map without the rounded one, `[*layers, d_in, d_out]` (the
        layers are the first axis of what is attached, too), and with the map's path for messages.
        """
        return None

    @property
    def default_roles(self) -> Collection[str] | None:
        """Roles of the sites at which it acts when nothing is selected; None for every site of its kinds."""
        return None

    def default_sites(self, candidates: Sequence[Site]) -> list[Site]:
        """Of the sites that have its default roles those at which it acts when nothing is selected: all of them."""
        return list(candidates)

    def settled(self: "Own", chosen: Sequence[Site]) -> "Own":
        """The method with those of its fields set that follow from where it acts; by default it has none."""
        return self

    def unmergeable_at(self, chosen: Sequence[Site]) -> str | None:
        """Why the weights at these sites cannot hold what it does; None where they can."""
        return self.unmergeable

    @abc.abstractmethod
    def attach_to(self, place: SiteModule, key: Key[Array, ""], model: nnx.Module, made: dict[int, Any]) -> None:
        """Attaches the method to one module at a place in the model, by putting trainable leaves there.

        Args:
          place: the module, and the sites that it stands for.
          key: of the whole model; a method folds the place's path in, so that a site starts alike in every selection.
          model: that the module is in, for methods that begin by what it computes.
          made: one dictionary for all modules of a model, for what they share: by the `id` of a variable of the base.
        """

    # --- in words ---

    def describe(self) -> str:
        """The method and its options in a few words: `LoRA of rank 8, alpha 16`."""
        return self.name

    def flags(self) -> dict[str, Any]:
        """The options that `jpeft train` has to be given to build this method, by config key under `method.`."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        return {key: value for key, f in self.options.items() if (value := getattr(self, f)) != plain[f]}

    @property
    def reading(self) -> str:
        """`paper` or `official`: the reading whose builder gives this method."""
        return "paper"

    # --- Hugging Face PEFT ---

    @property
    def peft_lacks(self) -> str | None:
        """Tells which part of the method Hugging Face PEFT's format cannot hold; None if it holds all of it."""
        return None if isinstance(self, PeftLayout) else self.name

    def peft_lacks_at(self, site: Site) -> str | None:
        """Tells what PEFT's format cannot hold of the method at this one site, although it can at others."""
        return None

    def peft_lacks_of(self, chosen: Sequence[Site], peft: PeftNames) -> str | None:
        """Tells what PEFT's format cannot hold of the method at these sites of this base, although it can of others."""
        return None

    # --- after training ---

    def kept(self, leaves: Tensors) -> tuple["Method", Tensors]:
        """What a file holds of a trained adapter: method and leaves by name, which do the same. By default these.

        Args:
          leaves: those that train, and those that are `Frozen`.
        """
        return self, leaves

    # --- in the step ---

    @property
    def rate_factors(self) -> Mapping[str, float]:
        """By what a leaf's learning rate is multiplied, by its name, where that is not 1."""
        return {}

    @property
    def has_hooks(self) -> bool:
        """Whether it has a penalty or does something after an update: its update is then a program of its own."""
        own, hooks = type(self), ("penalty", "after_step")
        return any(getattr(own, hook) is not getattr(Method, hook) for hook in hooks)

    def penalty(self, adapter: nnx.State) -> Array | None:
        """What is added to the mean loss of a step, a scalar of the trainable tree; None for nothing."""
        return None

    def first_memory(self, adapter: nnx.State) -> Any:
        """What it remembers from step to step, before the first: a tree of arrays, kept beside the optimizer's state.

        By default nothing. A leaf's path ends as that of the adapter's leaf that it is of: on a mesh it lies where that
        does.
        """
        return ()

    def after_step(
        self, adapter: nnx.State, memory: Any, before: nnx.State, grads: nnx.State, step: Array, steps: Any
    ) -> tuple[nnx.State, Any]:
        """The trainable tree that an optimizer step ends with, and what is remembered for the next.

        By default the tree that the optimizer made, and what was remembered.

        Args:
          adapter: the tree after the optimizer's update.
          memory: what is remembered from before the step.
          before: the trainable tree that the step began with.
          grads: of the mean loss and the penalty with respect to it, before any clipping.
          step: counted from 0, an int32 scalar.
          steps: how many the run has, an int32 scalar; right where `plans_by_steps`.
        """
        return adapter, memory


@dataclasses.dataclass(frozen=True)
class AddedModules(Method):
    """A method that adds one module per site and layer and leaves the model's own weights alone.

    It has to say by `create` what it adds; what it does to the rows of a batch of many adapters follows from that.
    """

    @abc.abstractmethod
    def create(self, site: Site, key: Key[Array, ""], model: nnx.Module) -> nnx.Module:
        """The module for one site of one layer, its trainable leaves float32 `Adapter`s."""

    def attach_to(self, place: SiteModule, key: Key[Array, ""], model: nnx.Module, made: dict[int, Any]) -> None:
        first = place.sites[0]

        path = first.any_layer if place.in_stack else first.path
        key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        if place.in_stack:  # a layer's initial values depend on its index, not on the segment that it is stored in
            layers = jnp.asarray([site.layer for site in place.sites])
        elif first.layers is not None:
            layers = jnp.arange(first.layers)
        else:
            layers = None
        if layers is None:
            adapter = self.create(first, key, model)
        else:
            adapter = jax.vmap(lambda layer: self.create(first, jax.random.fold_in(key, layer), model))(layers)
        self.start(adapter, place)
        put(place, adapter)

    def start(self, adapter: Any, place: SiteModule) -> None:
        """Sets those initial values of a module made by `create` that depend on the base's weights at its place.

        Both have a first axis of layers where what stands there has.
        """

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        """What applies adapters of this method to a batch, each to its own row.

        By default the method's own module, mapped over rows: adapters of one batch then have the same options.
        """
        return (EachRow.of(self.create(site, jax.random.key(0), model)),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One adapter's leaves at one site, by name, as the parts of `rows` take them: without an axis of rows."""
        return dict(leaves)

    def row_leaves_at(
        self, site: Site, leaves: Mapping[str, np.ndarray], weights: Callable[[], SiteWeights] | None
    ) -> dict[str, np.ndarray]:
        """As `row_leaves`, for a method whose rows depend on the base's weights at the site, too.

        Args:
          weights: the linear map there and its bias; None where shapes alone are asked for.
        """
        return self.row_leaves(leaves)

    def row_size(self, leaf: str, size: int) -> str:
        """Names the size of the first dimension of a leaf of `row_leaves`, for error messages: `rank 8`."""
        return f"a {leaf} of {size}"
