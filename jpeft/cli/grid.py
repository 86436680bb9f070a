"""`jpeft grid`: runs many cells; the same command resumes a grid that was stopped."""

import argparse
import functools
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from jpeft.cli.arguments import number, path, require_workdir, whole
from jpeft.errors import UserError
from jpeft.words import shortened

# Config keys that name a cell, and what selects the cells.
_OURS = {
    "train.seed": "give --seeds",
    "method.name": "give --methods",
    "data.task": "give --tasks",
    "data.scale": "give --scales",
    "ablation.name": "give --ablations",
}

_DESCRIPTION = """Runs the cells of a grid: methods x tasks x scales x ablations x seeds. Cells that are done are kept.

  jpeft grid --config mini --config.data.source=sample --scales low --dry-run    show the cells
  jpeft grid --config mini --config.data.source=sample --scales low              run them
  jpeft grid --config benchmark --workdir runs/paper --jobs 4                    the paper, a GPU a cell

A cell is a run directory below WORKDIR, named after the cell. It is done if it has a result.json and the requested
config; with another config it is stale. A cell that fails is recorded, and the others go on. Keys of every cell's
config are set by --config.KEY=VALUE (jpeft train --help lists them)."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft grid` with its flags to the command line."""
    parser = commands.add_parser(
        "grid",
        help="run many cells: methods x tasks x scales x ablations x seeds",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        default="benchmark",
        metavar="FILE",
        help="benchmark, mini, smollm2, or a file of yours whose get_config takes a cell's name (default: %(default)s)",
    )
    parser.add_argument("--workdir", type=path, help="of the grid; runs/<name of the config file> by default")
    which = parser.add_argument_group("which cells (lists are separated by commas)")
    add_which(which)
    which.add_argument("--seeds", default="0", help="seeds of training; the splits stay (default: %(default)s)")
    how = parser.add_argument_group("what to do with them")
    how.add_argument("--dry-run", action="store_true", help="show every cell's state and run nothing")
    how.add_argument("--limit", type=whole(1), metavar="N", help="start at most N cells")
    how.add_argument("--retry-failed", action="store_true", help="run failed cells again, too")
    how.add_argument(
        "--overwrite-stale",
        action="store_true",
        help="run stale cells again; each one's work is kept aside in replaced/ until then",
    )
    how.add_argument("--launcher", choices=("local", "ray"), default="local", help="(default: %(default)s)")
    how.add_argument(
        "--jobs",
        type=whole(1, 4096),
        metavar="N",
        help="cells at once; locally the GPUs, or the cores, are divided among them, and with more jobs than GPUs "
        "several share one (default: 1)",
    )
    how.add_argument(
        "--fuse",
        default="1",
        metavar="N",
        help="cells that one worker trains side by side, their device calls combined (docs/grid.md): a number, or auto "
        "for as many as fit, at most 8 (default: %(default)s)",
    )
    how.add_argument("--address", default="auto", help="of the Ray cluster (default: %(default)s)")
    how.add_argument("--gpus", type=number(0, 1024), default=0.0, help="per cell on Ray (default: none)")
    how.add_argument("--cpus", type=number(0, 4096), default=1.0, help="per cell on Ray (default: %(default)s)")
    how.add_argument("--json", action="store_true", help="print every cell's state as JSON at the end")
    parser.set_defaults(run=_grid, takes_config_keys=True)


def add_which(which: argparse._ArgumentGroup) -> None:
    """Adds the flags that select cells, all but `--seeds`."""
    which.add_argument("--methods", default="full,lora,ia3,bitfit,prompt", help="(default: %(default)s)")
    which.add_argument("--tasks", default="agnews,cola,e2e,samsum", help="(default: %(default)s)")
    which.add_argument("--scales", default="low,medium,high", help="(default: %(default)s)")
    which.add_argument(
        "--ablations",
        default="paper",
        help="names, 'none', 'all', or 'paper': all at medium scale (default: %(default)s)",
    )
    which.add_argument("--only", metavar="PATTERN", help="cells whose name matches, such as 'ia3_*_medium'")


