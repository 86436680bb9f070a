"""Whether a run fits a device, how fast it can be at most, and what would make it fit: by compiled programs."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jpeft.config import MeshConfig, Run
from jpeft.errors import RunFailed, UserError
from jpeft.plan.compile import Compiled, Compiler
from jpeft.plan.devices import Device
from jpeft.plan.memory import STEPS, Held, Lengths, longest_lengths
from jpeft.train import fitting

USABLE = 0.9  # of a device's memory; the rest is the driver's, the allocator's gaps and what no plan foresees
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class LeastSeconds:
    """The least that a step can take, by what it takes it for.

    Attributes:
      compute: products at the device's peak.
      memory: what kernels read and write, at the memory's full bandwidth.
      messages: what a device sends, at full speed of its links.
    """

    compute: float
    memory: float
    messages: float

    @property
    def total(self) -> float:
        """Computing and memory go on at once; messages are waited for."""
        return max(self.compute, self.memory) + self.messages

    @property
    def bound(self) -> str:
        """What most of it is: `compute`, `memory` or `messages`."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one device needs, in bytes, and what the steps do.

    Attributes:
      run: planned for; without any `auto`.
      programs: by step, `train`, `update`, `validation`, `generation`; `train` is of a micro-batch.
      compiler: by which they were compiled, in words.
    """

    run: Run
    lengths: Lengths
    held: Held
    programs: Mapping[str, Compiled]
    compiler: str

    @property
    def peak(self) -> int:
        """Bytes of the step that needs most, with what is there all the time."""
        return self.held.bytes + max(self.needs(step) for step in self.programs)

    def needs(self, step: str) -> int:
        """Bytes that a step needs beside what is there all the time."""
        return self.programs[step].bytes + (self.held.answering if step == "generation" else 0)

    @property
    def refused(self) -> dict[str, str]:
        """By step what the compiler says that refused it for want of memory."""
        return {step: program.refused for step, program in self.programs.items() if program.refused}

    def fits(self, memory: float) -> bool:
        """Whether every program was made and the peak is within `USABLE` of a memory of so many bytes."""
        return not self.refused and self.peak <= USABLE * memory

    def calls(self, step: str) -> int:
        """How often the step's program is called for one step of the optimizer, or for one batch."""
        return self.run.train.accumulation_steps if step == "train" else 1

    def seconds(self, step: str, device: Device) -> LeastSeconds:
        """The least that all calls of a step's program can take, by the device's data sheet."""
        program, calls = self.programs[step], self.calls(step)
        messages = program.messages
        talk = (messages.sent - messages.between_hosts) / device.interconnect + messages.between_hosts / device.network
        return LeastSeconds(
            compute=calls * program.flops / self.run.mesh.size / device.flops,
            memory=calls * program.bytes_moved / device.bandwidth,
            messages=calls * talk,
        )

    def step_seconds(self, device: Device) -> float:
        """The least seconds that one step of the optimizer can take: its micro-batches and the update."""
        return self.seconds("train", device).total + self.seconds("update", device).total


def make_plan(
    run: Run, compiler: Compiler, lengths: Lengths | None = None, *, report: Report = lambda line: None
) -> Plan:
    """Compiles a run's steps for its mesh.

    Args:
      run: an `auto` of it is taken for its first choice.
      report: hears what is compiled next, each of which can take a minute.

    Raises:
      UserError: a dimension cannot be cut, or the model is not known.
      RunFailed: the compiler came to no end.
    """
    lengths, run = lengths or longest_lengths(run), run.mildest()
    held, programs = compiler.held(run, lengths), {}
    for number, step in enumerate(STEPS, 1):
        report(f"compiles {step} ({number} of {len(STEPS)}){_sizes(run, lengths, step)}")
        programs[step] = compiler.compile(run, lengths, step)
    return Plan(run, lengths, held, programs, compiler.words)


