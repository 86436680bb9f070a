"""Rows from files, the hub and TensorFlow Datasets, with fakes that return real formats; no network."""

import gzip
import json
import sys
import time
import types

import datasets
import numpy as np
import pytest

from jpeft.data import sources
from jpeft.data.sources import load_rows, require_path, rows_digest
from jpeft.data.tasks import TASKS, examples
from jpeft.errors import RunFailed, UserError
from tests.conftest import write_parquet

CUSTOM = TASKS["custom"]
ROWS = {"input": ["one", "two"], "target": ["1", "2"]}


def write(path, columns):
    """Writes columns in the format of the ending of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        write_parquet(path, columns)
    elif path.suffix == ".csv":
        path.write_text("\n".join(",".join(map(str, line)) for line in [list(columns), *(r.values() for r in rows)]))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv"])
def test_a_single_file_gives_training_rows(tmp_path, suffix):
    path = write(tmp_path / f"mine.{suffix}", ROWS)
    assert load_rows(CUSTOM, "auto", str(path)) == {"train": ROWS}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("alias", ["validation", "valid", "val", "dev"])
def test_a_directory_gives_the_splits_that_it_has(tmp_path, suffix, alias):
    held_out = {"input": ["three"], "target": ["3"]}
    write(tmp_path / f"train.{suffix}", ROWS)
    write(tmp_path / f"{alias}.{suffix}", held_out)
    assert load_rows(CUSTOM, "local", str(tmp_path)) == {"train": ROWS, "validation": held_out}


@pytest.mark.parametrize("task", ["agnews", "cola", "e2e", "samsum"])
def test_a_benchmark_task_is_found_in_its_own_directory_or_in_the_one_given(toy_data, task):
    task = TASKS[task]
    above = load_rows(task, "local", str(toy_data))
    assert above == load_rows(task, "local", str(toy_data / task.local))
    assert set(task.columns) <= set(above["train"])
    assert len(above["train"][task.target]) >= 60


def test_text_is_read_as_it_stands(tmp_path):
    odd = ["007", "NA", "2020-01-01", "true", "1.50", "null"]
    path = write(tmp_path / "mine.csv", {"input": odd, "target": odd})
    made = examples(CUSTOM, "train", load_rows(CUSTOM, "auto", str(path))["train"], range(6))
    assert [example.input for example in made] == odd == [example.target for example in made]
    path = write(tmp_path / "mine.jsonl", {"input": odd, "target": odd})
    assert load_rows(CUSTOM, "auto", str(path))["train"]["target"] == odd


def test_quoted_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b'\xef\xbb\xbfinput,target\r\n"a, ""b""\nc",d\r\n')  # with the mark that spreadsheets write
    assert load_rows(CUSTOM, "auto", str(path))["train"] == {"input": ['a, "b"\nc'], "target": ["d"]}


def test_a_json_line_may_hold_other_kinds_of_values_blank_lines_and_line_separators(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"input": "a\u2028b", "target": 1}\n\n{"input": "c", "target": "x", "note": true}\n')
    rows = load_rows(CUSTOM, "auto", str(path))["train"]
    assert rows == {"input": ["a\u2028b", "c"], "target": [1, "x"], "note": [None, True]}


def test_rows_that_may_not_be_what_was_meant_are_told(tmp_path):
    for place in (tmp_path / "train.tsv", tmp_path / "test.tsv"):
        place.write_text('input\ttarget\n"a\tb\nc\td\n')
    for path, count in ((tmp_path / "train.tsv", 1), (tmp_path, 2)):
        said: list[str] = []
        rows = load_rows(CUSTOM, "auto", str(path), report=said.append)
        assert rows["train"]["input"] == ['"a', "c"] and len(said) == count
        assert all("plain text" in line for line in said)


def test_a_missing_path_is_named():
    with pytest.raises(UserError, match="data.path 'nowhere/rows.jsonl' does not exist"):
        load_rows(CUSTOM, "auto", "nowhere/rows.jsonl")


def test_local_without_a_path_says_which_key_to_give():
    with pytest.raises(UserError, match="data.source is 'local' but data.path is not given"):
        load_rows(CUSTOM, "local", None)


def test_a_wrong_ending_is_answered_with_the_ones_that_are_read(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"has the ending '.xlsx'; jpeft reads .jsonl, .ndjson, .json, .csv"):
        load_rows(CUSTOM, "auto", str(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"PAR1 not really PAR1", "cannot be read as Parquet"),
        ("b.parquet", b"", "cannot be read as Parquet"),
        ("a.jsonl", b'{"input": "a", "target": "b"}\n{"input": "a"\n', "line 2"),
        ("b.jsonl", b'{"input": "\xff"}\n', "line 1 of {path} is not UTF-8 (byte 0xff at 11)"),
        ("c.jsonl", b'"just text"\n', "line 1 of {path} is 'just text'; expected an object"),
        ("a.json", b'[{"input": "a"}', "ends within its list after 1 rows"),
        ("a.csv", b"input,target\na,b,c\n", "line 2 of {path} has 3 values, the header names 2 columns"),
        ("b.csv", b"input,target\n\xff,b\n", "line 2 of {path} is not UTF-8"),
        ("c.csv", b'input,target\n"a,b\n', "line 2 of {path} has a quote that is opened and never closed"),
        ("d.csv", b"input,input\na,b\n", "two columns have the same name"),
    ],
)
def test_a_malformed_file_is_one_line_with_the_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_rows(CUSTOM, "auto", str(tmp_path / name))
    assert reason.replace("{path}", str(tmp_path / name)) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "head.csv"])
def test_a_file_without_rows_is_refused(tmp_path, name):
    (tmp_path / name).write_text("input,target\n" if name.startswith("head") else "")
    with pytest.raises(UserError, match=f"custom: .*{name} has no training rows"):
        load_rows(CUSTOM, "auto", str(tmp_path / name))


def test_a_directory_without_training_rows_is_told_what_it_holds(tmp_path):
    write(tmp_path / "test.csv", ROWS)
    with pytest.raises(UserError, match=r"has no train.parquet \(or .jsonl, .csv, ...\); it holds: test.csv"):
        load_rows(CUSTOM, "local", str(tmp_path))


def test_files_that_are_not_read_are_named_and_a_split_has_one_file(tmp_path):
    held_out = {"input": ["three"], "target": ["3"]}
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "eval.jsonl", held_out)  # as others call what validates
    for name in ("extra.csv", "train.txt", "README.md", ".hidden.csv", "train.py", "test.log"):
        (tmp_path / name).write_text("input,target\n")
    lines = []
    assert load_rows(CUSTOM, "auto", str(tmp_path), report=lines.append) == {"train": ROWS, "validation": held_out}
    assert len(lines) == 1 and "not read of" in lines[0] and "extra.csv, train.txt (what is read" in lines[0]
    write(tmp_path / "dev.csv", held_out)
    with pytest.raises(UserError, match="has 2 files for the validation split: dev.csv, eval.jsonl; leave one"):
        load_rows(CUSTOM, "auto", str(tmp_path))
    write(tmp_path / "train.csv", ROWS)
    with pytest.raises(UserError, match="has 2 files for the train split: train.csv, train.jsonl; leave one"):
        load_rows(CUSTOM, "auto", str(tmp_path))


def test_the_parts_of_a_split_that_the_hub_writes_are_joined(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", ROWS)
    write(tmp_path / "train-00001-of-00002.parquet", {"input": ["three"], "more": ["x"]})
    assert load_rows(CUSTOM, "auto", str(tmp_path)) == {
        "train": {"input": ["one", "two", "three"], "target": ["1", "2", None], "more": [None, None, "x"]}
    }
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="has 1 of the 2 parts of its train split; the one numbered 00001 is missing"):
        load_rows(CUSTOM, "auto", str(tmp_path))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["00000-of-00002.csv", "00000-of-00002.jsonl"], "has 2 files for the train split"),
        (["00000-of-00002.csv", "00000-of-00002.CSV"], "has a part of its train split twice: .* and .*"),
        (
            ["00000-of-00002.csv", "00002-of-00002.csv"],
            "00002-of-00002.csv is numbered past the 2 parts of its train split, from 00000; rename",
        ),
        (["00000-of-00003.csv", "00002-of-00003.csv"], "has 2 of the 3 parts .* the one numbered 00001 is missing"),
        (["00001-of-00003.csv", "00003-of-00003.csv"], "has 2 of the 3 parts .* the one numbered 00002 is missing"),
        (["00001-of-00002.csv", "00002-of-00002.csv"], None),
    ],
)
def test_each_part_of_a_split_is_there_once(tmp_path, names, says):
    for name in names:
        write(tmp_path / f"train-{name}", ROWS)
    if says is None:
        assert load_rows(CUSTOM, "auto", str(tmp_path)) == {
            "train": {name: 2 * column for name, column in ROWS.items()}
        }
    else:
        with pytest.raises(UserError, match=says):
            load_rows(CUSTOM, "auto", str(tmp_path))


def test_a_part_that_is_there_packed_too_is_not_read_twice(tmp_path):
    part = write(tmp_path / "train-00000-of-00002.csv", ROWS)
    (tmp_path / "train-00000-of-00002.csv.gz").write_bytes(gzip.compress(part.read_bytes()))
    with pytest.raises(UserError, match="has a part of its train split twice: .*00002.csv and .*00002.csv.gz"):
        load_rows(CUSTOM, "auto", str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "test",
        "test.csv.bak",
        "test.parquet.gzip",
        "test.pq",
        "test.txt.gz",
        "dev.data",
        "test-00000-of-00001.orc",
        "x.avro",
    ],
)
def test_what_may_hold_a_split_and_is_not_read_is_named(tmp_path, name):
    write(tmp_path / "train.jsonl", ROWS)
    (tmp_path / name).write_bytes(b"x")
    lines = []
    load_rows(CUSTOM, "auto", str(tmp_path), report=lines.append)
    assert len(lines) == 1 and f": {name} (what is read is called so" in lines[0]
    (tmp_path / name).unlink()
    (tmp_path / "test").mkdir()
    load_rows(CUSTOM, "auto", str(tmp_path), report=lines.append)
    assert len(lines) == 2 and ": test (what is read is called so" in lines[1]


def test_a_held_out_file_without_rows_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "test.csv").write_text("input,target\n")
    with pytest.raises(UserError, match="test.csv has no rows; fill it or remove it"):
        load_rows(CUSTOM, "auto", str(tmp_path))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "row train/0 has no 'target'; fill it in"),
        (["a", "b"], "row train/0: the column 'target' holds a list"),
        ({"text": "a"}, "row train/0: the column 'target' holds an object"),
        (b"\xff", "row train/0: the column 'target' holds bytes that are not UTF-8"),
    ],
)
def test_a_value_that_is_no_text_is_refused_by_row_and_column(value, says):
    with pytest.raises(UserError, match=says):
        examples(CUSTOM, "train", {"input": ["x"], "target": [value]}, [0])
    examples(CUSTOM, "train", {"input": ["x"], "target": ["1"], "unused": [value]}, [0])


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have_is_one_line(path):
    for call in (require_path, lambda path: load_rows(CUSTOM, "auto", path)):
        with pytest.raises(UserError) as raised:
            call(path)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def digest_of(directory, suffix, columns=ROWS, name="mine"):
    return rows_digest(load_rows(CUSTOM, "auto", str(write(directory / f"{name}.{suffix}", columns))))


def test_the_digest_is_of_the_rows_not_of_their_file(tmp_path):
    assert len({digest_of(tmp_path / suffix, suffix) for suffix in ("parquet", "jsonl", "json", "csv")}) == 1
    assert digest_of(tmp_path, "jsonl", name="elsewhere") == digest_of(tmp_path, "csv")
    numbers = {"input": ["one", "two"], "target": [1, 2]}
    assert digest_of(tmp_path / "numbers", "jsonl", numbers) == digest_of(tmp_path, "csv")
    assert rows_digest({"train": ROWS}) == rows_digest({"train": dict(reversed(ROWS.items()))})


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"input": ["one", "two"], "target": ["1", "3"]}},
        {"train": {"input": ["two", "one"], "target": ["2", "1"]}},
        {"train": {"input": ["one", "two", "three"], "target": ["1", "2", "3"]}},
        {"train": {"input": ["onet", "wo"], "target": ["1", "2"]}},
        {"train": {"input": ["one", "two"], "label": ["1", "2"]}},
        {"train": {"input": ["one", "two"], "target": ["1", None]}},
        {"train": {"input": ["one", "two"], "target": ["1", ""]}},
        {"train": {**ROWS, "note": [None, None]}},
        {"test": ROWS},
        {"train": ROWS, "test": ROWS},
        {"train": ROWS, "test": {}},
    ],
)
def test_any_change_of_the_rows_changes_the_digest(changed):
    assert rows_digest(changed) != rows_digest({"train": ROWS})


def test_values_that_no_template_can_use_are_part_of_the_digest_too():
    nested = {"train": {**ROWS, "tags": [["a", "b"], {"x": 1, "y": None}]}}
    assert rows_digest(nested) == rows_digest({"train": {**ROWS, "tags": [["a", "b"], {"y": None, "x": 1}]}})
    assert rows_digest(nested) != rows_digest({"train": {**ROWS, "tags": [["a"], {"x": 1, "y": None}]}})
    assert rows_digest({"train": {"input": ["half \ud800", b"\xff"], "target": [1.5, True]}})


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match="data.source is 'web'; expected one of auto, hub, local, tfds, sample"):
        load_rows(CUSTOM, "web", None)


# Columns and splits as the hub's repositories have them. GLUE's test labels are secret; the SAMSum copy is CSV, in
# which the one empty dialogue of the training rows is None.
HUB = {
    "agnews": {
        "train": {"text": ["Oil rises", "Goal"], "label": [2, 1]},
        "test": {"text": ["Vote"], "label": [0]},
    },
    "cola": {
        "train": {"sentence": ["He ran.", "Him ran."], "label": [1, 0], "idx": [0, 1]},
        "validation": {"sentence": ["She ran.", "Her ran."], "label": [1, 0], "idx": [0, 1]},
        "test": {"sentence": ["They ran."], "label": [-1], "idx": [0]},
    },
    "e2e": {
        split: {"meaning_representation": ["name[Giraffe]"], "human_reference": [f"Giraffe, {split}."]}
        for split in ("train", "validation", "test")
    },
    "samsum": {
        split: {"id": ["1", "2"], "dialogue": ["A: hi", None], "summary": [split, "x"]}
        for split in ("train", "validation", "test")
    },
}
ASKED = {
    "agnews": ("fancyzhx/ag_news", None, None),
    "cola": ("nyu-mll/glue", "cola", None),
    "e2e": ("tuetschek/e2e_nlg", None, "refs/convert/parquet"),
    "samsum": ("knkarthick/samsum", None, None),
}


@pytest.fixture
def hub(monkeypatch):
    """A fake of the hub; returns the calls that it received."""
    calls = []

    def load_dataset(path, name=None, *, revision=None):
        calls.append((path, name, revision))
        task = next(task for task, asked in ASKED.items() if asked[0] == path)
        return datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in HUB[task].items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "why_unreachable", lambda: None)
    return calls


@pytest.mark.parametrize("source", ["hub", "auto"])
@pytest.mark.parametrize("task", ASKED)
def test_the_hub_is_asked_for_the_tasks_repository_configuration_and_revision(hub, task, source):
    splits = load_rows(TASKS[task], source, None)
    assert hub == [ASKED[task]]
    for split, columns in splits.items():
        made = examples(TASKS[task], split, columns, range(len(columns[TASKS[task].target])))
        assert all(example.target for example in made)
    assert len(splits["train"][TASKS[task].target]) == len(HUB[task]["train"][TASKS[task].target])


def test_a_test_split_with_secret_labels_is_left_out(hub):
    assert set(load_rows(TASKS["cola"], "hub", None)) == {"train", "validation"}
    assert set(load_rows(TASKS["agnews"], "hub", None)) == {"train", "test"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("secret", [-1, -1.0])
def test_secret_labels_of_files_are_left_out_in_every_format_and_that_is_told_once(tmp_path, suffix, secret):
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [secret, secret])):
        write(tmp_path / f"{split}.{suffix}", {"sentence": ["He ran.", "Him ran."], "label": labels})
    lines = []
    assert set(load_rows(TASKS["cola"], "local", str(tmp_path), report=lines.append)) == {"train", "validation"}
    assert lines == ["the test split is left out: each of its labels is -1, which stands for one that is kept secret"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_training_rows_are_never_left_out_as_secret(tmp_path, suffix):
    path = write(tmp_path / f"train.{suffix}", {"sentence": ["He ran.", "Him ran."], "label": [-1, -1]})
    rows = load_rows(TASKS["cola"], "local", str(path))["train"]
    with pytest.raises(UserError, match="row train/0 has the unknown label .*-1"):
        examples(TASKS["cola"], "train", rows, [0])


def test_an_empty_dialogue_of_the_hub_is_empty_text(hub):
    assert load_rows(TASKS["samsum"], "hub", None)["train"]["dialogue"] == ["A: hi", ""]


def test_an_unreachable_hub_is_one_line_that_names_the_local_route(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'fancyzhx/ag_news' on the Hub\nand a page more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(sources, "why_unreachable", lambda: None)
    with pytest.raises(RunFailed) as raised:
        load_rows(TASKS["agnews"], "hub", None)
    message = str(raised.value)
    assert "cannot be reached for fancyzhx/ag_news (Couldn't reach" in message
    assert "--config.data.path" in message and "ag_news/train.parquet" in message
    assert "--config.data.source=sample" in message
    assert "\n" not in message


def test_without_a_network_the_real_library_looks_in_its_cache_alone_and_at_once(monkeypatch, capfd, tmp_path):
    """With requests allowed, the library retries five times, with two warnings each."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(sources, "why_unreachable", lambda: "Name or service not known")
    started = time.monotonic()
    with pytest.raises(RunFailed) as raised:
        load_rows(TASKS["agnews"], "hub", None)
    assert "fancyzhx/ag_news (Name or service not known); without a network, give" in str(raised.value)
    assert time.monotonic() - started < 5 and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("source", ["hub", "tfds"])
