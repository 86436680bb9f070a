"""The HTTP application: every response and every error, with a tiny engine behind it."""

import dataclasses
import gzip
import os
import shutil
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient

from jpeft.errors import UserError
from jpeft.model.decode import Generated
from jpeft.serve.app import Service, make_app
from jpeft.serve.engine import Answer, NoNumber
from jpeft.serve.limits import Limits
from jpeft.serve.shelf import Shelf
from tests.serve.conftest import ON_SHELF

LIMITS = Limits(inputs=3, body_bytes=2000, queued_rows=8, wait_seconds=0.0, request_seconds=20.0)


@pytest.fixture
def service(started):
    return Service(*started, LIMITS)


@pytest.fixture
def client(service):
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


def ask(client, *inputs, **changed):
    return client.post("/generate", json={"inputs": inputs or ["goal league"], "adapter": "ia3", **changed})


def refused(response, status, says):
    assert response.status_code == status and list(response.json()) == ["detail"]
    assert says in response.json()["detail"] and "\n" not in response.json()["detail"]
    return response


def test_each_input_is_answered_by_the_named_adapter(client, started):
    engine, _ = started
    texts = ["goal league", "bank merger profit market", "robot"]
    for adapter in (None, *ON_SHELF):
        response = ask(client, *texts, adapter=adapter, max_output_tokens=4)
        assert response.status_code == 200 and response.json()["adapter"] == adapter
        expected = engine.answer(engine.rows(texts, adapter, max_output_tokens=4))
        assert response.json()["predictions"] == [vars(answer) | {"notes": []} for answer in expected]


@pytest.mark.parametrize("template", [True, False])
def test_what_the_model_cannot_read_is_noted_with_the_answer(template, client):
    inputs = ["goal", "goal \U0001f600 league", "goal </s> bank", {"input": "\u732b </s>"}]
    predictions = [ask(client, given, template=template).json()["predictions"][0] for given in inputs]
    lacks = "the model's vocabulary lacks {}, which it cannot read."
    spells = "the input spells special tokens, such as '</s>'; they are read as text."
    assert [prediction["notes"] for prediction in predictions] == [
        [],
        [lacks.format("'\U0001f600'")],
        [spells],
        [lacks.format("'\u732b'"), spells],
    ]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"inputs": []}, "body.inputs"),
        ({"inputs": [""]}, "body.inputs.0"),
        ({"inputs": [{}]}, "body.inputs.0"),
        ({"inputs": [{"input": ["x"]}]}, "inputs[0] has a column 'input' that holds a list, ['x']; join it"),
        ({"inputs": ["a", " \u200b"]}, "inputs[1] has no visible text"),
        ({"inputs": [{"input": ""}]}, "inputs[0] has no visible text"),
        ({"inputs": [{"inpt": "x"}]}, "inputs[0] has no column 'input', only inpt"),
        ({"inputs": [{"Input": "x"}]}, "It is written 'Input' there, not 'input'."),
        ({"inputs": [{"input": "x", " input": "y"}]}, "inputs[0] has two columns whose names differ by white space"),
        ({"inputs": [{"input": None}]}, "inputs[0] has nothing in 'input'"),
        ({"template": "yes"}, "body.template"),
        ({"labels": ["a"]}, "body.labels"),
        ({"labels": ["goal", "bank"]}, "scores no labels; start it with --label-tokens"),
        ({"labels": ["a", "b"], "generate": True}, "exclude each other"),
        ({"inputs": ["a"] * 4}, "body.inputs: List should have at most 3 items"),
        ({"inputs": "a"}, "body.inputs: Input should be a valid list"),
        ({"inputs": ["goal " * 40]}, "inputs[0] has"),
        ({"max_output_tokens": 0}, "greater than or equal to 1"),
        ({"max_output_tokens": 5}, "less than or equal to 4"),
        ({"max_output_tokens": "4"}, "body.max_output_tokens"),
        ({"max_output_tokens": True}, "body.max_output_tokens"),
        ({"max_output_tokens": 2.5}, "body.max_output_tokens"),
        ({"adapter": "../secret"}, "body.adapter"),
        ({"adapter": ""}, "body.adapter"),
        ({"beams": 4}, "body.beams: Extra inputs are not permitted"),
        ({"inputs": [{"text": {"a": 1}}, 7, 8]}, "body.inputs.1: Input should be a valid string (and 1 more)"),
        ({"inputs": ["a", 7]}, "body.inputs.1: Input should be a valid"),
        ({"inputs": [{}]}, "body.inputs.0: Dictionary should have at least 1 item"),
    ],
)
def test_a_wrong_value_is_named(changed, says, client):
    refused(ask(client, **changed), 422, says)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"inputs": ["\\ud800"]}', b'{"inputs": [NaN]}', b"[" * 1900]
)
def test_what_is_no_request_is_refused(body, client):
    response = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422) and list(response.json()) == ["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"inputs": ["a"], "inputs": ["b"]}', "has the key 'inputs' twice"),
        (b'{"inputs": [{"text": "a", "text": "b"}]}', "has the key 'text' twice"),
        (b'{"inputs": [{"text": NaN}]}', "the body holds NaN, which is not JSON"),
        (b'{"inputs": ["\\ud800"]}', "surrogate"),
        (b'{"inputs": ["\xff"]}', "the body is not UTF-8"),
        (b'{"inputs": ["a"]', "the body"),
    ],
)
def test_a_body_is_json_in_the_strict_sense(body, says, client):
    refused(client.post("/generate", content=body, headers={"Content-Type": "application/json"}), 422, says)


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/json", "application/x-ndjson", "application/x-www-form-urlencoded"]
)
def test_json_that_is_sent_as_something_else_is_told_so(kind, client):
    sent = client.post("/generate", content=b'{"inputs": ["a"]}', headers={"Content-Type": kind})
    refused(sent, 422, f"the body was sent as {kind!r}; send it as application/json")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"])