def _sizes(run: Run, lengths: Lengths, step: str) -> str:
    rows = dict(zip(("train", "validation"), run.rows(), strict=True)) | {"generation": run.rows()[1]}
    return f": {rows[step]} x ({lengths.input} + {lengths.target} tokens)" if step in rows else ""


def fitted(
    run: Run,
    compiler: Compiler,
    memory: float,
    lengths: Lengths | None = None,
    *,
    anything: bool = False,
    report: Report = lambda line: None,
) -> Plan | None:
    """The plan of a run with the mildest settings that fit the device; None where none does.

    Args:
      memory: of the device, in bytes.
      lengths: of inputs and targets; None is the longest that the run can have.
      anything: may change all that changes no result, not only what the run says is `auto`.

    Raises as `make_plan`.
    """
    lengths, first = lengths or longest_lengths(run), run.mildest()
    held = compiler.held(first, lengths)
    room = USABLE * memory - held.bytes
    if room <= 0:
        return None

    def needs_training(setting: fitting.Training) -> int:
        report(f"does it fit with {setting.rows} rows a micro-batch, remat {setting.remat}?")
        return _needs(compiler.compile(fitting.with_training(first, setting), lengths, "train"), room)

    def needs_evaluation(changed: Run) -> int:
        report(f"does it fit with {changed.rows()[1]} rows evaluated at once?")
        generation = _needs(compiler.compile(changed, lengths, "generation"), room) + held.answering
        return max(generation, _needs(compiler.compile(changed, lengths, "validation"), room))

    try:
        settled = fitting.mildest_fitting(
            first,
            fitting.settled(run) if anything else fitting.open_keys(run),
            training_needs=needs_training,
            evaluation_needs=needs_evaluation,
            room=room,
        )
    except fitting.NothingFits:
        return None
    made = make_plan(settled, compiler, lengths, report=report)
    return made if made.fits(memory) else None


def _needs(program: Compiled, room: float) -> int:
    """Bytes; of a program that was refused more than there are, whatever the compiler says."""
    return max(program.bytes, int(room) + 1) if program.refused else program.bytes


def smallest_change(
    plan: Plan, compiler: Compiler, memory: float, *, report: Report = lambda line: None
) -> Plan | None:
    """The first of a few changes, mildest first, that makes a run fit and changes none of its results; None where none
    does."""
    return fitted(plan.run, compiler, memory, plan.lengths, anything=True, report=report)


# --- which mesh ---


