"""Pretraining from start to end: steps, validation, samples of what the model writes, and the model it leaves.

The batches are a function of the seed, and a checkpoint holds all else: a run killed at any moment and started again
ends with the same weights, bit for bit.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.allocator import keep_freed_memory
from jpeft.data.batches import Batch, cache_directory
from jpeft.errors import RunFailed, Stopped
from jpeft.eval.generate import make_generate
from jpeft.eval.loss import make_loss, mean_loss
from jpeft.files import write_whole
from jpeft.model import weights
from jpeft.peft.base import Adapter, count, split
from jpeft.pretrain.config import Pretraining, of_any_version
from jpeft.pretrain.mixture import PairSource, TextSource
from jpeft.pretrain.optimizer import build_optimizer, learning_rate
from jpeft.pretrain.setup import build_network, load_sources, load_tokenizer, network_config
from jpeft.program import Program, use_compilation_cache
from jpeft.run.checkpoint import Checkpoints
from jpeft.run.directory import RunDirectory, run_once
from jpeft.run.display import Display
from jpeft.run.environment import commit, peak_memory_bytes, versions
from jpeft.run.metrics_log import MetricsLog
from jpeft.run.stop import StopRequest
from jpeft.train.step import init_state, make_accumulate, make_update, zero_sums

_KINDS = {"text": TextSource, "pairs": PairSource}


def pretrain(
    run: Pretraining, workdir: Path, *, overwrite: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Does what is left of a pretraining run in `workdir` and returns its `result.json`; the model is in `model/`.

    Raises:
      UserError: the config, the directory or the corpus is not as it has to be.
      RunFailed: the loss is not finite, the disk is full, or the process was told to stop; the same command goes on
        from the last checkpoint.
    """
    keep_freed_memory()  # before JAX is asked for anything
    display = display or Display()
    return run_once(
        workdir,
        run.to_dict(),
        lambda directory: _Pretraining(run, directory, display).result(),
        overwrite=overwrite,
        report=display.say,
        of_today=of_any_version,
    )


@dataclasses.dataclass
class Progress:
    """Where a run is, beside its arrays: the block of the mixture, how many of its batches are done, and sums."""

    step: int = 0
    block: int = 0
    batches_done: int = 0
    input_tokens: int = 0
    target_tokens: int = 0
    losses: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.0, "validation": 0.0, "compile": 0.0}
    )
    started: str = ""


@dataclasses.dataclass(frozen=True)
class _NumberedBatch:
    """A micro-batch, and where the mixture stands after it."""

    batch: Batch
    block: int
    batches_done: int


