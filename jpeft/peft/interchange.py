"""An adapter as Hugging Face PEFT writes it: its settings and tensors, checked, and the modules that they speak of.

`adapter_config.json` says which modules are adapted and how; the tensors say so too, by being there. Both are read and
have to agree, or the adapter would do less here than PEFT makes it do, or more. What the tensors mean is each method's
to say (`Method.from_peft`).
"""

import abc
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields
from jpeft.patterns import Pattern
from jpeft.peft.sites import Site

Tensors = dict[str, np.ndarray]
Number = int | float

PREFIX = "base_model.model."  # of every tensor but a prompt's
LARGEST_NUMBER = 1e9  # of any setting; float32 holds what such a rank or alpha makes of others
_SECONDS = 10.0  # for all expressions of one adapter
_MOST_PATTERNS = 4096

# What each setting that is read may be; null stands for absent.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "peft_type": str,
    "task_type": str,
    "bias": str,
    "use_rslora": bool,
    "use_dora": bool,
    "init_lora_weights": (bool, str),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "feedforward_modules": (str, list),
    "layers_pattern": (str, list),
    "layers_to_transform": (int, list),
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "r": (int, float),
    "lora_alpha": (int, float),
    "num_virtual_tokens": int,
    "init_r": (int, float),
    "target_r": (int, float),
    "orth_reg_weight": (int, float),
    "projection_prng_key": int,
}
_LISTS_OF: dict[str, type] = {
    "target_modules": str,
    "exclude_modules": str,
    "feedforward_modules": str,
    "layers_pattern": str,
    "layers_to_transform": int,
}

# Settings that change what an adapter computes, or of which model, in ways that we do not.
REFUSED = """
    lora_bias layer_replication target_parameters trainable_token_indices alora_invocation_tokens use_qalora
    use_bdlora arrow_config kasa_config monteclora_config velora_config modules_to_save fan_in_fan_out
""".split()
# What the methods read, and what says nothing of the function.
KNOWN = """
    base_model_name_or_path task_type peft_type inference_mode auto_mapping peft_version revision
    r lora_alpha lora_dropout bias use_rslora use_dora init_lora_weights rank_pattern alpha_pattern
    target_modules exclude_modules layers_to_transform layers_pattern feedforward_modules init_ia3_weights
    megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config qalora_group_size
    ensure_weight_tying num_virtual_tokens num_transformer_submodules token_dim num_layers num_attention_heads
    prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
    projection_prng_key save_projection vera_dropout d_initial
    encoder_hidden_size prefix_projection init_weights
    init_r target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step
""".split()


# Last names of the tensors of one module.
LEAVES = (
    "lora_A.weight",
    "lora_B.weight",
    "ia3_l",
    "ln_tuning_layers.weight",
    "ln_tuning_layers.bias",
    "lora_magnitude_vector",
    "lora_A",
    "lora_B",
    "lora_E",
    "vera_lambda_d",
    "vera_lambda_b",
)


@dataclasses.dataclass(frozen=True)
class PeftNames:
    """A base as Hugging Face PEFT knows it: the names of its modules in `transformers`, and the kind of its task.

    Attributes:
      sites: all sites of the base.
      module: the name in `transformers` of the module at one of our paths.
      rows: of the output of that module those that are our path's; None where they are all of it. A module that is
        several of ours has one matrix A, which is then each one's.
      task_type: PEFT's word for what such a base does: `SEQ_2_SEQ_LM`, `CAUSAL_LM`.
      tied_head: whether it has no head of its own.
      num_layers, num_heads: of its first stack.
      num_kv_heads: of keys and values, where several heads of queries may share one.
      num_weights: how many numbers it holds.
      window: how many tokens back some of its layers see; None where all see everything.
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
        """Short names where all sites of those names and kinds are chosen, else every module's whole name."""
        names = {self.module(site.path).rpartition(".")[2] for site in chosen}
        kinds = {site.kind for site in chosen}
        alike = {self.module(site.path) for site in self.sites if site.kind in kinds}
        wanted = {self.module(site.path) for site in chosen}
        if {module for module in alike if module.rpartition(".")[2] in names} == wanted:
            return sorted(names)
        return [self.module(site.path) for site in chosen]


