"""The public functions of `jpeft`: load a model, attach a method to any module, train, generate, evaluate, save."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jpeft.adapters import files
from jpeft.adapters.locate import adapter_directory
from jpeft.arguments import (
    arrays_of,
    float_dtype_of,
    rate_of,
    require_batches,
    require_loss,
    require_module,
    require_optimizer,
    require_path,
    require_scalar_loss,
    require_seed,
    require_sizes,
    require_texts,
)
from jpeft.errors import RunFailed, UserError
from jpeft.eval.loss import loss_sums
from jpeft.leaves import Model, copied
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft import attaching
from jpeft.peft.made_by import (
    finite,
    remember,
    remembered,
    require_attached_by,
    require_made_by,
    require_method,
    trained_places,
)
from jpeft.peft.method import Method
from jpeft.peft.selection import Selection, left_out, select
from jpeft.peft.sites import Site, site_modules
from jpeft.peft.variables import Adapter
from jpeft.program import Program
from jpeft.recent import Recent
from jpeft.train.optimizer import with_rate_factors
from jpeft.train.step import TrainState, apply_gradients, init_state
from jpeft.train.text_batches import TextBatches
from jpeft.words import counted, in_bits, shortened

LossBatch = Any  # a tree of arrays, as the loss takes it
Loss = Callable[[Any, LossBatch], jax.Array]


def load(
    name: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: Any = jnp.float32,
    quantization: str | None = None,
) -> tuple[Any, Tokenizer]:
    """A pretrained model, an `nnx.Module`, and its tokenizer.

    Args:
      name: `mini`, which comes with the package, `smollm2`, a hub id, a directory in Hugging Face layout or a GGUF
        file. None is the base that `adapter` names.
      adapter: the directory of a run or of an adapter, which is attached to the model.
      dtype: floating-point type of the weights and of the computation.
      quantization: how the linear maps of the blocks are stored: `int8`, `nf4`, `nf4,double` (with `,wo` appended, T5's
        `wo` as well), `none` for unquantized, `auto` for whatever the files hold. None means as in the adapter's run,
        or `auto` without an adapter. A quantized base is frozen: every method but full tuning can be attached.

    Warns if the adapter was trained on a base that was quantized differently.

    Raises:
      UserError: no such model, adapter or dtype; a model family that jpeft does not know; or files that are quantized
        otherwise than asked for.
      RunFailed: a file is damaged, or the hub cannot be reached.
    """
    from jpeft.model.quantized import Quantization
    from jpeft.predict.answer_source import AnswerSource

    dtype = float_dtype_of(dtype)
    if name is None and adapter is None:
        raise UserError("load was given neither a model's name nor an adapter; give one, or both.")
    of_adapter = None if adapter is None else Path(adapter)
    source = AnswerSource.find(None if name is None else str(name), of_adapter, report=lambda line: None, flag="name")
    notes: list[str] = []
    loaded = source.load(dtype, Quantization.parse(source.kept(quantization)), report=notes.append)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return loaded


def attach(
    model: Model,
    method: Method,
    *,
    where: str | Selection | Site | Iterable[Site] | None = None,
    seed: int = 0,
    wide: str | Path | None = None,
) -> Model:
    """A copy of `model` with a method attached. `model` is not changed; both share the arrays of the base.

    Args:
      model: any `nnx.Module`. Adapted modules are called as before. Linear maps are `nnx.Linear`, `nnx.LinearGeneral`,
        `nnx.Einsum`, and classes of your own with a two-dimensional `kernel`.
      where: the sites to adapt: a regular expression (a string) that must match the whole path of a site, a
        `Selection`, or sites from `jpeft.sites(model)`. None selects the method's defaults, for models that declare
        the roles of their parts, as jpeft's own do.
      seed: of the initial values, below 2^32.
      wide: only for `Lora(init="loftq")`, which starts from the quantization error: the name, as for `load`, of the
        unquantized model that `model` was quantized from.

    Warns of modules that a regular expression names and the method cannot adapt, by their kind or by the shapes of
    their weights. It names a module if it would not match another name in its place: `conv|fc` names both of these
    modules, and `.*` or `encoder/.*` means whatever the method can adapt there.

    Raises:
      UserError: an argument has the wrong type, nothing matches, a site is adapted already, or `wide` is missing or
        has no use.
    """
    require_module("model", model)
    require_method(method)
    if method.trains_nothing is not None:
        raise UserError(f"{method.trains_nothing}: nothing would train; change it.")
    require_seed(seed)
    if isinstance(where, Site):
        where = [where]
    if where is not None and (isinstance(where, bytes) or not isinstance(where, str | Selection | Iterable)):
        raise UserError(f"where is {shortened(where)}; {_WHERE}.")
    if where is None or isinstance(where, str | Selection):
        if isinstance(where, str):
            selection = Selection(pattern=where, called={"pattern": "where"})
        else:
            selection = where or Selection()
        chosen = select(model, method, selection)
        if selection.pattern is not None:
            told = _warn_of_unknown_shapes(model, method, selection)
            if (line := left_out(model, method, selection, but=told)) is not None:
                warnings.warn(line, stacklevel=2)
    else:
        chosen = list(where)
        others = [site for site in chosen if not isinstance(site, Site)]
        if others or not chosen:
            what = f"holds {others[0]!r}" if others else "is empty"
            raise UserError(f"where {what}; {_WHERE}.")
        unfit = next((site for site in chosen if site.kind not in method.kinds), None)
        if unfit is not None:
            raise UserError(f"{method.name} acts on {', '.join(method.kinds)}; {unfit.told} is of kind {unfit.kind}.")
    if (wide is None) != (method.init_from_residual is None):
        says = "begins with what rounding took away: name the wide model" if wide is None else "has no use for one"
        raise UserError(f"wide is {'missing' if wide is None else repr(str(wide))}, and {method.describe()} {says}.")
    tuned = attaching.attach(model, method, chosen, jax.random.key(seed))
    remember(method, tuned)
    if wide is not None:
        attaching.init_from_residual(tuned, method, _lost(model, str(wide)))
    if where is None and method.trains_base:
        _require_all_weights(tuned)
    return tuned


def _warn_of_unknown_shapes(model: nnx.Module, method: Method, selection: Selection) -> list[str]:
    """Warns of modules that `where` matches and that look like maps or norms, but have weights of other shapes.

    Returns their paths.
    """
    unknown = {
        place.sites[0].path: f"{place.sites[0].told} ({name} {list(value.shape)})"
        for place in site_modules(model)
        if place.view.kind == "other" and "other" not in method.kinds and selection.allows(place.sites[0])
        for name, value in vars(place.module).items()
        if name in ("kernel", "scale") and isinstance(value, nnx.Param) and not hasattr(place.module, "kernel_size")
    }
    if unknown:
        first = next(iter(unknown.values()))
        warnings.warn(
            f"nothing is attached to {counted(len(unknown), 'module')} that `where` matches, the first of them "
            f"{first}: the weights are neither those of a linear map nor of a norm. A class of your own whose "
            "instances are stacked along a first axis needs attributes in_features and out_features, or num_features.",
            stacklevel=3,
        )
    return list(unknown)


_WHERE = "expected a regular expression as text, a Selection, or some of jpeft.sites(model)"


def _lost(model: nnx.Module, wide: str) -> Callable[[str], np.ndarray | None]:
    """The quantization error of each linear map of a quantized model, as a function of the map's path."""
    from jpeft.model.family import family_in
    from jpeft.model.quantized import Quantization, quantization_of
    from jpeft.model.source import resolve

    kept = quantization_of(model)
    if kept is None or "+" in kept:
        raise UserError(f"the model is kept {in_bits(kept)}, and nothing was lost; load it by quantization='nf4'.")
    quantization = Quantization.parse(kept)
    assert quantization is not None
    directory = resolve(wide, what="wide", flag="wide")
    return family_in(directory).open_filling(directory).lost_by(quantization)


