"""From what the operator asked for to an engine that is ready: base, bank, adapters, compiled programs."""

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

_INPUTS, _OUTPUTS = (64, 256), (16, 64)  # tokens; the last of each grows with what the adapters' runs took and gave
_MOST_INPUT, _MOST_OUTPUT = 1024, 256  # that it grows to by itself: a stranger's file must not fill the memory
_LABEL_TOKENS = 32  # at least, where anything is chosen from labels: a request may bring its own
_SECONDS_BETWEEN_LINES = 5.0  # about a program's compiling: whoever starts a server waits for it

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The model and adapters to serve, as the command line names them.

    Attributes:
      model: name of the base.
      adapters: the directory that adapters come from.
      dtype: of the base's weights and of activations.
      quantization: of the base's maps, in words: `nf4,double`.
      base_names: what adapters' files may call the base.
      capacity: how many adapters are loaded at once.
      room: `METHOD[:READING[:SIZE]]` each, to keep room for.
      follow_links: whether links that lead out of the directory are followed.
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
    """The shapes to pad to, as the command line gives them; None takes those of the adapters' runs.

    Attributes:
      label_tokens: as of `PaddedShapes`.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    input_lengths: tuple[int, ...] | None = None
    output_lengths: tuple[int, ...] | None = None
    label_tokens: int | None = None

    def shapes(self, tasks: Sequence[TaskOfRun], label_tokens: int) -> PaddedShapes:
        """Few shapes that hold what these tasks ask, up to 1,024 tokens in and 256 out.

        Args:
          label_tokens: of the task with the most of them.
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
    """An engine with every adapter of the directory loaded and every shape compiled.

    An adapter that cannot be loaded is named to `say` and left out: one damaged file must not keep a server down.

    Raises:
      UserError: the base, the directory or a choice is wrong; there is nothing to make room for, or too little room.
    """
    shelf = Shelf(choices.adapters, follow_links=choices.follow_links)
    asked = [parse_room(text) for text in choices.room]
    PaddedShapes(sizes.batch_sizes, sizes.input_lengths or _INPUTS, sizes.output_lengths or _OUTPUTS)  # before the work
    dtype, quantization = compute_dtype(choices.dtype), Quantization.parse(choices.quantization)
    directory = resolve(choices.model, what="--model", flag="--model", report=say)
    own_task = task_of(directory)
    family = family_in(directory)
    model = family.load(directory, dtype=dtype, quantization=quantization)
    family.arrange(model, scan_layers=None)
    config = model.config
    tokenizer = family.tokenizer(directory, config)
    for name, reason in shelf.not_served().items():
        say(f"not served {name}: {reason}")
    names = shelf.names()
    if len(names) > choices.capacity:
        raise UserError(f"{choices.adapters} holds {counted(len(names), 'adapter')}; --capacity is {choices.capacity}.")
    room = [*room_for(model, *asked), *_room_of(shelf, names, model)]
    if not room:
        raise UserError(f"{choices.adapters} holds no adapter to make room for; say by --room what is to come.")
    bank = AdapterBank(model, capacity=choices.capacity, room=room, base_names=choices.base_names)
    tasks = [] if own_task is None else [(choices.model, own_task)]
    for name in names:
        with _left_for_later(name):
            if (task := task_of(shelf.find(name))) is not None:
                tasks.append((name, task))
    packed = [0]
    for name, task in tasks:
        with _left_for_later(name):
            labels = task.chosen_from
            asked = tokenizer.asked_by(task.chat_template)
            packed += [len(PackedLabels.of(labels, asked, config).targets)] if labels else []
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
def _left_for_later(name: str) -> Iterator[None]:
    """Passes over what is wrong with the files of an adapter, which is said when it is loaded.

    A defect of ours is passed over, too, for it must not keep a server down; its traceback is logged.
    """
    try:
        yield
    except (UserError, RunFailed, OSError):
        pass
    except Exception:
        _log.exception("%s cannot be looked at", name)


def _compile(engine: Engine, say: Callable[[str], None]) -> None:
    """Compiles all shapes; says what for, and every few seconds how far it is."""
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
    """`lora:official:16` as the method that it means. Raises `UserError`."""
    name, _, rest = text.partition(":")
    reading, _, size = rest.partition(":")
    sizes = {known: option for known, method in METHODS.items() for option in method.sizes}
    if size and (name not in sizes or not re.fullmatch("[0-9]{1,9}", size)):
        have = ", ".join(f"{known} has its {option}" for known, option in sizes.items())
        raise UserError(f"--room {shortened(text)}: {shortened(name)} takes no size {shortened(size)}; {have}.")
    method = build(name, reading or "paper", {sizes[name]: int(size)} if size else {})
    if not isinstance(method, AddedModules):
        raise UserError(f"--room {text}: {name} tuning changes the base itself; serve its model as a base.")
    return method


def _room_of(shelf: Shelf, names: Sequence[str], model: nnx.Module) -> Room:
    """Room for each of the adapters that can be read; whether they fit the base is for the bank to say."""
    by_path = {site.path: site for site in sites(model)}
    room: dict[tuple[Method, frozenset[str]], None] = {}
    for name in names:
        with _left_for_later(name):
            method, leaves, _ = read_adapter(shelf.find(name), model)
            if isinstance(method, AddedModules):
                room[method, frozenset(by_path.keys() & {leaf.rpartition("/")[0] for leaf in leaves})] = None
    return [(method, [by_path[path] for path in paths]) for method, paths in room]
