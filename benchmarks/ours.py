"""jpeft's side of the comparison: a run's own compiled functions, on a checkpoint and a batch.

Without a checkpoint, weights are random and created on the device: the time does not depend on their values, and XL's
float32 weights, 11 GB, need not fit into host memory.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.work import LEARNING_RATE, LORA_RANK, Size, config_of, token_batch
from jpeft.allocator import keep_freed_memory
from jpeft.eval.generate import make_generate
from jpeft.eval.loss import make_loss
from jpeft.model.family import family_in, family_with
from jpeft.model.quantized import Quantization, Quantized, chosen_forms, quantize_modules
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
    """A piece of work to time; calling it does the work once.

    Attributes:
      call: does the work and returns its result.
      program: the compiled program that does all or nearly all of it.
    """

    call: Callable[[], Any]
    program: Program

    def __call__(self) -> Any:
        return self.call()


def method_of(name: str) -> Method:
    """The method with PEFT's settings: LoRA on q and v, (IA)³ on k, v and the feed-forward's output.

    A soft prompt has 100 vectors, and BitFit adds a bias to every linear layer.
    """
    reading = "paper" if name in ("full", "bitfit", "prompt") else "official"
    return build(name, reading, {"rank": LORA_RANK, "alpha": 2.0 * LORA_RANK} if name == "lora" else {})


def load(
    directory: Path | None,
    size: Size | None = None,
    *,
    endless: bool = False,
    dtype: str = "float32",
    stored_dtype: str | None = None,
    quantization: str = "none",
) -> Any:
    """Load a checkpoint, or make a random model of `size` if `directory` is None.

    Args:
      endless: remove the end token, so that no answer ends early.
      dtype: of the computation.
      stored_dtype: of the weights; None leaves it to the loader, and is `dtype` for a random model.
      quantization: of a random model's linear layers: none, int8 or nf4.
    """
    keep_freed_memory()
    if directory is None:
        assert size is not None
        model = random_model(size, dtype=dtype, stored_dtype=stored_dtype or dtype, quantization=quantization)
    else:
        stored = stored_dtype and jnp.dtype(stored_dtype)
        model = family_in(directory).load(directory, dtype=jnp.dtype(dtype), stored_dtype=stored)
    family_with(model.config).arrange(model, scan_layers=None)
    if endless:
        model.config = dataclasses.replace(model.config, eos_token_id=-1)
    return model


def random_model(size: Size, *, dtype: str, stored_dtype: str, quantization: str = "none") -> Any:
    """A model with random weights of realistic spread, created on the device leaf by leaf, without dropout."""
    config = config_of(size, dropout_rate=0.0)
    model = family_with(config).abstract(config, dtype=jnp.dtype(dtype))
    quantize_modules(model, chosen_forms(model, Quantization(quantization)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.state(model, (nnx.Param, Quantized)))
    made = []
    for i, (path, leaf) in enumerate(leaves):
        name, key = jax.tree_util.keystr(path), jax.random.key(i)
        if "codes" in name:
            made.append(jax.random.bits(key, leaf.shape, "uint8").astype(leaf.dtype))
        elif "absmax" in name:  # scales for which values have the spread of a kernel: about half their block's largest
            whole = size.spread(f"{name}['kernel']", (size.d_model, size.d_model))
            made.append(jnp.full(leaf.shape, 2.0 * whole, leaf.dtype))
        elif spread := size.spread(name, leaf.shape):
            made.append(_normal(key, spread, shape=leaf.shape, dtype=stored_dtype))
        else:
            made.append(jnp.ones(leaf.shape, stored_dtype))
    nnx.update(model, jax.tree.unflatten(structure, made))
    return model


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key: jax.Array, spread: float, *, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(key, shape, dtype) * jnp.asarray(spread, dtype)


def stored_as(name: str | None, dtype: str) -> str:
    """The dtype that a run stores the base's weights in: float32 if they train, else `dtype`."""
    return "float32" if name is not None and method_of(name).trains_base else dtype