def _require_all_weights(tuned: nnx.Module) -> None:
    """Raises `UserError` if some weights belong to no site, so that full tuning would not train them."""
    left = [
        "/".join(map(str, path))
        for path, weight in nnx.to_flat_state(nnx.state(tuned, nnx.Param))
        if jnp.issubdtype(jnp.result_type(weight.get_value()), jnp.floating)
    ]
    if left:
        raise UserError(
            f"{len(left)} weights would not train, the first of them {left[0]}: they are kept where no site is found. "
            "Give `where` to train the sites that there are (jpeft.sites lists them), or a method that adds to them."
        )


def attached_at(model: nnx.Module) -> list[Site]:
    """The sites that are adapted or whose own weights are trainable."""
    return [site for place in trained_places(model) for site in place.sites]


def save(
    tuned: nnx.Module, method: Method, directory: str | Path, *, base_name: str = "", tokenizer: Any = None
) -> None:
    """Saves the trained parameters of `method` to a directory, without the base model.

    The files have Hugging Face PEFT's layout if PEFT has the method and knows the model's family, and jpeft's own
    otherwise. After full tuning of all weights they are a whole model, which `load` opens if `tokenizer` was given. An
    adapter that is already in the directory is overwritten.

    Args:
      method: the one that was attached, with the same options; an adapter's files hold one method.
      base_name: name or path of the base model, stored so that the adapter can be loaded without naming it.
      tokenizer: from `load`; saved beside a whole model.

    Warns if the base is quantized, which an adapter's files do not record, and if the directory holds a `task.json` of
    an earlier run, whose prompt and labels `jpeft predict` and `jpeft serve` will go on to use.

    Raises:
      UserError: an argument has the wrong type, nothing is attached, what is attached does not come from this method,
        values are not finite, the method is not in `METHODS` under its name, or an adapter would be written over a
        whole model.
      RunFailed: the directory cannot be written.
    """
    from jpeft.data.task_file import TASK_FILE
    from jpeft.model.quantized import quantization_of

    require_module("tuned", tuned)
    require_method(method)
    require_made_by(tuned, method)
    directory = Path(directory)
    try:
        files.save_adapter(tuned, method, attached_at(tuned), directory, base_name=base_name)
    except OSError as error:
        raise RunFailed(f"{directory} cannot be written ({error.strerror or error}).") from None
    if (kept := quantization_of(tuned)) is not None:
        warnings.warn(
            f"the base is kept {in_bits(kept)}, which the adapter's files do not say: load it with "
            f"quantization={kept!r}, or it answers otherwise.",
            stacklevel=2,
        )
    if tokenizer is not None and files.layout_of(directory) is None:
        tokenizer.save(directory)
    if (directory / TASK_FILE).is_file():
        warnings.warn(
            f"{directory / TASK_FILE}, of the adapter that was there, stays: predict and serve ask this one by its "
            "prompt and labels; delete it where they are others.",
            stacklevel=2,
        )