def _grid(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from jpeft.grid.display import cell_table
    from jpeft.grid.scheduler import CellSchedule, CellsToDo
    from jpeft.grid.state import State

    console = Console(stderr=True, highlight=False)
    workdir = arguments.workdir or Path("runs") / Path(arguments.config).stem
    choice = CellsToDo(failed=arguments.retry_failed, stale=arguments.overwrite_stale, limit=arguments.limit)
    schedule = CellSchedule(
        cells_of(arguments),
        workdir.absolute(),
        choice,
        report=lambda line: console.print(line, markup=False, soft_wrap=True),
    )
    if not arguments.dry_run and schedule.to_do():
        _require_what_all_need(schedule.to_do(), workdir, here=arguments.launcher == "local")
    if not arguments.dry_run:
        _run(arguments, schedule, console)
    if arguments.json:
        print(json.dumps(_as_json(schedule), indent=2))
    elif arguments.dry_run:
        Console().print(cell_table(schedule))
        print(f"{len(schedule.to_do())} to run in {workdir}")
    else:
        _print_summary(schedule, workdir)
    return 1 if not arguments.dry_run and schedule.counts()[State.FAILED] else 0


def _require_what_all_need(cells: Sequence, workdir: Path, *, here: bool) -> None:
    """Raises `UserError` for what would fail every cell: missing rows, or a directory that cannot be written.

    Args:
      here: whether the cells run on this machine; else the rows may be on another one and are not looked for.
    """
    from jpeft.data.sources import require_paths

    for data in {cell.run.data for cell in cells if here}:
        require_paths(data.source, data.path, data.mix)
    require_workdir(workdir)


def cells_of(arguments: argparse.Namespace):
    """The cells selected by the flags of `add_which`, `--config`, `--seeds` and the config keys."""
    from jpeft.cli.config_flags import note_repeated_keys, parse_call, refuse_keys
    from jpeft.config import Run
    from jpeft.grid.cells import ALL_ABLATIONS, config_names, expand

    def configure(name: str, seed: int) -> Run:
        flags = [f"--config={arguments.config}:{name}", *arguments.config_keys, "--quiet"]
        call = parse_call(["jpeft grid", *flags], Run, "")
        assert call is not None, "no --help among the config's keys"
        call.config.train.seed = seed
        return Run.from_config(call.config)

    ablations = arguments.ablations
    if ablations not in ALL_ABLATIONS:
        ablations = _listed(ablations, "--ablations")
    names = config_names(
        _listed(arguments.methods, "--methods"),
        _listed(arguments.tasks, "--tasks"),
        _listed(arguments.scales, "--scales"),
        ablations,
    )
    seeds = _listed(arguments.seeds, "--seeds")
    if not all(re.fullmatch("[0-9]{1,20}", seed) for seed in seeds):
        raise UserError(f"--seeds is {shortened(arguments.seeds)}; expected whole numbers: 0,1,2.")
    refuse_keys(arguments.config_keys, _OURS, "the grid")
    note_repeated_keys(arguments.config_keys)  # once, not for each cell
    return expand(names, [int(seed) for seed in seeds], configure, only=arguments.only)


def _listed(text: str, flag: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{flag} is empty; name one or more, separated by commas.")
    return list(dict.fromkeys(parts))


def _run(arguments: argparse.Namespace, schedule, console) -> None:
    from jpeft.errors import Stopped
    from jpeft.grid.display import shown

    pool = _pool(arguments, functools.partial(console.print, markup=False))
    try:
        with shown(schedule, console) as on_change:
            schedule.run(pool, on_change=on_change)
    except KeyboardInterrupt:
        console.print("stopping: the cells at work are saved first", markup=False)
        raise Stopped("interrupted; the same command goes on from there") from None
    finally:
        pool.close()


_MOST_LANES = 8  # for auto: more gain little, and each is a thread with a run's data


def lanes_of(fuse: str) -> int:
    """The number of cells that one process trains side by side, from `--fuse`. Raises `UserError` for anything else."""
    if fuse == "auto":
        return _MOST_LANES
    if not re.fullmatch("[0-9]{1,2}", fuse) or not 1 <= int(fuse) <= 64:
        raise UserError(f"--fuse is {fuse!r}; expected auto, or a number from 1 to 64.")
    return int(fuse)


def _pool(arguments: argparse.Namespace, say: Callable[[str], None]):
    lanes = lanes_of(arguments.fuse)
    if arguments.launcher == "ray":
        if lanes > 1:
            raise UserError("--fuse is for --launcher local; on a Ray cluster every cell has a worker of its own.")
        if not (arguments.cpus or arguments.gpus):
            raise UserError("--cpus and --gpus are both 0; a cell on a Ray cluster needs some of one of them.")
        from jpeft.grid.ray_pool import RayPool

        return RayPool(arguments.address, jobs=arguments.jobs, cpus=arguments.cpus, gpus=arguments.gpus)
    from jpeft.grid.local import LocalPool, device_shares, shared_gpus_line

    shares = device_shares(arguments.jobs or 1)
    if (line := shared_gpus_line(shares)) is not None:
        say(line)
    return LocalPool(shares, lanes=lanes)


def _as_json(schedule) -> dict:
    return {
        "counts": {str(state): n for state, n in schedule.counts().items()},
        "cells": [
            {"cell": cell.name, "state": str(seen.state), "detail": seen.detail}
            for cell, seen in schedule.states.items()
        ],
        "overhead_seconds": schedule.overheads,
    }


def _print_summary(schedule, workdir: Path) -> None:
    from jpeft.grid.scheduler import median_overhead
    from jpeft.grid.state import State

    counts = schedule.counts()
    print(", ".join(f"{n} {state}" for state, n in counts.items() if n))
    overhead = median_overhead(schedule)
    if overhead is not None:
        print(f"{len(schedule.done)} done now; beside its own work a cell cost {overhead:.1f} s (median)")
    for cell, seen in schedule.states.items():
        if seen.state in (State.FAILED, State.STALE):
            print(f"{seen.state}  {cell.name}: {seen.detail}")
    if counts[State.FAILED]:
        print(f"next     read {workdir}/<cell>/failure.json; then the same command with --retry-failed")
    if counts[State.STALE]:
        print("next     --overwrite-stale runs stale cells again; another --workdir keeps them")
    if counts[State.DONE]:
        print(f"next     jpeft report {shlex.quote(str(workdir))} --out {shlex.quote(str(workdir / 'report'))}")
