"""`jpeft plan`: whether a run fits, before any weight is loaded."""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jpeft.cli.arguments import whole
from jpeft.errors import UserError
from jpeft.words import counted, size

_DESCRIPTION = """Tells what a run needs of each device and whether it fits, from shapes alone.

  jpeft plan --config lora_agnews_low --mesh model=4 --device A10
  jpeft plan --config full_samsum_high --mesh fsdp=4 --device-memory 80GB --input-length 512

The run's train, validation and generation steps are compiled for the mesh on this machine's CPU; no such devices, no
weights and no network are needed. Keys of the config are set by --config.KEY=VALUE (jpeft train --help lists
them)."""

_SECONDS_OF_SILENCE = 1.0
_MESH = re.compile(r"(data|fsdp|model)=([1-9][0-9]*)")


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft plan` with its flags to the command line."""
    parser = commands.add_parser(
        "plan",
        help="tell what a run needs of each device, and whether it fits",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:CELL]", help="as main.py takes it")
    parser.add_argument(
        "--mesh", default="", metavar="AXES", help="such as model=4 or data=2,model=2; one device if not given"
    )
    parser.add_argument("--device", help="by name, for memory and speed: A10, A100-80GB, H100, TPU-v5e, ...")
    parser.add_argument("--device-memory", metavar="SIZE", help="such as 24GB, in the place of the device's own")
    parser.add_argument(
        "--input-length", type=whole(most=65_536), metavar="TOKENS", help="padded; the longest if not given"
    )
    parser.add_argument(
        "--target-length", type=whole(most=16_384), metavar="TOKENS", help="padded; the longest if not given"
    )
    parser.add_argument("--no-search", action="store_true", help="do not look for a change that would make it fit")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_plan, takes_config_keys=True)


def _plan(arguments: argparse.Namespace) -> int:
    axes = _axes(arguments.mesh)
    devices = 1
    for parts in axes.values():
        devices *= parts
    # Before JAX starts: it then takes this machine's CPU for so many devices, and looks for no other.
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(devices, 1)}"
    with _telling("plans from shapes alone: loads no weights, compiles the run's three steps") as tell:
        plan, device, memory, other = _make(arguments, axes, tell)
    if arguments.json:
        print(json.dumps(_as_json(plan, device, memory, other), indent=2))
    else:
        _print(plan, device, memory, other, searched=not arguments.no_search)
    return 0


@contextlib.contextmanager
def _telling(first: str) -> Iterator[Callable[[str], None]]:
    """Yields what is told how far it is, and shows it on standard error: on a terminal a line with a clock.

    Elsewhere it is a line each time; the first after a second, so that a wrong call remains one line.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        show = lambda line: console.print(line, markup=False, soft_wrap=True)
        timer = threading.Timer(_SECONDS_OF_SILENCE, show, [first])
        timer.daemon = True
        timer.start()

        def tell(line: str) -> None:
            timer.cancel()  # there is a later sign of life than the first
            show(line)

        try:
            yield tell
        finally:
            timer.cancel()
            timer.join()
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(first)
        yield lambda line: progress.update(task, description=line)


def _make(arguments: argparse.Namespace, axes: dict[str, int], tell: Callable[[str], None]) -> tuple[Any, ...]:
    """Plan, device, its memory, and the plan of what would fit where this one does not."""
    from jpeft.cli.config_flags import parse_call
    from jpeft.config import Run
    from jpeft.mesh.hardware import hardware, memory_bytes
    from jpeft.train.plan import longest_lengths, make_plan, smallest_change

    keys = [*arguments.config_keys, *(f"--config.mesh.{axis}={parts}" for axis, parts in axes.items())]
    call = parse_call(["jpeft plan", f"--config={arguments.config}", *keys], Run, "")
    assert call is not None, "no --help among the config's keys"
    run = Run.from_config(call.config)
    device = hardware(arguments.device) if arguments.device else None
    memory = memory_bytes(arguments.device_memory) if arguments.device_memory else device.memory if device else None
    lengths = _lengths(arguments, longest_lengths(run))
    plan = make_plan(run, lengths, report=tell)
    other = None
    if memory is not None and not plan.fits(memory) and not arguments.no_search:
        other = smallest_change(plan, memory, report=tell)
    return plan, device, memory, other


def _axes(text: str) -> dict[str, int]:
    axes = {}
    for part in filter(None, text.split(",")):
        match = _MESH.fullmatch(part.strip())
        if not match:
            raise UserError(f"--mesh is {text!r}; expected axes such as model=4 or data=2,model=2.")
        axes[match[1]] = int(match[2])
    return axes


def _lengths(arguments: argparse.Namespace, longest: Any) -> Any:
    """The lengths in tokens to plan for: those of `--input-length` and `--target-length`, else the config's longest."""
    given = {"input": arguments.input_length, "target": arguments.target_length}
    for name, length in given.items():
        if length is not None and length < 2:
            raise UserError(f"--{name}-length is {length}; expected at least 2.")
    return dataclasses.replace(longest, **{name: length for name, length in given.items() if length is not None})


def _as_json(plan: Any, device: Any, memory: float | None, other: Any) -> dict[str, Any]:
    run = plan.run
    return {
        "model": run.model.name,
        "method": run.method.name,
        "mesh": {"data": run.mesh.data, "fsdp": run.mesh.fsdp, "model": run.mesh.model},
        "input_length": plan.lengths.input,
        "target_length": plan.lengths.target,
        "bytes": {
            "weights": plan.weights,
            "adapter": plan.adapter,
            "optimizer": plan.optimizer,
            "gradients": plan.gradients,
            "cache": plan.cache,
            "peak": plan.peak,
        },
        "steps": {
            name: {
                "temporary_bytes": step.temporary_bytes,
                "flops": step.flops,
                "messages": {"count": step.messages.count, "bytes": step.messages.bytes, "calls": step.calls},
                "least_seconds": plan.seconds(name, device) if device else None,
            }
            for name, step in plan.steps.items()
        },
        "device_memory": memory,
        "fits": None if memory is None else plan.fits(memory),
        "would_fit_with": _settings(other, plan) if other else None,
    }


def _settings(other: Any, plan: Any) -> list[str]:
    """Flags that turn one plan's run into the other's."""
    from jpeft.typed_config import differences

    changed = differences(plan.run.to_dict(), other.run.to_dict())
    return [f"--config.{line.partition(':')[0]}={line.rpartition('-> ')[2].strip(chr(39))}" for line in changed]


def _print(plan: Any, device: Any, memory: float | None, other: Any, *, searched: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from jpeft.train.plan import USABLE

    run, console = plan.run, Console()
    mesh = ", ".join(f"{axis}={parts}" for axis, parts in vars(run.mesh).items() if parts > 1) or "one device"
    print(f"{run.method.name} of {run.model.name}, {mesh}: on each device")
    table = Table()
    table.add_column("what")
    table.add_column("size", justify="right")
    for name in ("weights", "adapter", "optimizer", "gradients"):
        table.add_row(name, size(getattr(plan, name)))
    for name, step in plan.steps.items():
        table.add_row(f"while in {name}", size(step.temporary_bytes))
    table.add_row("peak", size(plan.peak), style="bold")
    console.print(table)
    print(
        f"micro-batch {run.train.batch_size} x {run.train.accumulation_steps}, "
        f"{counted(run.eval.batch_size, 'row')} evaluated at once; "
        f"{plan.lengths.input} + {plan.lengths.target} tokens; remat {run.model.remat}; "
        f"keys and values of generation {size(plan.cache)}"
    )
    for name, step in plan.steps.items():
        print(f"{name:10} {size(step.flops, 'FLOP'):>11}{_messages(step)}{_least(plan, name, device)}")
    if memory is not None:
        verdict = "fits" if plan.fits(memory) else "does not fit"
        print(f"{verdict}: {size(plan.peak)} of {size(USABLE * memory)} ({USABLE:.0%} of {size(memory)})")
        if searched and not plan.fits(memory):
            print(
                f"would fit with {' '.join(_settings(other, plan))}"
                if other
                else "no smaller micro-batch fits; take more devices"
            )


def _messages(step: Any) -> str:
    """Tells how many messages devices exchange in one step, by kind of message; empty where they exchange none."""
    sent = ", ".join(f"{n} {kind}" for kind, n in step.messages.count.items())
    times = f"{step.calls} x ({sent})" if step.calls > 1 else sent
    return f"; between devices {times}" if sent else ""


def _least(plan: Any, name: str, device: Any) -> str:
    return f"; at least {_short(plan.seconds(name, device))}" if device else ""


def _short(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.1 * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