def load_adapter(directory: str | Path, model: Model) -> Model:
    """`model` with a saved adapter attached; `model` itself stays as it is.

    Args:
      directory: an adapter's, in jpeft's layout or Hugging Face PEFT's, or a run's.

    Warns if the adapter was trained on a base that was quantized differently, and of everything in its files that was
    converted or ignored.

    Raises:
      UserError: there is no adapter, it does not fit the model, or the model has an adapter already.
      RunFailed: a file is damaged or truncated.
    """
    from jpeft.data.task_file import TaskOfRun
    from jpeft.model.quantized import quantization_of

    require_module("model", model)
    require_path("directory", directory)
    notes: list[str] = []
    directory = adapter_directory(Path(directory))
    adapted, method, _ = files.load_adapter(directory, model, report=notes.append)
    remember(method, adapted)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    task = TaskOfRun.read(directory)
    if task is not None and (line := task.in_other_bits(quantization_of(model))) is not None:
        warnings.warn(f"the adapter {line}", stacklevel=2)
    return adapted


@dataclasses.dataclass(frozen=True)
class Fitted(Generic[Model]):
    """The result of `fit`.

    Attributes:
      model: the model after training. Its trainable parameters have changed, and so have variables that forward passes
        update, such as batch statistics and random counters; the weights of the base have not.
      losses: the loss of each step's batch, computed before the update.
    """

    model: Model
    losses: list[float]


