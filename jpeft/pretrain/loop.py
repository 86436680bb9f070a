"""Executes a pretraining run: training steps, validation, samples of the model's output, and the finished model.

The seed determines the batches, and a checkpoint holds the rest: a run that is killed at any moment and started again
ends with the same weights, bit for bit.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.eval.evaluators import Evaluator, LossEvaluator
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch, family_with
from jpeft.peft.attaching import count, split
from jpeft.peft.variables import Adapter
from jpeft.pretrain.config import Pretraining, of_any_version
from jpeft.pretrain.mixture import PairSource, TextSource
from jpeft.pretrain.optimizer import RelativeOptimizer
from jpeft.pretrain.origins import origins
from jpeft.pretrain.samples import Writer, rows_with_text, write_samples
from jpeft.pretrain.setup import (
    build_network,
    load_tokenizer,
    mixture_of_run,
    network_config,
    read_tokenizer,
    trains_own_vocabulary,
)
from jpeft.pretrain.stream import Blocks, rows_here
from jpeft.process import prepare_process
from jpeft.program import thread_compile_seconds
from jpeft.run.directory import RunDirectory, run_once
from jpeft.run.display import Display
from jpeft.run.environment import commit, peak_memory_bytes, versions
from jpeft.run.processes import from_first, host_copy, is_first, wait_for_all
from jpeft.train.programs import build_programs
from jpeft.train.progress import Progress
from jpeft.train.schedule import warmup_then_linear
from jpeft.train.session import Session
from jpeft.train.step import init_state
from jpeft.train.stream import Step
from jpeft.train.trainer import Course, Listener, TimedEvaluator, Trainer

_KINDS = {"text": TextSource, "pairs": PairSource}


def pretrain(
    run: Pretraining, workdir: Path, *, overwrite: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Executes a pretraining run in `workdir`, resuming from its checkpoint, and returns the content of `result.json`.

    The model is written to `workdir/model`. A finished run is not executed again.

    Args:
      run: the config.
      workdir: the run's directory.
      overwrite: start again, replacing the run in `workdir`.
      display: prints progress; by default to standard error.

    Raises:
      UserError: the config, the directory or the corpus is not as it has to be.
      RunFailed: the loss is not finite, the disk is full, or the process was asked to stop; the same command goes on
        from the last checkpoint.
    """
    display = display or Display()
    prepare_process(display.say)
    return run_once(
        workdir,
        run.to_dict(),
        lambda directory: _Pretraining(run, directory, display).result(),
        overwrite=overwrite,
        report=display.say,
        origins=lambda: origins(run),
        of_today=of_any_version,
    )


