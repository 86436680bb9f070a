"""The comparison with PyTorch, on a tiny model: that it runs, and that both sides compute the same loss."""

import os

import pytest
from rich.console import Console

from benchmarks import compare


@pytest.mark.reference  # the comparison names the version of PyTorch
def test_the_cache_of_a_start_is_that_processs_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    caches = []

    class Started:
        start_up_seconds = 1.0

        def __init__(self, *_, environment, **__):
            caches.append(environment["JPEFT_CACHE"])

        def call(self):
            return 0.0

        def peak_memory_bytes(self):
            return 1

        def close(self):
            pass

    monkeypatch.setattr(compare, "Side", Started)
    compare._Bench("tiny", "float32", tmp_path, ["lora", "ia3"], 1, Console(quiet=True)).startup()
    assert len(caches) == 6 and len(set(caches)) == 2 and str(tmp_path) not in caches  # cold, then warm, of each method
    assert os.environ["JPEFT_CACHE"] == str(tmp_path)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_sides_have_one_loss(dtype, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    figures = compare.main(
        [
            "--size",
            "tiny",
            "--dtype",
            dtype,
            "--only",
            "startup,train,validation,inside",
            "--methods",
            "lora",
            "--repeats",
            "1",
        ]
    )
    assert figures["dtype"] == dtype and set(figures["inside"]) == {"lora", "lora, later layers"}
    assert all(probe["seconds"] > 0 and probe["peak_memory_bytes"] > 0 for probe in figures["startup"]["lora"].values())
    for part in ("train", "validation"):
        row = figures[part]["lora"]
        assert row["first"]["ours"] == pytest.approx(row["first"]["theirs"], rel=1e-5 if dtype == "float32" else 1e-2)
        assert 0 < row["ours_of_ceiling"] < 1 and 0 < row["theirs_of_ceiling"] < 1 and row["ratio"] > 0
