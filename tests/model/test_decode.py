"""Properties of greedy and beam search; `test_golden.py` compares their tokens with another implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.leaves import fill, named_leaves
from jpeft.model.decode import beam_search, greedy, likeliest
from tests.conftest import TINY, make_batch, random_t5

MAX_LENGTH = 24
ROWS = 12


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model():
    """A random model whose rows end early, late and never; without changes it would repeat one token forever."""
    model = random_t5(TINY, seed=6)
    draw = np.random.default_rng(6)
    values = {name: np.array(value) for name, value in named_leaves(model, nnx.Param).items()}
    values["decoder/final_norm/scale"] = draw.standard_normal(TINY.d_model)  # random signs prevent repetition
    for name, value in values.items():
        if name.endswith(("q/kernel", "o/kernel", "wo/kernel")):
            value *= 2
    values["lm_head/kernel"] *= 2
    values["lm_head/kernel"][:, TINY.eos_token_id] *= 3
    fill(model, nnx.Param, lambda name, shape, part: values[name][part], np.float32)
    return model


@pytest.fixture(scope="module")
def tokens():
    return make_batch(TINY, rows=ROWS, enc_len=8, dec_len=2, seed=1)["encoder_input_tokens"]


def _for_tokens(search, **options):
    """A compiled search that returns only the tokens."""
    return jax.jit(lambda model, inputs: search(model, inputs, max_length=MAX_LENGTH, **options).tokens)


_greedy = _for_tokens(greedy)
_one_beam, _four_beams = (_for_tokens(beam_search, num_beams=beams) for beams in (1, 4))


@pytest.fixture(scope="module")
def chosen(model, tokens):
    """The greedy tokens of the batch."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(_greedy(model, tokens))


def _lengths(generated) -> np.ndarray:
    """Lengths up to and including `</s>`; a random model may generate the padding id before it."""
    ends = np.asarray(generated) == TINY.eos_token_id
    return np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, MAX_LENGTH)


def _log_probs(model, tokens, generated) -> np.ndarray:
    """Log-probabilities `[batch, max_length, vocab]` at each generated token, from one pass over the sequence."""
    decoder_input = jnp.pad(jnp.asarray(generated), ((0, 0), (1, 0)))[:, :-1]
    return np.asarray(jax.nn.log_softmax(jax.jit(lambda m, *tokens: m(*tokens))(model, tokens, decoder_input)))


def _mean_log_prob(model, tokens, generated) -> np.ndarray:
    each = np.take_along_axis(_log_probs(model, tokens, generated), np.asarray(generated)[..., None], axis=-1)[..., 0]
    is_real = np.arange(MAX_LENGTH) < _lengths(generated)[:, None]
    return np.sum(each * is_real, axis=1) / np.sum(is_real, axis=1)


def test_the_text_is_varied(chosen):
    lengths = _lengths(chosen)
    assert min(lengths) < 10 and max(lengths) == MAX_LENGTH and len(set(lengths)) >= 4
    assert max(len(set(row)) for row in chosen) >= 8


def test_greedy_with_a_cache_is_the_argmax_of_the_full_pass(model, tokens, chosen):
    best = _log_probs(model, tokens, chosen).argmax(axis=-1)
    for row, length in enumerate(_lengths(chosen)):
        np.testing.assert_array_equal(chosen[row, :length], best[row, :length])


def test_the_cache_follows_the_segments(model, tokens, chosen):
    split = nnx.clone(model)
    split.decoder.cut([1])
    np.testing.assert_array_equal(_greedy(split, tokens), chosen)


@pytest.mark.parametrize("search", [_greedy, _four_beams], ids=["greedy", "beam"])
def test_nothing_but_padding_after_the_end(search, model, tokens):
    ended = 0
    for row in np.asarray(search(model, tokens)):
        ends = np.flatnonzero(row == TINY.eos_token_id)
        if len(ends):
            assert np.all(row[ends[0] + 1 :] == TINY.pad_token_id)
            ended += 1
    assert 0 < ended


