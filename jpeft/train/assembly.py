"""Assembles a fine-tuning run from its config: model, data, compiled programs and trainer.

Everything that can be wrong with a run is checked here, before its directory is changed.
"""

import dataclasses
import datetime
import functools
from collections.abc import Hashable, Mapping
from typing import Any

import jax
from flax import nnx

from jpeft.config import Run, monitored_metric, require_labels
from jpeft.data.batches import eval_order, num_steps
from jpeft.data.identity import signature
from jpeft.data.prepare import Data, prepare
from jpeft.data.sources import require_paths
from jpeft.eval.evaluators import AnswersEvaluator, Evaluator, LossEvaluator
from jpeft.eval.generate import Batching
from jpeft.eval.labels import PackedLabels, answer_in_use
from jpeft.eval.metrics import check_metrics, higher_is_better, own, require_metrics, try_own
from jpeft.mesh.layout import Layout
from jpeft.peft.attaching import count, split
from jpeft.run.directory import RunDirectory
from jpeft.run.display import Display
from jpeft.run.environment import reset_peak_memory
from jpeft.run.estimate import Size
from jpeft.train import fitting
from jpeft.train.device_fit import DeviceFit, resolve_auto
from jpeft.train.meeting import Meeting
from jpeft.train.monitor import Monitor
from jpeft.train.optimizer import AdamW
from jpeft.train.origins import origins
from jpeft.train.positions import require_positions
from jpeft.train.programs import (
    AnsweringPrograms,
    Programs,
    build_programs,
    kind_of,
    meeting_others,
    parts_apart,
)
from jpeft.train.progress import Progress
from jpeft.train.schedule import three_point_schedule
from jpeft.train.seen import seen_rows_warnings
from jpeft.train.session import Session
from jpeft.train.setup import Setup, set_up
from jpeft.train.shown import ShownEpochs
from jpeft.train.step import TrainState, init_state
from jpeft.train.stream import Epochs, PaddedRows
from jpeft.train.trainer import Course, TimedEvaluator, Trainer


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What a run consists of apart from its trainer, which alone changes.

    Attributes:
      run: the config, with every `auto` resolved.
      directory, display, session: where the run writes, prints and looks for shared objects.
      layout: of its devices.
      setup: the model and what came with it; its `model` holds shapes in place of arrays, its `untuned` is None.
      data_key, data: the splits, and the key of all that they are made from.
      fingerprints: of the files that the run reads beside its rows (`jpeft.train.origins`).
      answer: how labels are answered: `generate` or `score`.
      answering_options: the arguments of `build_answering` that follow from config and data.
      monitor: what early stopping follows.
      optimizer: makes the updates.
      graphdef, base: the structure of the model and its frozen tree, on the devices.
      programs: compiled functions.
      adapter_parameters: the number of trainable parameters.
      settled: what each `auto` was resolved to, by config key; empty for a run without any.
    """

    run: Run
    directory: RunDirectory
    display: Display
    session: Session
    layout: Layout
    setup: Setup
    data_key: Hashable
    data: Data
    fingerprints: Mapping[str, str]
    answer: str
    answering_options: Mapping[str, Any]
    monitor: Monitor
    optimizer: AdamW
    graphdef: nnx.GraphDef
    base: nnx.State
    programs: Programs
    adapter_parameters: int
    settled: Mapping[str, int | str]

    @property
    def max_epochs(self) -> int:
        """The most epochs that the run may train for."""
        assert self.run.train.max_epochs is not None, "Run.from_config fills it in"
        return self.run.train.max_epochs

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return num_steps(
            len(self.data.tokens["train"]),
            batch_size=self.run.rows()[0],
            accumulation_steps=self.run.train.accumulation_steps,
        )

    @property
    def num_rows(self) -> dict[str, int]:
        """The number of rows of each split."""
        return {name: len(tokens) for name, tokens in self.data.tokens.items()}

    @property
    def meeting(self) -> Meeting | None:
        """Where its program calls meet those of other runs; None if it runs alone or trains its base."""
        return _meeting(self.setup, self.session)

    def padded_rows(self, name: str) -> PaddedRows:
        """The rows of a split, to make batches of."""
        return PaddedRows(self.data.tokens[name], self.data.shapes, self.setup.model.config, self.layout)

    def batching(self, programs: AnsweringPrograms) -> Batching:
        """How the rows of a split are batched to be answered."""
        batch_size = self.run.rows()[1]
        return Batching(
            shapes=self.data.shapes,
            batch_size=batch_size,
            part=programs.layout.rows_here(batch_size),
            padding_id=self.setup.model.config.padding_id,
        )


def assemble(
    asked: Run, directory: RunDirectory, display: Display, session: Session
) -> tuple[Assembly, Trainer, nnx.Module]:
    """Loads, checks and builds everything that a run needs; writes nothing.

    Args:
      asked: the config, in which keys may be `auto`.
      directory: the directory claimed for the run.
      display: prints what is found on the way.
      session: caches shared with other runs.

    Returns:
      The run, its trainer, and its base without the method. Full tuning donates the arrays of that model in its first
      step, so the caller has to drop it before training.

    Raises:
      UserError: the config, the data or the model is not as it has to be.
      RunFailed: no settings fit the device, or a file is damaged.
    """
    run = asked.mildest()
    _check_names(run)
    reset_peak_memory()
    layout = Layout.of_devices(**dataclasses.asdict(run.mesh))
    setup = set_up(run, session, layout, report=display.say)
    fingerprints = origins(run)
    data_key, data = _prepare_data(run, setup, session, display)
    if run.method.from_adapter is not None:
        for line in seen_rows_warnings(run.method.from_adapter, data.examples["test"]):
            display.say(line)
    answer = answer_in_use(run.eval.answer, data.task)
    require_metrics(data.task, answer)
    _try_metrics(run, data)
    monitor = _monitor(run, data, answer)
    answering_options = {
        "max_length": data.task.max_target_length,
        "num_beams": run.eval.num_beams,
        "labels": _packed_labels(data, setup) if answer == "score" else None,
    }
    positions = {
        "labels": answering_options["labels"],
        "follows_answers": monitored_metric(run.train.monitor) is not None,
    }
    require_positions(setup.model, data, **positions)
    graphdef, adapter, base = split(setup.model)
    adapter, base = layout.place(adapter), layout.place(base)
    optimizer = _optimizer(run, setup)
    state = layout.place(init_state(adapter, optimizer, setup.method))
    programs_for = functools.partial(
        build_programs,
        state=state,
        base=base,
        optimizer=optimizer,
        layout=layout,
        label_smoothing=run.train.label_smoothing,
        method=setup.method,
        parts=parts_apart(layout, setup.method, setup.model.config.dropout_rate),
        cache=session.programs,
        **answering_options,
    )
    if asked == run:
        programs, settled = programs_for(graphdef), {}
    else:
        fit = DeviceFit(asked, setup, layout, data, state, base, programs_for)
        resolved = resolve_auto(asked, fit, directory, report=display.say)
        if resolved.rows() != run.rows():
            data_key, data = _prepare_data(resolved, setup, session, display)
            require_positions(setup.model, data, **positions)
        run, settled = resolved, fitting.settled(resolved)
        programs, graphdef = fit.programs(run.model.remat)
    if (meeting := _meeting(setup, session)) is not None:
        kind = None
        if setup.method.padded_options:
            kind = kind_of(graphdef, adapter, base, layout, label_smoothing=run.train.label_smoothing)
        programs = meeting_others(programs, meeting, setup.model.config, kind=kind)
    untuned = setup.untuned
    # The module tree keeps the structure alone: its initial arrays would otherwise stay in memory beside the state.
    structure = nnx.merge(graphdef, *jax.tree.map(_shape_of, (adapter, base)))
    assembly = Assembly(
        run,
        directory,
        display,
        session,
        layout,
        dataclasses.replace(setup, model=structure, untuned=None),
        data_key,
        data,
        fingerprints,
        answer,
        answering_options,
        monitor,
        optimizer,
        graphdef,
        base,
        programs,
        count(adapter),
        settled,
    )
    return assembly, _trainer(assembly, state), untuned


def _optimizer(run: Run, setup: Setup) -> AdamW:
    return AdamW(
        weight_decay=run.train.weight_decay,
        clip_grad_norm=run.train.clip_grad_norm,
        rate_factors=tuple(setup.method.rate_factors.items()),
    )


def _check_names(run: Run) -> None:
    """Raises `UserError` for a metric function or a data path named in the config that does not exist."""
    own.load_all([*run.build_task().metrics, *filter(None, [monitored_metric(run.train.monitor)])])
    require_paths(run.data.source, run.data.path, run.data.mix)


def _try_metrics(run: Run, data: Data) -> None:
    """Raises `UserError` if a metric function of the user's fails on the rows that it will judge."""
    try_own(data.task.metrics, data.task, data.examples["test"])
    if (monitored := monitored_metric(run.train.monitor)) is not None:
        try_own([*data.task.metrics, monitored], data.task, data.examples["validation"])