def adapted(model: Any, name: str, ablated: str | None = None) -> Any:
    method = method_of(name)
    selection = Selection() if ablated is None else ablation(name, ablated, model.config.stacks, seed=0)
    return attach(model, method, select(model, method, selection), jax.random.key(0))


def batch_of(size: Size) -> dict[str, np.ndarray]:
    tokens, config = token_batch(size), config_of(size, dropout_rate=0.0)
    rows, lengths = (list(tokens["inputs"]), list(tokens["targets"])), (size.input_length, size.target_length)
    return family_with(config).batch(*rows, lengths, batch_size=size.rows, config=config)


def train_step(
    directory: Path | None,
    size: Size,
    name: str,
    *,
    ablated: str | None = None,
    dtype: str = "float32",
    quantization: str = "none",
) -> Work:
    """One optimizer step; returns its loss, the mean over target tokens."""
    model = load(directory, size, dtype=dtype, stored_dtype=stored_as(name, dtype), quantization=quantization)
    graphdef, adapter, base = split(adapted(model, name, ablated))
    del model  # its weights are donated, or held by `base`
    optimizer, schedule = AdamW(), constant(LEARNING_RATE)
    accumulate = Program(make_accumulate(graphdef), donate=(0,))
    update = Program(make_update(optimizer), donate=(0, 1))
    key, batch = jax.random.key(0, impl="rbg"), batch_of(size)
    state, sums = init_state(adapter, optimizer), zero_sums(adapter)
    steps = 0

    def step() -> float:
        nonlocal state, sums, steps
        sums = accumulate(sums, state.adapter, base, key, np.int32(steps), np.int32(0), batch)
        state, sums, metrics = update(state, sums, schedule)
        steps += 1
        return float(metrics["loss"])

    return Work(step, accumulate)


def validation(directory: Path | None, size: Size, name: str, *, dtype: str = "float32") -> Work:
    """The loss of a batch, the mean over target tokens, without dropout or gradients."""
    model = load(directory, size, dtype=dtype, stored_dtype=stored_as(name, dtype))
    graphdef, adapter, base = split(adapted(model, name))
    loss, batch = Program(make_loss(graphdef)), batch_of(size)

    def evaluate() -> float:
        total, tokens = loss(adapter, base, batch)
        return float(total) / float(tokens)

    return Work(evaluate, loss)


def generation(directory: Path | None, size: Size, name: str | None, rows: int, *, dtype: str = "float32") -> Work:
    """Greedy decoding of `target_length` tokens per row, none ending early; `name` None is the bare model."""
    model = load(directory, size, endless=True, dtype=dtype, stored_dtype=stored_as(name, dtype))
    graphdef, adapter, base = split(model if name is None else adapted(model, name))
    generate = Program(make_generate(graphdef, max_length=size.target_length))
    inputs = token_batch(size, rows=rows)["inputs"]
    return Work(lambda: np.asarray(generate(adapter, base, inputs).tokens), generate)


def steps_side_by_side(size: Size, name: str, runs: int, *, dtype: str = "float32") -> tuple[Work, Work]:
    """The gradients of a micro-batch in `runs` runs over one base: one run after the other, and in one program."""
    model = load(None, size, dtype=dtype, stored_dtype=stored_as(name, dtype))
    graphdef, adapter, base = split(adapted(model, name))
    alone = Program(make_accumulate(graphdef))
    together = alone.side_by_side(runs, (2,))
    key, batch = jax.random.key(0, impl="rbg"), batch_of(size)
    each = [(zero_sums(adapter), adapter, base, key, np.int32(0), np.int32(i), batch) for i in range(runs)]
    of_all = [each[0][i] if i == 2 else tuple(run[i] for run in each) for i in range(len(each[0]))]
    return (
        Work(lambda: [jax.block_until_ready(alone(*run)) for run in each], alone),
        Work(lambda: jax.block_until_ready(together(*of_all)), together),
    )
