"""Generation with a key-value cache: greedy and beam search, each one compiled loop that ends when every row has.

Both are pure functions of a model; the caller jits them once per input shape and `max_length`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jpeft.model.language_model import Cache, LanguageModel

_IMPOSSIBLE = -1e9  # score of a hypothesis that must not be chosen


class Generated(NamedTuple):
    """Generated tokens, and how sure the model is of them.

    Attributes:
      tokens: up to and with `</s>`, or any other of the model's ends, padding after it; the start token is not among
        them.
      log_prob: mean log-probability in nats of a row's tokens, `</s>` counted and padding not; an answer that is cut at
        `max_length` has no `</s>` to count. Without meaning where the input is padding alone.
    """

    tokens: Int[Array, "batch max_length"]
    log_prob: Float[Array, " batch"]


def likeliest(logits: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
    """The first index of each row's largest value, int32.

    As two plain reductions: XLA reduces pairs of value and index, which `argmax` is, one by one on a CPU, and a
    vocabulary's took half as long as its matrix product.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    vocab = logits.shape[-1]
    first = jnp.min(jnp.where(logits == largest, jnp.arange(vocab, dtype=jnp.int32), vocab), axis=-1)
    return jnp.minimum(first, vocab - 1)  # where every logit is NaN none equals the largest


def _is_end(tokens: Int[Array, "..."], ends: Sequence[int]) -> Bool[Array, "..."]:
    return functools.reduce(jnp.logical_or, [tokens == end for end in ends])


