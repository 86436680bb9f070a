"""A run from start to end: train with early stopping, keep the best adapter, test by generation, write the result.

The order of things is fixed by the config and its seeds alone, and a checkpoint holds all that is not: a run killed
at any moment and started again ends with the same adapter, bit for bit.
"""

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.accelerators import unchecked_products
from jpeft.adapters.files import save_adapter
from jpeft.config import Run, monitored_metric, of_any_version, require_labels
from jpeft.data.batches import eval_order, num_steps
from jpeft.data.identity import data_record, digest_now, signature
from jpeft.data.prepare import Data, prepare
from jpeft.data.sources import require_paths, source_in_use
from jpeft.data.task_file import QUANTIZED, TaskOfRun
from jpeft.errors import Paused, RunFailed, UserError
from jpeft.eval.answering import Answers, ScoredAnswers, answer_split
from jpeft.eval.evaluators import AnswersEvaluator, Evaluator, LossEvaluator
from jpeft.eval.generate import Batching
from jpeft.eval.labels import PackedLabels, answer_in_use
from jpeft.eval.look_back import few_test_rows
from jpeft.eval.loss import mean_loss
from jpeft.eval.metrics import check_metrics, higher_is_better, own, require_metrics, rouge_tokenizer
from jpeft.files import cache_directory
from jpeft.mesh.layout import Layout
from jpeft.model.family import compute_dtype
from jpeft.model.settings import pass_on
from jpeft.peft.attaching import count, split
from jpeft.process import prepare_process
from jpeft.results import PausedRecord, RunRecord
from jpeft.run.directory import PAUSE_FILE, RunDirectory, run_once
from jpeft.run.display import Display
from jpeft.run.environment import commit, peak_memory_bytes, reset_peak_memory, versions
from jpeft.run.estimate import Size
from jpeft.run.processes import from_first, is_first, wait_for_all
from jpeft.train import cautions, fitting
from jpeft.train.aftermath import write_aftermath
from jpeft.train.device_fit import DeviceFit
from jpeft.train.kernel_check import FirstUpdate, MicroBatch, kernel_caution, update_caution
from jpeft.train.meeting import Meeting
from jpeft.train.monitor import Monitor
from jpeft.train.optimizer import AdamW
from jpeft.train.origins import origins
from jpeft.train.programs import (
    AnsweringPrograms,
    Programs,
    build_answering,
    build_programs,
    kind_of,
    meeting_others,
    parts_apart,
)
from jpeft.train.progress import Progress
from jpeft.train.schedule import three_point_schedule
from jpeft.train.session import Session
from jpeft.train.setup import set_up
from jpeft.train.shown import ShownEpochs
from jpeft.train.step import TrainState, init_state, make_update
from jpeft.train.stream import Epochs, PaddedRows
from jpeft.train.trainer import Course, TimedEvaluator, Trainer
from jpeft.words import counted, named_in_bits


def execute(
    run: Run,
    workdir: Path,
    *,
    overwrite: bool = False,
    display: Display | None = None,
    session: Session | None = None,
    pause_after: int | None = None,
) -> dict[str, Any]:
    """Does what is left of a run in `workdir` and returns its `result.json`; a finished run is not run again.

    Args:
      pause_after: how many of its epochs it is to train for now, where it does not end before; None for all. Called
        again it goes on, and ends as if it had never waited.

    Raises:
      Paused: it has trained that many, and says in `paused.json` (`jpeft.results.PausedRecord`) what they gave.
      UserError: the config, the directory, the data or the model is not as it has to be.
      RunFailed: the loss is not finite, the disk is full, a file is damaged, or the process was told to stop; the same
        command goes on from the last checkpoint.
    """
    display = display or Display()
    prepare_process(display.say)
    return run_once(
        workdir,
        run.to_dict(),
        lambda directory: _Execution(run, directory, display, session or Session()).result(pause_after),
        overwrite=overwrite,
        report=display.say,
        rows=lambda: digest_of_rows(run),
        origins=lambda: origins(run),
        of_today=of_any_version,
    )