def test_json_may_be_called_so_in_any_way_and_begin_with_a_byte_order_mark(kind, client):
    body = b'\xef\xbb\xbf{"inputs": ["goal"], "adapter": "ia3"}'
    assert client.post("/generate", content=body, headers={"Content-Type": kind}).status_code == 200
    refused(client.post("/generate", content=b"[]", headers={"Content-Type": kind}), 422, "body: Input should be")


def test_a_body_of_many_keys_is_refused_at_once(service):
    large = dataclasses.replace(LIMITS, body_bytes=2**21)
    keys = ", ".join(f'"k{i}": 1' for i in [*range(100_000), 0])
    with TestClient(make_app(Service(service.engine, service.shelf, large))) as client:
        started = time.monotonic()
        response = client.post("/generate", content=f"{{{keys}}}", headers={"Content-Type": "application/json"})
        refused(response, 422, "has the key 'k0' twice")
        assert time.monotonic() - started < 5  # minutes if duplicates are counted key by key


def test_an_adapter_that_is_not_loaded_is_not_there(client):
    refused(ask(client, adapter="nobody"), 404, "no adapter 'nobody'")
    refused(client.delete("/adapters/nobody"), 404, "no adapter 'nobody'")
    refused(client.put("/adapters/nobody"), 404, "no adapter 'nobody' to load")


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(client):
    refused(ask(client, "a" * 3000), 413, "at most 2000 bytes")
    refused(client.post("/generate", content=(b"a" * 100 for _ in range(30))), 413, "at most 2000 bytes")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "..%2fsecret",
        "%2fetc",
        "ia3%2f..%2f..",
        "a%00",
        "ia3%0a",
        ".ia3",
        "%ed%a0%80",
        "a" * 300,
        "~",
        "%5c",
    ],
)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_no_name_leads_out_of_the_directory(name, method, client):
    response = client.request(method, f"/adapters/{name}")
    assert response.status_code in (404, 405, 422)
    assert client.get("/adapters").json()["loaded"] == sorted(ON_SHELF)


