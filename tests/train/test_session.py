"""Runs that share a process have the same results as alone, and load, tokenise and compile nothing twice."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jpeft.config import Run
from jpeft.mesh.layout import Layout
from jpeft.model import t5_weights
from jpeft.peft.full import Full
from jpeft.recent import Recent
from jpeft.run.display import Display
from jpeft.run.environment import peak_memory_bytes, reset_peak_memory
from jpeft.train import assembly, final_test, setup
from jpeft.train.loop import execute
from jpeft.train.session import Session
from tests.train.scripted import run_scripted


@pytest.fixture
def cell(deeper_checkpoint, toy_data):
    """A run on AG News by method, seed and overrides."""

    def make(method, seed=0, **overrides):
        config = importlib.import_module(f"configs.{method}_agnews_low").get_config()
        config.update_from_flattened_dict(
            {
                "model.name": str(deeper_checkpoint),
                "data.path": str(toy_data),
                "data.max_train": 40,
                "train.max_epochs": 2,
                "train.batch_size": 8,
                "train.accumulation_steps": 2,
                "train.seed": seed,
                **overrides,
            }
        )
        return Run.from_config(config)

    return make


def outcome(run, workdir, session):
    result = execute(run, workdir, display=Display(quiet=True), session=session)
    adapter = load_file(next((workdir / "adapter").glob("*.safetensors")))
    return result, adapter, (workdir / "predictions.jsonl").read_text()


@pytest.mark.slow
def test_runs_of_one_session_come_out_as_alone(cell, tmp_path):
    """In an order in which runs could affect the next: full tuning donates the buffers of what it trains."""
    session = Session()
    runs = [
        cell("lora"),
        cell("full"),
        cell("ia3"),
        cell("lora", seed=1),
        cell("lora", **{"method.rank": 4}),
        cell("lora", **{"ablation.name": "early"}),
        cell("full"),
    ]
    by_itself = {}
    for number, run in enumerate(runs):
        result, adapter, predictions = outcome(run, tmp_path / f"shared{number}", session)
        if run not in by_itself:
            by_itself[run] = outcome(run, tmp_path / f"alone{number}", None)
        alone, adapter_alone, predictions_alone = by_itself[run]
        assert result["validation_losses"] == alone["validation_losses"], number
        assert result["metric"] == alone["metric"] and predictions == predictions_alone
        assert all(np.array_equal(adapter[name], adapter_alone[name]) for name in adapter_alone)


@pytest.mark.slow
def test_a_second_run_of_a_shape_loads_tokenises_and_compiles_nothing(cell, tmp_path, monkeypatch):
    session = Session()
    first = outcome(cell("lora"), tmp_path / "first", session)[0]
    assert first["seconds"]["compile"] > 0
    monkeypatch.setattr(assembly, "prepare", None)
    monkeypatch.setattr(t5_weights, "load", None)
    assert outcome(cell("lora", seed=1), tmp_path / "second", session)[0]["seconds"]["compile"] == 0
    others = {"train.learning_rate.warmup": 1e-4, "train.warmup_fraction": 0.5, "train.max_epochs": 1}
    assert outcome(cell("lora", **others), tmp_path / "third", session)[0]["seconds"]["compile"] == 0


@pytest.mark.slow
def test_the_base_alone_answers_once_for_all_methods(cell, tmp_path, monkeypatch):
    """The zero-shot test attaches no method, even one that changes the initial outputs, such as prompts."""
    session, asked = Session(), []
    count_and_answer = lambda *args, _answers=final_test.answer_split, **kwargs: (
        asked.append(1) or _answers(*args, **kwargs)
    )
    monkeypatch.setattr(final_test, "answer_split", count_and_answer)
    zero_shot = {"eval.zero_shot": True, "train.max_epochs": 1, "data.max_test": 12, "data.max_validation": 12}
    results = [outcome(cell(method, **zero_shot), tmp_path / method, session)[0] for method in ("lora", "prompt")]
    assert len(asked) == 3  # each run's own test, and one for the base
    alone = outcome(cell("full", **zero_shot), tmp_path / "alone", None)[0]
    assert results[0]["zero_shot"] == results[1]["zero_shot"] == alone["zero_shot"]
    answered = [(tmp_path / name / "zero_shot.jsonl").read_text() for name in ("lora", "prompt", "alone")]
    assert len(set(answered)) == 1
    for result in (*results, alone):
        seconds = result["seconds"]
        own = seconds["train"] + seconds["validation"] + seconds["test"] + seconds["compile"]
        assert abs(seconds["total"] - own) < 0.01


def test_the_longest_unused_is_let_go():
    recent, made = Recent(2), []

    def get(key):
        return recent.get(key, lambda: made.append(key) or key)

    assert [get(key) for key in ("a", "b", "a", "c", "a", "b")] == ["a", "b", "a", "c", "a", "b"]
    assert made == ["a", "b", "c", "b"]


def test_the_peak_of_memory_can_start_anew():
    """A run in a shared process must not report the memory of earlier runs."""
    low = peak_memory_bytes()
    ballast = np.ones(400_000_000, np.uint8)
    assert peak_memory_bytes() > low + 300_000_000
    del ballast
    reset_peak_memory()
    assert peak_memory_bytes() < low + 100_000_000


def test_a_base_that_a_method_trains_is_its_own_whatever_the_method_is_called(cell, monkeypatch):
    """Training donates the weights, so a base in the session would be unusable for the next run."""

    class Toy(Full):
        name = "toy"

    class Frozen(Toy):
        trains_base = False

    run, session, layout = cell("lora"), Session(), Layout.of_devices()
    directory = Path(run.model.name)
    for method in (Toy, Frozen):
        monkeypatch.setitem(setup.METHODS, run.method.name, method)
        bases = [setup._load_base(run, session, layout, directory, "its content")[0] for _ in range(2)]
        assert (bases[0] is bases[1]) == (not method.trains_base)
        assert setup._load_base(run, session, layout, directory, "another's under its name")[0] is not bases[1]


@pytest.mark.slow
def test_the_base_alone_is_tested_anew_where_it_is_another_under_the_same_name(
    cell, deeper_checkpoint, tmp_path, monkeypatch
):
    base, session = tmp_path / "base", Session()
    shutil.copytree(deeper_checkpoint, base)
    run = cell("lora", **{"model.name": str(base), "eval.zero_shot": True})

    def answers(name):
        """The numbers of batches answered by the base alone and by the tuned model."""
        return len(run_scripted(run, tmp_path / name, monkeypatch, session=session).of("answer"))

    both = answers("first")
    assert answers("again") == both // 2  # the base's answers are known
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"shared.weight": weights["shared.weight"] + 0.125}, base / "model.safetensors")
    assert answers("of another base") == both
