"""A small, thread-safe, least-recently-used cache."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Entry(Generic[T]):
    """A place for one value; its lock is held while the value is computed."""

    def __init__(self):
        self.lock = threading.RLock()
        self.values: list[T] = []  # empty until the value is computed


class Recent(Generic[T]):
    """A least-recently-used cache of `size` values, shared by threads.

    Threads that ask for the same key wait for the one that computes its value; other keys are not blocked meanwhile.
    """

    def __init__(self, size: int):
        self._size = size
        self._lock = threading.Lock()  # of `_entries`; never held while a value is computed
        self._entries: collections.OrderedDict[Hashable, _Entry[T]] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the cached value of `key`, or computes it with `make()`, evicting the least recently used value.

        If `make()` raises, nothing is cached, and a thread that waited for the value calls its own `make`.
        """
        entry = self._entry(key)
        with entry.lock:
            if not entry.values:
                entry.values.append(make())
            return entry.values[0]

    def _entry(self, key: Hashable) -> _Entry[T]:
        with self._lock:
            if key not in self._entries:
                while len(self._entries) >= self._size:  # before computing: two bases at once may not fit in memory
                    self._entries.popitem(last=False)
                self._entries[key] = _Entry()
            self._entries.move_to_end(key)
            return self._entries[key]