def test_adapters_are_loaded_and_unloaded_by_name(client):
    listed = client.get("/adapters").json()
    assert {key: listed[key] for key in ("capacity", "loaded", "available", "not_served")} == {
        "capacity": 4,
        "loaded": sorted(ON_SHELF),
        "available": sorted(ON_SHELF),
        "not_served": {},
    }
    assert listed["asked"]["ia3"] == listed["base"] and listed["base"]["template"] is None
    before = ask(client).json()
    assert client.delete("/adapters/ia3").status_code == 204
    refused(ask(client), 404, "no adapter 'ia3'")
    assert client.put("/adapters/ia3").json() == {"name": "ia3", "method": "ia3"}
    assert client.put("/adapters/ia3").status_code == 200  # a second PUT reloads it
    assert ask(client).json() == before


def test_what_can_not_be_loaded_is_refused_with_the_reason(started, tiny_shelf, tmp_path):
    engine, _ = started
    for name in ("one", "two", "cut", "pickled", "stranger"):
        shutil.copytree(tiny_shelf / "bitfit", tmp_path / name)
    (tmp_path / "cut/jpeft_adapter.safetensors").write_bytes(b"cut short")
    (tmp_path / "pickled/jpeft_adapter.safetensors").rename(tmp_path / "pickled/jpeft_adapter.bin")
    config = (tmp_path / "stranger/jpeft_adapter.json").read_text()
    (tmp_path / "stranger/jpeft_adapter.json").write_text(config.replace('"tiny"', '"other"'))
    with TestClient(make_app(Service(engine, Shelf(tmp_path), LIMITS))) as client:
        refused(client.put("/adapters/cut"), 422, "damaged or cut short")
        refused(client.put("/adapters/pickled"), 422, "pickle")
        refused(client.put("/adapters/stranger"), 422, "is an adapter of other")
        assert client.put("/adapters/one").status_code == 200
        refused(client.put("/adapters/two"), 409, "the bank is full")
        client.delete("/adapters/one")


def test_a_wrong_method_is_told_the_right_ones(client):
    response = refused(client.post("/adapters/ia3"), 405, "Method Not Allowed")
    assert response.headers["Allow"] == "DELETE, PUT"


def test_a_full_queue_says_when_to_come_again(service, client, started, monkeypatch):
    engine, _ = started
    gate, begun = threading.Event(), threading.Event()

    def held(*arguments, **options):
        begun.set()
        gate.wait(20)
        return Generated(np.zeros((4, 4), np.int32), np.zeros(4, np.float32))

    monkeypatch.setattr(engine.bank, "generate", held)
    threads = [threading.Thread(target=ask, args=(client, *"abc")) for _ in range(4)]
    threads[0].start()
    assert begun.wait(10)  # three rows are running, two more requests fill the queue, the next one is rejected
    for thread in threads[1:]:
        thread.start()
    while service.batcher.queued < 6:
        pass
    response = refused(ask(client, *"abc"), 429, "the queue is full")
    assert int(response.headers["Retry-After"]) >= 1
    gate.set()
    for thread in threads:
        thread.join()


def test_a_request_that_takes_too_long_is_given_up(started, monkeypatch):
    engine, shelf = started
    gate = threading.Event()
    monkeypatch.setattr(engine, "answer", lambda rows: [Answer("", 1, gate.wait(20)) for _ in rows])
    limits = Limits(request_seconds=0.05)
    with TestClient(make_app(Service(engine, shelf, limits))) as client:
        refused(ask(client), 504, "no answer in time")
        gate.set()


def test_a_defect_is_told_in_one_line(started, monkeypatch):
    engine, shelf = started
    monkeypatch.setattr(engine, "answer", lambda rows: 1 / 0)
    with TestClient(make_app(Service(engine, shelf, LIMITS))) as client:
        refused(ask(client), 500, "the work failed")


