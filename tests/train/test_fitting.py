"""`auto`: the mildest settings that fit, resolved before the first step and unchanged by a restart."""

import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.config import MeshConfig, Run
from jpeft.errors import RunFailed, UserError
from jpeft.run.display import Display
from jpeft.train import assembly, device_fit, fitting, loop
from jpeft.train.fitting import Training
from jpeft.train.session import Session
from tests.conftest import news, write_parquet
from tests.train import scripted
from tests.train.scripted import run_scripted

AUTO = {"model.remat": "auto", "train.batch_size": "auto", "eval.batch_size": "auto"}


@pytest.fixture
def cell(tiny_checkpoint, toy_data):
    def make(**overrides):
        config = importlib.import_module("configs.lora_agnews_low").get_config()
        config.update_from_flattened_dict(
            {
                "model.name": str(tiny_checkpoint),
                "data.path": str(toy_data),
                "data.max_train": 40,
                "train.max_epochs": 1,
                "train.accumulation_steps": 2,
                **overrides,
            }
        )
        return Run.from_config(config)

    return make


def test_the_order_is_from_mild_to_hard():
    run = Run()
    assert fitting.trainings(run, remat=False, rows=False) == [Training("none", 16, 4)]
    assert fitting.trainings(run, remat=True, rows=False) == [Training(r, 16, 4) for r in ("none", "dots", "block")]
    found = fitting.trainings(run, remat=True, rows=True)
    assert found[:4] == [
        Training("none", 16, 4),
        Training("none", 8, 8),
        Training("none", 4, 16),
        Training("dots", 16, 4),
    ]
    assert found[-1] == Training("block", 1, 64) and len(set(found)) == len(found) == 15
    assert {setting.rows * setting.micro_batches for setting in found} == {64}
    gathering = Run(mesh=MeshConfig(fsdp=4))
    found = fitting.trainings(gathering, remat=True, rows=True)
    assert found[:4] == [*(Training(r, 16, 4) for r in ("none", "dots", "block")), Training("none", 8, 8)]
    assert found[-1].rows == 4  # one for each part
    assert fitting.evaluations(run, rows=True) == [32, 16, 8, 4, 2, 1]
    assert fitting.evaluations(gathering, rows=True) == [32, 16, 8, 4]


def test_what_cannot_fit_is_not_asked_for():
    asked = []

    def needs(setting):
        asked.append((setting.remat, setting.rows))
        return {"none": 100, "dots": 50, "block": 20}[setting.remat] * setting.rows

    settings = fitting.trainings(Run(), remat=True, rows=True)
    assert fitting.first_training(settings, needs, 300.0) == Training("dots", 4, 16)
    assert asked == [("none", 16), ("dots", 16), ("dots", 4)]  # 16 rows told of 8 and 4
    assert fitting.first_training(settings, needs, 10.0) is None
    asked.clear()
    rows = [32, 16, 8, 4, 2, 1]
    assert fitting.first_evaluation(rows, lambda n: asked.append(n) or 10 * n, 45.0) == 4 and asked == [32, 4]
    assert fitting.first_evaluation(rows, lambda n: 10 * n, 5.0) is None


def test_a_setting_that_the_compiler_refuses_says_nothing_of_fewer_rows():
    settings = fitting.trainings(Run(), remat=False, rows=True)
    needs = lambda setting: None if setting.rows > 4 else 10 * setting.rows
    assert fitting.first_training(settings, needs, 300.0) == Training("none", 4, 16)
    assert fitting.first_evaluation([32, 16, 8, 4], lambda n: None if n > 8 else 10 * n, 300.0) == 8
    assert fitting.first_training(settings, lambda setting: None, 300.0) is None
    assert fitting.first_evaluation([32, 16], lambda n: None, 300.0) is None


