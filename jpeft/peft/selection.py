"""Choosing the sites of a method: its defaults, narrowed or replaced by the user's selection."""

import dataclasses
import difflib
import functools
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from flax import nnx

from jpeft.errors import UserError
from jpeft.patterns import Pattern
from jpeft.peft.method import Method
from jpeft.peft.sites import Site, roles_of, site_modules, sites
from jpeft.words import counted, shortened, the_first


@dataclasses.dataclass(frozen=True)
class Selection:
    """Conditions on the sites of a method. A site has to meet all of them; None stands for no condition.

    Attributes:
      stacks: names of stacks of blocks, such as `encoder`, `decoder` or `blocks`.
      layers: indices of blocks, the same for every stack or by stack.
      sublayers: parts of a block, such as `self_attention`, `cross_attention` or `feed_forward`.
      names: last parts of paths, such as `q` or `wi_1`.
      pattern: a regular expression that must match the whole path.
      called: what messages call these conditions, by attribute, where their user knows them by other names.

    Raises:
      UserError: the pattern is no regular expression, or a string stands in the place of a collection.
    """

    stacks: Collection[str] | None = None
    layers: Mapping[str, Collection[int]] | Collection[int] | None = None
    sublayers: Collection[str] | None = None
    names: Collection[str] | None = None
    pattern: str | None = None
    called: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        for attribute in ("stacks", "sublayers", "names"):
            value = getattr(self, attribute)
            if isinstance(value, str):
                raise UserError(f"{self.call(attribute)} is {value!r}; expected several names, such as [{value!r}].")
        if self.pattern is not None:
            assert self._matcher  # compiled now, so that an invalid expression is reported early

    @functools.cached_property
    def _matcher(self) -> Pattern | None:
        return None if self.pattern is None else Pattern(self.pattern, what=self.call("pattern"))

    def call(self, attribute: str) -> str:
        """What messages call a condition."""
        return self.called.get(attribute, attribute)

    def layers_of(self, stack: str | None) -> Collection[int] | None:
        """The indices of the selected blocks of a stack; None if all are."""
        if isinstance(self.layers, Mapping):
            return cast(Mapping[str, Collection[int]], self.layers).get(stack or "", ())
        return self.layers

    def allows(self, site: Site) -> bool:
        """Whether a site meets all conditions."""
        layers = self.layers_of(site.stack)
        return (
            (self.stacks is None or site.stack in self.stacks)
            and (layers is None or site.layer in layers)
            and (self.sublayers is None or site.sublayer in self.sublayers)
            and (self.names is None or site.name in self.names)
            and (self._matcher is None or self._matcher.fullmatch(site.path) is not None)
        )

    def names_site(self, site: Site) -> bool:
        """Whether the pattern, which matches a site's path, does not match some others in which its name is another."""
        above = site.path[: len(site.path) - len(site.name)]
        others = (above + site.name.translate(other) for other in _OTHER_NAMES)
        return self._matcher is not None and not all(map(self._matcher.fullmatch, others))


def _shifted(by: int) -> dict[int, int]:
    """A translation of each letter and digit to another one of its kind."""
    rows = (string.ascii_lowercase, string.ascii_uppercase, string.digits)
    return str.maketrans("".join(rows), "".join(row[by % len(row) :] + row[: by % len(row)] for row in rows))


_OTHER_NAMES = tuple(map(_shifted, (1, 5, 8)))  # several, since one may be another of the names in a pattern


def select(model: nnx.Module, method: Method, selection: Selection = Selection()) -> list[Site]:
    """The sites of a model at which a method will act.

    The method's default roles apply unless the selection gives names or a pattern.

    Args:
      model: the model, which may hold shapes instead of arrays.
      method: the method.
      selection: conditions on the sites.

    Raises:
      UserError: no site matches, a selected stack, layer, sublayer or name does not exist, or the method has default
        roles and the model does not declare the roles of its parts.
    """
    there = sites(model)
    candidates = [site for site in there if site.kind in method.kinds]
    _require_layers(selection, candidates)
    replaces_default = selection.names is not None or selection.pattern is not None
    default = None if replaces_default else method.default_roles
    if default is not None and not roles_of(model):
        raise UserError(
            f"{type(model).__name__} does not say which of its parts are {', '.join(sorted(default))}, where "
            f"{method.name} acts by default; name them by a pattern of their paths. There are: {_kinds(candidates)}."
        )
    chosen = [s for s in candidates if selection.allows(s) and (default is None or s.role in default)]
    if default is not None:
        chosen = method.default_sites(chosen)
    if not chosen:
        raise UserError(_nothing_matches(method, selection, candidates))
    _require_known("stacks", selection.stacks, [site.stack for site in there], selection, "no stack of the model")
    layers = cast(Mapping[str, Any], selection.layers) if isinstance(selection.layers, Mapping) else None
    stacks = [site.stack for site in there if site.layer is not None]
    _require_known("layers", layers, stacks, selection, "no stack of the model")
    sublayers = [site.sublayer for site in there]
    _require_known("sublayers", selection.sublayers, sublayers, selection, "no part of the model's blocks")
    names = [site.name for site in candidates]
    _require_known("names", selection.names, names, selection, f"no site that {method.name} can act on")
    return chosen


