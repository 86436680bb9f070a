"""From what the operator asked for to an engine that is ready: base, bank, adapters, compiled programs."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jpeft.errors import RunFailed, UserError
from jpeft.model import weights
from jpeft.model.source import resolve
from jpeft.model.t5 import T5, arrange_layers
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.base import AddedModules, Method, sites
from jpeft.peft.hub import read_adapter
from jpeft.peft.methods import build
from jpeft.serve.bank import AdapterBank
from jpeft.serve.engine import Engine, Shapes
from jpeft.serve.pool import Room, room_for
from jpeft.serve.shelf import Shelf
from jpeft.words import counted


@dataclasses.dataclass(frozen=True)
class Choices:
    """What is served.

    Attributes:
      model: name of the base.
      adapters: the directory that adapters come from.
      dtype: of the base's weights and of activations.
      base_names: what adapters' files may call the base.
      capacity: how many adapters are loaded at once.
      room: `METHOD[:READING[:SIZE]]` each, to keep room for.
    """

    model: str
    adapters: Path
    dtype: str
    base_names: tuple[str, ...]
    capacity: int
    room: tuple[str, ...]


def start(choices: Choices, shapes: Shapes, *, say: Callable[[str], None]) -> tuple[Engine, Shelf]:
    """An engine with every adapter of the directory loaded and every shape compiled.

    An adapter that can not be loaded is named to `say` and left out: one damaged file must not keep a server down.

    Raises:
      UserError: the base, the directory or a choice is wrong; there is nothing to make room for, or too little room.
    """
    shelf = Shelf(choices.adapters)
    asked = [parse_room(text) for text in choices.room]
    directory = resolve(choices.model, report=say)
    model = weights.load(directory, dtype=choices.dtype)
    arrange_layers(model, None)
    tokenizer = Tokenizer.load(directory, vocab_size=model.config.vocab_size)
    names = shelf.names()
    if len(names) > choices.capacity:
        raise UserError(f"{choices.adapters} holds {counted(len(names), 'adapter')}; --capacity is {choices.capacity}.")
    room = [*room_for(model, *asked), *_room_of(shelf, names, model)]
    if not room:
        raise UserError(f"{choices.adapters} holds no adapter to make room for; say by --room what is to come.")
    bank = AdapterBank(model, capacity=choices.capacity, room=room, base_names=choices.base_names)
    for name in names:
        try:
            bank.add(name, shelf.find(name))
        except (UserError, RunFailed) as error:
            say(f"left out {name}: {error}")
    say(f"loaded   {counted(len(bank.names), 'adapter')}; {bank.nbytes / 1e6:,.0f} MB hold {bank.capacity}")
    engine, started = Engine(bank, tokenizer, shapes), time.monotonic()
    engine.compile()
    say(f"compiled {len(list(shapes))} shapes in {time.monotonic() - started:.0f} seconds")
    return engine, shelf


def parse_room(text: str) -> Method:
    """`lora:official:16` as the method that it means. Raises `UserError`."""
    name, _, rest = text.partition(":")
    reading, _, size = rest.partition(":")
    option = {"lora": "rank", "prompt": "prompt_length"}.get(name)
    if size and (option is None or not size.isdecimal()):
        raise UserError(f"--room {text}: {name} takes no size {size!r}; lora has a rank, prompt a length.")
    method = build(name, reading or "paper", {str(option): int(size)} if size else {})
    if not isinstance(method, AddedModules):
        raise UserError(f"--room {text}: {name} tuning changes the base itself; serve its model as a base.")
    return method


def _room_of(shelf: Shelf, names: Sequence[str], model: T5) -> Room:
    """Room for each of the adapters that can be read; whether they fit the base is for the bank to say."""
    by_path = {site.path: site for site in sites(model)}
    room: dict[tuple[Method, frozenset[str]], None] = {}
    for name in names:
        try:
            method, leaves, _ = read_adapter(shelf.find(name), model)
        except (UserError, RunFailed):
            continue  # said when it is loaded
        if isinstance(method, AddedModules):
            room[method, frozenset(by_path.keys() & {leaf.rpartition("/")[0] for leaf in leaves})] = None
    return [(method, [by_path[path] for path in paths]) for method, paths in room]
