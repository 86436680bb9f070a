"""Write the tables of docs/accelerators.md from plans made by each device's own compiler; no accelerator is needed.

python scripts/accelerator_table.py                           plan the missing rows, then write the tables
python scripts/accelerator_table.py --only A10,H100           plan some devices; such calls may run in parallel
python scripts/accelerator_table.py --methods lora,ia3        plan some methods; full tuning's search can take an hour
python scripts/accelerator_table.py --write                   write the tables from existing plans

Plans are stored in docs/results/accelerators/, one file per row, so an interrupted call resumes when it is repeated.
Requires jpeft[plan-gpu] and jpeft[plan-tpu]. A row takes one to three minutes on an idle core.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jpeft.cli.plan import plan_as_json
from jpeft.config import Run
from jpeft.errors import RunFailed, UserError
from jpeft.files import write_whole
from jpeft.plan.compile import Remote
from jpeft.plan.devices import DEVICES
from jpeft.plan.fit import Plan, fitted
from jpeft.words import size

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "docs" / "results" / "accelerators"
PAGE = ROOT / "docs" / "accelerators.md"
METHODS = ("lora", "ia3", "bitfit", "prompt", "full")
TASKS = ("agnews", "samsum", "cola", "e2e")
XL, XXL = "google/flan-t5-xl", "google/flan-t5-xxl"
PLACES = (("A10", 4), ("H100", 1), ("v5e", 4), ("A100-40", 4), ("v6e", 4), ("v5p", 4), ("v5e", 8))
OF_XXL = (("A10", 4), ("A100-40", 4), ("v5e", 8), ("H100", 1), ("v5p", 4))


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: a run of a method on a task with several devices of a kind.

    Attributes:
      axes: mesh axes to try in this order, each with all devices along it; the first that fits is reported.
    """

    model: str
    method: str
    task: str
    device: str
    devices: int
    axes: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The file that stores its plan."""
        return ROWS / f"{self.model.rpartition('-')[2]}_{self.method}_{self.task}_{self.device}x{self.devices}.json"

    def run(self, axis: str) -> Run:
        """The config of the paper's cell with all devices along a mesh axis."""
        return Run.from_config(
            {
                "model": {"name": self.model},
                "method": {"name": self.method},
                "data": {"task": self.task},
                "mesh": {axis: self.devices},
            }
        )


def rows() -> Iterator[Row]:
    """Every row of the tables, in order of importance."""

    def axes(devices: int) -> tuple[str, ...]:
        return ("model", "fsdp") if devices > 1 else ("data",)

    for task in ("samsum", "agnews"):
        for method in METHODS:
            yield Row(XL, method, task, "A10", 4, axes(4))
    for device, devices in PLACES[1:]:
        for method in ("lora", "full"):
            for task in TASKS[:2]:
                yield Row(XL, method, task, device, devices, axes(devices))
    for task in ("cola", "e2e"):
        for method in METHODS:
            yield Row(XL, method, task, "A10", 4, axes(4))
    for device, devices in OF_XXL:
        for method in ("lora", "full"):
            yield Row(XXL, method, "agnews", device, devices, axes(devices))
    for device, devices in PLACES[1:]:
        for method in ("ia3", "bitfit", "prompt"):
            for task in TASKS[:2]:
                yield Row(XL, method, task, device, devices, axes(devices))


def plan_row(row: Row, compiler: Remote) -> dict[str, Any]:
    """Plan a row on the first mesh axis where some settings fit, as JSON; else `why` says why none fits."""
    device, why = DEVICES[row.device], []
    for axis in row.axes:
        telling = lambda line, axis=axis: print(f"  {axis}: {line}", flush=True)
        try:
            plan = fitted(row.run(axis), compiler, device.memory, anything=True, report=telling)
        except (UserError, RunFailed) as error:
            why.append(f"{axis}: {error}")
            continue
        if plan is not None:
            return {"fits": True, "axis": axis, **_numbers(plan, row)}
        held = compiler.held(row.run(axis), _lengths(row.run(axis)))
        why.append(f"{axis}: {size(held.bytes)} are held by weights, adapter, optimizer and gradients alone")
    return {"fits": False, "why": "; ".join(why)}


def _lengths(run: Run) -> Any:
    from jpeft.plan.fit import longest_lengths

    return longest_lengths(run)


def _numbers(plan: Plan, row: Row) -> dict[str, Any]:
    device = DEVICES[row.device]
    return {
        "compiler": plan.compiler,
        "step_seconds": plan.step_seconds(device),
        "bound": plan.seconds("train", device).bound,
        **plan_as_json(plan, device),
    }


