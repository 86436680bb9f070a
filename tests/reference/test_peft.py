"""Adapters against the installed Hugging Face PEFT: values, gradients, and files in both directions."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from jpeft.adapters import files
from jpeft.adapters.peft_layout import peft_tensors
from jpeft.cli import main
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.model.decode import greedy
from jpeft.peft.attaching import attach, count, split
from jpeft.peft.merging import merge
from jpeft.peft.methods import build
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from tests.golden import make_golden

pytestmark = [
    pytest.mark.reference,
    # transformers' own T5 still asks under the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT reads the config, in which transformers 5 has changed an untied model's entry.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part:UserWarning"),
]
SEED = 2


@pytest.fixture(scope="module", params=["tied_relu", "untied_gated"])
def saved_base(request, tmp_path_factory):
    """`(directory of a random model in the Hugging Face layout, batch)`."""
    sizes, tied, golden_seed = make_golden.ARCHITECTURES[request.param]
    assert golden_seed != SEED
    directory = tmp_path_factory.mktemp("reference") / request.param
    make_golden.save_model(make_golden.build_model(sizes, tied=tied, seed=SEED), directory)
    return directory, make_golden.make_batch(sizes["vocab_size"], seed=SEED)


def torch_base(directory):
    return transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()


def our_batch(batch) -> dict[str, jax.Array]:
    labels = batch["labels"].numpy()
    targets = np.maximum(labels, 0)
    return {
        "encoder_input_tokens": jnp.asarray(batch["input_ids"].numpy(), jnp.int32),
        "decoder_input_tokens": jnp.asarray(np.pad(targets, ((0, 0), (1, 0)))[:, :-1], jnp.int32),
        "decoder_target_tokens": jnp.asarray(targets, jnp.int32),
        "decoder_loss_weights": jnp.asarray(labels != -100, jnp.float32),
    }


def our_logits(model, batch) -> np.ndarray:
    ours = our_batch(batch)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda model, *tokens: model(*tokens))
        return np.asarray(forward(model, ours["encoder_input_tokens"], ours["decoder_input_tokens"]))


def our_gradients(adapted, batch, method) -> dict[str, np.ndarray]:
    """Gradients of the mean loss per target token, by PEFT's names and in its orientation."""
    graphdef, adapter, frozen = split(adapted)

    def mean_loss(adapter):
        total, tokens = loss_sums(nnx.merge(graphdef, adapter, frozen), our_batch(batch))
        return total / tokens

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(mean_loss))(adapter)
    named = named_leaves(nnx.merge(graphdef, gradient, frozen), Adapter)
    return peft_tensors(adapted, type(method), {name: np.asarray(value) for name, value in named.items()})


def our_answers(model, batch) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        answer = jax.jit(lambda m, x: greedy(m, x, max_length=make_golden.MAX_NEW_TOKENS).tokens)
        return np.asarray(answer(model, our_batch(batch)["encoder_input_tokens"]))


def their_answers(model, batch) -> np.ndarray:
    return make_golden.generate(model, batch["input_ids"]).numpy()


