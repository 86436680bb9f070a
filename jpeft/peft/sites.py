"""Sites: the places of a model at which a method can act, found in any `nnx.Module` and identified by path."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flax import nnx

from jpeft.arguments import require_module
from jpeft.errors import UserError
from jpeft.leaves import LayerStack, segment_starts
from jpeft.peft.variables import Adapter
from jpeft.peft.views import View, view_of

ATTENTION_ROLES = ("q", "k", "v", "o")
FEED_FORWARD_ROLES = ("gate", "up", "down")  # `down(act(gate x) * up x)`, or `down(act(up x))`


@dataclasses.dataclass(frozen=True)
class Site:
    """A module of one layer to which an adapter can be attached.

    Attributes:
      path: such as `encoder/layers/3/self_attention/q`, `encoder/final_norm`, `blocks/0/mlp/up` or `shared`.
      kind: kind of the module, one of `jpeft.peft.views.KINDS`.
      d_in, d_out: widths of the module's input and output vectors.
      role: function of the module in its model, independent of its name: `q`, `k`, `v`, `o`, `gate`, `up`, `down`,
        `norm`, `vocabulary` or `input`; None if the model does not declare it.
      layers: number of layers of a module that holds several in one array and is adapted as a whole; else None.
      has_bias: whether the module has a bias.
    """

    path: str
    kind: str
    d_in: int
    d_out: int
    role: str | None = None
    layers: int | None = None
    has_bias: bool = False

    @property
    def name(self) -> str:
        """Last part of the path, such as `q`, `wi_1` or `self_attention_norm`."""
        return self.path.rpartition("/")[2]

    @property
    def told(self) -> str:
        """What messages call it: its path, which is empty where the model is itself a site."""
        return self.path or "the model itself"

    @property
    def stack(self) -> str | None:
        """The stack of blocks that it is in, such as `encoder`; outside of all stacks the first part of its path."""
        index = self._layer_at
        parts = self.path.split("/")
        if index is None:
            return parts[0] if len(parts) > 1 else None
        return "/".join(parts[:index]).removesuffix("/layers")

    @property
    def layer(self) -> int | None:
        """Index of the block within its stack, or None outside the blocks."""
        index = self._layer_at
        return None if index is None else int(self.path.split("/")[index])

    @property
    def sublayer(self) -> str | None:
        """The sublayer that it is in, such as `self_attention`; None outside the blocks, or directly within one."""
        index = self._layer_at
        parts = self.path.split("/")
        return parts[index + 1] if index is not None and len(parts) > index + 2 else None

    @property
    def _layer_at(self) -> int | None:
        return next((i for i, part in enumerate(self.path.split("/")) if part.isdecimal()), None)

    @property
    def any_layer(self) -> str:
        """The path with `*` for the index of the layer, so that it is the same for every layer of a stack."""
        return re.sub(r"(^|/)layers/\d+/", r"\1layers/*/", self.path)


@dataclasses.dataclass(frozen=True, eq=False)
class SiteModule:
    """A module and its sites: one, or one per layer within a `LayerStack`.

    Attributes:
      module: the module.
      view: the module as methods see it.
      sites: the sites, in the order of layers.
      in_stack: whether the module is within a `LayerStack`, so that its leaves have a leading axis of layers.
    """

    module: nnx.Pytree
    view: View
    sites: tuple[Site, ...]
    in_stack: bool = False


def site_modules(model: nnx.Module) -> list[SiteModule]:
    """Every module of a model to which an adapter can be attached, those in stacks of layers last.

    Raises:
      UserError: two modules have the same path, since a key of a dictionary contains '/'.
    """
    found: list[SiteModule] = []
    stacks: list[tuple[str, LayerStack]] = []
    roles = roles_of(model)
    for path, module in _walk(model, stacks):
        view = view_of(module)
        if view is not None:
            found.append(SiteModule(module, view, (_site(path, view, roles, layers=view.layers),)))
    for path, stack in stacks:
        counts = stack.layer_counts()
        for first, count, block in zip(segment_starts(stack), counts, stack.segments, strict=True):
            for inner, module in _walk(block, []):
                view = view_of(module, layers=count)
                if view is not None:
                    layers = range(first, first + count)
                    its_sites = (_site(f"{layers_at(path)}/{layer}/{inner}", view, roles) for layer in layers)
                    found.append(SiteModule(module, view, tuple(its_sites), in_stack=True))
    path, times = Counter(site.path for one in found for site in one.sites).most_common(1)[0] if found else ("", 0)
    if times > 1:
        raise UserError(f"{times} modules of the model have the path {path!r}; rename a key with '/' in it.")
    return found


def _site(path: str, view: View, roles: dict[str, str], layers: int | None = None) -> Site:
    role = roles.get(path.rpartition("/")[2])
    return Site(path, view.kind, view.d_in, view.d_out, role, layers, has_bias=view.bias is not None)


def roles_of(model: nnx.Module) -> dict[str, str]:
    """Roles by site name, from the attribute `site_roles` of the model's class; empty if it has none."""
    return dict(getattr(model, "site_roles", {}))


