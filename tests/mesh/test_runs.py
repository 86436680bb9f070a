"""Runs on four virtual CPU devices give the same results as on one."""

import dataclasses
import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.config import Run
from jpeft.errors import Stopped
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.peft.methods import METHODS
from jpeft.run.display import Display
from jpeft.run.metrics_log import MetricsLog
from jpeft.train.loop import execute
from tests.decoders import LLAMA, TINY_DECODERS, random_decoder

MESHES = {"4x1": {"data": 4}, "1x4": {"model": 4}, "2x2": {"data": 2, "model": 2}, "fsdp": {"fsdp": 4}}
ONE = {"data": 1, "fsdp": 1, "model": 1}


@pytest.fixture
def cell(four_headed_checkpoint, toy_data):
    """Three steps of 16 rows with a method on a mesh."""

    def make(method: str, mesh: dict[str, int], model=four_headed_checkpoint, **train) -> Run:
        return Run.from_config(
            {
                "model": {"name": str(model)},
                "method": {"name": method},
                "data": {"task": "agnews", "path": str(toy_data), "max_train": 48, "max_target_length": 12},
                "train": {"max_epochs": 1, "batch_size": 8, "accumulation_steps": 2, **train},
                "eval": {"batch_size": 8},
                "mesh": mesh,
            }
        )

    return make


def outcome(run, workdir):
    result = execute(run, workdir, display=Display(quiet=True))
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    answers = [json.loads(line)["prediction"] for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    return result, losses, answers, load_file(next((workdir / "adapter").glob("*.safetensors")))


@pytest.fixture(scope="module")
def on_one_device():
    """Results of the same cells on one device, by method."""
    return {}


@pytest.mark.slow  # compiling for four devices takes seconds a program
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_agree_with_one_device(method, mesh, cell, on_one_device, tmp_path):
    if method not in on_one_device:
        on_one_device[method] = outcome(cell(method, ONE), tmp_path / "one")
    one, losses_of_one, answers_of_one, adapter_of_one = on_one_device[method]
    four, losses, answers, adapter = outcome(cell(method, MESHES[mesh]), tmp_path / "four")
    assert four["device_count"] == 4 and four["mesh"] == {**ONE, **MESHES[mesh]}
    assert len(losses) == 3
    np.testing.assert_allclose(losses, losses_of_one, atol=1e-5)
    assert abs(four["validation_loss"] - one["validation_loss"]) < 1e-5
    assert answers == answers_of_one
    assert set(adapter) == set(adapter_of_one)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory, tiny_tokenizer):
    """Directories of tiny decoder-only models by kind; the Llama has two key-value heads, fewer than the devices."""
    found = {}
    for kind, config in {"llama": LLAMA, "bloom": dataclasses.replace(TINY_DECODERS["bloom"], num_heads=4)}.items():
        config = dataclasses.replace(config, max_positions=2048)
        if kind == "bloom":
            config = dataclasses.replace(config, num_kv_heads=4, d_head=6)
        found[kind] = tmp_path_factory.mktemp(kind)
        DECODER_FAMILY.save(random_decoder(config), found[kind])
        (found[kind] / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", "lora"), ("llama", "prompt"), ("llama", "prefix"), ("bloom", "full")],
)
def test_three_steps_of_a_decoder_only_model_agree_with_one_device(
    kind, method, mesh, cell, decoders, on_one_device, tmp_path
):
    if (kind, method) not in on_one_device:
        on_one_device[kind, method] = outcome(cell(method, ONE, decoders[kind]), tmp_path / "one")
    one, losses_of_one, answers_of_one, adapter_of_one = on_one_device[kind, method]
    four, losses, answers, adapter = outcome(cell(method, MESHES[mesh], decoders[kind]), tmp_path / "four")
    assert len(losses) == 3
    np.testing.assert_allclose(losses, losses_of_one, atol=1e-5)
    assert abs(four["validation_loss"] - one["validation_loss"]) < 1e-5
    assert answers == answers_of_one
    assert set(adapter) == set(adapter_of_one)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("fsdp", "1x4"), ("2x2", "one"), ("one", "4x1")])
def test_a_run_goes_on_on_another_mesh(before, after, cell, tmp_path, monkeypatch):
    """A run stopped after its second step and resumed on other devices ends like an uninterrupted one."""
    meshes = {**MESHES, "one": ONE}
    unbroken, *_ = outcome(cell("full", ONE), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        count = MetricsLog.step
        steps = []

        def stop_after_two(self, **values):
            count(self, **values)
            steps.append(values)
            if len(steps) == 2:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(MetricsLog, "step", stop_after_two)
        with pytest.raises(Stopped):
            execute(cell("full", meshes[before]), tmp_path / "broken", display=Display(quiet=True))
    resumed, losses, *_ = outcome(cell("full", meshes[after]), tmp_path / "broken")
    assert len(losses) == 3
    assert abs(resumed["validation_loss"] - unbroken["validation_loss"]) < 1e-5
