"""A process that imports jpeft once and runs each call in a fork of itself: `python forked.py < calls`.

A call is a line of JSON, `{"argv": [...], "cwd": ..., "seconds": ...}`, and its outcome another. JAX is imported but
not started, since a fork of a process that has started it cannot use it. `argv[0]` is `main.py` or `jpeft`.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback

_MOST_ADDRESSES = 24 * 2**30  # bytes: a runaway call must end before it exhausts the machine


def warm() -> None:
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rich.console  # noqa: F401
    import transformers  # noqa: F401


def child(argv: list[str], cwd: str, out: int, err: int) -> None:
    from jpeft.cli import main, run_experiment

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(cwd)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
    status = 99
    try:
        status = run_experiment(argv) if argv[0] == "main.py" else main(argv[1:])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def do(call: dict) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(call["argv"], call["cwd"], out.fileno(), err.fileno())
        late = False
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() - started > call["seconds"] and not late:
                os.kill(pid, signal.SIGKILL)
                late = True
            time.sleep(0.01)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace")[-20_000:])
        return {
            "status": os.waitstatus_to_exitcode(status),
            "late": late,
            "seconds": time.monotonic() - started,
            "megabytes": usage.ru_maxrss / 1024,
            "out": texts[0],
            "err": texts[1],
        }


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warm()
    for line in sys.stdin:
        answers.write(json.dumps(do(json.loads(line))) + "\n")
