"""A run from start to end: train with early stopping, keep the best adapter, test by generation, write the result.

The order of things is fixed by the config and its seeds alone, and a checkpoint holds all that is not: a run killed
at any moment and started again ends with the same adapter, bit for bit.
"""

import contextlib
import dataclasses
import datetime
import itertools
import math
import signal
import time
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.allocator import keep_freed_memory
from jpeft.config import Run, of_any_version, require_labels
from jpeft.data.batches import (
    Batch,
    cache_directory,
    eval_order,
    fitting_shape,
    num_steps,
    pad,
    train_order,
)
from jpeft.data.identity import data_record, digest_now, signature
from jpeft.data.prepare import Data, prepare
from jpeft.data.sources import require_path, source_in_use
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed, Stopped
from jpeft.eval.answering import Answers, ScoredAnswers, answer_split
from jpeft.eval.labels import PackedLabels, answer_in_use
from jpeft.eval.loss import mean_loss
from jpeft.eval.metrics import own, require_metrics, rouge_tokenizer
from jpeft.mesh.layout import Layout
from jpeft.model.settings import pass_on
from jpeft.peft.base import count, split
from jpeft.peft.hub import save_adapter
from jpeft.program import use_compilation_cache
from jpeft.run.checkpoint import Checkpoints
from jpeft.run.directory import RunDirectory, run_once
from jpeft.run.display import Display
from jpeft.run.environment import commit, peak_memory_bytes, reset_peak_memory, versions
from jpeft.run.estimate import Size, duration, most_seconds_left
from jpeft.run.metrics_log import MetricsLog, NoLog
from jpeft.run.processes import any_of, host_copy, is_first, wait_for_all
from jpeft.run.stop import StopRequest
from jpeft.train import cautions
from jpeft.train.aftermath import write_aftermath
from jpeft.train.optimizer import adamw
from jpeft.train.programs import AnsweringPrograms, build_answering, build_programs
from jpeft.train.schedule import three_point_schedule
from jpeft.train.session import Session
from jpeft.train.setup import set_up
from jpeft.train.step import TrainState, init_state, zero_sums
from jpeft.words import counted

_SAID_FROM_SECONDS = 10.0  # below it nobody wonders how long a run takes


def execute(
    run: Run,
    workdir: Path,
    *,
    overwrite: bool = False,
    display: Display | None = None,
    session: Session | None = None,
) -> dict[str, Any]:
    """Does what is left of a run in `workdir` and returns its `result.json`; a finished run is not run again.

    Raises:
      UserError: the config, the directory, the data or the model is not as it has to be.
      RunFailed: the loss is not finite, the disk is full, a file is damaged, or the process was told to stop; the same
        command goes on from the last checkpoint.
    """
    keep_freed_memory()  # before JAX is asked for anything
    display = display or Display()
    return run_once(
        workdir,
        run.to_dict(),
        lambda directory: _Execution(run, directory, display, session or Session()).result(),
        overwrite=overwrite,
        report=display.say,
        rows=lambda: digest_of_rows(run),
        of_today=of_any_version,
    )


def digest_of_rows(run: Run) -> str | None:
    """`rows_digest` of what a run would read now; None where only the network tells, of a revision that stays."""
    data = run.data
    if source_in_use(data.source, data.path) in ("hub", "tfds"):
        return None
    return digest_now(run.build_task(), data.source, data.path, sample_seed=data.sample_seed)


@dataclasses.dataclass
class Progress:
    """Where a run is, beside its arrays: what a restarted run has to know to go on as if it had never stopped."""

    epoch: int = 0
    step_in_epoch: int = 0
    stopped: bool = False
    best_epoch: int | None = None
    best_loss: float | None = None
    validation_losses: list[float] = dataclasses.field(default_factory=list)
    zero_shot: dict[str, float] | None = None
    train_tokens: int = 0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.0, "validation": 0.0, "test": 0.0, "compile": 0.0}
    )
    started: str = ""


@dataclasses.dataclass
class _Snapshot:
    """All that changes while a run goes on. `best` is the adapter of the lowest validation loss so far."""

    state: TrainState
    best: nnx.State
    progress: Progress

    def arrays(self) -> dict[str, Any]:
        return {"state": self.state, "best": self.best}

    def save_to(self, checkpoints: Checkpoints[Progress]) -> None:
        # The end of an epoch comes after its last step.
        number = int(self.state.step) * 2 + (self.progress.step_in_epoch == 0)
        checkpoints.save(number, self.arrays(), self.progress)