def fit(
    tuned: Model,
    batches: Iterable[LossBatch],
    loss: Loss | None = None,
    *,
    learning_rate: float | optax.Schedule | None = None,
    optimizer: optax.GradientTransformation | None = None,
    method: Method | None = None,
    total_steps: int | None = None,
) -> Fitted[Model]:
    """Trains what a method has attached, with one optimizer step per batch.

    For a run with validation, early stopping, checkpoints and a result file use `jpeft train`.

    Args:
      batches: pytrees of arrays. Every new combination of structure, shapes and dtypes is compiled once, so pad to few
        shapes. `text_batches` makes batches from texts.
      loss: maps `(model, batch)` to a scalar. None, for jpeft's own models, is the mean cross-entropy of the target
        tokens, without dropout. A batch is then a dict with `decoder_target_tokens`, int32 `[rows, length]`, and
        `decoder_loss_weights`, float32 of the same shape, 0 at padding; for a T5 also `encoder_input_tokens` and
        `decoder_input_tokens`; for a decoder-only model also `tokens` (each row's prompt followed by its answer) and
        either `input_lengths` `[rows]` or, to train on every token, `segment_ids`, 1 at each token (not
        with a soft prompt).
      learning_rate: of AdamW. None is the highest of the method's own default rates, or 1e-3 where no method is known.
      optimizer: replaces AdamW and `learning_rate`.
      method: whose default rates, rates of single leaves (LoRA+), penalty and work after each step (AdaLoRA) apply.
        None is the one that `attach`, `load` or `load_adapter` has attached to `tuned`, or several whose default rates
        are the same, or replaced by a rate given here, and that have none of the others.
      total_steps: how many steps there will be, for a method with a schedule (AdaLoRA). None is the length of
        `batches`, if they have one.

    Warns of trainable parameters that had no gradient at any step.

    Raises:
      UserError: nothing is trainable, or nothing that `method` attaches; the learning rate is not positive; both
        `optimizer` and `learning_rate` are given; several methods are attached that would train differently,
        and `method` or a learning rate does not decide; the method needs `total_steps` and it is unknown or too small;
        there are no batches; or a batch lacks what the loss reads or holds something other than numbers.
      RunFailed: the loss or a trained parameter is not finite.
    """
    require_module("tuned", tuned)
    require_batches(batches)
    require_loss(loss)
    model = copied(tuned)
    nnx.pop(model, nnx.Intermediate)  # values sown by forward passes are not used
    # Other variables, such as batch statistics and random counters, are carried from step to step.
    graphdef, adapter, weights, rest = nnx.split(model, Adapter, nnx.Param, ...)
    if not jax.tree.leaves(adapter):
        raise UserError("fit was given a model in which nothing trains; attach a method first.")
    if method is None:
        method = _method_to_follow(tuned, has_rate=learning_rate is not None or optimizer is not None)
    else:
        require_method(method)
        require_attached_by(tuned, method)
    if loss is None and not hasattr(tuned, "hidden_of"):
        raise UserError(
            f"{type(tuned).__name__} is no model of jpeft's, whose loss fit knows; give a loss of your own."
        )
    if total_steps is not None and method is not None and method.plans_by_steps:
        require_sizes({"total_steps": total_steps})
    tx = _optimizer_of(method, optimizer, learning_rate)
    planned = _steps_for(method, batches, total_steps)
    step = _make_step(graphdef, loss or _mean_cross_entropy, tx, method, planned)
    reached = jax.tree.map(lambda leaf: jnp.bool_(False), adapter)
    adapter, rest = (jax.tree.map(jnp.copy, tree) for tree in (adapter, rest))  # the step takes their buffers
    state = init_state(adapter, lambda schedule: tx, method)
    program, losses = Program(step, donate=(0, 1, 2)), []
    for batch in batches:
        if planned and len(losses) == planned:
            raise UserError(
                f"batches gives more than the {planned} steps of total_steps, by which "
                f"{'' if method is None else method.name} plans."
            )
        state, rest, reached, value = program(state, rest, reached, weights, arrays_of(batch))
        losses.append(float(value))
        if not np.isfinite(losses[-1]):
            raise RunFailed(f"the loss is {losses[-1]} at step {len(losses)}; try a lower learning rate.")
    if not losses:
        raise UserError(
            "batches gave none, so nothing was trained; an iterator that was read before gives none again: give a list."
        )
    if not all(map(bool, jax.tree.leaves(finite(state.adapter)))):
        raise RunFailed(f"what trains holds NaN or infinity after step {len(losses)}; try a lower learning rate.")
    _warn_of_unreached(reached, len(losses))
    return Fitted(nnx.merge(graphdef, state.adapter, jax.tree.map(lambda leaf: leaf, weights), rest), losses)


