"""The benchmark of a bank: that it runs, and that what it computes in float64 is float64 throughout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bank
from jpeft.peft.attaching import attach
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from tests.conftest import ONE_LAYER, random_t5


def test_no_module_of_the_wide_model_computes_in_float32():
    tokens = np.ones((1, 16), np.int32), np.ones((1, 4), np.int32)
    with bank._wide():
        model, method = random_t5(ONE_LAYER, dtype=jnp.float64), Lora.official(rank=2)
        sites = select(model, method)
        leaves = {
            f"{site.path}/{name}": np.ones(shape)
            for site in sites
            for name, shape in (("lora_a", (site.d_in, 2)), ("lora_b", (2, site.d_out)))
        }
        wide = bank._filled(attach(model, method, sites, jax.random.key(0)), leaves, np.float64)
        program = str(jax.make_jaxpr(lambda *tokens: wide(*tokens))(*tokens))
    assert ":f64[" in program and re.findall(r":f32\[[^\n]* = .*", program) == []


@pytest.mark.slow
def test_a_small_bank_has_all_figures(monkeypatch, tmp_path):
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    figures = bank.main(["--adapters", "2", "--wide", "2", "--repeats", "1"])
    assert (figures["adapters"], figures["rows"]) == (2, 2)
    assert figures["logits_moved_at_least"] > 1e-2 > figures["difference"]
    assert figures["of_the_2_worst_difference_in_float64"] < 1e-10 < figures["of_the_2_worst_alone_from_float64"]
    assert all(figures[f"{what}_throughput"] > 0 for what in ("forward", "generate"))
