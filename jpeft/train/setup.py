"""Builds a run's model, with the method attached, and its tokenizer."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jpeft.adapters.files import load_adapter
from jpeft.adapters.locate import locate, whole_model
from jpeft.adapters.own_tokenizer import note_on_tokenizer
from jpeft.config import Run
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import UserError
from jpeft.leaves import num_weights
from jpeft.mesh.layout import Layout
from jpeft.model.chat import chat_template_of
from jpeft.model.family import compute_dtype, family_in
from jpeft.model.quantized import quantization_of
from jpeft.model.source import resolve
from jpeft.model.tokenizer import Tokenizer
from jpeft.model.weight_files import model_fingerprint
from jpeft.peft.attaching import attach, init_from_residual
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS, ablation_of
from jpeft.peft.selection import Selection, left_out, select
from jpeft.peft.sites import Site
from jpeft.train.session import Session

_REPORT_AFTER_SECONDS = 2.0
# Of the conditions of a `Selection`.
_CONFIG_KEYS = {
    "stacks": "method.stacks",
    "layers": "method.layers",
    "names": "method.targets",
    "pattern": "method.pattern",
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's model, ready to train.

    Attributes:
      model: the base with the method's modules attached.
      untuned: the base without the method, sharing its arrays; None if `model` holds shapes only.
      sites: where the method is attached.
      total_parameters: of the base alone.
      quantization: how the base is stored, such as `nf4,double`; None if it is not quantized.
      base: fingerprint of the base's files; None if it cannot be computed.
    """

    model: Any
    untuned: Any
    method: Method
    sites: list[Site]
    tokenizer: Tokenizer
    total_parameters: int
    quantization: str | None
    base: str | None


def selection(run: Run, model: nnx.Module) -> Selection:
    """The sites selected by a run's ablation, or else by its own targets, layers and pattern."""
    if run.ablation.name is not None:
        return ablation_of(model, run.method.name, run.ablation.name, seed=run.ablation.seed)
    return Selection(
        stacks=run.stacks(),
        layers=run.layer_indices(),
        names=run.targets(),
        pattern=run.method.pattern,
        called=_CONFIG_KEYS,
    )


def _load_base(
    run: Run, session: Session, layout: Layout, directory: Path, content: str | None
) -> tuple[Any, Tokenizer]:
    """Loads the base and its tokenizer from a directory, unless the session has them.

    Args:
      content: fingerprint of the directory's files, part of the cache key.
    """
    dtype = compute_dtype(run.model.dtype)
    trains_the_base = METHODS[run.method.name].trains_base

    def load() -> tuple[Any, Tokenizer]:
        # A trained base is stored in float32: read it so, not through a rounded copy.
        stored_dtype = jnp.float32 if trains_the_base else dtype
        family = family_in(directory)
        model = family.load(
            directory,
            dtype=dtype,
            stored_dtype=stored_dtype,
            dropout_rate=run.model.dropout_rate,
            place=layout.sharding_of,
            quantization=run.quantization(),
        )
        family.arrange(model, scan_layers=run.model.scan_layers, remat=run.model.remat)
        return model, family.tokenizer(directory, model.config)

    if trains_the_base:  # training donates the weights' buffers, so such a base cannot be shared
        return load()
    return session.bases.get(
        (
            directory,
            content,
            dtype,
            run.quantization(),
            run.model.dropout_rate,
            run.model.remat,
            run.model.scan_layers,
            layout,
        ),
        load,
    )


def _adapter_directory(name: str) -> Path:
    """Resolves `method.from_adapter`, the directory of a run or of an adapter, to that of the adapter."""
    path = Path(name).expanduser()
    if whole_model(path) is not None:
        raise UserError(
            f"method.from_adapter {name!r} is of full tuning, which leaves a whole model; give it as "
            f"model.name instead: --config.model.name={whole_model(path)}"
        )
    return locate(path).directory


