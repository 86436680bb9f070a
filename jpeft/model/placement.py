"""Named activations, by which a sharding layout can constrain them without the network knowing about meshes.

A network marks a few activations with `placed`. That is a no-op unless the function is traced within `placing`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from jaxtyping import Array

Place = Callable[[Array, str], Array]
_place: contextvars.ContextVar[Place] = contextvars.ContextVar("place", default=lambda x, kind: x)


def placed(x: Array, kind: str) -> Array:
    """Constrain the sharding of an activation by the function that `placing` set; a no-op outside of `placing`.

    Args:
      x: the activation.
      kind: what it is: `hidden`, `heads`, `cache`, `logits`, `columns` or `rows`.
    """
    return _place.get()(x, kind)


def current_place() -> Place:
    """The function that `placing` set, to be part of the key of caches of traced functions."""
    return _place.get()


@contextlib.contextmanager
def placing(place: Place) -> Iterator[None]:
    """Context manager in which `place(x, kind)` constrains named activations; to be entered while tracing."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)
