"""Properties of the decoder-only network that hold for every kind of model and any weights."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

from jpeft.errors import RunFailed, UserError
from jpeft.eval.labels import PackedLabels, label_log_probs
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model import decoder_weights
from jpeft.model.decode import beam_search, greedy
from jpeft.model.decoder import Decoder, alibi_slopes, right_aligned
from jpeft.model.decoder_config import RELEASED, DecoderConfig
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import abstract_model, family_in, load_model
from jpeft.model.rotary import RotaryScaling
from jpeft.model.stack import REMAT_POLICIES
from jpeft.model.weight_files import InMemory
from jpeft.peft.attaching import attach, count
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import select
from tests.decoders import LLAMA, MORE, SCALED, TINY_DECODERS, one_layer, random_decoder

TOTALS = {
    "EleutherAI/gpt-neo-125m": 125_198_592,
    "EleutherAI/gpt-neo-1.3B": 1_315_575_808,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "bigscience/bloom-560m": 559_214_592,
    "bigscience/bloom-7b1": 7_069_016_064,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
}
INPUTS = [[7, 8, 9, 10, 11, 12, 13], [5, 6, 7], [250]]
TARGETS = [[20, 21, 22, 1], [30, 1], [40, 41, 1]]
each_kind = pytest.mark.parametrize("kind", TINY_DECODERS)
# Tests that take seconds to compile run on the other kinds only in the slow suite.
_FIRST = ("llama", "gpt_neo")
each_here = pytest.mark.parametrize(
    "kind", [kind if kind in _FIRST else pytest.param(kind, marks=pytest.mark.slow) for kind in TINY_DECODERS]
)


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def models():
    return {kind: random_decoder(config) for kind, config in TINY_DECODERS.items()}


@jax.jit
def target_logits(model: Decoder, batch):
    return model.logits(model.hidden_of(batch))


@jax.jit
def all_logits(model: Decoder, tokens):
    return model(tokens)


def batch_of(config, inputs=INPUTS, targets=TARGETS, shape=(8, 4), batch_size=3):
    rows = ([np.asarray(row, np.int32) for row in several] for several in (inputs, targets))
    return DECODER_FAMILY.batch(*rows, shape, batch_size=batch_size, config=config)


def padded(rows, length, pad):
    return np.array([row + [pad] * (length - len(row)) for row in rows], np.int32)


def test_a_batch_has_its_answers_at_one_place():
    batch = batch_of(LLAMA, INPUTS[1:], TARGETS[1:], shape=(4, 3), batch_size=3)
    assert batch["tokens"].tolist() == [[0, 5, 6, 7, 30, 1, 0], [0, 0, 0, 250, 40, 41, 1], [0] * 7]
    assert batch["input_lengths"].tolist() == [3, 1, 0]
    assert batch["decoder_target_tokens"].tolist() == [[30, 1, 0], [40, 41, 1], [0] * 3]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 0], [1, 1, 1], [0] * 3]
    shapes = DECODER_FAMILY.batch_shapes(3, (4, 3))
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (value.shape, value.dtype) for name, value in shapes.items()
    }


@each_kind
def test_a_row_is_what_it_is_alone(models, kind):
    """Padding, other rows and tokens after a target do not change its logits."""
    model = models[kind]
    logits = np.asarray(target_logits(model, batch_of(model.config)))
    longer = np.asarray(target_logits(model, batch_of(model.config, shape=(16, 8), batch_size=4)))
    for row, (its_input, target) in enumerate(zip(INPUTS, TARGETS, strict=True)):
        alone = np.asarray(all_logits(model, padded([its_input + target], 12, 0)))[0]
        expected = alone[len(its_input) - 1 :][: len(target)]
        np.testing.assert_allclose(logits[row, : len(target)], expected, atol=2e-5)
        np.testing.assert_allclose(longer[row, : len(target)], expected, atol=2e-5)
    assert np.isfinite(logits).all() and np.isfinite(longer).all()  # also for a row of padding


@each_kind
def test_what_comes_later_changes_nothing_before_it(models, kind):
    model, tokens = models[kind], np.array([[7, 8, 9, 10, 11, 12, 13, 14]], np.int32)
    before = np.asarray(all_logits(model, tokens))
    for place in range(1, 8):
        changed = tokens.copy()
        changed[0, place] = 200
        after = np.asarray(all_logits(model, changed))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place] - before[:, place]).max() > 1e-3


def test_a_window_hides_what_is_further_away():
    """A single layer with a window of four tokens ignores the fifth; a second layer without a window sees it."""
    local = dataclasses.replace(one_layer(TINY_DECODERS["gpt_neo"]), windowed=(0,))
    tokens = np.array([[7, 8, 9, 10, 11, 12]], np.int32)
    for config, seen in ((local, [5, 4, 3, 2]), (dataclasses.replace(local, windowed=()), [5, 4, 3, 2, 1, 0])):
        model, found = random_decoder(config), []
        before = np.asarray(all_logits(model, tokens))[0, 5]
        for place in (5, 4, 3, 2, 1, 0):
            changed = tokens.copy()
            changed[0, place] = 200
            if np.abs(np.asarray(all_logits(model, changed))[0, 5] - before).max() > 1e-6:
                found.append(place)
        assert found == seen


@pytest.mark.parametrize("heads", [6, 8])
def test_slopes_are_those_of_press_et_al(heads):
    series = [2**-4, 2**-8, *([] if heads == 6 else [])]
    expected = {
        8: [2.0**-i for i in range(1, 9)],
        6: [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3],
    }[heads]
    assert series and np.allclose(alibi_slopes(heads), expected)


def naive_greedy(model, prompt, max_length, eos):
    tokens, made = list(prompt), []
    for _ in range(max_length):
        logits = all_logits(model, padded([tokens], 24, 0))[0, len(tokens) - 1]
        made.append(int(np.argmax(logits)))
        tokens.append(made[-1])
        if made[-1] == eos:
            break
    return made + [-1] * (max_length - len(made))


@each_here
def test_greedy_decoding_with_a_cache_is_what_whole_passes_choose(models, kind):
    """For prompts of unequal lengths in one batch, with and without a scan over layers."""
    model = models[kind]
    inputs = jnp.asarray(padded([*INPUTS, []], 8, -1))
    expected = [naive_greedy(model, prompt, 10, 1) for prompt in INPUTS] + [[-1] * 10]
    search = jax.jit(lambda model, inputs: greedy(model, inputs, max_length=10).tokens)
    assert np.asarray(search(model, inputs)).tolist() == expected
    unrolled = random_decoder(model.config)
    DECODER_FAMILY.arrange(unrolled, scan_layers=False)
    assert unrolled.decoder.layer_counts() == [1, 1, 1]
    assert np.asarray(search(unrolled, inputs[:, :7])).tolist() == expected


def test_a_prompt_of_one_token_can_be_gone_on_with(models):
    tokens = jax.jit(lambda model, inputs: greedy(model, inputs, max_length=4).tokens)(
        models["llama"], jnp.asarray([[250]])
    )
    assert np.asarray(tokens)[0].tolist() == naive_greedy(models["llama"], [250], 4, 1)


def test_beams_keep_their_own_answers_and_share_the_prompt(models):
    """The best of four beams is at least as likely as the greedy answer."""
    model, inputs = models["llama"], jnp.asarray(padded(INPUTS, 8, -1))
    found = np.asarray(jax.jit(lambda m, i: beam_search(m, i, max_length=5, num_beams=4).tokens)(model, inputs))
    first = np.asarray(jax.jit(lambda m, i: greedy(m, i, max_length=5).tokens)(model, inputs))

    def mean_log_prob(row, answer):
        answer = [int(t) for t in answer[: list(answer).index(1) + 1]] if 1 in answer else [int(t) for t in answer]
        logits = jax.nn.log_softmax(all_logits(model, padded([INPUTS[row] + answer], 12, 0))[0])
        return np.mean([logits[len(INPUTS[row]) - 1 + i, token] for i, token in enumerate(answer)])

    for row in range(3):
        assert mean_log_prob(row, found[row]) >= mean_log_prob(row, first[row]) - 1e-5


@pytest.mark.parametrize("eos", [2, 1], ids=["the end pads", "an ordinary token pads"])
def test_the_token_that_pads_elsewhere_is_one_of_the_prompt_here(eos):
    """As in SmolLM2, whose `<|im_end|>` ends turns of a chat and pads, and where `<unk>` or GPT-2's `!` pads."""
    config = dataclasses.replace(LLAMA, pad_token_id=2, eos_token_id=eos)
    model, prompts = random_decoder(config), [[7, 2, 9, 2, 11], [2, 5], [6, 2, 2, 8], [6, 2, 2]]
    inputs = padded([*prompts, []], 8, config.padding_id)
    tokens = np.asarray(jax.jit(lambda m, i: greedy(m, i, max_length=6).tokens)(model, jnp.asarray(inputs)))
    for row, prompt in enumerate(prompts):
        assert tokens[row].tolist() == naive_greedy(model, prompt, 6, eos)
    assert tokens[4].tolist() == [-1] * 6  # a row of padding gives an empty answer
    batch = batch_of(config, prompts[:3], TARGETS)
    logits = np.asarray(target_logits(model, batch))
    alone = np.asarray(all_logits(model, padded([prompts[0] + TARGETS[0]], 12, 2)))[0, 4:8]
    np.testing.assert_allclose(logits[0], alone, atol=2e-5)