@pytest.mark.parametrize("beams", [None, 4], ids=["greedy", "beam"])
def test_any_of_several_ends_is_the_end(beams, model, tokens, chosen):
    several = nnx.clone(model)
    others = tuple(np.argsort(np.bincount(chosen[chosen > 1]))[-8:].tolist())  # its most frequent tokens
    several.config = dataclasses.replace(TINY, other_eos_token_ids=others)
    search = _greedy if beams is None else _four_beams
    generated = np.asarray(search(several, tokens))
    assert np.isin(generated, others).any()
    for row, before in zip(generated, chosen, strict=True):
        ends = np.flatnonzero(np.isin(row, several.config.ends))
        if len(ends):
            assert np.all(row[ends[0] + 1 :] == TINY.pad_token_id)
        if beams is None:
            length = ends[0] + 1 if len(ends) else MAX_LENGTH
            np.testing.assert_array_equal(row[:length], before[:length])


class _ByTheLastToken:
    """A model whose next token depends only on the last one, and its decoder."""

    caches: list = []
    hidden_of = hidden_of_labels = logits = longest_input = staticmethod(lambda *_: None)  # unused

    def __init__(self, config, probabilities):
        self.config, self._table = config, jnp.log(probabilities)

    def begin(self, inputs, max_length, num_beams=1):
        self.first = jnp.zeros(inputs.shape[0] * num_beams, jnp.int32)
        return self

    def step(self, tokens, caches, position):
        return self._table[tokens], caches


def test_beams_that_go_on_are_as_many_however_many_ends_are_likelier():
    """The second beam's first token ranks below three end tokens; its continuation is nearly certain."""
    table = np.full((12, 12), 1 / 12, np.float32)  # uniform after most tokens
    table[0] = [0.02, 0.15, 0.15, 0.15, 0.02, 0.02, 0.02, 0.3, 0.14, 0.01, 0.01, 0.01]
    table[8], table[9] = (np.where(np.arange(12) == token, 0.99, 0.01 / 11) for token in (9, 1))
    config = dataclasses.replace(TINY, vocab_size=12, other_eos_token_ids=(2, 3))
    found = beam_search(_ByTheLastToken(config, table), jnp.ones((1, 1), jnp.int32), max_length=4, num_beams=2).tokens
    assert found.tolist() == [[8, 9, 1, 0]]


@pytest.mark.parametrize("search", [_greedy, _four_beams], ids=["greedy", "beam"])
def test_nothing_is_generated_for_a_row_of_padding(search, model, tokens):
    with_padding = tokens.at[2].set(TINY.pad_token_id)
    generated = np.asarray(search(model, with_padding))
    assert np.all(generated[2] == TINY.pad_token_id)
    others = np.arange(ROWS) != 2
    np.testing.assert_array_equal(generated[others], np.asarray(search(model, tokens))[others])


@pytest.mark.parametrize("search", [_greedy, _four_beams], ids=["greedy", "beam"])
def test_rows_are_searched_alone(search, model, tokens):
    whole = np.asarray(search(model, tokens))
    np.testing.assert_array_equal(search(model, tokens[::-1]), whole[::-1])


@pytest.mark.parametrize("search", [greedy, functools.partial(beam_search, num_beams=4)], ids=["greedy", "beam"])
def test_a_row_whose_logits_are_no_numbers_is_named(search, model, tokens):
    broken, rare = nnx.clone(model), 319
    assert not np.any(tokens == rare)
    embedding = broken.shared.embedding
    embedding.set_value(embedding[...].at[rare].set(jnp.nan))
    with_rare = tokens.at[3, 0].set(rare).at[5].set(TINY.pad_token_id)
    find = jax.jit(lambda model, inputs: search(model, inputs, max_length=MAX_LENGTH))
    assert find(model, with_rare).is_number.all()
    found = find(broken, with_rare)
    assert not found.is_number[3] and found.is_number[5]
    others = ~np.any(np.asarray(found.tokens) == rare, axis=1) & (np.arange(ROWS) != 3)
    assert others.sum() > ROWS / 2 and np.asarray(found.is_number)[others].all()
    np.testing.assert_array_equal(found.tokens[others], find(model, with_rare).tokens[others])


