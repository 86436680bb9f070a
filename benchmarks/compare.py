"""Compare jpeft with transformers + PEFT on PyTorch: training steps, validation, generation, start-up and memory.

  python -m benchmarks.compare --size small                     everything; about 15 minutes on two quiet cores
  python -m benchmarks.compare --size mini --only train,validation
  python -m benchmarks.compare --size small --dropout 0.1 --only train
  python -m benchmarks.compare --size smollm2                   the sizes of SmolLM2-135M, decoder-only
  python -m benchmarks.compare --size smollm2 --dtype bfloat16  for CPUs with AMX or AVX512-BF16

Both sides load one random checkpoint and get the same batches, each in its own process; they take turns. The ratios are
the result; on a shared machine the seconds are only indicative.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.sides import Side
from benchmarks.timing import Timing, alternate
from benchmarks.work import METHODS, SIZES, T5Size, write_checkpoint

PARTS = ("train", "inside", "validation", "generation", "startup")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides' products")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    parts, methods = arguments.only.split(","), arguments.methods.split(",")
    if unknown := {*parts} - {*PARTS} | {*methods} - {*METHODS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if arguments.dropout and not isinstance(SIZES[arguments.size], T5Size):
        parser.error(f"--dropout: {arguments.size} has none; the sizes of T5 have.")

    console = Console()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory)
        write_checkpoint(SIZES[arguments.size], checkpoint, dropout_rate=arguments.dropout)
        bench = _Bench(arguments.size, arguments.dtype, checkpoint, methods, arguments.repeats, console)
        for part in parts:
            getattr(bench, part)()
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
    return bench.figures


class _Bench:
    """The parts of the benchmark, one method each, and their figures."""

    def __init__(self, size: str, dtype: str, checkpoint: Path, methods: Sequence[str], repeats: int, console: Console):
        self.size, self.dtype, self.checkpoint = size, dtype, checkpoint
        self.methods, self.repeats, self.console = methods, repeats, console
        self.figures: dict[str, Any] = {"machine": machine(), "size": size, "dtype": dtype}

    def train(self) -> None:
        """Time a training step of every method."""
        table = _table("training step", "method", "jpeft s", "torch s", "torch / jpeft", "of the ceiling", "torch's")
        for method in self.methods:
            self._add("train", table, method, SIZES[self.size].train_flops(method), "train_step", name=method)
        self.console.print(table)

    def validation(self) -> None:
        """Time the validation loss of a batch."""
        table = _table("validation", "method", "jpeft s", "torch s", "torch / jpeft", "of the ceiling", "torch's")
        size = SIZES[self.size]
        for method in self.methods:
            flops = size.forward_flops(method, rows=size.rows)
            self._add("validation", table, method, flops, "validation", name=method)
        self.console.print(table)

    def generation(self) -> None:
        """Time greedy decoding at two batch sizes, of the bare model and with each adapter."""
        size = SIZES[self.size]
        table = _table(f"{size.target_length} greedy tokens", "model, rows", "jpeft s", "torch s", "torch / jpeft")
        for rows in (size.rows, 4 * size.rows):
            for method in (None, *(m for m in self.methods if m != "full")):
                self._add(
                    "generation", table, f"{method or 'bare'}, {rows}", None, "generation", name=method, rows=rows
                )
        self.console.print(table)

    def inside(self) -> None:
        """Compare jpeft's own training steps: methods with full tuning, later layers with all layers."""
        works = {method: {"name": method} for method in self.methods}
        works |= {f"{m}, later layers": {"name": m, "ablated": "later"} for m in ("lora", "ia3") if m in works}
        sides = {name: self._side("ours", "train_step", **work) for name, work in works.items()}
        times = alternate({name: side.call for name, side in sides.items()}, self.repeats)
        for side in sides.values():
            side.close()
        table = _table("jpeft's own training steps", "method", "s", "of full tuning's", "of all layers'")
        for name, timing in times.items():
            whole = times[name.partition(",")[0]] if "," in name else None
            table.add_row(name, str(timing), _share(timing, times.get("full")), _share(timing, whole))
        self.figures["inside"] = {name: timing.seconds for name, timing in times.items()}
        self.console.print(table)

    def startup(self) -> None:
        """Measure the time to the end of the first step, with a cold and a warm compilation cache, and peak memory."""
        columns = ("jpeft cold s", "warm s", "torch s", "jpeft GB", "torch GB", "jpeft / torch")
        table = _table("start-up and memory", "method", *columns)
        found = self.figures["startup"] = {}
        for method in self.methods:
            with tempfile.TemporaryDirectory() as cache:
                probes = [self._start_up(side, method, cache) for side in ("ours", "ours", "theirs")]
            found[method] = dict(zip(("cold", "warm", "theirs"), probes, strict=True))
            gigabytes = [probe["peak_memory_bytes"] / 1e9 for probe in probes[1:]]
            seconds = [f"{probe['seconds']:.1f}" for probe in probes]
            shown = [f"{gb:.2f}" for gb in gigabytes]
            table.add_row(method, *seconds, *shown, f"{gigabytes[0] / gigabytes[1]:.2f}")
        self.console.print(table)

    def _side(self, side: str, work: str, /, **options: Any) -> Side:
        return Side(side, work, self.checkpoint, self.size, dtype=self.dtype, **options)

    def _start_up(self, side: str, method: str, cache: str) -> dict[str, float]:
        started = self._side(side, "train_step", name=method, environment={"JPEFT_CACHE": cache})
        for _ in range(2):
            started.call()
        found = {"seconds": started.start_up_seconds, "peak_memory_bytes": started.peak_memory_bytes()}
        started.close()
        return found

    def _add(self, part: str, table: Table, label: str, flops: float | None, work: str, **options: Any) -> None:
        sides = {name: self._side(name, work, **options) for name in ("ours", "theirs")}
        times = alternate({name: side.call for name, side in sides.items()}, self.repeats)
        ours, theirs = times["ours"], times["theirs"]
        row: dict[str, Any] = {"ours": ours.seconds, "theirs": theirs.seconds, "ratio": theirs.median / ours.median}
        row["first"] = {name: side.first for name, side in sides.items()}
        cells = [str(ours), str(theirs), f"{row['ratio']:.2f}"]
        if flops is not None:
            for name, side in sides.items():
                row[f"{name}_of_ceiling"] = flops / times[name].median / side.ceiling(self.dtype)
                cells.append(f"{100 * row[f'{name}_of_ceiling']:.0f} %")
        for side in sides.values():
            side.close()
        self.figures.setdefault(part, {})[label] = row
        table.add_row(label, *cells)


def _share(timing: Timing, of: Timing | None) -> str:
    return "" if of is None else f"{timing.median / of.median:.3f}"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(first, title=title)
    for other in others:
        table.add_column(other, justify="right")
    return table


def machine() -> dict[str, Any]:
    """The cores, package versions and date of the measurement."""
    from importlib.metadata import version

    packages = ("jax", "flax", "torch", "transformers", "peft")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