def known(row: Row) -> dict[str, Any] | None:
    """The stored plan of a row, if there is one."""
    return json.loads(row.file.read_text(encoding="utf-8")) if row.file.is_file() else None


# --- the tables ---


def cell(found: dict[str, Any] | None) -> list[str]:
    """The cells of a row in the order of the columns `HEAD`."""
    if found is None:
        return ["not planned", "", "", "", "", ""]
    if not found["fits"]:
        return [f"**does not fit**: {found['why']}", "", "", "", "", ""]
    train = found["steps"]["train"]
    calls = train["messages"]["calls"]
    sent = sum(train["messages"]["bytes"].values()) * calls
    return [
        f"{found['axis']}={max(found['mesh'].values())}",
        f"{found['remat']}, {found['batch_size']} x {found['accumulation_steps']}, {found['eval_batch_size']}",
        f"{found['bytes']['peak'] / 1e9:.1f}",
        f"{calls * sum(train['messages']['count'].values())} ({size(sent)})" if sent else "none",
        f"{found['step_seconds']:.2f} ({found['bound']})",
        f"{found['steps']['generation']['least_seconds']:.2f}",
    ]


HEAD = (
    "mesh",
    "remat, micro-batch, evaluated",
    "peak, GB",
    "messages a step",
    "step, s at least",
    "answers, s at least",
)


def table(first: tuple[str, ...], lines: list[list[str]]) -> str:
    """A Markdown table with the columns `first` and `HEAD`."""
    names = [*first, *HEAD]
    return "\n".join(
        [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
        + [f"| {' | '.join(line)} |" for line in lines]
    )


def written() -> str:
    """All tables as Markdown, without rows that are not planned yet."""
    order = {task: i for i, task in enumerate(TASKS)}
    of_paper = [row for row in rows() if row.model == XL and row.device == "A10"]
    of_paper.sort(key=lambda row: (order[row.task], METHODS.index(row.method)))
    others = [row for row in rows() if row.model == XL and row.device != "A10"]
    others.sort(key=lambda row: (PLACES.index((row.device, row.devices)), order[row.task], METHODS.index(row.method)))
    xxl = [row for row in rows() if row.model == XXL]

    def lines(chosen: list[Row], *names: str) -> list[list[str]]:
        found = [(row, known(row)) for row in chosen]
        of = {"devices": lambda row: f"{row.devices} x {row.device}"}
        return [
            [of[name](row) if name in of else getattr(row, name) for name in names] + cell(plan)
            for row, plan in found
            if plan is not None
        ]

    parts = (
        ("FLAN-T5-XL on four A10s (24 GB), the paper's devices, 64 rows a step:", ("task", "method"), of_paper),
        ("FLAN-T5-XL on others:", ("devices", "task", "method"), others),
        ("FLAN-T5-XXL on AG News:", ("devices", "method"), xxl),
    )
    made = ((title, names, lines(chosen, *names)) for title, names, chosen in parts)
    return "\n\n".join(f"{title}\n\n{table(names, rows)}" for title, names, rows in made if rows)


BEGIN, END = "<!-- tables: scripts/accelerator_table.py -->", "<!-- end of tables -->"


def write_page() -> None:
    """Replace the tables in docs/accelerators.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    with write_whole(PAGE) as beside:
        beside.write_text(f"{before}{BEGIN}\n\n{written()}\n\n{END}{after}", encoding="utf-8")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; devices and methods without rows are errors."""
    devices = tuple(dict.fromkeys(row.device for row in rows()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"devices to plan, comma-separated, of {', '.join(devices)} (default: all)")
    parser.add_argument("--methods", help=f"to plan, comma-separated, of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--write", action="store_true", help="plan nothing; write the tables from existing plans")
    arguments = parser.parse_args(argv)
    for what, known in (("only", devices), ("methods", METHODS)):
        given = getattr(arguments, what)
        if given is not None and arguments.write:
            parser.error(f"--{what} says what to plan, and --write plans nothing; leave one of them out")
        chosen = known if given is None else given.split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{what} has {', '.join(sorted(map(repr, unknown)))}; expected some of {', '.join(known)}")
        setattr(arguments, what, chosen)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Plan the missing rows and write the tables."""
    arguments = parse(argv)
    if not arguments.write:
        ROWS.mkdir(parents=True, exist_ok=True)
        for row in rows():
            if row.file.is_file() or row.device not in arguments.only or row.method not in arguments.methods:
                continue
            print(row.file.stem, flush=True)
            with Remote(DEVICES[row.device]) as compiler:
                found = plan_row(row, compiler)
            with write_whole(row.file) as beside:
                beside.write_text(json.dumps({**dataclasses.asdict(row), **found}, indent=1) + "\n", encoding="utf-8")
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
