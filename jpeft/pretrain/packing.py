"""Packs several examples into one row, so that little of a batch is padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_OPEN_ROWS = 64  # rows filled at the same time: with more, packing is tighter and slower


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """Token ids of an input and its target, including what surrounds them."""

    input: np.ndarray
    target: np.ndarray


def assign_rows(lengths: np.ndarray, room_of_row: Sequence[int]) -> list[list[int]]:
    """Assigns examples to rows: each goes to the fullest open row that it fits into, or to a new one.

    Args:
      lengths: `[examples, sides]`, tokens of each example on each side of a row, such as encoder and decoder.
      room_of_row: tokens that fit on each side; no example may have more.

    Returns:
      For each row, the indices of its examples.
    """
    room = np.zeros((0, len(room_of_row)), np.int64)
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
            room = np.concatenate([room, [list(room_of_row)]])
            open_rows.append(len(rows))
            rows.append([])
        room[place] -= length
        rows[open_rows[place]].append(example)
    return rows