def test_auto_is_as_if_left_open_until_it_is_settled(cell):
    run, open_ = cell(**AUTO), cell()
    assert run != open_ and run.mildest() == open_ and run.rows() == (16, 32)
    assert open_.mildest() is open_
    assert run.data_request() == open_.data_request()
    assert Run.from_config(run.to_dict()) == run
    recommended = Run.from_config({"model": {"name": "mini"}, "train": {"batch_size": "auto"}})
    assert recommended.rows() == Run.from_config({"model": {"name": "mini"}}).rows()
    for key, value, says in (
        ("train.batch_size", "some", "'some'; expected int or auto"),
        ("eval.batch_size", 0, "expected at least 1"),
        ("model.remat", "maybe", "none, dots, block, auto"),
    ):
        with pytest.raises(UserError, match=says):
            cell(**{key: value})


@pytest.fixture
def sized(monkeypatch):
    """Simulates programs that need a given number of bytes per row, on a device with a given amount of free memory."""

    def make(*, free, row=100):
        monkeypatch.setattr(scripted._Scripted, "prepare", lambda self, *args: args)
        monkeypatch.setattr(device_fit, "free_memory", lambda: float(free))
        rows = lambda args: jax.tree.leaves(args[-1])[0].shape[0]
        monkeypatch.setattr(device_fit, "needed_memory", lambda args: row * rows(args))

    return make


def gradients_of(script):
    return sum(leaf.size * 4 for leaf in jax.tree.leaves(script.start))


def test_a_run_takes_what_fits_and_says_and_records_it(cell, sized, tmp_path, monkeypatch, capsys):
    script = run_scripted(cell(), tmp_path / "open", monkeypatch)
    assert script.result["settled"] == {} and not (tmp_path / "open/settled.json").exists()
    adapter = gradients_of(script)  # two copies exist while answers are generated
    sized(free=5.5 * adapter, row=adapter)
    found = run_scripted(cell(**AUTO), tmp_path / "auto", monkeypatch)
    settled = {"model.remat": "none", "train.batch_size": 4, "train.accumulation_steps": 8, "eval.batch_size": 2}
    assert found.result["settled"] == json.loads((tmp_path / "auto/settled.json").read_text()) == settled
    assert json.loads((tmp_path / "auto/config.json").read_text())["train"]["batch_size"] == "auto"
    same = run_scripted(
        cell(**{"train.batch_size": 4, "train.accumulation_steps": 8, "eval.batch_size": 2}),
        tmp_path / "x",
        monkeypatch,
    )
    for kind in ("train", "validate", "answer"):
        assert found.of(kind) == same.of(kind) != []


@pytest.mark.parametrize("monitor", ["validation/loss", "validation/accuracy"])
def test_answers_are_judged_by_the_longest_input_that_is_answered(monitor, cell, sized, tmp_path, monkeypatch):
    """Validation counts, too, if its answers are monitored; here its inputs are longer than those of the test split."""
    rows = news(60, 1)
    texts = [" ".join([text] * (6 if row % 2 else 1)) for row, text in enumerate(rows["text"])]
    write_parquet(tmp_path / "ag_news/train.parquet", rows | {"text": texts})
    write_parquet(tmp_path / "ag_news/test.parquet", news(24, 2))
    sized(free=1e12)
    judged = []  # generation takes token ids, not a batch
    needs = lambda args: 0 if isinstance(args[-1], dict) else judged.append(args[-1].shape) or 0
    monkeypatch.setattr(device_fit, "needed_memory", needs)
    script = run_scripted(
        cell(**AUTO, **{"data.path": str(tmp_path), "train.monitor": monitor}), tmp_path / "run", monkeypatch
    )
    assert max(judged) == max(shape for _, shape in script.of("answer"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.batch_size": 2, "train.accumulation_steps": 1}, "a step has 2 rows, and the config says 32"),
        ({"train.batch_size": "auto"}, "train.batch_size is 'auto', which is no value"),
        ({"eval.batch_size": None}, "eval.batch_size is None, which is no value"),
        ({"model.remat": "some"}, "remat"),
    ],
)
def test_what_was_settled_and_is_edited_is_not_taken(changes, says, cell):
    asked = cell(**AUTO)
    whole = {"model.remat": "dots", "train.batch_size": 4, "train.accumulation_steps": 8, "eval.batch_size": 2}
    assert fitting.settled(fitting.with_settled(asked, whole)) == whole
    with pytest.raises(UserError, match=says):
        fitting.with_settled(asked, whole | changes)
    part = cell(**{"model.remat": "auto"})
    with pytest.raises(UserError, match="batch_size is 4, and the config says"):
        fitting.with_settled(part, whole)


