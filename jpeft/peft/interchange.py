"""Hugging Face PEFT's adapter files: their settings and tensors, checked, and the modules of a base that they adapt.

`adapter_config.json` says which modules are adapted and how, and the tensors imply it as well. Both are read and have
to agree; otherwise the adapter would act on other modules here than in PEFT. The meaning of settings and tensors is
declared by each method (`PeftLayout`), so that a method from outside the package can be read, too.
"""

import abc
import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields
from jpeft.patterns import Pattern
from jpeft.peft.sites import Site

Tensors = dict[str, np.ndarray]
Number = int | float
SettingType = type | tuple[type, ...]  # of a value in JSON; null stands for absent

NUMBER: SettingType = (int, float)
PREFIX = "base_model.model."  # of every tensor name but those of prompts, prefixes and VeRA's matrices
LARGEST_NUMBER = 1e9  # limit of every number in a config; with such a rank or alpha, float32 does not overflow yet
_SECONDS = 10.0  # time limit of all regular expressions of one adapter
_MOST_PATTERNS = 4096

# Settings that common code reads, whatever the method, with the types that PEFT writes.
_COMMON_SETTINGS: dict[str, SettingType] = {
    "peft_type": str,
    "task_type": str,
    "bias": str,
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "layers_pattern": (str, list),
    "layers_to_transform": (int, list),
}
# Settings that PEFT writes for every method and that do not change what an adapter computes.
_COMMON_IGNORED = ("base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version", "revision")
# Settings of several methods that change what an adapter computes, in ways that jpeft does not.
_COMMON_REFUSED = ("modules_to_save", "fan_in_fan_out")


@dataclasses.dataclass(frozen=True)
class PeftNames:
    """A base model as Hugging Face PEFT sees it: module names in `transformers`, the task type, and sizes.

    Attributes:
      sites: all sites of the base.
      module: maps one of our paths to the name of the module in `transformers`.
      rows: maps one of our paths to the indices of the module's output rows that belong to it, None if all do. Where
        several of our maps are one fused module, they share its matrix A and each has its own rows of B.
      task_type: PEFT's task type of such a base: `SEQ_2_SEQ_LM` or `CAUSAL_LM`.
      tied_head: whether the head is the embedding.
      num_layers, num_heads: those of the first stack.
      num_kv_heads: number of key and value heads; fewer than `num_heads` in grouped-query attention.
      num_weights: number of parameters of the base.
      window: size of the sliding window of attention in tokens, if some layers have one; else None.
    """

    sites: Sequence[Site]
    module: Callable[[str], str]
    rows: Callable[[str], np.ndarray | None]
    task_type: str
    tied_head: bool
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_weights: int
    window: int | None = None

    def target_modules(self, chosen: Sequence[Site]) -> list[str]:
        """`target_modules` for the chosen sites: short names if they select exactly these, else full module names."""
        names = {self.module(site.path).rpartition(".")[2] for site in chosen}
        kinds = {site.kind for site in chosen}
        alike = {self.module(site.path) for site in self.sites if site.kind in kinds}
        wanted = {self.module(site.path) for site in chosen}
        if {module for module in alike if module.rpartition(".")[2] in names} == wanted:
            return sorted(names)
        return [self.module(site.path) for site in chosen]