def test_rows_are_moved_to_their_ends():
    rows, shown = right_aligned(jnp.asarray([[5, 2, 6, 2, 2], [2, 2, 2, 2, 2], [1, 2, 3, 4, 5]]), 2)
    assert rows.tolist() == [[2, 2, 5, 2, 6], [2] * 5, [1, 2, 3, 4, 5]]
    assert shown.astype(int).tolist() == [[0, 0, 1, 1, 1], [0] * 5, [1] * 5]


@each_here
def test_packed_labels_have_the_likelihood_that_each_has_alone(models, kind):
    model = models[kind]
    labels = [[20, 21, 1], [30, 1], [20, 1]]
    lengths = [len(label) for label in labels]
    packed = PackedLabels(
        texts=("a", "b", "c"),
        targets=np.array([*sum(labels, []), 0], np.int32),
        inputs=np.array([0, 20, 21, 0, 30, 0, 20, 0], np.int32),
        segment_ids=np.repeat(np.arange(4), [*lengths, 1]).astype(np.int32),
    )
    score = jax.jit(lambda model, inputs: label_log_probs(model, inputs, packed))
    found = np.asarray(score(model, jnp.asarray(padded(INPUTS, 8, -1))))
    for row, prompt in enumerate(INPUTS):
        for i, label in enumerate(labels):
            logits = jax.nn.log_softmax(all_logits(model, padded([prompt + label], 12, 0))[0])
            expected = sum(float(logits[len(prompt) - 1 + j, token]) for j, token in enumerate(label))
            assert abs(found[row, i] - expected) < 5e-5


