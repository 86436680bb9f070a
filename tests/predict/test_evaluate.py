"""`jpeft evaluate` on a tiny adapter: numbers as a run's test gives them, and what it says of the rows."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from jpeft.adapters.files import save_adapter
from jpeft.cli import main
from jpeft.config import Run
from jpeft.data.sources import rows_digest
from jpeft.data.task_file import TaskOfRun
from jpeft.data.tasks import TASKS, examples
from jpeft.errors import RunFailed, UserError
from jpeft.eval.answering import Answers
from jpeft.model import t5_weights
from jpeft.peft.lora import Lora
from jpeft.predict import evaluation
from jpeft.predict.answer_source import AnswerSource
from jpeft.predict.evaluation import Evaluated, Evaluation, unknown_label_warnings
from jpeft.rows.reading import read_columns
from jpeft.train.seen import seen_by_the_run, seen_rows_warnings
from tests.conftest import TOPICS, news
from tests.serve.adapters import make

LABELS = tuple(sorted(TOPICS))
TASK = TaskOfRun(
    template="{text} Topic?",
    labels=LABELS,
    max_input_length=24,
    max_target_length=6,
    kind="classification",
    target="topic",
    answer="score",
)


def rows_of(number: int, seed: int) -> list[dict]:
    made = news(number, seed=seed)
    return [{"text": t, "topic": TOPICS[i]} for t, i in zip(made["text"], made["label"], strict=True)]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoint) -> Path:
    """A run's directory, as far as evaluating looks at it: its adapter, and which of its rows trained."""
    directory, model = tmp_path_factory.mktemp("run"), t5_weights.load(tiny_checkpoint)
    adapter = make(model, Lora.official(rank=2), seed=3)
    save_adapter(adapter.model, adapter.method, adapter.sites, directory / "adapter", base_name=str(tiny_checkpoint))
    TASK.write(directory / "adapter")
    write_rows(directory / "rows.jsonl", rows_of(20, seed=1))
    data = {"task": "custom", "path": str(directory / "rows.jsonl"), "target": "topic", "template": TASK.template}
    config = Run.from_config({"data": data, "model": {"name": str(tiny_checkpoint)}}).to_dict()
    (directory / "config.json").write_text(json.dumps(config))
    splits = {"train": [f"train/{i}" for i in range(12)], "validation": ["train/12", "train/13"], "test": ["train/14"]}
    (directory / "splits.json").write_text(json.dumps({"rows": splits}))
    return directory


