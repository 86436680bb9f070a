"""The child process that compiles for a device: `python -m jpeft.plan.child DEVICE HOSTS`.

It reads requests from standard input, one JSON object per line, and answers each with a line: `made`, `user_error` or
`failed`. What libraries print goes to standard error. At the end of the input it exits at once, even while compiling.
"""

import dataclasses
import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.plan.compile import Workshop
from jpeft.plan.devices import device_named
from jpeft.plan.memory import Lengths
from jpeft.trouble import kind_and_first_line


def main(argv: list[str], questions: Iterable[str], answers: IO[str]) -> None:
    """Answers every request with a line.

    Args:
      argv: the name of the device, and the number of hosts.
      questions: requests, one JSON object per line.
      answers: the file to write answers to.
    """
    workshop = Workshop(device_named(argv[0]), hosts=int(argv[1]))
    for line in questions:
        print(json.dumps(answer(workshop, json.loads(line))), file=answers, flush=True)


def answer(workshop: Workshop, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request: `{"made": ...}`, `{"user_error": ...}` or `{"failed": ...}`.

    Args:
      question: `run`, its config; `lengths`; and `what`: `held`, or the step whose program to compile.
    """
    run, lengths, what = Run.from_config(question["run"]), Lengths(**question["lengths"]), question["what"]
    try:
        made = workshop.held(run, lengths) if what == "held" else workshop.compile(run, lengths, what)
    except UserError as error:
        return {"user_error": str(error)}
    except Exception as error:
        return {"failed": kind_and_first_line(error)}
    return {"made": dataclasses.asdict(made)}


def lines_of(requests: IO[str]) -> Iterator[str]:
    """Yields lines as they arrive; at the end of the file it exits the process, since a compiler cannot be stopped."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in requests:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield waiting.get()


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.argv[1:], lines_of(sys.stdin), own)
