"""Adapters as files: Hugging Face PEFT's layout where PEFT knows the method, our own safetensors layout otherwise.

PEFT's: `adapter_config.json`, `adapter_model.safetensors`; plain LoRA, published (IA)³, prompt tuning.
Ours: `jpeft_adapter.json`, `jpeft_adapter.safetensors`; everything else that adds leaves to a base.
Full tuning of every weight is a model directory instead, which `transformers` opens.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jpeft.errors import RunFailed, UserError
from jpeft.model import weights
from jpeft.model.leaves import Part, fill, named_leaves
from jpeft.model.t5 import T5
from jpeft.model.weights import hub_module
from jpeft.model.write import write_whole
from jpeft.peft.base import Adapter, Method, Site, attach, sites
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.methods import METHODS
from jpeft.peft.prompt import Prompt

_PREFIX = "base_model.model."


def peft_knows(method: Method) -> bool:
    """Whether Hugging Face PEFT has this method in this reading."""
    match method:
        case Lora():
            return not method.scaling_vectors
        case Ia3():
            return not method.two_sided
        case _:
            return isinstance(method, Prompt)


def save_adapter(model: T5, method: Method, chosen: Sequence[Site], directory: Path, *, base_name: str) -> int:
    """Writes what `method` attached to `model` at the `chosen` sites; returns the bytes of the weights file.

    Args:
      base_name: name of the base model, for whoever opens the adapter.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(method, Full) and not jax.tree.leaves(nnx.state(model, nnx.Param)):
        weights.save(model, directory, kind=Adapter)
        return (directory / "model.safetensors").stat().st_size
    named = {name: np.asarray(value) for name, value in named_leaves(model, Adapter).items()}
    if peft_knows(method):
        stem, config = "adapter", _peft_config(model, method, chosen, base_name)
        tensors = peft_tensors(named)
        file = directory / "adapter_model.safetensors"
    else:
        stem, tensors = "jpeft_adapter", named
        file = directory / "jpeft_adapter.safetensors"
        config = {
            "format_version": 1,
            "method": method.name,
            "options": dataclasses.asdict(method),
            "base_model": base_name,
        }
    with write_whole(file) as beside:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, beside, {"format": "pt"})
    with write_whole(directory / f"{stem}{'_config' if stem == 'adapter' else ''}.json") as beside:
        beside.write_text(json.dumps(config, indent=2) + "\n")
    return file.stat().st_size


def load_adapter(directory: Path, model: T5) -> tuple[T5, Method, list[Site]]:
    """`model` with the adapter of a directory attached, its method and sites. Reads both layouts.

    Raises:
      UserError: no adapter there, one of an unknown kind, or one that does not fit this base.
      RunFailed: a file is damaged or cut short.
    """
    if (directory / "jpeft_adapter.json").is_file():
        method, tensors = _read_ours(directory)
    elif (directory / "adapter_config.json").is_file():
        method, tensors = _read_peft(directory, model)
    elif (directory / "model.safetensors").is_file():
        raise UserError(f"{directory} is a whole model, the result of full tuning; give it as model.name instead.")
    else:
        raise UserError(f"{directory} holds no adapter: neither jpeft_adapter.json nor adapter_config.json is there.")

    adapted_paths = {name.rpartition("/")[0] for name in tensors}
    by_path = {site.path: site for site in sites(model)}
    strangers = sorted(adapted_paths - set(by_path))
    if strangers:
        raise UserError(f"{directory} does not fit this base, which has no {strangers[0]}; is it of another size?")
    chosen = [site for path, site in by_path.items() if path in adapted_paths]
    adapted = attach(model, method, chosen, jax.random.key(0))
    unread = set(tensors)

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        if name not in tensors or tensors[name].shape != shape:
            found = f"shape {tensors[name].shape}" if name in tensors else "nothing"
            raise UserError(
                f"{directory} does not fit this base: {name} should have shape {shape}, the file has {found}."
            )
        unread.discard(name)
        return tensors[name][part]

    fill(adapted, Adapter, read, np.float32)
    if unread:
        raise UserError(f"{directory} holds {sorted(unread)[0]}, which {method.name} has no place for.")
    return adapted, method, chosen


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFailed(f"{path} is damaged ({error}).") from None
    if not isinstance(values, dict):
        raise RunFailed(f"{path} is damaged: it holds no object.")
    return values


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name} beside its config.") from None
    except SafetensorError as error:
        raise RunFailed(f"{path} is damaged or cut short ({error}); copy it again.") from None


def _read_ours(directory: Path) -> tuple[Method, dict[str, np.ndarray]]:
    config = _read_json(directory / "jpeft_adapter.json")
    try:
        if config["format_version"] != 1:
            raise UserError(f"{directory} is of format version {config['format_version']}; this jpeft reads version 1.")
        method = METHODS[config["method"]](**config["options"])
    except (KeyError, TypeError) as error:
        raise RunFailed(f"{directory}/jpeft_adapter.json is damaged ({error}).") from None
    return method, _read_tensors(directory / "jpeft_adapter.safetensors")