def _require_same_adapter(stored: Method, method: Method) -> None:
    """Raises `UserError` if two methods do not attach the same; what only training reads is the config's to say."""
    like_the_configs = stored
    if type(stored) is type(method):
        of_config = {name: getattr(method, name) for name in method.only_in_training}
        like_the_configs = dataclasses.replace(stored, **of_config)
    if like_the_configs != method:
        raise UserError(f"method.from_adapter holds {stored}, the config asks for {method}; make them agree.")


def _require_same_sites(stored: list[Site], model: nnx.Module, method: Method, asked: Selection) -> None:
    """Raises `UserError` if the config selects other sites than those of the adapter to start from."""
    if asked == Selection():
        return
    wanted, there = ({site.path for site in sites} for sites in (select(model, method, asked), stored))
    if wanted != there:
        example = min(wanted ^ there)
        raise UserError(
            f"method.from_adapter is attached to {len(there)} sites, and the config's targets, stacks, layers, pattern "
            f"or ablation select {len(wanted)} ({example} is in one alone); an adapter keeps its sites: leave those "
            "keys unset, or start without it."
        )


def _start_from_quantization_error(run: Run, model: nnx.Module, method: Method, report: Callable[[str], None]) -> None:
    """Initialises an adapter with what quantization removed from each map (LoftQ)."""
    quantization = run.quantization()
    assert quantization is not None and quantization.kind != "none", "a config without is refused"
    directory = resolve(run.model.name)
    started = time.perf_counter()
    maps = init_from_residual(model, method, family_in(directory).open_filling(directory).lost_by(quantization))
    seconds = time.perf_counter() - started
    if seconds > _REPORT_AFTER_SECONDS:
        report(f"LoftQ started {maps:,} maps from the error of {quantization}, in {seconds:.0f} s")


def set_up(run: Run, session: Session, layout: Layout, *, report: Callable[[str], None] = lambda line: None) -> Setup:
    """Loads the base, unless the session has it, and attaches the method.

    Args:
      report: called with a line about what takes long, or is named by the config and cannot be adapted.

    Raises:
      UserError: with the method's options nothing would train; the model or adapter is missing, does not fit, or has
        other sites than the config selects; or the selection matches nothing.
      RunFailed: a file is damaged, or the hub cannot be reached.
    """
    method = run.build_method()
    if method.trains_nothing is not None:
        raise UserError(f"{method.trains_nothing}: nothing would train; change it.")
    chat_template = chat_template_of(run.data.chat_template)
    directory = resolve(run.model.name, report=report)
    content = model_fingerprint(directory)
    untuned, tokenizer = _load_base(run, session, layout, directory, content)
    for note in family_in(directory).notes(directory, tokenizer):
        report(note)
    tokenizer = tokenizer.asked_by(chat_template)
    total = num_weights(untuned)
    if run.method.from_adapter is not None:
        adapter = _adapter_directory(run.method.from_adapter)
        task = TaskOfRun.read(adapter)
        if task is not None and (line := task.on_another_base(content)) is not None:
            report(f"method.from_adapter {line}")
        if task is not None:
            tokens = tokenizer.asked_by(task.chat_template).chat_tokens
            if (line := task.in_other_tokens(tokens)) is not None:
                report(f"method.from_adapter {line}")
        if (line := note_on_tokenizer(adapter, lambda: tokenizer)) is not None:
            report(f"method.from_adapter: {line}")
        model, stored_method, sites = load_adapter(adapter, untuned, report=report)
        _require_same_adapter(stored_method, method)
        _require_same_sites(sites, untuned, method, selection(run, untuned))
    else:
        sites = select(untuned, method, selection(run, untuned))
        model = attach(untuned, method, sites, jax.random.key(run.train.seed))
        if method.init_from_residual is not None:
            _start_from_quantization_error(run, model, method, report)
    if (line := left_out(untuned, method, selection(run, untuned))) is not None:
        report(line)
    return Setup(model, untuned, method, sites, tokenizer, total, quantization_of(untuned), content)