@pytest.mark.parametrize(
    "kind", ["gpt_neo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "bloom"))]
)
def test_a_soft_prompt_of_the_texts_own_vectors_is_that_text(models, kind, key):
    model = models[kind]
    method = Prompt(prompt_length=3)
    tuned = attach(model, method, select(model, method), key)
    prompt = named_leaves(model := tuned, type(tuned.decoder_input.adapter.prompt))["decoder_input/prompt"]
    pieces = np.argmin(np.sum((prompt[:, None] - model.shared.embedding[...][None]) ** 2, axis=-1), axis=-1).tolist()
    prefixed = [pieces + row for row in INPUTS]
    base = models[kind]
    with_text = np.asarray(target_logits(base, batch_of(base.config, prefixed, shape=(12, 4))))
    np.testing.assert_allclose(target_logits(tuned, batch_of(base.config)), with_text, atol=2e-5)
    search = jax.jit(lambda model, inputs: greedy(model, inputs, max_length=6).tokens)
    of_text = search(base, jnp.asarray(padded(prefixed, 12, -1)))
    np.testing.assert_array_equal(search(tuned, jnp.asarray(padded(INPUTS, 8, -1))), of_text)


@pytest.mark.parametrize(
    "remat",
    [policy if policy == "block" else pytest.param(policy, marks=pytest.mark.slow) for policy in REMAT_POLICIES],
)
def test_gradients_are_the_same_whatever_is_kept_and_however_layers_run(remat):
    batch, grads = jax.tree.map(jnp.asarray, batch_of(TINY_DECODERS["gpt_neo"])), []
    for policy, scan in (("none", True), (remat, False)):
        model = random_decoder(TINY_DECODERS["gpt_neo"])
        DECODER_FAMILY.arrange(model, scan_layers=scan, remat=policy)
        graphdef, state = nnx.split(model)
        loss = jax.jit(jax.grad(lambda state, graphdef=graphdef: loss_sums(nnx.merge(graphdef, state), batch)[0]))
        grads.append(named_leaves(nnx.merge(graphdef, loss(state)), nnx.Param))
    for name, value in grads[0].items():
        np.testing.assert_allclose(grads[1][name], value, atol=1e-4, err_msg=name)


def test_dropout_draws_by_its_key_and_leaves_evaluation_alone(key):
    model = random_decoder(dataclasses.replace(LLAMA, dropout_rate=0.2))
    run = jax.jit(lambda model, batch, key=None: model.hidden_of(batch, key))
    batch = batch_of(LLAMA)
    one, other = run(model, batch, key), run(model, batch, jax.random.key(8))
    assert np.abs(one - other).max() > 1e-2
    np.testing.assert_array_equal(run(model, batch, key), one)
    np.testing.assert_allclose(run(model, batch), run(random_decoder(LLAMA), batch), atol=1e-6)


def test_more_tokens_than_there_are_learned_positions_are_refused(models):
    model = models["gpt_neo"]
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        jax.eval_shape(model, jax.ShapeDtypeStruct((1, 65), jnp.int32))
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        jax.eval_shape(model.hidden_of, packed_rows(65))


def test_packed_rows_are_refused_by_a_soft_prompt(models):
    model, method = models["llama"], Prompt(prompt_length=3)
    tuned = attach(model, method, select(model, method), jax.random.key(0))
    with pytest.raises(UserError, match="rows of 9 tokens .* soft prompt of 3, .* input_lengths in place of segment"):
        jax.eval_shape(tuned.hidden_of, packed_rows(9))


def packed_rows(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32)
    return {"tokens": ids, "segment_ids": ids, "decoder_target_tokens": ids}


@pytest.mark.parametrize("method", [None, Prompt(prompt_length=6), Prefix(prefix_length=5)])
def test_the_longest_input_is_the_last_that_learned_positions_hold(models, method):
    model = models["gpt_neo"]
    if method is not None:
        model = attach(model, method, select(model, method), jax.random.key(0))
    longest, asked = model.longest_input(8), jax.eval_shape
    assert longest == 57 - (0 if method is None else 6 if method.name == "prompt" else 5)
    answers = lambda tokens: greedy(model, tokens, max_length=8).tokens
    asked(answers, jax.ShapeDtypeStruct((1, longest), jnp.int32))
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        asked(answers, jax.ShapeDtypeStruct((1, longest + 1), jnp.int32))
    assert models["llama"].longest_input(8) is None


def test_gptj_rotates_64_numbers_of_a_head_where_its_config_leaves_it_out():
    values = {"model_type": "gptj", "vocab_size": 9, "n_embd": 256, "n_layer": 1, "n_head": 2, "eos_token_id": 1}
    rotated_ = [DecoderConfig.from_dict({**values, **more}).rotary_width for more in ({}, {"rotary_dim": None})]
    assert rotated_ == [64, 128]


@pytest.mark.parametrize("kind", [*TINY_DECODERS, *MORE, *SCALED])
def test_weights_are_written_and_read_again_and_a_second_reader_agrees(kind, tmp_path):
    config = {**TINY_DECODERS, **MORE, **SCALED}[kind]
    model = random_decoder(config)
    DECODER_FAMILY.save(model, tmp_path)
    assert family_in(tmp_path) is DECODER_FAMILY and DECODER_FAMILY.read_config(tmp_path) == config
    again = load_model(tmp_path)
    ours, theirs = named_leaves(model, nnx.Param), named_leaves(again, nnx.Param)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value, err_msg=name)
    probe = DECODER_FAMILY.probe(config)
    plain = DECODER_FAMILY.plain_logits(tmp_path, *probe)
    np.testing.assert_allclose(plain, all_logits(model, *probe), atol=1e-4)
    if kind == "gpt_neo":  # the list of its layers counts, not how the list was once made
        stored = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(stored | {"attention_types": [[["global"], 3]]}))
        np.testing.assert_array_equal(DECODER_FAMILY.plain_logits(tmp_path, *probe), plain)


