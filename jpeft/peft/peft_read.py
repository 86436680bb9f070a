"""An adapter of Hugging Face PEFT as a method and leaves of ours; what we have no equal for is refused by its name.

`adapter_config.json` says which modules are adapted and how; the tensors say so too, by being there. Both are read and
have to agree, or the adapter would do less here than PEFT makes it do, or more.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields
from jpeft.model.t5 import T5
from jpeft.model.weights import hub_module
from jpeft.patterns import Pattern
from jpeft.peft.base import Method, count, sites
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.peft_write import PREFIX
from jpeft.peft.prompt import Prompt

Tensors = dict[str, np.ndarray]
Number = int | float

PEFT_TYPES = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt"}  # and the names of our methods

LARGEST_NUMBER = 1e9  # of any setting; float32 holds what such a rank or alpha makes of others
_SECONDS = 10.0  # for all expressions of one adapter
_MOST_PATTERNS = 4096
_MOST_FILLED = 2**24  # numbers of an adapter whose ranks differ, however small the base

# What each setting that is read may be; null stands for absent.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "peft_type": str,
    "task_type": str,
    "bias": str,
    "use_rslora": bool,
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
}
_LISTS_OF: dict[str, type] = {
    "target_modules": str,
    "exclude_modules": str,
    "feedforward_modules": str,
    "layers_pattern": str,
    "layers_to_transform": int,
}

# Settings that change what an adapter computes, or of which model, in ways that we do not.
_REFUSED = """
    use_dora lora_bias layer_replication target_parameters trainable_token_indices alora_invocation_tokens use_qalora
    use_bdlora arrow_config kasa_config monteclora_config velora_config modules_to_save fan_in_fan_out
""".split()
# Initial values that leave the base alone. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) take a part of it away.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
# What is read below, and what says nothing of the function.
_KNOWN = """
    base_model_name_or_path task_type peft_type inference_mode auto_mapping peft_version revision
    r lora_alpha lora_dropout bias use_rslora init_lora_weights rank_pattern alpha_pattern
    target_modules exclude_modules layers_to_transform layers_pattern feedforward_modules init_ia3_weights
    megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config qalora_group_size
    ensure_weight_tying num_virtual_tokens num_transformer_submodules token_dim num_layers num_attention_heads
    prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
