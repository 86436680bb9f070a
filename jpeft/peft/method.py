"""The base classes of all PEFT methods, and the hooks by which the rest of the package uses one.

A method is a frozen dataclass whose fields are its options. It chooses the sites at which it acts and builds a module
for each of them; that module is called as `adapter(compute, x)`, where `compute` is the original call of the adapted
module. Everything specific to a method (sharding, learning rates, file formats, merging, how it is described) is a
class attribute or a hook below, overridden in the method's own file; `jpeft.peft.methods` lists the methods.
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
    """Three points of a schedule: the rate rises linearly from `initial` to `warmup`, then decays to `annealing`."""

    initial: float
    warmup: float
    annealing: float


SiteWeights = tuple[Array, Array | None]  # kernel `[d_in, d_out]` and bias `[d_out]` of one layer of a linear map


# For the annotated type of an option: the accepted types, their name in messages, and the conversion to a Python type.
_OPTION_TYPES: Mapping[Any, tuple[Any, str, Callable[[Any], Any]]] = {
    bool: (bool | np.bool_, "True or False", bool),
    int: (numbers.Integral, "a whole number", int),
    float: (numbers.Real, "a number", float),
    str: (str, "a text", str),
}
Own = TypeVar("Own", bound="Method")  # the method's own class; beartype, which the tests use, does not support `Self`


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A PEFT method: the sites at which it acts, and what it adds to or changes in the modules there.

    Only `name` and `attach_to` are required (`AddedModules` implements `attach_to`). Every other hook has a default,
    which its docstring states.

    Attributes:
      name: the name under which users select the method, and its key in `METHODS`.
      kinds: the kinds of sites at which it can act, each one of `jpeft.peft.views.KINDS`.
      trains_base: whether it trains the model's own weights. Training steps then donate the buffers of the base, so
        nothing else can share them.
      unmergeable: why the adapter cannot be merged into the weights of every base; None if it always can.
      learning_rates: the default rates, those of the method's authors or of Pu et al.
      options: the config keys under `method.` that it has, each with the dataclass field that it sets.
      ablations: the ablations of the paper's Table 2, by name; each a `jpeft.peft.ablations.Ablation`.
      leaf_axes: for each leaf, the meaning of its dimensions: `in` or `out` for a dimension of the site's weight, None
        for the leaf's own. On a mesh a leaf is sharded along the dimensions in which the site's weight is; a leaf that
        is not listed is replicated.
      sizes: options that are the size of a leaf's dimension, as `{"rank": ("lora_a", -1)}`. When an adapter is loaded
        they are checked against the file's tensors before memory is allocated for the sizes in its config.
      plans_by_steps: whether `after_step` depends on the total number of steps.
      only_in_training: options that adapters do not depend on once they are trained, such as a schedule's. A run that
        starts from an adapter follows its own config's.
      padded_options: config keys under `method.` in which runs that are trained side by side may differ. The leaves of
        the smaller run are padded with zeros, which must change neither its outputs nor its gradients.
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
    only_in_training: ClassVar[Collection[str]] = ()
    padded_options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        """Checks the types of the options and converts NumPy scalars to Python's, which JSON can hold.

        A subclass that checks more calls this first.

        Raises:
          UserError: an option annotated as a number, a string or a boolean is of another type.
        """
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if field.init and types[field.name] in _OPTION_TYPES:
                accepted, expected, convert = _OPTION_TYPES[types[field.name]]
                value = getattr(self, field.name)
                if value is field.default:
                    continue
                if not isinstance(value, accepted) or (isinstance(value, bool) and convert is not bool):
                    keys = {name: f"method.{key}" for key, name in self.options.items()}
                    raise UserError(f"{keys.get(field.name, field.name)} is {shortened(value)}; expected {expected}.")
                if not isinstance(value, bool | int | float | str):
                    object.__setattr__(self, field.name, convert(value))

    # --- choosing sites ---

    @property
    def default_roles(self) -> Collection[str] | None:
        """Roles of the sites at which it acts when the user selects nothing; None (default) for all sites of `kinds`.

        Read by `select`, unless the selection gives names or a pattern.
        """
        return None

    def default_sites(self, candidates: Sequence[Site]) -> list[Site]:
        """Filters the sites with default roles when the user selects nothing; keeps all of them by default."""
        return list(candidates)

    def settled(self: "Own", chosen: Sequence[Site]) -> "Own":
        """The method with the fields set that depend on the chosen sites; by default it has none and returns itself.

        Called before attaching, saving and serving, whenever the sites are known.
        """
        return self

    # --- attaching ---

    @abc.abstractmethod
    def attach_to(self, place: SiteModule, key: Key[Array, ""], model: nnx.Module, made: dict[int, Any]) -> None:
        """Attaches the method to one module of the model, in place; called once per module by `attach`.

        Args:
          place: the module, and the sites that it stands for.
          key: the PRNG key of the whole model. Fold the path of the place into it, so that a site starts with the same
            values whichever other sites are selected.
          model: the model that the module belongs to, for methods whose initial values depend on it.
          made: a dictionary shared by all calls for one model, in which a method can keep what its modules share, keyed
            by the `id` of what that is made from, such as `model`. If the method trains the base (`trains_base`), the
            keys are the `id`s of the variables that its leaves replace: `attach` then refuses a model that still holds
            one of them, since a weight that several modules share would train in some of them only.
        """

    @property
    def init_from_residual(self) -> Callable[[Any, np.ndarray, str], None] | None:
        """Initialises an adapter from the quantization residual of its map; None (default) if the method does not.

        Called after attaching to a quantized base, for each quantized map, with the adapter, the residual (wide minus
        quantized weights) `[*layers, d_in, d_out]`, whose layers are also the first axis of the adapter's leaves, and
        the map's path for messages.
        """
        return None

    @property
    def trains_nothing(self) -> str | None:
        """Why training with these options would change nothing; None (default) if it would change something.

        Training is then refused. Loading is not: a file may hold such an adapter.
        """
        return None

    # --- training ---

    @property
    def rate_factors(self) -> Mapping[str, float]:
        """Factors on the learning rate of single leaves, by leaf name; 1 for all others, and for all by default."""
        return {}

    @property
    def has_hooks(self) -> bool:
        """Whether the method overrides `penalty` or `after_step`, so that its update needs a program of its own."""
        own, hooks = type(self), ("penalty", "after_step")
        return any(getattr(own, hook) is not getattr(Method, hook) for hook in hooks)

    def penalty(self, adapter: nnx.State) -> Array | None:
        """A scalar that is added to the mean loss of each step, from the trainable tree; None (default) for none."""
        return None

    def first_memory(self, adapter: nnx.State) -> Any:
        """The initial value of the state that `after_step` carries from step to step: a tree of arrays.

        It is kept beside the optimizer state and checkpointed with it; empty by default. A leaf whose path ends like
        that of an adapter leaf is sharded like that leaf.
        """
        return ()

    def after_step(
        self, adapter: nnx.State, memory: Any, before: nnx.State, grads: nnx.State, step: Array, steps: Any
    ) -> tuple[nnx.State, Any]:
        """Changes the trainable tree after each optimizer step; by default returns `adapter` and `memory` unchanged.

        Args:
          adapter: the tree after the optimizer's update.
          memory: the state carried over from the previous step.
          before: the tree before the update.
          grads: gradients of the mean loss plus the penalty with respect to `before`, unclipped.
          step: index of the step, from 0; an int32 scalar.
          steps: total number of steps of the run, an int32 scalar; valid only where `plans_by_steps`.

        Returns:
          The tree for the next step, and the state for its `after_step`.
        """
        return adapter, memory

    # --- saving and merging ---

    def to_save(self, leaves: Tensors) -> tuple["Method", Tensors]:
        """The method and leaves that are written to a file, which compute the same; by default these themselves.

        Called when an adapter is saved, for methods that train in another form than they are used in.

        Args:
          leaves: the trainable and the `Frozen` leaves, by name.
        """
        return self, leaves

    def unmergeable_at(self, chosen: Sequence[Site]) -> str | None:
        """Why the adapter cannot be merged at these sites, None if it can; by default `unmergeable`."""
        return self.unmergeable

    # --- description ---

    def describe(self) -> str:
        """The method and its options in a few words, as `LoRA of rank 8, alpha 16`; the bare name by default."""
        return self.name

    def flags(self) -> dict[str, Any]:
        """The options with which `jpeft train` builds this method, by config key under `method.`.

        By default those that differ from the defaults of the class.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {key: value for key, f in self.options.items() if (value := getattr(self, f)) != defaults[f]}

    @property
    def reading(self) -> str:
        """The value of `method.reading` that builds this method: `paper` (default) or `official`."""
        return "paper"

    # --- Hugging Face PEFT (a method that PEFT has is a `PeftLayout`, too) ---

    @property
    def peft_lacks(self) -> str | None:
        """What PEFT's format cannot hold of the method with these options, at any site; None if it holds all of it.

        By default None for a `PeftLayout`, else the method's name. Decides the layout in which an adapter is saved.
        """
        return None if isinstance(self, PeftLayout) else self.name

    def peft_lacks_at(self, chosen: Sequence[Site], peft: PeftNames) -> str | None:
        """What PEFT's format cannot hold of the method at these sites of this base; None (default) if nothing.

        Asked in addition to `peft_lacks`.
        """
        return None


