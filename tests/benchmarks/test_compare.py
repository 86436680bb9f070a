"""The comparison with PyTorch, on a tiny model: that it runs, and that both sides compute the same loss."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.reference]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_sides_have_one_loss(dtype, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    from benchmarks import compare

    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    figures = compare.main(
        ["--size", "tiny", "--dtype", dtype, "--only", "train,validation,inside", "--methods", "lora", "--repeats", "1"]
    )
    assert figures["dtype"] == dtype and set(figures["inside"]) == {"lora", "lora, later layers"}
    for part in ("train", "validation"):
        row = figures[part]["lora"]
        assert row["first"]["ours"] == pytest.approx(row["first"]["theirs"], rel=1e-5 if dtype == "float32" else 1e-2)
        assert 0 < row["ours_of_ceiling"] < 1 and 0 < row["theirs_of_ceiling"] < 1 and row["ratio"] > 0