def peft_tensors(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves by our names as PEFT names and turns them in `adapter_model.safetensors`."""
    tensors = {}
    for name, value in named.items():
        path, _, leaf = name.rpartition("/")
        module = _PREFIX + hub_module(path)
        match leaf:
            case "lora_a":
                tensors[f"{module}.lora_A.weight"] = value.T
            case "lora_b":
                tensors[f"{module}.lora_B.weight"] = value.T
            case "scale_in":
                tensors[f"{module}.ia3_l"] = value[None, :]
            case "scale_out":
                tensors[f"{module}.ia3_l"] = value[:, None]
            case "prompt":
                tensors["prompt_embeddings"] = value
            case _:
                raise AssertionError(f"PEFT has no place for {name}")
    return tensors


def _peft_config(model: T5, method: Method, chosen: Sequence[Site], base_name: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name,
        "task_type": "SEQ_2_SEQ_LM",
        "inference_mode": True,
    }
    match method:
        case Lora():
            config |= {
                "peft_type": "LORA",
                "r": method.rank,
                "lora_alpha": method.alpha,
                "lora_dropout": 0.0,
                "use_rslora": method.rank_stabilized,
                "bias": "none",
                "target_modules": _target_modules(model, chosen),
            }
        case Ia3():
            feed_forward = [site for site in chosen if site.sublayer == "feed_forward"]
            config |= {
                "peft_type": "IA3",
                "target_modules": _target_modules(model, chosen),
                "feedforward_modules": _target_modules(model, feed_forward),
            }
        case Prompt():
            config |= {
                "peft_type": "PROMPT_TUNING",
                "prompt_tuning_init": "RANDOM",
                "num_virtual_tokens": method.prompt_length,
                "token_dim": model.config.d_model,
                "num_transformer_submodules": 1,  # the encoder alone; PEFT would otherwise allocate a second prompt
                "num_layers": model.config.num_layers,
                "num_attention_heads": model.config.num_heads,
            }
    return config


def _target_modules(model: T5, chosen: Sequence[Site]) -> list[str]:
    """Short names where all linear sites of those names are chosen, else every module's whole name."""
    names = {site.name for site in chosen}
    if {site.path for site in sites(model) if site.kind == "linear" and site.name in names} == {s.path for s in chosen}:
        return sorted(names)
    return [hub_module(site.path) for site in chosen]


def _read_peft(directory: Path, model: T5) -> tuple[Method, dict[str, np.ndarray]]:
    config = _read_json(directory / "adapter_config.json")
    stored = _read_tensors(directory / "adapter_model.safetensors")
    kind = config.get("peft_type")
    if kind == "PROMPT_TUNING":
        if set(stored) != {"prompt_embeddings"}:
            raise RunFailed(
                f"{directory}: a prompt's file should hold prompt_embeddings alone, not {sorted(stored)[:3]}."
            )
        return Prompt(prompt_length=len(stored["prompt_embeddings"])), {
            "encoder_input/prompt": stored["prompt_embeddings"]
        }
    if kind not in ("LORA", "IA3"):
        raise UserError(f"{directory} is of PEFT type {kind!r}; jpeft reads LORA, IA3 and PROMPT_TUNING.")
    unsupported = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")]
    for key in [key for key in unsupported if config.get(key)]:
        raise UserError(f"{directory} uses PEFT's {key}, which jpeft does not have.")
    path_of = {hub_module(site.path): site.path for site in sites(model)}
    tensors = {}
    for name, value in stored.items():
        module, leaf, value = _from_peft(name, value)
        if module not in path_of:
            raise UserError(f"{directory} does not fit this base, which has no {module}; is it of another size?")
        tensors[f"{path_of[module]}/{leaf}"] = value
    if kind == "IA3":
        return Ia3(two_sided=False), tensors
    ranks = {value.shape[1] for name, value in tensors.items() if name.endswith("lora_a")}
    if len(ranks) != 1:
        raise UserError(
            f"{directory} has LoRA matrices of the ranks {sorted(ranks)}; jpeft has one rank for all sites."
        )
    alpha = float(config.get("lora_alpha", 8))
    rank_stabilized = bool(config.get("use_rslora", False))
    method = Lora(rank=ranks.pop(), alpha=alpha, scaling_vectors=False, rank_stabilized=rank_stabilized)
    return method, tensors


def _from_peft(name: str, value: np.ndarray) -> tuple[str, str, np.ndarray]:
    """`(module, our leaf name, value in our orientation)` of one of PEFT's tensors."""
    module = name.removeprefix(_PREFIX)
    if module.endswith(".lora_A.weight"):
        return module.removesuffix(".lora_A.weight"), "lora_a", value.T
    if module.endswith(".lora_B.weight"):
        return module.removesuffix(".lora_B.weight"), "lora_b", value.T
    if module.endswith(".ia3_l") and value.ndim == 2 and 1 in value.shape:
        return module.removesuffix(".ia3_l"), "scale_in" if value.shape[0] == 1 else "scale_out", value.reshape(-1)
    raise UserError(f"the adapter holds {name} of shape {value.shape}, which jpeft does not know.")
