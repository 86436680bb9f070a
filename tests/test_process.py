"""Every command that computes prepares its process before JAX initialises devices and takes their memory."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_COMMANDS = """
import sys
from jax._src import xla_bridge
from jpeft import process
from jpeft.cli import main

class Prepared(BaseException):
    pass

def prepare(report):
    raise Prepared

process.prepare_process = prepare
for call in sys.argv[1:]:
    try:
        main(call.split())
        print(call, "ends unprepared")
    except Prepared:
        print(call.split()[0], xla_bridge.backends_are_initialized())
"""


def test_commands_prepare_before_jax_looks_for_devices(tmp_path):
    calls = [
        "train --config mini:lora_agnews_low --config.data.source=sample --workdir run",
        "pretrain --config pretrain/mini --config.data.path=corpus --workdir run",
        "evaluate --model mini --data rows.csv",
        "predict --model mini text",
        "serve --model mini --adapters . --port 0",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, *calls],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [f"{call.split()[0]} False" for call in calls], done.stderr
    assert not any(tmp_path.iterdir())


def test_a_process_is_prepared_in_memory_and_cache(monkeypatch, tmp_path):
    """It keeps freed memory, takes most of a GPU's memory, and caches compiled programs."""
    from jpeft import process

    done = []
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(process, "keep_freed_memory", lambda: done.append("memory"))
    monkeypatch.setattr(process, "take_most_of_the_gpu", lambda: done.append("gpu"))
    monkeypatch.setattr(process, "use_compilation_cache", lambda *given: done.append(given))
    process.prepare_process(print)
    assert done == ["memory", "gpu", (tmp_path / "compiled", print)]
