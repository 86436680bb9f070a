"""Prefix tuning: a prefix acts like the key-value cache of a text, in every kind of forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.adapters.files import OURS, PEFTS, layout_of, load_adapter, save_adapter
from jpeft.adapters.peft_layout import peft_config, peft_tensors, read_peft
from jpeft.errors import UserError
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model.decode import beam_search, greedy
from jpeft.model.stack import arrange
from jpeft.peft.attaching import attach, split
from jpeft.peft.merging import merge
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import common_pieces
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from tests.conftest import ONE_LAYER, TINY, random_t5, slow_but
from tests.decoders import LLAMA, MORE, TINY_DECODERS, one_layer, random_decoder
from tests.peft.filled import filled

PREFIX = Prefix(prefix_length=5)
forward = jax.jit(lambda model, *tokens: model(*tokens))


def adapted(model, method=PREFIX, key=None, selection=None):
    key = jax.random.key(7) if key is None else key
    return attach(model, method, select(model, method, selection or Selection()), key)


def tokens_of(config, rows=3, length=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(3, config.vocab_size, (rows, length)), jnp.int32)


@pytest.mark.parametrize("kind", slow_but(("llama", "bloom"), ["llama", "gptj", "bloom", "gpt_neo", "qwen3"]))
def test_a_prefix_of_pieces_that_were_read_is_that_text(kind, key):
    """A prefix of a text's keys and values acts like the text, with learned positions, rotary positions and ALiBi."""
    config = {**TINY_DECODERS, **MORE}[kind]
    if config.window is not None:  # windows hide a text, but not a prefix
        config = dataclasses.replace(config, windowed=())
    model = random_decoder(dataclasses.replace(config, num_layers=2))
    pieces, tokens = common_pieces(key, 5, config.vocab_size), tokens_of(config)
    text = jnp.concatenate([jnp.tile(pieces, (3, 1)), tokens], axis=1)
    np.testing.assert_allclose(forward(adapted(model, key=key), tokens), forward(model, text)[:, 5:], atol=2e-5)


def test_a_prefix_is_seen_from_behind_a_window():
    """The second layer of this GPT-Neo has a window of four tokens; a prefix in it alone affects the ninth token."""
    model = random_decoder(TINY_DECODERS["gpt_neo"])
    tuned = adapted(model, selection=Selection(layers=[1]))
    leaves = nnx.state(tuned, Adapter)
    moved = nnx.clone(tuned)
    nnx.update(moved, jax.tree.map(lambda leaf: leaf + 1.0, leaves))
    tokens = tokens_of(model.config, length=9)
    assert (np.abs(forward(moved, tokens) - forward(tuned, tokens)).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("kind", slow_but(("t5",), ["t5", "llama", "gpt_neo"]))
def test_answers_with_caches_are_those_of_whole_passes(kind, key):
    """By greedy decoding and beam search, for rows of unequal length."""
    if kind == "t5":
        model = filled(adapted(random_t5(ONE_LAYER)), key)
    else:
        config = TINY_DECODERS[kind]
        model = filled(adapted(random_decoder(config if config.windowed else one_layer(config))), key)
    inputs = np.array(tokens_of(model.config))
    padding = model.config.padding_id
    inputs[1, 4:] = padding
    found = np.asarray(jax.jit(lambda m, x: greedy(m, x, max_length=5).tokens)(model, jnp.asarray(inputs)))
    for row, prompt in zip(found, inputs, strict=True):
        if kind == "t5":
            logits = forward(model, prompt[None], np.pad(row, (1, 0))[None, :-1])[0]
        else:
            prompt = prompt[prompt != padding]
            logits = forward(model, np.concatenate([prompt, row])[None])[0][len(prompt) - 1 : -1]
        real = np.arange(5) <= (np.argmax(row == 1) if 1 in row else 5)
        np.testing.assert_array_equal(row[real], np.argmax(logits, axis=-1)[real])
    beams = jax.jit(lambda m, x: beam_search(m, x, max_length=4, num_beams=2).tokens)
    whole, alone = beams(model, jnp.asarray(inputs)), beams(model, jnp.asarray(inputs[1:2, :4]))
    np.testing.assert_array_equal(whole[1], alone[0])


@pytest.mark.parametrize("stacks", [("encoder",), ("decoder",), None])
def test_where_it_is_and_where_it_is_not(stacks):
    """Selected by stacks, names and layers; a layer without a prefix is in a segment of its own."""
    model = random_t5(TINY)
    names = set(named_leaves(adapted(model, selection=Selection(stacks=stacks)), Adapter))
    wanted = {
        f"{stack}/layers/{i}/{name}/prefix_{part}"
        for stack, name in (
            ("encoder", "self_attention"),
            ("decoder", "self_attention"),
            ("decoder", "cross_attention"),
        )
        for i in range(2)
        for part in ("keys", "values")
        if stacks is None or stack in stacks
    }
    assert names == wanted
    cut = adapted(model, selection=Selection(layers=[1], names=["cross_attention"]))
    assert len(cut.decoder.segments) == 2 and len(cut.encoder.segments) == 1
    assert {name.rpartition("/")[0] for name in named_leaves(cut, Adapter)} == {"decoder/layers/1/cross_attention"}


@pytest.mark.slow
def test_layers_run_one_by_one_or_by_a_loop_and_kept_or_made_anew(batch, key):
    found = []
    for unrolled, remat in ((False, "none"), (True, "none"), (False, "block")):
        model = random_t5(TINY)
        if unrolled:
            arrange((model.encoder, model.decoder), scan=False)
        model.encoder.remat = model.decoder.remat = remat
        graphdef, adapter, base = split(adapted(model, key=key))
        grads = jax.jit(jax.grad(lambda a, g=graphdef, b=base: loss_sums(nnx.merge(g, a, b), batch)[0]))(adapter)
        found.append(named_leaves(nnx.merge(graphdef, grads, base), Adapter))
    assert all(np.abs(value).max() > 0 for value in found[0].values())
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)