@pytest.fixture
def evaluate(capsys):
    """Calls the command; what it printed, read where that is JSON, and what it said."""

    def of(*arguments, status: int = 0):
        assert main(["evaluate", *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        return (json.loads(out) if "--json" in arguments else out), err

    return of


def seen_of(source, made):
    return seen_by_the_run(source.adapter, source.task, made)


def test_numbers_are_those_of_the_answers(evaluate, run, tmp_path, capsys):
    rows = rows_of(10, seed=7)
    file, output = write_rows(tmp_path / "new.jsonl", rows), tmp_path / "out/answers.jsonl"
    record, _ = evaluate("--adapter", run, "--data", file, "--output", output, "--json")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["id"], line["target"]) for line in lines] == [
        (f"new.jsonl/{i}", row["topic"]) for i, row in enumerate(rows)
    ]
    assert lines[0]["input"] == f"{rows[0]['text']} Topic?"
    assert main(["predict", "--adapter", str(run), "--input", str(file), "--quiet"]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prediction"] for line in lines] == [line["prediction"] for line in predicted]
    right = [line["prediction"] == line["target"] for line in lines]
    assert [line["score"] for line in lines] == [float(each) for each in right]
    assert record["metric_name"] == "accuracy" and record["metric"] == pytest.approx(sum(right) / 10)
    assert record["rows"] == 10 and record["uncertainty"]["rows"] == 10 and record["labels"] == list(LABELS)
    assert {"matthews_correlation", "unknown_answers", "agreement_with_generation"} <= record["metrics"].keys()
    assert record["per_class"]["confusion"]["rows"] == list(LABELS)
    assert record["warnings"][0].startswith("only 10 test rows: ")
    assert record["unknown_labels"] == {} and record["seen_by_the_run"] == {"train": 0, "validation": 0}


def test_it_says_what_a_reader_has_to_know(evaluate, run, tmp_path):
    known = rows_of(20, seed=1)
    rows = [*known[:3], known[12], known[15], {"text": "goal " * 40, "topic": " Sports "}]
    rows += [{"text": "robot", "topic": "Robots"}, {"text": "chip", "topic": "Robots"}, {"text": "x", "topic": "3"}]
    file = write_rows(tmp_path / "mixed.jsonl", rows)
    said, _ = evaluate("--adapter", run, "--data", file, "--quiet")
    assert said.startswith("accuracy  ") and "9 test rows" in said and "standard error" in said
    assert "unknown  3 rows with labels that the run did not know ('Robots' 2, '3' 1)" in said
    assert "warning  only 9 test rows" in said
    assert "of 9 inputs to 24 tokens, in their longest column" in said
    assert "seen     3 of 9 rows have a text that the run trained on" in said
    assert "seen     1 of 9 rows have a text that the run chose its best epoch by" in said


def test_white_space_does_not_hide_what_the_run_has_seen(run, tmp_path):
    source = AnswerSource.find(None, run, report=print)
    spaced = [{**row, "text": f" {row['text'].replace(' ', '  ')}\t"} for row in rows_of(20, seed=1)]

    def seen(rows):
        test = Evaluation.of(source)
        name, read = test.read(write_rows(tmp_path / "rows.jsonl", rows), None)
        return seen_of(source, examples(test.task, name, read, range(20)))

    assert seen(spaced) == seen(rows_of(20, seed=1)) and seen(spaced)[0]["train"] > 0


def test_another_template_does_not_hide_what_the_run_has_seen(run, tmp_path):
    source = AnswerSource.find(None, run, report=print)
    file = write_rows(
        tmp_path / "known.jsonl", [{**row, "n": 1, "n2": 2, "m": row["text"]} for row in rows_of(20, seed=1)]
    )

    def seen(template):
        test = Evaluation.of(source, template=template)
        name, rows = test.read(file, None)
        return seen_of(source, examples(test.task, name, rows, range(20)))

    assert seen("About: {text}") == seen(None) and seen(None)[0]["train"] > 0
    assert seen("{n}: {text}") == seen("{m}?") == seen(None)  # with another beside it, or by another name
    assert seen("{n}")[0] == {"train": 0, "validation": 0}
    found, why = seen("{n} {n2}")
    assert found is None and why == "its prompts were made of other columns (text)"


def test_labels_that_are_written_otherwise_or_are_others_throughout_are_no_low_number_without_a_word():
    assert unknown_label_warnings({}, LABELS, 3) == unknown_label_warnings({"Robots": 2}, LABELS, 3) == []
    assert unknown_label_warnings({"sports\u200b": 1, "x": 1}, LABELS, 3) == [
        r"rows labelled 'sports\u200b' count as wrong, since the run's label is written 'Sports': if they mean one "
        "class, make them one"
    ]
    assert unknown_label_warnings({"Robots": 3}, LABELS, 3) == [
        "no row has a label that the run knows: nothing was measured (--target names the labels)"
    ]


def test_columns_of_other_names_are_taken_where_the_call_says_so(run, tmp_path):
    rows = rows_of(4, seed=9)
    other = tmp_path / "b.csv"
    other.write_text("body,label\n" + "".join(f"{row['text']},{row['topic']}\n" for row in rows))
    source = AnswerSource.find(None, run, report=print)
    named = Evaluation.of(source, input="body", target="label")
    assert named.task.template == "{body} Topic?" and named.read(other, None)[1].keys() == {"body", "label"}
    templated = Evaluation.of(source, target="label", template="{body}?")
    assert templated.task.template == "{body}?" and templated.read(other, None)[1].keys() == {"body", "label"}
    assert Evaluation.of(source, input=" body ", target=" label ").task == named.task
    with pytest.raises(UserError, match="--target says what to take"):
        Evaluation.of(source, input="body").read(other, None)
    with pytest.raises(UserError, match="--input is one column and the template names a and b; give --template"):
        Evaluation.of(source, input="body", template="{a} {b}")


def test_a_template_of_the_call_lists_the_labels_as_that_of_the_run(run):
    source, said = AnswerSource.find(None, run, report=print), []
    listing = dataclasses.replace(TASK, template="{text}?\n\nOPTIONS:\n- a {{x}}\n- b", labels=("a {x}", "b"))
    source = dataclasses.replace(source, task=dataclasses.replace(listing, options="auto"))
    test = Evaluation.of(source, template="{text}!", input="body", report=said.append)
    assert test.task.template == "{body}!\n\nOPTIONS:\n- a {{x}}\n- b"
    assert said == ["the prompt ends in a list of the labels, as in the run"]


def test_the_target_may_have_the_name_of_the_templates_column(run, tmp_path):
    file = write_rows(tmp_path / "turned.jsonl", [{"body": row["text"], "text": row["topic"]} for row in rows_of(2, 9)])
    test = Evaluation.of(AnswerSource.find(None, run, report=print), input="body", target="text")
    made = examples(test.task, *test.read(file, None), range(2))
    assert [(each.input, each.target) for each in made] == [(f"{t['text']} Topic?", t["topic"]) for t in rows_of(2, 9)]


def test_rows_of_equal_input_are_references_of_each_other_by_its_other_name_too(run):
    source = AnswerSource.find(None, run, report=print)
    e2e = TaskOfRun.of(TASKS["e2e"], answer="generate", num_beams=1, dtype="auto")
    task = Evaluation.of(dataclasses.replace(source, task=e2e), input="mr", target="ref").task
    made = examples(task, "x", {"mr": ["a", "b", "a"], "ref": ["1", "2", "3"]}, [0])
    assert made[0].references == ("1", "3")


def test_one_split_of_a_directory_is_read_by_any_name_that_it_may_have(run, tmp_path):
    test = Evaluation.of(AnswerSource.find(None, run, report=print))
    write_rows(tmp_path / "test.jsonl", rows_of(3, seed=9))  # no others: nothing trains here
    assert test.read(tmp_path, None)[0] == "test"
    write_rows(tmp_path / "dev.jsonl", rows_of(2, seed=8))
    (tmp_path / "train.jsonl").write_text("{ not read")
    for name in ("dev", "validation", "Val"):
        split, rows = test.read(tmp_path, name)
        assert split == "validation" and len(rows["text"]) == 2
    with pytest.raises(UserError, match="has no nightly split, only train, validation, test; give one by --split"):
        test.read(tmp_path, "nightly")
    (tmp_path / "test.jsonl").rename(tmp_path / "last.jsonl")
    with pytest.raises(UserError, match="has no test split, only train, validation; give one by --split"):
        test.read(tmp_path, None)


def test_labels_that_are_kept_secret_are_said_so(run, tmp_path):
    source = AnswerSource.find(None, run, report=print)
    cola = dataclasses.replace(Evaluation.of(source), task=TASKS["cola"])
    write_rows(tmp_path / "test.jsonl", [{"sentence": "x", "label": -1}])
    with pytest.raises(UserError, match="the test split of .* has no labels, -1 in every row; give another by --split"):
        cola.read(tmp_path, None)


@pytest.mark.slow
def test_a_call_may_ask_for_generated_answers(evaluate, run, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", rows_of(4, seed=9))
    generated, _ = evaluate("--adapter", run, "--data", file, "--answer", "generate", "--json")
    assert generated["answer"] == "generate" and "agreement_with_generation" not in generated["metrics"]


def test_an_adapter_that_was_exported_is_asked_alike_and_what_it_saw_is_not_known(run, tmp_path):
    assert main(["export", str(run), "--out", str(tmp_path / "exported")]) == 0
    own, exported = (AnswerSource.find(None, adapter, report=print) for adapter in (run, tmp_path / "exported"))
    one, other = Evaluation.of(own), Evaluation.of(exported)
    assert (one.task, one.answer, one.dtype) == (other.task, other.answer, other.dtype)
    assert seen_of(own, []) == ({"train": 0, "validation": 0}, None)
    assert seen_of(exported, []) == (None, "its run's directory is not here")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "absent.csv"], "absent.csv"),
        (["--target", "label"], "has no column 'label'"),
        (["--input", "body"], "has no column 'body'"),
        (["--input", "topic"], "'topic' would be both the text and its right answer"),
        (["--target", "text"], "'text' would be both the text and its right answer"),
        (["--template", "{title}"], "has no column 'title'"),
        (["--template", "{title"], "--template '{title' is malformed"),
        (["--template", "{text.lower}"], "says what to take. A template names whole columns: {text}."),
        (["--target", "Topic"], "--target says what to take. It is written 'topic' there, not 'Topic'."),
        (
            ["--input", "Text"],
            "there are: text, topic. --input or --template says what to take. It is written 'text' there, not 'Text'.",
        ),
        (["--answer", "sing"], "--answer is 'sing'"),
        (["--overwrite"], "--overwrite goes with --output"),
        (["--split", "train"], "new.jsonl is a file; leave it out"),
        (["--dtype", "float64"], "--dtype is 'float64'"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(flags, says, evaluate, run, tmp_path):
    file = write_rows(tmp_path / "new.jsonl", rows_of(3, seed=7))
    data = [] if "--data" in flags else ["--data", file]
    _, said = evaluate("--adapter", run, *data, *flags, status=2)
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "the test split of .* has no labels, -1 in every row; give another by --split"),
        ("test.jsonl", "each label of .*test.jsonl is -1, which stands for one that is kept secret"),
    ],
)
def test_secret_labels_are_refused_and_not_counted_as_wrong(data, says, run, tmp_path):
    for split, label in (("train", 1), ("validation", 0), ("test", -1)):
        write_rows(tmp_path / f"{split}.jsonl", [{"sentence": "He ran.", "label": label}])
    test = dataclasses.replace(Evaluation.of(AnswerSource.find(None, run, report=print)), task=TASKS["cola"])
    with pytest.raises(UserError, match=says):
        test.read(tmp_path / data, None)
    assert test.read(tmp_path, "validation")[0] == "validation"


