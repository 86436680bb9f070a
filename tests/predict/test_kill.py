"""`jpeft predict` killed twice while it writes leaves the file that an unbroken call does."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import news, of_devices

ROWS = 2_000


def command(checkpoint: Path, rows: Path, output: Path) -> list[str]:
    flags = ["--model", str(checkpoint), "--input", str(rows), "--output", str(output)]
    return [sys.executable, "-m", "jpeft.cli", "predict", *flags, "--max-output-length=6", "--batch-size=4", "--quiet"]


def kill_while_it_writes(arguments: list[str], partial: Path, seconds: float) -> None:
    before = partial.stat().st_size if partial.exists() else 0
    process = subprocess.Popen(arguments, env=of_devices(1), stderr=subprocess.PIPE)
    while not partial.exists() or partial.stat().st_size <= before:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_file(tiny_checkpoint, tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": i, "input": text}) for i, text in enumerate(news(ROWS, seed=3)["text"])]
    rows.write_text("".join(f"{line}\n" for line in lines))
    unbroken, killed = tmp_path / "unbroken.jsonl", tmp_path / "killed.jsonl"
    subprocess.run(command(tiny_checkpoint, rows, unbroken), check=True, env=of_devices(1))
    for _ in range(2):
        kill_while_it_writes(
            command(tiny_checkpoint, rows, killed), tmp_path / "killed.jsonl.partial", random.uniform(0, 0.05)
        )
        assert not killed.exists()
    subprocess.run(command(tiny_checkpoint, rows, killed), check=True, env=of_devices(1))
    assert killed.read_bytes() == unbroken.read_bytes()
    answers = [json.loads(line) for line in killed.read_text().split("\n")[:-1]]
    assert [row["id"] for row in answers] == list(range(ROWS))