@pytest.mark.slow
def test_a_restart_settles_nothing_anew(cell, sized, tmp_path, monkeypatch):
    script = run_scripted(cell(), tmp_path / "open", monkeypatch)
    adapter = gradients_of(script)  # two copies exist while answers are generated
    sized(free=5.5 * adapter, row=adapter)
    first = run_scripted(cell(**AUTO), tmp_path / "run", monkeypatch)
    (tmp_path / "run/result.json").unlink()  # stopped before its end
    shutil.rmtree(tmp_path / "run/adapter")
    (tmp_path / "run/checkpoint").mkdir()
    (tmp_path / "run/checkpoint/4").mkdir()
    sized(free=1e12)  # a larger device, on which other settings would be chosen
    again = run_scripted(cell(**AUTO), tmp_path / "run", monkeypatch)
    assert again.result["settled"] == first.result["settled"]


@pytest.mark.slow
def test_where_nothing_fits_one_line_says_so(cell, sized, tmp_path, monkeypatch):
    script = run_scripted(cell(), tmp_path / "open", monkeypatch)
    for free, says in (
        (50, "has no room beside what the run holds"),
        (gradients_of(script) + 50, "needs 1.60 kB at 16 rows"),
    ):
        sized(free=free)
        with pytest.raises(RunFailed, match=f"nothing that `auto` may choose fits: a training step {says}"):
            run_scripted(cell(**AUTO), tmp_path / "run", monkeypatch)
    monkeypatch.setattr(device_fit, "free_memory", lambda: None)  # unknown: as if the keys were unset
    assert run_scripted(cell(**AUTO), tmp_path / "run", monkeypatch).result["settled"]["train.batch_size"] == 16


@pytest.mark.slow
def test_a_settled_run_is_the_run_with_these_settings_and_compiles_no_more(cell, tmp_path, monkeypatch):
    needs, made = [], []
    real, build = device_fit.needed_memory, assembly.build_programs

    def building(*args, **options):
        made.append(build(*args, **options))
        return made[-1]

    monkeypatch.setattr(assembly, "build_programs", building)
    monkeypatch.setattr(device_fit, "needed_memory", lambda compiled: needs.append(real(compiled)) or needs[-1])
    run = lambda config, name: loop.execute(config, tmp_path / name, display=Display(quiet=True), session=Session())
    shapes = lambda programs: [p.num_shapes for p in (programs.accumulate, programs.loss, programs.answering.generate)]

    roomy = run(cell(**AUTO), "roomy")
    compiled = shapes(made[-1])
    run(cell(), "open")
    assert roomy["settled"]["train.batch_size"] == 16 and roomy["settled"]["model.remat"] == "none"
    assert compiled == shapes(made[-1])  # the programs compiled for the check are those of the run
    adapter = lambda name: load_file(next((tmp_path / name / "adapter").glob("*.safetensors")))
    assert all(np.array_equal(leaf, adapter("open")[key]) for key, leaf in adapter("roomy").items())

    monkeypatch.setattr(device_fit, "free_memory", lambda: needs[0] - 1.0)
    tight = run(cell(**AUTO), "tight")["settled"]
    assert tight["train.batch_size"] < 16 or tight["model.remat"] != "none"
    run(cell(**tight), "explicit")
    assert all(np.array_equal(leaf, adapter("explicit")[key]) for key, leaf in adapter("tight").items())
