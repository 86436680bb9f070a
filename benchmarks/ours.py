"""jpeft's side: the compiled functions that a run uses, on a checkpoint and a batch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.work import LEARNING_RATE, LORA_RANK, Size, token_batch
from jpeft.allocator import keep_freed_memory
from jpeft.eval.generate import make_generate
from jpeft.eval.loss import make_loss
from jpeft.model import weights
from jpeft.model.t5 import T5, arrange_layers
from jpeft.peft.attaching import attach, split
from jpeft.peft.method import Method
from jpeft.peft.methods import ablation, build
from jpeft.peft.selection import Selection, select
from jpeft.program import Program
from jpeft.train.optimizer import AdamW
from jpeft.train.schedule import constant
from jpeft.train.step import init_state, make_accumulate, make_update, zero_sums


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time: calling it does it once.

    Attributes:
      program: that does all of it, or nearly.
    """

    call: Callable[[], Any]
    program: Program

    def __call__(self) -> Any:
        return self.call()


def method_of(name: str) -> Method:
    """As PEFT has it: LoRA of q and v, (IA)³ of k, v and wo, 100 prompt vectors; and a bias on every linear map."""
    reading = "paper" if name in ("full", "bitfit", "prompt") else "official"
    return build(name, reading, {"rank": LORA_RANK, "alpha": 2.0 * LORA_RANK} if name == "lora" else {})


def load(directory: Path, *, endless: bool = False) -> T5:
    """The model in float32; an `endless` one never ends an answer."""
    keep_freed_memory()
    model = weights.load(directory, dtype=jnp.float32)
    arrange_layers(model, None)
    if endless:
        model.config = dataclasses.replace(model.config, eos_token_id=-1)
    return model


def _adapted(model: T5, name: str, ablated: str | None = None) -> T5:
    method = method_of(name)
    selection = Selection() if ablated is None else ablation(name, ablated, model.config.stacks, seed=0)
    return attach(model, method, select(model, method, selection), jax.random.key(0))


def _batch(size: Size) -> dict[str, np.ndarray]:
    tokens = token_batch(size)
    return {
        "encoder_input_tokens": tokens["inputs"],
        "decoder_input_tokens": np.pad(tokens["targets"], ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": tokens["targets"],
        "decoder_loss_weights": np.ones(tokens["targets"].shape, np.float32),
    }


def train_step(directory: Path, size: Size, name: str, *, ablated: str | None = None) -> Work:
    """One optimizer step; gives its loss, the mean over target tokens."""
    graphdef, adapter, base = split(_adapted(load(directory), name, ablated))
    optimizer, schedule = AdamW(), constant(LEARNING_RATE)
    accumulate = Program(make_accumulate(graphdef), donate=(0,))
    update = Program(make_update(optimizer), donate=(0, 1))
    key, batch = jax.random.key(0, impl="rbg"), _batch(size)
    state, sums = init_state(adapter, optimizer), zero_sums(adapter)
    steps = 0

    def step() -> float:
        nonlocal state, sums, steps
        sums = accumulate(sums, state.adapter, base, key, np.int32(steps), np.int32(0), batch)
        state, sums, metrics = update(state, sums, schedule)
        steps += 1
        return float(metrics["loss"])

    return Work(step, accumulate)


def validation(directory: Path, size: Size, name: str) -> Work:
    """The loss of a batch without dropout or gradients, the mean over target tokens."""
    graphdef, adapter, base = split(_adapted(load(directory), name))
    loss, batch = Program(make_loss(graphdef)), _batch(size)

    def evaluate() -> float:
        total, tokens = loss(adapter, base, batch)
        return float(total) / float(tokens)

    return Work(evaluate, loss)


def generation(directory: Path, size: Size, name: str | None, rows: int) -> Work:
    """`target_length` greedy tokens of each row, none ending early; `name` None is the bare model."""
    model = load(directory, endless=True)
    graphdef, adapter, base = split(model if name is None else _adapted(model, name))
    generate = Program(make_generate(graphdef, max_length=size.target_length))
    inputs = token_batch(size, rows=rows)["inputs"]
    return Work(lambda: np.asarray(generate(adapter, base, inputs)), generate)
