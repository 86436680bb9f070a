"""Starts an engine: loads the base and the adapters, makes the bank and compiles all programs."""

import contextlib
import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flax import nnx

from jpeft.adapters.files import read_adapter
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed, UserError
from jpeft.eval.labels import PackedLabels
from jpeft.model.family import compute_dtype, family_in
from jpeft.model.quantized import Quantization
from jpeft.model.source import resolve
from jpeft.model.weight_files import model_fingerprint
from jpeft.peft.method import AddedModules, Method
from jpeft.peft.methods import METHODS, build
from jpeft.peft.sites import sites
from jpeft.predict.answer_source import task_of
from jpeft.serve.bank import AdapterBank
from jpeft.serve.engine import Engine, PaddedShapes
from jpeft.serve.pool import Room, room_for
from jpeft.serve.shelf import Shelf
from jpeft.words import counted, shortened

_INPUTS, _OUTPUTS = (64, 256), (16, 64)  # tokens; the last of each is raised to the adapters' runs' lengths
_MOST_INPUT, _MOST_OUTPUT = 1024, 256  # the limit of that: an adapter's file must not be able to fill the memory
_LABEL_TOKENS = 32  # at least, if any adapter has labels: a request may bring its own
_SECONDS_BETWEEN_LINES = 5.0  # of progress while compiling

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The model and adapters to serve, as the command line names them.

    Attributes:
      model: name of the base.
      adapters: the directory with the adapters.
      dtype: of the base's weights and of activations.
      base_names: the names of the base that adapters' files may have.
      capacity: the most adapters loaded at once.
      room: `METHOD[:READING[:SIZE]]` of further adapters to keep room for.
      follow_links: whether links that lead out of the directory are followed.
      quantization: of the base's linear maps, such as `nf4,double`.
    """

    model: str
    adapters: Path
    dtype: str
    base_names: tuple[str, ...]
    capacity: int
    room: tuple[str, ...]
    follow_links: bool = False
    quantization: str = "auto"


@dataclasses.dataclass(frozen=True)
class ShapeFlags:
    """The shapes to pad to, from the command line; as in `PaddedShapes`, with None for those of the adapters' runs."""

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    input_lengths: tuple[int, ...] | None = None
    output_lengths: tuple[int, ...] | None = None
    label_tokens: int | None = None

    def shapes(self, tasks: Sequence[TaskOfRun], label_tokens: int) -> PaddedShapes:
        """A few shapes that suffice for these tasks, up to inputs of 1,024 and outputs of 256 tokens.

        Args:
          label_tokens: the most tokens that all labels of one task have together.
        """
        generating = [task for task in tasks if not task.chosen_from]
        longest_input = max([_INPUTS[-1], *(task.max_input_length for task in tasks)])
        longest_output = max([_OUTPUTS[-1], *(task.max_target_length for task in generating)])
        return PaddedShapes(
            self.batch_sizes,
            self.input_lengths or (*_INPUTS[:-1], min(longest_input, _MOST_INPUT)),
            self.output_lengths or (*_OUTPUTS[:-1], min(longest_output, _MOST_OUTPUT)),
            max(label_tokens, _LABEL_TOKENS if label_tokens else 0) if self.label_tokens is None else self.label_tokens,
        )


def start(choices: Choices, sizes: ShapeFlags, *, say: Callable[[str], None]) -> tuple[Engine, Shelf]:
    """Makes an engine, loads every adapter of the directory and compiles every shape.

    An adapter that cannot be loaded is reported and left out: a damaged file must not keep the server from starting.

    Args:
      say: called with lines for the operator.

    Raises:
      UserError: the base, the directory or a flag is wrong, there is no adapter to make room for, or there are more
        adapters than the capacity.
    """
    shelf = Shelf(choices.adapters, follow_links=choices.follow_links)
    reserved = [parse_room(text) for text in choices.room]
    PaddedShapes(sizes.batch_sizes, sizes.input_lengths or _INPUTS, sizes.output_lengths or _OUTPUTS)  # checks
    dtype, quantization = compute_dtype(choices.dtype), Quantization.parse(choices.quantization)
    directory = resolve(choices.model, what="--model", flag="--model", report=say)
    own_task = task_of(directory)
    family = family_in(directory)
    tokenizer = family.tokenizer(directory, family.read_config(directory))
    for note in family.notes(directory, tokenizer):
        say(f"note     {note}")
    model = family.load(directory, dtype=dtype, quantization=quantization)
    family.arrange(model, scan_layers=None)
    config = model.config
    names, not_served = shelf.survey()
    for name, reason in not_served.items():
        say(f"not served {name}: {reason}")
    if len(names) > choices.capacity:
        raise UserError(f"{choices.adapters} holds {counted(len(names), 'adapter')}; --capacity is {choices.capacity}.")
    room = [*room_for(model, *reserved), *_room_of(shelf, names, model)]
    if not room:
        raise UserError(f"{choices.adapters} holds no adapter to make room for; name those that will come with --room.")
    bank = AdapterBank(model, capacity=choices.capacity, room=room, base_names=choices.base_names)
    tasks = [] if own_task is None else [(choices.model, own_task)]
    for name in names:
        with _errors_deferred(name):
            if (task := task_of(shelf.find(name))) is not None:
                tasks.append((name, task))
    packed = [0]
    for name, task in tasks:
        with _errors_deferred(name):
            labels = task.chosen_from
            templated = tokenizer.asked_by(task.chat_template)
            packed += [len(PackedLabels.of(labels, templated, config).targets)] if labels else []
    shapes = sizes.shapes([task for _, task in tasks], max(packed))
    engine = Engine(bank, tokenizer, shapes, dtype=dtype.name, base=model_fingerprint(directory))
    engine.set_base_task(own_task)
    for name in names:
        try:
            engine.load(name, shelf.find(name))
        except Exception as error:
            if not isinstance(error, UserError | RunFailed):
                _log.exception("%s cannot be loaded", name)
            say(f"left out {name}: {engine.left_out.get(name, error)}")
        else:
            for note in engine.asking(name).notes:
                say(f"note     {name}: {note}")
    say(f"loaded   {counted(len(bank.names), 'adapter')}; {bank.nbytes / 1e6:,.0f} MB hold {bank.capacity}")
    _compile(engine, say)
    return engine, shelf


