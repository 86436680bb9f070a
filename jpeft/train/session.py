"""What the runs of one process share: the loaded base, prepared data, compiled programs."""

from typing import Any

from jpeft.program import Program
from jpeft.recent import Recent
from jpeft.train.meeting import Meeting


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
