"""Break down the time of jpeft's compiled programs by kind of operation, with the share of peak speed of each.

  python -m benchmarks.breakdown --size small                      a LoRA training step
  python -m benchmarks.breakdown --size mini --work validation --method full --rows 4 --input-length 104

The ceiling is the measured speed of a large matrix product. The products of `mini` and FLAN-T5-small are too small to
reach it, and part of the time goes into operations without products; the table shows how much each costs.
"""

import argparse
import collections
import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.operations import Operation, measure
from benchmarks.sides import ceiling
from benchmarks.work import METHODS, SIZES, Size, write_checkpoint

WORKS = {"train": ours.train_step, "validation": ours.validation}
_NARROW = 32  # a product with a smaller dimension belongs to an adapter or to few rows


@dataclasses.dataclass
class Share:
    """Totals of one kind of operation in one run of a program."""

    seconds: float = 0.0
    flops: float = 0.0
    runs: float = 0.0


def main(argv: Sequence[str] | None = None) -> dict[str, Share]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--work", choices=WORKS, default="train")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, help="rows of a batch (default: the size's own)")
    parser.add_argument("--input-length", type=int)
    parser.add_argument("--target-length", type=int)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args(argv)
    asked = {name: getattr(arguments, name) for name in ("rows", "input_length", "target_length")}
    asked = {name: number for name, number in asked.items() if number is not None}
    if min(arguments.runs, *asked.values(), 1) < 1:
        parser.error("--rows, --input-length, --target-length and --runs begin at 1")
    size = dataclasses.replace(SIZES[arguments.size], **asked)

    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(size, Path(directory), dropout_rate=0.0)
        work = WORKS[arguments.work](Path(directory), size, arguments.method, dtype=arguments.dtype)
        work()
        work()
    operations, seconds = measure(work, work.program.compiled[0].as_text(), runs=arguments.runs)
    shares = by_kind(operations, size)
    batch = f"{size.rows} x ({size.input_length} + {size.target_length}) tokens"
    title = f"{arguments.work}, {arguments.method}, {arguments.size}, {batch}, {arguments.dtype}"
    Console().print(_table(title, shares, seconds, ceiling("ours", arguments.dtype)))
    return shares


def by_kind(operations: Iterable[Operation], size: Size) -> dict[str, Share]:
    """Sum up seconds, FLOPs and runs by kind of operation, the longest-running kind first."""
    shares: dict[str, Share] = collections.defaultdict(Share)
    for operation in operations:
        share = shares[kind_of(operation, size)]
        share.seconds += operation.seconds
        share.flops += operation.flops
        share.runs += operation.runs
    return dict(sorted(shares.items(), key=lambda item: -item[1].seconds))


def kind_of(operation: Operation, size: Size) -> str:
    """Classify an operation by the shapes of its first matrix product."""
    if not operation.products:
        return "elementwise, copies"
    product = operation.products[0]
    sides = (*product.result, product.summed)
    if size.vocab_size in sides:
        return "output layer"
    if len(product.result) > 2:
        return "attention"
    if min(sides) < _NARROW:
        return "adapter"
    return "layers"


def _table(title: str, shares: dict[str, Share], seconds: float, ceiling: float) -> Table:
    table = Table("", title=title)
    for column in ("ms", "share", "operations", "GFLOP", "GFLOP/s", "of the ceiling"):
        table.add_column(column, justify="right")
    rest = seconds - sum(share.seconds for share in shares.values())
    for kind, share in {**shares, "between, update": Share(seconds=rest)}.items():
        cells = [f"{share.seconds * 1e3:.1f}", f"{100 * share.seconds / seconds:.0f} %"]
        cells.append(f"{share.runs:.0f}" if share.runs else "")
        if share.flops:
            speed = share.flops / share.seconds
            cells += [f"{share.flops / 1e9:.1f}", f"{speed / 1e9:.0f}", f"{100 * speed / ceiling:.0f} %"]
        table.add_row(kind, *cells)
    flops = sum(share.flops for share in shares.values())
    whole = [f"{seconds * 1e3:.1f}", "", "", f"{flops / 1e9:.1f}", f"{flops / seconds / 1e9:.0f}"]
    table.add_section()
    table.add_row("all", *whole, f"{100 * flops / seconds / ceiling:.0f} %")
    return table


if __name__ == "__main__":
    main()