@pytest.mark.parametrize("name", TOTALS)
def test_released_models_have_their_parameters(name):
    model = abstract_model(RELEASED[name])
    assert count(nnx.state(model, nnx.Param)) == TOTALS[name]


def test_files_without_a_prefix_and_with_old_buffers_are_read():
    config = TINY_DECODERS["gpt_neo"]
    model, weights = random_decoder(config), {}
    for name, value in named_leaves(model, nnx.Param).items():
        at = decoder_weights.stored(config, name)
        weights[at.name.removeprefix("transformer.")] = np.asarray(value).T if at.transposed else np.asarray(value)
    weights["h.0.attn.attention.bias"] = weights["h.1.attn.attention.masked_bias"] = np.ones((1, 1), np.float32)
    weights["lm_head.weight"] = weights["wte.weight"].copy()
    again = decoder_weights.load_tensors(config, InMemory(weights), source="here")
    tokens = np.array([[7, 8, 9, 10, 11, 12]], np.int32)
    np.testing.assert_array_equal(all_logits(again, tokens), all_logits(model, tokens))
    other = {**weights, "lm_head.weight": weights["wte.weight"] + 1}
    with pytest.raises(UserError, match="here: config.json ties the head to the embedding"):
        decoder_weights.load_tensors(config, InMemory(other), source="here")
    with pytest.raises(UserError, match="here holds weights that a model of type gpt_neo has no place for: h.7.ln_1.w"):
        decoder_weights.load_tensors(
            config, InMemory({**weights, "h.7.ln_1.weight": weights["ln_f.bias"]}), source="here"
        )
    less = {name: value for name, value in weights.items() if name != "h.1.ln_2.bias"}
    with pytest.raises(UserError, match="here lacks transformer.h.1.ln_2.bias"):
        decoder_weights.load_tensors(config, InMemory(less), source="here")