def test_what_is_there_is_not_written_over_unasked(evaluate, run, tmp_path):
    file, output = write_rows(tmp_path / "new.jsonl", rows_of(3, seed=7)), tmp_path / "out.jsonl"
    output.write_text("mine")
    _, said = evaluate("--adapter", run, "--data", file, "--output", output, status=2)
    assert "is there already" in said and output.read_text() == "mine"


def test_the_output_is_no_device(evaluate, run, tmp_path):
    file, output = write_rows(tmp_path / "new.jsonl", rows_of(3, seed=7)), tmp_path / "pipe"
    os.mkfifo(output)
    _, said = evaluate("--adapter", run, "--data", file, "--output", output, "--overwrite", status=2)
    assert "is no regular file" in said and output.is_fifo()
    _, said = evaluate("--adapter", run, "--data", file, "--output", tmp_path / "answers.csv", status=2)
    assert "answers.csv ends in .csv, and what is written are plain JSON lines" in said


def test_the_output_is_tried_before_anything_is_answered_and_is_not_the_data(evaluate, run, tmp_path, monkeypatch):
    file = write_rows(tmp_path / "test.jsonl", rows_of(3, seed=7))
    (tmp_path / "train.jsonl").write_text(file.read_text())
    (tmp_path / "link.jsonl").symlink_to(file)
    before = file.read_text()
    monkeypatch.setattr(Evaluation, "read", None)
    for output in (file, tmp_path / "link.jsonl"):
        _, said = evaluate("--adapter", run, "--data", file, "--output", output, "--overwrite", status=2)
        assert "would replace the input" in said and file.read_text() == before
    _, said = evaluate("--adapter", run, "--data", tmp_path, "--output", file, "--overwrite", status=2)
    assert "would replace the input" in said and file.read_text() == before
    _, said = evaluate("--adapter", run, "--data", file, "--output", "/proc/no/x.jsonl", status=1)
    assert said.startswith("error: /proc/no/x.jsonl cannot be written") and said.count("\n") == 1