class PeftLayout(abc.ABC):
    """What a method declares to be read from and written to PEFT's files; a second base class beside `Method`.

    Attributes:
      peft_type: the `peft_type` in `adapter_config.json`.
      peft_settings: settings that `from_peft` reads beside the common ones, with the types that PEFT writes. A type of
        numbers is also checked for size; `dict` is a pattern setting, numbers by regular expression; where a list is
        allowed, its items have to be of the other types allowed.
      peft_ignored: settings that PEFT writes for the method and that do not change what an adapter computes.
      peft_refused: settings that change what an adapter computes in ways that jpeft does not implement.
      peft_leaves: for each leaf that modules have, the last part of its tensor's name in PEFT's files.
      peft_unstored: options, numbers that only training reads, for which PEFT's config has no setting. They are stored
        in the metadata of the weights file, which PEFT ignores.
    """

    peft_type: ClassVar[str]
    peft_settings: ClassVar[Mapping[str, SettingType]] = {}
    peft_ignored: ClassVar[Collection[str]] = ()
    peft_refused: ClassVar[Collection[str]] = ()
    peft_leaves: ClassVar[Mapping[str, str]] = {}
    peft_unstored: ClassVar[Collection[str]] = ()

    # --- reading ---

    @classmethod
    def peft_reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether this method reads a config of its `peft_type`; for methods that share a type. True by default."""
        return True

    @classmethod
    def peft_unknown(cls, config: Mapping[str, Any]) -> list[str]:
        """The settings that are set in a config and that neither this method nor common code knows."""
        known = {*_COMMON_SETTINGS, *_COMMON_IGNORED, *cls.peft_settings, *cls.peft_ignored}
        return sorted(key for key, value in config.items() if value and key not in known)

    @classmethod
    def peft_unsupported(cls, config: Mapping[str, Any]) -> str | None:
        """The first setting of a config that jpeft refuses; None if it has none."""
        return next((key for key in (*cls.peft_refused, *_COMMON_REFUSED) if config.get(key)), None)

    @classmethod
    def peft_has_output_rows(cls, leaf: str, value: np.ndarray) -> bool:
        """Whether the first axis of a module's tensor is the module's outputs; False by default.

        Asked for fused modules, to take from the tensor the rows of one of our maps.

        Args:
          leaf: last part of the tensor's name, one of the values of `peft_leaves`.
          value: the tensor as PEFT stores it.
        """
        return False

    @classmethod
    @abc.abstractmethod
    def from_peft(cls, file: "PeftFile") -> tuple[Any, Tensors, list[str]]:
        """Converts an adapter that PEFT wrote.

        Returns:
          The method, its leaves by our names, and notes on what was rewritten.

        Raises:
          UserError: jpeft has no equivalent of a setting, or the adapter does not fit the base.
          RunFailed: config and tensors contradict each other.
        """

    # --- writing ---

    @abc.abstractmethod
    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        """The method's own settings in `adapter_config.json` for these sites, beside `peft_type` and `task_type`."""

    @classmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> np.ndarray:
        """A module's leaf in the shape that PEFT stores; by default as it is."""
        return value

    @classmethod
    def peft_tensors(cls, named: Mapping[str, np.ndarray], module: Callable[[str], str]) -> Tensors:
        """The tensors of `adapter_model.safetensors`; by default one for each leaf, from `peft_leaves`.

        Args:
          named: all leaves by our names.
          module: maps one of our paths to the name of the module in `transformers`.
        """
        tensors = {}
        for name, value in named.items():
            path, _, leaf = name.rpartition("/")
            tensors[f"{PREFIX}{module(path)}.{cls.peft_leaves[leaf]}"] = cls.peft_tensor(leaf, value)
        return tensors


