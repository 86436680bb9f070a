"""PyTorch's side of the comparison: Hugging Face transformers and PEFT, used in the common way.

Without a checkpoint, weights are random, created on `device` in `dtype`, without dropout.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from benchmarks.work import LEARNING_RATE, LORA_RANK, PROMPT_LENGTH, Size, T5Size, token_batch

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", module="transformers")
warnings.filterwarnings("ignore", module="peft")


def adapted(
    directory: Path | None, size: Size, name: str | None, *, dtype: str = "float32", device: str = "cpu"
) -> torch.nn.Module:
    """The checkpoint or a random model with a method attached; PEFT lacks BitFit, whose biases are added by hand."""
    if directory is None:
        model = _random_model(size, getattr(torch, dtype), device)
    else:
        opens = transformers.AutoModelForSeq2SeqLM if isinstance(size, T5Size) else transformers.AutoModelForCausalLM
        model = opens.from_pretrained(directory, dtype=getattr(torch, dtype))
        model = model.to(device)
    if name == "bitfit":
        model.requires_grad_(False)
        for part in (model.encoder, model.decoder) if isinstance(size, T5Size) else (model.model,):
            for module in part.modules():
                if isinstance(module, torch.nn.Linear):
                    like = {"dtype": module.weight.dtype, "device": module.weight.device}
                    module.bias = torch.nn.Parameter(torch.zeros(module.out_features, **like))
    elif name not in (None, "full"):
        model = peft.get_peft_model(model, _peft_config(name, size))
    return model.to(device)


def _random_model(size: Size, dtype: torch.dtype, device: str) -> torch.nn.Module:
    values = {key: value for key, value in size.config_values().items() if key != "model_type"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if isinstance(size, T5Size):
                config = transformers.T5Config(**values, dropout_rate=0.0)
                return transformers.T5ForConditionalGeneration(config)
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    finally:
        torch.set_default_dtype(before)


def _peft_config(name: str, size: Size) -> peft.PeftConfig:
    of_t5 = isinstance(size, T5Size)
    kind = peft.TaskType.SEQ_2_SEQ_LM if of_t5 else peft.TaskType.CAUSAL_LM
    if name == "lora":
        modules = ["q", "v"] if of_t5 else ["q_proj", "v_proj"]
        return peft.LoraConfig(task_type=kind, r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=modules)
    if name == "ia3":
        modules = ["k", "v", "wo"] if of_t5 else ["k_proj", "v_proj", "down_proj"]
        return peft.IA3Config(task_type=kind, target_modules=modules, feedforward_modules=modules[2:])
    return peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=PROMPT_LENGTH, num_transformer_submodules=1)


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _batch(size: Size, device: str) -> dict[str, torch.Tensor]:
    tokens = token_batch(size)
    inputs, labels = (torch.from_numpy(tokens[name]).long().to(device) for name in ("inputs", "targets"))
    if not isinstance(size, T5Size):  # prompt and answer in one sequence; only the answer has a loss
        inputs, labels = (torch.cat([before, labels], dim=1) for before in (inputs, torch.full_like(inputs, -100)))
    return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels}


def train_step(
    directory: Path | None, size: Size, name: str, *, dtype: str = "float32", device: str = "cpu"
) -> Callable[[], float]:
    """One optimizer step; returns its loss."""
    model = adapted(directory, size, name, dtype=dtype, device=device).train()
    optimizer = torch.optim.AdamW(trainable(model), lr=LEARNING_RATE)
    batch = _batch(size, device)

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def validation(
    directory: Path | None, size: Size, name: str, *, dtype: str = "float32", device: str = "cpu"
) -> Callable[[], float]:
    """The loss of a batch, without dropout or gradients."""
    model, batch = adapted(directory, size, name, dtype=dtype, device=device).eval(), _batch(size, device)

    def evaluate() -> float:
        with torch.no_grad():
            return model(**batch).loss.item()

    return evaluate


def generation(
    directory: Path | None, size: Size, name: str | None, rows: int, *, dtype: str = "float32", device: str = "cpu"
) -> Callable[[], np.ndarray]:
    """Greedy decoding of `target_length` tokens per row, none ending early; `name` None is the bare model."""
    model = adapted(directory, size, name, dtype=dtype, device=device).eval()
    base = model if name in (None, "full", "bitfit") else model.get_base_model()
    base.generation_config.eos_token_id = None
    inputs = torch.from_numpy(token_batch(size, rows=rows)["inputs"]).long().to(device)
    mask = torch.ones_like(inputs)

    def generate() -> np.ndarray:
        with torch.no_grad():
            tokens = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                max_new_tokens=size.target_length,
                min_new_tokens=size.target_length,
                do_sample=False,
                num_beams=1,
            )
        return tokens[:, -size.target_length :].cpu().numpy()

    return generate
