"""Load test of `jpeft serve`: concurrent clients, each with its own adapter and known answers.

  python -m benchmarks.serve                              64 clients for a minute, `mini` with 64 LoRA adapters
  python -m benchmarks.serve --clients 8 --seconds 10

Every client sends one request after another and compares each answer with that of its adapter alone, computed
beforehand with `jpeft.model.decode.greedy`. The figures count wrong and missing answers, and rows that the server
answered without a request.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import jax
import jax.numpy as jnp
import numpy as np

from jpeft.adapters.files import save_adapter
from jpeft.leaves import fill
from jpeft.model import t5_weights
from jpeft.model.decode import greedy
from jpeft.model.source import resolve
from jpeft.model.t5 import T5
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.attaching import attach
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter

METHOD = Lora.official(rank=8)
OUTPUT_TOKENS = 16
CLEAR = 1e-3  # least lead, in logits, of the likeliest token; float32 rounding may swap closer ones
TEXTS = (
    "topic: Ferrari wins in Monza", "summarize: Ann: lunch? Bob: yes, at noon", "is it acceptable: He go home.",
    "name[Alimentum], food[Thai], area[riverside]", "topic: shares of the bank fall after the merger",
    "summarize: Eve: the train is late. Ann: I'll wait", "what is the capital of France?", "translate: guten Morgen",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        known = write_adapters(Path(directory), arguments.model, arguments.clients)
        options = [
            "--output-lengths",
            str(OUTPUT_TOKENS),
            "--input-lengths",
            "64",
            "--capacity",
            str(arguments.clients),
        ]
        with serving(["--model", arguments.model, "--adapters", directory, *options]) as server:
            figures = asyncio.run(load(server, known, arguments.seconds))
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def write_adapters(directory: Path, model: str, count: int) -> dict[str, dict[str, str]]:
    """Write random adapters to `directory`; returns `{adapter: {text: answer}}` for the unambiguous answers."""
    base = t5_weights.load(resolve(model))
    tokenizer = Tokenizer.load(resolve(model))
    sites = select(base, METHOD)
    known = {}
    for number in range(count):
        draw = np.random.default_rng(number)
        adapted = attach(base, METHOD, sites, jax.random.key(0))
        fill(adapted, Adapter, lambda name, shape, part, d=draw: 0.1 * d.standard_normal(shape)[part], np.float32)
        name = f"adapter-{number}"
        save_adapter(adapted, METHOD, sites, directory / name, base_name=model)
        known[name] = clear_answers(adapted, tokenizer)
    return known


def clear_answers(model: T5, tokenizer: Tokenizer) -> dict[str, str]:
    """The model's greedy answers to `TEXTS`, without those where the two likeliest tokens were once within `CLEAR`."""
    inputs = np.zeros((len(TEXTS), 64), np.int32)
    for row, ids in zip(inputs, tokenizer.encode(TEXTS, max_length=64).ids, strict=True):
        row[: len(ids)] = ids
    generated, scores = (np.asarray(x) for x in _greedy_with_scores(model, jnp.asarray(inputs)))
    second, first = np.moveaxis(np.sort(scores, axis=-1)[..., -2:], -1, 0)
    ended = np.cumsum(generated == tokenizer.eos_token_id, axis=1) - (generated == tokenizer.eos_token_id) > 0
    is_clear = np.all(ended | ((first - second > CLEAR) & (scores.argmax(axis=-1) == generated)), axis=1)
    answers = tokenizer.decode(generated.tolist())
    return {text: answer for text, answer, clear in zip(TEXTS, answers, is_clear, strict=True) if clear}


@jax.jit
def _greedy_with_scores(model: T5, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy tokens `[batch, OUTPUT_TOKENS]`, and the logits at each of them from one pass over the whole sequence."""
    generated = greedy(model, inputs, max_length=OUTPUT_TOKENS).tokens
    return generated, model(inputs, jnp.pad(generated, ((0, 0), (1, 0)))[:, :-1])


@dataclasses.dataclass(frozen=True)
class Server:
    """A running `jpeft serve`."""

    process: subprocess.Popen
    url: str

    @property
    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(options: Sequence[str]) -> Iterator[Server]:
    """Run `jpeft serve` on a free port: waits until it listens, and stops it with SIGTERM on exit."""
    command = [sys.executable, "-m", "jpeft.cli", "serve", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with status {process.wait()} before it listened.")
        yield Server(process, json.loads(line)["url"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


async def load(server: Server, known: Mapping[str, Mapping[str, str]], seconds: float) -> dict[str, Any]:
    """Run one client per adapter, each sending its next request as soon as it has an answer; returns the figures."""
    # One request per adapter before memory is read: allocations at the first use are not growth.
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        await asyncio.gather(*(_ask(http, adapter, next(iter(answers)), 0) for adapter, answers in known.items()))
        before, end = server.resident_bytes, time.monotonic() + seconds
        clients = [_client(http, adapter, answers, end) for adapter, answers in known.items()]
        results = [result for client in await asyncio.gather(*clients) for result in client]
        metrics = (await http.get("/metrics")).text
    waits = np.sort([result["seconds"] for result in results])
    batches = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.splitlines()
        if "jpeft_batch_rows_" in line and "{" not in line and line[0] != "#"
    }
    return {
        "clients": len(known),
        "requests": len(results),
        "answers_known": sum(map(len, known.values())),
        "answers_that_differ_between_adapters": len({tuple(answers.values()) for answers in known.values()}),
        "wrong": sum(result["verdict"] == "wrong" for result in results),
        "lost": sum(result["verdict"] == "lost" for result in results),
        "rows_answered_by_server_beyond_requests": batches["jpeft_batch_rows_sum"] - len(results) - len(known),
        "rows_per_batch": batches["jpeft_batch_rows_sum"] / batches["jpeft_batch_rows_count"],
        "requests_per_second": len(results) / seconds,
        **{f"latency_ms_p{p}": 1e3 * float(np.percentile(waits, p)) for p in (50, 95, 99, 100)},
        "resident_bytes_before": before,
        "resident_bytes_after": server.resident_bytes,
    }  # fmt: skip


async def _client(http: httpx2.AsyncClient, adapter: str, answers: Mapping[str, str], end: float) -> list[dict]:
    results, texts, number = [], list(answers), 0
    while time.monotonic() < end:
        text = texts[number % len(texts)]
        started = time.monotonic()
        answer = await _ask(http, adapter, text, number)
        verdict = "lost" if answer is None else "right" if answer == answers[text] else "wrong"
        results.append({"seconds": time.monotonic() - started, "verdict": verdict})
        number += 1
    return results


async def _ask(http: httpx2.AsyncClient, adapter: str, text: str, number: int) -> str | None:
    body = {"inputs": [text], "adapter": adapter, "max_output_tokens": OUTPUT_TOKENS}
    response = await http.post("/generate", json=body)
    if response.status_code != 200 or response.json()["adapter"] != adapter:
        return None
    (prediction,) = response.json()["predictions"]
    return prediction["text"]


if __name__ == "__main__":
    main()