def test_answers_may_stand_beside_the_splits_and_the_numbers_are_said_first(
    evaluate, run, tmp_path, monkeypatch, capsys
):
    file = write_rows(tmp_path / "test.jsonl", rows_of(3, seed=7))
    write_rows(tmp_path / "train.jsonl", rows_of(3, seed=8))
    call = ["evaluate", "--adapter", run, "--data", tmp_path, "--output", tmp_path / "answers.jsonl", "--overwrite"]
    for _ in range(2):
        assert main(list(map(str, call))) == 0
    monkeypatch.setattr(Evaluated, "write", lambda self, path: (_ for _ in ()).throw(RunFailed("the disk is full")))
    assert main(list(map(str, call))) == 1
    assert "accuracy" in capsys.readouterr().out and file.exists()


@pytest.mark.parametrize("damage", ["[]", '{"rows": {"train": ["train/99"]}}', '{"rows": {"train": [7]}}', "{", "{}"])
def test_splits_that_cannot_be_read_cost_the_finding_alone(damage, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/splits.json").write_text(damage)
    seen, why = seen_of(AnswerSource.find(None, tmp_path / "run", report=print), [])
    assert seen is None and why is not None and why.startswith("the rows of its run cannot be read again (")


def test_rows_that_changed_since_the_run_are_not_counted_by_the_numbers_of_the_old_ones(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    rows, splits = rows_of(20, seed=1), json.loads((run / "splits.json").read_text())
    file = write_rows(tmp_path / "rows.jsonl", rows)
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = str(file)
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    digest = rows_digest({"train": read_columns(file)})
    (tmp_path / "run/splits.json").write_text(json.dumps(splits | {"data_digest": digest}))
    source = AnswerSource.find(None, tmp_path / "run", report=print)
    assert seen_of(source, []) == ({"train": 0, "validation": 0}, None)
    write_rows(file, rows[::-1])
    assert seen_of(source, []) == (None, "its rows have changed since its run read them")


@pytest.mark.slow
def test_a_text_task_is_judged_by_its_own_metric(evaluate, tmp_path, tiny_checkpoint, monkeypatch):
    directory = tmp_path / "text"
    model = t5_weights.load(tiny_checkpoint)
    adapter = make(model, Lora.official(rank=2), seed=3)
    save_adapter(adapter.model, adapter.method, adapter.sites, directory, base_name=str(tiny_checkpoint))
    dataclasses.replace(TASK, labels=(), kind="generation", answer="generate").write(directory)
    record, _ = evaluate("--adapter", directory, "--data", write_rows(tmp_path / "a.jsonl", rows_of(4, 7)), "--json")
    assert record["metric_name"] == "rouge_l" and record["per_class"] is None and record["labels"] is None
    monkeypatch.setattr(evaluation, "answer_split", lambda *_, **options: Answers(["x"], None))
    file = write_rows(tmp_path / "b.jsonl", [{"text": "today", "topic": "今天天气很好"}])
    record, said = evaluate("--adapter", directory, "--data", file, "--metrics", "bleu", "--json")
    assert "tok:zh" in record["computed_by"]["bleu"] and said.count("BLEU uses the tokenizer 'zh'") == 1


def test_metrics_are_the_runs_or_those_that_are_named_and_no_file_gets_code_run(run, tmp_path, monkeypatch, evaluate):
    source = AnswerSource.find(None, run, report=print)
    asked = ("macro_f1", "expected_calibration_error", "evil:metric", "of_tomorrow", "bleu")
    found = Evaluation.of(dataclasses.replace(source, task=dataclasses.replace(TASK, metrics=asked)))
    assert found.task.metrics == ("macro_f1", "expected_calibration_error")
    why = [line.removeprefix("not computed, though the run was judged by it: ") for line in found.left_out]
    assert (
        why[0] == "evil:metric is code, which a file does not get to run: give --metrics evil:metric if you trust it."
    )
    assert why[1].startswith("of_tomorrow is not a metric") and "bleu judges texts" in why[2] and len(why) == 3
    (tmp_path / "mine_for_evaluate.py").write_text("def first(predictions, references):\n    return 0.25\n")
    monkeypatch.chdir(tmp_path)
    names = "accuracy,expected_calibration_error,mine_for_evaluate:first"
    file = write_rows(tmp_path / "new.jsonl", rows_of(6, seed=7))
    record, _ = evaluate("--adapter", run, "--data", file, "--metrics", names, "--json")
    assert record["metric_name"] == "accuracy" and record["metrics"]["mine_for_evaluate:first"] == 0.25
    assert record["uncertainties"].keys() >= {"accuracy", "expected_calibration_error"}
    with pytest.raises(UserError, match="--metrics: f1 judges texts"):
        Evaluation.of(source, metrics="f1")


def test_a_row_whose_label_the_run_did_not_know_is_wrong_whatever_is_written(evaluate, run, tmp_path, monkeypatch):
    rows = [{"text": "a", "topic": "Sports"}, {"text": "b", "topic": "World"}, {"text": "c", "topic": "Robots"}]
    rows += [{"text": "d", "topic": "Robots"}]
    written = ["Sports", "Robots", "Robots", " Robots"]
    monkeypatch.setattr(evaluation, "answer_split", lambda *_, **options: Answers(written, None))
    file, output = write_rows(tmp_path / "new.jsonl", rows), tmp_path / "answers.jsonl"
    call = ("--adapter", run, "--data", file, "--answer", "generate")
    record, _ = evaluate(*call, "--json", "--output", output)
    assert record["metrics"]["accuracy"] == 0.25 and record["metrics"]["unknown_answers"] == 0.75
    assert record["per_class"]["classes"]["Robots"]["recall"] == 0 and record["unknown_labels"] == {"Robots": 2}
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["prediction"], line["score"]) for line in lines] == list(zip(written, [1, 0, 0, 0], strict=True))
    said, _ = evaluate(*call)
    assert "unknown  2 rows with labels that the run did not know ('Robots' 2): wrong whatever" in said
    assert "accuracy of the others 0.5000" in said


