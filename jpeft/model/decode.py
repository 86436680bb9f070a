"""Generation with a key-value cache: greedy decoding and beam search.

Both are pure functions of a model, to be jitted by the caller once per input shape and `max_length`. Each is a single
`jax.lax.while_loop` that ends as soon as every row of the batch has ended.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jpeft.model.language_model import Cache, LanguageModel

_IMPOSSIBLE = -1e9  # the score of a hypothesis that must not be selected


class Generated(NamedTuple):
    """Generated tokens, their mean log-probability, and whether they mean anything.

    Attributes:
      tokens: each row's tokens up to and including `</s>` or another of the model's end tokens, then padding; the start
        token is not included.
      log_prob: the mean log-probability of a row's tokens in nats, counting `</s>` (which an answer cut at `max_length`
        does not have) but not padding. Meaningless for a row whose input is all padding.
      is_number: whether the largest logit was a finite number at every token of a row; if not, its tokens are
        meaningless.
    """

    tokens: Int[Array, "batch max_length"]
    log_prob: Float[Array, " batch"]
    is_number: Bool[Array, " batch"]


def likeliest(logits: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
    """Return the index of each row's largest value, int32; of equal ones the first.

    Two plain reductions in place of `argmax`, which XLA does not vectorise on a CPU: over a vocabulary it took half as
    long as the matrix product that makes the logits.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    vocab = logits.shape[-1]
    first = jnp.min(jnp.where(logits == largest, jnp.arange(vocab, dtype=jnp.int32), vocab), axis=-1)
    return jnp.minimum(first, vocab - 1)  # if all logits are NaN, none equals the largest


def _is_end(tokens: Int[Array, "..."], ends: Sequence[int]) -> Bool[Array, "..."]:
    return functools.reduce(jnp.logical_or, [tokens == end for end in ends])


def greedy(model: LanguageModel, inputs: Int[Array, "batch length"], *, max_length: int) -> Generated:
    """Greedy decoding: take the most likely token at every step, until an end token or `max_length`.

    Rows whose input is all padding, which fill up a batch, generate only padding. If the caller uses only `tokens`, the
    compiler removes the computation of log-probabilities.

    Args:
      model: the model to generate with.
      inputs: token ids, padded.
      max_length: the largest number of tokens to generate.
    """
    config = model.config
    decoder = model.begin(inputs, max_length)
    batch = inputs.shape[0]
    tokens = jnp.full((batch, max_length), config.padding_id, jnp.int32)
    ended = jnp.all(inputs == config.padding_id, axis=1)

    def unfinished(carry):
        position, _, _, ended, *_ = carry
        return (position < max_length) & ~jnp.all(ended)

    def step(carry):
        position, last, tokens, ended, caches, is_number, total, length = carry
        logits, caches = decoder.step(last, caches, position)
        new = jnp.where(ended, config.padding_id, likeliest(logits))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new[:, None], position, axis=1)
        largest = jnp.max(logits, axis=-1)
        is_number &= ended | jnp.isfinite(largest)
        log_prob = largest - jax.nn.logsumexp(logits, axis=-1)  # of the likeliest token
        total, length = total + jnp.where(ended, 0.0, log_prob), length + ~ended
        return position + 1, new, tokens, ended | _is_end(new, config.ends), caches, is_number, total, length

    nothing = jnp.ones(batch, bool), jnp.zeros(batch), jnp.zeros(batch, jnp.int32)
    init = (jnp.int32(0), decoder.first, tokens, ended, decoder.caches, *nothing)
    _, _, tokens, _, _, is_number, total, length = jax.lax.while_loop(unfinished, step, init)
    return Generated(tokens, total / jnp.maximum(length, 1), is_number)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Beams:
    """State of beam search.

    A running hypothesis' score is the sum of its tokens' log-probabilities; a finished one's is that sum divided by
    `length ** length_penalty`. The finished ones are sorted, best first.
    """

    position: Int[Array, ""]
    tokens: Int[Array, "batch beams max_length"]
    scores: Float[Array, "batch beams"]
    finished_tokens: Int[Array, "batch beams max_length"]
    finished_scores: Float[Array, "batch beams"]
    is_finished: Bool[Array, "batch beams"]
    can_improve: Bool[Array, " batch"]
    is_number: Bool[Array, " batch"]
    caches: list[Cache]


class _Candidates(NamedTuple):
    """The likeliest continuations of a row's beams by one token, best first.

    Attributes:
      tokens: each hypothesis with its new token.
      scores: sums of log-probabilities.
      beam: the index of the beam that a candidate continues.
      ends: whether its new token is an end token, or the last that fits.
    """

    tokens: Int[Array, "batch candidates max_length"]
    scores: Float[Array, "batch candidates"]
    beam: Int[Array, "batch candidates"]
    ends: Bool[Array, "batch candidates"]


