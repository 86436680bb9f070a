"""Makes the golden files beside it: tiny random T5s and adapters, and what PyTorch, transformers and PEFT make of them.

Run:  python tests/golden/make_golden.py     (needs torch, transformers, peft; `versions.json` has those it ran with)

A directory a model, in Hugging Face layout, with `expected.safetensors`: a padded batch and what follows from it. Below
it a directory an adapter, in PEFT's layout, with its own `expected.safetensors`. Running it again changes no byte.
`tests/reference` uses the same functions for other seeds, without the files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).parent
LENGTHS = (11, 4, 8, 2, 6, 9)  # real tokens of each row of a batch
MAX_NEW_TOKENS = 64
ADAPTERS = ("lora", "ia3", "prompt")
_SMALL = dict(vocab_size=96, d_model=16, d_kv=4, d_ff=32, num_layers=3, num_heads=4)
# Sizes, whether the head is tied to the embedding, and a seed whose model writes varied text of varied length.
ARCHITECTURES: dict[str, tuple[dict[str, Any], bool, int]] = {
    "tied_relu": (_SMALL | dict(feed_forward_proj="relu"), True, 78),
    "untied_gated": (_SMALL | dict(feed_forward_proj="gated-gelu"), False, 14),
    "tall_odd": (  # d_kv * num_heads is not d_model
        dict(vocab_size=90, d_model=20, d_kv=8, d_ff=28, num_layers=6, num_heads=3, feed_forward_proj="gated-gelu"),
        False,
        6,
    ),
}


def build_model(sizes: dict, *, tied: bool, seed: int) -> transformers.T5ForConditionalGeneration:
    """A random model in which no weight keeps its initial value, and whose text is neither constant nor endless.

    Weights much larger than these make float32 itself uncertain by more than the tests' tolerances.
    """
    torch.manual_seed(seed)
    config = transformers.T5Config(**sizes | {"tie_word_embeddings": tied, "decoder_start_token_id": 0})
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not tied:  # transformers 5 ties the head of every T5 that it makes
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.4)
    assert (model.lm_head.weight is model.shared.weight) == tied
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layer_norm.weight"):
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif "relative_attention_bias" in name:
                weight.copy_(torch.randn_like(weight))
            elif name.endswith((".q.weight", ".o.weight", ".wo.weight")):
                weight.mul_(1.5)  # otherwise the last token alone decides what comes next
        # Of random sign: a tied head would repeat the last token for ever.
        model.decoder.final_layer_norm.weight.copy_(torch.randn_like(model.decoder.final_layer_norm.weight))
        model.lm_head.weight[1] *= 2  # </s> is sometimes the best
    return model


def make_batch(vocab_size: int, *, seed: int, length: int = 12, dec_len: int = 7) -> dict[str, torch.Tensor]:
    """Random rows of `LENGTHS` tokens with padding after them; `labels` has -100 on padding."""
    draw = np.random.default_rng(seed)
    tokens = torch.from_numpy(draw.integers(3, vocab_size, (len(LENGTHS), length)))
    labels = torch.from_numpy(draw.integers(3, vocab_size, (len(LENGTHS), dec_len)))
    for row, size in enumerate(LENGTHS):
        tokens[row, size:] = 0
        labels[row, 2 + row :] = -100
    return {"input_ids": tokens, "labels": labels}


def run(model, batch: dict[str, torch.Tensor]):
    """Output of a model or a PEFT model with `loss`, the mean over the labels, and `logits`."""
    mask = (batch["input_ids"] != 0).long()
    return model(input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"])


def generate(model, tokens: torch.Tensor, **options) -> torch.Tensor:
    """Generated tokens without the start token: `[batch, MAX_NEW_TOKENS]`, padding after </s>."""
    mask = (tokens != 0).long()
    options |= {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}  # transformers would stop at 20
    out = model.generate(input_ids=tokens, attention_mask=mask, **options)[:, 1:]
    out = torch.nn.functional.pad(out, (0, MAX_NEW_TOKENS - out.shape[1]))
    # Beam search of transformers fills up with </s> where the padding's id is 0.
    after_end = torch.cumsum(out == 1, dim=1) - (out == 1).long() > 0
    return torch.where(after_end, 0, out)


def expectations(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that is compared of a model without an adapter."""
    tokens, labels = batch["input_ids"], batch["labels"]
    out = run(model, batch)
    alone = [
        run(model, {"input_ids": tokens[i : i + 1, :size], "labels": labels[i : i + 1]}).logits
        for i, size in enumerate(LENGTHS)
    ]
    return {
        "encoder_input_tokens": tokens,
        "decoder_input_tokens": model._shift_right(labels),
        "labels": labels,
        "logits": out.logits,
        "unpadded_logits": torch.cat(alone),
        "loss": out.loss,
        "greedy": generate(model, tokens),
        "beam_4": generate(model, tokens, num_beams=4),
        "beam_4_sum": generate(model, tokens, num_beams=4, length_penalty=0.0),  # short answers win
    }


