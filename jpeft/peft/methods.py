"""The methods by name, in the two readings that the benchmark knows."""

import inspect
from typing import Any

from jpeft.errors import UserError
from jpeft.peft.base import Method
from jpeft.peft.bitfit import BitFit
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Full, Lora, Ia3, BitFit, Prompt)}
READINGS = ("paper", "official")


def build(name: str, reading: str = "paper", options: dict[str, Any] | None = None) -> Method:
    """A method in a reading: `paper` is Pu et al.'s, `official` its authors'. `options` override that reading's fields.

    Raises:
      UserError: an unknown name or reading, or an option that this method does not have in this reading.
    """
    if name not in METHODS:
        raise UserError(f"method.name is {name!r}; expected one of {', '.join(METHODS)}.")
    if reading not in READINGS:
        raise UserError(f"method.reading is {reading!r}; expected 'paper' or 'official'.")
    factory = METHODS[name]
    if reading == "official":
        factory = getattr(METHODS[name], "official", METHODS[name])
    known = set(inspect.signature(factory).parameters)
    for option in options or {}:
        if option not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise UserError(f"method.{option} is no option of {name} in the {reading} reading; {has}.")
    return factory(**(options or {}))