def test_a_server_that_is_stopping_takes_nothing_new(service, client):
    assert client.get("/readyz").status_code == 200
    service.draining = True
    for response in (ask(client), client.get("/readyz"), client.put("/adapters/ia3"), client.delete("/adapters/ia3")):
        assert "Retry-After" in refused(response, 503, "stopping").headers
    assert client.get("/healthz").status_code == 200 and client.get("/adapters").json()["loaded"] == sorted(ON_SHELF)


def test_the_figures_count_what_happened(client):
    ask(client)
    ask(client, adapter="nobody")
    client.get("/no/such/page")
    client.request("NONSENSE", "/generate")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'jpeft_requests_total{method="POST",route="/generate",status="200"} 1.0',
        'jpeft_requests_total{method="POST",route="/generate",status="404"} 1.0',
        'jpeft_requests_total{method="other",route="other",status="404"} 1.0',
        'jpeft_requests_total{method="other",route="/generate",status="405"} 1.0',
        "jpeft_batch_rows_sum 1.0",
        "jpeft_queue_rows 0.0",
        f"jpeft_adapters {float(len(ON_SHELF))}",
        'jpeft_request_seconds_count{route="/generate"} 3.0',
    ):
        assert line in lines


def test_when_nothing_is_answered_any_more_it_says_so(service, client):
    assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200
    service.batcher.running = False
    for path in ("/readyz", "/healthz"):
        assert int(refused(client.get(path), 503, "has to be restarted").headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"request_seconds": 0.0}, "--timeout is 0; give a number above 0."),
        ({"inputs": 0}, "--max-inputs is 0; give a number above 0."),
        ({"body_bytes": -1}, "--max-body-bytes is -1; give a number above 0."),
        ({"wait_seconds": -0.001}, "--max-wait-ms is -1; give 0 or more."),
        ({"queued_rows": 8}, "--max-queue is 8, and a request may have 16 inputs (--max-inputs), which would never"),
        ({"queued_rows": 8}, "give a --max-queue of at least 16, or a --max-inputs of at most 8."),
    ],
)
def test_a_wrong_limit_is_named_by_its_flag(wrong, says):
    with pytest.raises(UserError) as error:
        Limits(**wrong)
    assert says in str(error.value)


def test_a_full_queue_is_known_before_any_work(service, client, monkeypatch):
    monkeypatch.setattr(service.engine, "rows", lambda *_, **__: 1 / 0)
    with service.batcher.place_for(6):
        refused(ask(client, *"abc"), 429, "the queue is full")


def test_an_input_of_many_characters_is_refused_before_any_work(started, monkeypatch):
    engine, shelf = started
    monkeypatch.setattr(engine, "rows", lambda *_, **__: 1 / 0)
    with TestClient(make_app(Service(engine, shelf, Limits(characters=50)))) as client:
        refused(ask(client, "a" * 51), 422, "at most 50 characters")
        refused(ask(client, {"a": "a" * 30, "b": "b" * 30}), 422, "inputs[0] has more than 50 characters")


def test_a_row_for_which_the_model_gives_no_number_fails_alone(started, monkeypatch):
    engine, shelf = started
    monkeypatch.setattr(engine, "answer", lambda rows: [NoNumber(row.adapter) for row in rows])
    with TestClient(make_app(Service(engine, shelf, LIMITS))) as client:
        refused(ask(client), 500, "by adapter 'ia3' is no number")


