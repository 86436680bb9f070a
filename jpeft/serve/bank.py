"""A bank: many adapters of one base on the device, of which each row of a batch uses one, or the base alone."""

import functools
import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jpeft.adapters.files import read_adapter, stored_base_name
from jpeft.errors import UserError
from jpeft.eval.labels import packed_log_probs
from jpeft.model.decode import Generated, greedy
from jpeft.model.quantized import quantization_of
from jpeft.peft.method import AddedModules, Method, SiteWeights
from jpeft.peft.sites import site_modules, sites
from jpeft.peft.variables import AdapterRows
from jpeft.program import Program
from jpeft.serve.pool import LeafShapes, MadeShapes, PoolLayout, Room, attach_pool, rooms

Names = Sequence[str | None]  # one per row of a batch; None is the base alone


class UnknownAdapter(UserError):
    """Raised for adapters that the bank does not hold.

    Attributes:
      names: their names.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(f"the bank holds no adapter {', '.join(map(repr, names))}.")
        self.names = frozenset(names)


class BankFull(UserError):
    """Raised when an adapter is added and every slot of the bank holds one."""


class AdapterBank:
    """Up to `capacity` adapters of one base, of any mix of methods; programs are compiled once per batch shape.

    The base is shared, never copied. The bank is thread-safe: a batch uses the adapters that its names referred to when
    it started, whatever is added or removed meanwhile. Adding and removing do not wait for a running batch: what is
    added while one runs is written to the device before the next.

    Attributes:
      capacity: the most adapters held at once.
      base: the frozen weights, the model's own arrays.
      quantization: of the base, such as `nf4,double`; None for float weights.
    """

    def __init__(self, model: Any, *, capacity: int, room: Room, base_names: Collection[str] = ()):
        """Allocates the memory of a full bank; adapters larger than `room` cannot be added later.

        Args:
          model: the base, without adapters.
          room: the largest adapters to hold and the sites where they act; `room_for` makes it from methods. The
            programs compute everything that there is room for, so a bank for LoRA alone adds no biases.
          base_names: the names of this base that adapters' files may have; empty accepts any.
        """
        if capacity < 1:
            raise UserError(f"capacity is {capacity}; expected at least 1.")
        self.capacity = capacity
        self._base_names = frozenset(base_names)
        self._model = model
        self.quantization = quantization_of(model)
        self._sites = {site.path: site for site in sites(model)}
        self._shapes_of = MadeShapes(model)
        self._rooms = rooms(model, room, self._shapes_of)
        with_pool = attach_pool(model, capacity + 1, self._rooms)
        self._layout, self._pool = PoolLayout.of(with_pool, self._rooms)
        self._graphdef, _, self.base = nnx.split(with_pool, AdapterRows, ...)
        del with_pool  # it refers to the first pool's arrays, which the first `add` donates
        self._slots: dict[str, int] = {}
        self._free = list(range(capacity, 0, -1))
        # `_unwritten` holds entries by slot that are not on the device yet. `_lock` guards it, names and slots, and is
        # held briefly; `_device` guards the pool's arrays, and is held while the device uses them. To hold both,
        # acquire `_device` first.
        self._unwritten: dict[int, tuple[np.ndarray, ...]] = {}
        self._lock, self._device = threading.Lock(), threading.Lock()
        self._write = Program(self._layout.write, donate=(0,))
        self._logits = Program(make_logits(self._graphdef, self._layout))
        self._labels = Program(make_packed_log_probs(self._graphdef, self._layout))
        self._generate: dict[int, Program] = {}
        self._pool = self._write(self._pool, self._layout.entry({}), np.int32(0))  # compiled before the first `add`

    @property
    def config(self) -> Any:
        """The base's config: its sizes and special token ids."""
        return self._model.config

    @property
    def names(self) -> list[str]:
        """The sorted names of the adapters in the bank."""
        return sorted(self._slots.copy())

    @property
    def num_programs(self) -> int:
        """The number of programs compiled so far."""
        programs = (self._write, self._logits, self._labels, *self._generate.values())
        return sum(program.num_shapes for program in programs)

    @property
    def largest(self) -> LeafShapes:
        """The largest shape that fits of each leaf, by the leaf's name; LoRA's A is transposed."""
        return self._layout.shapes

    @property
    def nbytes(self) -> int:
        """Bytes of the pool on the device."""
        return sum(array.nbytes for array in self._pool)

    def block_until_ready(self) -> None:
        """Waits until all added adapters are on the device."""
        with self._device:
            with self._lock:
                entries = self._take_unwritten()
            self._write_all(entries)
            jax.block_until_ready(self._pool)

    def add(self, name: str, directory: Path) -> Method:
        """Reads an adapter, in jpeft's or PEFT's layout, and adds it under `name`; returns its method.

        Warns of anything in its files that was converted or ignored. Raises as `read` and `put`.
        """
        method, leaves, notes = self.read(directory)
        self.put(name, method, leaves, source=str(directory))
        for note in notes:
            warnings.warn(f"adapter {directory}: {note}", stacklevel=2)
        return method

    def read(self, directory: Path) -> tuple[Method, dict[str, np.ndarray], tuple[str, ...]]:
        """Reads an adapter, in jpeft's or PEFT's layout.

        Returns:
          Its method, its leaves by name (for `put`), and notes on what in its files was converted or ignored.

        Raises:
          UserError: as `read_adapter`, or its files name another base.
          RunFailed: a file is damaged.
        """
        base_name = stored_base_name(directory)
        if self._base_names and base_name is not None and not self._is_ours(base_name):
            ours = " or ".join(sorted(self._base_names))
            raise UserError(
                f"{directory} is an adapter of {base_name}; the base here is {ours}. If it is the same under another "
                "name, say so: --also-base, or base_names of the bank."
            )
        return read_adapter(directory, self._model)

    def _is_ours(self, base_name: str) -> bool:
        if base_name in self._base_names:
            return True
        same = lambda name: Path(name).is_dir() and Path(base_name).samefile(name)  # two paths of one directory
        return Path(base_name).is_dir() and any(map(same, self._base_names))

    def put(self, name: str, method: Method, leaves: Mapping[str, np.ndarray], *, source: str | None = None) -> None:
        """Adds an adapter under `name`, replacing one of that name.

        Args:
          leaves: arrays by name, as `named_leaves(model, Adapter)` gives them.
          source: the adapter's name in messages.

        Raises:
          UserError: the adapter does not fit the base, is incomplete, or is larger than the bank's room.
          BankFull: every slot is in use.
        """
        entry = self._layout.entry(self._fitting(method, leaves, source or f"adapter {name!r}"))
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                if not self._free:
                    raise BankFull(f"the bank is full: it holds {self.capacity} adapters; remove one first.")
                slot = self._free.pop()
            self._unwritten[slot] = entry
            self._slots[name] = slot
        if self._device.acquire(blocking=False):  # else a batch is running, and the next one writes it
            try:
                with self._lock:
                    entries = self._take_unwritten()
                self._write_all(entries)
            finally:
                self._device.release()

    def _take_unwritten(self) -> dict[int, tuple[np.ndarray, ...]]:
        entries, self._unwritten = self._unwritten, {}
        return entries

    def _write_all(self, entries: Mapping[int, tuple[np.ndarray, ...]]) -> None:
        """Writes entries to the pool; if that fails, the rest stay unwritten, so that no slot holds a wrong adapter."""
        left = dict(entries)
        try:
            for slot, entry in entries.items():
                self._pool = self._write(self._pool, entry, np.int32(slot))
                del left[slot]
        except BaseException:
            with self._lock:
                self._unwritten = left | self._unwritten  # entries added meanwhile are newer
            raise

    def remove(self, name: str) -> None:
        """Removes an adapter and frees its slot. Raises `UnknownAdapter` if there is none of that name."""
        with self._lock:
            if name not in self._slots:
                raise UnknownAdapter([name])
            self._free.append(self._slots.pop(name))

    def generate(self, inputs: Int[np.ndarray, "batch in_length"], names: Names, *, max_length: int) -> Generated:
        """Decodes greedily with each row's adapter; the result is that of `jpeft.model.decode.greedy`.

        Args:
          inputs: token ids of the prompts, filled up at the end with `config.padding_id`.
          names: each row's adapter; None is the base alone.
          max_length: the most tokens of an answer; each value is a program of its own.

        Raises:
          UnknownAdapter: the bank does not hold all of `names`.
        """
        program = self._generate.get(max_length)
        if program is None:
            made = Program(make_generate(self._graphdef, self._layout, max_length=max_length))
            program = self._generate.setdefault(max_length, made)  # another thread may have made it meanwhile
        return self._run(program, names, inputs)

    def label_log_probs(
        self,
        inputs: Int[np.ndarray, "batch in_length"],
        names: Names,
        labels: Int[np.ndarray, "batch length"],
        targets: Int[np.ndarray, "batch length"],
        segment_ids: Int[np.ndarray, "batch length"],
    ) -> Float[Array, "batch labels"]:
        """The log-probability of each of a row's labels with its adapter; there are half as many labels as tokens.

        Args:
          labels, targets, segment_ids: as `jpeft.eval.labels.PackedLabels.filled_up` gives them.

        Raises as `generate`.
        """
        return self._run(self._labels, names, inputs, labels, targets, segment_ids)

    def logits(self, *tokens: Int[np.ndarray, "batch _"], names: Names) -> Float[Array, "batch length vocab"]:
        """The logits of the model called with `tokens`, with each row's adapter. Raises as `generate`."""
        return self._run(self._logits, names, *tokens)

    def _run(self, program: Program, names: Names, *tokens: np.ndarray) -> Any:
        with self._device:
            with self._lock:
                unknown = sorted({name for name in names if name is not None and name not in self._slots})
                if unknown:
                    raise UnknownAdapter(unknown)
                slots = np.array([0 if name is None else self._slots[name] for name in names], np.int32)
                entries = self._take_unwritten()
            self._write_all(entries)
            batch = (slots, *(np.asarray(ids, np.int32) for ids in tokens))
            # Wait here: a write to arrays that a running program reads would block, and with it `put`.
            return jax.block_until_ready(program(self.base, self._pool, batch))

    def _fitting(self, method: Method, leaves: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
        """The leaves in the pool's layout, checked against the base, the method and the bank's room."""
        if not isinstance(method, AddedModules):
            raise UserError(f"{source} changes weights of the base ({method.name} tuning), which a bank cannot hold.")
        by_site: dict[str, dict[str, np.ndarray]] = {}
        for name, value in leaves.items():
            path, _, leaf = name.rpartition("/")
            by_site.setdefault(path, {})[leaf] = np.asarray(value)
        known = [site for path in by_site if (site := self._sites.get(path)) is not None]
        method, values = method.settled(known) if known else method, {}
        weights = _BaseWeights(self._model)
        for path, own in by_site.items():
            self._check_whole(method, path, own, source)
        for path in sorted(by_site, key=weights.order):
            rows = method.row_leaves_at(self._sites[path], by_site[path], functools.partial(weights, path))
            values |= {f"{path}/{leaf}": value for leaf, value in rows.items()}
        for name in sorted(values):
            self._check_room(name, values[name].shape, method, source)
        for path in by_site:
            if not self._rooms[path].parts >= set(method.rows(self._sites[path], self._model)):
                raise UserError(f"{source}: the bank has no room for {method} at {path}, only for other options of it.")
        return values

    def _check_whole(self, method: AddedModules, path: str, leaves: Mapping[str, np.ndarray], source: str) -> None:
        """Raises `UserError` unless `leaves` are exactly the method's leaves at this site, of its shapes and finite."""
        site = self._sites.get(path)
        if site is None:
            raise UserError(f"{source} does not fit this base, which has no {path}; is it of another size?")
        shapes = self._shapes_of(method, site)
        if set(leaves) != set(shapes):
            raise UserError(f"{source} is incomplete: at {path} it has {sorted(leaves)}; expected {sorted(shapes)}.")
        for leaf, value in leaves.items():
            if value.shape != shapes[leaf]:
                raise UserError(
                    f"{source} does not fit this base: {path}/{leaf} should have shape {shapes[leaf]}, "
                    f"it has {value.shape}."
                )
            if not np.isfinite(value).all():
                raise UserError(f"{source} holds values that are not finite, at {path}/{leaf}.")

    def _check_room(self, name: str, shape: tuple[int, ...], method: AddedModules, source: str) -> None:
        largest = self._layout.shapes.get(name)
        path, _, leaf = name.rpartition("/")
        if largest is None:
            raise UserError(
                f"{source}: the bank has no room for {method.name} at {path} ({leaf}); keep it when the bank is made "
                "(--room, room_for)."
            )
        if shape[0] > largest[0]:
            raise UserError(
                f"{source}: {method.row_size(leaf, shape[0])} at {path}; the bank has room for {largest[0]}: keep more "
                "when it is made (--room, room_for)."
            )


class _BaseWeights:
    """The weights of a base's linear maps by site.

    The layers of a stack share one array. The latest array is kept, so if sites are visited in their `order`, each
    quantized one is dequantized once.
    """

    def __init__(self, model: nnx.Module):
        self._places = list(site_modules(model))
        self._where = {
            site.path: (i, layer) for i, at in enumerate(self._places) for layer, site in enumerate(at.sites)
        }
        self._last: tuple[int, SiteWeights] | None = None

    def order(self, path: str) -> tuple[int, int]:
        """The sort key of a site, by array; unknown sites come last."""
        return self._where.get(path, (len(self._places), 0))

    def __call__(self, path: str) -> SiteWeights:
        """The kernel at a site, `[d_in, d_out]`, and its bias."""
        index, layer = self._where[path]
        place = self._places[index]
        if self._last is None or self._last[0] != index:
            module: Any = place.module
            bias = None if place.view.bias is None else getattr(module, place.view.bias)[...]
            self._last = index, (place.view.matrix(module), bias)
        matrix, bias = self._last[1]
        if place.in_stack:
            matrix, bias = matrix[layer], None if bias is None else bias[layer]
        return matrix, None if bias is None else bias.reshape(place.view.d_out)


def make_generate(graphdef: nnx.GraphDef, layout: PoolLayout, *, max_length: int):
    """Returns `(base, pool, (slots, inputs)) -> Generated`, which decodes up to `max_length` tokens, to be jitted."""

    def generate(base: nnx.State, pool: tuple[Array, ...], batch: tuple[Array, Array]):
        slots, inputs = batch
        return greedy(nnx.merge(graphdef, layout.rows(pool, slots), base), inputs, max_length=max_length)

    return generate


def make_packed_log_probs(graphdef: nnx.GraphDef, layout: PoolLayout):
    """Returns `(base, pool, (slots, inputs, labels, targets, segment_ids)) -> [batch, labels]`, to be jitted."""

    def score(base: nnx.State, pool: tuple[Array, ...], batch: tuple[Array, ...]):
        slots, inputs, *packed = batch
        model = nnx.merge(graphdef, layout.rows(pool, slots), base)
        return packed_log_probs(model, inputs, *packed, num_labels=packed[0].shape[1] // 2)

    return score


def make_logits(graphdef: nnx.GraphDef, layout: PoolLayout):
    """Returns `(base, pool, (slots, *tokens)) -> logits`, to be jitted."""

    def logits(base: nnx.State, pool: tuple[Array, ...], batch: tuple[Array, ...]):
        slots, *tokens = batch
        return nnx.merge(graphdef, layout.rows(pool, slots), base)(*tokens)

    return logits
