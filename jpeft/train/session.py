"""Caches that the runs of one process share: the loaded base, prepared data, compiled programs."""

from typing import Any

from jpeft.program import Program
from jpeft.recent import Recent
from jpeft.train.meeting import Meeting


class Session:
    """Caches shared by several runs of one process.

    Their sizes are bounded, since a grid uses more models, splits and structures than fit into memory; it executes
    cells that share them one after the other.

    Attributes:
      bases: models without a method, with their tokenizers. They are frozen: methods that train the base load their
        own.
      data: prepared splits.
      programs: compiled programs, one per structure of the model and shapes of its trees.
      zero_shot: answers of the untuned base to a test split.
      meeting: batches the program calls of runs in threads of their own; None if runs follow one another.
    """

    def __init__(self, meeting: Meeting | None = None):
        self.meeting = meeting
        self.bases: Recent[Any] = Recent(1)
        self.data: Recent[Any] = Recent(6)
        self.programs: Recent[Program] = Recent(48)
        self.zero_shot: Recent[Any] = Recent(16)