def test_it_is_told_how_the_numbers_of_labels_are_read_and_those_that_count_from_1_are_refused(
    evaluate, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation, "answer_split", lambda *_, **options: Answers(["Sports"] * 2, None))
    shutil.copytree(run / "adapter", tmp_path / "topics")
    TaskOfRun.of(TASKS["agnews"], answer="generate", num_beams=1, dtype="auto").write(tmp_path / "topics")
    numbered = [write_rows(tmp_path / f"{i}.jsonl", [{"text": "x", "label": n} for n in (1, i)]) for i in (3, 4)]
    record, said = evaluate("--adapter", tmp_path / "topics", "--data", numbered[0], "--json")
    assert record["metric"] == 0.5 and said.count("label 3 is read as 'Sci/Tech', counting from 0") == 1
    _, said = evaluate("--adapter", tmp_path / "topics", "--data", numbered[1], status=2)
    assert "the labels of 4.jsonl count from 1, up to 4" in said and said.count("\n") == 1


def test_rows_are_told_of_as_before_training(evaluate, run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "answer_split", lambda *_, **options: Answers(["Sports"] * 3, None))
    rows = [{"text": "goal \u4e2d", "topic": "Sports"}, {"text": " \u200b", "topic": "World"}]
    rows += [{"text": "shares </s>", "topic": "Business"}]
    file = write_rows(tmp_path / "new.jsonl", rows)
    call = ("--adapter", run, "--data", file, "--answer", "generate", "--template", "{text} {topic}")
    record, _ = evaluate(*call, "--json")
    said = "\n".join(record["warnings"])
    assert "inputs with characters that this vocabulary does not have: 2 of 3 rows (such as '\u4e2d" in said
    assert "inputs without text: 1 of 3 rows (as new.jsonl/1)" not in said  # the topic is text, too
    assert "the prompt shows the column of the answers, 'topic'" in said
    assert "rows that spell a special token: 1 of 3 rows (such as '</s>' in new.jsonl/2" in said
    printed, _ = evaluate(*call[:-2])
    assert "warning  inputs without text: 1 of 3 rows (as new.jsonl/1)" in printed
    assert "the prompt shows" not in printed