def _method_to_follow(tuned: nnx.Module, *, has_rate: bool) -> Method | None:
    """The method that `fit` follows where it was given none; None where no method is known.

    Of several methods without learning rates or hooks of their own it is any whose default rate is that of all.

    Args:
      tuned: the model.
      has_rate: whether `fit` was given a learning rate or an optimizer, so that no default rate is needed.

    Raises:
      UserError: there are several methods, which differ in what `fit` would do.
    """
    methods = remembered(tuned)
    if len(methods) < 2:
        return methods[0] if methods else None
    special = [method for method in methods if method.has_hooks or method.plans_by_steps or method.rate_factors]
    if special:
        raise UserError(
            f"the model has several methods attached, and {special[0].describe()} has learning rates, a penalty or "
            "steps of its own; say by `method` which one is followed."
        )
    rates = {method.learning_rates.warmup: method for method in methods}
    if len(rates) > 1 and not has_rate:
        told = " and ".join(f"{rate:g} of {method.describe()}" for rate, method in rates.items())
        raise UserError(
            f"the model has several methods attached, whose default learning rates differ ({told}); give learning_rate."
        )
    return methods[0]


def _optimizer_of(
    method: Method | None, optimizer: optax.GradientTransformation | None, learning_rate: float | optax.Schedule | None
) -> optax.GradientTransformation:
    """The optimizer of `fit`; arguments and errors as there."""
    require_optimizer(optimizer)
    if optimizer is not None and learning_rate is not None:
        raise UserError("fit was given an optimizer, which has its own rates, and a learning_rate; give one.")
    if not (learning_rate is None or callable(learning_rate)):
        learning_rate = rate_of(learning_rate)
    if learning_rate is None:
        learning_rate = method.learning_rates.warmup if method is not None else 1e-3
    tx = optimizer or optax.adamw(learning_rate, weight_decay=0.0)
    return with_rate_factors(tx, {} if method is None else method.rate_factors)


def _make_step(
    graphdef: nnx.GraphDef, loss: Loss, tx: optax.GradientTransformation, method: Method | None, total_steps: int
) -> Callable[..., tuple[TrainState, nnx.State, nnx.State, jax.Array]]:
    """One training step, `(state, rest, reached, weights, batch) -> (state, rest, reached, loss)`.

    `rest` holds the model's other variables, such as batch statistics and random counters, which a forward pass may
    change. `reached` says of each trainable leaf whether its gradient was other than zero at some step so far. The
    first three arguments may be donated.
    """

    def step(
        state: TrainState, rest: nnx.State, reached: nnx.State, weights: nnx.State, batch: LossBatch
    ) -> tuple[TrainState, nnx.State, nnx.State, jax.Array]:
        def loss_of(adapter: nnx.State) -> tuple[jax.Array, nnx.State]:
            # Variables of this trace, as `nnx.scan` wants them.
            frozen, moving = (jax.tree.map(lambda leaf: leaf, tree) for tree in (weights, rest))
            model = nnx.merge(graphdef, adapter, frozen, moving)
            value = loss(model, batch)
            require_scalar_loss(value)
            nnx.pop(model, nnx.Intermediate)
            moved = nnx.state(model, nnx.Not(nnx.Any(Adapter, nnx.Param)))
            _require_same_shapes(rest, moved)
            return value, moved

        (value, moved), grads = jax.value_and_grad(loss_of, has_aux=True)(state.adapter)
        reached = jax.tree.map(lambda was, grad: was | jnp.any(grad != 0), reached, grads)
        try:
            state, _ = apply_gradients(state, grads, tx, method, total_steps=jnp.int32(total_steps))
        except TypeError as error:
            if "keyword-only argument" not in str(error):
                raise
            raise UserError(
                f"the optimizer needs more than gradients and parameters ({error}); write a loop of your own over "
                "jpeft.split, which can give it those."
            ) from None
        return state, moved, reached, value

    return step


