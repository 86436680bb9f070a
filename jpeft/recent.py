"""A few things that were used last, kept to be used again."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The few things that were used last, by what they were made from. Of threads that want the same, one makes it."""

    def __init__(self, size: int):
        self._size = size
        self._lock = threading.RLock()
        self._made: collections.OrderedDict[Hashable, T] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept for `key`, else `make()`, which is kept from then on; the value unused for longest goes."""
        with self._lock:
            if key not in self._made:
                while len(self._made) >= self._size:  # before making: two bases at once may not fit
                    self._made.popitem(last=False)
                self._made[key] = make()
            self._made.move_to_end(key)
            return self._made[key]