@dataclasses.dataclass(frozen=True)
class AddedModules(Method):
    """A method that adds one module per site and layer, and leaves the model's own weights unchanged.

    Only `create` is required: by default the module is also what serves a batch in which each row has its own adapter.
    """

    @abc.abstractmethod
    def create(self, site: Site, key: Key[Array, ""], model: nnx.Module) -> nnx.Module:
        """The module for one site of one layer; its trainable leaves are float32 `Adapter`s."""

    def start(self, adapter: Any, place: SiteModule) -> None:
        """Sets initial values that depend on the base's weights, in place; a no-op by default.

        Called once per place with the modules of `create` stacked along a first axis of layers, where the place has
        layers.
        """

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

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        """The parts that apply adapters of this method to a batch in which each row has its own adapter.

        By default the module of `create` mapped over the rows, for which all adapters of a batch must have the same
        options.
        """
        return (EachRow.of(self.create(site, jax.random.key(0), model)),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Converts one adapter's leaves at one site to those of the parts of `rows`, without the batch axis.

        By default they are the same.
        """
        return dict(leaves)

    def row_leaves_at(
        self, site: Site, leaves: Mapping[str, np.ndarray], weights: Callable[[], SiteWeights] | None
    ) -> dict[str, np.ndarray]:
        """Like `row_leaves`, for methods that also need the base's weights; calls `row_leaves` by default.

        Args:
          weights: returns the kernel and bias of the linear map at the site; None where only shapes are needed.
        """
        return self.row_leaves(leaves)

    def row_size(self, leaf: str, size: int) -> str:
        """Describes the size of the first dimension of a leaf of `row_leaves` in messages, as `rank 8`."""
        return f"a {leaf} of {size}"