@dataclasses.dataclass(frozen=True)
class PeftFile:
    """One adapter as PEFT wrote it.

    Attributes:
      config: its `adapter_config.json`.
      tensors: of its `adapter_model.safetensors`, float32, by PEFT's names.
      source: what messages call it.
      names: of the base that it is held against.

    Raises `RunFailed`, when made: a setting is of another type than PEFT writes, or out of all proportion.
    """

    config: Mapping[str, Any]
    tensors: Tensors
    source: str
    names: PeftNames
    started: float = dataclasses.field(default_factory=time.monotonic)
    patterns: dict[str, Pattern] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        source = f"{self.source}: adapter_config.json"
        check_fields(self.config, _KINDS, source, error=RunFailed)
        for key, kind in _LISTS_OF.items():
            if isinstance(self.config.get(key), list):
                if len(self.config[key]) > _MOST_PATTERNS:
                    raise RunFailed(
                        f"{source}: {key} has {len(self.config[key]):,} entries; at most {_MOST_PATTERNS:,}."
                    )
                for item in self.config[key]:
                    check_fields({key: item}, {key: kind}, source, error=RunFailed)
                    if item is None:
                        raise RunFailed(f"{source}: {key} holds null.")
        for key in ("rank_pattern", "alpha_pattern"):
            for value in (self.config.get(key) or {}).values():
                if self.config.get("peft_type") != "ADALORA":  # whose pattern says which places of a rank remain
                    self._check_number(key, value)
        for key in (
            "r",
            "lora_alpha",
            "num_virtual_tokens",
            "init_r",
            "target_r",
            "orth_reg_weight",
            "projection_prng_key",
        ):
            if self.config.get(key) is not None:
                self._check_number(key, self.config[key])

    def _check_number(self, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_NUMBER:
            raise RunFailed(
                f"{self.source}: adapter_config.json has {key} = {repr(value)[:60]}; expected a number of at most "
                f"{LARGEST_NUMBER:g}."
            )

    def number(self, key: str, default: Number) -> Number:
        """The value of a setting that is a number, or `default` where the config has none or null."""
        value = self.config.get(key)
        return default if value is None else value

    def pattern(self, key: str) -> dict[str, Number]:
        """`rank_pattern` or `alpha_pattern`: numbers by regular expression of a module's name; empty where absent."""
        return self.config.get(key) or {}

    def match(self, expression: str, text: str, key: str, *, whole: bool = False) -> Any:
        """A match at the start of `text` or, if `whole`, of all of it.

        Raises:
          UserError: it is no expression, takes too long, or all of the adapter's together do.
        """
        if expression not in self.patterns:
            if len(self.patterns) >= _MOST_PATTERNS:
                raise UserError(f"{self.source}: its config has over {_MOST_PATTERNS:,} expressions.")
            self.patterns[expression] = Pattern(expression, what=f"{self.source}: its config's {key}")
        if time.monotonic() - self.started > _SECONDS:
            raise UserError(f"{self.source}: the expressions of its config take more than {_SECONDS:g} s to match.")
        pattern = self.patterns[expression]
        return pattern.fullmatch(text) if whole else pattern.match(text)

    def listed(self, key: str) -> list[Any]:
        """A setting that PEFT writes as one thing or as a list of them, always as a list; empty where absent."""
        value = self.config.get(key)
        return [] if value is None else value if isinstance(value, list) else [value]

    def setting(self, key: str, pattern_key: str, module: str, default: Number) -> Number:
        """A number that may be a module's own: by the first pattern that matches the end of its name, as in PEFT."""
        for pattern, value in self.pattern(pattern_key).items():
            if self.match(rf"(.*\.)?({pattern})$", module, pattern_key):
                return value
        return self.number(key, default)

    def refuse_trained_biases(self, method: str) -> None:
        """Raises `UserError` where the adapter trains biases beside what `method` does, which jpeft's does not."""
        bias = self.config.get("bias")
        if bias not in (None, "none"):
            raise UserError(
                f"{self.source} trains biases (bias={bias!r}), which jpeft's {method} does not; have PEFT merge it, or "
                "train without."
            )

    def virtual_tokens(self, what: str) -> tuple[np.ndarray, int]:
        """`prompt_embeddings`, the one tensor of a prompt's or a prefix's file, and the config's `num_virtual_tokens`.

        Args:
          what: the file is of, for messages.

        Raises:
          RunFailed: the file holds another tensor, or not this one.
        """
        if set(self.tensors) != {"prompt_embeddings"}:
            raise RunFailed(
                f"{self.source}: a {what}'s file should hold prompt_embeddings alone, not {sorted(self.tensors)[:3]}."
            )
        vectors = self.tensors["prompt_embeddings"]
        return vectors, int(self.number("num_virtual_tokens", len(vectors)))

    def by_path(self, kind: str = "linear") -> dict[str, tuple[str, Tensors]]:
        """Per adapted module, by our path: its name in `transformers`, and its tensors by PEFT's last name.

        Args:
          kind: of the modules that the method can adapt.

        Raises:
          UserError: a module is not in the base, or those of config and tensors are not the same.
        """
        paths_of: dict[str, list[str]] = {}
        for site in self.names.sites:
            if site.kind == kind:
                paths_of.setdefault(self.names.module(site.path), []).append(site.path)
        found: dict[str, Tensors] = {}
        for name, value in self.tensors.items():
            module, leaf = _parts(name, self.source)
            if module not in paths_of:
                tied = module == "lm_head" and self.names.tied_head
                why = "its head is the embedding" if tied else "is it of another size?"
                raise UserError(
                    f"{self.source} does not fit this base, which has no {kind} {' '.join(module.split())[:120]}; {why}"
                )
            found.setdefault(module, {})[leaf] = value
        asked = _selected(self, list(paths_of))
        if asked is not None and asked != set(found):
            only_config, only_file = sorted(asked - set(found)), sorted(set(found) - asked)
            alone = (only_config[0], "config") if only_config else (only_file[0], "file")
            which = f"{alone[0]} stands in the {alone[1]} alone"
            raise UserError(
                f"{self.source} does not fit this base: its config adapts {len(asked)} modules of it, its weights file "
                f"{len(found)}; {which}. Is the base of another size?"
            )
        return {
            path: (module, self._own(path, module, tensors))
            for module, tensors in found.items()
            for path in paths_of[module]
        }

    def _own(self, path: str, module: str, tensors: Tensors) -> Tensors:
        """Of a module's tensors what is of one of our paths: of outputs its own rows, of inputs everything."""
        rows = self.names.rows(path)
        if rows is None:
            return tensors
        own = {}
        for leaf, value in tensors.items():
            column = leaf == "ia3_l" and value.shape[-1] == 1
            of_outputs = column or leaf in ("lora_B.weight", "lora_B", "lora_magnitude_vector")
            dimensions = 1 if leaf == "lora_magnitude_vector" else 2
            if of_outputs and (value.ndim != dimensions or len(value) <= rows.max()):
                raise RunFailed(
                    f"{self.source}: {module}.{leaf} has shape {value.shape}, too few rows for this base; is it of "
                    "another size?"
                )
            own[leaf] = value[rows] if of_outputs else value
        return own


class PeftLayout(abc.ABC):
    """What a method that Hugging Face PEFT has, too, says of PEFT's files: a second base of its class.

    Attributes:
      peft_type: of `adapter_config.json`.
    """

    peft_type: ClassVar[str]

    @classmethod
    def peft_reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a config of this type is of this method, where several methods are of one type."""
        return True

    @abc.abstractmethod
    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        """The method's own fields of `adapter_config.json`, besides type and task, for these sites."""

    @classmethod
    @abc.abstractmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> tuple[str, np.ndarray]:
        """PEFT's last name of a leaf, and the leaf as PEFT shapes it. A name that begins with `/` is the whole name."""

    @classmethod
    def peft_tensors(cls, named: Mapping[str, np.ndarray], module: Callable[[str], str]) -> Tensors:
        """Leaves by our names as PEFT's file has them: by default each by itself, as `peft_tensor` shapes it.

        Args:
          module: the name in `transformers` of the module at one of our paths.
        """
        tensors = {}
        for name, value in named.items():
            path, _, leaf = name.rpartition("/")
            theirs, shaped = cls.peft_tensor(leaf, value)
            tensors[theirs[1:] if theirs.startswith("/") else f"{PREFIX}{module(path)}.{theirs}"] = shaped
        return tensors

    @classmethod
    @abc.abstractmethod
    def from_peft(cls, file: PeftFile) -> tuple[Any, Tensors, list[str]]:
        """The method, its leaves by our names and notes, of an adapter as PEFT wrote it.

        Raises:
          UserError: a setting has no equal here, or the adapter does not fit the base.
          RunFailed: config and tensors contradict each other.
        """


def _parts(name: str, source: str) -> tuple[str, str]:
    for leaf in LEAVES:
        if name.startswith(PREFIX) and name.endswith(f".{leaf}"):
            return name.removeprefix(PREFIX).removesuffix(f".{leaf}"), leaf
    raise UserError(f"{source} holds {' '.join(name.split())[:120]}, which jpeft does not know.")


def _selected(file: PeftFile, modules: list[str]) -> set[str] | None:
    """Of these modules those that the config's `target_modules` mean to PEFT; None where it names none."""
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
    """The index that `layers_to_transform` speaks of: the first number in a module's name, or that after a pattern."""
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