def layer_stacks(model: nnx.Module) -> list[tuple[str, LayerStack]]:
    """Every `jpeft.leaves.LayerStack` of a model with its path, in the order of attributes."""
    stacks: list[tuple[str, LayerStack]] = []
    for _ in _walk(model, stacks):
        pass
    return stacks


def layers_at(path: str) -> str:
    """What the paths of the layers of a `LayerStack` begin with; the stack at the empty path is the model itself."""
    return f"{path}/layers" if path else "layers"


def leaf_at(path: str, leaf: str) -> str:
    """The name of a leaf of the site at a path; a model that is itself a site has the empty path."""
    return f"{path}/{leaf}" if path else leaf


def sites(model: nnx.Module) -> list[Site]:
    """Every site of a model: those outside of stacks first, then those of each stack, layer by layer.

    Raises:
      UserError: the argument is no `nnx.Module`.
    """
    require_module("model", model)
    places = site_modules(model)
    by_layer: dict[tuple[str | None, int | None], list[Site]] = {}
    for place in places:
        for site in place.sites if place.in_stack else ():
            by_layer.setdefault((site.stack, site.layer), []).append(site)
    outside_stacks = [site for place in places if not place.in_stack for site in place.sites]
    return outside_stacks + [site for of_layer in by_layer.values() for site in of_layer]


def _walk(model: nnx.Module, stacks: list[tuple[str, LayerStack]]) -> Iterator[tuple[str, Any]]:
    """Yields each module once with its path, in the order of attributes.

    Stacks of layers are appended to `stacks` with their paths; the walk does not descend into their segments.
    """
    seen: set[int] = set()

    def below(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(node) in seen:  # a shared module has the path at which it is found first
            return
        seen.add(id(node))
        if isinstance(node, nnx.Pytree):
            yield path, node
        segments = None
        # Instances may answer any name: what bridges a Linen module does.
        if isinstance(node, nnx.Pytree) and "segments" in vars(node) and isinstance(node, LayerStack):
            stacks.append((path, node))
            segments = node.segments
        for name, child in _children(node):
            if child is not segments and _may_hold_modules(child):
                yield from below(child, f"{path}/{name}" if path else name)

    yield from below(model, "")


def _may_hold_modules(value: Any) -> bool:
    return isinstance(value, nnx.Pytree | list | tuple | dict)  # nnx.Module, nnx.List and nnx.Dict are Pytrees


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    match node:
        case list() | tuple():
            yield from ((str(i), child) for i, child in enumerate(node))
        case dict():
            yield from ((str(name), child) for name, child in node.items())
        case _:
            skipped = "adapter" if hasattr(type(node), "unadapted") else None  # an adapter is no part of the model
            yield from ((name, child) for name, child in vars(node).items() if name != skipped)


def is_trained(module: nnx.Pytree) -> bool:
    """Whether weights of the module itself are trainable leaves, as after full tuning."""
    return any(isinstance(value, Adapter) for value in vars(module).values())