class _Execution:
    """What the phases of one run share."""

    def __init__(self, run: Run, directory: RunDirectory, display: Display, session: Session):
        self.run, self.directory, self.display, self.session = run, directory, display, session
        own.load_all(run.build_task().metrics)  # named in the config of whoever runs it
        if source_in_use(run.data.source, run.data.path) == "local":
            require_path(run.data.path)
        use_compilation_cache(cache_directory() / "compiled")
        reset_peak_memory()
        self.layout = Layout.of_devices(**dataclasses.asdict(run.mesh))
        self.setup = set_up(run, session, self.layout, report=display.say)
        self.data_key, self.data = self._prepare_data()
        self.answer = answer_in_use(run.eval.answer, self.data.task)
        require_metrics(self.data.task, self.answer)
        model, train = self.setup.model, run.train
        graphdef, adapter, base = split(model)
        adapter, self.base = self.layout.place(adapter), self.layout.place(base)
        assert train.max_epochs is not None, "Run.from_config fills it in"
        self.max_epochs = train.max_epochs
        self.steps_per_epoch = num_steps(
            len(self.data.tokens["train"]), batch_size=train.batch_size, accumulation_steps=train.accumulation_steps
        )
        points = dataclasses.asdict(train.learning_rate)
        points |= {
            "total_steps": self.steps_per_epoch * self.max_epochs,
            "warmup_fraction": train.warmup_fraction,
        }
        self.schedule = three_point_schedule(**points)
        optimizer = {"weight_decay": train.weight_decay, "clip_grad_norm": train.clip_grad_norm}
        tx = adamw(self.schedule, **optimizer)
        state = self.layout.place(init_state(adapter, tx))
        self.sums = self.layout.place(zero_sums(adapter))
        self.answering = {
            "max_length": self.data.task.max_target_length,
            "num_beams": run.eval.num_beams,
            "labels": self._labels(),
        }
        self.programs = build_programs(
            graphdef,
            state,
            self.base,
            self.sums,
            tx,
            self.layout,
            optimizer_key=(*points.items(), *optimizer.items()),
            **self.answering,
            made=session.programs,
        )
        # The device's own generator: its bits are much cheaper than the default's, and as repeatable on one machine.
        draw_key = jax.jit(lambda: jax.random.key(train.seed, impl="rbg"), out_shardings=self.layout.whole)
        self.dropout_key = draw_key()
        self.adapter_parameters = count(adapter)
        self.promised = False  # how long the run will take
        self.snapshot = _Snapshot(
            state,
            host_copy(adapter),
            Progress(started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        )
        # The module tree keeps the structure alone: its initial arrays would otherwise stay in memory beside the state.
        self.graphdef = graphdef
        self.setup = dataclasses.replace(
            self.setup, model=nnx.merge(graphdef, *jax.tree.map(_shape_of, (adapter, self.base)))
        )
        # Nothing of a run that this one replaces was touched until here, where all that can be wrong has been seen.
        digest = self.data.digest
        directory.begin(digest)
        record = data_record(self.data.row_ids(), self.data.tokens, self.data.shapes, digest)
        directory.write_json("splits.json", record)

    def _prepare_data(self) -> tuple[Hashable, Data]:
        """The splits, and all that they were made from."""
        run, data, choices = self.run, self.run.data, self.run.data_choices()
        key = (
            run.model.name,
            *(data.task, data.input, data.target, data.template, signature(data.path), run.eval.metrics),
            *choices.items(),
        )
        make = lambda: prepare(run.build_task(), self.setup.tokenizer, **choices, report=self.display.say)
        return key, self.session.data.get(key, make)

    def _labels(self) -> PackedLabels | None:
        if self.answer != "score":
            return None
        require_labels(bool(self.data.task.answers), self.data.task.name)
        return PackedLabels.of(self.data.task.answers, self.setup.tokenizer, self.setup.model.config)

    def result(self) -> dict[str, Any]:
        """Runs every phase that is left."""
        self._introduce()
        checkpoints = Checkpoints(self.directory.path / "checkpoint", Progress, report=self.display.say)
        with contextlib.closing(checkpoints), StopRequest() as stop:
            restored = checkpoints.restore(self.snapshot.arrays())
            if restored is not None:
                arrays, progress = restored
                self.snapshot = _Snapshot(arrays["state"], arrays["best"], progress)
                self._reopen(progress)
                self.display.say(f"goes on in epoch {progress.epoch}, after step {int(self.snapshot.state.step)}")
            if self.run.eval.zero_shot and self.snapshot.progress.zero_shot is None:
                self.snapshot.progress.zero_shot = self._test_untuned(stop, checkpoints)
                self.snapshot.save_to(checkpoints)
            self.setup = dataclasses.replace(self.setup, untuned=None)  # full tuning's first step takes its buffers
            self._train(stop, checkpoints)
            scored = self._test_best(stop, checkpoints)
        return self._write_result(scored)

    def _reopen(self, progress: Progress) -> None:
        """A run that had ended trains on where its config has more epochs, or more patience, than it had then."""
        if progress.stopped and progress.epoch < self.max_epochs:
            progress.stopped = self._out_of_patience(progress.epoch - 1)
        if self.directory.longer_than is None or progress.stopped:
            return
        step = int(self.snapshot.state.step)
        rates = (self.schedule(step), self.run.train.learning_rate.annealing)
        self.display.say(
            "trains on: the schedule now spans {} epochs, so the learning rate goes on at {:.3g} and falls to {:.3g} "
            "again; a run of so many epochs from the start would have had other rates until here".format(
                self.max_epochs, *(float(np.asarray(rate)) for rate in rates)
            )
        )

    def _out_of_patience(self, epoch: int) -> bool:
        """Whether the validation loss has not fallen for long enough, after that epoch."""
        return epoch - (self.snapshot.progress.best_epoch or 0) >= self.run.train.patience

    def _introduce(self) -> None:
        run, data, setup = self.run, self.data, self.setup
        share = 100 * self.adapter_parameters / setup.total_parameters
        rows = {name: len(part) for name, part in data.tokens.items()}
        self.display.say(
            f"{run.method.name}{f' ({run.ablation.name})' if run.ablation.name else ''} of {run.model.name} on "
            f"{data.task.name}: {self.adapter_parameters:,} of {setup.total_parameters:,} parameters train "
            f"({share:.3g} %); "
            f"{rows['train']:,} training, {rows['validation']:,} validation, {counted(rows['test'], 'test row')}; "
            f"{counted(self.steps_per_epoch, 'step')} an epoch, {counted(self.max_epochs, 'epoch')} at most"
        )
        found = [
            cautions.few_test_rows(len(data.tokens["test"])),
            cautions.few_steps(
                len(data.tokens["train"]),
                batch_size=run.train.batch_size,
                accumulation_steps=run.train.accumulation_steps,
                max_epochs=self.max_epochs,
            ),
        ]
        self.cautioned = [line for line in found if line is not None]
        for line in self.cautioned:
            self.display.say(f"warning: {line}")

    # --- training ---

    def _train(self, stop: StopRequest, checkpoints: Checkpoints) -> None:
        progress = self.snapshot.progress
        steps_done = int(self.snapshot.state.step)

        def is_done(record: Mapping[str, Any]) -> bool:
            return record["epoch"] < progress.epoch or record.get("step", steps_done + 1) <= steps_done

        log = (
            MetricsLog(self.directory.path, steps_done=steps_done, keep=is_done, report=self.display.say)
            if is_first()
            else NoLog()
        )
        with contextlib.closing(log):
            while not progress.stopped:
                self._train_epoch(log, stop, checkpoints)
                self._end_epoch(log)
                self.snapshot.save_to(checkpoints)
                if not progress.stopped:
                    self._stop_if_asked(stop, checkpoints)
            checkpoints.finish()

    def _train_epoch(self, log: MetricsLog | NoLog, stop: StopRequest, checkpoints: Checkpoints) -> None:
        progress, state = self.snapshot.progress, self.snapshot.state
        steps_done, saved_at = int(state.step), time.monotonic()
        total = len(self.data.tokens["train"])
        rows_per_step = self.run.train.batch_size * self.run.train.accumulation_steps
        rows_done = min(progress.step_in_epoch * rows_per_step, total)
        note = "" if self.programs.update.num_shapes else "compiling"
        name, compiled = f"epoch {progress.epoch}", self.programs.compile_seconds
        with self.display.task(name, total, rows_done, note, compiled=compiled) as bar:
            steps = self._padded_steps(first=progress.step_in_epoch)
            upcoming = next(steps, None)
            while upcoming is not None:
                rows, batches = upcoming
                with self._timed("train"):
                    for micro, batch in enumerate(batches):
                        self.sums = self.programs.accumulate(
                            self.sums,
                            state.adapter,
                            self.base,
                            self.dropout_key,
                            np.int32(steps_done),
                            np.int32(micro),
                            batch,
                        )
                    state, self.sums, metrics = self.programs.update(state, self.sums)
                    upcoming = next(steps, None)  # padded by the host while the device computes
                    loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
                if not math.isfinite(loss) or not math.isfinite(grad_norm):
                    checkpoints.finish()
                    raise RunFailed(self._not_finite(steps_done, loss, grad_norm, rows))
                learning_rate = float(np.asarray(self.schedule(steps_done)))
                steps_done += 1
                progress.step_in_epoch += 1
                progress.train_tokens += sum(self._num_tokens(row) for row in rows)
                self.snapshot.state = state
                log.step(
                    epoch=progress.epoch, step=steps_done, loss=loss, grad_norm=grad_norm, learning_rate=learning_rate
                )
                bar.advance(len(rows), f"loss {loss:.4f}")
                if not self.promised and upcoming is not None and (left := self._left(steps_done)):
                    self.promised = True
                    self.display.say(f"{left}; less where the validation loss stops falling")
                due = time.monotonic() - saved_at >= self.run.train.checkpoint_every_seconds
                asked, due = any_of([stop.signal is not None, due])
                if asked:
                    self._stop(stop, checkpoints)
                if due:
                    self.snapshot.save_to(checkpoints)
                    saved_at = time.monotonic()

    def _end_epoch(self, log: MetricsLog | NoLog) -> None:
        """Validates, keeps the best adapter, and decides whether to go on."""
        progress, state = self.snapshot.progress, self.snapshot.state
        tokens = self.data.tokens["validation"]
        order = eval_order(tokens.lengths(), batch_size=self.run.eval.batch_size)
        name, compiled = f"epoch {progress.epoch}, validation", self.programs.compile_seconds
        with self.display.task(name, len(tokens), compiled=compiled) as bar, self._timed("validation"):

            def batches() -> Iterator[Batch]:
                for rows in order:
                    yield self._pad("validation", rows, self.run.eval.batch_size)
                    bar.advance(len(rows))

            loss = mean_loss(self.programs.loss, state.adapter, self.base, batches())
        if not math.isfinite(loss):
            raise RunFailed(self._not_finite(int(state.step), loss, 0.0, None))
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_epoch = loss, progress.epoch
            self.snapshot.best = host_copy(state.adapter)
        progress.validation_losses.append(loss)
        log.validation(epoch=progress.epoch, steps_done=int(state.step), validation_loss=loss)
        out_of_patience = self._out_of_patience(progress.epoch)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.stopped = out_of_patience or progress.epoch >= self.max_epochs
        left = "" if progress.stopped else self._left(int(state.step))
        self.display.say(
            f"epoch {progress.epoch - 1}: validation loss {loss:.4f}"
            + (" (best so far)" if best else f" (best was {progress.best_loss:.4f} of epoch {progress.best_epoch})")
            + ("; no longer decreasing, stops" if out_of_patience and progress.epoch < self.max_epochs else "")
            + (f"; {left}" if left else "")
        )

    def _left(self, steps_done: int) -> str:
        """How long the run takes at most from here on; empty where that cannot be told yet, or is next to nothing."""
        progress, rows = self.snapshot.progress, {name: len(part) for name, part in self.data.tokens.items()}
        passes = self.run.eval.num_beams + (self.answering["labels"] is not None)
        size = Size(self.max_epochs, rows["train"], rows["validation"], rows["test"] * passes)
        rows_per_step = self.run.train.batch_size * self.run.train.accumulation_steps
        seconds = most_seconds_left(
            size,
            progress.seconds,
            epochs_done=progress.epoch,
            rows_in_epoch=min(progress.step_in_epoch * rows_per_step, rows["train"]),
            steps_done=steps_done,
        )
        if seconds is None or seconds < _SAID_FROM_SECONDS:
            return ""
        epochs = counted(self.max_epochs - progress.epoch, "epoch")
        return f"the whole run takes {duration(seconds)} more at most ({epochs} and the test)"

    def _padded_steps(self, first: int) -> Iterator[tuple[list[int], list[Batch]]]:
        """Rows and padded micro-batches of the epoch's steps from `first` on."""
        train = self.run.train
        steps = train_order(
            self.data.tokens["train"].lengths(),
            batch_size=train.batch_size,
            accumulation_steps=train.accumulation_steps,
            seed=train.seed,
            epoch=self.snapshot.progress.epoch,
        )
        for step in itertools.islice(steps, first, None):
            batches = [self._pad("train", rows, train.batch_size) for rows in step]
            yield [row for rows in step for row in rows], batches

    def _pad(self, part: str, rows: list[int], batch_size: int) -> Batch:
        tokens, config = self.data.tokens[part], self.setup.model.config
        shape = fitting_shape(
            self.data.shapes, np.array([(len(tokens.inputs[r]), len(tokens.targets[r])) for r in rows])
        )
        here = self.layout.rows_here(batch_size)
        return pad(
            tokens,
            rows[here],
            shape,
            batch_size=here.stop - here.start,
            start_token_id=config.decoder_start_token_id,
            pad_token_id=config.pad_token_id,
        )

    def _num_tokens(self, row: int) -> int:
        tokens = self.data.tokens["train"]
        return len(tokens.inputs[row]) + len(tokens.targets[row])

    def _not_finite(self, step: int, loss: float, grad_norm: float, rows: list[int] | None) -> str:
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
        where = f"step {step + 1} (epoch {self.snapshot.progress.epoch})"
        ids = ""
        if rows is not None:
            ids = f", rows {', '.join(self.data.examples['train'][row].id for row in rows)}"
        return (
            f"{what} at {where}{ids}; try a lower train.learning_rate.warmup, train.clip_grad_norm=1.0 or "
            "model.dtype=float32. Checkpoints from before it are kept."
        )

    def _stop_if_asked(self, stop: StopRequest, checkpoints: Checkpoints) -> None:
        if any_of([stop.signal is not None])[0]:
            self._stop(stop, checkpoints)

    def _stop(self, stop: StopRequest, checkpoints: Checkpoints) -> None:
        name = signal.Signals(stop.signal or signal.SIGTERM).name
        self.snapshot.save_to(checkpoints)
        checkpoints.finish()
        raise Stopped(
            f"stopped by {name} after step {int(self.snapshot.state.step)}; saved to {self.directory.path}: "
            "the same command goes on from there."
        )

    # --- testing ---

    def _test_best(self, stop: StopRequest, checkpoints: Checkpoints) -> ScoredAnswers:
        """Answers every test row with the best adapter, writes `predictions.jsonl` and returns what that is worth."""
        best = self.layout.place(self.snapshot.best)
        with self._timed("test"):
            given = self._answers("test", self.programs.answering, best, self.base, stop, checkpoints)
            return self._scored("test", "predictions.jsonl", given)

    def _test_untuned(self, stop: StopRequest, checkpoints: Checkpoints) -> dict[str, float]:
        """As `_test_best`, of the base alone, in `zero_shot.jsonl`; once for all runs of a session that share its rows.

        Its seconds, compiling included, are a phase of their own and no part of the run's total: the paper has none.
        """
        assert self.setup.untuned is not None, "asked for before training"
        graphdef, nothing, base = split(self.setup.untuned)
        run, made = self.run, self.session.programs
        programs = build_answering(graphdef, nothing, base, self.layout, **self.answering, made=made)
        key = (run.model.name, run.model.dtype, self.layout, self.data_key, run.eval.num_beams, self.answer)
        with self._timed("zero_shot"):
            given = self.session.zero_shot.get(
                key, lambda: self._answers("zero-shot", programs, nothing, base, stop, checkpoints)
            )
            return self._scored("zero-shot", "zero_shot.jsonl", given).numbers

    def _answers(
        self,
        name: str,
        programs: AnsweringPrograms,
        adapter: nnx.State,
        base: nnx.State,
        stop: StopRequest,
        checkpoints: Checkpoints,
    ) -> Answers:
        tokens, labels = self.data.tokens["test"], self.answering["labels"]
        total = len(tokens) * (1 if labels is None else 2)
        with self.display.task(name, total, compiled=programs.compile_seconds) as bar:

            def on_batch(rows: int) -> None:
                bar.advance(rows)
                self._stop_if_asked(stop, checkpoints)

            return answer_split(
                programs.generate,
                programs.label_log_probs,
                adapter,
                base,
                tokens,
                self.setup.tokenizer,
                labels,
                classes=self.data.task.answers,
                shapes=self.data.shapes,
                batch_size=self.run.eval.batch_size,
                part=self.layout.rows_here(self.run.eval.batch_size),
                pad_token_id=self.setup.model.config.pad_token_id,
                on_batch=on_batch,
            )

    def _scored(self, name: str, file: str, given: Answers) -> ScoredAnswers:
        examples = self.data.examples["test"]
        scored = given.scored(self.data.task, examples)
        if is_first():
            scored.write(self.directory.path / file, examples)
        self.display.say(f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in scored.numbers.items())}")
        return scored

    def _write_result(self, scored: ScoredAnswers) -> dict[str, Any]:
        numbers = scored.numbers
        run, progress, setup, task = self.run, self.snapshot.progress, self.setup, self.data.task
        best = nnx.merge(self.graphdef, self.snapshot.best, self.base)
        adapter_directory = self.directory.path / "adapter"
        adapter_bytes = 0
        if is_first():
            adapter_bytes = save_adapter(best, setup.method, setup.sites, adapter_directory, base_name=run.model.name)
            if (adapter_directory / "config.json").is_file():  # full tuning leaves a whole model: give it its tokenizer
                setup.tokenizer.save(adapter_directory)
                pass_on(run.model.name, adapter_directory)
            self._task_of_run().write(adapter_directory)
        seconds = {key: round(value, 3) for key, value in progress.seconds.items()}
        looked_back, notes = write_aftermath(
            self.directory,
            task,
            self.data.examples["test"],
            scored,
            answer=self.answer,
            title=f"{run.method.name} of {run.model.name} on {task.name}",
            cautioned=self.cautioned,
            best_epoch=progress.best_epoch,
            epochs_run=progress.epoch,
            max_epochs=self.max_epochs,
        )
        for note in notes:
            self.display.say(note)
        total = sum(value for phase, value in progress.seconds.items() if phase != "zero_shot")
        result = {
            "status": "done",
            "method": run.method.name,
            "reading": run.method.reading,
            "ablation": run.ablation.name,
            "task": task.name,
            "scale": run.data.scale,
            "seed": run.train.seed,
            "model": run.model.name,
            "source": source_in_use(run.data.source, run.data.path),
            "data_digest": self.data.digest,
            "trainable_parameters": self.adapter_parameters,
            "total_parameters": setup.total_parameters,
            "answer": self.answer,
            "labels": list(task.answers) or None,
            "metric_name": task.metric,
            "metric": numbers[task.metric],
            "rouge_tokenizer": rouge_tokenizer(task, self.data.examples["test"]),
            "metrics": numbers,
            "computed_by": scored.judged.told,
            **looked_back,
            "zero_shot": progress.zero_shot,
            "validation_loss": progress.best_loss,
            "validation_losses": progress.validation_losses,
            "best_epoch": progress.best_epoch,
            "epochs_run": progress.epoch,
            "trained_on_after": self.directory.trained_for(),
            "train_examples": len(self.data.tokens["train"]),
            "validation_examples": len(self.data.tokens["validation"]),
            "test_examples": len(self.data.tokens["test"]),
            "seconds": {"total": round(total, 3), **seconds},
            "tokens_per_second": round(progress.train_tokens / max(progress.seconds["train"], 1e-9), 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "adapter_bytes": adapter_bytes,
            "device": jax.devices()[0].device_kind,
            "device_count": self.layout.mesh.size,
            "mesh": self.layout.shape,
            "versions": versions(),
            "commit": commit(),
            "started": progress.started,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self.directory.finish(result)
        wait_for_all("result.json is written")
        return result

    def _task_of_run(self) -> TaskOfRun:
        run = self.run
        return TaskOfRun.of(
            self.data.task,
            answer=self.answer,
            num_beams=run.eval.num_beams,
            dtype=run.model.dtype,
            input=run.data.input,
            options=run.data.options,
        )

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to a phase, and what it spent compiling to `compile`."""
        seconds = self.snapshot.progress.seconds
        started, compiled = time.perf_counter(), self.programs.compile_seconds()
        try:
            yield
        finally:
            compiling = self.programs.compile_seconds() - compiled
            seconds["compile"] += compiling
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started - compiling


def _shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