def greedy(model: LanguageModel, inputs: Int[Array, "batch length"], *, max_length: int) -> Generated:
    """Greedy search: the most likely token at every step, until `</s>` or `max_length`, and its log-probability.

    A row of padding alone gets padding: it fills up a batch. Compiled for its tokens alone, it computes no
    log-probabilities.
    """
    config = model.config
    decoder = model.begin(inputs, max_length)
    batch = inputs.shape[0]
    tokens = jnp.full((batch, max_length), config.pad_token_id, jnp.int32)
    # A row of padding alone fills up a batch: nothing is to be generated for it.
    ended = jnp.all(inputs == config.pad_token_id, axis=1)

    def unfinished(carry):
        position, _, _, ended, *_ = carry
        return (position < max_length) & ~jnp.all(ended)

    def step(carry):
        position, last, tokens, ended, caches, total, length = carry
        logits, caches = decoder.step(last, caches, position)
        new = jnp.where(ended, config.pad_token_id, likeliest(logits))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new[:, None], position, axis=1)
        log_prob = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)  # of the likeliest token
        total, length = total + jnp.where(ended, 0.0, log_prob), length + ~ended
        return position + 1, new, tokens, ended | _is_end(new, config.ends), caches, total, length

    nothing = jnp.zeros(batch), jnp.zeros(batch, jnp.int32)
    init = (jnp.int32(0), decoder.first, tokens, ended, decoder.caches, *nothing)
    _, _, tokens, _, _, total, length = jax.lax.while_loop(unfinished, step, init)
    return Generated(tokens, total / jnp.maximum(length, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Beams:
    """State of beam search. Scores are sums of log-probabilities; a finished one is divided by length ** penalty."""

    position: Int[Array, ""]
    tokens: Int[Array, "batch beams max_length"]
    scores: Float[Array, "batch beams"]
    finished_tokens: Int[Array, "batch beams max_length"]
    finished_scores: Float[Array, "batch beams"]
    is_finished: Bool[Array, "batch beams"]
    can_improve: Bool[Array, " batch"]
    caches: list[Cache]


def _gather_beams(tree, beam: Int[Array, "batch new_beams"]):
    """Selects beams along axis 1 of every `[batch, beams, ...]` leaf."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, beam.reshape(beam.shape + (1,) * (x.ndim - 2)), axis=1), tree)


def beam_search(
    model: LanguageModel,
    inputs: Int[Array, "batch length"],
    *,
    max_length: int,
    num_beams: int,
    length_penalty: float = 1.0,
) -> Generated:
    """The best of `num_beams` hypotheses by mean log-probability, as `transformers` searches with its default settings.

    A hypothesis' score is the sum of its tokens' log-probabilities over its length to the power of `length_penalty`.
    A row stops when its best running hypothesis, at its present length, scores below its worst finished one
    (`early_stopping=False`). A hypothesis that reaches `max_length` counts as finished. `log_prob` is the score that it
    was chosen by: the mean where the penalty is 1.
    """
    config = model.config
    decoder = model.begin(inputs, max_length, num_beams)
    batch = inputs.shape[0]
    tokens = jnp.full((batch, num_beams, max_length), config.pad_token_id, jnp.int32)
    impossible = jnp.full((batch, num_beams), _IMPOSSIBLE)
    num_candidates = (1 + len(config.ends)) * num_beams

    def unfinished(state: _Beams):
        return (state.position < max_length) & jnp.any(state.can_improve)

    def step(state: _Beams) -> _Beams:
        position = state.position
        start = decoder.first.reshape(batch, num_beams)
        before = jnp.take(state.tokens, jnp.maximum(position - 1, 0), axis=2)
        last = jnp.where(position == 0, start, before)
        logits, caches = decoder.step(last.reshape(-1), state.caches, position)
        vocab = logits.shape[-1]

        # As many candidates for each end as beams, and as many again: if every beam's best ones are ends, these remain.
        log_probs = jax.nn.log_softmax(logits).reshape(batch, num_beams, vocab) + state.scores[:, :, None]
        scores, flat = jax.lax.top_k(log_probs.reshape(batch, -1), num_candidates)
        beam, new = flat // vocab, (flat % vocab).astype(jnp.int32)
        candidates = _gather_beams(state.tokens, beam)
        candidates = jax.lax.dynamic_update_slice_in_dim(candidates, new[:, :, None], position, axis=2)
        ends = _is_end(new, config.ends) | (position + 1 == max_length)

        running_scores, chosen = jax.lax.top_k(jnp.where(ends, scores + _IMPOSSIBLE, scores), num_beams)
        running_tokens, running_beam = _gather_beams((candidates, beam), chosen)
        rows = (jnp.arange(batch)[:, None] * num_beams + running_beam).reshape(-1)  # of the decoder's batch

        among_best = jnp.arange(num_candidates) < num_beams
        may_finish = ends & among_best[None] & state.can_improve[:, None]
        length = (position + 1).astype(jnp.float32)
        ended_scores = jnp.where(may_finish, scores / length**length_penalty, _IMPOSSIBLE)
        pool = (
            jnp.concatenate([state.finished_tokens, candidates], axis=1),
            jnp.concatenate([state.is_finished, may_finish], axis=1),
        )
        finished_scores, best = jax.lax.top_k(jnp.concatenate([state.finished_scores, ended_scores], axis=1), num_beams)
        finished_tokens, is_finished = _gather_beams(pool, best)

        hopes = running_scores[:, 0] / length**length_penalty
        worst = jnp.where(is_finished, jnp.min(finished_scores, axis=1, keepdims=True), _IMPOSSIBLE)
        can_improve = state.can_improve & jnp.any(hopes[:, None] > worst, axis=1)
        return _Beams(
            position=position + 1,
            tokens=running_tokens,
            scores=running_scores,
            finished_tokens=finished_tokens,
            finished_scores=finished_scores,
            is_finished=is_finished,
            can_improve=can_improve,
            caches=[cache.reordered(rows) for cache in caches],
        )

    state = _Beams(
        position=jnp.int32(0),
        tokens=tokens,
        scores=impossible.at[:, 0].set(0.0),  # all beams start equal: only the first may branch
        finished_tokens=tokens,
        finished_scores=impossible,
        is_finished=jnp.zeros((batch, num_beams), bool),
        can_improve=~jnp.all(inputs == config.pad_token_id, axis=1),
        caches=decoder.caches,
    )
    state = jax.lax.while_loop(unfinished, step, state)
    return Generated(state.finished_tokens[:, 0], state.finished_scores[:, 0])
