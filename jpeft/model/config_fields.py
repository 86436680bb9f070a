"""What `config.json` of every family is read by: how large a field may be, activations by name, ends of texts."""

from collections.abc import Sequence
from typing import Any

from jpeft.errors import UserError
from jpeft.words import shortened

# Far above every released model; far below what a config may say to fill memory or to keep a counter busy for hours.
MOST_LAYERS = 512
MOST_CONFIG_BYTES = 4 * 2**20
MOST_ROWS = 2**24  # vocab_size
MOST_WIDTH = 2**20  # every other size

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
_OTHER_NAMES = {"gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python": "gelu", "swish": "silu"}


def activation_called(name: str) -> str:
    """The one of `ACTIVATIONS` that `transformers` means by a name; any other name as it is."""
    return _OTHER_NAMES.get(name, name)


class Ends:
    """The tokens at which generation stops, of a config that has them in these two fields."""

    eos_token_id: int
    other_eos_token_ids: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens at which generation stops, the one that ends texts first."""
        return (self.eos_token_id, *self.other_eos_token_ids)


def several_ends(given: Any) -> dict[str, Any]:
    """`eos_token_id` of a `config.json` as our fields have it where it is a list, else nothing; none is checked."""
    if not isinstance(given, list):
        return {}
    first, *others = given or [[]]
    kept = [end for i, end in enumerate(others) if end != first and end not in others[:i]]
    return {"eos_token_id": first, "other_eos_token_ids": tuple(kept)}


def check_ends(ends: Sequence[Any], vocab_size: int, source: str) -> None:
    """Raises `UserError`: one of them is no id of the vocabulary."""
    for end in ends:
        if type(end) is not int or not 0 <= end < vocab_size:
            raise UserError(
                f"{source}: eos_token_id is {short(end)}; expected an integer from 0 to {vocab_size - 1:,}, or a list "
                "of such."
            )


def short(value: Any) -> str:
    """What a field holds, for messages: a stranger's may be long."""
    return shortened(value, 40)
