"""Runs a model on the inputs of a split in padded batches: generation, and any other program over inputs."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from jpeft.data.batches import Shape, Tokens, eval_order, fitting_shape, padded
from jpeft.errors import RunFailed
from jpeft.model.decode import beam_search, greedy
from jpeft.model.tokenizer import Tokenizer
from jpeft.words import counted

NOT_FINITE = "compute in float32 (dtype), which holds larger numbers; if it does already, the weights hold NaN"


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


class Unscored(NamedTuple):
    """`tokens` and `is_number` of a `Generated`, without the log-probabilities, which are then not computed."""

    tokens: Int[Array, "batch max_length"]
    is_number: Bool[Array, " batch"]


def make_generate(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Returns a function `(adapter, base, inputs) -> Unscored`, ready to compile."""
    scored = make_generate_scored(graphdef, max_length=max_length, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, inputs):
        made = scored(adapter, base, inputs)
        return Unscored(made.tokens, made.is_number)

    return generate


def make_generate_scored(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Returns a function like `make_generate`'s whose result is a `Generated`, with the tokens' log-probabilities."""
    search = greedy if num_beams == 1 else functools.partial(beam_search, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, inputs):
        return search(nnx.merge(graphdef, adapter, base), inputs, max_length=max_length)

    return generate


@dataclasses.dataclass(frozen=True)
class GeneratedAnswers:
    """The generated answers to a split.

    Attributes:
      texts: one per row.
      unended: how many reached the most tokens of an answer before their end.
    """

    texts: list[str]
    unended: int


def answers(
    generate: Callable,
    adapter: nnx.State,
    base: nnx.State,
    tokens: Tokens,
    tokenizer: Tokenizer,
    batching: Batching,
) -> GeneratedAnswers:
    """Generates one answer per row of `tokens`, with a program of `make_generate`.

    Raises:
      RunFailed: the model computes infinity or NaN for a row.
    """
    generated = by_row(generate, adapter, base, tokens.inputs, batching)
    if wrong := [row for row, made in enumerate(generated) if not made.is_number]:
        raise RunFailed(
            f"the model computes infinity or NaN for {len(wrong):,} of {counted(len(generated), 'row')}, first for "
            f"row {wrong[0]}; {NOT_FINITE}."
        )
    rows = [made.tokens.tolist() for made in generated]
    return GeneratedAnswers(tokenizer.decode(rows), num_unended(rows, tokenizer))


def num_unended(rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> int:
    """How many generated answers have no end token, since they reached the most tokens of an answer."""
    return sum(not tokenizer.ends.intersection(row) for row in rows)


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
