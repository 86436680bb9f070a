"""Answers of a model to the inputs of a split."""

import collections
import functools
from collections.abc import Callable, Sequence

import numpy as np
from flax import nnx

from jpeft.data.batches import Shape, Tokens, eval_order, fitting_shape
from jpeft.model.decode import beam_search, greedy
from jpeft.model.tokenizer import Tokenizer


def make_generate(graphdef: nnx.GraphDef, *, max_length: int, num_beams: int = 1) -> Callable:
    """Returns `(adapter, base, encoder_input_tokens) -> tokens: [batch, max_length]`, ready to compile."""
    search = greedy if num_beams == 1 else functools.partial(beam_search, num_beams=num_beams)

    def generate(adapter: nnx.State, base: nnx.State, encoder_input_tokens):
        return search(nnx.merge(graphdef, adapter, base), encoder_input_tokens, max_length=max_length)

    return generate


def answers(
    generate: Callable,
    adapter: nnx.State,
    base: nnx.State,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    shapes: Sequence[Shape],
    batch_size: int,
    part: slice = slice(None),
    pad_token_id: int = 0,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """One answer per row of `tokens`, in its order.

    Equal inputs (E2E has several references for each) are generated for once; their answers are equal anyway.

    Args:
      part: the rows of each batch that this process gives to `generate`, where there are several; all get all answers.
      on_batch: called after each batch with the number of rows of `tokens` that it answered.
    """
    first_row: dict[bytes, int] = {}
    same = [first_row.setdefault(ids.tobytes(), row) for row, ids in enumerate(tokens.inputs)]
    distinct = sorted(first_row.values())
    rows_per_input = collections.Counter(same)
    lengths = np.array([(len(tokens.inputs[row]), 1) for row in distinct])

    answer_of: dict[int, str] = {}
    for batch in eval_order(lengths, batch_size=batch_size):
        shape = fitting_shape(shapes, lengths[batch])
        rows = [distinct[i] for i in batch]
        inputs = np.full((batch_size, shape[0]), pad_token_id, np.int32)
        for i, row in enumerate(rows):
            inputs[i, : len(tokens.inputs[row])] = tokens.inputs[row]
        generated = np.asarray(generate(adapter, base, inputs[part]))[: len(rows)]
        answer_of.update(zip(rows, tokenizer.decode(generated.tolist()), strict=True))
        on_batch(sum(rows_per_input[row] for row in rows))
    return [answer_of[row] for row in same]
