"""Regular expressions from untrusted files, matched within a time limit."""

import math
import re
import time
from typing import Any

import regex

from jpeft.errors import UserError

_LONGEST = 2_000  # characters; the expressions that PEFT writes list module names and stay far below
_SECONDS = 2.0
_MOST_REPEATS = 10_000  # product of all counts in braces, since compiling expands nested repeats


class Pattern:
    """A regular expression in the syntax of Python's `re` whose matching times out.

    An expression such as `(a+)+b` can take time exponential in the length of the text. All matches of one `Pattern`
    together may take two seconds.
    """

    def __init__(self, expression: str, *, what: str, error: type[Exception] = UserError):
        """Compiles an expression.

        Args:
          what: the name of the expression in messages: `method.pattern`, or a file and its key.

        Raises:
          error: the expression is malformed, is longer than 2,000 characters, or has counted repeats (`{n}`) whose
            product is over 10,000.
        """
        self._what, self._error = what, error
        self._left = _SECONDS
        if len(expression) > _LONGEST:
            raise error(f"{what} is an expression of {len(expression):,} characters; expected {_LONGEST:,} at most.")
        if re.search(r"\{[^{}]*<[^{}]*\}", expression):  # literal text to `re`, fuzzy matching to `regex`
            raise error(f"{what} {expression!r} has a comparison in braces; write \\{{ for a literal brace.")
        counts = [int(count) for count in re.findall(r"[{,](\d{1,9})(?=[,}])", expression)]
        if math.prod(count for count in counts if count > 1) > _MOST_REPEATS:
            raise error(f"{what} {expression!r} repeats parts more than {_MOST_REPEATS:,} times; use * or +.")
        try:
            re.compile(expression)  # refuses the extensions of `regex`, such as recursive groups, which can fill memory
            self._compiled: Any = regex.compile(expression)
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as cause:
            raise error(f"{what} {expression!r} is not a regular expression ({cause}).") from None
        self.expression = expression

    def fullmatch(self, text: str) -> Any:
        """Returns a match of the whole of `text`, or None.

        Raises:
          error: the time limit is used up.
        """
        return self._within("fullmatch", text)

    def match(self, text: str) -> Any:
        """Returns a match at the start of `text`, or None. Raises like `fullmatch`."""
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
                "nested repetitions."
            ) from None
        finally:
            self._left -= time.monotonic() - started
