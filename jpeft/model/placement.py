"""What an activation is, for whoever decides on which devices it is.

The network names a few of its arrays; unless somebody listens, naming one does nothing.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from jaxtyping import Array

Place = Callable[[Array, str], Array]
_place: contextvars.ContextVar[Place] = contextvars.ContextVar("place", default=lambda x, kind: x)


def placed(x: Array, kind: str) -> Array:
    """The array `x`, cut over devices as `kind` says: `hidden`, `heads`, `cache`, `logits`, `columns` or `rows`.

    Without a place (`placing`), `x` as it is.
    """
    return _place.get()(x, kind)


def current_place() -> Place:
    """Who decides at present: what is traced under one must not be taken for what another would make of it."""
    return _place.get()


@contextlib.contextmanager
def placing(place: Place) -> Iterator[None]:
    """While entered, which is while a function is traced, `place` decides where named activations are."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)
