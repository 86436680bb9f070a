"""Decoder-only models against `transformers`, on a tiny random model of each kind."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from jpeft.adapters import files
from jpeft.adapters.peft_layout import peft_names, peft_tensors
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model.decode import beam_search, greedy
from jpeft.model.decoder import Decoder
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import load_model
from jpeft.peft.attaching import attach, split
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.merging import merge
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from tests.peft.filled import filled

pytestmark = [
    pytest.mark.reference,
    # PEFT still asks under the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
]

_IDS = dict(vocab_size=120, bos_token_id=1, eos_token_id=2, pad_token_id=0)
_LLAMA = dict(
    _IDS,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
# Of such bounds that some frequencies stay, some are divided and some lie between.
_SCALINGS = [
    {"rope_type": "linear", "factor": 2.5},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8, "original_max_position_embeddings": 64},
]
_CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_LLAMA | {"pad_token_id": 2}, tie_word_embeddings=True),
    "llama_untied": lambda: transformers.LlamaConfig(
        **_LLAMA, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=12, rope_theta=1000.0
    ),
    **{
        f"llama_{scaling['rope_type']}": lambda scaling=scaling: transformers.LlamaConfig(
            **_LLAMA, tie_word_embeddings=True, head_dim=16, rope_parameters={"rope_theta": 500.0, **scaling}
        )
        for scaling in _SCALINGS
    },
    "mistral": lambda: transformers.MistralConfig(**_LLAMA, tie_word_embeddings=False, sliding_window=7),
    "qwen2": lambda: transformers.Qwen2Config(**_LLAMA, tie_word_embeddings=True),
    "qwen2_windowed": lambda: transformers.Qwen2Config(
        **_LLAMA, tie_word_embeddings=True, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_LLAMA, tie_word_embeddings=False, head_dim=16),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **_IDS,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 2]],
        window_size=6,
        max_position_embeddings=256,
    ),
    "gptj": lambda: transformers.GPTJConfig(
        **_IDS, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=256, tie_word_embeddings=False
    ),
    "bloom_6": lambda: transformers.BloomConfig(**_IDS, hidden_size=36, n_layer=3, n_head=6),
    "bloom_8": lambda: transformers.BloomConfig(**_IDS, hidden_size=32, n_layer=3, n_head=8),
}
LENGTHS = (19, 11, 3, 1)


@pytest.fixture(scope="module", params=_CONFIGS)
def pair(request, tmp_path_factory):
    """`(torch model, our model, directory)`; ours is loaded from the directory that theirs was saved to."""
    torch.manual_seed(0)
    config = _CONFIGS[request.param]()
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # initial biases are zero and norms one, and answers would repeat one token
        for name, weight in theirs.named_parameters():
            is_matrix = weight.ndim == 2
            table = any(part in name for part in ("embed", "wte", "wpe"))
            scale = (0.1 if table else 2.0 * weight.shape[-1] ** -0.5) if is_matrix else 0.2
            weight.copy_(torch.randn_like(weight) * scale + (0 if is_matrix or name.endswith("bias") else 1))
    directory = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(directory)
    with jax.default_matmul_precision("highest"):
        yield theirs, load_model(directory), directory


def prompts(vocab_size: int = 120):
    """Prompts of unequal lengths; the first contains the end token."""
    draw = np.random.default_rng(1)
    rows = [draw.integers(3, vocab_size, length).astype(np.int32) for length in LENGTHS]
    rows[0][4] = 2
    return rows


@jax.jit
def all_logits(model: Decoder, tokens):
    return model(tokens)


def test_logits(pair):
    theirs, ours, directory = pair
    for row in prompts():
        with torch.no_grad():
            expected = theirs(torch.from_numpy(row[None]).long()).logits.numpy()
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(row)] = row
        np.testing.assert_allclose(all_logits(ours, padded)[:, : len(row)], expected, atol=1e-4)
        np.testing.assert_allclose(DECODER_FAMILY.plain_logits(directory, row[None]), expected, atol=1e-4)


def test_loss(pair):
    """The loss of answers that follow their prompts; prompts do not count."""
    theirs, ours, _ = pair
    inputs, draw = prompts(), np.random.default_rng(2)
    targets = [np.append(draw.integers(3, 120, n), 2).astype(np.int32) for n in (4, 1, 6, 3)]
    longest = max(len(i) + len(t) for i, t in zip(inputs, targets, strict=True))
    tokens, labels = np.zeros((4, longest), np.int64), np.full((4, longest), -100, np.int64)
    mask = np.zeros((4, longest), np.int64)
    for row, (its_input, target) in enumerate(zip(inputs, targets, strict=True)):
        both = np.concatenate([its_input, target])
        tokens[row, : len(both)], mask[row, : len(both)] = both, 1
        labels[row, len(its_input) : len(both)] = target
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), labels=torch.from_numpy(labels)
        ).loss.item()
    batch = DECODER_FAMILY.batch(inputs, targets, (32, 8), batch_size=5, config=ours.config)
    total, count = jax.jit(lambda model, batch: loss_sums(model, batch))(ours, jax.tree.map(jnp.asarray, batch))
    assert count == 18 and abs(float(total / count) - expected) < 1e-5


def upto_end(row):
    return row[: row.index(2) + 1] if 2 in row else row


@pytest.mark.parametrize("beams", [1, 4])
def test_generated_tokens(pair, beams):
    """64 tokens for prompts of unequal length in one batch."""
    theirs, ours, _ = pair
    rows, pad = prompts(), ours.config.pad_token_id
    left, right = (np.full((4, 24), id_, np.int64) for id_ in (pad, ours.config.padding_id))
    mask = np.zeros((4, 24), np.int64)
    for i, row in enumerate(rows):
        left[i, 24 - len(row) :], right[i, : len(row)], mask[i, 24 - len(row) :] = row, row, 1
    with torch.no_grad():
        made = theirs.generate(
            torch.from_numpy(left),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=64,
            do_sample=False,
            num_beams=beams,
            pad_token_id=pad,
        ).numpy()[:, 24:]
    expected = np.full((4, 64), pad)
    expected[:, : made.shape[1]] = made
    if beams == 1:
        found = jax.jit(lambda model, rows: greedy(model, rows, max_length=64).tokens)(
            ours, jnp.asarray(right, jnp.int32)
        )
    else:
        search = jax.jit(lambda model, rows: beam_search(model, rows, max_length=64, num_beams=beams).tokens)
        found = search(ours, jnp.asarray(right, jnp.int32))
    expected = [upto_end(row) for row in expected.tolist()]  # transformers pads beams with end tokens
    assert [upto_end(row) for row in np.asarray(found).tolist()] == expected
    assert len(set(sum(expected, []))) > 8  # the answers vary


def test_what_is_written_opens_in_transformers(pair, tmp_path):
    theirs, ours, _ = pair
    DECODER_FAMILY.save(ours, tmp_path)
    again, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(theirs)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        np.testing.assert_allclose(again.eval()(tokens).logits, theirs(tokens).logits, atol=1e-4)


def test_an_old_pickle_with_masks_is_read(pair, tmp_path):
    """As in older files on the hub: GPT-J's boolean masks are stored, and BLOOM's names have no prefix."""
    theirs, ours, directory = pair
    state = dict(theirs.state_dict())
    state["transformer.h.0.attn.attention.bias"] = torch.ones((1, 1, 4, 4), dtype=torch.bool)
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e9)
    state = {name.removeprefix("transformer."): value for name, value in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    tokens = np.arange(3, 23, dtype=np.int32)[None]
    np.testing.assert_array_equal(all_logits(load_model(tmp_path), tokens), all_logits(ours, tokens))


def test_every_weight_of_theirs_is_one_of_ours(pair):
    theirs, ours, _ = pair
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(ours, nnx.Param))) == theirs.num_parameters()


# --- Hugging Face PEFT ---

_ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM"),
    "lora_everywhere": lambda: peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix_network": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7
    ),
}


def rows_of_text():
    """The rows for both sides: prompts followed by answers, padded at the end."""
    draw = np.random.default_rng(3)
    inputs = [draw.integers(3, 120, n).astype(np.int32) for n in (9, 4, 6)]
    targets = [np.append(draw.integers(3, 120, n), 2).astype(np.int32) for n in (3, 2, 1)]
    return inputs, targets


def their_run(model, inputs, targets):
    """Logits at each target of each row, and the mean loss per target token."""
    longest = max(len(i) + len(t) for i, t in zip(inputs, targets, strict=True))
    tokens, mask = (torch.zeros((len(inputs), longest), dtype=torch.long) for _ in range(2))
    labels = torch.full((len(inputs), longest), -100)
    for row, (its_input, target) in enumerate(zip(inputs, targets, strict=True)):
        both = torch.from_numpy(np.concatenate([its_input, target])).long()
        tokens[row, : len(both)], mask[row, : len(both)] = both, 1
        labels[row, len(its_input) : len(both)] = both[len(its_input) :]
    out = model(input_ids=tokens, attention_mask=mask, labels=labels)
    lead = out.logits.shape[1] - longest
    at = [slice(lead + len(i) - 1, lead + len(i) - 1 + len(t)) for i, t in zip(inputs, targets, strict=True)]
    return [out.logits[row, place].detach().numpy() for row, place in enumerate(at)], out.loss


def our_run(model, inputs, targets):
    """The same from our model, and the gradients by name."""
    graphdef, adapter, base = split(model)
    batch = DECODER_FAMILY.batch(inputs, targets, (16, 4), batch_size=len(inputs), config=model.config)
    batch = jax.tree.map(jnp.asarray, batch)

    @jax.jit
    def run(adapter, base):
        def mean_loss(adapter):
            model = nnx.merge(graphdef, adapter, base)
            total, tokens = loss_sums(model, batch)
            return total / tokens, model.logits(model.hidden_of(batch))

        return jax.value_and_grad(mean_loss, has_aux=True)(adapter)

    (loss, logits), gradient = run(adapter, base)
    named = named_leaves(nnx.merge(graphdef, gradient, base), Adapter)
    rows = [np.asarray(logits)[row, : len(target)] for row, target in enumerate(targets)]
    return rows, float(loss), {name: np.asarray(value) for name, value in named.items()}


def without_window(ours, directory, wide):
    """A directory and our model of it, with attention windows too wide to hide any token of these rows.

    In PEFT a prefix is part of the cached sequence, which a window hides; ours is always visible.
    """
    if ours.config.window is None:
        return ours, directory
    shutil.copytree(directory, wide)
    config = json.loads((wide / "config.json").read_text())
    config |= {key: 64 for key in ("sliding_window", "window_size") if config.get(key)}
    (wide / "config.json").write_text(json.dumps(config))
    return load_model(wide), wide


@pytest.mark.parametrize("method", _ADAPTERS)
def test_we_open_what_peft_saves(pair, method, tmp_path):
    """With PEFT's default target modules for each kind of model, among them BLOOM's fused layer."""
    _, ours, directory = pair
    if method.startswith("prefix"):
        ours, directory = without_window(ours, directory, tmp_path / "wide")
    torch.manual_seed(4)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    theirs = peft.get_peft_model(base, _ADAPTERS[method]())
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn_like(weight))
    theirs.eval().save_pretrained(tmp_path)
    tuned, _, _ = files.load_adapter(tmp_path, ours)
    inputs, targets = rows_of_text()
    logits, loss, gradients = our_run(tuned, inputs, targets)
    expected, their_loss = their_run(theirs, inputs, targets)
    their_loss.backward()
    for row, value in enumerate(expected):
        np.testing.assert_allclose(logits[row], value, atol=1e-4)
    assert abs(loss - their_loss.item()) < 1e-5
    if method == "prefix_network":  # PEFT saves the prefix that the network produces
        return
    names, unread = peft_names(ours), dict(gradients)
    for name, weight in theirs.named_parameters():
        if not weight.requires_grad:
            continue
        gradient = weight.grad.numpy()
        if method == "prompt":
            found = unread.pop("decoder_input/prompt")
        elif method == "prefix":
            (found,), unread = peft_tensors(ours, Prefix, unread).values(), {}
        else:
            module, _, leaf = name.removeprefix("base_model.model.").replace(".default", "").partition(".lora_")
            module = module.removesuffix(".ia3_l")
            found = np.zeros_like(gradient)
            linear = [site.path for site in names.sites if site.kind == "linear"]
            for path in [path for path in linear if names.module(path) == module]:
                rows = names.rows(path)
                rows = slice(None) if rows is None else rows
                if leaf.startswith("A"):
                    found += unread.pop(f"{path}/lora_a").T
                elif leaf.startswith("B"):
                    found[rows] = unread.pop(f"{path}/lora_b").T
                elif f"{path}/scale_in" in unread:
                    found[0] = unread.pop(f"{path}/scale_in")
                else:
                    found[rows, 0] = unread.pop(f"{path}/scale_out")
        np.testing.assert_allclose(found, gradient, atol=1e-4, err_msg=name)
    assert not unread


@pytest.mark.parametrize("method", [Lora.official(rank=3, alpha=5.0), Ia3.official(), Prompt(5), Prefix(5)])
def test_peft_opens_what_we_save(pair, method, tmp_path):
    """Otherwise no PEFT files are written: for part of BLOOM's fused layer, or prefixes that a window would hide."""
    _, ours, directory = pair
    selection = Selection()
    if isinstance(method, Prefix) and ours.config.window is not None:
        chosen = select(ours, method)
        files.save_adapter(
            attach(ours, method, chosen, jax.random.key(0)), method, chosen, tmp_path / "a", base_name=""
        )
        assert files.layout_of(tmp_path / "a") == files.OURS
        return
    if ours.config.model_type == "bloom" and not isinstance(method, Prompt | Prefix):
        everywhere = select(ours, method)
        attached = attach(ours, method, everywhere, jax.random.key(0))
        files.save_adapter(attached, method, everywhere, tmp_path, base_name="")
        assert files.layout_of(tmp_path) == files.OURS
        names = ("down",) if isinstance(method, Ia3) else ("o", "up", "down")
        selection = Selection(names=names)
    chosen = select(ours, method, selection)
    tuned = filled(attach(ours, method, chosen, jax.random.key(0)), jax.random.key(1))
    files.save_adapter(tuned, method, chosen, tmp_path, base_name=str(directory))
    assert files.layout_of(tmp_path) == files.PEFTS
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    inputs, targets = rows_of_text()
    logits, loss, _ = our_run(tuned, inputs, targets)
    expected, their_loss = their_run(theirs, inputs, targets)
    for row, value in enumerate(expected):
        np.testing.assert_allclose(logits[row], value, atol=1e-4)
    assert abs(loss - their_loss.item()) < 1e-5


def test_a_merged_model_opens_in_transformers(pair, tmp_path):
    _, ours, _ = pair
    method = Lora()
    tuned = filled(attach(ours, method, select(ours, method), jax.random.key(0)), jax.random.key(1))
    DECODER_FAMILY.save(merge(tuned), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    inputs, targets = rows_of_text()
    logits, _, _ = our_run(tuned, inputs, targets)
    for row, value in enumerate(their_run(theirs, inputs, targets)[0]):
        np.testing.assert_allclose(logits[row], value, atol=2e-3, rtol=1e-4)