def _require_same_shapes(before: nnx.State, after: nnx.State) -> None:
    """Raises `UserError` if a forward pass adds or removes variables, or changes their shapes or dtypes."""
    old, new = (
        {jax.tree_util.keystr(path): _shape_and_dtype(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
        for state in (before, after)
    )
    changed = next((path for path in [*old, *new] if old.get(path) != new.get(path)), None)
    if changed is not None:
        told = ["nothing" if at is None else f"{at[1]}{list(at[0])}" for at in (old.get(changed), new.get(changed))]
        raise UserError(
            f"a forward pass changes {changed} of the model from {told[0]} to {told[1]}; fit needs variables that keep "
            "their shapes from step to step: create them before, or keep them out of the model."
        )


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], Any]:
    return jnp.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _steps_for(method: Method | None, batches: Iterable[LossBatch], total_steps: int | None) -> int:
    """The number of steps for a method with a schedule, 0 for others. Raises `UserError` if it is unknown."""
    if method is None or not method.plans_by_steps:
        return 0
    known = len(batches) if isinstance(batches, Sized) else None
    total_steps = known if total_steps is None else total_steps
    if total_steps is None or total_steps < 1:
        raise UserError(f"{method.name} plans by how many steps there are; tell fit by total_steps.")
    if known is not None and known > total_steps:
        raise UserError(f"total_steps is {total_steps}, and there are {known} batches, one of each step.")
    return total_steps


def _warn_of_unreached(reached: nnx.State, steps: int) -> None:
    """Warns of trainable leaves whose gradient was zero at every step."""
    unreached = [jax.tree_util.keystr(path) for path, was in jax.tree.leaves_with_path(reached) if not was]
    if unreached and steps >= 3:  # with two matrices whose product is added, one is zero until the other has moved
        warnings.warn(
            f"{len(unreached)} trainable leaves had no gradient at any step, the first of them {unreached[0]}. Does "
            "the model read the weights there otherwise than by calling the module, or multiply its output by zero?",
            stacklevel=3,
        )


def _mean_cross_entropy(model: Any, batch: LossBatch) -> jax.Array:
    try:
        total, tokens = loss_sums(model, batch)
    except KeyError as missing:
        raise UserError(
            f"a batch has {', '.join(sorted(batch))} and lacks {missing}; give what this model's loss reads "
            "(help(jpeft.fit)), or a loss of your own."
        ) from None
    return total / jnp.maximum(tokens, 1)


def _require_loaded(model: Any, tokenizer: Any) -> None:
    """Raises `UserError` unless the two are a model and a tokenizer as `load` returns them."""
    if not (isinstance(model, nnx.Module) and hasattr(model, "hidden_of") and hasattr(model, "config")):
        what = shortened(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise UserError(f"model is {what}; expected a model of jpeft's, such as jpeft.load gives.")
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"tokenizer is {shortened(tokenizer)}; expected that of jpeft.load.")