def test_targets_longer_than_an_answer_may_be_are_told(evaluate, run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "answer_split", lambda *_, **options: Answers(["x", "y"], None))
    shutil.copytree(run / "adapter", tmp_path / "text")
    dataclasses.replace(TASK, labels=(), kind="generation", answer="generate").write(tmp_path / "text")
    rows = [{"text": "a", "topic": "coach goal season striker league final"}, {"text": "b", "topic": "x"}]
    said, _ = evaluate("--adapter", tmp_path / "text", "--data", write_rows(tmp_path / "new.jsonl", rows))
    assert "cut      1 of 2 targets are longer than the 6 tokens of an answer: none can be it" in said


def test_what_a_metric_makes_of_the_references_is_said(evaluate, run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "answer_split", lambda *_, **options: Answers(["x", "y"], None))
    shutil.copytree(run / "adapter", tmp_path / "text")
    dataclasses.replace(TASK, labels=(), kind="generation", answer="generate").write(tmp_path / "text")
    file = write_rows(tmp_path / "new.jsonl", [{"text": "a", "topic": "-5"}, {"text": "b", "topic": "5"}])
    _, said = evaluate("--adapter", tmp_path / "text", "--data", file, "--metrics", "exact_match")
    assert " ".join(said.split()).count("2 of 2 test targets are empty, or the same as another one") == 1


