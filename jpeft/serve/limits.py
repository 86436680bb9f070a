"""The limits on requests to the server."""

import dataclasses

from jpeft.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Attributes:
      inputs: the most inputs of one request.
      body_bytes: the largest body of a request.
      characters: the most characters of one input, all of its columns together.
      queued_rows: the most waiting rows; further requests are told to retry later.
      wait_seconds: how long a row waits for others to join its batch.
      request_seconds: the timeout of a request.
    """

    inputs: int = 16
    body_bytes: int = 1 << 20
    characters: int = 1 << 16
    queued_rows: int = 256
    wait_seconds: float = 0.005
    request_seconds: float = 60.0

    def __post_init__(self):
        for name, flag in _FLAGS.items():
            if getattr(self, name) <= 0:
                raise UserError(f"{flag} is {getattr(self, name):g}; give a number above 0.")
        if self.wait_seconds < 0:
            raise UserError(f"--max-wait-ms is {1000 * self.wait_seconds:g}; give 0 or more.")
        if self.queued_rows < self.inputs:
            raise UserError(
                f"--max-queue is {self.queued_rows}, and a request may have {self.inputs} inputs (--max-inputs), which "
                f"would never find a place; give a --max-queue of at least {self.inputs}, or a --max-inputs of at most "
                f"{self.queued_rows}."
            )


_FLAGS = {  # of the limits that are above 0
    "inputs": "--max-inputs",
    "body_bytes": "--max-body-bytes",
    "characters": "--max-input-chars",
    "queued_rows": "--max-queue",
    "request_seconds": "--timeout",
}
