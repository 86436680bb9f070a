"""The two sides in separate processes, so that their threads, allocators and memory do not interfere.

`python -m benchmarks.sides ours|theirs` answers requests on standard input, one JSON object a line; `Side` sends them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.work import SIZES

_CEILING_WIDTH = 1536  # of the square matrices whose product measures the peak speed


class Side:
    """A process of one side, `ours` or `theirs`, that does one piece of work."""

    def __init__(
        self,
        side: str,
        work: str,
        checkpoint: Path,
        size: str,
        /,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ):
        """Start the process and do the work once.

        Args:
          side: `ours` or `theirs`.
          work: name of the function in the side's module that prepares the work.
          checkpoint: directory of the model.
          size: name in `SIZES`.
          environment: variables of the process that differ from this one's.
          options: further arguments of that function.
        """
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sides", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.first = self._ask(make=work, checkpoint=str(checkpoint), size=size, options=options)["value"]
        self.start_up_seconds = time.perf_counter() - started

    def call(self) -> float:
        """Do the work once; returns the seconds it took."""
        return self._ask(call=True)["seconds"]

    def ceiling(self, dtype: str) -> float:
        """FLOP/s of a large matrix product in `dtype`, measured now."""
        return self._ask(ceiling=dtype)["flops"]

    def peak_memory_bytes(self) -> int:
        """Peak resident memory of the process so far."""
        return self._ask(memory=True)["bytes"]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a side ended over {request}; what it printed stands above.")
        return json.loads(answer)


def ceiling(name: str, dtype: str = "float32") -> float:
    """FLOP/s of a large matrix product in JAX (`ours`) or PyTorch (`theirs`), the best of five; sums are float32."""
    shape = (_CEILING_WIDTH, _CEILING_WIDTH)
    if name == "ours":
        import jax

        x = jax.numpy.ones(shape, dtype)
        matmul = jax.jit(lambda x: jax.numpy.matmul(x, x, preferred_element_type="float32"))

        def product() -> None:
            matmul(x).block_until_ready()
    else:
        import torch

        y = torch.ones(shape, dtype=getattr(torch, dtype))

        def product() -> None:
            y @ y

    product()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started)
    return 2 * _CEILING_WIDTH**3 / min(seconds)


def _peak_memory_bytes() -> int:
    # Not getrusage, whose peak a child inherits from its parent; nor jpeft's, which would load JAX on both sides.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _answer(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries goes to standard error, not between the answers
    if name == "ours":
        from jpeft.files import cache_directory
        from jpeft.program import use_compilation_cache

        use_compilation_cache(cache_directory() / "compiled")
    call = None
    for line in sys.stdin:
        request = json.loads(line)
        if "make" in request:
            make = getattr(import_module(f"benchmarks.{name}"), request["make"])
            call = make(Path(request["checkpoint"]), SIZES[request["size"]], **request["options"])
            value = call()
            answer = {"value": value if isinstance(value, float) else value.tolist()}
        elif "call" in request:
            assert call is not None
            started = time.perf_counter()
            call()
            answer = {"seconds": time.perf_counter() - started}
        elif "ceiling" in request:
            answer = {"flops": ceiling(name, request["ceiling"])}
        else:
            answer = {"bytes": _peak_memory_bytes()}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _answer(sys.argv[1])
