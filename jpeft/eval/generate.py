"""Answers of a model to the inputs of a split."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.data.batches import Shape, Tokens, eval_order, fitting_shape, padded
from jpeft.model.decode import beam_search, greedy
from jpeft.model.tokenizer import Tokenizer


def make_generate(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Returns `(adapter, base, inputs) -> tokens: [batch, max_length]`, ready to compile."""
    scored = make_generate_scored(graphdef, max_length=max_length, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, inputs):
        return scored(adapter, base, inputs).tokens

    return generate


def make_generate_scored(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Makes a function that generates like `make_generate`'s and also says how likely its tokens are: a `Generated`."""
    search = greedy if num_beams == 1 else functools.partial(beam_search, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, inputs):
        return search(nnx.merge(graphdef, adapter, base), inputs, max_length=max_length)

    return generate


def answers(
    generate: Callable, adapter: nnx.State, base: nnx.State, tokens: Tokens, tokenizer: Tokenizer, **batching: Any
) -> list[str]:
    """One answer per row of `tokens`, in its order; `batching` as of `by_row`."""
    generated = by_row(generate, adapter, base, tokens.inputs, **batching)
    return tokenizer.decode([row.tolist() for row in generated])


def by_row(
    program: Callable,
    adapter: nnx.State,
    base: nnx.State,
    inputs: Sequence[np.ndarray],
    *,
    shapes: Sequence[Shape],
    batch_size: int,
    part: slice = slice(None),
    pad_token_id: int = 0,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[Any]:
    """Calls `program` on batches of the token rows and returns its results row by row, as NumPy arrays.

    Equal inputs (E2E has several references for each) are computed once; their results are equal anyway.

    Args:
      program: `(adapter, base, inputs: [batch, length]) -> ` a tree of arrays `[batch, ...]`.
      part: the rows of each batch that this process gives to `program`, where there are several; all get all results.
      on_batch: called after each batch with the number of `inputs` that it was for.
    """
    first_row: dict[bytes, int] = {}
    same = [first_row.setdefault(ids.tobytes(), row) for row, ids in enumerate(inputs)]
    distinct = sorted(first_row.values())
    rows_per_input = collections.Counter(same)
    lengths = np.array([(len(inputs[row]), 1) for row in distinct])

    result_of: dict[int, Any] = {}
    for batch in eval_order(lengths, batch_size=batch_size):
        shape = fitting_shape(shapes, lengths[batch])
        rows = [distinct[i] for i in batch]
        batch_inputs = padded([inputs[row] for row in rows], (batch_size, shape[0]), pad_token_id)
        results = jax.tree.map(np.asarray, program(adapter, base, batch_inputs[part]))
        result_of.update((row, jax.tree.map(lambda leaf, i=i: leaf[i], results)) for i, row in enumerate(rows))
        on_batch(sum(rows_per_input[row] for row in rows))
    return [result_of[row] for row in same]