""".split()


@dataclasses.dataclass(frozen=True)
class _File:
    """One adapter as PEFT wrote it. `source` names it in messages."""

    config: Mapping[str, Any]
    tensors: Tensors
    source: str
    started: float = dataclasses.field(default_factory=time.monotonic)
    patterns: dict[str, Pattern] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raises `RunFailed`: a setting is of another type than PEFT writes, or out of all proportion."""
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
                self._check_number(key, value)
        for key in ("r", "lora_alpha", "num_virtual_tokens"):
            if self.config.get(key) is not None:
                self._check_number(key, self.config[key])

    def _check_number(self, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_NUMBER:
            raise RunFailed(
                f"{self.source}: adapter_config.json has {key} = {repr(value)[:60]}; expected a number of at most "
                f"{LARGEST_NUMBER:g}."
            )

    def number(self, key: str, default: Number) -> Number:
        value = self.config.get(key)
        return default if value is None else value

    def pattern(self, key: str) -> dict[str, Number]:
        """`rank_pattern` or `alpha_pattern`: numbers by regular expression."""
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
        """What may be one thing or a list of them."""
        value = self.config.get(key)
        return [] if value is None else value if isinstance(value, list) else [value]


def read_peft(
    config: Mapping[str, Any], tensors: Tensors, model: T5, *, source: str
) -> tuple[Method, Tensors, tuple[str, ...]]:
    """The method, its leaves by our names (float32, our orientation), and notes on what was written in another way.

    Args:
      tensors: of `adapter_model.safetensors`.
      model: the base, or shapes in its place.
      source: what messages call the adapter.

    Raises:
      UserError: PEFT's type or a setting of it has no equal here, or the adapter does not fit the base.
      RunFailed: config or tensors contradict each other.
    """
    file = _File(config, tensors, source)
    kind = config.get("peft_type")
    if kind not in PEFT_TYPES:
        raise UserError(f"{source} is of PEFT type {repr(kind)[:60]}; jpeft reads {', '.join(PEFT_TYPES)}.")
    for key in _REFUSED:
        if config.get(key):
            raise UserError(f"{source} uses PEFT's {key}, which jpeft does not have.")
    readers: dict[str, Callable[[_File, T5], tuple[Method, Tensors, list[str]]]]
    readers = {"lora": _read_lora, "ia3": _read_ia3, "prompt": _read_prompt}
    method, leaves, notes = readers[PEFT_TYPES[kind]](file, model)
    unknown = sorted(key for key, value in config.items() if value and key not in _KNOWN)
    if unknown:
        notes.append(f"settings that jpeft does not know were passed over: {', '.join(unknown)}")
    return method, leaves, tuple(notes)


# --- prompt tuning ---


def _read_prompt(file: _File, model: T5) -> tuple[Method, Tensors, list[str]]:
    if set(file.tensors) != {"prompt_embeddings"}:
        raise RunFailed(
            f"{file.source}: a prompt's file should hold prompt_embeddings alone, not {sorted(file.tensors)[:3]}."
        )
    if file.config.get("task_type") not in (None, "SEQ_2_SEQ_LM"):
        raise UserError(f"{file.source} is a prompt for {file.config['task_type']}; a T5's is for SEQ_2_SEQ_LM.")
    prompt = file.tensors["prompt_embeddings"]
    length = int(file.number("num_virtual_tokens", len(prompt)))
    if len(prompt) not in (length, 2 * length) or length < 1:
        raise RunFailed(f"{file.source} promises {length} soft tokens and holds {len(prompt)}.")
    notes = []
    if len(prompt) > length:  # PEFT's default for an encoder-decoder
        notes.append(f"left out {length} vectors that PEFT allocates for a decoder's prompt and never uses")
    return Prompt(prompt_length=length), {"encoder_input/prompt": prompt[:length]}, notes


# --- which modules ---


def _by_site(file: _File, model: T5) -> dict[str, tuple[str, Tensors]]:
    """Per adapted module, by its name in `transformers`: our path, and its tensors by PEFT's last name.

    Raises:
      UserError: a module is not in the base, or those of config and tensors are not the same.
    """
    path_of = {hub_module(site.path): site.path for site in sites(model) if site.kind == "linear"}
    found: dict[str, tuple[str, Tensors]] = {}
    for name, value in file.tensors.items():
        module, leaf = _parts(name, file.source)
        if module not in path_of:
            tied = module == "lm_head" and model.config.tie_word_embeddings
            why = "its head is the embedding" if tied else "is it of another size?"
            raise UserError(
                f"{file.source} does not fit this base, which has no linear {' '.join(module.split())[:120]}; {why}"
            )
        found.setdefault(module, (path_of[module], {}))[1][leaf] = value
    asked = _selected(file, list(path_of))
    if asked is not None and asked != set(found):
        only_config, only_file = sorted(asked - set(found)), sorted(set(found) - asked)
        which = f"{only_config[0]} stands in the config alone" if only_config else f"{only_file[0]} in the file alone"
        raise UserError(
            f"{file.source} does not fit this base: its config adapts {len(asked)} modules of it, its weights file "
            f"{len(found)}; {which}. Is the base of another size?"
        )
    return found


def _parts(name: str, source: str) -> tuple[str, str]:
    for leaf in ("lora_A.weight", "lora_B.weight", "ia3_l"):
        if name.startswith(PREFIX) and name.endswith(f".{leaf}"):
            return name.removeprefix(PREFIX).removesuffix(f".{leaf}"), leaf
    raise UserError(f"{source} holds {' '.join(name.split())[:120]}, which jpeft does not know.")


def _selected(file: _File, modules: list[str]) -> set[str] | None:
    """The linear modules that the config's `target_modules` mean to PEFT; None where it names none."""
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


def _layer_of(file: _File, module: str, patterns: list[str]) -> int | None:
    """The index that `layers_to_transform` speaks of: the first number in a module's name, or that after a pattern."""
    for pattern in patterns or [r"[^.]*"]:
        match = file.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module, "layers_pattern")
        if match:
            return int(match["index"])
    return None


def _excluded(file: _File, modules: set[str]) -> set[str]:
    excluded = file.config.get("exclude_modules")
    if isinstance(excluded, str):
        return {module for module in modules if file.match(excluded, module, "exclude_modules", whole=True)}
    ends = tuple(f".{name}" for name in excluded or ())
    return {module for module in modules if ends and f".{module}".endswith(ends)}


# --- LoRA ---


