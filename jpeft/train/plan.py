"""What a run will need of each device, from shapes alone: no weights, and none of the devices.

The steps of the run are compiled for as many pieces of this machine's CPU as the mesh has devices, by the very
functions that the run compiles, and what XLA says of their memory is reported. Weights, adapter and optimizer are
exact; the temporary memory of a GPU or TPU, which fuse more, differs from a CPU's.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.mesh.hardware import Hardware
from jpeft.mesh.layout import Layout
from jpeft.mesh.work import Messages, matmul_flops, messages
from jpeft.model.family import family_with
from jpeft.model.source import load_config
from jpeft.peft.attaching import attach, split
from jpeft.peft.selection import select
from jpeft.train.optimizer import AdamW
from jpeft.train.programs import build_programs
from jpeft.train.session import Recent
from jpeft.train.setup import selection
from jpeft.train.step import init_state, zero_sums

USABLE = 0.9  # of a device's memory; the rest is the driver's, the allocator's gaps and what no plan foresees


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Padded lengths in tokens; a run's longest, unless its data are known to be shorter."""

    input: int
    target: int


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One of the run's compiled functions.

    Attributes:
      temporary_bytes: that each device needs while it runs, beside its arguments and results; for generation with the
        weights where it has them, if that is elsewhere than training has them.
      flops: of matrix products over all devices, of one optimizer step, validation batch or generated batch.
      messages: between the devices in one call.
      calls: of the function for one step.
    """

    temporary_bytes: int
    flops: float
    messages: Messages
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one device needs, in bytes, and what the steps do.

    Attributes:
      weights: of the frozen base.
      adapter: trainable leaves, float32.
      optimizer: its two moments.
      gradients: the buffer that micro-batches add to.
      cache: keys and values of a batch in generation, part of that step's temporary memory.
      steps: `train`, `validation`, `generation`.
    """

    run: Run
    lengths: Lengths
    weights: int
    adapter: int
    optimizer: int
    gradients: int
    cache: int
    steps: Mapping[str, StepPlan]

    @property
    def resident(self) -> int:
        """Bytes that are there all the time."""
        return self.weights + self.adapter + self.optimizer + self.gradients

    @property
    def peak(self) -> int:
        """Bytes of the step that needs most, with what is there all the time."""
        return self.resident + max(step.temporary_bytes for step in self.steps.values())

    def fits(self, memory: float) -> bool:
        """Whether it fits a device of so many bytes."""
        return self.peak <= USABLE * memory

    def seconds(self, step: str, hardware: Hardware) -> float:
        """The least that a step can take: its products at the device's peak, or its weights read at full bandwidth,
        whichever is longer, and then its messages."""
        planned, mesh = self.steps[step], self.run.mesh
        devices = mesh.data * mesh.fsdp * mesh.model
        compute = planned.flops / devices / hardware.flops
        # Training reads the weights forward and backward; generation reads the decoder's for every token.
        reads = {"train": 2 * planned.calls, "validation": 1, "generation": 1 + self.lengths.target / 2}[step]
        memory = reads * (self.weights + self.adapter) / hardware.bandwidth
        talk = planned.calls * sum(planned.messages.bytes.values()) / hardware.interconnect
        return max(compute, memory) + talk


def longest_lengths(run: Run) -> Lengths:
    """The longest that a batch of the run can be, padded."""
    task = run.build_task()
    return Lengths(
        _up(run.data.max_input_length or task.max_input_length, 16),
        _up(run.data.max_target_length or task.max_target_length, 4),
    )