def their_logits(model, batch) -> np.ndarray:
    with torch.no_grad():
        return make_golden.run(model, batch).logits.numpy()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("lora", {"target_modules": ["q", "v"], "r": 3, "lora_alpha": 5}),
        ("lora", {"use_rslora": True}),
        ("lora", {"target_modules": r".*decoder\.block\.[01]\.layer\.[01]\..*\.(q|o)"}),
        ("lora", {"target_modules": ["q", "wo"], "layers_to_transform": [2], "layers_pattern": "block"}),
        ("ia3", {}),
        ("prompt", {}),
    ],
    ids=["lora", "lora of q and v", "rank-stabilised", "lora by pattern", "lora of one layer", "ia3", "prompt"],
)
def test_we_open_what_peft_saves(method, options, saved_base, tmp_path):
    directory, batch = saved_base
    theirs = make_golden.add_adapter(torch_base(directory), method, seed=SEED, **options)
    theirs.save_pretrained(tmp_path)
    model = t5_weights.load(directory)
    ours, method, _ = files.load_adapter(tmp_path, model)
    logits = our_logits(ours, batch)
    np.testing.assert_allclose(logits, their_logits(theirs, batch), rtol=0, atol=1e-4)
    assert np.abs(logits - our_logits(model, batch)).max() > 0.1
    np.testing.assert_array_equal(our_answers(ours, batch), their_answers(theirs, batch))

    gradients = make_golden.adapter_gradients(theirs, batch)
    found = our_gradients(ours, batch, method)
    assert found.keys() == gradients.keys()
    for name, value in gradients.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("name", "options", "selection"),
    [
        ("lora", {"rank": 3, "alpha": 5.0}, Selection()),
        ("lora", {"rank": 4, "alpha": 3.0, "rank_stabilized": True}, Selection()),
        ("lora", {}, Selection(pattern="encoder/.*/[qo]|decoder/layers/1/.*/v")),
        ("lora", {}, Selection(names=("q", "wo", "lm_head"))),
        ("lora", {}, Selection(layers={"encoder": [0], "decoder": [2]})),
        ("ia3", {}, Selection()),
        ("ia3", {}, Selection(stacks=("decoder",))),
        ("prompt", {"prompt_length": 7}, Selection()),
    ],
    ids=[
        "lora",
        "rank-stabilised",
        "lora by pattern",
        "lora of the head",
        "lora of some layers",
        "ia3",
        "ia3 of a stack",
        "prompt",
    ],
)
def test_peft_opens_what_we_save(name, options, selection, saved_base, tmp_path, key):
    directory, batch = saved_base
    model = t5_weights.load(directory)
    if selection.names and "lm_head" in selection.names and model.config.tie_word_embeddings:
        selection = Selection(names=("q", "wo"))  # a tied output layer is not a linear layer of its own
    method = build(name, "official", options)
    chosen = select(model, method, selection)
    graphdef, adapter, frozen = split(attach(model, method, chosen, key))
    draw = np.random.default_rng(SEED)
    adapter = jax.tree.map(lambda leaf: leaf + 0.2 * draw.standard_normal(leaf.shape).astype(np.float32), adapter)
    adapted = nnx.merge(graphdef, adapter, frozen)
    files.save_adapter(adapted, method, chosen, tmp_path / "adapter", base_name=str(directory))
    assert main(["export", str(tmp_path / "adapter"), "--out", str(tmp_path / "exported")]) == 0

    theirs = peft.PeftModel.from_pretrained(torch_base(directory), tmp_path / "exported").eval()
    logits = our_logits(adapted, batch)
    np.testing.assert_allclose(logits, their_logits(theirs, batch), rtol=0, atol=1e-4)
    assert np.abs(logits - our_logits(model, batch)).max() > 0.1
    added = [w.numel() for n, w in theirs.named_parameters() if any(part in n for part in ("lora_", "ia3_", "prompt_"))]
    assert sum(added) == count(adapter)  # no leaf of PEFT's is missing from the file
    np.testing.assert_array_equal(our_answers(adapted, batch), their_answers(theirs, batch))


