"""A user's own metric: a function by `module:name`.

Naming one runs its code. It is imported for one who names it in a config or on a command line of their own, by `load`,
and never for a name that stands in an adapter's, a result's or any other file that may be a stranger's.
"""

import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jpeft.errors import UserError
from jpeft.eval.metrics.base import UNBOUNDED, Answered, Computed, Metric
from jpeft.trouble import kind_and_first_line

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
_loaded: dict[str, Metric] = {}


def is_own(name: str) -> bool:
    """Whether a metric's name is that of a user's own function."""
    return ":" in name


def check_name(name: str) -> None:
    """Raises `UserError`: this cannot be the name of a function in a module."""
    if not _NAME.fullmatch(name):
        raise UserError(f"the metric {name[:80]!r} names no function; expected module:name, such as my_metrics:length.")


def load(name: str) -> Metric:
    """Imports a user's function as a metric; its module's code runs. Modules of the working directory are found.

    The function takes `(predictions: list[str], references: list[list[str]])`, each row's own target first among its
    references, and gives one number, or one number a row, of which the mean counts. Attributes of it may say more:
    `higher_is_better` (True), `range` (unbounded).

    Raises:
      UserError: there is no such function, or importing it fails.
    """
    if name in _loaded:
        return _loaded[name]
    check_name(name)
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        reason = kind_and_first_line(error, 200)
        raise UserError(f"the metric {name!r} cannot be imported ({reason}).") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise UserError(f"the metric {name!r}: the module has no function {function!r}; name one that it has.")
    _loaded[name] = metric = OwnMetric.of_function(name, found)
    return metric


def load_all(names: Iterable[str]) -> None:
    """Imports those of these metrics that are a user's functions, as `load`."""
    for name in names:
        if is_own(name):
            load(name)


def loaded(name: str) -> Metric | None:
    """A user's metric that `load` has imported before; None of any other name."""
    return _loaded.get(name)


class OwnMetric(Metric):
    """A metric that a user's own function computes; `load` says what it is given and has to give."""

    @classmethod
    def of_function(cls, name: str, function: Callable[..., Any]) -> "OwnMetric":
        """Raises `UserError`: an attribute of the function cannot be what it says."""
        given, better = getattr(function, "range", UNBOUNDED), getattr(function, "higher_is_better", True)
        try:
            low, high = map(float, given)
        except (TypeError, ValueError):
            low = high = math.nan
        if not isinstance(better, bool) or not low < high:
            raise UserError(
                f"the metric {name!r} has range={given!r} and higher_is_better={better!r}; expected two numbers, the "
                "lower first, and True or False."
            )

        def whole(answered: Answered) -> Any:
            return function(list(answered.predictions), [list(r) for r in answered.references])

        return cls(name, name, scores=whole, higher_is_better=better, range=(low, high))

    def of(self, answered: Answered) -> Computed:
        """Raises `UserError`: the function gives neither a number nor a number a row, or not a finite one."""
        assert self.scores is not None
        rows = len(answered.predictions)
        try:
            given = self.scores(answered)
            values = np.asarray(given)
        except Exception as error:
            reason = kind_and_first_line(error, 200)
            raise UserError(f"the metric {self.name!r} fails on {rows:,} rows ({reason}).") from error
        expected = f"one finite number, or one for each of {rows:,} rows, within its range"
        shown = _in_words(given, values)
        if values.dtype.kind not in "bif" or values.shape not in ((), (rows,)):
            raise UserError(f"the metric {self.name!r} gave {shown}; expected {expected}.")
        low, high = self.range
        if not (np.isfinite(values).all() and (values >= low).all() and (values <= high).all()):
            raise UserError(f"the metric {self.name!r} gave {shown}; expected {expected}, {low:g} to {high:g}.")
        if values.shape == ():
            return Computed(self, float(values))
        scores = [float(value) for value in values]
        return Computed(self, math.fsum(scores) / rows, scores=scores)


def _in_words(given: Any, values: np.ndarray) -> str:
    """What a function gave, for one line."""
    if values.ndim > 1 or (values.ndim and not isinstance(given, Sequence)):
        return f"an array of {values.dtype.name}s of shape {list(values.shape)}"
    if isinstance(given, Sequence):
        return f"{type(given).__name__} of {len(given):,}"
    return " ".join(repr(given).split())[:60]