@dataclasses.dataclass(frozen=True)
class PeftFile:
    """One adapter that PEFT wrote, with typed access to its settings and its tensors by module.

    Attributes:
      config: the content of `adapter_config.json`.
      tensors: the tensors of `adapter_model.safetensors` by PEFT's names, float32.
      source: how messages name the adapter.
      names: module names and sizes of the base that it is read for.
      layout: the method that reads it.
      started: time of the clock at which the limit on the time of all expressions began to run.
      patterns: the regular expressions compiled so far.

    Raises:
      RunFailed: on creation, if a setting has another type than PEFT writes, or a number exceeds `LARGEST_NUMBER`.
    """

    config: Mapping[str, Any]
    tensors: Tensors
    source: str
    names: PeftNames
    layout: type[PeftLayout]
    started: float = dataclasses.field(default_factory=time.monotonic)
    patterns: dict[str, Pattern] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        source = f"{self.source}: adapter_config.json"
        settings = {**_COMMON_SETTINGS, **self.layout.peft_settings}
        check_fields(self.config, settings, source, error=RunFailed)
        for key, types in settings.items():
            value = self.config.get(key)
            allowed = types if isinstance(types, tuple) else (types,)
            if isinstance(value, list):
                if len(value) > _MOST_PATTERNS:
                    raise RunFailed(f"{source}: {key} has {len(value):,} entries; expected at most {_MOST_PATTERNS:,}.")
                of_items = tuple(one for one in allowed if one is not list)
                for item in value:
                    check_fields({key: item}, {key: of_items}, source, error=RunFailed)
                    if item is None:
                        raise RunFailed(f"{source}: {key} holds null; expected text or numbers.")
            elif isinstance(value, dict):
                for item in value.values():
                    self._check_number(key, item)
            elif value is not None and set(allowed) <= {int, float}:
                self._check_number(key, value)

    def _check_number(self, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_NUMBER:
            raise RunFailed(
                f"{self.source}: adapter_config.json has {key} = {repr(value)[:60]}; expected a number of at most "
                f"{LARGEST_NUMBER:g}."
            )

    def number(self, key: str, default: Number) -> Number:
        """The value of a numeric setting, or `default` where it is absent or null."""
        value = self.config.get(key)
        return default if value is None else value

    def pattern(self, key: str) -> dict[str, Number]:
        """The value of `rank_pattern` or `alpha_pattern`, numbers by regular expression; empty where absent."""
        return self.config.get(key) or {}

    def match(self, expression: str, text: str, key: str, *, whole: bool = False) -> Any:
        """Matches a regular expression of the config at the start of `text`, or against all of it if `whole`.

        Args:
          expression: the regular expression.
          text: the name of a module.
          key: the setting that the expression is from, for messages.
          whole: whether all of `text` must match.

        Raises:
          UserError: the expression is invalid or takes too long, or all of the adapter's together do.
        """
        if expression not in self.patterns:
            if len(self.patterns) >= _MOST_PATTERNS:
                raise UserError(f"{self.source}: its config has over {_MOST_PATTERNS:,} regular expressions.")
            self.patterns[expression] = Pattern(expression, what=f"{self.source}: its config's {key}")
        if time.monotonic() - self.started > _SECONDS:
            raise UserError(
                f"{self.source}: the regular expressions of its config take more than {_SECONDS:g} s to match."
            )
        pattern = self.patterns[expression]
        return pattern.fullmatch(text) if whole else pattern.match(text)

    def listed(self, key: str) -> list[Any]:
        """The value of a setting that PEFT writes as one item or as a list, always as a list; empty where absent."""
        value = self.config.get(key)
        return [] if value is None else value if isinstance(value, list) else [value]

    def setting(self, key: str, pattern_key: str, module: str, default: Number) -> Number:
        """A numeric setting of one module, which a pattern setting may override, as in PEFT.

        Args:
          key: the setting, such as `r`.
          pattern_key: the pattern setting, such as `rank_pattern`. Its first expression that matches the end of the
            module's name decides.
          module: the module's name in `transformers`.
          default: the value where the config has none.
        """
        for pattern, value in self.pattern(pattern_key).items():
            if self.match(rf"(.*\.)?({pattern})$", module, pattern_key):
                return value
        return self.number(key, default)

    def virtual_tokens(self, what: str) -> tuple[np.ndarray, int]:
        """The tensor `prompt_embeddings`, the only one of a prompt or a prefix, and the setting `num_virtual_tokens`.

        Args:
          what: `prompt` or `prefix`, for messages.

        Raises:
          RunFailed: the file lacks this tensor or holds another one.
        """
        if set(self.tensors) != {"prompt_embeddings"}:
            raise RunFailed(
                f"{self.source}: a {what}'s file should hold prompt_embeddings alone, not {sorted(self.tensors)[:3]}."
            )
        vectors = self.tensors["prompt_embeddings"]
        return vectors, int(self.number("num_virtual_tokens", len(vectors)))

    def by_path(self, kind: str = "linear") -> dict[str, tuple[str, Tensors]]:
        """The adapted modules by our path, each with its name in `transformers` and its tensors by last name.

        Args:
          kind: the kind of sites that the method can adapt.

        Raises:
          UserError: a tensor or module is unknown, or config and tensors adapt different modules.
          RunFailed: a tensor of a fused module has too few rows.
        """
        paths_of: dict[str, list[str]] = {}
        for site in self.names.sites:
            if site.kind == kind:
                paths_of.setdefault(self.names.module(site.path), []).append(site.path)
        found: dict[str, Tensors] = {}
        for name, value in self.tensors.items():
            module, leaf = self._module_and_leaf(name)
            if module not in paths_of:
                tied = module == "lm_head" and self.names.tied_head
                why = "its head is the embedding" if tied else "is it of another size?"
                raise UserError(
                    f"{self.source} does not fit this base, which has no {kind} {' '.join(module.split())[:120]}; {why}"
                )
            found.setdefault(module, {})[leaf] = value
        selected = _selected(self, list(paths_of))
        if selected is not None and selected != set(found):
            only_config, only_file = sorted(selected - set(found)), sorted(set(found) - selected)
            example, where = (only_config[0], "config") if only_config else (only_file[0], "file")
            raise UserError(
                f"{self.source} does not fit this base: its config adapts {len(selected)} modules of it, its weights "
                f"file {len(found)}; {example} stands in the {where} alone. Is the base of another size?"
            )
        return {
            path: (module, self._rows_of(path, module, tensors))
            for module, tensors in found.items()
            for path in paths_of[module]
        }

    def _module_and_leaf(self, name: str) -> tuple[str, str]:
        for leaf in self.layout.peft_leaves.values():
            if name.startswith(PREFIX) and name.endswith(f".{leaf}"):
                return name.removeprefix(PREFIX).removesuffix(f".{leaf}"), leaf
        raise UserError(f"{self.source} holds {' '.join(name.split())[:120]}, which jpeft does not know.")

    def _rows_of(self, path: str, module: str, tensors: Tensors) -> Tensors:
        """A module's tensors for one of our paths: only its rows of those with an axis of outputs, the others whole."""
        rows = self.names.rows(path)
        if rows is None:
            return tensors
        own = {}
        for leaf, value in tensors.items():
            if self.layout.peft_has_output_rows(leaf, value):
                if not value.ndim or len(value) <= rows.max():
                    raise RunFailed(
                        f"{self.source}: {module}.{leaf} has shape {value.shape}, too few rows for this base; is it of "
                        "another size?"
                    )
                value = value[rows]
            own[leaf] = value
        return own


def _selected(file: PeftFile, modules: list[str]) -> set[str] | None:
    """The modules, of those given, that PEFT would adapt by `target_modules`; None where the config names none."""
    targets = file.config.get("target_modules")
    if targets is None:
        return None
    layers = file.listed("layers_to_transform")
    if targets == "all-linear":
        chosen = {module for module in modules if module != "lm_head"}
    elif isinstance(targets, str):
        if layers:
            raise UserError(f"{file.source}: layers_to_transform goes with a list of target_modules, not a pattern.")
        chosen = {module for module in modules if file.match(targets, module, "target_modules", whole=True)}
    else:
        ends = tuple(f".{target}" for target in targets)
        chosen = {module for module in modules if f".{module}".endswith(ends)}
        if layers:
            patterns = file.listed("layers_pattern")
            chosen = {module for module in chosen if _layer_of(file, module, patterns) in layers}
    return chosen - _excluded(file, chosen)


def _layer_of(file: PeftFile, module: str, patterns: list[str]) -> int | None:
    """The layer index that `layers_to_transform` refers to: the first number in a module's name, or after a pattern."""
    for pattern in patterns or [r"[^.]*"]:
        match = file.match(rf"(?:^|.*?\.){pattern}\.(?P<index>[0-9]{{1,9}})\.", module, "layers_pattern")
        if match:
            return int(match["index"])
    return None


def _excluded(file: PeftFile, modules: set[str]) -> set[str]:
    excluded = file.config.get("exclude_modules")
    if isinstance(excluded, str):
        return {module for module in modules if file.match(excluded, module, "exclude_modules", whole=True)}
    ends = tuple(f".{name}" for name in excluded or ())
    return {module for module in modules if ends and f".{module}".endswith(ends)}
