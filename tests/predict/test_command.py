"""`jpeft predict` on a tiny model: what it prints, what an adapter's run brings, and going on after a stop."""

import io
import json
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jpeft.adapters.files import load_adapter, save_adapter
from jpeft.cli import main
from jpeft.config import Run
from jpeft.model import t5_weights
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.attaching import attach
from jpeft.peft.full import Full
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.predict import call
from jpeft.predict.answering import lengths_up_to
from jpeft.predict.meter import Meter
from tests.conftest import TOPICS, news
from tests.peft.filled import filled
from tests.report.synthetic import record

TEXTS = news(9, seed=5)["text"] + ["", "goal " * 20]
SHORT = ("--max-output-length", "6", "--max-input-length", "16", "--batch-size", "2")
BATCHED = ("--max-input-length", "128", "--batch-size", "2")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows of two batches, so that a few rows fill several."""
    monkeypatch.setattr(call, "_BATCHES_IN_WINDOW", 2)


@pytest.fixture
def answer(capfdbinary):
    """Calls the command, which has to end well; its answers, and what it said."""

    def of(*arguments, status: int = 0) -> tuple[list[dict], str]:
        assert main(["predict", *map(str, arguments)]) == status
        out, err = capfdbinary.readouterr()
        return [json.loads(line) for line in out.decode().split("\n")[:-1]], err.decode()

    return of


@pytest.fixture
def lines(tmp_path):
    """`TEXTS` as a file."""
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """A finished run's directory, as far as predicting looks at it."""

    def make(method, *, task: str = "agnews"):
        key, model = jax.random.key(5), t5_weights.load(tiny_checkpoint)
        chosen = select(model, method)
        adapted = filled(attach(model, method, chosen, key), key)
        directory = tmp_path / "run"
        save_adapter(adapted, method, chosen, directory / "adapter", base_name=str(tiny_checkpoint))
        if isinstance(method, Full):
            Tokenizer.load(tiny_checkpoint).save(directory / "adapter")
        data = {"task": task, "max_target_length": 6, "path": "rows.jsonl"}
        config = Run.from_config({"data": data, "model": {"name": str(tiny_checkpoint)}})
        (directory / "config.json").write_text(json.dumps(config.to_dict()))
        (directory / "result.json").write_text(json.dumps(record()))
        return directory

    return make


_pass = jax.jit(lambda model, inputs, targets: jax.nn.log_softmax(model(inputs, targets))[0])


