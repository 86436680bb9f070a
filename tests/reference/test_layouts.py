"""T5 and mT5 in every layout that current `transformers` saves: logits, answers, and merged adapters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jpeft.adapters.files import save_adapter
from jpeft.adapters.merge import probe_logits
from jpeft.cli import main
from jpeft.model import t5_weights
from jpeft.model.decode import greedy
from jpeft.model.t5_family import T5_FAMILY
from jpeft.peft.attaching import attach
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from tests.conftest import _WORDS, make_tokenizer
from tests.peft.filled import filled
from tests.serve.alike import same_answers_of_a_run, write_rows

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

_SIZES = dict(vocab_size=320, d_model=20, d_kv=8, d_ff=28, num_layers=2, num_heads=3, decoder_start_token_id=0)
_GATED = {"feed_forward_proj": "gated-gelu"}
T5, MT5 = "t5", "mt5"
# Family, entries of its config, and whether the output layer is untied.
LAYOUTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "T5 1.0": (T5, {"feed_forward_proj": "relu"}, False),
    "T5 1.0 with a head of its own": (T5, {"feed_forward_proj": "relu"}, True),
    "T5 1.1": (T5, _GATED | {"tie_word_embeddings": False}, True),
    "T5 1.1 made new, and so tied": (T5, _GATED | {"tie_word_embeddings": False}, False),
    "mT5": (MT5, _GATED, True),
    "mT5 made new, and so tied": (MT5, _GATED, False),
    "UL2": (T5, {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}, True),
    "MADLAD": (T5, _GATED | {"tie_word_embeddings": False, "pad_token_id": 1, "eos_token_id": 2}, True),
    "CodeT5": (T5, {"feed_forward_proj": "relu", "bos_token_id": 1, "eos_token_id": 2}, False),
    "an activation beside its name": (T5, _GATED | {"dense_act_fn": "gelu", "tie_word_embeddings": False}, True),
}


def made(layout: str):
    """A random model of a layout with every weight moved from its initial value."""
    family, options, own_head = LAYOUTS[layout]
    config = getattr(transformers, {T5: "T5Config", MT5: "MT5Config"}[family])(**_SIZES | options)
    torch.manual_seed(11)
    classes = {T5: transformers.T5ForConditionalGeneration, MT5: transformers.MT5ForConditionalGeneration}
    model = classes[family](config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name or "relative_attention_bias" in name:
                weight.add_(0.3 * torch.randn_like(weight))  # with larger weights, float32 rounding alone reaches 1e-4
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(0.4 * torch.randn_like(model.lm_head.weight))
    return model


def their_logits(model, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    tokens = torch.from_numpy(inputs).long()
    with torch.no_grad():
        out = model(
            input_ids=tokens,
            attention_mask=(tokens != model.config.pad_token_id).long(),
            decoder_input_ids=torch.from_numpy(targets).long(),
        )
    return out.logits.numpy()


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request, tmp_path_factory):
    """`(torch model, directory that it was saved to)`."""
    model = made(request.param)
    directory = tmp_path_factory.mktemp("layouts") / "model"
    model.save_pretrained(directory)
    return model, directory


def test_logits_and_answers_are_theirs(saved):
    theirs, directory = saved
    ours = t5_weights.load(directory)
    inputs, targets = T5_FAMILY.probe(ours.config)
    expected = their_logits(theirs, inputs, targets)
    np.testing.assert_allclose(probe_logits(ours), expected, rtol=0, atol=1e-4)
    assert (theirs.lm_head.weight is theirs.shared.weight) == ours.config.tie_word_embeddings
    tokens = torch.from_numpy(inputs).long()
    answers = theirs.generate(
        input_ids=tokens,
        attention_mask=(tokens != theirs.config.pad_token_id).long(),
        max_new_tokens=16,
        do_sample=False,
    )[:, 1:].numpy()
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(lambda m, x: greedy(m, x, max_length=16).tokens)(ours, jnp.asarray(inputs)))
    np.testing.assert_array_equal(found[:, : answers.shape[1]], answers)
    assert (found[:, answers.shape[1] :] == ours.config.pad_token_id).all()


def test_a_merged_model_gives_transformers_the_logits_of_base_and_adapter(saved, tiny_tokenizer, tmp_path):
    _, base = saved
    (base / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    model, method = t5_weights.load(base), Lora.official(rank=2, alpha=2.0)
    chosen = select(model, method)
    adapted = filled(attach(model, method, chosen, jax.random.key(1)), jax.random.key(2))
    save_adapter(adapted, method, chosen, tmp_path / "adapter", base_name=str(base))
    assert main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    opened: Any = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    again, loading = opened
    assert not any(loading[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = their_logits(again.eval(), *T5_FAMILY.probe(model.config))
    np.testing.assert_allclose(logits, probe_logits(adapted), rtol=0, atol=1e-4)
    assert np.abs(logits - probe_logits(model)).max() > 0.1


def test_an_embedding_under_the_stacks_alone_is_opened_as_transformers_opens_it(saved, tmp_path):
    theirs, directory = saved
    stored = load_file(directory / "model.safetensors")
    embedding = stored.pop("shared.weight")
    stored |= {f"{stack}.embed_tokens.weight": embedding.clone() for stack in ("encoder", "decoder")}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    logits = their_logits(
        type(theirs).from_pretrained(tmp_path).eval(), *T5_FAMILY.probe(t5_weights.read_config(directory))
    )
    np.testing.assert_allclose(probe_logits(t5_weights.load(tmp_path)), logits, rtol=0, atol=1e-4)


# Special tokens of their tokenizers, which precede the pieces; the ids are those of the layouts above.
SPECIAL_TOKENS = {
    "T5 1.0": ("<pad>", "</s>", "<unk>"),
    "T5 1.1": ("<pad>", "</s>", "<unk>"),
    "mT5": ("<pad>", "</s>", "<unk>"),
    "UL2": ("<pad>", "</s>", "<unk>"),
    "MADLAD": ("<s>", "<pad>", "</s>", "<unk>"),
    "CodeT5": ("<pad>", "<s>", "</s>", "<unk>"),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", SPECIAL_TOKENS)
def test_a_run_predict_and_serve_answer_alike(layout, tmp_path, capsys):
    base, rows = tmp_path / "base", tmp_path / "rows"
    made(layout).save_pretrained(base)
    texts = [" ".join(sum(_WORDS.values(), [])), "Is it {good} or bad? good bad"]
    make_tokenizer(base, texts, special_tokens=SPECIAL_TOKENS[layout])
    rows.mkdir()
    write_rows(rows)
    capsys.readouterr()
    same_answers_of_a_run(base, rows, tmp_path, capsys)
