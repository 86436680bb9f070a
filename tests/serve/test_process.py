"""`jpeft serve` as a process: start, stop with requests in flight, load, and fuzzing."""

import asyncio
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from benchmarks.serve import load, serving, write_adapters
from jpeft.cli import main
from jpeft.errors import UserError
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt
from jpeft.serve.listen import bind
from jpeft.serve.shelf import Shelf
from jpeft.serve.start import Choices, ShapeFlags, parse_room, start
from tests.serve.conftest import ON_SHELF


def call(*arguments: object) -> list[str]:
    return ["serve", *map(str, arguments)]


def refused(capsys, arguments, says, status=2):
    assert main(arguments) == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and says in line


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(capsys, call("--model", "mini", "--adapters", tmp_path), "pip install 'jpeft[serve]'")


def test_a_port_that_is_taken_is_known_at_once(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = call("--model", "mini", "--adapters", tmp_path, "--port", taken.getsockname()[1])
        refused(capsys, arguments, "cannot listen at 127.0.0.1:")
    with pytest.raises(UserError, match="cannot listen at hhhh.*too long"):
        bind("h" * 64, 0)
    with pytest.raises(UserError, match="cannot listen at 127.0.0.1:70000"):
        bind("127.0.0.1", 70000)


def test_the_start_looks_at_every_adapter_directory_once(tmp_path, deeper_checkpoint, monkeypatch):
    looked, look = [], Shelf._look_at
    monkeypatch.setattr(Shelf, "_look_at", lambda shelf, name: looked.append(name) or look(shelf, name))
    (tmp_path / "empty").mkdir()
    said = []
    with pytest.raises(UserError, match="holds no adapter to make room for"):
        start(Choices(str(deeper_checkpoint), tmp_path, "float32", (), 1, ()), ShapeFlags(), say=said.append)
    assert looked == ["empty"] and any(line.startswith("not served empty: ") for line in said)


def test_wrong_choices_are_named(capsys, tmp_path, deeper_checkpoint, tiny_shelf):
    free = ("--port", 0, "--model", deeper_checkpoint)
    refused(capsys, call(*free, "--adapters", tmp_path / "nowhere"), "is no directory")
    refused(capsys, call(*free, "--adapters", tmp_path), "holds no adapter to make room for")
    refused(capsys, call(*free, "--adapters", tiny_shelf, "--capacity", 2), "holds 3 adapters; --capacity is 2")
    refused(capsys, call(*free, "--adapters", tiny_shelf, "--batch-sizes", "4,1"), "batch_sizes")
    refused(capsys, call(*free, "--adapters", tiny_shelf, "--timeout", 0), "--timeout is 0")
    refused(capsys, call(*free, "--adapters", tiny_shelf, "--max-queue", 3), "give a --max-queue of at least 16")


@pytest.mark.parametrize(
    ("text", "method"),
    [("lora", Lora()), ("lora:official:16", Lora.official(rank=16)), ("prompt:paper:20", Prompt(prompt_length=20))],
)
def test_room_is_said_in_words(text, method):
    assert parse_room(text) == method


@pytest.mark.parametrize("text", ["lora:official:x", "ia3:paper:3", "full", "loro", "lora:mine", "lora:official:0"])
def test_room_that_means_nothing_is_refused(text):
    with pytest.raises(UserError):
        parse_room(text)


def tiny_server(checkpoint: Path, shelf: Path, *options: str):
    given = {"--batch-sizes": "1,4", "--input-lengths": "64", "--output-lengths": "16"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    flags = [word for pair in given.items() for word in pair]
    return serving(["--model", str(checkpoint), "--adapters", str(shelf), "--also-base", "tiny", *flags])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_it_accepted_and_exits_with_0(number, deeper_checkpoint, tiny_shelf):
    """The signal arrives while all requests are waiting for their batch to fill."""
    with tiny_server(deeper_checkpoint, tiny_shelf, "--max-wait-ms", "3000", "--batch-sizes", "1,64") as server:

        def ask(i: int) -> httpx2.Response:
            body = {"inputs": ["goal"], "adapter": ON_SHELF[i % 3]}
            return httpx2.post(f"{server.url}/generate", json=body, timeout=60)

        with ThreadPoolExecutor(24) as clients:
            accepted = [clients.submit(ask, i) for i in range(24)]
            while "jpeft_queue_rows 24.0" not in httpx2.get(f"{server.url}/metrics").text:
                assert not any(answer.done() for answer in accepted)
            server.process.send_signal(number)
            answers = [answer.result() for answer in accepted]
        assert [answer.status_code for answer in answers] == [200] * 24
        assert [answer.json()["adapter"] for answer in answers] == [ON_SHELF[i % 3] for i in range(24)]
        assert server.process.wait(timeout=30) == 0
        with pytest.raises(httpx2.ConnectError):
            ask(0)


@pytest.mark.slow
def test_under_load_every_answer_is_its_adapters_own(deeper_checkpoint, tmp_path):
    known = write_adapters(tmp_path, str(deeper_checkpoint), 12)
    assert len({tuple(answers.values()) for answers in known.values()}) > 6
    with tiny_server(deeper_checkpoint, tmp_path) as server:
        figures = asyncio.run(load(server, known, seconds=8.0))
    assert figures["requests"] > 100 and figures["rows_per_batch"] > 1.5
    assert figures["wrong"] == figures["lost"] == figures["rows_answered_by_server_beyond_requests"] == 0
    assert figures["resident_bytes_after"] < 1.2 * figures["resident_bytes_before"]


@pytest.mark.slow
def test_nothing_that_its_own_document_allows_or_forbids_is_answered_by_a_defect(
    deeper_checkpoint, tiny_shelf, tmp_path
):
    """Schemathesis sends valid and invalid requests made from the OpenAPI document, and checks the responses."""
    shelf = tmp_path / "shelf"
    for name in "01aA":  # one-letter names are generated often enough to be loaded and unloaded
        shutil.copytree(tiny_shelf / "ia3", shelf / name)
    # A schema cannot limit the tokens of a text: the limit is above any generated one.
    with tiny_server(deeper_checkpoint, shelf, "--input-lengths", "64,2048") as server:
        fuzz = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
        # Required columns depend on the adapter, which a schema cannot express: some valid requests are rejected.
        options = ["--max-time", "30", "--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        options += ["--continue-on-failure", "--no-color", "--seed", "1"]
        done = subprocess.run([*fuzz, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        counted = httpx2.get(f"{server.url}/metrics").text
    assert done.returncode == 0, done.stdout[-6000:]
    served = [line for line in counted.splitlines() if line.startswith("jpeft_requests_total")]
    assert any('method="DELETE",route="/adapters/{name}",status="204"' in line for line in served)
    assert len(served) > 10 and not any('status="5' in line for line in served)
