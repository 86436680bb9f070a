"""Helpers to read `config.json` that all families share: limits of sizes, activation names, end-of-text tokens."""

from collections.abc import Sequence
from typing import Any

from jpeft.errors import UserError
from jpeft.words import shortened

# Far above every released model, and far below what an untrusted config would need to fill the memory.
MOST_LAYERS = 512
MOST_CONFIG_BYTES = 4 * 2**20
MOST_ROWS = 2**24  # vocab_size
MOST_WIDTH = 2**20  # every other size

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
_OTHER_NAMES = {"gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python": "gelu", "swish": "silu"}


def activation_called(name: str) -> str:
    """Map a `transformers` activation name to the one of `ACTIVATIONS`; an unknown name is returned as it is."""
    return _OTHER_NAMES.get(name, name)


NO_TOKEN = -1  # fills rows up where any token may end a text


class Ends:
    """Mix-in for configs: the tokens at which generation stops, from `eos_token_id` and `other_eos_token_ids`."""

    eos_token_id: int
    other_eos_token_ids: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of all tokens at which generation stops; the first is the one that ends texts in training."""
        return (self.eos_token_id, *self.other_eos_token_ids)


def several_ends(given: Any) -> dict[str, Any]:
    """Split a list-valued `eos_token_id` of a `config.json` into our two fields, without checking the ids.

    Returns:
      `eos_token_id` (the first) and `other_eos_token_ids` (the rest, without duplicates); empty if `given` is no list.
    """
    if not isinstance(given, list):
        return {}
    first, *others = given or [[]]
    kept = [end for i, end in enumerate(others) if end != first and end not in others[:i]]
    return {"eos_token_id": first, "other_eos_token_ids": tuple(kept)}


def check_ends(ends: Sequence[Any], vocab_size: int, source: str) -> None:
    """Raise `UserError` if one of the end tokens is no id of the vocabulary."""
    for end in ends:
        if type(end) is not int or not 0 <= end < vocab_size:
            raise UserError(
                f"{source}: eos_token_id is {shortened(end)}; expected an integer from 0 to {vocab_size - 1:,}, or "
                "a list of these."
            )
