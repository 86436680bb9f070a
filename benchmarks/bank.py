"""Benchmark a bank of many LoRA adapters on `mini`: correctness and cost of mixed batches, and of adding one.

  python -m benchmarks.bank                              1,000 adapters; some minutes on two cores
  python -m benchmarks.bank --adapters 100 --repeats 5

Agreement: the logits of each adapter's row in a mixed batch against those of the model with that adapter alone; the
rows that differ most are also computed in float64. Speed: a batch with one attached adapter against the same batch with
a different adapter for each row, in turns; medians are compared.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import alternate
from jpeft.allocator import keep_freed_memory
from jpeft.eval.generate import make_generate
from jpeft.leaves import fill
from jpeft.model import t5_weights
from jpeft.model.source import resolve
from jpeft.model.stack import arrange
from jpeft.model.t5 import T5
from jpeft.peft.attaching import attach, split
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from jpeft.serve.bank import AdapterBank
from jpeft.serve.pool import room_for

RANK = 8  # the largest rank; adapters have 1 to RANK
ENC_LEN, DEC_LEN, MAX_LENGTH = 64, 16, 32


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument(
        "--wide", type=int, default=16, help="number of rows, those that differ most, to compute in float64 as well"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    bench = _Bench(arguments.adapters, arguments.rows)
    figures = {
        **bench.filling(),
        **bench.agreement(arguments.wide),
        **bench.speed(arguments.repeats),
        "programs": bench.bank.num_programs,
        "resident_bytes": _resident_bytes(),
    }
    for name, value in figures.items():
        print(f"{name:40s} {value:,.6g}" if isinstance(value, float | int) else f"{name:40s} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _base(dtype: Any = jnp.float32) -> T5:
    model = t5_weights.load(resolve("mini"), dtype=dtype)
    arrange((model.encoder, model.decoder), scan=None)
    return model


@jax.jit
def _forward(model: T5, *tokens: jax.Array) -> jax.Array:
    return model(*tokens)


def _filled(model: T5, leaves: dict[str, np.ndarray], dtype: Any = np.float32) -> T5:
    fill(model, Adapter, lambda name, shape, part: leaves[name][part], dtype)
    return model


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row's float32 logits from the bank (`mixed`) and from the model with its adapter alone."""

    name: str
    tokens: tuple[np.ndarray, ...]
    mixed: np.ndarray
    alone: np.ndarray

    @property
    def difference(self) -> float:
        return float(np.abs(self.mixed - self.alone).max())


