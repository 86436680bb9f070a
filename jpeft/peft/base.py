"""Sites, selection, attaching, and the two trees: what every PEFT method shares.

A method is a frozen dataclass that says which sites it acts on and builds the module for one of them. `attach` puts
those modules into a model; `split` then gives the trainable tree (`Adapter` leaves) and the frozen one.
"""

import abc
import dataclasses
import difflib
import functools
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from jpeft.errors import UserError
from jpeft.model.t5 import T5, Embedding, EncoderInput, Linear, RMSNorm, num_stacked, segment_starts, split_segments
from jpeft.model.t5 import Site as SiteModule
from jpeft.patterns import Pattern

STACKS = ("encoder", "decoder")


class Adapter(nnx.Variable):
    """A trainable leaf. `nnx.split(model, Adapter, ...)` separates these from the frozen base."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One place of one layer to which something can be attached.

    Attributes:
      path: `encoder/layers/3/self_attention/q`, `encoder/final_norm`, `shared`, `encoder_input`, `lm_head`, ...
      kind: what stands there: `linear`, `norm`, `embedding` or `input`.
      d_in, d_out: widths of what goes in and comes out.
    """

    path: str
    kind: str
    d_in: int
    d_out: int

    @property
    def name(self) -> str:
        """Last part of the path: `q`, `wi_1`, `self_attention_norm`, ..."""
        return self.path.rpartition("/")[2]

    @property
    def stack(self) -> str | None:
        """`encoder`, `decoder`, or None for what belongs to neither."""
        return self.path.partition("/")[0] if "/" in self.path else None

    @property
    def layer(self) -> int | None:
        """Index of the block within its stack, or None outside the blocks."""
        parts = self.path.split("/")
        return int(parts[2]) if len(parts) > 2 and parts[1] == "layers" else None

    @property
    def sublayer(self) -> str | None:
        """`self_attention`, `cross_attention`, `feed_forward`, or None outside them."""
        parts = self.path.split("/")
        return parts[3] if len(parts) > 4 else None


def _kind(module: SiteModule) -> tuple[str, int, int]:
    match module:
        case Linear():
            return "linear", module.kernel.shape[-2], module.kernel.shape[-1]
        case RMSNorm():
            return "norm", module.scale.shape[-1], module.scale.shape[-1]
        case Embedding():
            return "embedding", module.embedding.shape[-2], module.embedding.shape[-1]
        case EncoderInput():
            return "input", 0, 0
    raise AssertionError(f"unknown kind of site: {type(module)}")


def _site_modules(module: nnx.Module, prefix: str = "") -> Iterator[tuple[str, SiteModule]]:
    """Site modules below `module` in the order of its attributes, paths relative to it; segments are not entered."""
    for name, child in vars(module).items():
        if isinstance(child, SiteModule):
            yield prefix + name, child
        elif isinstance(child, nnx.Module) and not isinstance(child, nnx.List):
            yield from _site_modules(child, f"{prefix}{name}/")


def sites(model: T5) -> list[Site]:
    """Every site of the model, layer by layer."""
    found = [Site(path, *_kind(module)) for path, module in _site_modules(model)]
    for stack_name in STACKS:
        stack = getattr(model, stack_name)
        for first, block in zip(segment_starts(stack), stack.segments, strict=True):
            inner = [(path, _kind(module)) for path, module in _site_modules(block)]
            for layer in range(first, first + num_stacked(block)):
                found += [Site(f"{stack_name}/layers/{layer}/{path}", *kind) for path, kind in inner]
    return found


