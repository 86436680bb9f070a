"""The arrays that a run holds on each device, and its programs, from shapes alone: no weights are loaded.

The programs are the same as those of the run (`jpeft.train.programs`), for devices that need not exist.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.config import Run
from jpeft.eval.labels import PackedLabels, answer_in_use
from jpeft.mesh.layout import Layout, bytes_on_a_device
from jpeft.model.family import compute_dtype, family_with
from jpeft.model.quantized import Quantization, chosen_forms, quantize_modules
from jpeft.model.source import load_config, load_quantization
from jpeft.peft.attaching import attach, split
from jpeft.peft.selection import select
from jpeft.program import Program
from jpeft.recent import Recent
from jpeft.train.optimizer import AdamW
from jpeft.train.programs import build_programs, parts_apart
from jpeft.train.schedule import constant
from jpeft.train.setup import selection
from jpeft.train.step import init_state

STEPS = ("train", "update", "validation", "generation")  # of every run
SCORING = "scoring"  # of a run that chooses among labels (`steps_of`)
ANSWERS = ("generation", SCORING)  # steps in the layout of answers, beside `Held.answering`


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The padded lengths of a batch in tokens; by default the run's longest."""

    input: int
    target: int


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes of arrays on each device.

    Attributes:
      weights: of the frozen base.
      adapter: trainable leaves, float32.
      optimizer: its two moments.
      gradients: the buffer for gradient accumulation.
      cache: keys and values of a batch in generation; part of the temporary memory of that step.
      answering: additional arrays during generation: the best adapter besides the last, and a copy of the weights if
        generation shards them differently from training (`Layout.for_answers`).
    """

    weights: int
    adapter: int
    optimizer: int
    gradients: int
    cache: int
    answering: int = 0

    @property
    def bytes(self) -> int:
        """The sum of what is held throughout the run."""
        return self.weights + self.adapter + self.optimizer + self.gradients


@dataclasses.dataclass(frozen=True)
class Described:
    """A run's programs with the shapes of their arguments.

    Attributes:
      arguments: by step, the arguments for `Program.traced`.
      turns: by step, the assumed iterations of a loop that ends by a condition.
    """

    held: Held
    programs: dict[str, Program]
    arguments: dict[str, tuple[Any, ...]]
    turns: dict[str, int]


def longest_lengths(run: Run) -> Lengths:
    """The longest padded input and target, in tokens, that a batch of the run can have."""
    task = run.build_task()
    return Lengths(
        _up(run.data.max_input_length or task.max_input_length, 16),
        _up(run.data.max_target_length or task.max_target_length, 4),
    )


def steps_of(run: Run) -> tuple[str, ...]:
    """The steps of a run: `STEPS`, and `SCORING` if it chooses among the labels of its task."""
    return (*STEPS, SCORING) if _scored_labels(run) else STEPS


def may_score_unknown_labels(run: Run) -> bool:
    """Whether the run may choose among labels that are in its rows only, which a plan does not read.

    Its plan then lacks `SCORING`.
    """
    task = run.build_task()
    return task.is_custom and run.eval.answer != "generate" and run.data.kind != "generation"


def describe(
    run: Run, lengths: Lengths, devices: Sequence[Any] | None = None, *, auto_dtype: str = "auto"
) -> Described:
    """Describes a run's programs for its mesh of devices.

    Args:
      devices: to lay the mesh out over; None for those of this process.
      auto_dtype: what `model.dtype=auto` stands for; by default the same as for a run in this process.

    Raises:
      UserError: there are too few devices, a dimension cannot be cut, or the model is not known.
    """
    run = run.mildest()
    dtype = compute_dtype(auto_dtype if run.model.dtype == "auto" else run.model.dtype)
    train_rows, eval_rows = run.rows()
    layout = Layout.of_devices(**dataclasses.asdict(run.mesh), devices=devices)
    graphdef, adapter, base = _trees(run, dtype)
    method = run.build_method()
    optimizer = AdamW(run.train.weight_decay, run.train.clip_grad_norm, tuple(method.rate_factors.items()))
    state = layout.describe(jax.eval_shape(lambda adapter: init_state(adapter, optimizer, method), adapter))
    base = layout.describe(base)
    programs = build_programs(
        graphdef,
        state,
        base,
        optimizer,
        layout,
        max_length=lengths.target,
        num_beams=run.eval.num_beams,
        labels=_packed_labels(run, lengths),
        label_smoothing=run.train.label_smoothing,
        method=method,
        parts=parts_apart(layout, method, _config_of(run).dropout_rate),
        cache=Recent(4),
    )
    sums = layout.describe(jax.eval_shape(programs.zero_sums, adapter))
    family, shape = family_with(load_config(run.model.name)), (lengths.input, lengths.target)
    inputs = jax.ShapeDtypeStruct((eval_rows, lengths.input), jnp.int32)
    scalar, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    answering = programs.answering.layout
    moved = answering.describe((state.adapter, base))
    trained, evaluated = family.batch_shapes(train_rows, shape), family.batch_shapes(eval_rows, shape)
    steps = {
        "train": (programs.accumulate, (sums, state.adapter, base, key, scalar, scalar, trained)),
        "update": (programs.update, (state, sums, constant(0.0))),
        "validation": (programs.loss, (state.adapter, base, evaluated)),
        "generation": (programs.answering.generate, (*moved, inputs)),
    }
    if programs.answering.label_log_probs is not None:
        steps[SCORING] = programs.answering.label_log_probs, (*moved, inputs)
    return Described(
        Held(
            weights=bytes_on_a_device(base),
            adapter=bytes_on_a_device(state.adapter),
            optimizer=bytes_on_a_device((state.opt_state, state.memory)),
            gradients=bytes_on_a_device(sums.grads),
            cache=_cache_bytes(run, lengths, answering, dtype),
            answering=bytes_on_a_device(state.adapter)
            + (0 if programs.answering.move is None else bytes_on_a_device(moved)),
        ),
        {step: program for step, (program, _) in steps.items()},
        {step: arguments for step, (_, arguments) in steps.items()},
        dict.fromkeys(steps, 1) | {"generation": lengths.target},
    )


def quantization_of_run(run: Run) -> Quantization | None:
    """The quantization of a run's base: as requested, else as in the model's files; None for float weights."""
    return run.quantization() or load_quantization(run.model.name)


def _scored_labels(run: Run) -> tuple[str, ...]:
    """The labels that the run's test chooses among by scoring; none if it generates its answers only."""
    task = run.build_task()
    return task.answers if answer_in_use(run.eval.answer, task) == "score" else ()