class _Bench:
    """The bank and its adapters, which are drawn from their numbers and not stored."""

    def __init__(self, adapters: int, rows: int):
        self.rows, self.draw = rows, np.random.default_rng(0)
        self.model = _base()
        self.sites = select(self.model, Lora.official())
        self.bank = AdapterBank(self.model, capacity=adapters, room=room_for(self.model, Lora.official(rank=RANK)))
        self.names = [f"a{i}" for i in range(adapters)]

    def method(self, name: str) -> Lora:
        """The LoRA method of an adapter; its rank, 1 to `RANK`, and alpha follow from its number."""
        rank = 1 + int(name[1:]) % RANK
        return Lora.official(rank=rank, alpha=2.5 * rank)

    def leaves(self, name: str) -> dict[str, np.ndarray]:
        """An adapter's values, drawn from its number: A as initialised, B of the size that training may give it."""
        draw, rank, drawn = np.random.default_rng(int(name[1:])), self.method(name).rank, {}
        for site in self.sites:
            bound = site.d_in**-0.5
            drawn[f"{site.path}/lora_a"] = draw.uniform(-bound, bound, (site.d_in, rank)).astype(np.float32)
            drawn[f"{site.path}/lora_b"] = (0.05 * draw.standard_normal((rank, site.d_out))).astype(np.float32)
        return drawn

    def alone(self, name: str) -> T5:
        """The base with one adapter attached."""
        attached = attach(self.model, self.method(name), self.sites, jax.random.key(0))
        return _filled(attached, self.leaves(name))

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Random input tokens `[rows, ENC_LEN]` with rows of different lengths, and target tokens `[rows, DEC_LEN]`."""
        vocab = self.model.config.vocab_size
        inputs = self.draw.integers(3, vocab, (self.rows, ENC_LEN)).astype(np.int32)
        for row, length in enumerate(self.draw.integers(8, ENC_LEN + 1, self.rows)):
            inputs[row, length:] = 0
        return inputs, self.draw.integers(3, vocab, (self.rows, DEC_LEN)).astype(np.int32)

    def filling(self) -> dict[str, Any]:
        """Time adding all adapters one by one, with batches in between, then removing some and adding them again."""
        tokens = self.tokens()
        self.bank.logits(*tokens, names=[None] * self.rows).block_until_ready()
        programs, add, remove = self.bank.num_programs, [], []
        for i, name in enumerate(self.names):
            add.append(1e3 * _seconds(self._add(name)))
            if i % 100 == 0:
                self.bank.logits(*tokens, names=[name] * self.rows).block_until_ready()
        for name in self.names[:: max(1, len(self.names) // 50)]:
            remove.append(1e3 * _seconds(lambda name=name: self.bank.remove(name)))
            self._add(name)()
        assert self.bank.num_programs == programs, "adding compiled something"
        return {
            "adapters": len(self.bank.names),
            "pool_bytes": self.bank.nbytes,
            "add_ms_median": statistics.median(add),
            "add_ms_max": max(add),
            "remove_ms_median": statistics.median(remove),
        }

    def _add(self, name: str) -> Callable[[], Any]:
        method, leaves = self.method(name), self.leaves(name)

        def add():
            self.bank.put(name, method, leaves)
            self.bank.block_until_ready()

        return add

    def agreement(self, wide_rows: int) -> dict[str, Any]:
        """Compare each adapter's row in mixed batches with the model with that adapter alone; returns the errors."""
        order, found = [str(name) for name in self.draw.permutation(self.names)], []
        worst: list[_Row] = []  # only these keep their logits: those of a thousand rows are 2 GB
        for start in range(0, len(order), self.rows):
            names = order[start : start + self.rows]
            tokens = self.tokens()
            mixed = np.asarray(self.bank.logits(*tokens, names=names + [None] * (self.rows - len(names))))
            base = np.asarray(self.bank.logits(*tokens, names=[None] * self.rows))
            for row, name in enumerate(names):
                alone = np.asarray(_forward(self.alone(name), *tokens))[row]
                own = _Row(name, tuple(x[row : row + 1] for x in tokens), mixed[row].copy(), alone.copy())
                found.append((own.difference, np.abs(alone).max(), np.abs(alone - base[row]).max(), name))
                worst = sorted([*worst, own], key=lambda row: -row.difference)[:wide_rows]
        differences, sizes, moved, names = zip(*found, strict=True)
        full = [value for value, name in zip(differences, names, strict=True) if self.method(name).rank == RANK]
        return {
            "rows": len(found),
            "logits_largest": float(max(sizes)),
            "logits_moved_at_least": float(min(moved)),  # smallest effect of an adapter on the base's logits
            "difference": max(differences),
            **(
                {"difference_of_the_largest_rank": max(full)} if full else {}
            ),  # else there are fewer adapters than ranks
            "rows_within_1e-5": sum(value <= 1e-5 for value in differences),
            **self._in_float64(worst),
        }

    def _in_float64(self, rows: "Sequence[_Row]") -> dict[str, float]:
        """Errors of both results against float64 for the rows that differ most, and their difference in float64."""
        errors: dict[str, float] = {"bank_from_float64": 0.0, "alone_from_float64": 0.0, "difference_in_float64": 0.0}
        with _wide():
            base = _base(jnp.float64)
            bank = AdapterBank(base, capacity=len(rows), room=room_for(base, Lora.official(rank=RANK)))
            for row in rows:
                bank.put(row.name, self.method(row.name), self.leaves(row.name))
            for row in rows:
                attached = attach(base, self.method(row.name), self.sites, jax.random.key(0))
                alone = np.asarray(_forward(_filled(attached, self.leaves(row.name), np.float64), *row.tokens))[0]
                of_bank = np.asarray(bank.logits(*row.tokens, names=[row.name]))[0]
                for name, first, second in (
                    ("bank_from_float64", row.mixed, alone),
                    ("alone_from_float64", row.alone, alone),
                    ("difference_in_float64", of_bank, alone),
                ):
                    errors[name] = max(errors[name], float(np.abs(first - second).max()))
        return {f"of_the_{len(rows)}_worst_{name}": value for name, value in errors.items()}

    def speed(self, repeats: int) -> dict[str, Any]:
        """Time forward passes and greedy generation with one attached adapter and with one adapter per row."""
        tokens, names = self.tokens(), [str(name) for name in self.draw.choice(self.names, self.rows)]
        graphdef, adapter, base = split(self.alone(f"a{RANK - 1}"))  # an adapter of the largest rank
        forward = jax.jit(lambda adapter, base, *tokens: nnx.merge(graphdef, adapter, base)(*tokens))
        generate = jax.jit(make_generate(graphdef, max_length=MAX_LENGTH))
        calls = {
            "forward_one": lambda: forward(adapter, base, *tokens),
            "forward_bank": lambda: self.bank.logits(*tokens, names=names),
            "generate_one": lambda: generate(adapter, base, tokens[0]).tokens,
            "generate_bank": lambda: self.bank.generate(tokens[0], names, max_length=MAX_LENGTH).tokens,
        }
        for name in ("generate_one", "generate_bank"):  # both must run every step of the loop
            assert np.all(np.asarray(calls[name]()) != 0, axis=1).any(), "no row went on to the last step"
        timed = alternate({name: lambda call=call: _seconds(call) for name, call in calls.items()}, repeats)
        figures: dict[str, Any] = {f"{name}_ms": 1e3 * timing.median for name, timing in timed.items()}
        for what in ("forward", "generate"):
            one, bank = timed[f"{what}_one"], timed[f"{what}_bank"]
            figures[f"{what}_throughput"] = one.median / bank.median
            figures[f"{what}_throughput_of_fastest"] = min(one.seconds) / min(bank.seconds)
        return figures


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Run models in float64 throughout: what they explicitly compute in float32, such as statistics, is float64.

    Every module looks `float32` up in the one module `jax.numpy` when it is traced.
    """
    with jax.enable_x64(True), mock.patch.object(jnp, "float32", jnp.float64):
        yield


if __name__ == "__main__":
    main()