def log_probs(model, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Of every token after each of an answer's, by one pass over all of them: without caches, batches and packing."""
    padded = lambda ids, length: jnp.asarray([ids + [0] * (length - len(ids))])
    with jax.default_matmul_precision("highest"):
        return np.asarray(_pass(model, padded(prompt, 128), padded([0, *answer], 8)))[: len(answer) + 1]


def of_answer(model, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Log-probability of each of an answer's tokens."""
    return log_probs(model, prompt, answer)[np.arange(len(answer)), answer]


def test_answers_come_in_order_with_their_confidence(answer, lines, tiny_checkpoint):
    answers, said = answer("--model", tiny_checkpoint, "--input", lines, *SHORT)
    assert [row["input"] for row in answers] == TEXTS
    model, tokenizer = t5_weights.load(tiny_checkpoint), Tokenizer.load(tiny_checkpoint)
    too_long = sum(len(ids) + 1 > 16 for ids in tokenizer.ids(TEXTS))
    assert 0 < too_long < 11
    assert "answered  11 rows" in said and f"cut       {too_long} of them" in said
    for row in answers[:4]:
        ids = tokenizer.encode([row["input"]], max_length=16).ids[0]
        tokens: list[int] = []
        while len(tokens) < 6 and tokens[-1:] != [1]:
            tokens.append(int(np.argmax(log_probs(model, ids, tokens)[-1])))
        assert row["prediction"] == tokenizer.decode([tokens])[0]
        assert row["confidence"] == pytest.approx(of_answer(model, ids, tokens).mean(), abs=1e-5)
    assert len({row["confidence"] for row in answers}) > 5


def test_a_run_brings_its_prompt_and_labels_and_its_adapter_acts(answer, run, tiny_checkpoint):
    directory = run(Lora())
    (row,), _ = answer("--adapter", directory, TEXTS[0], *BATCHED)
    assert list(row["probabilities"]) == TOPICS and sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    tokenizer = Tokenizer.load(tiny_checkpoint)
    model, _, _ = load_adapter(directory / "adapter", t5_weights.load(tiny_checkpoint))
    prompt = f"{TEXTS[0]}\n\nWhich topic is this news article about?\n\nOPTIONS:\n- World"
    prompt += "\n- Sports\n- Business\n- Sci/Tech"
    ids = tokenizer.encode([prompt], max_length=128).ids[0]
    each = {label: of_answer(model, ids, [*tokenizer.ids([label])[0], 1]) for label in TOPICS}
    total = np.array([each[label].sum() for label in TOPICS])
    np.testing.assert_allclose(list(row["probabilities"].values()), np.exp(total) / np.exp(total).sum(), atol=1e-5)
    assert row["prediction"] == TOPICS[int(np.argmax(total))]
    assert row["confidence"] == pytest.approx(each[row["prediction"]].mean(), abs=1e-5)

    (generated,), _ = answer("--adapter", directory, TEXTS[0], "--generate", *BATCHED)
    assert "probabilities" not in generated


@pytest.mark.parametrize(
    "method", [Lora.official(rank=2), pytest.param(Full(), marks=pytest.mark.slow)], ids=["peft", "full"]
)
def test_adapters_of_peft_and_wholly_tuned_models_answer_as_they_do(method, answer, run, tiny_checkpoint):
    directory = run(method, task="custom")
    (alone,), _ = answer("--model", tiny_checkpoint, TEXTS[0], *SHORT)
    (adapted,), _ = answer("--adapter", directory, TEXTS[0], *SHORT)
    (by_directory,), _ = answer("--adapter", directory / "adapter", TEXTS[0], *SHORT)
    assert adapted == by_directory and adapted["confidence"] != alone["confidence"]
    if isinstance(method, Full):
        (by_model,), _ = answer("--model", directory / "adapter", TEXTS[0], *SHORT)
        assert adapted == by_model


def test_a_call_that_goes_on_writes_what_an_unbroken_one_does(answer, lines, tiny_checkpoint, tmp_path):
    output = tmp_path / "answers.jsonl"
    flags = ("--model", tiny_checkpoint, "--input", lines, *SHORT, "--output", output)
    answer(*flags)
    unbroken = output.read_bytes()
    # A window is answered whole, so that its batches are the same ones; there are windows of 4, 4 and 3 rows.
    for kept, says in [(1, "answered  11 rows"), (9, "answered  3 rows"), (11, "is complete: 11 answers")]:
        output.unlink()
        whole = b"".join(unbroken.splitlines(keepends=True)[:kept])
        (tmp_path / "answers.jsonl.partial").write_bytes(whole + b'{"input": "hal')
        _, said = answer(*flags)
        assert says in said and output.read_bytes() == unbroken
    _, said = answer(*flags)
    assert "is complete: 11 answers" in said and output.read_bytes() == unbroken


def test_told_to_stop_it_says_where_it_is_and_the_same_command_goes_on(
    answer, lines, tiny_checkpoint, tmp_path, monkeypatch
):
    flags = ("--model", tiny_checkpoint, "--input", lines, *SHORT, "--output", tmp_path / "answers.jsonl")
    calls, advance = [], Meter.advance

    def stops_in_the_second_window(self, *arguments, **options):
        advance(self, *arguments, **options)
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Meter, "advance", stops_in_the_second_window)
    _, said = answer(*flags, status=1)
    plain, error = said.splitlines()
    assert "texts.txt is read as plain lines" in plain and error.startswith("error: stopped by SIGTERM after 4 answers")
    assert "answers.jsonl.partial, and the same command goes on" in said
    assert (tmp_path / "answers.jsonl.partial").read_text().count("\n") == 4
    answer(*flags)
    assert [json.loads(line)["input"] for line in (tmp_path / "answers.jsonl").read_text().split("\n")[:-1]] == TEXTS


def test_a_wait_for_input_can_be_interrupted(answer, tiny_checkpoint, monkeypatch):
    class Waiting(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the signal ends the wait")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Waiting())))
    _, said = answer("--model", tiny_checkpoint, status=1)
    assert said == "error: stopped by SIGINT after 0 answers; with --output FILE, the same command would go on.\n"


def test_a_line_that_is_no_json_stops_there_and_once_mended_it_goes_on(answer, tiny_checkpoint, tmp_path):
    rows = [json.dumps({"input": text}) for text in TEXTS[:6]]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:5], rows[5][:-1]]))
    flags = ("--model", tiny_checkpoint, "--input", tmp_path / "rows.jsonl", *SHORT, "--output", tmp_path / "out.jsonl")
    _, said = answer(*flags, status=2)
    assert "line 6 of" in said and "rows.jsonl is not valid JSON" in said and said.count("\n") == 1
    assert (tmp_path / "out.jsonl.partial").read_text().count("\n") == 4
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    answer(*flags)
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 6


