"""Random text from phrases with slots: `[a|b]` is one of the two, `{name}` one of the rule's options for `name`."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Rules = Mapping[str, Sequence[str]]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([a-z_]+)(\d*)(?:\.(\d))?\}")
_ARTICLE = re.compile(
    r"\b([Aa]) (?=(?!uni(?!n)|use|usu|one\b|eu)[aeiou]|hour|honest|\$?(?:8|11\b|18\b))", re.IGNORECASE
)


class Draw:
    """Random choices from a seed, the same on every machine.

    They use `random()` only: of Python's generator no other method guarantees the same numbers in later versions.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        """Returns True with probability `share`."""
        return self._random() < share

    def number(self, least: int, most: int) -> int:
        """Returns an integer from `least` to `most`, both included."""
        return least + int(self._random() * (most - least + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Returns one of the options, all equally likely."""
        return options[int(self._random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Returns the options in a random order, as a new list."""
        left = list(options)
        return [left.pop(int(self._random() * len(left))) for _ in options]


class Item:
    """A generator of texts that share their slots' values.

    `{city}` is the same city throughout an item, and `{city2}` another one. An option may have forms, `go/goes/went`:
    `{verb}` is the first and `{verb.2}` the third form of the same verb.

    Args:
      unlike: an item whose values (cities, people and so on) this one must not use.
    """

    def __init__(self, draw: Draw, rules: Rules, *, unlike: "Item | None" = None):
        self._draw = draw
        self._rules = rules
        # Under names that no phrase uses, so that drawing from the same rule avoids them.
        self.kept = {f"{name}0": option for name, option in unlike.kept.items()} if unlike else {}

    def text(self, phrase: str) -> str:
        """Returns a phrase with its slots filled, and with `an` instead of `a` where needed."""
        return _ARTICLE.sub(r"\1n ", self._filled(phrase))

    def _filled(self, phrase: str) -> str:
        if "{" not in phrase and "[" not in phrase:
            return phrase
        while "[" in phrase:  # inner brackets first, and before slots, so that dropped alternatives draw nothing
            phrase = _CHOICE.sub(lambda match: self._draw.pick(match[1].split("|")), phrase)
        return _SLOT.sub(self._slot, phrase)

    def _slot(self, match: re.Match[str]) -> str:
        name, number, form = match.groups()
        key = name + number
        if key not in self.kept:
            option = self._filled(self._draw.pick(self._rules[name]))
            others = {value for other, value in self.kept.items() if other.rstrip("0123456789") == name}
            while option in others:
                option = self._filled(self._draw.pick(self._rules[name]))
            self.kept[key] = option
        return self.kept[key].split("/")[int(form or 0)]


def sentence(text: str) -> str:
    """Capitalises the first character of a text, if it is a letter."""
    return text[:1].upper() + text[1:]