@pytest.mark.parametrize("search", [greedy, functools.partial(beam_search, num_beams=4)], ids=["greedy", "beam"])
def test_an_infinite_logit_is_no_number(search, model, tokens):
    broken = nnx.clone(model)
    kernel = broken.lm_head.kernel
    kernel.set_value(kernel[...].at[0, 7].set(jnp.inf))  # the logit of 7 is infinite, in some rows negatively
    found = jax.jit(lambda model, inputs: search(model, inputs, max_length=4))(broken, tokens)
    assert not found.is_number.all()


@pytest.mark.parametrize("search", [greedy, functools.partial(beam_search, num_beams=2)], ids=["greedy", "beam"])
def test_64_bit_numbers_change_no_token(search, model, tokens):
    """As found: with `jax_enable_x64`, without which float64 is refused, every generation ended in a TypeError."""
    with jax.enable_x64(True):
        found = jax.jit(lambda model, inputs: search(model, inputs, max_length=6).tokens)(model, tokens[:2])
    np.testing.assert_array_equal(found, search(model, tokens[:2], max_length=6).tokens)


def test_one_beam_is_greedy(model, tokens, chosen):
    np.testing.assert_array_equal(_one_beam(model, tokens), chosen)


def test_beams_are_greedy_where_the_model_is_sure(model, tokens):
    peaked = nnx.clone(model)
    peaked.lm_head.kernel.set_value(peaked.lm_head.kernel[...] * 1000)
    np.testing.assert_array_equal(_four_beams(peaked, tokens), _greedy(peaked, tokens))


def test_beams_find_better_hypotheses_than_greedy(model, tokens, chosen):
    found = _four_beams(model, tokens)
    assert np.any(np.asarray(found) != chosen)
    gain = _mean_log_prob(model, tokens, found) - _mean_log_prob(model, tokens, chosen)
    assert gain.mean() > 0.01


def test_greedy_tells_the_mean_log_probability_of_its_tokens(model, tokens, chosen):
    scored = jax.jit(functools.partial(greedy, max_length=MAX_LENGTH))(model, tokens)
    np.testing.assert_array_equal(scored.tokens, chosen)
    np.testing.assert_allclose(scored.log_prob, _mean_log_prob(model, tokens, chosen), atol=1e-5)


def test_beams_tell_the_mean_log_probability_of_the_best(model, tokens):
    scored = jax.jit(functools.partial(beam_search, max_length=MAX_LENGTH, num_beams=4))(model, tokens)
    np.testing.assert_array_equal(scored.tokens, _four_beams(model, tokens))
    np.testing.assert_allclose(scored.log_prob, _mean_log_prob(model, tokens, scored.tokens), atol=1e-5)


def test_greedy_computes_no_probabilities_that_nobody_asked_for(model, tokens):
    def logarithms(search) -> int:
        return search.lower(model, tokens).compile().as_text().count(" log(")

    # Only the loop is counted: buckets of relative positions are computed on the host.
    with_them = jax.jit(functools.partial(greedy, max_length=MAX_LENGTH))
    assert (logarithms(_greedy), logarithms(with_them)) == (0, 1)


def test_the_first_of_equal_logits_is_taken():
    logits = jnp.asarray(
        [[0.0, 3.0, -1.0, 3.0], [-2.0, -5.0, -2.0, -2.0], [-1e9, -1e9, -1e9, -1e9], [0, 1, jnp.inf, 5]]
    )
    np.testing.assert_array_equal(likeliest(logits), jnp.argmax(logits, axis=-1))


def test_logits_that_are_no_numbers_still_give_a_token_of_the_vocabulary():
    assert 0 <= int(likeliest(jnp.full((1, 4), jnp.nan))[0]) < 4