def _packed_labels(run: Run, lengths: Lengths) -> PackedLabels | None:
    """Labels as long as the run's longest target, which stand in for the run's own: no tokenizer is loaded."""
    labels, config = _scored_labels(run), load_config(run.model.name)
    if not labels:
        return None
    tokens = np.full(_up(len(labels) * lengths.target, 8), config.pad_token_id, np.int32)
    segment_ids = np.minimum(np.arange(len(tokens)) // lengths.target, len(labels)).astype(np.int32)
    return PackedLabels(labels, tokens, tokens, segment_ids, config.pad_token_id)


def _config_of(run: Run) -> Any:
    """The model's config, with the run's dropout rate."""
    config = load_config(run.model.name)
    rate = run.model.dropout_rate
    return config if rate is None else dataclasses.replace(config, dropout_rate=rate)


def _trees(run: Run, dtype: jnp.dtype) -> tuple[nnx.GraphDef, Any, Any]:
    """The structure of the model, and the shapes of the adapter and of the base as the run would load them."""
    config = _config_of(run)
    method, family = run.build_method(), family_with(config)
    quantization = quantization_of_run(run)
    structure = []

    def make() -> tuple[nnx.State, nnx.State]:
        model = family.build(config, dtype=dtype)
        family.arrange(model, scan_layers=run.model.scan_layers, remat=run.model.remat)
        if not method.trains_base:
            nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(model, nnx.Param)))
        if quantization is not None:
            quantize_modules(model, chosen_forms(model, quantization), jnp.zeros)
        model = attach(model, method, select(model, method, selection(run, model)), jax.random.key(0))
        graphdef, adapter, base = split(model)
        structure.append(graphdef)
        return adapter, base

    adapter, base = jax.eval_shape(make)
    return structure[0], adapter, base


def _cache_bytes(run: Run, lengths: Lengths, layout: Layout, dtype: jnp.dtype) -> int:
    """Bytes of keys and values on a device during generation, of self-attention and cross-attention."""
    config = load_config(run.model.name)
    rows = run.rows()[1] * run.eval.num_beams // layout.batch_parts
    shape = (lengths.input, lengths.target)
    return rows * family_with(config).cache_numbers(config, shape, parts=layout.shape["model"]) * dtype.itemsize


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
