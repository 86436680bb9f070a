"""`jpeft plan`: whether a run fits a device, without the device and without loading weights."""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from jpeft.cli.arguments import whole
from jpeft.cli.grid import add_which, cells_of
from jpeft.errors import UserError
from jpeft.words import counted, named_in_bits, shortened, size

_DESCRIPTION = """Computes what a run needs of each device and whether it fits, from shapes alone.

  jpeft plan --config lora_agnews_low --mesh model=4 --device A10
  jpeft plan --config full_samsum_high --mesh fsdp=4 --device v5e --config.train.batch_size=auto
  jpeft plan --config lora_samsum_high --device A10 --devices 4 --best          which mesh is fastest
  jpeft plan --grid --scales low --mesh model=4 --device A10                    every cell of a grid

The run's programs are compiled by the device's own compiler, which needs no such device, no weights and no network:
`pip install 'jpeft[plan-gpu]'` for GPUs, `pip install 'jpeft[plan-tpu]'` for TPUs. Without these, or without --device,
they are compiled for this machine's CPU. Keys of the config are set by --config.KEY=VALUE (jpeft train --help lists
them)."""

_SECONDS_OF_SILENCE = 1.0
_MESH = re.compile(r"(data|fsdp|model)=([1-9][0-9]{0,5})")
_Report = Callable[[str], None]  # takes a line of progress


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft plan` with its flags to the command line."""
    parser = commands.add_parser(
        "plan",
        help="what a run needs of each device, and whether it fits",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE[:CELL]", help="as jpeft train takes it; of a grid: benchmark")
    parser.add_argument(
        "--mesh", default="", metavar="AXES", help="such as model=4 or data=2,model=2; one device if not given"
    )
    parser.add_argument("--device", help="by name: A10, A100-80, H100, RTX4090, v5e, v6e, ...")
    parser.add_argument("--device-memory", metavar="SIZE", help="such as 24GB, instead of the device's own")
    parser.add_argument("--hosts", type=whole(1, 4096), default=1, help="over which the mesh is spread evenly")
    parser.add_argument(
        "--input-length", type=whole(2, 65_536), metavar="TOKENS", help="padded; the longest if not given"
    )
    parser.add_argument(
        "--target-length", type=whole(2, 16_384), metavar="TOKENS", help="padded; the longest if not given"
    )
    parser.add_argument("--no-search", action="store_true", help="do not look for a change that would make it fit")
    parser.add_argument("--json", action="store_true", help="print JSON")
    which = parser.add_argument_group("which mesh")
    which.add_argument("--best", action="store_true", help="rank all meshes of --devices by the least time of a step")
    which.add_argument("--devices", type=whole(1, 65_536), metavar="N", help="how many there are, for --best")
    grid = parser.add_argument_group("many runs (lists are separated by commas)")
    grid.add_argument("--grid", action="store_true", help="plan every cell of a grid, in one table")
    add_which(grid)
    parser.set_defaults(run=_plan, takes_config_keys=True, seeds="0")


def _plan(arguments: argparse.Namespace) -> int:
    axes = _axes(arguments.mesh)
    devices = arguments.devices or 1
    if not arguments.best:
        devices = 1
        for parts in axes.values():
            devices *= parts
    _check(arguments, axes)
    # Before JAX starts: it then splits this machine's CPU into this many devices and looks for no others.
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = re.sub(r" *--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(devices, 1)}"
    with _progress("plans from shapes alone: loads no weights, compiles the run's programs") as report:
        answer = _planned(arguments, axes, report)
    if arguments.json:
        print(json.dumps(answer.as_json(), indent=2))
    else:
        answer.print()
    return 0


def _check(arguments: argparse.Namespace, axes: dict[str, int]) -> None:
    """Raises `UserError` for flags that exclude or need each other."""
    if arguments.config is None and not arguments.grid:
        raise UserError("--config is missing; name a file, or what comes with jpeft: custom, lora_agnews_low.")
    if arguments.best and (arguments.devices is None or axes or arguments.grid):
        raise UserError("--best looks for the mesh of --devices N; give these, and no --mesh and no --grid.")
    if arguments.devices is not None and not arguments.best:
        raise UserError("--devices is for --best; without it, --mesh says how many devices there are.")
    if (arguments.best or arguments.grid) and not arguments.device:
        raise UserError("--best and --grid need a --device, to know what fits.")
    if arguments.grid and (arguments.input_length or arguments.target_length):
        raise UserError("--input-length and --target-length are for one run; a grid's tasks have their own.")


@contextlib.contextmanager
def _progress(first: str) -> Iterator[_Report]:
    """Shows progress on standard error; yields the callback that takes each line.

    On a terminal the latest line is shown with a clock. Elsewhere every line is printed; the first one only after a
    second, so that a wrong call prints nothing but its error.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        show = lambda line: console.print(line, markup=False, soft_wrap=True)
        timer = threading.Timer(_SECONDS_OF_SILENCE, show, [first])
        timer.daemon = True
        timer.start()

        def report(line: str) -> None:
            timer.cancel()  # the first line is out of date
            show(line)

        try:
            yield report
        finally:
            timer.cancel()
            timer.join()
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(first)
        yield lambda line: progress.update(task, description=line)


@dataclasses.dataclass(frozen=True)
class _Target:
    """The device that a plan is for, and the compiler that it is made with.

    Attributes:
      device: None if none was named.
      memory: bytes, of `--device-memory` or else of the device; None without either.
      compiler: in words.
      advice: how to install the device's own compiler, if another one is used; else empty.
    """

    device: Any
    memory: float | None
    compiler: str
    advice: str

    def first_line(self) -> str:
        return f"compiled by {self.compiler}{self.advice}"


def _planned(arguments: argparse.Namespace, axes: dict[str, int], report: _Report) -> "_Answer":
    """Makes the plans that the command line asks for."""
    from jpeft.plan.compile import Remote, Workshop, has_compiler
    from jpeft.plan.devices import device_named, memory_bytes

    device = device_named(arguments.device) if arguments.device else None
    memory = memory_bytes(arguments.device_memory) if arguments.device_memory else device.memory if device else None
    own = device if device is not None and has_compiler(device) else None
    with (
        contextlib.nullcontext(Workshop(hosts=arguments.hosts, stands_in=device is not None))
        if own is None
        else Remote(own, hosts=arguments.hosts) as compiler
    ):
        advice = ""
        if device is not None and own is None:
            advice = (
                f", not {device.name}'s own: temporary memory and messages are another's, often twice as much; "
                f"pip install 'jpeft[{device.extra}]' brings its own"
            )
        target = _Target(device, memory, compiler.words, advice)
        if arguments.grid:
            return _plan_grid(arguments, axes, target, compiler, report)
        return _plan_one(arguments, axes, target, compiler, report)


def _plan_one(
    arguments: argparse.Namespace, axes: dict[str, int], target: _Target, compiler: Any, report: _Report
) -> Any:
    from jpeft.cli.config_flags import parse_call
    from jpeft.config import Run
    from jpeft.plan.compile import require_even
    from jpeft.plan.fit import best, fitted, longest_lengths, make_plan, smallest_change

    keys = [*arguments.config_keys, *_mesh_keys(axes)]
    call = parse_call(["jpeft plan", f"--config={arguments.config}", *keys], Run, "")
    assert call is not None, "no --help among the config's keys"
    run = Run.from_config(call.config)
    require_even(arguments.devices if arguments.best else run.mesh.size, arguments.hosts)
    lengths, memory = _lengths(arguments, longest_lengths(run)), target.memory
    if arguments.best:
        assert memory is not None and target.device is not None
        tried = best(run, compiler, target.device, memory, arguments.devices, lengths, report=report)
        return _Ranked(run, target, tried)
    plan = None
    if memory is not None and run != run.mildest():
        plan = fitted(run, compiler, memory, lengths, report=report)
    plan, other = plan or make_plan(run, compiler, lengths, report=report), None
    if memory is not None and not plan.fits(memory) and not arguments.no_search:
        other = smallest_change(plan, compiler, memory, report=report)
    return _One(plan, target, other, searched=not arguments.no_search)


def _plan_grid(
    arguments: argparse.Namespace, axes: dict[str, int], target: _Target, compiler: Any, report: _Report
) -> Any:
    from jpeft.plan.fit import plan_all

    arguments.config = arguments.config or "benchmark"
    arguments.config_keys = [*arguments.config_keys, *_mesh_keys(axes)]
    assert target.memory is not None
    cells = [(cell.config_name, cell.run) for cell in cells_of(arguments)]
    return _Grid(target, list(plan_all(cells, compiler, target.memory, report=report)))


def _mesh_keys(axes: dict[str, int]) -> list[str]:
    return [f"--config.mesh.{axis}={parts}" for axis, parts in axes.items()]


def _axes(text: str) -> dict[str, int]:
    axes = {}
    for part in filter(None, text.split(",")):
        match = _MESH.fullmatch(part.strip())
        if not match:
            raise UserError(f"--mesh is {shortened(text)}; expected axes such as model=4 or data=2,model=2.")
        if match[1] in axes:
            raise UserError(f"--mesh is {shortened(text)}, which gives {match[1]} twice; give each axis once.")
        axes[match[1]] = int(match[2])
    return axes


def _lengths(arguments: argparse.Namespace, longest: Any) -> Any:
    """The lengths in tokens to plan for: `--input-length` and `--target-length`, by default the config's longest."""
    given = {"input": arguments.input_length, "target": arguments.target_length}
    return dataclasses.replace(longest, **{name: length for name, length in given.items() if length is not None})


# --- the answers ---


@runtime_checkable
class _Answer(Protocol):
    def as_json(self) -> dict[str, Any]: ...

    def print(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class _One:
    """The plan of one run."""

    plan: Any
    target: _Target
    other: Any
    searched: bool

    def as_json(self) -> dict[str, Any]:
        from jpeft.train.fitting import differing

        memory = self.target.memory
        return {
            "compiler": self.target.compiler,
            **plan_as_json(self.plan, self.target.device),
            "device_memory": memory,
            "fits": None if memory is None else self.plan.fits(memory),
            "would_fit_with": list(differing(self.plan.run, self.other.run)) if self.other else None,
        }

    def print(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from jpeft.plan.memory import may_score_unknown_labels

        plan, device, memory = self.plan, self.target.device, self.target.memory
        run, console = plan.run, Console()
        print(self.target.first_line())
        print(f"{run.method.name} of {_base(run)}, {_mesh_words(run)}: on each device")
        table = Table()
        table.add_column("what")
        table.add_column("size", justify="right")
        for name in ("weights", "adapter", "optimizer", "gradients"):
            table.add_row(name, size(getattr(plan.held, name)))
        for name in plan.programs:
            table.add_row(f"while in {name}", size(plan.needs(name)))
        table.add_row("peak", size(plan.peak), style="bold")
        console.print(table)
        print(
            f"micro-batch {run.train.batch_size} x {run.train.accumulation_steps}, "
            f"{counted(run.eval.batch_size, 'row')} evaluated at once; "
            f"{plan.lengths.input} + {plan.lengths.target} tokens; remat {run.model.remat}; "
            f"keys and values of generation {size(plan.held.cache)}"
        )
        if may_score_unknown_labels(run):
            print("note: if the rows have labels, the run may score them; that is not planned, since no rows are read")
        for name, program in plan.programs.items():
            calls = plan.calls(name)
            if program.refused:
                print(f"{name:10} the compiler refuses it: {program.refused}")
                continue
            moved = f"{size(calls * program.bytes_moved)} moved a device"
            work = size(calls * program.flops, "FLOP")
            print(f"{name:10} {work:>11}; {moved}{_messages(program, calls)}{_least(plan, name, device)}")
        if memory is not None:
            print(_verdict(plan, memory))
            if self.searched and not plan.fits(memory):
                print(_change(plan, self.other))


def _change(plan: Any, other: Any) -> str:
    from jpeft.train.fitting import differing

    if other is None:
        return "no smaller micro-batch fits; take more devices"
    return f"would fit with {' '.join(differing(plan.run, other.run))}"


def _verdict(plan: Any, memory: float) -> str:
    from jpeft.plan.fit import USABLE

    verdict = "fits" if plan.fits(memory) else "does not fit"
    return f"{verdict}: {size(plan.peak)} of {size(USABLE * memory)} ({USABLE:.0%} of {size(memory)})"


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The meshes of a number of devices, ranked by the least time of a step."""

    run: Any
    target: _Target
    tried: Any

    def as_json(self) -> dict[str, Any]:
        device = self.target.device
        return {
            "compiler": self.target.compiler,
            "device_memory": self.target.memory,
            "meshes": [
                {"mesh": vars(one.mesh), "fits": False, "why": one.why}
                if one.plan is None
                else {"fits": True, "step_seconds": one.plan.step_seconds(device), **plan_as_json(one.plan, device)}
                for one in self.tried
            ],
        }

    def print(self) -> None:
        from jpeft.plan.fit import mesh_words

        run, device = self.run, self.target.device
        print(self.target.first_line())
        rows = run.rows()[0] * run.train.accumulation_steps
        print(f"{run.method.name} of {_base(run)}, steps of {counted(rows, 'row')}; the fastest that fits is first")
        table = _table("mesh", "remat", "micro-batch", "evaluated", "peak", "a step at least", "bound by", "answers")
        for one in self.tried:
            if one.plan is None:
                table.add_row(mesh_words(one.mesh), one.why, *[""] * 6)
                continue
            plan = one.plan
            train, answered = plan.seconds("train", device), plan.seconds("generation", device)
            table.add_row(
                mesh_words(one.mesh),
                plan.run.model.remat,
                f"{plan.run.train.batch_size} x {plan.run.train.accumulation_steps}",
                str(plan.run.eval.batch_size),
                size(plan.peak),
                _short(plan.step_seconds(device)),
                train.bound,
                _short(answered.total),
            )
        _show(table)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The plans of all cells of a grid."""

    target: _Target
    cells: Any

    def as_json(self) -> dict[str, Any]:
        from jpeft.train.fitting import differing

        device = self.target.device
        return {
            "compiler": self.target.compiler,
            "device_memory": self.target.memory,
            "cells": [
                {"cell": name, "fits": False, "why": why}
                if plan is None
                else {
                    "cell": name,
                    "fits": True,
                    "changed": list(differing(run.mildest(), plan.run)),
                    "step_seconds": plan.step_seconds(device),
                    **plan_as_json(plan, device),
                }
                for name, run, plan, why in self.cells
            ],
        }

    def print(self) -> None:
        device = self.target.device
        print(self.target.first_line())
        table = _table("cell", "mesh", "remat", "micro-batch", "evaluated", "peak", "a step at least", "answers")
        for name, run, plan, why in self.cells:
            if plan is None:
                table.add_row(name, _mesh_words(run), why, *[""] * 5)
                continue
            table.add_row(
                name,
                _mesh_words(run),
                plan.run.model.remat,
                f"{plan.run.train.batch_size} x {plan.run.train.accumulation_steps}",
                str(plan.run.eval.batch_size),
                size(plan.peak),
                _short(plan.step_seconds(device)),
                _short(plan.seconds("generation", device).total),
            )
        _show(table)
        fitting = sum(plan is not None for _, _, plan, _ in self.cells)
        print(f"{fitting} of {counted(len(self.cells), 'cell')} fit")


def _kept(run: Any) -> str | None:
    from jpeft.plan.memory import quantization_of_run

    quantization = quantization_of_run(run)
    return None if quantization is None or quantization.kind == "none" else str(quantization)


def _base(run: Any) -> str:
    return named_in_bits(run.model.name, _kept(run))


def plan_as_json(plan: Any, device: Any) -> dict[str, Any]:
    """A plan's numbers; times are None without a device."""
    run = plan.run
    return {
        "model": run.model.name,
        "quantization": _kept(run),
        "method": run.method.name,
        "mesh": vars(run.mesh),
        "remat": run.model.remat,
        "batch_size": run.train.batch_size,
        "accumulation_steps": run.train.accumulation_steps,
        "eval_batch_size": run.eval.batch_size,
        "input_length": plan.lengths.input,
        "target_length": plan.lengths.target,
        "bytes": {**dataclasses.asdict(plan.held), "peak": plan.peak},
        "steps": {name: _step_as_json(plan, name, device) for name in plan.programs},
    }


def _step_as_json(plan: Any, name: str, device: Any) -> dict[str, Any]:
    program, calls = plan.programs[name], plan.calls(name)
    least = plan.seconds(name, device) if device else None
    return {
        "temporary_bytes": program.temporary_bytes,
        "result_bytes": program.result_bytes,
        "code_bytes": program.code_bytes,
        "flops": calls * program.flops,
        "bytes_moved": calls * program.bytes_moved,
        "messages": {**dataclasses.asdict(program.messages), "calls": calls},
        "least_seconds": least.total if least else None,
        "bound": least.bound if least else None,
        "refused": program.refused,
        "compile_seconds": program.seconds,
    }


def _mesh_words(run: Any) -> str:
    from jpeft.plan.fit import mesh_words

    return mesh_words(run.mesh)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _show(table: Any) -> None:
    import sys

    from rich.console import Console

    Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 160).print(table)


def _messages(program: Any, calls: int) -> str:
    """The messages that devices exchange in one step, by kind; empty if there are none."""
    messages = program.messages
    sent = ", ".join(f"{n} {kind} of {size(messages.bytes[kind])}" for kind, n in messages.count.items())
    times = f"{calls} x ({sent})" if calls > 1 else sent
    return f"; between devices {times}" if sent else ""


def _least(plan: Any, name: str, device: Any) -> str:
    if not device:
        return ""
    seconds = plan.seconds(name, device)
    return f"; at least {_short(seconds.total)}, bound by {seconds.bound}"


def _short(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.1 * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