def make_plan(run: Run, lengths: Lengths | None = None, *, report: Callable[[str], None] = lambda line: None) -> Plan:
    """Compiles a run's steps for its mesh. There have to be as many devices, of whatever kind, as the mesh asks for.

    Args:
      report: hears what is compiled next, each of which can take a minute.

    Raises:
      UserError: there are too few, a dimension cannot be cut, or the model is not known.
    """
    lengths = lengths or longest_lengths(run)
    layout = Layout.of_devices(**dataclasses.asdict(run.mesh))
    graphdef, adapter, base = _trees(run)
    optimizer = AdamW(run.train.weight_decay, run.train.clip_grad_norm)
    state = layout.describe(jax.eval_shape(lambda adapter: init_state(adapter, optimizer), adapter))
    sums = layout.describe(jax.eval_shape(zero_sums, adapter))
    base = layout.describe(base)
    programs = build_programs(
        graphdef,
        state,
        base,
        sums,
        optimizer,
        layout,
        max_length=lengths.target,
        num_beams=run.eval.num_beams,
        label_smoothing=run.train.label_smoothing,
        method=run.build_method(),
        made=Recent(4),
    )
    family, shape = family_with(load_config(run.model.name)), (lengths.input, lengths.target)
    train = family.batch_shapes(run.train.batch_size, shape)
    evaluated = family.batch_shapes(run.eval.batch_size, shape)
    inputs = jax.ShapeDtypeStruct((run.eval.batch_size, lengths.input), jnp.int32)
    scalar, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    calls = run.train.accumulation_steps
    rows = f"{run.train.batch_size} x ({lengths.input} + {lengths.target} tokens)"
    report(f"compiles train (1 of 3): micro-batches of {rows}")
    training = _step(programs.accumulate, (sums, state.adapter, base, key, scalar, scalar, train), turns=1, calls=calls)
    report(f"compiles validation (2 of 3): batches of {run.eval.batch_size}")
    validation = _step(programs.loss, (state.adapter, base, evaluated), turns=1)
    report(f"compiles generation (3 of 3): batches of {run.eval.batch_size}")
    answering = programs.answering.layout
    moved = answering.describe((state.adapter, base))
    generation = _step(programs.answering.generate, (*moved, inputs), turns=lengths.target)
    if programs.answering.move is not None:  # beside the trees that training has
        generation = dataclasses.replace(
            generation, temporary_bytes=generation.temporary_bytes + _bytes_on_a_device(moved)
        )
    steps = {"train": training, "validation": validation, "generation": generation}
    return Plan(
        run=run,
        lengths=lengths,
        weights=_bytes_on_a_device(base),
        adapter=_bytes_on_a_device(state.adapter),
        optimizer=_bytes_on_a_device(state.opt_state),
        gradients=_bytes_on_a_device(sums.grads),
        cache=_cache_bytes(run, lengths, answering),
        steps=steps,
    )


def _trees(run: Run) -> tuple[nnx.GraphDef, Any, Any]:
    """Structure, and shapes of the adapter and of the base, as the run would load them."""
    config = load_config(run.model.name)
    if run.model.dropout_rate is not None:
        config = dataclasses.replace(config, dropout_rate=run.model.dropout_rate)
    dtype = jnp.dtype("bfloat16" if run.model.dtype == "auto" else run.model.dtype)
    method, family = run.build_method(), family_with(config)
    structure = []

    def make() -> tuple[nnx.State, nnx.State]:
        model = family.build(config, dtype=dtype)
        family.arrange(model, scan_layers=run.model.scan_layers, remat=run.model.remat)
        if not method.trains_base:
            nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(model, nnx.Param)))
        model = attach(model, method, select(model, method, selection(run, model)), jax.random.key(0))
        graphdef, adapter, base = split(model)
        structure.append(graphdef)
        return adapter, base

    adapter, base = jax.eval_shape(make)
    return structure[0], adapter, base


def _step(program: Any, args: tuple[Any, ...], *, turns: int, calls: int = 1) -> StepPlan:
    compiled = program.compile(*args)
    memory = compiled.memory_analysis()
    flops = matmul_flops(program.function, *args, turns=turns)
    return StepPlan(
        temporary_bytes=int(memory.temp_size_in_bytes),
        flops=flops * calls,
        messages=messages(compiled.as_text() or "", turns=turns),
        calls=calls,
    )


def _bytes_on_a_device(tree: Any) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _cache_bytes(run: Run, lengths: Lengths, layout: Layout) -> int:
    """Keys and values that a device keeps while it generates, of what was written and of the encoder's output."""
    config = load_config(run.model.name)
    rows = run.eval.batch_size * run.eval.num_beams // layout.batch_parts
    itemsize = 4 if run.model.dtype == "float32" else 2
    shape = (lengths.input, lengths.target)
    return rows * family_with(config).cache_numbers(config, shape, parts=layout.shape["model"]) * itemsize


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def smallest_change(plan: Plan, memory: float, *, report: Callable[[str], None] = lambda line: None) -> Plan | None:
    """The first of a few changes, mildest first, that makes a run fit; None where none does.

    Rows move from the micro-batch to accumulation, which changes no result; the backward pass computes anew what it
    would have kept; generation takes fewer rows at once.

    Args:
      report: hears what is tried.
    """
    run = plan.run
    parts = run.mesh.data * run.mesh.fsdp
    for remat in dict.fromkeys((run.model.remat, "block")):
        for cut in (1, 2, 4, 8, 16):
            rows, generated = run.train.batch_size // cut, max(run.eval.batch_size // cut, parts)
            if rows < 1 or rows % parts or generated % parts or run.train.batch_size % cut:
                break
            changed = dataclasses.replace(
                run,
                model=dataclasses.replace(run.model, remat=remat),
                train=dataclasses.replace(
                    run.train, batch_size=rows, accumulation_steps=run.train.accumulation_steps * cut
                ),
                eval=dataclasses.replace(run.eval, batch_size=generated),
            )
            if changed == run:
                continue
            try:
                what = f"does it fit with train.batch_size={rows}, model.remat={remat}? "
                other = make_plan(changed, plan.lengths, report=lambda line, what=what: report(what + line))
            except UserError:
                continue
            if other.fits(memory):
                return other
    return None
