"""`jpeft plan`: whether a run fits, before any weight is loaded."""

import argparse
import json
import os
import re
from typing import Any

from jpeft.cli.arguments import whole
from jpeft.errors import UserError

_DESCRIPTION = """Tells what a run needs of each device and whether it fits, from shapes alone.

  jpeft plan --config lora_agnews_low --mesh model=4 --device A10
  jpeft plan --config full_samsum_high --mesh fsdp=4 --device-memory 80GB --input-length 512

The run's train, validation and generation steps are compiled for the mesh on this machine's CPU; no such devices, no
weights and no network are needed. Keys of the config are set by --config.KEY=VALUE (jpeft train --help lists
them)."""

_MESH = re.compile(r"(data|fsdp|model)=([1-9][0-9]*)")


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
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
    for size in axes.values():
        devices *= size
    # Before JAX starts: it then takes this machine's CPU for so many devices, and looks for no other.
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(devices, 1)}"

    from jpeft.cli.config_flags import parse_call
    from jpeft.config import Run
    from jpeft.mesh.hardware import hardware, memory_bytes
    from jpeft.train.plan import Lengths, make_plan, smallest_change

    keys = [*arguments.config_keys, *(f"--config.mesh.{axis}={size}" for axis, size in axes.items())]
    call = parse_call(["jpeft plan", f"--config={arguments.config}", *keys], Run, "")
    assert call is not None, "no --help among the config's keys"
    run = Run.from_config(call.config)
    device = hardware(arguments.device) if arguments.device else None
    memory = memory_bytes(arguments.device_memory) if arguments.device_memory else device.memory if device else None
    lengths = _lengths(arguments, run, Lengths)
    plan = make_plan(run, lengths)
    other = None
    if memory is not None and not plan.fits(memory) and not arguments.no_search:
        other = smallest_change(plan, memory)
    if arguments.json:
        print(json.dumps(_as_json(plan, device, memory, other), indent=2))
    else:
        _print(plan, device, memory, other)
    return 0


def _axes(text: str) -> dict[str, int]:
    axes = {}
    for part in filter(None, text.split(",")):
        match = _MESH.fullmatch(part.strip())
        if not match:
            raise UserError(f"--mesh is {text!r}; expected axes such as model=4 or data=2,model=2.")
        axes[match[1]] = int(match[2])
    return axes


def _lengths(arguments: argparse.Namespace, run: Any, make: Any) -> Any:
    if arguments.input_length is None and arguments.target_length is None:
        return None
    task = run.build_task()
    given = (arguments.input_length or task.max_input_length, arguments.target_length or task.max_target_length)
    if min(given) < 2:
        raise UserError(f"--input-length and --target-length are {given[0]} and {given[1]}; expected at least 2.")
    return make(*given)


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
    from jpeft.config import differences

    changed = differences(plan.run.to_dict(), other.run.to_dict())
    return [f"--config.{line.partition(':')[0]}={line.rpartition('-> ')[2].strip(chr(39))}" for line in changed]


def _print(plan: Any, device: Any, memory: float | None, other: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from jpeft.train.plan import USABLE

    run, console = plan.run, Console()
    mesh = ", ".join(f"{axis}={size}" for axis, size in vars(run.mesh).items() if size > 1) or "one device"
    table = Table(title=f"{run.method.name} of {run.model.name}, {mesh}: GB on each device")
    table.add_column("what")
    table.add_column("GB", justify="right")
    for name in ("weights", "adapter", "optimizer", "gradients"):
        table.add_row(name, _gb(getattr(plan, name)))
    for name, step in plan.steps.items():
        table.add_row(f"while in {name}", _gb(step.temporary_bytes))
    table.add_row("peak", _gb(plan.peak), style="bold")
    console.print(table)
    print(
        f"micro-batch {run.train.batch_size} x {run.train.accumulation_steps}, {run.eval.batch_size} rows evaluated; "
        f"{plan.lengths.input} + {plan.lengths.target} tokens; remat {run.model.remat}; "
        f"keys and values of generation {_gb(plan.cache)} GB"
    )
    for name, step in plan.steps.items():
        sent = ", ".join(f"{n} {kind}" for kind, n in step.messages.count.items()) or "nothing"
        least = f"; at least {plan.seconds(name, device):.3f} s" if device else ""
        print(f"{name:10} {step.flops / 1e12:8.2f} TFLOP; {step.calls} x ({sent}){least}")
    if memory is not None:
        verdict = "fits" if plan.fits(memory) else "does not fit"
        print(f"{verdict}: {_gb(plan.peak)} GB of {_gb(USABLE * memory)} GB ({USABLE:.0%} of {_gb(memory)} GB)")
        if not plan.fits(memory):
            print(
                f"would fit with {' '.join(_settings(other, plan))}"
                if other
                else "no smaller micro-batch fits; take more devices"
            )


def _gb(size: int | float) -> str:
    return f"{size / 1e9:.2f}"