def left_out(model: nnx.Module, method: Method, selection: Selection, *, but: Collection[str] = ()) -> str | None:
    """Says which modules the pattern of a selection names and the method cannot adapt; None if there are none.

    A pattern names a module that it matches if it would not match another name in the last place of the module's path:
    `conv|fc` names conv, and `.*`, `encoder/.*` and `layers/\\d` name nothing and mean what can be adapted there. A
    module with selected ones inside, such as an attention, is not left out.

    Args:
      but: paths that are told of otherwise.
    """
    if selection.pattern is None:
        return None
    selected = [(place, site) for place in site_modules(model) for site in place.sites if selection.allows(site)]
    adapted = [site.path.split("/") for _, site in selected if site.kind in method.kinds]
    apart = {"/".join(parts[:i]) for parts in adapted for i in range(len(parts))} | set(but)
    unfit = [(place, site) for place, site in selected if site.kind not in method.kinds]
    named = [(place, site) for place, site in unfit if site.path not in apart and selection.names_site(site)]
    if not named:
        return None
    each = dict.fromkeys(f"{site.any_layer} ({type(place.module).__name__}, {site.kind})" for place, site in named)
    return (
        f"{selection.call('pattern')} {shortened(selection.pattern)} names {counted(len(named), 'module')} to which "
        f"nothing is attached, since {method.name} acts on sites of the kind {' or '.join(method.kinds)}: "
        f"{the_first(list(each))}"
    )


def _require_known(
    attribute: str, asked: Iterable[str] | None, there: Iterable[str | None], selection: Selection, what: str
) -> None:
    """Raises `UserError` if a condition names something that is not there, beside others that are."""
    known = {name for name in there if name is not None}
    unknown = set(asked or ()) - known
    if unknown:
        found = ", ".join(sorted(known))
        raise UserError(f"{selection.call(attribute)} {sorted(map(str, unknown))} name {what}; there are: {found}.")


def _require_layers(selection: Selection, candidates: Sequence[Site]) -> None:
    """Raises `UserError` if a block is selected that one of the selected stacks does not have."""
    stacks = dict.fromkeys(site.stack for site in candidates if site.layer is not None)
    for stack in stacks if selection.stacks is None else selection.stacks:
        blocks = {site.layer for site in candidates if site.stack == stack and site.layer is not None}
        past = sorted(set(selection.layers_of(stack) or ()) - blocks)
        if past and blocks:
            others = "" if selection.stacks is not None else f", or a single stack by {selection.call('stacks')}"
            raise UserError(
                f"{selection.call('layers')} names block {past[0]}, and the {stack} has {len(blocks)}, 0 to "
                f"{max(blocks)}; name existing blocks{others}."
            )


def _nothing_matches(method: Method, selection: Selection, candidates: list[Site]) -> str:
    if not candidates:
        kinds = " or ".join(method.kinds)
        return (
            f"{method.name} acts on sites of the kind {kinds}, and the model has none (jpeft.sites lists what it has)."
        )
    conditions = {
        field.name: getattr(selection, field.name) for field in dataclasses.fields(selection) if field.compare
    }
    asked = {selection.call(name): value for name, value in conditions.items() if value is not None}
    message = f"the selection {asked} matches none of the {len(candidates)} sites that {method.name} can act on"
    if selection.pattern is not None:
        paths = [site.path for site in candidates]
        close = difflib.get_close_matches(selection.pattern, paths, n=3, cutoff=0.0)
        return f"{message}; a pattern must match a whole path, such as {', '.join(close)}."
    return f"{message}; there are: {_kinds(candidates)}."


def _kinds(candidates: Sequence[Site]) -> str:
    several = sorted({site.any_layer.replace("/*/", "/<i>/") for site in candidates})
    return ", ".join(several[:40]) + (", ..." if len(several) > 40 else "")
