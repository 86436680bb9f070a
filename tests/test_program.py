"""Compiled programs: shapes, memory and the compilation cache."""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jpeft import program
from jpeft.program import Program, needed_memory, use_compilation_cache

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


def test_a_batch_of_another_dtype_or_structure_has_a_program_of_its_own():
    scaled = Program(lambda scale, batch: jax.tree.map(lambda leaf: leaf * scale, batch))
    ones = np.ones((2, 3), np.float32)
    batches = [ones, ones.astype(np.int32), {"a": ones}, {"b": ones}, (ones,)]
    for batch in batches * 2:
        assert jax.tree.all(jax.tree.map(np.array_equal, scaled(np.int32(1), batch), batch))
    assert scaled.num_shapes == len(batches)
    scaled(np.int32(1), ones.astype(np.int64))  # to JAX it is int32
    scaled.prepare(np.int32(1), {"a": jax.ShapeDtypeStruct((2, 3), np.float32)})
    assert scaled.num_shapes == len(batches)


@pytest.mark.parametrize("prepared", [False, True])
def test_what_needs_more_memory_than_there_is_does_not_run_however_it_was_compiled(prepared, monkeypatch):
    monkeypatch.setattr(program, "_temporary_bytes", lambda compiled: 3_000_000_000)
    monkeypatch.setattr(program, "memory_of_host", lambda: 2_000_000_000)
    greedy = Program(lambda x: x + 1)
    if prepared:
        greedy.prepare(np.ones(3, np.float32))
    for _ in range(2):
        with pytest.raises(MemoryError, match="a step needs 3.0 GB at once, this machine has 2.0"):
            greedy(np.ones(3, np.float32))
    monkeypatch.setattr(program, "memory_of_host", lambda: None)
    assert greedy(np.ones(3, np.float32)).sum() == 6


@pytest.fixture
def without_cache():
    """JAX's state before any command has set its compilation cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield lambda: getattr(jax.config, names[0])
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_cache_that_cannot_be_written_is_one_line_that_says_what_to_set(without_cache, tmp_path):
    (tmp_path / "file").write_text("")
    lines = []
    for _ in range(2):  # said once
        use_compilation_cache(tmp_path / "file/compiled", report=lines.append)
    assert lines == [
        f"compiled programs are not cached for the next run: {tmp_path}/file/compiled cannot be written (Not a "
        "directory); set the environment variable JPEFT_CACHE to a directory that can be"
    ]
    assert without_cache() is None


def test_a_cache_that_is_for_reading_alone_is_read(without_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only")))
    lines = []
    with warnings.catch_warnings():
        use_compilation_cache(tmp_path, report=lines.append)
        warnings.warn("Error writing persistent compilation cache entry for 'jit_f': no", stacklevel=1)
    assert "cannot be written (Read-only)" in lines[0] and without_cache() == str(tmp_path)


def test_a_cache_that_can_be_written_is_used_without_a_word(without_cache, tmp_path):
    use_compilation_cache(tmp_path / "compiled", report=pytest.fail)
    assert without_cache() == str(tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_of_mini_takes_what_is_said(method):
    order = [sys.executable, str(_SCRIPT), "--model=mini", f"--method={method}", "--rows=16"]
    found = json.loads(subprocess.run(order, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < found["grown_over_planned"] < 1.1, found