@contextlib.contextmanager
def _errors_deferred(name: str) -> Iterator[None]:
    """Ignores errors in an adapter's files, which are reported when it is loaded.

    Unexpected errors are ignored, too, since they must not keep the server from starting; they are logged.
    """
    try:
        yield
    except (UserError, RunFailed, OSError):
        pass
    except Exception:
        _log.exception("%s cannot be looked at", name)


def _compile(engine: Engine, say: Callable[[str], None]) -> None:
    """Compiles all shapes and reports the progress every few seconds."""
    shapes, started = engine.shapes, time.monotonic()
    total, done = len(list(shapes)), [0, shapes.batch_sizes[0], shapes.input_lengths[0], None, started]
    rows, inputs, outputs = (
        ", ".join(map(str, sizes)) for sizes in (shapes.batch_sizes, shapes.input_lengths, shapes.output_lengths)
    )
    say(
        f"compiles {counted(total, 'program')}, for {rows} rows x {inputs} tokens in x {outputs} out"
        f"{' and labels' if shapes.label_tokens else ''}; a second start finds them in the cache"
    )

    def tell() -> None:
        number, rows, inputs, outputs, since = done
        now = time.monotonic()
        left = (since - started) / max(number, 1) * (total - number) - (now - since)
        to = "labels" if outputs is None else f"{outputs} out"
        estimate = f", about {left:.0f} s left" if number and left > 1 else ""
        which = f"{counted(rows, 'row')}, {inputs} in, {to}"
        say(f"compiling {number + 1} of {total} ({which}); {now - started:.0f} s so far{estimate}")

    def reached(number: int, shape: tuple[int, int, int | None]) -> None:
        done[:] = [number, *shape, time.monotonic()]

    with _every(_SECONDS_BETWEEN_LINES, tell):
        engine.compile(reached)
    say(f"compiled {counted(total, 'program')} in {time.monotonic() - started:.0f} seconds")


@contextlib.contextmanager
def _every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def parse_room(text: str) -> Method:
    """The method of a `--room` such as `lora:official:16`. Raises `UserError` for anything else."""
    name, _, rest = text.partition(":")
    reading, _, size = rest.partition(":")
    sizes = {known: option for known, method in METHODS.items() for option in method.sizes}
    if size and (name not in sizes or not re.fullmatch("[0-9]{1,9}", size)):
        have = ", ".join(f"{known} has its {option}" for known, option in sizes.items())
        raise UserError(f"--room {shortened(text)}: {shortened(name)} takes no size {shortened(size)}; {have}.")
    method = build(name, reading or "paper", {sizes[name]: int(size)} if size else {})
    if not isinstance(method, AddedModules):
        raise UserError(f"--room {text}: {name} tuning changes the base itself; serve its model with --model.")
    return method


def _room_of(shelf: Shelf, names: Sequence[str], model: nnx.Module) -> Room:
    """The room for each adapter that can be read; the bank checks later whether they fit the base."""
    by_path = {site.path: site for site in sites(model)}
    room: dict[tuple[Method, frozenset[str]], None] = {}
    for name in names:
        with _errors_deferred(name):
            method, leaves, _ = read_adapter(shelf.find(name), model)
            if isinstance(method, AddedModules):
                room[method, frozenset(by_path.keys() & {leaf.rpartition("/")[0] for leaf in leaves})] = None
    return [(method, [by_path[path] for path in paths]) for method, paths in room]
