"""Several examples in one row, so that hardly a position is padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jpeft.model.family import Batch

_OPEN_ROWS = 64  # rows that are filled at the same time: more fill better and take longer to look through


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """Token ids of an input and its target, `</s>` included."""

    input: np.ndarray
    target: np.ndarray


def assign_rows(lengths: np.ndarray, input_length: int, target_length: int) -> list[list[int]]:
    """Which examples share a row: each goes to the fullest open row that still holds it, or to a new one.

    Args:
      lengths: `[examples, 2]`, tokens of each input and target; none may be longer than a row.
    """
    room = np.zeros((0, 2), np.int64)
    rows: list[list[int]] = []
    open_rows: list[int] = []
    for example, length in enumerate(lengths):
        fits = np.flatnonzero((room >= length).all(axis=1))
        if len(fits):
            place = int(fits[np.argmin(room[fits, 0])])
        else:
            if len(open_rows) == _OPEN_ROWS:
                fullest = int(np.argmin(room.min(axis=1)))
                room = np.delete(room, fullest, axis=0)
                del open_rows[fullest]
            place = len(open_rows)
            room = np.concatenate([room, [[input_length, target_length]]])
            open_rows.append(len(rows))
            rows.append([])
        room[place] -= length
        rows[open_rows[place]].append(example)
    return rows


def pack(
    rows: Sequence[Sequence[TokenPair]],
    *,
    input_length: int,
    target_length: int,
    start_token_id: int,
    pad_token_id: int,
) -> Batch:
    """A batch of packed rows.

    Returns what T5's `Family.batch` does, with the targets of each example shifted right behind a start token of
    its own, and `encoder_segment_ids: [batch, enc_len]`, `decoder_segment_ids: [batch, dec_len]` int32: 1 for a row's
    first example, 2 for its second, 0 for padding.
    """

    def blank(length: int, value: int = 0) -> np.ndarray:
        return np.full((len(rows), length), value, np.int32)

    batch = {
        "encoder_input_tokens": blank(input_length, pad_token_id),
        "encoder_segment_ids": blank(input_length),
        "decoder_input_tokens": blank(target_length, pad_token_id),
        "decoder_target_tokens": blank(target_length, pad_token_id),
        "decoder_segment_ids": blank(target_length),
    }
    for i, examples in enumerate(rows):
        enc, dec = 0, 0
        for segment, example in enumerate(examples, start=1):
            enc_end, dec_end = enc + len(example.input), dec + len(example.target)
            batch["encoder_input_tokens"][i, enc:enc_end] = example.input
            batch["encoder_segment_ids"][i, enc:enc_end] = segment
            batch["decoder_input_tokens"][i, dec] = start_token_id
            batch["decoder_input_tokens"][i, dec + 1 : dec_end] = example.target[:-1]
            batch["decoder_target_tokens"][i, dec:dec_end] = example.target
            batch["decoder_segment_ids"][i, dec:dec_end] = segment
            enc, dec = enc_end, dec_end
    return {**batch, "decoder_loss_weights": (batch["decoder_segment_ids"] > 0).astype(np.float32)}