class _Pretraining:
    """One pretraining run: what its phases (setting up, training, testing, saving) share."""

    def __init__(self, run: Pretraining, directory: RunDirectory, display: Display):
        self.run, self.directory, self.display = run, directory, display
        self.layout = Layout.of_devices(**dataclasses.asdict(run.mesh))
        self.tokenizer = load_tokenizer(run, Path(from_first(str(directory.staging))), display.say)
        self.config = network_config(run, self.tokenizer)
        self.mixture = mixture_of_run(run, self.tokenizer, self.config, display.say)
        self.graphdef, parameters, rest = split(build_network(run, self.config, self.mixture, display.say))
        parameters, rest = self.layout.place(parameters), self.layout.place(rest)
        self.num_parameters = count(parameters)
        optimizer = RelativeOptimizer.of(run.train)
        state = self.layout.place(init_state(parameters, optimizer))
        self.held_out = {
            kind: self.mixture.validation(source, most_batches=run.log.validation_batches)
            for kind, source in _KINDS.items()
        }
        self.programs = build_programs(
            self.graphdef,
            state,
            rest,
            optimizer,
            self.layout,
            max_length=run.data.target_length,
            num_beams=1,
            cache=Session().programs,
        )
        stream = Blocks(self.mixture, run.train.accumulation_steps, self.layout)
        course = Course(
            total_steps=run.train.steps,
            schedule=warmup_then_linear(
                run.train.learning_rate, warmup_steps=run.train.warmup_steps, total_steps=run.train.steps
            ),
            evaluations=[TimedEvaluator(evaluator, run.log.validate_every) for evaluator in self._evaluators()],
            monitor=None,
            seed=0,  # unused: there is no dropout
            checkpoint_every_seconds=run.log.checkpoint_every_seconds,
            remedy="a lower train.learning_rate or more train.warmup_steps",
        )
        self.trainer = Trainer(
            state,
            rest,
            self.programs,
            stream,
            course,
            self.layout,
            Progress(
                stream.start(),
                {"train": 0.0, "validation": 0.0, "compile": 0.0},
                started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
            directory=directory.path,
            report=display.say,
            listener=_Shown(display, self._writer(), directory.path, self.mixture.why_none_held_out()),
        )
        fingerprints = origins(run)
        if (tokens := self.tokenizer.chat_tokens) is not None:
            fingerprints["chat_tokens"] = tokens
        directory.begin(origins=fingerprints)
        directory.write_json("splits.json", {"origins": fingerprints})
        if trains_own_vocabulary(run):
            self.tokenizer = read_tokenizer(run, directory.path, display.say)  # `begin` has moved it

    def _evaluators(self) -> list[Evaluator]:
        """The losses of held-out texts and of held-out pairs."""

        def batches(kind: str) -> Callable[[], Iterator[tuple[Batch, int]]]:
            return lambda: (
                (rows_here(batch, self.layout), len(rows_with_text(batch))) for batch in self.held_out[kind]
            )

        return [
            LossEvaluator(
                kind, self.programs.loss, batches(kind), sum(len(rows_with_text(batch)) for batch in held_out)
            )
            for kind, held_out in self.held_out.items()
            if held_out
        ]

    def _writer(self) -> Writer:
        return Writer(
            self.programs.answering.generate,
            self.held_out,
            self.mixture.objective,
            self.run.log.samples,
            self.config,
            self.tokenizer,
            self.programs.answering.layout,
            self.programs.answering.ready,
        )

    def result(self) -> dict[str, Any]:
        """Runs all steps that are left, and writes the model."""
        with self.trainer.at_work() as restored:
            if restored:
                self.display.say(f"goes on after step {self.trainer.step:,}")
            self._introduce()
            self.trainer.train()
        return self._write_result()

    def _introduce(self) -> None:
        sources = ", ".join(
            f"{name} {len(part.pieces):,} ({self.mixture.rates[name] / sum(self.mixture.rates.values()):.0%})"
            for name, part in self.mixture.training.items()
        )
        self.display.say(
            f"{self.num_parameters:,} parameters, {self.tokenizer.vocab_size:,} pieces; {self.run.train.steps:,} steps "
            f"of {self.run.train.accumulation_steps} × {self.mixture.batch_size} rows of {self.mixture.objective} "
            f"tokens; pieces of text and pairs (share of the tokens): {sources}"
        )
        warmup, steps = self.run.train.warmup_steps, self.run.train.steps
        if warmup >= steps:
            self.display.say(
                f"warning: train.warmup_steps={warmup:,} of {steps:,} steps: the learning rate ends at "
                f"{(steps - 1) / warmup:.0%} of train.learning_rate; give fewer train.warmup_steps"
            )

    def _write_result(self) -> dict[str, Any]:
        run, progress = self.run, self.trainer.progress
        trained, rest = host_copy((self.trainer.state.adapter, self.trainer.base))  # gathered, so all processes call it
        model = nnx.merge(self.graphdef, trained, rest)
        new = run.model.start is None
        model.config = dataclasses.replace(self.config, dropout_rate=run.model.dropout_rate) if new else self.config
        if is_first():
            place = self.directory.path / "model"
            family_with(self.config).save(model, place, kind=Adapter, dtype=jnp.dtype(run.model.stored_dtype))
            self.tokenizer.save(place)
        entropy = {kind: unigram_entropy(batches) for kind, batches in self.held_out.items() if batches}
        rows = self.trainer.step * run.train.accumulation_steps * run.train.batch_size
        seconds = {key: round(value, 3) for key, value in progress.seconds.items()}
        tokens = {name: progress.counts[name] for name in ("input_tokens", "target_tokens")}
        result = {
            "status": "done",
            "parameters": self.num_parameters,
            "steps": self.trainer.step,
            **tokens,
            "fill": {side: round(share, 4) for side, share in self.mixture.objective.fill(**tokens, rows=rows).items()},
            "validation_loss": {kind: progress.history[-1][f"{kind}/loss"] for kind in entropy},
            "unigram_entropy": entropy,
            "seconds": {"total": round(sum(progress.seconds.values()), 3), **seconds},
            "tokens_per_second": round(sum(tokens.values()) / max(progress.seconds["train"], 1e-9), 1),
            "peak_memory_bytes": peak_memory_bytes(),
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


class _Shown(Listener):
    """Shows training steps in a bar, and after each validation its losses and a sample of the model's output."""

    def __init__(self, display: Display, writer: Writer, directory: Path, why_no_loss: str):
        self._display, self._writer, self._directory = display, writer, directory
        self._why_no_loss = why_no_loss  # said if there is none

    @contextlib.contextmanager
    def steps(self, trainer: Trainer) -> Iterator[Callable[[Step, float], None]]:
        note = "" if trainer.programs.update.num_shapes else "compiling"
        steps, compiled = trainer.course.total_steps, thread_compile_seconds
        with self._display.task("pretraining", steps, trainer.step, note, unit="steps", compiled=compiled) as bar:
            yield lambda step, loss: bar.advance(1, f"loss {loss:.4f}")

    def evaluated(self, trainer: Trainer, numbers: Mapping[str, float], *, best: bool) -> None:
        with trainer.timed("validation"):
            samples = self._writer.samples(trainer.state.adapter, trainer.base)
        write_samples(samples, self._directory, trainer.step)
        shown = ", ".join(f"{name.partition('/')[0]} {loss:.4f}" for name, loss in numbers.items())
        said = f"held-out loss of {shown}" if shown else self._why_no_loss
        self._display.say(f"step {trainer.step:,}: {said}")
        for sample in samples[:1]:
            self._display.say("".join(f"    {key}: {' '.join(text.split())[:150]}\n" for key, text in sample.items()))


def unigram_entropy(batches: list[Batch]) -> float:
    """The entropy of the token frequencies of these targets, in nats per token: the loss that needs no input."""
    tokens = np.concatenate([batch["decoder_target_tokens"][batch["decoder_loss_weights"] > 0] for batch in batches])
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-np.sum(share * np.log(share)))
