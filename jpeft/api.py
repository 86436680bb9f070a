"""The functions that `import jpeft` offers: load a model, attach a method to any module, train, answer, save."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jpeft.adapters import files
from jpeft.errors import RunFailed, UserError
from jpeft.peft import attaching
from jpeft.peft.adapted import is_adapted
from jpeft.peft.attaching import Model, split
from jpeft.peft.method import Method
from jpeft.peft.selection import Selection, select
from jpeft.peft.sites import Site, is_trained, site_modules
from jpeft.program import Program

LossBatch = Any  # a tree of arrays, as the loss takes it
Loss = Callable[[Any, LossBatch], jax.Array]


def load(name: str | Path, *, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """A pretrained model and its tokenizer.

    Args:
      name: a hub id, a directory in Hugging Face layout, or a model that comes with the package: `mini`.
      dtype: in which it computes, and in which its weights are kept.

    Raises:
      UserError: there is no such model, or it is of a family that jpeft does not have.
      RunFailed: a file is damaged, or the hub cannot be reached.
    """
    from jpeft.predict.answer_source import AnswerSource

    return AnswerSource.find(str(name), None, report=lambda line: None).load(dtype)


def attach(
    model: Model, method: Method, *, where: str | Selection | Sequence[Site] | None = None, seed: int = 0
) -> Model:
    """A model with a method attached; `model` stays as it is, and the two share the base's arrays.

    Args:
      model: any `nnx.Module`. What stands at a site is called as before; a linear map may be an `nnx.Linear`,
        `nnx.LinearGeneral`, `nnx.Einsum` or a class of your own with a `kernel` of two dimensions.
      where: a regular expression that matches whole paths of sites (`jpeft.sites` lists them), a `Selection`, or
        sites. None is where the method acts by default, on models that say which of their parts are what.
      seed: of the initial values.

    Raises:
      UserError: nothing matches, or something is attached there already.
    """
    if isinstance(where, str):
        where = Selection(pattern=where)
    if where is None or isinstance(where, Selection):
        where = select(model, method, where or Selection())
    return attaching.attach(model, method, where, jax.random.key(seed))


def attached_at(model: nnx.Module) -> list[Site]:
    """The sites at which something is attached, or whose weights train."""
    places = [place for place in site_modules(model) if is_adapted(place.module) or is_trained(place.module)]
    return [site for place in places for site in place.sites]


def save(tuned: nnx.Module, method: Method, directory: str | Path, *, base_name: str = "") -> None:
    """Writes what `method` trains in `tuned` to a directory: what was attached, and nothing of the base.

    In Hugging Face PEFT's layout where PEFT has the method and knows the model's family, in jpeft's otherwise.

    Args:
      base_name: by which whoever loads it may find the base.
    """
    files.save_adapter(tuned, method, attached_at(tuned), Path(directory), base_name=base_name)


def load_adapter(directory: str | Path, model: Model) -> Model:
    """`model` with the adapter of a directory attached, in either layout; `model` stays as it is.

    Raises:
      UserError: there is no adapter, or it does not fit the model.
      RunFailed: a file is damaged or cut short.
    """
    return files.load_adapter(Path(directory), model)[0]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The result of `fit`: the trained adapter and how its training went.

    Attributes:
      model: with what was trained; the base's arrays are those it had.
      losses: of each step, before it.
    """

    model: Any
    losses: list[float]


def fit(
    tuned: nnx.Module,
    batches: Iterable[LossBatch],
    loss: Loss | None = None,
    *,
    learning_rate: float | optax.Schedule | None = None,
    optimizer: optax.GradientTransformation | None = None,
    method: Method | None = None,
) -> Fitted:
    """Trains what a method has attached, one optimizer step a batch, until the batches end.

    For a run with validation, early stopping, checkpoints and a result file use `jpeft train`.

    Args:
      batches: trees of arrays of few shapes; each new shape is compiled once.
      loss: `(model, batch)` to a scalar. None is the mean cross-entropy of target tokens, for models of jpeft's.
      learning_rate: of AdamW; None is the middle one of the method's own, or 1e-3 without `method`.
      optimizer: in the place of AdamW.
      method: for its learning rates, its penalty and what it does after each step.

    Raises:
      UserError: nothing trains.
      RunFailed: the loss is not finite.
    """
    graphdef, adapter, base = split(tuned)
    if not jax.tree.leaves(adapter):
        raise UserError("fit was given a model in which nothing trains; attach a method first.")
    if learning_rate is None:
        learning_rate = method.learning_rates.warmup if method is not None else 1e-3
    tx = optimizer or optax.adamw(learning_rate, weight_decay=0.0)
    loss = loss or _mean_cross_entropy

    def step(adapter: nnx.State, opt_state: Any, base: nnx.State, index: Any, batch: LossBatch):
        def of(adapter: nnx.State) -> jax.Array:
            frozen = jax.tree.map(lambda leaf: leaf, base)  # variables of this trace, as `nnx.scan` wants them
            value = loss(nnx.merge(graphdef, adapter, frozen), batch)
            penalty = None if method is None else method.penalty(adapter)
            return value if penalty is None else value + penalty

        value, grads = jax.value_and_grad(of)(adapter)
        updates, opt_state = tx.update(grads, opt_state, adapter)
        adapter = cast(nnx.State, optax.apply_updates(adapter, updates))
        return adapter if method is None else method.after_update(adapter, index), opt_state, value

    adapter = jax.tree.map(jnp.array, adapter)  # the step takes its buffers, and `tuned` keeps its own
    opt_state, program, losses = tx.init(adapter), Program(step, donate=(0, 1)), []
    for index, batch in enumerate(batches):
        adapter, opt_state, value = program(adapter, opt_state, base, np.int32(index), batch)
        losses.append(float(value))
        if not np.isfinite(losses[-1]):
            raise RunFailed(f"the loss is {losses[-1]} at step {index + 1}; try a lower learning rate.")
    return Fitted(nnx.merge(graphdef, adapter, base), losses)


def _mean_cross_entropy(model: Any, batch: LossBatch) -> jax.Array:
    from jpeft.eval.loss import loss_sums

    total, tokens = loss_sums(model, batch)
    return total / jnp.maximum(tokens, 1)


def generate(
    model: Any,
    tokenizer: Any,
    inputs: Sequence[str],
    *,
    max_output_length: int = 128,
    max_input_length: int = 512,
    num_beams: int = 1,
    batch_size: int = 32,
) -> list[str]:
    """What a model of jpeft's writes to each of the inputs, with or without something attached."""
    from jpeft.predict.answering import Generating

    answering = Generating(
        model,
        tokenizer,
        max_output_length=max_output_length,
        num_beams=num_beams,
        max_input_length=max_input_length,
        batch_size=batch_size,
    )
    return [answer["prediction"] for answer in answering(inputs)]


def evaluate(
    model: Any, tokenizer: Any, inputs: Sequence[str], targets: Sequence[str], *, metric: str, **generation: Any
) -> float:
    """The value of a metric of what the model writes to `inputs`, held against `targets`.

    Args:
      metric: by name, of `jpeft.eval.metrics.METRICS`.
      generation: as of `generate`.

    Raises:
      UserError: there is no such metric, or it needs more than texts.
    """
    from jpeft.eval.metrics import named

    answers = generate(model, tokenizer, inputs, **generation)
    return named(metric)(answers, [(target,) for target in targets])
