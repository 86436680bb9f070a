"""What a method attached, in the words of Hugging Face PEFT: `adapter_config.json` and names of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jpeft.model.t5 import T5
from jpeft.model.weights import hub_module
from jpeft.peft.base import Method, Site, sites
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt

PREFIX = "base_model.model."  # of every tensor but a prompt's


def peft_knows(method: Method) -> bool:
    """Whether Hugging Face PEFT has this method in this reading."""
    return peft_lacks(method) is None


def peft_lacks(method: Method) -> str | None:
    """What of a method Hugging Face PEFT's format has no place for; None where it can hold all of it."""
    match method:
        case Lora(scaling_vectors=True):
            return "the scaling vectors of the paper's LoRA"
        case Ia3(two_sided=True):
            return "the second vector of the paper's two-sided (IA)³"
        case Lora() | Ia3() | Prompt():
            return None
    return {"bitfit": "biases where the base has none", "full": "weights of the base"}.get(method.name, method.name)


def peft_tensors(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves by our names as PEFT names and turns them in `adapter_model.safetensors`."""
    tensors = {}
    for name, value in named.items():
        path, _, leaf = name.rpartition("/")
        module = PREFIX + hub_module(path)
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


def peft_config(model: T5, method: Method, chosen: Sequence[Site]) -> dict[str, Any]:
    """`adapter_config.json` of a method that `peft_knows`, without the name of the base."""
    config: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "inference_mode": True}
    match method:
        case Lora():
            config |= {
                "peft_type": "LORA",
                "r": method.rank,
                "lora_alpha": int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
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
