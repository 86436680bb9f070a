"""A run on a chat model, tested by a template of its own: whoever answers by its adapter asks as the run did."""

import json

import pytest

from jpeft.cli import main
from jpeft.data.task_file import TaskOfRun
from jpeft.serve.start import Choices, ShapeFlags, start
from tests.model.gguf_files import CHAT, llama_weights, write_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["file", "none"])
def tuned(request, tmp_path_factory):
    """A run's directory, its base's GGUF file, and the rows that it tested."""
    root = tmp_path_factory.mktemp("chat")
    write_llama(root / "tiny.gguf", llama_weights())
    words = {"sports": "goal coach season", "world": "treaty border embassy"}
    rows = [{"text": f"{words[kind]} {i}", "target": kind} for i in range(40) for kind in words]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "own.jinja").write_text(CHAT.replace("You help.", "You judge."))
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
    assert main(["train", "--config", "custom", *flags, "--workdir", str(root / "run")]) == 0
    (root / "own.jinja").unlink()  # what answers needs it no more
    tested = [json.loads(line) for line in (root / "run" / "predictions.jsonl").read_text().splitlines()]
    return root, tested, request.param


def test_the_task_carries_the_template(tuned):
    root, _, choice = tuned
    task = TaskOfRun.read(root / "run" / "adapter")
    assert task is not None and task.chat_template is not None
    assert task.chat_template == "none" if choice == "none" else "You judge." in task.chat_template


def test_predict_and_serve_answer_as_the_runs_test_did(tuned, capsys, tmp_path):
    root, tested, _ = tuned
    texts = [row["input"].removeprefix("Topic? ").partition("\n")[0] for row in tested]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    call = ["predict", "--adapter", str(root / "run"), "--generate", "--input", str(tmp_path / "rows.jsonl")]
    capsys.readouterr()
    assert main(call) == 0
    predicted = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    expected = [row["prediction"] for row in tested]
    assert predicted == expected
    choices = Choices(str(root / "tiny.gguf"), root, "float32", (), 4, ())
    engine, _ = start(choices, ShapeFlags((4,), (128,), (8,)), say=lambda line: None)
    answers = []
    for at in range(0, len(texts), 4):
        batch = engine.rows([{"text": text} for text in texts[at : at + 4]], "run", generate=True)
        answers += [answer.text for answer in engine.answer(batch)]
    assert answers == expected
