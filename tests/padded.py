"""Rows of a split as a batch for a T5."""

from jpeft.data.batches import Tokens
from jpeft.model.t5_config import T5Config
from jpeft.model.t5_family import T5_FAMILY


def padded(tokens: Tokens, rows, shape, *, batch_size, start_token_id=0, pad_token_id=0):
    config = T5Config(decoder_start_token_id=start_token_id, pad_token_id=pad_token_id)
    inputs, targets = ([part[row] for row in rows] for part in (tokens.inputs, tokens.targets))
    weights = None if tokens.weights is None else [float(tokens.weights[row]) for row in rows]
    return T5_FAMILY.batch(inputs, targets, shape, batch_size=batch_size, config=config, row_weights=weights)