def digest_of_rows(run: Run) -> str | None:
    """`rows_digest` of what a run would read now; None where only the network tells, of a revision that stays."""
    data = run.data
    if source_in_use(data.source, data.path) in ("hub", "tfds"):
        return None
    return digest_now(run.build_task(), data.source, data.path, data.mix, sample_seed=data.sample_seed)


class _Execution:
    """One run of the trainer at work: what its phases (data, set up, train, test, save) hand to each other.

    Attributes:
      run: until `_build` with the first choice for each key that may be settled by what fits, then as it was settled.
      made_of: fingerprints of what it reads beside its rows (`origins`).
      untuned: the base alone, until the model trains.
    """

    def __init__(self, asked: Run, directory: RunDirectory, display: Display, session: Session):
        """Makes all that the phases need; writes nothing before all that can be wrong has been seen.

        Args:
          asked: the run with `auto` for what is to be settled by what fits.
        """
        self.run, self.directory, self.display, self.session = asked.mildest(), directory, display, session
        self._see_what_it_names()
        reset_peak_memory()
        self.layout = Layout.of_devices(**dataclasses.asdict(self.run.mesh))
        self.setup = set_up(self.run, session, self.layout, report=display.say)
        self.made_of = origins(self.run)
        self.data_key, self.data = self._prepare_data()
        self.answer = answer_in_use(self.run.eval.answer, self.data.task)
        require_metrics(self.data.task, self.answer)
        self.monitor = self._monitor()
        self.answering = {
            "max_length": self.data.task.max_target_length,
            "num_beams": self.run.eval.num_beams,
            "labels": self._labels(),
        }
        graphdef, adapter, base = split(self.setup.model)
        adapter, self.base = self.layout.place(adapter), self.layout.place(base)
        self.adapter_parameters = count(adapter)
        self.optimizer = AdamW(
            weight_decay=self.run.train.weight_decay,
            clip_grad_norm=self.run.train.clip_grad_norm,
            rate_factors=tuple(self.setup.method.rate_factors.items()),
        )
        state = self.layout.place(init_state(adapter, self.optimizer, self.setup.method))
        self.graphdef, self.programs, self.settled = self._build(graphdef, state, asked)
        assert self.run.train.max_epochs is not None, "Run.from_config fills it in"
        self.max_epochs = self.run.train.max_epochs
        self.steps_per_epoch = num_steps(
            len(self.data.tokens["train"]),
            batch_size=self.run.rows()[0],
            accumulation_steps=self.run.train.accumulation_steps,
        )
        self.trainer = self._trainer(state)
        # The module tree keeps the structure alone: its initial arrays would otherwise stay in memory beside the state.
        structure = nnx.merge(self.graphdef, *jax.tree.map(_shape_of, (adapter, self.base)))
        self.untuned, self.setup = self.setup.untuned, dataclasses.replace(self.setup, model=structure, untuned=None)
        self._begin()

    def _see_what_it_names(self) -> None:
        """Functions of their own that whoever runs it named in the config, and the files that it reads."""
        own.load_all([*self.run.build_task().metrics, *filter(None, [monitored_metric(self.run.train.monitor)])])
        require_paths(self.run.data.source, self.run.data.path, self.run.data.mix)

    def _build(
        self, graphdef: nnx.GraphDef, state: TrainState, asked: Run
    ) -> tuple[nnx.GraphDef, Programs, dict[str, Any]]:
        """The run's structure and programs, and what was settled of it; they meet other runs' where there are any.

        After it `self.run` and `self.data` are those of what was settled.
        """

        def programs_of(graphdef: nnx.GraphDef) -> Programs:
            return build_programs(
                graphdef,
                state,
                self.base,
                self.optimizer,
                self.layout,
                label_smoothing=self.run.train.label_smoothing,
                method=self.setup.method,
                parts=parts_apart(self.layout, self.setup.method, self.setup.model.config.dropout_rate),
                **self.answering,
                made=self.session.programs,
            )

        if asked == self.run:
            programs, settled = programs_of(graphdef), {}
        else:
            graphdef, programs, settled = self._settle(asked, state, programs_of)
        if (meeting := self._meeting()) is not None:
            kind = None
            if self.setup.method.padded_options:
                smoothing = self.run.train.label_smoothing
                kind = kind_of(graphdef, state.adapter, self.base, self.layout, label_smoothing=smoothing)
            programs = meeting_others(programs, meeting, self.setup.model.config, kind=kind)
        return graphdef, programs, settled

    def _trainer(self, state: TrainState) -> Trainer:
        """What trains `state` on the training rows, from the first step to the last that the schedule has."""
        train, rows = self.run.train, self.run.rows()[0]
        stream = Epochs(
            self._rows_of("train"),
            [example.id for example in self.data.examples["train"]],
            batch_size=rows,
            accumulation_steps=train.accumulation_steps,
            seed=train.seed,
        )
        total_steps = self.steps_per_epoch * self.max_epochs
        course = Course(
            total_steps=total_steps,
            schedule=three_point_schedule(
                **dataclasses.asdict(train.learning_rate),
                total_steps=total_steps,
                warmup_fraction=train.warmup_fraction,
            ),
            evaluations=[TimedEvaluator(evaluator, self.steps_per_epoch) for evaluator in self._evaluators()],
            monitor=self.monitor,
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
            self.display,
            self.monitor,
            self._size(),
            steps_per_epoch=self.steps_per_epoch,
            rows_per_step=rows * train.accumulation_steps,
        )
        return Trainer(
            state,
            self.base,
            self.programs,
            stream,
            course,
            self.layout,
            progress,
            directory=self.directory.path,
            report=self.display.say,
            listener=listener,
        )

    def _begin(self) -> None:
        """Takes the directory, where a run that it replaces lay untouched, and writes what this one is made of."""
        digest = self.data.digest
        self.directory.begin(digest, self.made_of)
        record = data_record(self.data.row_ids(), self.data.tokens, self.data.shapes, digest, self.made_of)
        self.directory.write_json("splits.json", record)
        if self.settled:
            self.directory.write_json("settled.json", self.settled)

    def _settle(
        self, asked: Run, state: TrainState, programs_of: Callable[[nnx.GraphDef], Programs]
    ) -> tuple[nnx.GraphDef, Programs, dict[str, Any]]:
        """Settles each `auto` of the config, as this run did before or by what fits the device, in every process alike.

        Returns the model's structure in that arrangement, its programs and what was settled; run and data are then
        those of the settled run.

        Raises:
          RunFailed: nothing fits.
        """
        known = self.directory.settled() if is_first() else None
        known = json.loads(from_first(json.dumps(known)))
        fit = DeviceFit(asked, self.setup, self.layout, self.data, state, self.base, programs_of)
        run = self._settled_before(asked, known) if known else fit.mildest()
        self.display.say(f"{fit.words(run)}{', as before' if known else ''}")
        if run.rows() != self.run.rows():
            self.run = run
            self.data_key, self.data = self._prepare_data()
        self.run = run
        programs, graphdef = fit.programs(run.model.remat)
        return graphdef, programs, fitting.settled(run)

    def _settled_before(self, asked: Run, known: dict[str, Any]) -> Run:
        """The run as its directory says that it was settled. Raises `RunFailed`: what it says is no run's."""
        try:
            return fitting.with_settled(asked, known)
        except UserError as error:
            file = self.directory.path / "settled.json"
            raise RunFailed(f"{file} is damaged ({error}); give --overwrite to run again from the start.") from None

    def _meeting(self) -> Meeting | None:
        """Where its calls meet those of other runs; None where there are none, or it does not share its base."""
        return None if self.setup.method.trains_base else self.session.meeting

    def _prepare_data(self) -> tuple[Hashable, Data]:
        """The splits, and all that they were made from."""
        run, data, request = self.run, self.run.data, self.run.data_request()
        key = (
            (run.model.name, self.setup.tokenizer.fingerprint),
            *(data.task, data.input, data.target, data.template, signature(data.path, data.mix), run.eval.metrics),
            request,
        )
        make = lambda: prepare(run.build_task(), self.setup.tokenizer, request, report=self.display.say)
        return key, self.session.data.get(key, make)

    def _labels(self) -> PackedLabels | None:
        if self.answer != "score":
            return None
        require_labels(bool(self.data.task.answers), self.data.task.name)
        return PackedLabels.of(self.data.task.answers, self.setup.tokenizer, self.setup.model.config)

    def _monitor(self) -> Monitor:
        """What early stopping follows. Raises `UserError`: it is a number that this task's rows do not give."""
        name, metric = self.run.train.monitor, monitored_metric(self.run.train.monitor)
        if metric is not None:
            check_metrics("train.monitor", [metric], kind=self.data.task.kind, answer=self.answer)
        return Monitor(name, metric is not None and higher_is_better(metric), self.run.train.patience)

    def _size(self) -> Size:
        rows = {name: len(part) for name, part in self.data.tokens.items()}
        passes = self.run.eval.num_beams + (self.answering["labels"] is not None)
        return Size(self.max_epochs, rows["train"], rows["validation"], rows["test"] * passes)

    def _rows_of(self, part: str) -> PaddedRows:
        return PaddedRows(self.data.tokens[part], self.data.shapes, self.setup.model.config, self.layout)

    def _evaluators(self) -> list[Evaluator]:
        """The validation loss, and where another number of the validation split is monitored, what gives that."""
        tokens, batch_size, rows = self.data.tokens["validation"], self.run.rows()[1], self._rows_of("validation")
        order = eval_order(tokens.lengths(), batch_size=batch_size)
        batches = lambda: ((rows.batch(batch, batch_size), len(batch)) for batch in order)
        evaluators: list[Evaluator] = [LossEvaluator("validation", self.programs.loss, batches, len(tokens))]
        if (metric := monitored_metric(self.run.train.monitor)) is not None:
            task = self.data.task
            task = dataclasses.replace(task, metrics=tuple(dict.fromkeys([task.metric, *task.metrics, metric])))
            evaluators.append(
                AnswersEvaluator(
                    "validation",
                    task,
                    self.data.examples["validation"],
                    tokens,
                    self.setup.tokenizer,
                    self.programs.answering.generate,
                    self.programs.answering.label_log_probs,
                    self.answering["labels"],
                    self._batching(self.programs.answering),
                    self.programs.answering.ready,
                )
            )
        return evaluators

    def result(self, pause_after: int | None = None) -> dict[str, Any]:
        """Runs every phase that is left, or a part of training. Raises `Paused`: that part is done, and no more."""
        self._introduce()
        cautioned = self._caution()
        with self.trainer.at_work() as restored:
            if restored:
                self._go_on()
            kept = self.trainer.progress.kept
            if self.run.eval.zero_shot and kept.get("zero_shot") is None:
                kept["zero_shot"] = self._test_untuned()
                self.trainer.save()
            self.untuned = None  # full tuning's first step takes its buffers
            with contextlib.nullcontext() if (meeting := self._meeting()) is None else meeting.at_work():
                self.trainer.train(until=None if pause_after is None else pause_after * self.steps_per_epoch)
                if not self.trainer.finished:
                    self._pause()
                scored = self._test_best()
        return self._write_result(scored, cautioned)

    def _pause(self) -> NoReturn:
        """Says where it waits, in `paused.json`, and ends by `Paused`."""
        progress = self.trainer.progress
        waits = PausedRecord(
            validation_losses=tuple(numbers["validation/loss"] for numbers in progress.history),
            train_examples=len(self.data.tokens["train"]),
            validation_examples=len(self.data.tokens["validation"]),
            seconds={"total": _all_but_zero_shot(progress.seconds), **progress.seconds},
        )
        self.directory.write_json(PAUSE_FILE, waits.to_dict())
        raise Paused(f"waits after {counted(waits.epochs, 'epoch')} in {self.directory.path}")

    def _go_on(self) -> None:
        """Says where; and at which rates, where a run that had ended trains on since its config has more epochs now."""
        step = self.trainer.step
        self.display.say(f"goes on in epoch {step // self.steps_per_epoch}, after step {step}")
        if self.directory.longer_than is None or self.trainer.finished:
            return
        rates = (self.trainer.course.schedule(step), self.run.train.learning_rate.annealing)
        self.display.say(
            "trains on: the schedule now spans {} epochs, so the learning rate goes on at {:.3g} and falls to {:.3g} "
            "again; a run of so many epochs from the start would have had other rates until here".format(
                self.max_epochs, *(float(np.asarray(rate)) for rate in rates)
            )
        )

    def _introduce(self) -> None:
        """Says what runs on what, for how long at most."""
        run, data, setup = self.run, self.data, self.setup
        share = 100 * self.adapter_parameters / setup.total_parameters
        base = named_in_bits(run.model.name, setup.quantization)
        rows = {name: len(part) for name, part in data.tokens.items()}
        self.display.say(
            f"{run.method.name}{f' ({run.ablation.name})' if run.ablation.name else ''} of {base} on "
            f"{data.task.name}: {self.adapter_parameters:,} of {setup.total_parameters:,} parameters train "
            f"({share:.3g} %); "
            f"{rows['train']:,} training, {rows['validation']:,} validation, {counted(rows['test'], 'test row')}; "
            f"{counted(self.steps_per_epoch, 'step')} an epoch, {counted(self.max_epochs, 'epoch')} at most"
        )

    def _caution(self) -> list[str]:
        """What to know of the data and of the first step's programs, compiled here: said, and kept for the result."""
        rows = {name: len(part) for name, part in self.data.tokens.items()}
        found = [
            cautions.without_effect(self.run),
            few_test_rows(rows["test"]),
            cautions.few_steps(
                rows["train"],
                batch_size=self.run.rows()[0],
                accumulation_steps=self.run.train.accumulation_steps,
                max_epochs=self.max_epochs,
            ),
            unchecked_products(jax.default_backend(), os.environ.get("XLA_FLAGS", "")),
            *self._program_cautions(),
        ]
        warnings = [line for line in found if line is not None]
        for line in warnings:
            self.display.say(f"warning: {line}")
        return warnings

    def _program_cautions(self) -> list[str | None]:
        """What the compiler made of the first step, where it is not trusted; not of runs side by side."""
        if self._meeting() is not None:
            return []
        trainer = self.trainer
        checking: dict[str, Any] = {
            "platform": jax.default_backend(),
            "kept_in": cache_directory() / "kernels",
            "report": self.display.say,
        }

        def gradients() -> MicroBatch:
            return MicroBatch(
                trainer.programs.accumulate,
                lambda: self.layout.place(trainer.programs.zero_sums(trainer.state.adapter)),
                trainer.state.adapter,
                (self.base, *trainer.first_batch()),
                move=not self.setup.method.trains_base,
            )

        def update() -> FirstUpdate:
            function = make_update(self.optimizer, self.setup.method)
            return FirstUpdate(trainer.programs.update, function, trainer.state, trainer.rates, gradients())

        narrow = compute_dtype(self.run.model.dtype) == jnp.bfloat16
        with trainer.timed("compile"):
            return [kernel_caution(gradients, narrow=narrow, **checking), update_caution(update, **checking)]

    # --- testing ---

    def _test_best(self) -> ScoredAnswers:
        """Answers every test row with the best adapter, writes `predictions.jsonl` and returns what that is worth."""
        best = self.layout.place(self.trainer.best)
        with self.trainer.timed("test"):
            given = self._answers("test", self.programs.answering, best, self.base)
            return self._scored("test", "predictions.jsonl", given)

    def _test_untuned(self) -> dict[str, float]:
        """Tests the base alone into `zero_shot.jsonl`; once for all runs of a session that share its rows.

        Its seconds, compiling included, are a phase of their own and no part of the run's total: the paper has none.
        """
        assert self.untuned is not None, "asked for before training"
        graphdef, nothing, base = split(self.untuned)
        run, made = self.run, self.session.programs
        programs = build_answering(graphdef, nothing, base, self.layout, **self.answering, made=made)
        of_base = (run.model.name, self.made_of.get("base"), run.model.dtype, run.quantization())
        key = (*of_base, self.layout, self.data_key, run.eval.num_beams, self.answer)

        with self.trainer.timed("zero_shot"):
            given = self.session.zero_shot.get(key, lambda: self._answers("zero-shot", programs, nothing, base))
            return self._scored("zero-shot", "zero_shot.jsonl", given).numbers

    def _answers(self, name: str, programs: AnsweringPrograms, adapter: nnx.State, base: nnx.State) -> Answers:
        """Answers to the test rows, below a bar of that name; between batches the run may be stopped."""
        tokens, labels = self.data.tokens["test"], self.answering["labels"]
        adapter, base = programs.ready(adapter, base)
        total = len(tokens) * (1 if labels is None else 2)
        with self.display.task(name, total, compiled=programs.compile_seconds) as bar:

            def on_rows(rows: int) -> None:
                bar.advance(rows)
                self.trainer.stop_if_asked()

            return answer_split(
                programs.generate,
                programs.label_log_probs,
                adapter,
                base,
                tokens,
                self.setup.tokenizer,
                labels,
                dataclasses.replace(self._batching(programs), on_batch=on_rows),
                classes=self.data.task.answers,
            )

    def _batching(self, programs: AnsweringPrograms) -> Batching:
        """How the rows of a split are batched to be answered."""
        batch_size = self.run.rows()[1]
        return Batching(
            shapes=self.data.shapes,
            batch_size=batch_size,
            part=programs.layout.rows_here(batch_size),
            pad_token_id=self.setup.model.config.pad_token_id,
        )

    def _scored(self, name: str, file: str, given: Answers) -> ScoredAnswers:
        examples = self.data.examples["test"]
        scored = given.scored(self.data.task, examples)
        if is_first():
            scored.write(self.directory.path / file, examples)
        self.display.say(f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in scored.numbers.items())}")
        return scored

    def _by_source(self, scored: ScoredAnswers, best: nnx.State) -> dict[str, Any] | None:
        """Rows and numbers of each file's part of a run on several; None of a run on one."""
        if not self.data.sources:
            return None
        examples, of_source = self.data.examples["test"], {}
        validation, batch_size = self.data.rows_by_source("validation"), self.run.rows()[1]
        padded = self._rows_of("validation")
        for name, rows in self.data.rows_by_source("test").items():
            own = validation[name]
            order = eval_order(padded.tokens.lengths()[own], batch_size=batch_size)
            batches = (padded.batch([own[i] for i in batch], batch_size) for batch in order)
            loss = mean_loss(self.programs.loss, best, self.base, batches)
            numbers = scored.of_rows(rows, self.data.task, examples).numbers
            counts = {"validation_examples": len(own), "test_examples": len(rows)}
            of_source[name] = {**counts, "validation_loss": loss, "metrics": numbers}
        return of_source

    def _write_result(self, scored: ScoredAnswers, cautioned: list[str]) -> dict[str, Any]:
        """Writes adapter, judgements and `result.json`, and returns that.

        Args:
          scored: the answers to the test rows.
          cautioned: what was warned of before training.
        """
        numbers = scored.numbers
        run, progress, setup, task = self.run, self.trainer.progress, self.setup, self.data.task
        losses = [numbers["validation/loss"] for numbers in progress.history]
        best_epoch = self.monitor.best(progress.history)
        assert best_epoch is not None, "a run has an epoch or more"
        adapter_bytes = self._save_adapter()
        seconds = {key: round(value, 3) for key, value in progress.seconds.items()}
        looked_back, notes = write_aftermath(
            self.directory,
            task,
            self.data.examples["test"],
            scored,
            answer=self.answer,
            title=f"{run.method.name} of {named_in_bits(run.model.name, setup.quantization)} on {task.name}",
            cautioned=cautioned,
            best_epoch=best_epoch,
            epochs_run=len(losses),
            max_epochs=self.max_epochs,
        )
        for note in notes:
            self.display.say(note)
        by_source = self._by_source(scored, self.layout.place(self.trainer.best))
        record = RunRecord(
            method=run.method.name,
            reading=run.method.reading,
            ablation=run.ablation.name,
            task=task.name,
            scale=run.data.scale,
            seed=run.train.seed,
            model=run.model.name,
            quantization=setup.quantization,
            source=source_in_use(run.data.source, run.data.path),
            data_digest=self.data.digest,
            trainable_parameters=self.adapter_parameters,
            total_parameters=setup.total_parameters,
            answer=self.answer,
            labels=tuple(task.answers) or None,
            metric_name=task.metric,
            metric=numbers[task.metric],
            rouge_tokenizer=rouge_tokenizer(task, self.data.examples["test"]),
            metrics=numbers,
            computed_by=scored.judged.computed_by,
            **looked_back,
            zero_shot=progress.kept.get("zero_shot"),
            monitor=self.monitor.name,
            validation_loss=losses[best_epoch],
            validation_losses=tuple(losses),
            validation_metrics=self._validation_metrics(),
            best_epoch=best_epoch,
            epochs_run=len(losses),
            trained_on_after=tuple(self.directory.trained_for()),
            train_examples=len(self.data.tokens["train"]),
            validation_examples=len(self.data.tokens["validation"]),
            test_examples=len(self.data.tokens["test"]),
            by_source=by_source,
            seconds={"total": round(_all_but_zero_shot(progress.seconds), 3), **seconds},
            tokens_per_second=round(progress.counts["tokens"] / max(progress.seconds["train"], 1e-9), 1),
            peak_memory_bytes=peak_memory_bytes(),
            adapter_bytes=adapter_bytes,
            device=jax.devices()[0].device_kind,
            device_count=self.layout.mesh.size,
            mesh=self.layout.shape,
            together=getattr(self.programs.accumulate, "widest", 1),
            settled=self.settled,
            versions=versions(),
            commit=commit(),
            started=progress.started,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        result = record.to_dict()
        self.directory.finish(result)
        wait_for_all("result.json is written")
        return result

    def _save_adapter(self) -> int:
        """Writes the best adapter, and beside it what its run was about; the bytes of its weights.

        The first process alone does: of another it is 0.
        """
        if not is_first():
            return 0
        run, setup, directory = self.run, self.setup, self.directory.path / "adapter"
        best = nnx.merge(self.graphdef, self.trainer.best, self.base)
        size = save_adapter(best, setup.method, setup.sites, directory, base_name=run.model.name)
        if (directory / "config.json").is_file():  # full tuning leaves a whole model: give it its tokenizer
            setup.tokenizer.save(directory)
            pass_on(run.model.name, directory)
        self._task_of_run().write(directory)
        return size

    def _validation_metrics(self) -> tuple[dict[str, float], ...] | None:
        """What validation gave at each epoch besides the loss, by name; None where it gives the loss alone."""
        by_epoch = [
            {name.partition("/")[2]: value for name, value in numbers.items() if name != "validation/loss"}
            for numbers in self.trainer.progress.history
        ]
        return tuple(by_epoch) if any(by_epoch) else None

    def _task_of_run(self) -> TaskOfRun:
        run = self.run
        return TaskOfRun.of(
            self.data.task,
            answer=self.answer,
            num_beams=run.eval.num_beams,
            dtype=run.model.dtype,
            quantization=self._kept(),
            base=None if self.setup.method.trains_base else self.setup.base,
            input=run.data.input,
            options=run.data.options,
            chat_template=self.setup.tokenizer.wording.chat_template,
        )

    def _kept(self) -> str:
        """How the base is kept, for whoever is to keep it alike: also where nobody asked, and its files have it so."""
        asked, is_kept = self.run.quantization(), self.setup.quantization
        return str(asked) if asked is not None else is_kept if is_kept in QUANTIZED else "auto"


def _all_but_zero_shot(seconds: Mapping[str, float]) -> float:
    return sum(value for phase, value in seconds.items() if phase != "zero_shot")


def _shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
