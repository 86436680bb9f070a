"""The process that compiles for a device that is not there: `python -m jpeft.plan.child DEVICE HOSTS`.

It reads questions from standard input, a JSON object a line, and answers each with one: `made`, `user_error` or
`failed`. Whatever libraries print goes to standard error. When the input ends, whoever asked is gone: so is this
process then, in the middle of a program too.
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
    """Answers every line of `questions`, a JSON object, by a line of `answers`, until there are no more.

    Args:
      argv: the name of the device, and over how many hosts a mesh of it is spread.
    """
    workshop = Workshop(device_named(argv[0]), hosts=int(argv[1]))
    for line in questions:
        print(json.dumps(answer(workshop, json.loads(line))), file=answers, flush=True)


def answer(workshop: Workshop, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question: `{"made": ...}`, `{"user_error": ...}` or `{"failed": ...}`.

    Args:
      question: `run`, its config; `lengths`; and `what`: `held`, or the step whose program is to be compiled.
    """
    run, lengths, what = Run.from_config(question["run"]), Lengths(**question["lengths"]), question["what"]
    try:
        made = workshop.held(run, lengths) if what == "held" else workshop.compile(run, lengths, what)
    except UserError as error:
        return {"user_error": str(error)}
    except Exception as error:
        return {"failed": kind_and_first_line(error)}
    return {"made": dataclasses.asdict(made)}


def lines_of(whoever_asks: IO[str]) -> Iterator[str]:
    """Lines as they come. Ends this process at their end, whatever it is at: a compiler does not look up."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in whoever_asks:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield waiting.get()


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.argv[1:], lines_of(sys.stdin), own)
