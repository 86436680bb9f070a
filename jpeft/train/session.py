"""What the runs of one process share: the loaded base, prepared data, compiled programs."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import jax

from jpeft.program import Program
from jpeft.train.meeting import Meeting

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


class Session:
    """Kept by whoever does several runs in one process, and given to each.

    Bounded, since a grid goes through more models, splits and structures than memory need hold: it runs cells that
    share them one after the other.

    Attributes:
      bases: models without any method, with their tokenizers. Frozen: what trains its base loads its own.
      data: prepared splits.
      programs: compiled functions, one per structure of the model and shapes of its trees.
      zero_shot: answers of a base alone to a test split.
      meeting: where runs in threads of their own ask for programs together; None where one run follows another.
    """

    def __init__(self, meeting: Meeting | None = None):
        self.meeting = meeting
        self.bases: Recent[Any] = Recent(1)
        self.data: Recent[Any] = Recent(6)
        self.programs: Recent[Program] = Recent(48)
        self.zero_shot: Recent[Any] = Recent(16)


def spec(tree: Any) -> Hashable:
    """Structure, shapes and dtypes of a tree: what a compiled program depends on besides its code."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
