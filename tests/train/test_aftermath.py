"""What a run writes and prints after its test."""

import json
import sys

import pytest

from jpeft.cli.run_summary import metric_line, print_summary
from jpeft.data.tasks import TASKS, Example
from jpeft.eval.answering import ScoredAnswers
from jpeft.eval.metrics import judge
from jpeft.results import plain
from jpeft.run.directory import RunDirectory
from jpeft.train import aftermath
from jpeft.train.aftermath import write_aftermath
from jpeft.train.curve import Curve, draw_curve

LOG = (
    '{"epoch": 0, "step": 1, "loss": 2.5, "grad_norm": 1.0}\n{"epoch": 0, "step": 2, "loss": 2.0}\n'
    '{"steps_done": 2, "epoch": 0, "validation_loss": 1.5}\n'
)


@pytest.fixture
def write(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(LOG)

    def write(task, targets, predictions, **options):
        examples = [Example(f"test/{i}", f"text {i}", t, (t,)) for i, t in enumerate(targets)]
        scored = ScoredAnswers.of(predictions, judge(task, examples, predictions))
        given = {"answer": "generate", "title": "lora of $mini on 日本", "earlier_warnings": ["said before"]}
        given |= {"best_epoch": 1, "epochs_run": 2, "max_epochs": 2, **options}
        record, notes = write_aftermath(RunDirectory(tmp_path), task, examples, scored, **given)
        result = {"metric_name": task.metric, "metric": scored.numbers[task.metric], "test_examples": len(targets)}
        result |= record
        return json.loads(json.dumps(plain(result))), notes

    return write


def test_a_classification(write, tmp_path, capsys):
    targets = ["World"] * 6 + ["Sports"] * 4
    result, notes = write(TASKS["agnews"], targets, ["World"] * 5 + ["Sports", "Sports", "Sports", "[/red]", "World"])
    assert notes == [] and result["warnings"][0] == "said before"
    assert "cannot be told from 0.600, which always answering 'World' gives" in result["warnings"][1]
    assert "still learning" in result["warnings"][2] and len(result["warnings"]) == 3
    assert result["per_class"]["majority"] == {"label": "World", "share": 0.6}
    worst = [json.loads(line) for line in (tmp_path / "worst_rows.jsonl").read_text().splitlines()]
    assert {row["id"] for row in worst} == {"test/5", "test/8", "test/9"} and all(row["why"] for row in worst)
    assert json.loads((tmp_path / "per_class.json").read_text())["classes"]["World"]["support"] == 6
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert metric_line(result) == (
        "accuracy  0.7000  (95 %: 0.397 to 0.892, standard error 0.145; 10 test rows; "
        "always answering 'World' gives 0.6000)"
    )
    print_summary(result, tmp_path)
    out = capsys.readouterr().out
    assert "World 1, no label 1" in out and "warning  said before" in out and "learning_curve.png" in out
    (tmp_path / "per_class.json").write_text("[")  # a damaged line affects no other
    print_summary(result, tmp_path)
    assert "warning  said before" in capsys.readouterr().out


def test_texts_have_no_classes(write, tmp_path, capsys):
    result, _ = write(TASKS["samsum"], ["Ann and Bob meet.", "Eve waits."], ["", ""])
    assert result["per_class"] is None and not (tmp_path / "per_class.json").exists()
    assert any(line.startswith("every answer is empty") for line in result["warnings"])
    assert metric_line(result).startswith("rouge_l  0.0000  (95 %: 0.000 to 0.658")
    print_summary(result, tmp_path)
    assert "macro_f1" not in capsys.readouterr().out


def test_many_classes_show_the_weakest(write, tmp_path, capsys):
    labels = [f"class {i:02}" for i in range(20)] * 2
    result, _ = write(TASKS["custom"].__class__("custom", "classification", "{input}", "target"), labels,
                      labels[:21] + ["class 00"] * 19)  # fmt: skip
    print_summary(result, tmp_path)
    out = capsys.readouterr().out
    assert "the 12 of 20 classes with the lowest F1" in out and "class 00" in out and "class 19" not in out


def test_a_result_of_an_earlier_version_prints_what_it_has(tmp_path, capsys):
    assert metric_line({"metric_name": "rouge_l", "metric": 0.5, "test_examples": 1}) == "rouge_l  0.5000  (1 test row)"
    print_summary({}, tmp_path)
    assert capsys.readouterr().out == ""


def test_the_files_are_the_same_bytes_again(write, tmp_path):
    kept = {}
    for _ in range(2):
        write(TASKS["agnews"], ["World", "Sports"], ["Sports", "Sports"])
        files = {name: (tmp_path / name).read_bytes() for name in ("per_class.json", "worst_rows.jsonl",
                                                                   "learning_curve.png")}  # fmt: skip
        assert kept in ({}, files)
        kept = files


def test_without_matplotlib_the_rest_is_written_and_it_is_said_once(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(aftermath, "_printed_notes", set())
    for expected in (["no learning_curve.png: matplotlib is not installed (pip install 'jpeft[plots]')"], []):
        _, notes = write(TASKS["agnews"], ["World", "Sports"], ["Sports", "Sports"])
        assert notes == expected
    assert (tmp_path / "worst_rows.jsonl").is_file() and not (tmp_path / "learning_curve.png").exists()


def test_a_curve_leaves_out_lines_that_are_no_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LOG.encode() + b'\0\0\0\n[1]\n{"step": "3", "loss": 1.0}\n{"step": 3, "loss": NaN}\n\xff\n{"st')
    assert Curve.from_log(path) == Curve([(1, 2.5), (2, 2.0)], [(2, 1.5)])
    assert Curve.from_log(tmp_path / "none") == Curve([], [])
    assert draw_curve(Curve([], []), tmp_path / "empty.png", "nothing") and (tmp_path / "empty.png").is_file()


def test_each_file_of_rows_has_its_line(write, tmp_path, capsys):
    result, _ = write(TASKS["cola"], ["acceptable"] * 4, ["acceptable"] * 4)
    part = {"validation_examples": 3, "test_examples": 1, "validation_loss": 0.5, "metrics": {"accuracy": 1.0}}
    print_summary({**result, "by_source": {"a.csv": part}}, tmp_path)
    assert "of a.csv  accuracy 1.0000 (1 test row), validation loss 0.5000" in capsys.readouterr().out
