"""A run on a chat model, tested by a template of its own: whoever answers by its adapter asks as the run did."""

import dataclasses
import json

import pytest

from jpeft.cli import main
from jpeft.data.task_file import TaskOfRun
from jpeft.serve.start import Choices, ShapeFlags, start
from tests.model.gguf_files import CHAT, llama_weights, write_llama

pytestmark = pytest.mark.slow


def forget(run):
    """Leave the record of a run without what earlier versions did not record."""
    splits = json.loads((run / "splits.json").read_text())
    splits["origins"].pop("chat_tokens", None)
    (run / "splits.json").write_text(json.dumps(splits))


@pytest.fixture(scope="module", params=["file", "none"])
def tuned(request, tmp_path_factory):
    """A run's directory, its base's GGUF file, and the rows that it tested."""
    root = tmp_path_factory.mktemp("chat")
    write_llama(root / "tiny.gguf", llama_weights())
    words = {"sports": "goal coach season", "world": "treaty border embassy"}
    rows = [{"text": f"{words[kind]} {i}", "target": kind} for i in range(40) for kind in words]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = CHAT.replace("You help.", "You judge.").replace("message['content']", "message['content'] | trim")
    (root / "own.jinja").write_text(own)
    chosen = str(root / "own.jinja") if request.param == "file" else "none"
    values = {
        "model.name": root / "tiny.gguf",
        "data.path": root / "rows.jsonl",
        "data.template": "Topic? {text}",
        "data.chat_template": chosen,
        "data.max_target_length": 8,
        "data.max_input_length": 128,
        "train.max_epochs": 2,
        "train.batch_size": 8,
        "train.accumulation_steps": 1,
        "train.learning_rate.warmup": 0.03,
        "eval.answer": "generate",
    }
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    call = ["train", "--config", "custom", *flags, "--workdir", str(root / "run")]
    assert main(call) == 0
    forget(root / "run")
    assert main(call) == (2 if request.param == "file" else 0), "as an earlier version left it: in other tokens"
    (root / "own.jinja").unlink()  # what answers needs it no more
    tested = [json.loads(line) for line in (root / "run" / "predictions.jsonl").read_text().splitlines()]
    return root, tested, request.param


def test_the_task_carries_the_template(tuned):
    root, _, choice = tuned
    task = TaskOfRun.read(root / "run" / "adapter")
    assert task is not None and task.chat_template is not None
    assert task.chat_template == "none" if choice == "none" else "You judge." in task.chat_template
    assert (task.chat_tokens is None) == (choice == "none")


def test_predict_and_serve_answer_as_the_runs_test_did(tuned, capsys, tmp_path):
    root, tested, choice = tuned
    texts = [row["input"].removeprefix("Topic? ").partition("\n")[0] for row in tested]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    warned = "when texts in its chat template were other tokens"
    call = ["predict", "--adapter", str(root / "run"), "--generate", "--input", str(tmp_path / "rows.jsonl")]
    capsys.readouterr()
    assert main(call) == 0
    written = capsys.readouterr()
    assert warned not in written.err
    predicted = [json.loads(line)["prediction"] for line in written.out.splitlines()]
    expected = [row["prediction"] for row in tested]
    assert predicted == expected
    choices = Choices(str(root / "tiny.gguf"), root, "float32", (), 4, ())
    engine, _ = start(choices, ShapeFlags((4,), (128,), (8,)), say=lambda line: None)
    answers = []
    for at in range(0, len(texts), 4):
        batch = engine.rows([{"text": text} for text in texts[at : at + 4]], "run", generate=True)
        answers += [answer.text for answer in engine.answer(batch)]
    assert answers == expected
    task = TaskOfRun.read(root / "run" / "adapter")
    assert task is not None
    dataclasses.replace(task, chat_tokens=None).write(root / "run" / "adapter")  # as an earlier version wrote it
    engine.load("earlier", root / "run" / "adapter")
    assert any(warned in note for note in engine.asking("earlier").notes) == (choice == "file")
    assert main(call) == 0 and (warned in capsys.readouterr().err) == (choice == "file")
    (tmp_path / "own.jinja").write_text(str(task.chat_template))
    further = [
        "--config",
        "custom",
        "--config.data.template={text}",
        "--config.train.max_epochs=1",
        f"--config.data.path={root / 'rows.jsonl'}",
    ]
    further += [f"--config.model.name={root / 'tiny.gguf'}", f"--config.method.from_adapter={root / 'run'}"]
    further += [f"--config.data.chat_template={tmp_path / 'own.jinja' if choice == 'file' else 'none'}"]
    assert main(["train", *further, "--config.train.batch_size=8", "--workdir", str(tmp_path / "further")]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert (f"method.from_adapter was tuned {warned}" in said) == (choice == "file")
    task.write(root / "run" / "adapter")
