"""Which functions of the package are checked against their annotations while tests run, and by what.

`--jaxtyping-packages` puts `jaxtyping.jaxtyped` on every function. Its bookkeeping of dimensions, and what it makes
for a function that is defined anew at each call of another, took a fifth of all tests' time. So a function that speaks
of no array's shape is checked by beartype alone, and such a one within another not at all.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

_jaxtyped = jaxtyping.jaxtyped


def checked(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """In the place of `jaxtyping.jaxtyped`: as much checking as a function's annotations have to say."""
    if function is None:
        return lambda function: checked(function, typechecker=typechecker)
    if isinstance(function, classmethod | staticmethod):
        return type(function)(checked(function.__func__, typechecker=typechecker))
    if dataclasses.is_dataclass(function) and "__init__" in vars(function):
        function.__init__ = checked(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    annotations = list(function.__annotations__.values())
    if any(map(_speaks_of_shapes, annotations)):
        return _jaxtyped(function, typechecker=typechecker)
    if not annotations or "<locals>" in function.__qualname__:
        return function
    return beartype.beartype(function)


def _speaks_of_shapes(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_speaks_of_shapes(part) for part in typing.get_args(annotation))


jaxtyping.jaxtyped = checked