def test_packed_examples_all_see_the_prefix_and_none_another(key):
    model = filled(adapted(random_t5(ONE_LAYER)), key)
    inputs, targets = tokens_of(TINY, rows=2, length=4), tokens_of(TINY, rows=2, length=3, seed=1)
    packed = forward(
        model, inputs.reshape(1, 8), targets.reshape(1, 6), None, (jnp.arange(8)[None] // 4, jnp.arange(6)[None] // 3)
    )
    np.testing.assert_allclose(packed.reshape(2, 3, -1), forward(model, inputs, targets), atol=1e-5)


@pytest.mark.parametrize("kind", slow_but(("gpt_neo",), ["gpt_neo", "llama", "bloom"]))
def test_packed_texts_all_see_the_prefix_and_none_another(kind, key):
    model = filled(adapted(random_decoder(TINY_DECODERS[kind])), key)
    texts = tokens_of(model.config, rows=2, length=6)
    batch = {"tokens": texts.reshape(1, 12), "decoder_target_tokens": texts.reshape(1, 12)}
    packed = jax.jit(lambda model, batch: model.hidden_of(batch))(
        model, batch | {"segment_ids": jnp.arange(12)[None] // 6}
    )
    np.testing.assert_allclose(model.logits(packed).reshape(2, 6, -1), forward(model, texts), atol=2e-5)


@pytest.mark.slow
def test_a_network_makes_it_and_is_left_behind(key, tmp_path):
    """A plain prefix with the same outputs is saved, in PEFT's layout where PEFT has it."""
    method = Prefix(prefix_length=4, projection=8)
    for model, layout in ((random_t5(TINY), OURS), (random_decoder(LLAMA), PEFTS)):
        tuned = filled(adapted(model, method), key)
        save_adapter(tuned, method, select(model, method), tmp_path, base_name="tiny")
        assert layout_of(tmp_path) == layout
        loaded, found, _ = load_adapter(tmp_path, model)
        assert found == Prefix(prefix_length=4)
        tokens = (tokens_of(model.config),) * (2 if layout == OURS else 1)
        np.testing.assert_allclose(forward(loaded, *tokens), forward(tuned, *tokens), atol=1e-5)


def test_a_network_is_refused_initial_values_and_a_prefix_is_not_merged():
    with pytest.raises(UserError, match="prefix_init is 'normal'.* leave one of the two out"):
        Prefix(projection=8, init="normal")
    with pytest.raises(UserError, match="prefix_init is 'zeros'; expected 'vocabulary' or 'normal'"):
        Prefix(init="zeros")
    with pytest.raises(UserError, match="cannot be merged"):
        merge(adapted(random_t5(TINY)))


def test_a_prefix_of_some_layers_is_kept_in_our_layout(tmp_path):
    model = random_decoder(LLAMA)
    chosen = select(model, PREFIX, Selection(layers=[0]))
    save_adapter(attach(model, PREFIX, chosen, jax.random.key(0)), PREFIX, chosen, tmp_path, base_name="tiny")
    assert layout_of(tmp_path) == OURS


@pytest.mark.parametrize("kind", ["gpt_neo", "mistral", "llama"])
def test_of_layers_with_a_window_pefts_layout_is_not_written_and_reading_it_is_told(kind, tmp_path):
    """PEFT hides a prefix from queries beyond the window, and jpeft does not."""
    model = random_decoder({**TINY_DECODERS, **MORE}[kind])
    tuned, windowed = adapted(model), bool(model.config.windowed)
    save_adapter(tuned, PREFIX, select(model, PREFIX), tmp_path, base_name="")
    assert layout_of(tmp_path) == (OURS if windowed else PEFTS)
    named = {name: np.asarray(value) for name, value in named_leaves(tuned, Adapter).items()}
    config = peft_config(model, PREFIX, select(model, PREFIX))
    _, _, notes = read_peft(config, peft_tensors(model, Prefix, named), model, source="here")
    assert [
        f"with a window of {model.config.window} tokens see the prefix from any distance" in note for note in notes
    ] == ([True] if windowed else [])


def test_learned_positions_count_a_prefix(key):
    model = adapted(random_decoder(TINY_DECODERS["gpt_neo"]))
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        jax.eval_shape(model, jax.ShapeDtypeStruct((1, 60), jnp.int32))