def test_what_flax_wrote_is_read(tmp_path):
    """Kernels in Flax's orientation, and biases, which T5 lacks."""
    config = TINY_DECODERS["gptj"]
    model, tree = random_decoder(config), {}
    for name, value in named_leaves(model, nnx.Param).items():
        module, _, leaf = name.rpartition("/")
        *parts, last = decoder_weights.hub_module(config, module).split(".")
        node = tree
        for part in (*parts, last):
            node = node.setdefault(part, {})
        node[leaf] = np.asarray(value)
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    tokens = np.array([[7, 8, 9, 10, 11, 12]], np.int32)
    np.testing.assert_array_equal(all_logits(load_model(tmp_path), tokens), all_logits(model, tokens))


_LLAMA_JSON = LLAMA.to_dict()
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},  # edited by hand
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}, "original_max_position_embeddings": 64},
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}, "max_position_embeddings": 64},
    ],
)
def test_scaled_positions_are_read_wherever_configs_have_them(values):
    config = DecoderConfig.from_dict({**_LLAMA_JSON, "rope_parameters": None, "rope_theta": 500.0, **values})
    assert config.rotary_scaling == RotaryScaling("llama3", 8.0, 64, 1.0, 4.0) and config.rotary_base == 500.0


@pytest.mark.parametrize(
    "given, size",
    [
        ({}, 1 + 0.1 * math.log(4)),
        ({"attention_factor": 0.5}, 0.5),
        ({"mscale": 1.0}, 1 + 0.1 * math.log(4)),
        ({"mscale": 2, "mscale_all_dim": 1}, (1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4))),
    ],
)
def test_yarn_changes_the_size_of_cosines_and_sines(given, size):
    values = {"type": "yarn", "original_max_position_embeddings": 32, **given}
    config = DecoderConfig.from_dict({**_LLAMA_JSON, "max_position_embeddings": 128, "rope_scaling": values})
    assert config.rotary_scaling.factor == 4 and config.rotary_scaling.size == pytest.approx(size)
    assert DecoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_key_value_heads": 3}, "3 heads of keys and values for 4 of queries"),
        ({"head_dim": None, "hidden_size": 15}, "hidden_size is 15, which 4 heads do not divide"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type is 'dynamic'.*; expected one of default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "factor of the rope_type linear is None; expected a number from 1"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of the rope_type linear is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": math.nan}}, "factor of the rope_type linear is nan"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "low_freq_factor 1 and high_freq_factor 1; expected"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": None}}, "high_freq_factor of the rope_type llama3 is None"),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 1.5}, "original_max_position_embeddings is 1.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "truncate of the rope_type yarn is 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1}, "rope_theta is 1; expected more than 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, but .*; expected 1"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected an integer from 1 to 512"),
        ({"attention_dropout": 1.5}, "a dropout rate is"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"eos_token_id": 400}, "eos_token_id is 400"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id is '3'; expected an integer"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(values, says):
    with pytest.raises(UserError, match=says):
        DecoderConfig.from_dict({**_LLAMA_JSON, **values})


def test_a_damaged_file_is_one_line(tmp_path):
    DECODER_FAMILY.save(random_decoder(LLAMA), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailed, match="damaged or cut short"):
        load_model(tmp_path)