def test_rows_of_ones_own_are_on_no_hub(source):
    with pytest.raises(UserError, match="'custom' .*give --config.data.path"):
        load_rows(CUSTOM, source, None)


def _text(value):
    return value.encode()


# As `as_data_source` gives them: bytes and NumPy integers.
TFDS = {
    "ag_news_subset": {
        "train": [{"title": _text("Oil"), "description": _text("It rises."), "label": np.int64(2)}],
        "test": [{"title": _text("Vote"), "description": _text("They vote."), "label": np.int64(0)}],
    },
    "glue/cola": {
        "train": [{"sentence": _text("He ran."), "label": np.int64(1), "idx": np.int32(0)}],
        "validation": [{"sentence": _text("Him ran."), "label": np.int64(0), "idx": np.int32(0)}],
        "test": [{"sentence": _text("They ran."), "label": np.int64(-1), "idx": np.int32(0)}],
    },
    "e2e_cleaned": {
        split: [{"input_text": _text("name[Giraffe]"), "target_text": _text("Giraffe é.")}]
        for split in ("train", "validation", "test")
    },
    "samsum": {
        split: [{"id": _text("1"), "dialogue": _text("A: hi"), "summary": _text("A greets.")}]
        for split in ("train", "validation", "test")
    },
}


@pytest.fixture
def tfds(monkeypatch):
    """A fake of TensorFlow Datasets."""

    class Builder:
        def __init__(self, name):
            self.name = name
            self.prepared = False
            self.info = types.SimpleNamespace(splits=dict.fromkeys(TFDS[name]))

        def download_and_prepare(self):
            self.prepared = True

        def as_data_source(self, split):
            assert self.prepared
            return TFDS[self.name][split]

    module = types.SimpleNamespace(builder=Builder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


@pytest.mark.parametrize(
    ("task", "splits", "first"),
    [
        ("agnews", {"train", "test"}, {"text": ["Oil It rises."], "label": [2]}),
        ("cola", {"train", "validation"}, {"sentence": ["He ran."], "label": [1]}),
        (
            "e2e_cleaned",
            {"train", "validation", "test"},
            {"meaning_representation": ["name[Giraffe]"], "human_reference": ["Giraffe é."]},
        ),
        ("samsum", {"train", "validation", "test"}, {"dialogue": ["A: hi"], "summary": ["A greets."]}),
    ],
)
def test_tensorflow_datasets_gives_the_same_columns_as_the_hub(tfds, task, splits, first):
    rows = load_rows(TASKS[task], "tfds", None)
    assert set(rows) == splits
    assert rows["train"] == first


def test_the_cleaned_e2e_has_a_name_of_its_own(tfds):
    with pytest.raises(UserError, match="another dataset than the paper's: name it, --config.data.task=e2e_cleaned"):
        load_rows(TASKS["e2e"], "tfds", None)
    assert TASKS["e2e_cleaned"].same_input == TASKS["e2e"].same_input
    with pytest.raises(UserError, match="'e2e_cleaned' has no place on the hub"):
        load_rows(TASKS["e2e_cleaned"], "hub", None)


def test_a_template_column_that_tensorflow_datasets_lacks_is_named(tfds):
    task = TASKS["samsum"].with_template("{dialogue} {mood}")
    with pytest.raises(UserError, match="lack the column 'mood'; there are: dialogue, summary"):
        examples(task, "train", load_rows(task, "tfds", None)["train"], [0])


def test_tensorflow_datasets_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jpeft\[tfds\]'"):
        load_rows(TASKS["cola"], "tfds", None)


def test_tensorflow_datasets_that_can_not_download_is_one_line(tfds, monkeypatch):
    def fail(self):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(tfds.builder, "download_and_prepare", fail)
    with pytest.raises(RunFailed, match=r"cannot provide glue/cola \(no route to host\); give --config.data.path"):
        load_rows(TASKS["cola"], "tfds", None)
