"""A run's data as a whole, from rows on disk to shapes."""

import json

import numpy as np
import pytest

from jpeft.data.batches import fitting_shape, train_order
from jpeft.data.prepare import choose_task, prepare
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from tests.conftest import TOPICS


@pytest.fixture
def prepared(tiny_tokenizer):
    """`prepare` with a run's defaults; gives the data and the lines that were reported."""

    def call(task, path, *, kind=None, train=None, **options):
        lines = []
        data = prepare(
            choose_task(task, kind=kind),
            Tokenizer.load(tiny_tokenizer, vocab_size=320),
            source="auto",
            path=str(path),
            kind=kind,
            max_train=train,
            max_validation=2500,
            max_test=2500,
            report=lines.append,
            **{"split_seed": 0, "batch_size": 4, "accumulation_steps": 2, "eval_batch_size": 8, **options},
        )
        return data, lines

    return call


def write(path, rows):
    path.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in rows))
    return path


def test_a_users_few_repeated_targets_are_taken_for_classes_and_the_user_is_told(prepared, toy_jsonl):
    data, lines = prepared("custom", toy_jsonl)
    assert data.task.kind == "classification"
    assert data.task.answers == tuple(sorted(TOPICS))
    assert data.task.metric == "accuracy"
    assert lines == ["the targets have 4 different texts: taken as classes (data.kind=generation if not)"]
    assert [len(data.examples[split]) for split in ("train", "validation", "test")] == [72, 9, 9]


def test_the_kind_that_a_user_gives_holds(prepared, toy_jsonl):
    data, lines = prepared("custom", toy_jsonl, kind="generation")
    assert (data.task.kind, data.task.answers, data.task.metric, lines) == ("generation", (), "rouge_l", [])


def test_targets_that_hardly_repeat_are_texts_unless_the_user_says_classes(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f"answer {i // 2}") for i in range(40)])
    data, lines = prepared("custom", path)
    assert (data.task.kind, lines) == ("generation", [])
    data, lines = prepared("custom", path, kind="classification")
    assert data.task.kind == "classification"
    assert len(data.task.answers) == 20


def test_labels_that_are_numbers_stay_the_numbers_that_they_are(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", i % 3 + 1) for i in range(60)])
    data, _ = prepared("custom", path)
    assert data.task.answers == ("1", "2", "3")
    for rows in data.examples.values():
        for example in rows:
            assert int(example.target) == int(example.input.removeprefix("goal ")) % 3 + 1


def test_a_label_of_the_test_file_that_never_trains_is_an_error(prepared, tmp_path):
    write(tmp_path / "train.jsonl", [(f"goal {i}", "ab"[i % 2]) for i in range(40)])
    write(tmp_path / "test.jsonl", [("goal", "c")])
    with pytest.raises(UserError, match="row test/0 has the unknown label 'c'; known: a, b"):
        prepared("custom", tmp_path)


def test_what_is_cut_is_reported_by_split(prepared, tmp_path):
    rows = [("goal season goal season goal season", "coach goal coach")] * 2 + [
        ("goal", f"season {i}") for i in range(3)
    ]
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", rows if split == "train" else rows[2:])
    data, lines = prepared("custom", tmp_path, kind="generation", max_input_length=4, max_target_length=20)
    assert lines == ["train: 2 of 5 inputs cut to 4 tokens, 0 targets to 20"]
    assert max(len(ids) for ids in data.tokens["train"].inputs) == 4
    assert prepared("custom", tmp_path, kind="generation")[1] == []


def test_an_empty_target_is_named_by_its_row(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [("goal", "")] * 40)
    with pytest.raises(UserError, match=r"row train/\d+ has an empty target"):
        prepared("custom", path)


@pytest.mark.parametrize(
    ("task", "sizes"),
    [("agnews", (40, 12, 24)), ("cola", (40, 15, 16)), ("e2e", (40, 20, 24)), ("samsum", (40, 20, 18))],
)
def test_a_benchmark_task_has_its_splits_and_the_rows_they_came_from(prepared, toy_data, task, sizes):
    data, lines = prepared(task, toy_data, train=40)
    assert tuple(len(data.tokens[split]) for split in ("train", "validation", "test")) == sizes
    assert tuple(len(ids) for ids in data.row_ids().values()) == sizes
    assert data.task.name == task
    ids = [row for split in data.row_ids().values() for row in split]
    assert len(set(ids)) == len(ids)


def test_another_split_seed_draws_other_rows(prepared, toy_data):
    base, _ = prepared("agnews", toy_data, train=40)
    assert prepared("agnews", toy_data, train=40, split_seed=5)[0].row_ids() != base.row_ids()


def test_the_shapes_hold_every_batch_of_every_epoch(prepared, toy_data):
    data, _ = prepared("agnews", toy_data)
    lengths = {split: tokens.lengths() for split, tokens in data.tokens.items()}
    for epoch in range(5):
        for step in train_order(lengths["train"], batch_size=4, accumulation_steps=2, seed=0, epoch=epoch):
            for rows in step:
                fitting_shape(data.shapes, lengths["train"][rows])
    fitting_shape(data.shapes, np.concatenate(list(lengths.values())))


def test_the_last_shape_holds_test_rows_that_are_longer_than_any_that_trains(prepared, tmp_path):
    for split, words in [("train", 1), ("validation", 1), ("test", 20)]:
        write(tmp_path / f"{split}.jsonl", [("goal " * words, f"coach {i} " * words) for i in range(6)])
    data, _ = prepared("custom", tmp_path, kind="generation")
    longest = data.tokens["test"].lengths().max(axis=0)
    assert (data.tokens["train"].lengths().max(axis=0) < longest).all()
    assert fitting_shape(data.shapes, longest[None]) == data.shapes[-1]
