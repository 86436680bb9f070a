"""Whoever answers, answers alike: a run's own test, `jpeft predict` and the server, on a base with ids of its own."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from flax import nnx

from jpeft.cli import main, run_experiment
from jpeft.data.task_file import TASK_FILE, TaskOfRun
from jpeft.model import weights
from jpeft.model.t5 import T5
from jpeft.peft.hub import save_adapter
from jpeft.peft.lora import Lora
from jpeft.serve.app import Limits, Service, make_app
from jpeft.serve.start import Choices, Sizes, start
from tests.conftest import _WORDS, TINY, make_tokenizer
from tests.serve.adapters import make

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


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny random T5 that pads with 1 and ends with 2, as MADLAD-400 and CodeT5 do."""
    directory = tmp_path_factory.mktemp("checkpoint") / "pad1"
    config = dataclasses.replace(TINY, pad_token_id=1, eos_token_id=2, decoder_start_token_id=0)
    weights.save(T5(config, rngs=nnx.Rngs(11)), directory)
    texts = [" ".join(sum(_WORDS.values(), [])), "Is it {good} or bad? good bad"]
    make_tokenizer(directory, texts, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    return directory


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Rows of two columns; every fourth is longer than the runs take."""
    draw, directory = random.Random(4), tmp_path_factory.mktemp("rows")
    words = sum(_WORDS.values(), [])
    for split, number in (("train", 24), ("validation", 8), ("test", 14)):
        with (directory / f"{split}.jsonl").open("w") as file:
            for i in range(number):
                row = {"title": draw.choice(words), "body": " ".join(draw.choices(words, k=60 if i % 4 == 3 else 6))}
                file.write(json.dumps({**row, "target": draw.choice(["good", "bad"])}) + "\n")
    return directory


@pytest.fixture(scope="module")
def shelf(base, tmp_path_factory) -> Path:
    """An adapter of a run of classes, and one of a run of text."""
    root, model = tmp_path_factory.mktemp("runs"), weights.load(base)
    for seed, (name, task) in enumerate(TASKS.items()):
        adapter = make(model, Lora.official(rank=2), seed=seed)
        save_adapter(adapter.model, adapter.method, adapter.sites, root / name, base_name=str(base))
        task.write(root / name)
    return root


def served(base: Path, shelf: Path):
    choices = Choices(str(base), shelf, dtype="float32", base_names=(str(base),), capacity=3, room=())
    sizes = Sizes(batch_sizes=(4,), input_lengths=(48,), output_lengths=(8,))
    said = []
    client = TestClient(make_app(Service(*start(choices, sizes, say=said.append), Limits())))
    client.said = said
    return client


@pytest.fixture(scope="module")
def client(base, shelf):
    with served(base, shelf) as client:
        yield client


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


@pytest.mark.parametrize("kind", KINDS)
def test_predict_and_serve_give_one_answer(kind, client, shelf, rows, tmp_path):
    predicted, answers = predicted_and_served(kind, client, shelf, rows, tmp_path)
    assert [answer["text"] for answer in answers] == [row["prediction"] for row in predicted]
    cut = [answer["input_cut"] for answer in answers]
    assert all(cut[3::4]) and not all(cut)
    if kind == "classes":
        for answer, row in zip(answers, predicted, strict=True):
            assert answer["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
            assert answer["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
    else:
        assert len({row["prediction"] for row in predicted}) > 3  # a test of sameness needs answers that differ
        assert all(answer["probabilities"] is None for answer in answers)


@pytest.mark.slow
def test_so_does_the_own_test_of_a_run(base, rows, tmp_path, capsys):
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
            assert evaluated["uncertainty"] == result["uncertainty"] and evaluated["labels"] == result["labels"]
            assert evaluated["seen_by_the_run"] == {"train": 0, "validation": 0}


def test_the_server_says_how_each_adapter_is_asked(client, shelf):
    listed = client.get("/adapters").json()
    classes, text = (listed["asked"][kind] for kind in KINDS)
    assert classes["template"] == text["template"] == TEMPLATE and classes["columns"] == ["title", "body"]
    assert (classes["answers"], classes["labels"]) == ("labels", ["bad", "good"])
    assert (text["answers"], text["labels"], text["max_output_tokens"]) == ("text", None, 7)
    assert classes["max_input_tokens"] == 48 and classes["notes"] == [] and listed["base"]["template"] is None
    assert TaskOfRun.read(shelf / "classes").answer == "score"
    assert any("compiles 2 programs" in line and "labels" in line for line in client.said)


def test_a_request_may_say_otherwise(client):
    row = {"title": "goal", "body": "coach striker"}
    whole = "goal: coach striker Is it {good} or bad?"

    def ask(**request):
        response = client.post("/generate", json={"adapter": "classes", **request})
        return response.status_code, response.json()

    (_, by_row), (_, by_prompt) = ask(inputs=[row]), ask(inputs=[whole], template=False)
    assert by_row == by_prompt
    assert ask(inputs=[{"input": whole}])[1] == by_row  # a prompt made before, as predict takes it
    assert ask(inputs=["goal coach"], template=False)[1] != by_row
    status, refused = ask(inputs=["goal"])
    assert status == 422 and "is one text and the adapter's template names title and body" in refused["detail"]
    status, refused = ask(inputs=[{"title": "goal"}])
    assert status == 422 and "no column 'body'" in refused["detail"]
    (generated,) = ask(inputs=[row], generate=True, max_output_tokens=2)[1]["predictions"]
    assert generated["probabilities"] is None and generated["output_tokens"] <= 2
    (chosen,) = ask(inputs=[row], labels=["goal", "coach", "bad"])[1]["predictions"]
    assert list(chosen["probabilities"]) == ["goal", "coach", "bad"] and chosen["text"] in chosen["probabilities"]
    mixed = [client.post("/generate", json={"adapter": name, "inputs": [row]}).json() for name in ("classes", "text")]
    assert mixed[0] == by_row


def test_the_task_goes_where_an_adapter_is_exported(shelf, tmp_path):
    assert main(["export", str(shelf / "classes"), "--out", str(tmp_path / "export")]) == 0
    assert TaskOfRun.read(tmp_path / "export") == TASKS["classes"]


@pytest.mark.slow
def test_exported_and_merged_it_answers_alike(shelf, tmp_path, capsys):
    for command in ("export", "merge"):
        assert main([command, str(shelf / "classes"), "--out", str(tmp_path / command)]) == 0
        assert TaskOfRun.read(tmp_path / command) == TASKS["classes"]
    capsys.readouterr()
    (tmp_path / "asked.jsonl").write_text('{"title": "goal", "body": "coach striker"}\n')
    answers = []
    for flags in (
        ["--adapter", shelf / "classes"],
        ["--adapter", tmp_path / "export"],
        ["--model", tmp_path / "merge"],
    ):
        assert main(["predict", *map(str, flags), "--input", str(tmp_path / "asked.jsonl"), "--quiet"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] and answers[0]["prediction"] == answers[2]["prediction"]
    assert answers[2]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-4)


def test_a_task_that_does_not_fit_the_server_is_refused_with_the_way_out(client, shelf):
    file = shelf / "classes" / TASK_FILE
    before = file.read_text()
    values = json.loads(before)
    try:
        file.write_text(json.dumps({**values, "labels": [f"label number {i}" for i in range(80)]}))
        response = client.put("/adapters/classes")
        assert response.status_code == 422 and "start it with --label-tokens" in response.json()["detail"]
        assert "--label-tokens" in client.get("/adapters").json()["not_served"]["classes"]
        file.write_text(json.dumps({**values, "max_input_length": 4}))
        response = client.put("/adapters/classes")
        assert response.status_code == 422 and "no room is left" in response.json()["detail"]
        file.write_text(json.dumps({**values, "max_input_length": 100, "num_beams": 3, "labels": None}))
        assert client.put("/adapters/classes").status_code == 200
        notes = client.get("/adapters").json()["asked"]["classes"]["notes"]
        assert len(notes) == 2 and "100 tokens" in notes[0] and "3 beams" in notes[1]
    finally:
        file.write_text(before)
        assert client.put("/adapters/classes").status_code == 200
