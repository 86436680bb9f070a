"""Compare the answers to the same rows from a run's own test, `jpeft predict` and the server."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from jpeft.cli import main, run_experiment
from jpeft.data.task_file import TaskOfRun
from jpeft.serve.app import Service, make_app
from jpeft.serve.limits import Limits
from jpeft.serve.start import Choices, ShapeFlags, start
from tests.conftest import _WORDS

CONFIGS = Path(__file__).parents[2] / "configs"
TEMPLATE = "{title}: {body} Is it {{good}} or bad?"
TASK = TaskOfRun(TEMPLATE, max_input_length=48, max_target_length=7)
LENGTHS = ("--config.data.max_input_length=48", "--config.data.max_target_length=7")
KINDS = {
    "classes": ("--config.data.kind=classification", "--config.eval.answer=score"),
    "text": ("--config.data.kind=generation",),
}
TASKS = {
    "classes": dataclasses.replace(TASK, labels=("bad", "good"), kind="classification", answer="score"),
    "text": TASK,
}


def write_rows(directory: Path) -> None:
    """Write rows of two columns; every fourth exceeds the runs' maximum input length."""
    draw = random.Random(4)
    words = sum(_WORDS.values(), [])
    for split, number in (("train", 24), ("validation", 8), ("test", 14)):
        with (directory / f"{split}.jsonl").open("w") as file:
            for i in range(number):
                row = {"title": draw.choice(words), "body": " ".join(draw.choices(words, k=60 if i % 4 == 3 else 6))}
                file.write(json.dumps({**row, "target": draw.choice(["good", "bad"])}) + "\n")


def served(base: Path, shelf: Path):
    choices = Choices(str(base), shelf, dtype="float32", base_names=(str(base),), capacity=3, room=())
    sizes = ShapeFlags(batch_sizes=(4,), input_lengths=(48,), output_lengths=(8,))
    said = []
    client = TestClient(make_app(Service(*start(choices, sizes, say=said.append), Limits())))
    client.said = said
    return client


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predicted_and_served(kind: str, client, shelf: Path, rows: Path, tmp_path: Path) -> tuple[list[dict], list[dict]]:
    asked = [{key: row[key] for key in ("title", "body")} for row in json_lines(rows / "test.jsonl")]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    output = tmp_path / f"answers_{kind}.jsonl"
    call = ["predict", "--adapter", shelf / kind, "--input", tmp_path / "asked.jsonl", "--output", output, "--quiet"]
    assert main(list(map(str, call))) == 0
    response = client.post("/generate", json={"adapter": kind, "inputs": asked})
    assert response.status_code == 200, response.json()
    return json_lines(output), response.json()["predictions"]


def same_answers_of_a_run(base: Path, rows: Path, tmp_path: Path, capsys) -> None:
    """Tune a base for classes and for text; the runs' tests, `predict`, `serve` and `evaluate` must agree."""
    for name, flags in KINDS.items():
        arguments = [
            f"--config={CONFIGS / 'lora_custom.py'}",
            f"--workdir={tmp_path / 'runs' / name}",
            "--quiet",
            f"--config.model.name={base}",
            f"--config.data.path={rows}",
            f"--config.data.template={TEMPLATE}",
            "--config.train.max_epochs=1",
            "--config.train.batch_size=8",
            "--config.train.accumulation_steps=1",
            "--config.train.learning_rate.warmup=0.01",
        ]
        assert run_experiment(["main.py", *arguments, *LENGTHS, *flags]) == 0
        carried = TaskOfRun.read(tmp_path / "runs" / name / "adapter")
        assert carried is not None and (carried.template, carried.labels) == (TEMPLATE, TASKS[name].labels)
        assert (carried.answer, carried.kind) == (TASKS[name].answer, TASKS[name].kind)
    with served(base, tmp_path / "runs") as client:
        for kind in KINDS:
            predicted, answers = predicted_and_served(kind, client, tmp_path / "runs", rows, tmp_path)
            drawn = json_lines(tmp_path / "runs" / kind / "predictions.jsonl")  # in the order of the split
            own = sorted(drawn, key=lambda row: int(row["id"].removeprefix("test/")))
            assert [row["prediction"] for row in predicted] == [row["prediction"] for row in own]
            assert [answer["text"] for answer in answers] == [row["prediction"] for row in own]
            result = json.loads((tmp_path / "runs" / kind / "result.json").read_text())
            capsys.readouterr()
            assert main(["evaluate", "--adapter", str(tmp_path / "runs" / kind), "--data", str(rows), "--json"]) == 0
            evaluated = json.loads(capsys.readouterr().out)
            assert evaluated["metrics"] == pytest.approx(result["metrics"])
            ours, theirs = (record["uncertainty"] for record in (evaluated, result))  # to the precision of the metrics
            assert ours["standard_error"] == pytest.approx(theirs["standard_error"]), (ours, theirs)
            assert ours["interval"] == pytest.approx(theirs["interval"]), (ours, theirs)
            assert (ours["rows"], evaluated["labels"]) == (theirs["rows"], result["labels"])
            assert evaluated["seen_by_the_run"] == {"train": 0, "validation": 0}