def test_adapters_that_cannot_be_served_are_named_and_break_nothing(started, tiny_shelf, tmp_path):
    engine, _ = started
    shelf = tmp_path / "shelf"
    for name in ("good one", "damaged", "nested", "listed", "naïve", "pipe", "task"):
        shutil.copytree(tiny_shelf / "bitfit", shelf / name)
    config = "jpeft_adapter.json"
    (shelf / "damaged" / config).write_text("{")
    (shelf / "nested" / config).write_text("[" * 100_000)
    (shelf / "listed" / config).write_text("[]")
    (shelf / "task/task.json").write_text('{"labels": 3}')
    (shelf / "pipe" / config).unlink()
    os.mkfifo(shelf / "pipe" / config)
    shutil.copytree(tiny_shelf / "ia3", tmp_path / "elsewhere")
    (shelf / "linked").symlink_to(tmp_path / "elsewhere")
    (shelf / "dangling").symlink_to(tmp_path / "nowhere")
    (shelf / "round").symlink_to(shelf / "round")
    (shelf / "empty").mkdir()
    (shelf / "notes.txt").write_text("no adapter")
    with TestClient(make_app(Service(engine, Shelf(shelf), LIMITS))) as client:
        listed = client.get("/adapters").json()
        assert listed["available"] == ["good one", "task"]
        reasons = listed["not_served"]
        assert sorted(reasons) == sorted(
            ["damaged", "nested", "listed", "naïve", "pipe", "linked", "dangling", "round", "empty"]
        )
        assert all("\n" not in reason and len(reason) < 500 for reason in reasons.values())
        assert "by a link" in reasons["linked"] and "is not plain" in reasons["naïve"]
        refused(client.put("/adapters/linked"), 404, "by a link")
        refused(client.put("/adapters/damaged"), 404, "no adapter 'damaged' to load (")
        refused(client.put("/adapters/task"), 422, "task.json")
        assert "task.json" in client.get("/adapters").json()["not_served"]["task"]
        assert client.put("/adapters/good%20one").json() == {"name": "good one", "method": "bitfit"}
        assert ask(client, adapter="good one").status_code == 200
        assert client.delete("/adapters/good one").status_code == 204
    engine.left_out.clear()
    assert Shelf(shelf, follow_links=True).survey()[0] == ["good one", "linked", "task"]


def test_the_page_needs_nothing_but_itself(client):
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for route in ("POST /generate", "GET /adapters", "PUT /adapters/{name}", "GET /readyz"):
        assert f"<code>{route}</code>" in page.text
    assert "max_output_tokens" in page.text and "at most 3" in page.text
    for outside in ("http://", "https://", "<script", "src=", "@import", "url("):
        assert outside not in page.text
    assert client.get("/redoc").status_code == 404


def test_the_document_describes_every_refusal(client):
    document = client.get("/openapi.json").json()
    statuses = {
        f"{method} {path}": sorted(operation["responses"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert statuses["post /generate"] == ["200", "400", "404", "409", "413", "422", "429", "500", "503", "504"]
    assert statuses["put /adapters/{name}"] == ["200", "404", "409", "422", "503"]
    assert statuses["delete /adapters/{name}"] == ["204", "404", "422", "503"]
    assert statuses["get /readyz"] == statuses["get /healthz"] == ["200", "503"]
    generation = document["components"]["schemas"]["Generation"]["properties"]
    assert generation["inputs"]["maxItems"] == 3 and generation["max_output_tokens"]["anyOf"][0]["maximum"] == 4


def test_a_column_that_the_prompt_does_not_take_may_hold_anything(client):
    asked = ask(client, {"input": "goal", "tags": ["a", {"b": None}], "meta": {"n": 1}})
    assert asked.status_code == 200
    assert asked.json()["predictions"] == ask(client, "goal").json()["predictions"]


def test_a_body_that_is_packed_is_refused_by_its_encoding(client):
    body = gzip.compress(b'{"inputs": ["a"]}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused(client.post("/generate", content=body, headers=headers), 422, "the body has the Content-Encoding 'gzip'")
    plain = {**headers, "Content-Encoding": "identity"}
    assert client.post("/generate", content=b'{"inputs": ["a"]}', headers=plain).status_code == 200
