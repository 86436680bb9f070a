"""What a program is said to take of this machine's memory is what the process then takes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jpeft.program import needed_memory

_SCRIPT = Path(__file__).parents[1] / "scripts/memory_agreement.py"


def compiled(temporary: int, results: int = 0, given_back: int = 0):
    analysis = SimpleNamespace(
        temp_size_in_bytes=temporary,
        output_size_in_bytes=results,
        alias_size_in_bytes=given_back,
        generated_code_size_in_bytes=0,
    )
    return SimpleNamespace(memory_analysis=lambda: analysis)


@pytest.mark.parametrize(("temporary", "needed"), [(0, 0), (10_000_000, 20_600_000), (1_000_000_000, 1_090_000_000)])
def test_on_a_cpu_what_products_pack_is_counted_too(temporary, needed):
    assert needed_memory(compiled(temporary)) == needed
    assert needed_memory(compiled(temporary, results=9, given_back=9)) == needed


def test_elsewhere_the_compilers_number_is_the_number(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(platform="gpu")])
    assert needed_memory(compiled(1_000, results=70, given_back=50)) == 1_020
    assert needed_memory(SimpleNamespace(memory_analysis=lambda: None)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_of_mini_takes_what_is_said(method):
    order = [sys.executable, str(_SCRIPT), "--model=mini", f"--method={method}", "--rows=16"]
    found = json.loads(subprocess.run(order, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < found["grown_over_planned"] < 1.1, found
