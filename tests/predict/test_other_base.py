"""An adapter on a base that it was not tuned on, whatever its name: whoever answers by both says so."""

import dataclasses
import shutil

import pytest

from jpeft.adapters.files import save_adapter
from jpeft.cli import main
from jpeft.data.task_file import TaskOfRun
from jpeft.model import t5_weights
from jpeft.model.tokenizer import Tokenizer
from jpeft.model.weight_files import model_fingerprint
from jpeft.peft.lora import Lora
from jpeft.serve import start
from tests.conftest import random_t5
from tests.serve.adapters import make

SAYS = "was tuned on a base of other files"
TASK = TaskOfRun("{text}?", max_input_length=16, max_target_length=4)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_checkpoint):
    """Of the tiny checkpoint; not to be written to."""
    directory = tmp_path_factory.mktemp("adapter")
    made = make(t5_weights.load(tiny_checkpoint), Lora.official(rank=2), seed=3)
    save_adapter(made.model, made.method, made.sites, directory, base_name=str(tiny_checkpoint))
    dataclasses.replace(TASK, base=model_fingerprint(tiny_checkpoint)).write(directory)
    return directory


@pytest.fixture(scope="module")
def other(tmp_path_factory, tiny_checkpoint):
    """Of the same sizes, with other weights."""
    directory = tmp_path_factory.mktemp("other")
    t5_weights.save(random_t5(t5_weights.read_config(tiny_checkpoint), seed=99), directory)
    Tokenizer.load(tiny_checkpoint).save(directory)
    return directory


@pytest.mark.parametrize("which", ["its own", "another"])
def test_predict_and_merge_tell_a_base_by_its_content(which, adapter, other, tmp_path, capsys):
    flags = [] if which == "its own" else ["--model", str(other)]
    for call in (
        ["predict", "--adapter", str(adapter), "goal"],
        ["merge", str(adapter), "--out", str(tmp_path / "out")],
    ):
        assert main([*call, *flags]) == 0
        assert (SAYS in capsys.readouterr().err) == (which == "another")
    merged = TaskOfRun.read(tmp_path / "out")
    assert merged is not None and merged.base is None  # a whole model stands on no other


def test_a_server_says_so_of_each_adapter(adapter, other, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "_compile", lambda engine, say: None)
    shutil.copytree(adapter, tmp_path / "a")
    for base in (tiny_checkpoint, other):
        lines = []
        choices = start.Choices(str(base), tmp_path, "float32", base_names=(), capacity=1, room=())
        engine, _ = start.start(choices, start.ShapeFlags(), say=lines.append)
        assert any(SAYS in note for note in engine.asking("a").notes) == (base == other)
        assert any(line.startswith("note     a: it ") and SAYS in line for line in lines) == (base == other)


def test_of_what_nobody_knows_nothing_is_said():
    assert TASK.on_another_base("0" * 64) is None
    assert dataclasses.replace(TASK, base="0" * 64).on_another_base(None) is None