def add_adapter(model, method: str, *, seed: int, **options) -> peft.PeftModel:
    """A PEFT model around `model` with every value of the adapter random."""
    torch.manual_seed(seed)
    task: Any = {"task_type": "SEQ_2_SEQ_LM"}
    match method:
        case "lora":
            options = {"r": 4, "lora_alpha": 8, "target_modules": ["q", "k", "v", "o"]} | options
            config = peft.LoraConfig(**task, **options)
        case "ia3":
            config = peft.IA3Config(**task, target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
        case "prompt":  # PEFT would allocate a second prompt, for the decoder, and not use it
            config = peft.PromptTuningConfig(**task, num_virtual_tokens=5, num_transformer_submodules=1)
        case _:
            raise ValueError(f"no adapter is called {method!r}; there are: {', '.join(ADAPTERS)}.")
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.copy_((1.0 if method == "ia3" else 0.0) + 0.1 * torch.randn_like(weight))
    return adapted


def adapter_gradients(adapted: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss by the names that the values have in `adapter_model.safetensors`."""
    adapted.zero_grad()
    run(adapted, batch).loss.backward()
    if adapted.peft_config["default"].is_prompt_learning:
        return {"prompt_embeddings": adapted.prompt_encoder["default"].embedding.weight.grad}
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    return {name.replace(".default", ""): weight.grad for name, weight in trained.items()}


def save_adapter(adapted: peft.PeftModel, directory: Path) -> None:
    """As PEFT saves it, with what differs from run to run taken out."""
    adapted.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    config = json.loads((directory / "adapter_config.json").read_text())
    for key, value in config.items():  # sets, in the order of their hashes
        config[key] = sorted(value) if isinstance(value, list) else value
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def save_model(model, directory: Path) -> None:
    """`config.json` and `model.safetensors`; the head only where it is not the embedding."""
    directory.mkdir(parents=True)
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if "embed_tokens" not in name}
    if model.lm_head.weight is model.shared.weight:
        del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1, sort_keys=True) + "\n")


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, (sizes, tied, seed) in ARCHITECTURES.items():
        directory = ROOT / name
        shutil.rmtree(directory, ignore_errors=True)
        batch = make_batch(sizes["vocab_size"], seed=seed)
        model = build_model(sizes, tied=tied, seed=seed)
        save_model(model, directory)
        save_file(_contiguous(expectations(model, batch)), directory / "expected.safetensors")
        for method in ADAPTERS:
            adapted = add_adapter(build_model(sizes, tied=tied, seed=seed), method, seed=seed)
            save_adapter(adapted, directory / method)
            expected = {"logits": run(adapted, batch).logits}
            expected |= {f"gradient/{leaf}": value for leaf, value in adapter_gradients(adapted, batch).items()}
            save_file(_contiguous(expected), directory / method / "expected.safetensors")
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    (ROOT / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
