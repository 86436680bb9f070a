"""Regular expressions that may come from a stranger's file: matched within a limit of time."""

import math
import re
import time
from typing import Any

import regex

from jpeft.errors import UserError

_LONGEST = 2_000  # characters; those that PEFT writes name modules and stay far below
_SECONDS = 2.0
_MOST_REPEATS = 10_000  # all counts in braces multiplied: repeats within repeats are copied out when compiled


class Pattern:
    """An expression of Python's `re`, for whole texts.

    An expression such as `(a+)+b` takes time exponential in the text; one of these gives up instead. All matches of one
    `Pattern` together may take two seconds.
    """

    def __init__(self, expression: str, *, what: str, error: type[Exception] = UserError):
        """Args: `what` names the expression in messages: `method.pattern`, or a file and its key.

        Raises:
          error: it is no regular expression, is longer than 2,000 characters, or has counted repeats (`{n}`) whose
            product is over 10,000.
        """
        self._what, self._error = what, error
        self._left = _SECONDS
        if len(expression) > _LONGEST:
            raise error(f"{what} is an expression of {len(expression):,} characters; expected {_LONGEST:,} at most.")
        if re.search(r"\{[^{}]*<[^{}]*\}", expression):  # to `re` these are characters, to `regex` counts of mistakes
            raise error(f"{what} {expression!r} holds braces around a comparison; write \\{{ where one is meant.")
        counts = [int(count) for count in re.findall(r"[{,](\d{1,9})(?=[,}])", expression)]
        if math.prod(count for count in counts if count > 1) > _MOST_REPEATS:
            raise error(f"{what} {expression!r} repeats parts more than {_MOST_REPEATS:,} times; use * or +.")
        try:
            # What `re` does not take is `regex`'s own: calls of groups by themselves, which fill memory, for one.
            re.compile(expression)
            self._compiled: Any = regex.compile(expression)
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as cause:
            raise error(f"{what} {expression!r} is no regular expression ({cause}).") from None
        self.expression = expression

    def fullmatch(self, text: str) -> Any:
        """A match of the whole of `text`, or None.

        Raises:
          error: the time for all matches is used up.
        """
        return self._within("fullmatch", text)

    def match(self, text: str) -> Any:
        """A match at the start of `text`, or None. Raises as `fullmatch`."""
        return self._within("match", text)

    def _within(self, how: str, text: str) -> Any:
        started = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            return getattr(self._compiled, how)(text, timeout=self._left)
        except TimeoutError:
            raise self._error(
                f"{self._what} {self.expression!r} takes more than {_SECONDS:g} seconds to match; write it without "
                "repetitions of repetitions."
            ) from None
        finally:
            self._left -= time.monotonic() - started