def _read_lora(file: _File, model: T5) -> tuple[Method, Tensors, list[str]]:
    """One rank and one scale for all sites, as our LoRA has them: smaller ranks are filled up, other scales go into B.

    Neither changes the function. Rows and columns of zeros also stay zero when training goes on: each is the other's
    gradient.
    """
    if file.config.get("bias") not in (None, "none"):
        raise UserError(f"{file.source} trains biases (bias={file.config['bias']!r}); a T5 has none.")
    if file.config.get("init_lora_weights") not in _INITIALISATIONS:
        raise UserError(
            f"{file.source} was initialised by {file.config['init_lora_weights']!r}, which changes the base's weights; "
            "have PEFT convert it: save_pretrained(directory, path_initial_model_for_weight_conversion=...)."
        )
    modules = _by_site(file, model)
    for module, (_, tensors) in modules.items():
        if set(tensors) != {"lora_A.weight", "lora_B.weight"}:
            raise RunFailed(f"{file.source}: {module} should have lora_A and lora_B, not {sorted(tensors)}.")
        for name, value in tensors.items():
            if value.ndim != 2:
                raise RunFailed(f"{file.source}: {module}.{name} has shape {value.shape}; expected two dimensions.")
    ranks = {module: _rank(file, module, tensors) for module, (_, tensors) in modules.items()}
    _refuse_filling_up(file, model, modules, ranks)
    alphas = {module: _setting(file, "lora_alpha", "alpha_pattern", module, 8) for module in modules}
    rank = max(ranks.values())
    alpha = alphas[next(module for module in modules if ranks[module] == rank)]
    stabilized = bool(file.config.get("use_rslora"))
    method = Lora(rank=rank, alpha=float(alpha), scaling_vectors=False, rank_stabilized=stabilized)
    leaves, rescaled = {}, False
    for module, (path, tensors) in modules.items():
        own = dataclasses.replace(method, rank=ranks[module], alpha=float(alphas[module]))
        a, b = tensors["lora_A.weight"].T, tensors["lora_B.weight"].T
        if own.scale != method.scale:
            if method.scale == 0:
                raise UserError(f"{file.source} scales some updates by 0 (alpha_pattern), which jpeft does not have.")
            b, rescaled = b * np.float32(own.scale / method.scale), True
        leaves[f"{path}/lora_a"] = np.pad(a, ((0, 0), (0, rank - own.rank)))
        leaves[f"{path}/lora_b"] = np.pad(b, ((0, rank - own.rank), (0, 0)))
    notes = []
    if len(set(ranks.values())) > 1:
        notes.append(f"ranks {sorted(set(ranks.values()))} were filled up with zeros to {rank}")
    if rescaled:
        notes.append("scales that differ between modules were multiplied into B")
    return method, leaves, notes


def _refuse_filling_up(
    file: _File, model: T5, modules: Mapping[str, tuple[str, Tensors]], ranks: Mapping[str, int]
) -> None:
    """Raises `UserError`: one module's rank is so much larger that zeros for the others would outgrow the base."""
    largest, least = max(ranks.values()), min(ranks.values())
    filled = sum(
        value.size // ranks[module] * largest for module, (_, each) in modules.items() for value in each.values()
    )
    if largest > least and filled > max(_MOST_FILLED, count(nnx.state(model, nnx.Param))):
        raise UserError(
            f"{file.source} has ranks from {least:,} to {largest:,}; jpeft has one for all modules, and filled up with "
            "zeros they would be larger than the base."
        )


def _rank(file: _File, module: str, tensors: Tensors) -> int:
    rank = len(tensors["lora_A.weight"])
    says = _setting(file, "r", "rank_pattern", module, rank)
    if says != rank:
        raise RunFailed(f"{file.source}: {module} is of rank {rank} in the weights file and {says} in the config.")
    return rank


def _setting(file: _File, key: str, pattern_key: str, module: str, default: Number) -> Number:
    """A number that may be one module's own; the first pattern that matches the end of its name counts, as in PEFT."""
    for pattern, value in file.pattern(pattern_key).items():
        if file.match(rf"(.*\.)?({pattern})$", module, pattern_key):
            return value
    return file.number(key, default)


# --- (IA)³ ---


def _read_ia3(file: _File, model: T5) -> tuple[Method, Tensors, list[str]]:
    leaves, notes = {}, []
    moved: Tensors = {}  # what stood on the output of wi_1, by the path of its wo
    for module, (path, tensors) in _by_site(file, model).items():
        value = tensors.get("ia3_l", np.zeros(()))
        if value.ndim != 2 or 1 not in value.shape:
            raise RunFailed(f"{file.source}: {module}.ia3_l has shape {value.shape}; expected a row or a column.")
        before = value.shape[0] == 1  # a row multiplies what comes in, a column what goes out
        block, _, name = path.rpartition("/")
        if block.endswith("feed_forward") == before:
            leaves[f"{path}/{'scale_in' if before else 'scale_out'}"] = value.reshape(-1)
        elif name == "wi_1":
            moved[f"{block}/wo/scale_in"] = value.reshape(-1)
        else:
            side = "input" if before else "output"
            raise UserError(f"{file.source} rescales the {side} of {module}, which the published (IA)³ does not.")
    for name, value in moved.items():  # wo(act(wi_0 x) * (l * wi_1 x)) = wo(l * (act(wi_0 x) * wi_1 x))
        leaves[name] = leaves[name] * value if name in leaves else value
    if moved:
        notes.append(f"vectors after {len(moved)} wi_1 were moved before wo, where they do the same")
    return Ia3(two_sided=False), leaves, notes
