"""A user's own metrics: functions named by `module:name`.

Loading one runs its code. `load` is called only for names from the user's own config or command line, never for names
in an adapter, a result or any other file that may be untrusted.
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
    """Raises `UserError` if a name is not of the form `module:function`."""
    if not _NAME.fullmatch(name):
        raise UserError(f"the metric {name[:80]!r} names no function; expected module:name, such as my_metrics:length.")


def load(name: str) -> Metric:
    """Imports a user's function as a metric, which runs its module's code.

    The module may lie in the working directory. The function takes `(predictions: list[str], references:
    list[list[str]])`, with each row's own target first among its references, and returns one number, or one number per
    row to be averaged. It may have the attributes `higher_is_better` (default True) and `range` (default unbounded).

    Raises:
      UserError: the function does not exist, or importing it fails.
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
    """Loads the user's functions among these names of metrics."""
    for name in names:
        if is_own(name):
            load(name)


def loaded(name: str) -> Metric | None:
    """Returns a metric that `load` has imported; None for any other name."""
    return _loaded.get(name)


class OwnMetric(Metric):
    """A metric computed by a user's function; see `load` for its signature."""

    @classmethod
    def of_function(cls, name: str, function: Callable[..., Any]) -> "OwnMetric":
        """Makes a metric of a function. Raises `UserError` if one of its attributes is invalid."""
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
        """Calls the function. Raises `UserError` if it fails, or does not return finite numbers within its range."""
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
    """Describes what a function returned, for a one-line message."""
    if values.ndim > 1 or (values.ndim and not isinstance(given, Sequence)):
        return f"an array of {values.dtype.name}s of shape {list(values.shape)}"
    if isinstance(given, Sequence):
        return f"{type(given).__name__} of {len(given):,}"
    return " ".join(repr(given).split())[:60]
