"""Quantized files against `transformers` and bitsandbytes on a CPU: each side loads the files of the other."""

import jax
import numpy as np
import pytest
import torch
import transformers

import jpeft
from jpeft.cli import main
from jpeft.leaves import Quantized, named_leaves
from jpeft.model.family import family_in
from jpeft.model.source import resolve

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

KINDS = {
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4,double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}


def opened(directory, **options):
    """A `transformers` model with layers dequantized by bitsandbytes, whose own products also round activations."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32, **options).eval()
    for name, module in list(model.named_modules()):
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        if kind == "Linear4bit":
            wide = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif kind == "Linear8bitLt":
            wide = weight.data.float() * (weight.SCB[:, None] / 127)
        else:
            continue
        linear = torch.nn.Linear(wide.shape[1], wide.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(wide.float())
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


def same_logits(directory, model):
    ours, _ = jpeft.load(directory)
    inputs, targets = family_in(directory).probe(ours.config)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(inputs).long(),
            attention_mask=torch.tensor(inputs != 0).long(),
            decoder_input_ids=torch.tensor(targets).long(),
        ).logits.numpy()
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(jax.jit(lambda *call: call[0](*call[1:]))(ours, inputs, targets))
    np.testing.assert_allclose(logits, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_jpeft_quantize_writes_is_opened_there_with_the_same_logits(kind, tmp_path):
    assert main(["quantize", "mini", "--quantization", kind, "--out", str(tmp_path / "few"), "--quiet"]) == 0
    same_logits(tmp_path / "few", opened(tmp_path / "few"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_bitsandbytes_rounds_and_saves_has_the_numbers_that_jpeft_rounds_to(kind, tmp_path):
    options = {"quantization_config": transformers.BitsAndBytesConfig(**KINDS[kind])}
    model = transformers.T5ForConditionalGeneration.from_pretrained(resolve("mini"), dtype=torch.float32, **options)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(resolve("mini")).save_pretrained(tmp_path)
    theirs, ours = (
        {name: np.asarray(value) for name, value in named_leaves(model, Quantized).items()}
        for model in (jpeft.load(tmp_path)[0], jpeft.load("mini", quantization=kind)[0])
    )
    assert theirs.keys() == ours.keys()
    differ = {name: np.mean(theirs[name] != ours[name]) for name in ours if name.endswith("codes")}
    assert max(differ.values()) < 1e-3, "codes are the same but for ties"
    same_logits(tmp_path, opened(tmp_path))