def text_batches(
    model: Any,
    tokenizer: Any,
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    batch_size: int = 16,
    epochs: int = 1,
    seed: int = 0,
    max_input_length: int = 512,
    max_target_length: int = 128,
) -> TextBatches:
    """Tokenizes pairs of texts into batches for `fit`, padded to few shapes.

    Args:
      model, tokenizer: from `load`; the model may have a method attached.
      inputs: complete prompts, as for `generate`.
      targets: the answer to each prompt.
      batch_size: rows per batch, and so per optimizer step.
      epochs: passes over the rows, each in another random order.
      seed: of these orders.
      max_input_length, max_target_length: in tokens, at least 2, including the end-of-sequence token; longer texts are
        truncated at their end.

    Returns:
      A sized iterable of dicts of arrays, which yields the same batches every time.

    Warns if texts were truncated.

    Raises:
      UserError: an argument has the wrong type, there are no texts, their numbers differ, a target is empty, or a
        number is too small.
    """
    sizes = {"batch_size": batch_size, "epochs": epochs}
    lengths = {"max_input_length": max_input_length, "max_target_length": max_target_length}
    require_sizes(sizes)
    require_sizes(lengths, least=2)
    require_seed(seed)
    _require_loaded(model, tokenizer)
    require_texts("inputs", inputs)
    require_texts("targets", targets)
    if len(inputs) != len(targets) or not inputs:
        raise UserError(f"text_batches was given {len(inputs)} inputs and {len(targets)} targets; expected one each.")
    batches = TextBatches.of(model.config, tokenizer, inputs, targets, seed=seed, **sizes, **lengths)
    for what, cut in (("input", batches.tokens.cut_inputs), ("target", batches.tokens.cut_targets)):
        if cut:
            longest = lengths[f"max_{what}_length"]
            warnings.warn(
                f"{cut:,} of {counted(len(inputs), what)} lost their end: they are longer than max_{what}_length, "
                f"{longest} tokens.",
                stacklevel=2,
            )
    return batches


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
    """Generates an answer to each prompt, by greedy decoding or beam search.

    The inputs are complete prompts: the template and the labels of an adapter's run are not applied here; `jpeft
    predict` applies them. Compiled programs are cached for further calls with the same model structure and lengths.

    Args:
      model, tokenizer: from `load`; the model may have a method attached.
      max_output_length: the most tokens of an answer, including the end-of-sequence token.
      max_input_length: the most tokens of a prompt; longer ones are truncated at their end.
      num_beams: beams of beam search; 1 is greedy decoding.
      batch_size: prompts answered at once. It changes memory and speed, and results only by rounding.

    Warns if prompts or answers were truncated.

    Raises:
      UserError: an argument has the wrong type, a size is below 1, `max_input_length` leaves no room for text, or the
        model has fewer positions than asked for.
    """
    from jpeft.predict.answering import Generating

    sizes = {"max_output_length": max_output_length, "max_input_length": max_input_length}
    _require_loaded(model, tokenizer)
    require_sizes({**sizes, "num_beams": num_beams, "batch_size": batch_size})
    require_texts("inputs", inputs)
    if not inputs:
        return []
    answering = Generating(
        model,
        tokenizer,
        max_output_length=max_output_length,
        num_beams=num_beams,
        max_input_length=max_input_length,
        batch_size=batch_size,
        key="max_input_length",
        made=_GENERATE,
    )
    answers = [answer["prediction"] for answer in answering(inputs)]
    if answering.cut:
        warnings.warn(
            f"{answering.cut:,} of {counted(len(inputs), 'input')} lost their end: they are longer than "
            f"max_input_length, {max_input_length} tokens.",
            stacklevel=2,
        )
    if answering.unended:
        warnings.warn(
            f"{answering.unended:,} of {counted(len(inputs), 'answer')} reached max_output_length, {max_output_length} "
            "tokens, before their end.",
            stacklevel=2,
        )
    return answers


_GENERATE: Recent[Program] = Recent(8)


def evaluate(
    model: Any,
    tokenizer: Any,
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    metric: str,
    max_output_length: int = 128,
    max_input_length: int = 512,
    num_beams: int = 1,
    batch_size: int = 32,
) -> float:
    """Generates answers to `inputs` and scores them against `targets`.

    Args:
      inputs: complete prompts, as for `generate`; `jpeft evaluate` applies the template of an adapter's run.
      targets: the reference answer to each prompt.
      metric: a name in `jpeft.eval.metrics.METRICS` whose metric needs no label probabilities.
      max_output_length, max_input_length, num_beams, batch_size: as for `generate`.

    Returns:
      The metric's value, on the scale that its description gives.

    Raises:
      UserError: there is no such metric, or it needs label probabilities; there are no inputs, or their number is not
        that of the targets; or as `generate`.
    """
    from jpeft.eval.metrics import named
    from jpeft.eval.metrics.base import PROBABILITIES

    chosen = named(metric)
    require_texts("inputs", inputs)
    require_texts("targets", targets)
    if len(inputs) != len(targets) or not inputs:
        raise UserError(f"evaluate was given {len(inputs)} inputs and {len(targets)} targets; expected one each.")
    if PROBABILITIES in chosen.needs:
        raise UserError(f"{metric} needs the probability of every label, which no text has; take another metric.")
    answers = generate(
        model,
        tokenizer,
        inputs,
        max_output_length=max_output_length,
        max_input_length=max_input_length,
        num_beams=num_beams,
        batch_size=batch_size,
    )
    return chosen(answers, [(target,) for target in targets])