def _prepare_data(run: Run, setup: Setup, session: Session, display: Display) -> tuple[Hashable, Data]:
    """The splits, and the key of all that they are made from."""
    data, request = run.data, run.data_request()
    key = (
        (run.model.name, setup.tokenizer.fingerprint),
        *(data.task, data.input, data.target, data.template, signature(data.path, data.mix), run.eval.metrics),
        request,
    )
    make = lambda: prepare(run.build_task(), setup.tokenizer, request, report=display.say)
    return key, session.data.get(key, make)


def _packed_labels(data: Data, setup: Setup) -> PackedLabels:
    require_labels(bool(data.task.answers), data.task.name)
    return PackedLabels.of(data.task.answers, setup.tokenizer, setup.model.config)


def _monitor(run: Run, data: Data, answer: str) -> Monitor:
    """What early stopping follows. Raises `UserError` if the task does not give that metric."""
    name, metric = run.train.monitor, monitored_metric(run.train.monitor)
    if metric is not None:
        check_metrics("train.monitor", [metric], kind=data.task.kind, answer=answer)
    return Monitor(name, metric is not None and higher_is_better(metric), run.train.patience)


def _meeting(setup: Setup, session: Session) -> Meeting | None:
    return None if setup.method.trains_base else session.meeting


def _trainer(assembly: Assembly, state: TrainState) -> Trainer:
    """The trainer of `state` on the training rows, for all steps of the schedule."""
    train, rows = assembly.run.train, assembly.run.rows()[0]
    stream = Epochs(
        assembly.padded_rows("train"),
        [example.id for example in assembly.data.examples["train"]],
        batch_size=rows,
        accumulation_steps=train.accumulation_steps,
        seed=train.seed,
    )
    total_steps = assembly.steps_per_epoch * assembly.max_epochs
    course = Course(
        total_steps=total_steps,
        schedule=three_point_schedule(
            **dataclasses.asdict(train.learning_rate),
            total_steps=total_steps,
            warmup_fraction=train.warmup_fraction,
        ),
        evaluations=[TimedEvaluator(evaluator, assembly.steps_per_epoch) for evaluator in _evaluators(assembly)],
        monitor=assembly.monitor,
        seed=train.seed,
        checkpoint_every_seconds=train.checkpoint_every_seconds,
        remedy="a lower train.learning_rate.warmup, train.clip_grad_norm=1.0 or model.dtype=float32",
    )
    progress = Progress(
        stream.start(),
        {"train": 0.0, "validation": 0.0, "test": 0.0, "compile": 0.0},
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    listener = ShownEpochs(
        assembly.display,
        assembly.monitor,
        _size(assembly),
        steps_per_epoch=assembly.steps_per_epoch,
        rows_per_step=rows * train.accumulation_steps,
    )
    return Trainer(
        state,
        assembly.base,
        assembly.programs,
        stream,
        course,
        assembly.layout,
        progress,
        directory=assembly.directory.path,
        report=assembly.display.say,
        listener=listener,
    )


def _size(assembly: Assembly) -> Size:
    rows = assembly.num_rows
    passes = assembly.run.eval.num_beams + (assembly.answering_options["labels"] is not None)
    return Size(assembly.max_epochs, rows["train"], rows["validation"], rows["test"] * passes)


def _evaluators(assembly: Assembly) -> list[Evaluator]:
    """The validation loss; and, if a metric is monitored, answers to the validation rows."""
    tokens, batch_size, rows = (
        assembly.data.tokens["validation"],
        assembly.run.rows()[1],
        assembly.padded_rows("validation"),
    )
    order = eval_order(tokens.lengths(), batch_size=batch_size)
    batches = lambda: ((rows.batch(batch, batch_size), len(batch)) for batch in order)
    evaluators: list[Evaluator] = [LossEvaluator("validation", assembly.programs.loss, batches, len(tokens))]
    if (metric := monitored_metric(assembly.run.train.monitor)) is not None:
        task, answering = assembly.data.task, assembly.programs.answering
        task = dataclasses.replace(task, metrics=tuple(dict.fromkeys([task.metric, *task.metrics, metric])))
        evaluators.append(
            AnswersEvaluator(
                "validation",
                task,
                assembly.data.examples["validation"],
                tokens,
                assembly.setup.tokenizer,
                answering.generate,
                answering.label_log_probs,
                assembly.answering_options["labels"],
                assembly.batching(answering),
                answering.ready,
            )
        )
    return evaluators


def _shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