def test_another_model_or_flag_is_another_call(answer, lines, run, tiny_checkpoint, tmp_path):
    flags = ("--input", lines, *BATCHED, "--generate", "--output", tmp_path / "answers.jsonl")
    directory = run(Lora(), task="custom")
    answer("--adapter", directory, *flags)
    _, said = answer("--adapter", directory, *flags, "--num-beams", "2", status=2)
    assert "(num_beams: 1 -> 2)" in said and said.count("\n") == 1
    file = directory / "adapter/jpeft_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    _, said = answer("--adapter", directory, *flags, status=2)
    assert "of another call (adapter: " in said
    _, said = answer("--model", tiny_checkpoint, *flags, status=2)
    assert "another call" in said


def test_standard_output_that_is_closed_is_said_before_anything_is_loaded(monkeypatch, capfd, lines):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["predict", "--model", "there/is/none", "--input", str(lines)]) == 2
    assert capfd.readouterr().err == "error: standard output is closed; open it, or name a file by --output.\n"


def test_nothing_in_nothing_out(answer, tiny_checkpoint, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    flags = ("--model", tiny_checkpoint, "--input", tmp_path / "empty.txt")
    answers, said = answer(*flags)
    assert answers == [] and "no row" in said
    answer(*flags, "--output", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["text"], "give --model"),
        (["--model", "there/is/none", "text"], "is no directory here"),
        (["--adapter", "absent", "text"], "absent is not there"),
        (["--model", "mini", "--overwrite", "text"], "--overwrite goes with --output"),
        (["--model", "mini", "--template", "no column", "text"], "--template 'no column' names no column"),
        (["--model", "mini", "--template", "{a", "text"], "--template '{a' is malformed"),
        (["--model", "mini", "--labels", "A,B", "--generate", "text"], "exclude each other"),
        (["--model", "mini", "--labels", '"A, B', "text"], "has a misplaced quote; write labels as A,B and one"),
        (["--model", "mini", "--labels", "A,B", "--num-beams", "2", "text"], "--num-beams is for generated answers"),
        (["--model", "mini", "--dtype", "float64", "text"], "--dtype is 'float64'"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(arguments, says, answer):
    _, said = answer(*arguments, status=2)
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("read", "output"),
    [("b.csv", "b.csv"), ("link.csv", "b.csv"), ("o.csv.partial", "o.csv"), ("b.csv", "sub/../b.csv")],
)
def test_no_output_takes_the_place_of_the_input(read, output, answer, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.csv", "o.csv.partial"):
        (tmp_path / name).write_text("input\nx\n")
    (tmp_path / "link.csv").symlink_to("b.csv")
    call = (
        "--model",
        "mini",
        "--input",
        tmp_path / read,
        "--format",
        "csv",
        "--output",
        tmp_path / output,
        "--overwrite",
    )
    _, said = answer(*call, status=2)
    assert "would replace" in said and said.count("\n") == 1
    assert (tmp_path / read).read_text() == "input\nx\n"


def test_a_model_that_computes_no_number_answers_nothing(answer, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    tensors = load_file(tmp_path / "broken/model.safetensors")
    tensors["decoder.final_layer_norm.weight"][:] = np.nan
    save_file(tensors, tmp_path / "broken/model.safetensors")
    answers, said = answer("--model", tmp_path / "broken", TEXTS[0], *SHORT, status=1)
    assert answers == [] and said.startswith("error: the model computes nan")


def test_lengths_are_few():
    assert lengths_up_to(512) == [16, 32, 64, 128, 256, 512]
    assert lengths_up_to(10) == [16] and lengths_up_to(100)[-1] == 128
    # What a model takes at most is not filled up to more; what is longer than that is left to be refused.
    assert lengths_up_to(50, 57) == [16, 32, 57] and lengths_up_to(30, 57) == [16, 32]
    assert lengths_up_to(60, 57) == [16, 32, 57, 60] and lengths_up_to(9, 12) == [12]