SEQ_2_SEQ: Any = {"task_type": "SEQ_2_SEQ_LM"}
PUBLISHED = {
    "all linear maps": peft.LoraConfig(**SEQ_2_SEQ, r=4, lora_alpha=8, target_modules="all-linear"),
    "peft's own choice": peft.LoraConfig(**SEQ_2_SEQ, r=4),
    "layers by index alone": peft.LoraConfig(**SEQ_2_SEQ, r=4, target_modules=["q", "v"], layers_to_transform=[0, 2]),
    "without the encoder": peft.LoraConfig(**SEQ_2_SEQ, r=4, target_modules=["q", "k"], exclude_modules=r"encoder\..*"),
    "ranks and alphas by pattern": peft.LoraConfig(
        **SEQ_2_SEQ,
        r=4,
        lora_alpha=8,
        target_modules=["q", "v", "wo"],
        rank_pattern={r"encoder\.block\.0\..*\.q": 2, "wo": 6},
        alpha_pattern={"EncDecAttention.v": 3, "wo": 5},
    ),
    "the same, rank-stabilised": peft.LoraConfig(
        **SEQ_2_SEQ, r=4, lora_alpha=2, target_modules=["q", "v"], rank_pattern={"v": 2}, use_rslora=True
    ),
    "ia3 as for mt5": peft.IA3Config(**SEQ_2_SEQ, target_modules=["k", "v", "wi_1"], feedforward_modules=[]),
    "ia3 around the activation": peft.IA3Config(
        **SEQ_2_SEQ, target_modules=["v", "wi_1", "wo"], feedforward_modules=["wo"]
    ),
    "a prompt as PEFT allocates it": peft.PromptTuningConfig(**SEQ_2_SEQ, num_virtual_tokens=5),
}


# A base without a gate has `wi` instead of `wi_0` and `wi_1`; PEFT refuses these shapes on it.
_GATED_ONLY = {"ia3 as for mt5", "ia3 around the activation"}


@pytest.mark.parametrize(
    ("saved_base", "shape"),
    [("untied_gated", shape) for shape in PUBLISHED]
    + [("tied_relu", shape) for shape in PUBLISHED if shape not in _GATED_ONLY],
    indirect=["saved_base"],
)
def test_shapes_that_are_published_compute_the_same_after_import(shape, saved_base, tmp_path):
    directory, batch = saved_base
    config, model = PUBLISHED[shape], t5_weights.load(directory)
    torch.manual_seed(SEED)
    theirs: Any = peft.get_peft_model(torch_base(directory), copy.deepcopy(config)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.requires_grad:
                weight.copy_((1.0 if isinstance(config, peft.IA3Config) else 0.0) + 0.1 * torch.randn_like(weight))
    theirs.save_pretrained(tmp_path / "theirs")
    imported = ["import", str(tmp_path / "theirs"), "--model", str(directory), "--out", str(tmp_path / "ours")]
    assert main(imported) == 0
    for adapter in ("theirs", "ours"):
        ours, _, _ = files.load_adapter(tmp_path / adapter, model)
        logits = our_logits(ours, batch)
        np.testing.assert_allclose(logits, their_logits(theirs, batch), rtol=0, atol=1e-4)
    assert np.abs(logits - our_logits(model, batch)).max() > 0.1
    np.testing.assert_array_equal(our_answers(ours, batch), their_answers(theirs, batch))
    again = peft.PeftModel.from_pretrained(torch_base(directory), tmp_path / "ours").eval()
    np.testing.assert_allclose(their_logits(again, batch), their_logits(theirs, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("reading", ["paper", "official"])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_transformers_opens_what_was_merged(name, reading, saved_base, tmp_path, key):
    directory, batch = saved_base
    model, method = t5_weights.load(directory), build(name, reading)
    chosen = select(model, method)
    graphdef, adapter, frozen = split(attach(model, method, chosen, key))
    draw = np.random.default_rng(SEED)
    adapter = jax.tree.map(lambda leaf: leaf + 0.1 * draw.standard_normal(leaf.shape).astype(np.float32), adapter)
    adapted = nnx.merge(graphdef, adapter, frozen)
    t5_weights.save(merge(adapted), tmp_path)
    theirs = torch_base(tmp_path)
    logits = our_logits(adapted, batch)
    np.testing.assert_allclose(their_logits(theirs, batch), logits, rtol=0, atol=1e-4)
    assert np.abs(logits - our_logits(model, batch)).max() > 0.1
    np.testing.assert_array_equal(our_answers(adapted, batch), their_answers(theirs, batch))