def meshes(devices: int) -> Iterator[MeshConfig]:
    """Every way to share out so many devices over the axes of a mesh."""
    for data in _divisors(devices):
        for fsdp in _divisors(devices // data):
            yield MeshConfig(data, fsdp, devices // data // fsdp)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One mesh, with the fastest settings that fit.

    Attributes:
      plan: None where nothing fits.
      why: where nothing does.
    """

    mesh: MeshConfig
    plan: Plan | None
    why: str = ""


def best(
    run: Run,
    compiler: Compiler,
    device: Device,
    memory: float,
    devices: int,
    lengths: Lengths | None = None,
    *,
    report: Report = lambda line: None,
) -> list[Tried]:
    """Every mesh of so many devices with the rematerialisation and micro-batch that are fastest among those that fit.

    By the least time of a step, fastest first; then those that do not fit. The rows of a step stay what they are.

    Raises:
      RunFailed: the compiler came to no end.
    """
    lengths, tried = lengths or longest_lengths(run), []
    for mesh in meshes(devices):
        name = mesh_words(mesh)
        try:
            telling = lambda line, name=name: report(f"{name}: {line}")
            plan = _fastest(run, mesh, compiler, device, memory, lengths, telling)
        except (UserError, RunFailed) as error:
            tried.append(Tried(mesh, None, str(error)))
            continue
        tried.append(Tried(mesh, plan, "" if plan else "nothing fits"))
    seconds = lambda one: one.plan.step_seconds(device) if one.plan else math.inf
    return sorted(tried, key=seconds)


def _fastest(
    run: Run, mesh: MeshConfig, compiler: Compiler, device: Device, memory: float, lengths: Lengths, report: Report
) -> Plan | None:
    """Of each rematerialisation the largest micro-batch that fits, and the fastest of these."""
    first = run.mildest()
    rows = first.rows()[0] * first.train.accumulation_steps  # of a step: all at once, where they fit
    parts = mesh.data * mesh.fsdp
    evaluated = max(first.rows()[1] // parts, 1) * parts
    first = dataclasses.replace(
        first,
        mesh=mesh,
        train=dataclasses.replace(first.train, batch_size=rows, accumulation_steps=1),
        eval=dataclasses.replace(first.eval, batch_size=evaluated),
    )
    if rows % parts:
        raise UserError(f"{rows} rows of a step cannot be shared out evenly over {parts} parts.")
    held = compiler.held(first, lengths)
    room = USABLE * memory - held.bytes
    found: list[tuple[float, Run]] = []
    largest = 0

    def needs(setting: fitting.Training) -> int:
        report(f"{setting.rows} rows a micro-batch, remat {setting.remat}")
        return _needs(compiler.compile(fitting.with_training(first, setting), lengths, "train"), room)

    for remat in ("none", "dots", "block") if room > 0 else ():
        kind = dataclasses.replace(first, model=dataclasses.replace(first.model, remat=remat))
        settings = [s for s in fitting.trainings(kind, remat=False, rows=True) if s.rows > largest]
        setting = fitting.first_training(settings, needs, room)
        if setting is not None:  # one that computes more anew is faster with more rows only
            largest = setting.rows
            changed = fitting.with_training(first, setting)
            program = {"train": compiler.compile(changed, lengths, "train")}
            found.append((Plan(changed, lengths, held, program, "").seconds("train", device).total, changed))
    if not found:
        return None
    fastest = min(found, key=lambda pair: pair[0])[1]
    return _with_fitting_evaluation(fastest, evaluated, compiler, memory, lengths, report)


def _with_fitting_evaluation(
    run: Run, rows: int, compiler: Compiler, memory: float, lengths: Lengths, report: Report
) -> Plan | None:
    first = fitting.with_evaluation(run, rows)
    for number in fitting.evaluations(first, rows=True):
        plan = make_plan(fitting.with_evaluation(first, number), compiler, lengths, report=report)
        if plan.fits(memory):
            return plan
    return None


def mesh_words(mesh: MeshConfig) -> str:
    """A mesh as `--mesh` takes it; `one device` where it has but one."""
    return ",".join(f"{axis}={parts}" for axis, parts in vars(mesh).items() if parts > 1) or "one device"


# --- many runs ---


def plan_all(
    runs: Sequence[tuple[str, Run]], compiler: Compiler, memory: float, *, report: Report = lambda line: None
) -> Iterator[tuple[str, Run, Plan | None, str]]:
    """Plans each of the named runs: as it is where it fits, else with what makes it fit.

    Runs whose programs are the same are planned once, whatever else they differ in.

    Yields the name, the run, its plan or None where nothing fits, and why there is none.
    """
    known: dict[Any, tuple[Plan | None, str]] = {}
    for name, run in runs:
        lengths, key = longest_lengths(run), _program_key(run)
        if key not in known:
            telling = lambda line, name=name: report(f"{name}: {line}")
            try:
                plan = fitted(run, compiler, memory, lengths, anything=True, report=telling)
                known[key] = plan, "" if plan else "nothing fits"
            except (UserError, RunFailed) as error:
                known[key] = None, str(error)
        yield name, run, *known[key]


def _program_key(run: Run) -> str:
    """What a run's programs depend on: not its rows, seed, rates or number of epochs."""
    run = run.mildest()
    train = {
        name: getattr(run.train, name)
        for name in ("batch_size", "accumulation_steps", "weight_decay", "clip_grad_norm", "label_smoothing")
    }
    parts = (run.model, run.method, run.ablation, run.eval.batch_size, run.eval.num_beams, run.mesh, train)
    return repr((parts, longest_lengths(run)))