def beam_search(
    model: LanguageModel,
    inputs: Int[Array, "batch length"],
    *,
    max_length: int,
    num_beams: int,
    length_penalty: float = 1.0,
) -> Generated:
    """Beam search as in `transformers` with its default settings (`early_stopping=False`).

    A hypothesis is scored by the sum of its tokens' log-probabilities divided by `length ** length_penalty`. A row
    stops when its best running hypothesis, scored at its present length, is worse than its worst finished one. A
    hypothesis that reaches `max_length` counts as finished. The returned `log_prob` is that score, the mean
    log-probability if the penalty is 1.

    Args:
      model: the model to generate with.
      inputs: token ids, padded; rows of only padding generate only padding.
      max_length: the largest number of tokens to generate.
      num_beams: the number of hypotheses per row.
      length_penalty: the exponent of the length; larger values favour longer answers.
    """
    config = model.config
    decoder = model.begin(inputs, max_length, num_beams)
    batch = inputs.shape[0]
    num_candidates = (1 + len(config.ends)) * num_beams  # see `_candidates`

    def unfinished(state: _Beams):
        return (state.position < max_length) & jnp.any(state.can_improve)

    def step(state: _Beams) -> _Beams:
        before = jnp.take(state.tokens, jnp.maximum(state.position - 1, 0), axis=2)
        last = jnp.where(state.position == 0, decoder.first.reshape(batch, num_beams), before)
        logits, caches = decoder.step(last.reshape(-1), state.caches, state.position)
        are_numbers = jnp.isfinite(jnp.max(logits, axis=-1)).reshape(batch, num_beams).all(axis=1)
        candidates = _candidates(state, logits, num_candidates, config.ends)
        tokens, scores, beam = _select_running(candidates, num_beams)
        state = _add_finished(state, candidates, length_penalty)
        rows = (jnp.arange(batch)[:, None] * num_beams + beam).reshape(-1)  # of the decoder's batch
        return dataclasses.replace(
            state,
            position=state.position + 1,
            tokens=tokens,
            scores=scores,
            can_improve=_can_improve(state, scores, length_penalty),
            is_number=state.is_number & (are_numbers | ~state.can_improve),
            caches=[cache.reordered(rows) for cache in caches],
        )

    padding = jnp.full((batch, num_beams, max_length), config.padding_id, jnp.int32)
    impossible = jnp.full((batch, num_beams), _IMPOSSIBLE)
    state = _Beams(
        position=jnp.int32(0),
        tokens=padding,
        scores=impossible.at[:, 0].set(0.0),  # all beams start equal: only the first may branch
        finished_tokens=padding,
        finished_scores=impossible,
        is_finished=jnp.zeros((batch, num_beams), bool),
        can_improve=~jnp.all(inputs == config.padding_id, axis=1),
        is_number=jnp.ones(batch, bool),
        caches=decoder.caches,
    )
    state = jax.lax.while_loop(unfinished, step, state)
    return Generated(state.finished_tokens[:, 0], state.finished_scores[:, 0], state.is_number)


def _gather_beams(tree, beam: Int[Array, "batch new_beams"]):
    """Select beams along axis 1 of every `[batch, beams, ...]` leaf."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, beam.reshape(beam.shape + (1,) * (x.ndim - 2)), axis=1), tree)


def _candidates(
    state: _Beams, logits: Float[Array, "rows vocab"], num_candidates: int, ends: Sequence[int]
) -> _Candidates:
    """The best continuations of a row's beams.

    With `num_beams` candidates for each end token and as many again, `num_beams` of them do not end.
    """
    batch, num_beams, max_length = state.tokens.shape
    vocab = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits).reshape(batch, num_beams, vocab) + state.scores[:, :, None]
    scores, flat = jax.lax.top_k(log_probs.reshape(batch, -1), num_candidates)
    beam, new = flat // vocab, (flat % vocab).astype(jnp.int32)
    tokens = jax.lax.dynamic_update_slice_in_dim(
        _gather_beams(state.tokens, beam), new[:, :, None], state.position, axis=2
    )
    return _Candidates(tokens, scores, beam, _is_end(new, ends) | (state.position + 1 == max_length))


def _select_running(candidates: _Candidates, num_beams: int) -> tuple[Array, Array, Array]:
    """Tokens, scores and previous beams of the best candidates that do not end."""
    scores = jnp.where(candidates.ends, candidates.scores + _IMPOSSIBLE, candidates.scores)
    scores, chosen = jax.lax.top_k(scores, num_beams)
    tokens, beam = _gather_beams((candidates.tokens, candidates.beam), chosen)
    return tokens, scores, beam


def _add_finished(state: _Beams, candidates: _Candidates, length_penalty: float) -> _Beams:
    """Keep the best of the finished hypotheses and of the candidates that end and are among the first `num_beams`."""
    num_beams, num_candidates = state.scores.shape[1], candidates.scores.shape[1]
    among_best = jnp.arange(num_candidates) < num_beams
    may_finish = candidates.ends & among_best[None] & state.can_improve[:, None]
    ended_scores = jnp.where(may_finish, _penalised(state, candidates.scores, length_penalty), _IMPOSSIBLE)
    pool = (
        jnp.concatenate([state.finished_tokens, candidates.tokens], axis=1),
        jnp.concatenate([state.is_finished, may_finish], axis=1),
    )
    scores, best = jax.lax.top_k(jnp.concatenate([state.finished_scores, ended_scores], axis=1), num_beams)
    tokens, is_finished = _gather_beams(pool, best)
    return dataclasses.replace(state, finished_tokens=tokens, finished_scores=scores, is_finished=is_finished)


def _can_improve(
    state: _Beams, running_scores: Float[Array, "batch beams"], length_penalty: float
) -> Bool[Array, " batch"]:
    """Whether a row's best running hypothesis is better than its worst finished one, or fewer than all are finished."""
    best_running = _penalised(state, running_scores[:, 0], length_penalty)
    worst = jnp.min(state.finished_scores, axis=1, keepdims=True)
    worst = jnp.where(state.is_finished, worst, _IMPOSSIBLE)
    return state.can_improve & jnp.any(best_running[:, None] > worst, axis=1)


def _penalised(state: _Beams, scores: Float[Array, "batch *beams"], length_penalty: float) -> Array:
    """Scores of hypotheses with a token at the present position, divided by `length ** length_penalty`."""
    return scores / (state.position + 1).astype(jnp.float32) ** length_penalty
