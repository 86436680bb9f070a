"""Every count of the paper's Table 3, computed from shapes."""

import json

import pytest

from jpeft.cli import main
from jpeft.leaves import num_weights
from jpeft.model.family import abstract_model
from jpeft.model.t5_config import RELEASED
from jpeft.peft import counting
from jpeft.peft.counting import counts_of_the_paper, trainable_parameters
from jpeft.peft.ia3 import Ia3
from jpeft.peft.methods import METHODS, OF_THE_PAPER
from jpeft.report.published import published_parameters
from tests.conftest import slow_but


def test_all_counts_equal_the_published_ones():
    model = abstract_model(RELEASED["google/flan-t5-xl"])
    counted = {(row.method, row.ablation): row.parameters for row in counts_of_the_paper(model)}
    assert counted == published_parameters()
    assert len(counted) == 16  # 15 methods and ablations, and the total


def test_official_ia3_has_its_authors_count():
    assert trainable_parameters(abstract_model(RELEASED["google/flan-t5-xl"]), Ia3.official()) == 540_672


@pytest.mark.slow
def test_params_prints_the_same_as_json_and_as_a_table(capsys):
    assert main(["params", "--model", "google/flan-t5-xl", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total"] == 2_849_757_184
    counted = {(m, None if a == "all" else a): n for m, rows in printed["methods"].items() for a, n in rows.items()}
    assert {row: n for row, n in counted.items() if row[0] in OF_THE_PAPER} == published_parameters()
    assert {method for method, _ in counted} == set(METHODS)
    assert main(["params"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{number:,}" in shown for number in published_parameters().values())


@pytest.mark.parametrize(
    "model", slow_but(("google-t5/t5-small",), ["google/flan-t5-small", "google/flan-t5-xxl", "google-t5/t5-small"])
)
def test_other_released_sizes_are_counted_without_a_network(model, capsys):
    assert main(["params", "--model", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["lora"]["all"] > 0


def test_a_local_checkpoint_is_counted_and_a_wrong_name_is_a_wrong_call(tiny_checkpoint, capsys):
    assert main(["params", "--model", str(tiny_checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["lora"]["all"] == 864
    assert main(["params", "--model", "flan"]) == 2
    assert "no directory here and no hub id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "size"), [([], 5.70), (["--quantization", "int8"], 3.49), (["--quantization", "nf4,double,wo"], 1.67)]
)
def test_params_tells_what_the_base_takes_as_it_is_kept(flags, size, monkeypatch, capsys):
    monkeypatch.setattr(
        counting, "counts_of_the_paper", lambda model: [counting.Count("full", None, num_weights(model))]
    )
    monkeypatch.setattr(counting, "other_methods", lambda model: [])
    assert main(["params", "--json", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total"] == 2_849_757_184 and printed["quantization"] == (flags[1] if flags else None)
    assert printed["base_bytes"]["bfloat16"] == pytest.approx(size * 1e9, rel=3e-3)
    assert main(["params", *flags]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"the base takes {size:.2f} GB ") for line in shown)