def sites_by_module(model: T5) -> Iterator[tuple[SiteModule, list[Site]]]:
    """Every site module with the sites it stands for: one, or within the blocks one per layer of its segment."""
    for path, module in _site_modules(model):
        yield module, [Site(path, *_kind(module))]
    for stack_name in STACKS:
        stack = getattr(model, stack_name)
        for first, block in zip(segment_starts(stack), stack.segments, strict=True):
            for path, module in _site_modules(block):
                layers = range(first, first + num_stacked(block))
                yield module, [Site(f"{stack_name}/layers/{layer}/{path}", *_kind(module)) for layer in layers]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Narrows the sites of a method. Every field that is given must agree; None leaves that question open.

    Attributes:
      stacks: of `encoder`, `decoder`.
      layers: indices of blocks, per stack.
      sublayers: of `self_attention`, `cross_attention`, `feed_forward`.
      names: last parts of paths: `q`, `wi_1`, ...
      pattern: regular expression that must match the whole path.
    """

    stacks: Collection[str] | None = None
    layers: Mapping[str, Collection[int]] | None = None
    sublayers: Collection[str] | None = None
    names: Collection[str] | None = None
    pattern: str | None = None

    def __post_init__(self):
        if self.pattern is not None:
            assert self._matcher  # an expression that is none is told at once

    @functools.cached_property
    def _matcher(self) -> Pattern | None:
        return None if self.pattern is None else Pattern(self.pattern, what="method.pattern")

    def allows(self, site: Site) -> bool:
        return (
            (self.stacks is None or site.stack in self.stacks)
            and (self.layers is None or site.layer in self.layers.get(site.stack or "", ()))
            and (self.sublayers is None or site.sublayer in self.sublayers)
            and (self.names is None or site.name in self.names)
            and (self._matcher is None or self._matcher.fullmatch(site.path) is not None)
        )


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A PEFT method: which sites it acts on, and what it does to the module that stands there."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("linear",)  # kinds of site the method can act on
    trains_base: ClassVar[bool] = False  # the model's own weights: its steps reuse their buffers
    unmergeable: ClassVar[str | None] = None  # why T5's weights cannot hold what it does, where they cannot

    @abc.abstractmethod
    def default_names(self, model: T5) -> Collection[str] | None:
        """Names of the sites it acts on when nothing is selected; None for every site of its kinds."""

    @abc.abstractmethod
    def attach_to(self, module: SiteModule, layer_sites: Sequence[Site], key: Key[Array, ""], model: T5) -> None:
        """Makes one site module trainable: that of one site outside the blocks, or of one per layer of its segment."""


@dataclasses.dataclass(frozen=True)
class AddedModules(Method):
    """A method that adds one module per site and layer and leaves the weights alone."""

    @abc.abstractmethod
    def create(self, site: Site, key: Key[Array, ""], model: T5) -> nnx.Module:
        """The module for one site of one layer, its trainable leaves float32 `Adapter`s."""

    def attach_to(self, module: SiteModule, layer_sites: Sequence[Site], key: Key[Array, ""], model: T5) -> None:
        def create(site_key: Key[Array, ""]) -> nnx.Module:
            return self.create(layer_sites[0], site_key, model)

        key = jax.random.fold_in(key, zlib.crc32(_without_layer(layer_sites[0]).encode()))
        if layer_sites[0].layer is None:
            module.adapter = create(key)
        else:  # a layer's initial values depend on its index, not on the segment that it is stored in
            layers = jnp.asarray([site.layer for site in layer_sites])
            module.adapter = jax.vmap(create)(jax.vmap(lambda layer: jax.random.fold_in(key, layer))(layers))


def _without_layer(site: Site) -> str:
    return re.sub(r"/layers/\d+/", "/layers/*/", site.path)


def select(model: T5, method: Method, selection: Selection = Selection()) -> list[Site]:
    """The sites that `method` will act on.

    The method's default names apply unless the selection gives names or a pattern of its own.

    Raises:
      UserError: nothing matches, in which case the message lists what there is; or a layer or a name is not there.
    """
    candidates = [site for site in sites(model) if site.kind in method.kinds]
    _require_layers(selection, candidates)
    own_choice = selection.names is not None or selection.pattern is not None
    default = None if own_choice else method.default_names(model)
    chosen = [s for s in candidates if selection.allows(s) and (default is None or s.name in default)]
    if not chosen:
        raise UserError(_nothing_matches(method, selection, candidates))
    unknown = set(selection.names or ()) - {site.name for site in candidates}
    if unknown:
        raise UserError(
            f"method.targets {sorted(unknown)} name no site that {method.name} can act on; "
            f"there are: {', '.join(sorted({site.name for site in candidates}))}."
        )
    return chosen


def _require_layers(selection: Selection, candidates: Sequence[Site]) -> None:
    """Raises `UserError`: a block is selected that a selected stack does not have."""
    for stack in STACKS if selection.stacks is None else selection.stacks:
        blocks = {site.layer for site in candidates if site.stack == stack and site.layer is not None}
        past = sorted(set((selection.layers or {}).get(stack, ())) - blocks)
        if past and blocks:
            others = "" if selection.stacks is not None else ", or one stack alone by method.stacks"
            raise UserError(
                f"method.layers names block {past[0]}, and the {stack} has {len(blocks)}, 0 to {max(blocks)}; name "
                f"blocks that are there{others}."
            )


def _nothing_matches(method: Method, selection: Selection, candidates: list[Site]) -> str:
    asked = {k: v for k, v in dataclasses.asdict(selection).items() if v is not None}
    message = f"the selection {asked} matches none of the {len(candidates)} sites that {method.name} can act on"
    if selection.pattern is not None:
        paths = [site.path for site in candidates]
        close = difflib.get_close_matches(selection.pattern, paths, n=3, cutoff=0.0)
        return f"{message}; a pattern must match a whole path, such as {', '.join(close)}."
    kinds = {re.sub(r"/layers/\d+/", "/layers/<i>/", site.path) for site in candidates}
    return f"{message}; there are: {', '.join(sorted(kinds))}."


def attach(model: T5, method: Method, chosen: Sequence[Site], key: Key[Array, ""]) -> T5:
    """A model with `method` attached at the chosen sites; `model` stays as it is, and the two share the base's arrays.

    Stacks are cut so that within a segment every layer has the same sites adapted: a frozen prefix of layers then costs
    no gradient work. A segment is copied only where it is cut.
    """
    model = nnx.merge(*nnx.split(model))  # new modules around the same arrays
    chosen_at = {site.path for site in chosen}
    for stack_name in STACKS:
        stack = getattr(model, stack_name)
        num_layers = sum(map(num_stacked, stack.segments))
        adapted = [
            {s.path.partition(f"/layers/{i}/")[2] for s in chosen if s.stack == stack_name and s.layer == i}
            for i in range(num_layers)
        ]
        split_segments(stack, [i for i in range(1, num_layers) if adapted[i] != adapted[i - 1]])
    for module, its_sites in sites_by_module(model):
        if its_sites[0].path in chosen_at:
            method.attach_to(module, its_sites, key, model)
    return model


def split(model: T5) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """`(graphdef, adapter, base)`: the structure, the trainable tree and the frozen one; `nnx.merge` joins them."""
    graphdef, adapter, base = nnx.split(model, Adapter, ...)
    return graphdef, adapter, base


def count(tree: nnx.State) -> int:
    """Number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