class _Pretraining:
    """What the phases of one run share."""

    def __init__(self, run: Pretraining, directory: RunDirectory, display: Display):
        self.run, self.directory, self.display = run, directory, display
        use_compilation_cache(cache_directory() / "compiled")
        self.tokenizer = load_tokenizer(run, directory.staging, display.say)
        self.config = network_config(run, self.tokenizer)
        self.mixture = load_sources(run, self.tokenizer, self.config, display.say)
        self.graphdef, parameters, self.rest = split(build_network(run, self.config, self.mixture, display.say))
        self.num_parameters = count(parameters)
        tx = build_optimizer(run.train)
        self.schedule = learning_rate(run.train)
        self.accumulate = Program(make_accumulate(self.graphdef), donate=(0,))
        self.update = Program(make_update(tx), donate=(0, 1))
        self.loss = Program(make_loss(self.graphdef))
        self.generate = Program(make_generate(self.graphdef, max_length=run.data.target_length))
        self.state = init_state(parameters, tx)
        self.sums = zero_sums(parameters)
        self.progress = Progress(started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        self.validation = {
            kind: self.mixture.validation(source, most_batches=run.log.validation_batches)
            for kind, source in _KINDS.items()
        }
        directory.begin()

    def result(self) -> dict[str, Any]:
        """Runs every step that is left, and writes the model."""
        checkpoints = Checkpoints(self.directory.path / "checkpoint", Progress, report=self.display.say)
        with contextlib.closing(checkpoints), StopRequest() as stop:
            restored = checkpoints.restore({"state": self.state})
            if restored is not None:
                self.state, self.progress = restored[0]["state"], restored[1]
                self.display.say(f"goes on after step {self.progress.step:,}")
            self._introduce()
            self._train(stop, checkpoints)
            checkpoints.finish()
        return self._write_result()

    def _introduce(self) -> None:
        shape = self.mixture.shape
        sources = ", ".join(
            f"{name} {len(part.pieces):,} ({self.mixture.rates[name] / sum(self.mixture.rates.values()):.0%})"
            for name, part in self.mixture.training.items()
        )
        self.display.say(
            f"{self.num_parameters:,} parameters, {self.tokenizer.vocab_size:,} pieces; {self.run.train.steps:,} steps "
            f"of {self.run.train.accumulation_steps} × {shape.batch_size} rows of {shape.input_length} + "
            f"{shape.target_length} tokens; pieces of text and pairs (share of the tokens): {sources}"
        )

    def _batches(self) -> Iterator[_NumberedBatch]:
        """The batches that are left, from where the progress stands on, without end."""
        done = self.progress.batches_done
        for block in itertools.count(self.progress.block):
            for i, batch in enumerate(self.mixture.block(block)[done:], start=done + 1):
                yield _NumberedBatch(batch, block, i)
            done = 0

    def _train(self, stop: StopRequest, checkpoints: Checkpoints[Progress]) -> None:
        run, first = self.run, self.progress.step

        def is_done(record: Mapping[str, Any]) -> bool:
            return record.get("step", record.get("steps_done", 0)) <= first

        log = MetricsLog(self.directory.path, steps_done=first, keep=is_done, report=self.display.say)
        saved_at = time.monotonic()
        batches = self._batches()
        with (
            contextlib.closing(log),
            self.display.task(
                "pretraining", run.train.steps, first, "compiling", unit="steps", compiled=self._compile_seconds
            ) as bar,
        ):
            while self.progress.step < run.train.steps:
                self._step(batches, log, checkpoints)
                bar.advance(1, f"loss {self.progress.losses['train']:.4f}")
                done = self.progress.step
                validate = done % run.log.validate_every == 0 or done == run.train.steps
                if validate:
                    self._validate(log)
                if validate or time.monotonic() - saved_at >= run.log.checkpoint_every_seconds:
                    self._save(checkpoints)
                    saved_at = time.monotonic()
                if stop.signal is not None and done < run.train.steps:
                    self._save(checkpoints)
                    checkpoints.finish()
                    raise Stopped(
                        f"stopped by {signal.Signals(stop.signal).name} after step {done}; saved to "
                        f"{self.directory.path}: the same command goes on from there."
                    )

    def _step(self, batches: Iterator[_NumberedBatch], log: MetricsLog, checkpoints: Checkpoints[Progress]) -> None:
        progress, step = self.progress, self.progress.step
        with self._timed("train"):
            for micro in range(self.run.train.accumulation_steps):
                numbered = next(batches)
                self.sums = self.accumulate(
                    self.sums,
                    self.state.adapter,
                    self.rest,
                    jax.random.key(0),  # nothing is dropped
                    np.int32(step),
                    np.int32(micro),
                    numbered.batch,
                )
                progress.block, progress.batches_done = numbered.block, numbered.batches_done
                progress.input_tokens += int((numbered.batch["encoder_segments"] > 0).sum())
                progress.target_tokens += int((numbered.batch["decoder_segments"] > 0).sum())
            self.state, self.sums, metrics = self.update(self.state, self.sums)
            loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            checkpoints.finish()
            raise RunFailed(
                f"the loss is {loss} and the gradient's norm {grad_norm} at step {step + 1}; try a lower "
                "train.learning_rate or more train.warmup_steps. Checkpoints from before it are kept."
            )
        progress.step = step + 1
        progress.losses["train"] = loss
        rate = float(np.asarray(self.schedule(step)))
        log.step(step=progress.step, loss=loss, grad_norm=grad_norm, learning_rate=rate)

    def _validate(self, log: MetricsLog) -> None:
        with self._timed("validation"):
            losses = {
                kind: mean_loss(self.loss, self.state.adapter, self.rest, batches)
                for kind, batches in self.validation.items()
                if batches
            }
            samples = self._samples()
        self.progress.losses.update(losses)
        log.validation(steps_done=self.progress.step, **{f"{kind}_loss": loss for kind, loss in losses.items()})
        place = self.directory.path / "samples"
        place.mkdir(exist_ok=True)
        with write_whole(place / f"step_{self.progress.step:07d}.jsonl") as beside:
            beside.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), "utf-8")
        shown = ", ".join(f"{kind} {loss:.4f}" for kind, loss in losses.items())
        said = f"held-out loss of {shown}" if shown else "no row is held out, a source needs 10 for that"
        self.display.say(f"step {self.progress.step:,}: {said}")
        for sample in samples[:1]:
            self.display.say("".join(f"    {key}: {' '.join(text.split())[:150]}\n" for key, text in sample.items()))

    def _samples(self) -> list[dict[str, str]]:
        """Held-out inputs and what the model writes to them beside what stood there, of each kind alike."""
        wanted, samples = self.run.log.samples, []
        for batches in self.validation.values():
            rows = [
                {key: values[i] for key, values in batch.items()}
                for batch in batches
                for i in np.flatnonzero((batch["encoder_segments"] == 1).any(axis=1))
            ][:wanted]
            if not rows:
                continue
            inputs = np.full((wanted, self.mixture.shape.input_length), self.config.pad_token_id, np.int32)
            targets = []
            for place, row in enumerate(rows):  # the first example of each packed row
                ids = row["encoder_input_tokens"][row["encoder_segments"] == 1]
                inputs[place, : len(ids)] = ids
                targets.append(row["decoder_target_tokens"][row["decoder_segments"] == 1])
            outputs = np.asarray(self.generate(self.state.adapter, self.rest, inputs))[: len(rows)]
            texts = [self._readable(part) for part in (inputs[: len(rows)], targets, outputs)]
            samples += [
                {"input": input_, "target": target, "output": output}
                for input_, target, output in zip(*texts, strict=True)
            ]
        return samples

    def _readable(self, rows: Any) -> list[str]:
        """Texts with their sentinels, without padding and `</s>`."""
        silent = (self.config.pad_token_id, self.config.eos_token_id)
        return self.tokenizer.decode([[int(i) for i in row if i not in silent] for row in rows], keep_special=True)

    def _save(self, checkpoints: Checkpoints[Progress]) -> None:
        checkpoints.save(self.progress.step, {"state": self.state}, self.progress)

    def _write_result(self) -> dict[str, Any]:
        run, progress = self.run, self.progress
        model = nnx.merge(self.graphdef, self.state.adapter, self.rest)
        new = run.model.start is None
        model.config = dataclasses.replace(self.config, dropout_rate=run.model.dropout_rate) if new else self.config
        place = self.directory.path / "model"
        weights.save(model, place, kind=Adapter, dtype=jnp.dtype(run.model.stored_dtype))
        self.tokenizer.save(place)
        entropy = {kind: unigram_entropy(batches) for kind, batches in self.validation.items() if batches}
        positions = progress.step * run.train.accumulation_steps * run.train.batch_size
        seconds = {key: round(value, 3) for key, value in progress.seconds.items()}
        result = {
            "status": "done",
            "parameters": self.num_parameters,
            "steps": progress.step,
            "input_tokens": progress.input_tokens,
            "target_tokens": progress.target_tokens,
            "fill": {
                "input": round(progress.input_tokens / max(positions * run.data.input_length, 1), 4),
                "target": round(progress.target_tokens / max(positions * run.data.target_length, 1), 4),
            },
            "validation_loss": {kind: progress.losses[kind] for kind in entropy},
            "unigram_entropy": entropy,
            "seconds": {"total": round(sum(progress.seconds.values()), 3), **seconds},
            "tokens_per_second": round(
                (progress.input_tokens + progress.target_tokens) / max(progress.seconds["train"], 1e-9), 1
            ),
            "peak_memory_bytes": peak_memory_bytes(),
            "device": jax.devices()[0].device_kind,
            "device_count": 1,
            "versions": versions(),
            "commit": commit(),
            "started": progress.started,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self.directory.finish(result)
        return result

    def _compile_seconds(self) -> float:
        programs = (self.accumulate, self.update, self.loss, self.generate)
        return sum(program.compile_seconds for program in programs)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to a phase, and what it spent compiling to `compile`."""
        started, compiled = time.perf_counter(), self._compile_seconds()
        try:
            yield
        finally:
            compiling = self._compile_seconds() - compiled
            self.progress.seconds["compile"] += compiling
            self.progress.seconds[phase] += time.perf_counter() - started - compiling


def unigram_entropy(batches: list[Batch]) -> float:
    """Nats per target token of the best guess that knows how often each token occurs in these targets, and no more."""
    tokens = np.concatenate([batch["decoder_target_tokens"][batch["decoder_segments"] > 0] for batch in batches])
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-np.sum(share * np.log(share)))