def test_what_the_run_saw_that_an_adapter_started_from_counts_too(run, tmp_path):
    """Both ways of asking: `evaluate`, and the line before a run that starts from the adapter."""
    known = rows_of(20, seed=1)
    test = Evaluation.of(source := AnswerSource.find(None, run, report=print))
    name, rows = test.read(write_rows(tmp_path / "known.jsonl", known), None)
    made = examples(test.task, name, rows, range(20))
    counts, _ = seen_of(source, made)
    lines = seen_rows_warnings(str(run), made)
    assert len(lines) == 2 and f"{counts['train']} of 20 test rows" in lines[0] and "trained on" in lines[0]
    assert seen_rows_warnings(str(run), made[:0]) == []

    later = shutil.copytree(run, tmp_path / "later")
    config = json.loads((later / "config.json").read_text())
    config["data"]["path"] = str(write_rows(tmp_path / "others.jsonl", rows_of(20, seed=9)))
    config["method"]["from_adapter"] = str(run)
    (later / "config.json").write_text(json.dumps(config))
    splits = json.loads((later / "splits.json").read_text())
    splits["data_digest"] = rows_digest({"train": read_columns(tmp_path / "others.jsonl")})
    (later / "splits.json").write_text(json.dumps(splits))
    both = write_rows(tmp_path / "both.jsonl", [*known, *rows_of(20, seed=9)])
    made_of_both = examples(test.task, *test.read(both, None), range(40))
    of_both, why_not = seen_by_the_run(later / "adapter", source.task, made_of_both)
    of_later, _ = seen_by_the_run(later / "adapter", source.task, made)
    config["method"]["from_adapter"] = "gone"
    (later / "config.json").write_text(json.dumps(config))
    of_last, _ = seen_by_the_run(later / "adapter", source.task, made_of_both)
    of_first, _ = seen_of(source, made_of_both)
    assert why_not is None and of_later is not None and of_later["train"] >= counts["train"] > 0
    assert of_both["train"] > max(of_last["train"], of_first["train"]), "those of both runs"
    unknown = "whether method.from_adapter has by an earlier run seen test rows is not known: "
    assert f"{unknown}it started from gone, which is not here" in seen_rows_warnings(str(later), made)
    config["method"]["from_adapter"] = str(later)
    (later / "config.json").write_text(json.dumps(config))
    assert "more than 16 runs that started from each other" in seen_rows_warnings(str(later), made)[-1]
    (later / "adapter/task.json").unlink()
    assert seen_rows_warnings(str(later), made) == [], "an adapter without a run"
