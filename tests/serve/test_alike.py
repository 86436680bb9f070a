"""A run's own test, `jpeft predict` and the server give the same answers, on a base with unusual special ids."""

import dataclasses
import json
from pathlib import Path

import pytest

from jpeft.adapters.files import save_adapter
from jpeft.cli import main
from jpeft.data.task_file import TASK_FILE, TaskOfRun
from jpeft.model import t5_weights
from jpeft.peft.lora import Lora
from tests.conftest import _WORDS, TINY, make_tokenizer, random_t5
from tests.serve.adapters import make
from tests.serve.alike import (
    KINDS,
    TASKS,
    TEMPLATE,
    predicted_and_served,
    same_answers_of_a_run,
    served,
    write_rows,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny random T5 that pads with 1 and ends with 2, as MADLAD-400 and CodeT5 do."""
    directory = tmp_path_factory.mktemp("checkpoint") / "pad1"
    config = dataclasses.replace(TINY, pad_token_id=1, eos_token_id=2, decoder_start_token_id=0)
    t5_weights.save(random_t5(config, seed=11), directory)
    texts = [" ".join(sum(_WORDS.values(), [])), "Is it {good} or bad? good bad"]
    make_tokenizer(directory, texts, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    return directory


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("rows")
    write_rows(directory)
    return directory


@pytest.fixture(scope="module")
def shelf(base, tmp_path_factory) -> Path:
    """Two adapters: one of a run that classifies, one of a run that generates text."""
    root, model = tmp_path_factory.mktemp("runs"), t5_weights.load(base)
    for seed, (name, task) in enumerate(TASKS.items()):
        adapter = make(model, Lora.official(rank=2), seed=seed, by=0.1)  # larger values amplify float32 rounding
        save_adapter(adapter.model, adapter.method, adapter.sites, root / name, base_name=str(base))
        task.write(root / name)
    return root


@pytest.fixture(scope="module")
def client(base, shelf):
    with served(base, shelf) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS)
def test_predict_and_serve_give_one_answer(kind, client, shelf, rows, tmp_path):
    predicted, answers = predicted_and_served(kind, client, shelf, rows, tmp_path)
    assert [answer["text"] for answer in answers] == [row["prediction"] for row in predicted]
    cut = [answer["input_cut"] for answer in answers]
    assert all(cut[3::4]) and not all(cut)
    if kind == "classes":
        for answer, row in zip(answers, predicted, strict=True):
            assert answer["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
            assert answer["confidence"] == pytest.approx(row["confidence"], abs=5e-6)
    else:
        assert len({row["prediction"] for row in predicted}) > 3  # equality proves nothing unless answers vary
        assert all(answer["probabilities"] is None for answer in answers)


@pytest.mark.slow
def test_so_does_the_own_test_of_a_run(base, rows, tmp_path, capsys):
    same_answers_of_a_run(base, rows, tmp_path, capsys)


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
    assert ask(inputs=[{"input": whole}])[1] == by_row  # a finished prompt, as `predict` accepts it
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


def test_a_limit_of_tokens_is_for_generated_answers(client):
    asked = {"adapter": "classes", "inputs": [{"title": "goal", "body": "coach"}], "max_output_tokens": 2}
    response = client.post("/generate", json=asked)
    assert response.status_code == 422 and "these are chosen from labels; leave it out" in response.json()["detail"]
    assert client.post("/generate", json={**asked, "generate": True}).status_code == 200


def test_a_task_that_does_not_fit_the_server_is_refused_with_the_way_out(client, shelf):
    file, settings = shelf / "classes" / TASK_FILE, shelf / "classes" / "adapter_config.json"
    before, known = file.read_text(), settings.read_text()
    values = json.loads(before)
    try:
        file.write_text(json.dumps({**values, "labels": [f"label number {i}" for i in range(80)]}))
        response = client.put("/adapters/classes")
        assert response.status_code == 422 and "start it with --label-tokens" in response.json()["detail"]
        assert "--label-tokens" in client.get("/adapters").json()["not_served"]["classes"]
        file.write_text(json.dumps({**values, "max_input_length": 4}))
        response = client.put("/adapters/classes")
        assert response.status_code == 422 and "no room is left" in response.json()["detail"]
        bits = {"quantization": "nf4"}  # the server's base is not quantized
        file.write_text(json.dumps({**values, "max_input_length": 100, "num_beams": 3, "labels": None, **bits}))
        assert client.put("/adapters/classes").status_code == 200
        notes = client.get("/adapters").json()["asked"]["classes"]["notes"]
        assert len(notes) == 3 and "100 tokens" in notes[0] and "3 beams" in notes[1]
        assert notes[2].startswith("it was tuned with its base in nf4, and answers with it wide")
        file.write_text(before)
        settings.write_text(json.dumps({**json.loads(known), "key_of_tomorrow": True}))
        assert client.put("/adapters/classes").status_code == 200
        [note] = client.get("/adapters").json()["asked"]["classes"]["notes"]
        assert note == "settings that jpeft does not know were passed over: key_of_tomorrow."
    finally:
        file.write_text(before)
        settings.write_text(known)
        assert client.put("/adapters/classes").status_code == 200
