"""Runs a model on the inputs of a split in padded batches: generation, and any other program over inputs."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.data.batches import Shape, Tokens, eval_order, fitting_shape, padded
from jpeft.model.decode import beam_search, greedy
from jpeft.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How `by_row` batches the rows of a split.

    Attributes:
      shapes: padded shapes, smallest first; a batch takes the first whose input length fits.
      batch_size: rows of a batch; the last one is filled up with padding.
      part: the rows of each batch that this process passes to the program, if several processes share the work; every
        process receives all results.
      padding_id: that fills rows up.
      on_batch: called after each batch with the number of rows that it answered.
    """

    shapes: Sequence[Shape]
    batch_size: int
    part: slice = dataclasses.field(default_factory=lambda: slice(None))
    padding_id: int = 0
    on_batch: Callable[[int], None] = lambda rows: None


def make_generate(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Returns a function `(adapter, base, inputs) -> tokens: [batch, max_length]`, ready to compile."""
    scored = make_generate_scored(graphdef, max_length=max_length, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, inputs):
        return scored(adapter, base, inputs).tokens

    return generate


def make_generate_scored(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Returns a function like `make_generate`'s whose result is a `Generated`, with the tokens' log-probabilities."""
    search = greedy if num_beams == 1 else functools.partial(beam_search, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, inputs):
        return search(nnx.merge(graphdef, adapter, base), inputs, max_length=max_length)

    return generate


def answers(
    generate: Callable,
    adapter: nnx.State,
    base: nnx.State,
    tokens: Tokens,
    tokenizer: Tokenizer,
    batching: Batching,
) -> list[str]:
    """Generates one answer per row of `tokens`, with a program of `make_generate`."""
    generated = by_row(generate, adapter, base, tokens.inputs, batching)
    return tokenizer.decode([row.tolist() for row in generated])


def by_row(
    program: Callable,
    adapter: nnx.State,
    base: nnx.State,
    inputs: Sequence[np.ndarray],
    batching: Batching,
) -> list[Any]:
    """Calls `program` on padded batches of the inputs and returns its results row by row, as NumPy arrays.

    Equal inputs (E2E has several references for each) are computed once.

    Args:
      program: `(adapter, base, inputs: [batch, length]) -> ` a tree of arrays `[batch, ...]`.
      inputs: token ids of each row.
    """
    first_row: dict[bytes, int] = {}
    same = [first_row.setdefault(ids.tobytes(), row) for row, ids in enumerate(inputs)]
    distinct = sorted(first_row.values())
    rows_per_input = collections.Counter(same)
    lengths = np.array([(len(inputs[row]), 1) for row in distinct])

    result_of: dict[int, Any] = {}
    for batch in eval_order(lengths, batch_size=batching.batch_size):
        shape = fitting_shape(batching.shapes, lengths[batch])
        rows = [distinct[i] for i in batch]
        batch_inputs = padded([inputs[row] for row in rows], (batching.batch_size, shape[0]), batching.padding_id)
        results = jax.tree.map(np.asarray, program(adapter, base, batch_inputs[batching.part]))
        result_of.update((row, jax.tree.map(lambda leaf, i=i: leaf[i], results)) for i, row in enumerate(rows))
        batching.on_batch(sum(rows_per_input[row] for row in rows))
    return [result_of[row] for row in same]
