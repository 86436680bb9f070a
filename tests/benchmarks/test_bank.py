"""The benchmark of a bank: that it runs, and that what it computes in float64 is float64 throughout."""

import pytest

from benchmarks import bank


@pytest.mark.slow
def test_a_small_bank_has_all_figures(monkeypatch, tmp_path):
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    figures = bank.main(["--adapters", "2", "--wide", "2", "--repeats", "1"])
    assert (figures["adapters"], figures["rows"]) == (2, 2)
    assert figures["logits_moved_at_least"] > 1e-2 > figures["difference"]
    assert figures["of_the_2_worst_difference_in_float64"] < 1e-10 < figures["of_the_2_worst_alone_from_float64"]
    assert all(figures[f"{what}_throughput"] > 0 for what in ("forward", "generate"))
