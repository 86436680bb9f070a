"""Preparing the data of a run, from files to padded shapes."""

import collections
import json
import re

import numpy as np
import pytest
import tokenizers

from jpeft.data.batches import fitting_shape, train_order
from jpeft.data.prepare import DataRequest, choose_task, prepare
from jpeft.data.tasks import Task
from jpeft.errors import UserError
from jpeft.eval.answering import as_labels
from jpeft.model.source import PACKAGED
from jpeft.model.tokenizer import Tokenizer
from tests.conftest import TOPICS
from tests.model.gguf_files import byte_level, write_chat_tokenizer

DRAWN = "validation and test rows are drawn from the train split"  # said of a single file


@pytest.fixture
def prepared(tiny_tokenizer):
    """Calls `prepare` with a run's defaults; returns the data and the reported lines."""

    def call(task, path, *, kind=None, train=None, keys=None, tokenizer=None, **options):
        lines = []
        request = DataRequest(
            source="auto",
            path=str(path),
            kind=kind,
            max_train=train,
            max_validation=2500,
            max_test=2500,
            **{"split_seed": 0, "batch_size": 4, "accumulation_steps": 2, "eval_batch_size": 8, **options},
        )
        data = prepare(
            choose_task(task, kind=kind, **(keys or {})),
            tokenizer or Tokenizer.load(tiny_tokenizer, vocab_size=320),
            request,
            report=lines.append,
        )
        return data, lines

    return call


def write(path, rows):
    path.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in rows))
    return path


def test_a_class_that_no_test_row_has_is_named(prepared, tmp_path):
    """As found: one rare row of 60 was trained on, and nothing told that its class is never tested."""
    for split, labels in (("train", ["often"] * 20 + ["rare"]), ("validation", ["often"] * 9), ("test", ["often"] * 9)):
        write(tmp_path / f"{split}.jsonl", [(f"text {split} {i}", label) for i, label in enumerate(labels)])
    lines = prepared("custom", tmp_path)[1]
    assert "no test row has 'rare': the test says nothing of it" in lines


def test_a_users_few_repeated_targets_are_taken_for_classes_and_the_user_is_told(prepared, toy_jsonl):
    data, lines = prepared("custom", toy_jsonl)
    assert data.task.kind == "classification"
    assert data.task.answers == tuple(sorted(TOPICS))
    assert data.task.metric == "accuracy"
    assert lines[0] == (
        "targets are taken as classes: 4 different ones in 90 rows (data.kind=generation takes them as text)"
    )
    assert lines[1].startswith("4 classes, of 72 training rows: ")
    counted = dict(part.rsplit(" ", 1) for part in lines[1].partition(": ")[2].split(", "))
    assert {label: int(n) for label, n in counted.items()} == collections.Counter(
        row.target for row in data.examples["train"]
    )
    assert lines[2:] == [DRAWN]
    assert [len(data.examples[split]) for split in ("train", "validation", "test")] == [72, 9, 9]


def test_the_kind_that_a_user_gives_holds(prepared, toy_jsonl):
    data, lines = prepared("custom", toy_jsonl, kind="generation")
    assert (data.task.kind, data.task.answers, data.task.metric) == ("generation", (), "rouge_l")
    assert lines == [DRAWN]


def test_targets_that_hardly_repeat_are_texts_unless_the_user_says_classes(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f"answer {i // 2}") for i in range(40)])
    data, lines = prepared("custom", path)
    assert data.task.kind == "generation"
    assert lines[0] == (
        "targets are taken as text, judged by ROUGE-L: 20 different ones in 40 rows, too many for so few rows "
        "(data.kind=classification takes them as classes)"
    )
    data, lines = prepared("custom", path, kind="classification")
    assert data.task.kind == "classification"
    assert len(data.task.answers) == 20


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([(f"goal {i}", f"{i % 20}" + "x" * 6000) for i in range(80)], {"options": "list"}, "listed in it, has 120,1"),
        ([(f"goal {i}", f"class {i % 10_001}") for i in range(20_002)], {}, "10,001 labels; expected 10,000 at most"),
        ([(f"goal {i}", f"{i % 2}" + "x" * 100_000) for i in range(40)], {}, "100,001 characters; expected 100,000"),
    ],
)
def test_a_task_that_no_adapter_could_answer_again_is_refused_before_training(prepared, tmp_path, rows, options, says):
    path = write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(UserError, match=says):
        prepared("custom", path, kind="classification", **options)


def test_labels_that_are_numbers_stay_the_numbers_that_they_are(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", i % 3 + 1) for i in range(60)])
    data, _ = prepared("custom", path, options="none")
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
    rows = [(f"goal season goal season goal {w}", "coach goal coach") for w in ("bank", "chip")] + [
        (word, f"season {word}") for word in ("goal", "final", "coach")
    ]
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", rows if split == "train" else [(f"{i} {split[0]}", t) for i, t in rows[2:]])
    data, lines = prepared("custom", tmp_path, kind="generation", max_input_length=12, max_target_length=20)
    assert lines == ["inputs cut to 12 tokens: 2 of 5 train (at their ends; data.max_input_length)"]
    assert max(len(ids) for ids in data.tokens["train"].inputs) == 12
    assert prepared("custom", tmp_path, kind="generation")[1] == []


def test_an_empty_target_is_named_by_its_row(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", "") for i in range(40)])
    with pytest.raises(UserError, match=r"row train/\d+ has an empty target"):
        prepared("custom", path)


def test_a_column_without_a_value_is_told_as_that_and_not_as_too_few_rows(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(None, "ab"[i % 2]) for i in range(40)])
    with pytest.raises(UserError, match="row train/0 has no 'input'; fill it in"):
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


def test_numbers_are_labels_of_their_own_and_never_places_in_a_list(prepared, tmp_path):
    write(tmp_path / "train.jsonl", [(f"goal {i}", (0, 1, 2, 4)[i % 4]) for i in range(40)])
    write(tmp_path / "test.jsonl", [("goal", 3)])
    with pytest.raises(UserError, match="row test/0 has the unknown label 3; known: 0, 1, 2, 4"):
        prepared("custom", tmp_path)


def test_labels_of_a_benchmark_task_that_count_from_1_are_refused_before_rows_are_drawn(prepared, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join(f"goal {i},{1 + i % 4}\n" for i in range(40)))
    with pytest.raises(UserError, match="the labels of train count from 1, up to 4"):
        prepared("agnews", tmp_path, train=2)


def test_white_space_around_a_label_is_no_part_of_it_and_that_is_said_once(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", (" bad", "bad\t", "good ")[i % 3]) for i in range(60)])
    data, lines = prepared("custom", path)
    assert data.task.answers == ("bad", "good")
    assert {row.target for rows in data.examples.values() for row in rows} == {"bad", "good"}
    assert [line for line in lines if "white space" in line] == [
        "60 of 60 targets have white space at an end, such as ' bad': it is ignored"
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [(f"goal {i}", ("Pos", "pos", "neg")[i % 3]) for i in range(60)],
            "'Pos', 'pos' differ by case or white space",
        ),
        ([(f"goal {i}", f"class {i % 30}") for i in range(300)], "text, judged by ROUGE-L: 30 different ones in 300"),
        ([(f"goal {i % 7}", f"text {i}") for i in range(40)], "5 training inputs have more than one target, such as"),
        ([(f"goal {i % 9}", f"text {i % 9}") for i in range(30)], "training rows repeat another one"),
        ([(f"goal </s> {i}", f"text {i}") for i in range(40)], "rows that spell a special token: 32 of 32 train"),
    ],
)
def test_what_a_user_should_know_of_the_rows_is_said(prepared, tmp_path, rows, said):
    _, lines = prepared("custom", write(tmp_path / "mine.jsonl", rows), kind=None)
    assert [line for line in lines if said in line]
    assert len(set(lines)) == len(lines)


def test_thirty_classes_are_counted_where_the_user_says_classes(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f"class {i % 30}") for i in range(300)])
    data, lines = prepared("custom", path, kind="classification")
    assert len(data.task.answers) == 30
    assert lines[0] == "30 different targets in 300 rows are classes, as data.kind says"
    assert lines[1].startswith("30 classes, of 240 training rows: class ")


@pytest.fixture(scope="module")
def poor_tokenizer(tmp_path_factory):
    """A vocabulary of lower-case letters that normalises white space, as T5's does, and lacks braces."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *'abcdefghijklmnopqrstuvwxyz:"0123456789']
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 2))
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    )
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    directory = tmp_path_factory.mktemp("poor")
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.load(directory)


def labelled(path, *labels):
    return write(path / "mine.jsonl", [(f"goal {i}", labels[i % len(labels)]) for i in range(60)])


def test_characters_that_the_vocabulary_lacks_are_counted_with_an_example(prepared, tmp_path, poor_tokenizer):
    path = labelled(tmp_path, '{"a": "pos"}', '{"a": "neg"}')
    data, lines = prepared("custom", path, tokenizer=poor_tokenizer, options="none")
    lost = [line for line in lines if "does not have" in line]
    assert len(lost) == 1
    assert lost[0].startswith(
        "targets with characters that this vocabulary does not have: 48 of 48 train, 6 of 6 validation, 6 of 6 test "
        "(such as '{', '}' in train/"
    )
    assert any('cannot write 2 of the labels as they are: \'{"a": "neg"}\' as \'"a": "neg"\'' in line for line in lines)
    label = data.task.answers[0]
    assert as_labels(poor_tokenizer.round_trip([label]), data.task.answers, poor_tokenizer) == [label]


def test_characters_that_a_vocabulary_leaves_out_without_a_token_are_counted_too(prepared, tmp_path):
    letters = [" ", *"abcdefghijklmnopqrstuvwxyz:?,.ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"]
    model = tokenizers.models.BPE({"</s>": 0, **{letter: i + 1 for i, letter in enumerate(letters)}}, [])
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    poor = Tokenizer.load(tmp_path, eos_token_id=0)
    _, lines = prepared("custom", labelled(tmp_path, "très bon", "mauvais"), tokenizer=poor, options="none")
    lost = [line for line in lines if "does not have" in line]
    assert len(lost) == 1 and "targets" in lost[0] and "such as 'è' in train/" in lost[0]


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (
            ("😀", "😡"),
            "'😀' and '😡' are the same tokens to this model, whose vocabulary does not have '😡'; rename one",
        ),
        (("very bad", "very  bad", "ok"), "'very  bad' and 'very bad' are the same tokens to this model; rename one"),
        (("😀", "ok"), "the label '😀' is empty to this model, whose vocabulary does not have '😀'; rename it"),
        (("ab" * 9 + "c", "ab" * 9 + "d"), "are the same in their first 8 tokens; set data.max_target_length to 21 or"),
    ],
)
def test_labels_that_the_model_can_not_tell_apart_are_refused(prepared, tmp_path, poor_tokenizer, labels, why):
    with pytest.raises(UserError, match=re.escape(why)):
        prepared("custom", labelled(tmp_path, *labels), tokenizer=poor_tokenizer, max_target_length=8)


def test_an_answer_is_the_label_that_the_vocabulary_folds_it_to(poor_tokenizer):
    labels = ("very\ngood", "very  bad", "ﬁne")
    answers = ["very good", "very bad", "fine", "very  bad", "good", ""]
    assert as_labels(answers, labels, poor_tokenizer) == [*labels, "very  bad", "good", ""]
    assert as_labels(answers, (), poor_tokenizer) == answers


def test_columns_are_called_as_the_user_says(prepared, tmp_path):
    path = tmp_path / "tickets.jsonl"
    rows = [{"id": i, "Review Text": f"goal {i}", "category": "ab"[i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for keys in ({"input": "Review Text"}, {"template": "{Review Text}"}):
        data, _ = prepared("custom", path, keys={"target": "category", **keys}, options="none")
        row = data.examples["train"][0]
        assert row.input == f"goal {row.id.removeprefix('train/')}"
        assert data.task.answers == ("a", "b")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, "lack the column 'input'; there are: text, a, category. Name the text's column with --config.data.input"),
        ({"input": "text"}, "lack the column 'target'.* Name the answers' column with --config.data.target=COLUMN"),
        ({"template": "{a.b}", "target": "category"}, "'a.b'.* A template names whole columns: {a}"),
    ],
)
def test_a_missing_column_is_named_with_the_flag_that_mends_it(prepared, tmp_path, keys, why):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "goal", "a": "x", "category": "b"}) + "\n")
    with pytest.raises(UserError, match=why):
        prepared("custom", path, keys=keys)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"input": "a", "template": "{a}"}, "data.input and data.template both"),
        ({"input": "target"}, "data.input and data.target are both 'target'"),
        ({"input": ""}, "'' cannot stand in a template"),
        ({"input": "a{b"}, "'a{b' cannot stand in a template; rename the column"),
    ],
)
def test_column_keys_that_exclude_each_other_are_refused(keys, why):
    with pytest.raises(UserError, match=why):
        choose_task("custom", **keys)
    with pytest.raises(UserError, match="data.target names a column of your own rows, of data.task=custom"):
        choose_task("agnews", target="label")


def test_the_prompt_lists_the_labels_where_they_are_wanted_and_not_there_already(prepared, tmp_path):
    path = labelled(tmp_path, "good {1}", "bad")
    asking = {"template": "{input}\nWhich?"}
    data, lines = prepared("custom", path, keys=asking)
    row = data.examples["train"][0]
    assert row.input.endswith("\nWhich?\n\nOPTIONS:\n- bad\n- good {1}")
    assert "the prompt ends in a list of the labels (data.options=none leaves them out)" in lines
    assert row.input == prepared("custom", path, keys=asking, options="list")[0].examples["train"][0].input
    assert "OPTIONS" not in prepared("custom", path, keys=asking, options="none")[0].task.template
    assert "OPTIONS" not in prepared("custom", path)[0].task.template  # with nothing asked a list does not help
    assert "OPTIONS" in prepared("custom", path, options="list")[0].task.template
    named = {"template": "{input} bad or good {{1}}?"}
    data, lines = prepared("custom", path, keys=named)
    assert "OPTIONS" not in data.task.template and any("the template names every label" in line for line in lines)
    data, lines = prepared("custom", path, keys=asking, max_input_length=36)
    assert "OPTIONS" not in data.task.template
    assert any("too long to be listed in the prompt" in line for line in lines)
    assert "OPTIONS" in prepared("custom", path, keys=asking, max_input_length=70, options="list")[0].task.template


def test_splits_without_a_file_of_their_own_are_said(prepared, tmp_path):
    rows = [(f"goal {i}", f"season {i}") for i in range(40)]
    _, lines = prepared("custom", write(tmp_path / "mine.jsonl", rows), kind="generation")
    assert DRAWN in lines
    (tmp_path / "both").mkdir()
    for split, of_split in (("train", rows[:30]), ("validation", rows[30:])):
        write(tmp_path / f"both/{split}.jsonl", of_split)
    _, lines = prepared("custom", tmp_path / "both", kind="generation")
    assert [line for line in lines if "drawn from" in line] == ["test rows are drawn from the validation split"]
    write(tmp_path / "both/test.jsonl", [("goal 50", "season 50")])
    assert not [line for line in prepared("custom", tmp_path / "both", kind="generation")[1] if "drawn from" in line]


def test_a_backslash_and_an_n_are_no_line_break_and_said(prepared, tmp_path):
    path = labelled(tmp_path, "good", "bad")
    data, lines = prepared("custom", path, keys={"template": r"Review: {input}\nIt is"})
    assert r"\nIt is" in data.examples["train"][0].input
    assert any(
        line.startswith(r"the template has the two characters \n in it, which stay as they are") for line in lines
    )
    assert not any("two characters" in line for line in prepared("custom", path, keys={"template": "{input}\nIs?"})[1])


@pytest.mark.parametrize(
    ("labels", "template", "named"),
    [
        (("no", "yes"), "Do you know if yesterday {input}?", False),
        (("0", "1"), "Rate 10 texts: {input}?", False),
        (("no", "yes"), "Answer yes/no: {input}", True),
        (("好", "坏"), "这是好还是坏？{input}", True),
        (("-1", "1"), "-1 or 1: {input}", True),
        (("a", "b"), "a{input}b", True),
    ],
)
def test_labels_are_named_by_whole_words(labels, template, named):
    assert Task("custom", "classification", template, "target", answers=labels).names_answers is named


def test_a_label_that_would_be_a_special_token_is_not_listed(prepared, tmp_path):
    path = labelled(tmp_path, "<extra_id_0>", "pos")
    asking = {"keys": {"template": "{input}\nWhich?"}, "tokenizer": Tokenizer.load(PACKAGED / "mini")}
    data, lines = prepared("custom", path, **asking)
    assert "OPTIONS" not in data.task.template
    assert any("not listed in the prompt, where '<extra_id_0>' would be a special token" in line for line in lines)
    with pytest.raises(UserError, match="data.options=list: '<extra_id_0>' would be a special token"):
        prepared("custom", path, **asking, options="list")


def test_no_row_is_tested_whose_twin_trained_and_a_leak_of_given_files_is_said(prepared, tmp_path):
    rows = [(f"goal {i // 3}", f"season {i}") for i in range(90)]  # each input three times
    data, lines = prepared("custom", write(tmp_path / "mine.jsonl", rows), kind="generation")
    asked = {split: {example.input for example in part} for split, part in data.examples.items()}
    assert not asked["train"] & (asked["validation"] | asked["test"]) and not asked["validation"] & asked["test"]
    assert not [line for line in lines if "of a row that trains" in line]
    write(tmp_path / "train.jsonl", rows[:60])
    write(tmp_path / "test.jsonl", rows[57:67])
    (tmp_path / "mine.jsonl").rename(tmp_path / "mine.txt")
    _, lines = prepared("custom", tmp_path, kind="generation")
    assert [line for line in lines if line.startswith(("3 of 10 test rows have the input", "not read of"))] == lines[:2]


def test_each_class_is_in_each_split_in_its_share(prepared, tmp_path):
    rows = [(f"goal {i}", "bank" if i % 10 == 0 else "coach" if i % 10 < 4 else "season") for i in range(200)]
    data, _ = prepared("custom", write(tmp_path / "mine.jsonl", rows))
    found = {split: collections.Counter(example.target for example in part) for split, part in data.examples.items()}
    assert found["validation"] == found["test"] == {"bank": 2, "coach": 6, "season": 12}


def split_files(directory, **labels):
    """Writes a file per split with labels in JSON's types; no input is in two of them."""
    for split, given in labels.items():
        write(directory / f"{split}.jsonl", [(f"goal {split} {i}", label) for i, label in enumerate(given)])
    return directory


def test_a_test_file_labelled_minus_one_throughout_is_a_users_own_and_is_not_passed_over(prepared, tmp_path):
    split_files(tmp_path, train=[-1, 0, 1] * 20, test=[-1] * 40)
    data, _ = prepared("custom", tmp_path)
    assert {row.target for row in data.examples["test"]} == {"-1"}
    assert all(row.id.startswith("test/") for row in data.examples["test"])
    split_files(tmp_path, train=[0, 1] * 30)
    with pytest.raises(UserError, match=r"row test/\d+ has the unknown label -1; known: 0, 1\."):
        prepared("custom", tmp_path)


@pytest.mark.parametrize(
    ("known", "met", "shown", "near"),
    [
        (1.0, 1, "1", "'1.0'"),
        (True, "true", "'true'", "'True'"),
        ("caf\u00e9", "cafe\u0301", r"'cafe\\u0301'", r"'caf\\xe9'"),
        ("pos", "pos\u200b", r"'pos\\u200b'", "'pos'"),
        ("Pos", "pos", "'pos'", "'Pos'"),
    ],
)
def test_an_unknown_label_that_is_another_way_of_writing_a_known_one_says_so(
    prepared, tmp_path, known, met, shown, near
):
    split_files(tmp_path, train=[known, "other"] * 20, test=[met, "other"])
    with pytest.raises(UserError, match=rf"unknown label {shown}; known: .* It is spelt differently from {near}; if"):
        prepared("custom", tmp_path)


@pytest.mark.parametrize("labels", [[1, 1.0, "2"], ["\uff41bc", "abc", "d"], ["a b", "a\u00a0b", "d"]])
def test_labels_that_only_a_machine_tells_apart_are_named(prepared, tmp_path, labels):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", labels[i % 3]) for i in range(60)])
    one, other = (repr(text) for text in sorted(map(str, labels[:2])))
    said = []
    try:
        _, said = prepared("custom", path)
    except UserError as error:  # equal as tokens, too
        said = [str(error)]
    assert any(one in line and other in line and "the same" in line or "differ by" in line for line in said)


@pytest.mark.parametrize("empty", ["", "  ", "\u00a0\n"])
def test_an_empty_label_is_no_unknown_one(prepared, tmp_path, empty):
    split_files(tmp_path, train=["a", "b"] * 20, test=["a", empty])
    with pytest.raises(UserError, match=r"row test/1 has an empty 'target'; fill it in or remove the row"):
        prepared("custom", tmp_path)


def test_a_label_longer_than_an_answer_may_be_is_said_with_the_length_that_would_do(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", ("a coach" if i % 2 else "goal ") * 9) for i in range(40)])
    _, lines = prepared("custom", path, max_target_length=8)
    [said] = [line for line in lines if "cannot be answered in 8 tokens" in line]
    assert (
        said.startswith("2 labels cannot be answered")
        and "generated, it is never right; data.max_target_length=" in said
    )
    longest = int(re.search(r"max_target_length=(\d+)", said)[1])
    assert not any("cannot be answered" in line for line in prepared("custom", path, max_target_length=longest)[1])
    _, lines = prepared("custom", path, max_target_length=longest - 1)
    assert any(line.startswith("1 label cannot be answered") for line in lines)


def test_a_class_of_its_own_and_missing_values_are_no_classes(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", ["None", "null", "nan"][i % 3]) for i in range(60)])
    assert prepared("custom", path)[0].task.answers == ("None", "nan", "null")
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", "one") for i in range(60)])
    _, lines = prepared("custom", path)
    assert "every row has the same label: there is nothing to tell apart" in lines


def test_rows_without_text_and_prompts_that_show_the_answer_are_said(prepared, tmp_path):
    path = write(tmp_path / "mine.jsonl", [(" " if i == 3 else f"goal {i}", "ab"[i % 2]) for i in range(40)])
    _, lines = prepared("custom", path, keys={"template": "Q: { input } ({target})"})
    assert "inputs without text: 1 of 32 train (as train/3)" not in lines  # here the answer is text
    assert "the prompt shows the column of the answers, 'target': the metric will mean nothing" in lines
    _, lines = prepared("custom", path, keys={"template": "Q: { input }"})
    assert any(re.fullmatch(r"inputs without text: 1 of \d+ \w+ \(as train/3\)", line) for line in lines)
    path = write(tmp_path / "mine.jsonl", [("\u200b" if i == 3 else f"goal {i}", "ab"[i % 2]) for i in range(40)])
    _, lines = prepared("custom", path, keys={"template": "Q: { input }"})
    assert any(line.startswith("inputs without text: 1 of") for line in lines)


def test_targets_that_the_vocabulary_writes_otherwise_are_said_where_they_are_judged(prepared, tmp_path):
    """The tokenizer normalises a superscript 2 and two spaces, so no answer can equal a text with them."""
    tokenizer = Tokenizer.load(PACKAGED / "mini")
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f"the team has won²  by {i} goals") for i in range(40)])
    _, lines = prepared("custom", path, tokenizer=tokenizer)
    (said,) = (line for line in lines if line.startswith("targets that this vocabulary writes otherwise"))
    assert re.search(r"otherwise: (\d+) of \1 validation, (\d+) of \2 test \(such as train/\d+, ", said)
    assert "'am has won²  by" in said and "as 'am has won2 by" in said and "accuracy, BLEU and chrF" in said
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f" the team has won by {i} goals ") for i in range(40)])
    assert not any("writes otherwise" in line for line in prepared("custom", path, tokenizer=tokenizer)[1])
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", "goal\n" + " team" * i) for i in range(40)])
    _, lines = prepared("custom", path)  # a vocabulary without line breaks
    assert any(line.startswith("targets with characters that this vocabulary does not have") for line in lines)
    assert not any("writes otherwise" in line for line in lines)  # said once, by what is lost


def test_targets_with_a_token_at_which_the_model_stops_are_said_as_that(prepared, tmp_path):
    write_chat_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    line_break = byte_level().token_to_id("\u010a")
    ends = {"eos_token_id": 2, "other_ends": (line_break,)}
    tokenizer = Tokenizer.load(tmp_path, vocab_size=320, continues=True, **ends)
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f"ship {i}\ntech {i % 7}") for i in range(40)])
    _, lines = prepared("custom", path, tokenizer=tokenizer)
    (said,) = (line for line in lines if line.startswith("targets with a token at which the model stops"))
    assert re.search(
        r": (\d+) of \1 train, (\d+) of \2 validation, (\d+) of \3 test \(such as train/\d+: of 'ship", said
    )
    assert re.search(r"an answer gives 'ship \d+' and ends; take the token out of eos_token_id", said)
    assert not any("writes otherwise" in line for line in lines)
    path = write(tmp_path / "mine.jsonl", [(f"goal {i}", f"ship {i} tech {i % 7}") for i in range(40)])
    assert not any("the model stops" in line for line in prepared("custom", path, tokenizer=tokenizer)[1])


def test_one_column_cannot_be_the_text_and_its_answer(prepared, tmp_path):
    with pytest.raises(UserError, match=r"data.target is 'input', which is what the prompt is made of"):
        prepared("custom", tmp_path, keys={"target": "input"})
    with pytest.raises(UserError, match=r"data.target is ' ', which cannot be a column's name"):
        prepared("custom", tmp_path, keys={"target": " "})


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("Input,Target", r"It is written 'Input' there, not 'input'\..*--config.data.input=COLUMN"),
        ("input\u200b,target", r"It is written 'input\\u200b' there, not 'input'"),
    ],
)
def test_a_column_under_another_spelling_is_named_as_it_stands_there(prepared, tmp_path, header, said):
    path = tmp_path / "mine.csv"
    path.write_text(header + "\n" + "".join(f"goal {i},{'ab'[i % 2]}\n" for i in range(40)), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        prepared("custom", path)


def test_rows_under_a_key_beside_others_are_found(prepared, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"input": "a", "target": "b"}]}))
    with pytest.raises(UserError, match="The row's 'data' is a list of objects: if they are the rows, save that"):
        prepared("custom", path)


def test_test_rows_that_are_a_training_row_to_the_model_are_counted(prepared, tmp_path, poor_tokenizer):
    write(tmp_path / "train.jsonl", [(f"good {'abcdefgh'[i // 8]}{'abcdefgh'[i % 8]}", "ab"[i % 2]) for i in range(64)])
    write(tmp_path / "validation.jsonl", [("fine", "a"), ("fine a", "b")])
    write(tmp_path / "test.jsonl", [("good {ab}", "a"), ("good ab", "a"), ("good zz", "b"), ("bad zz", "b")])
    _, lines = prepared("custom", tmp_path, tokenizer=poor_tokenizer)
    note = "(only what is cut off, or what this vocabulary does not tell apart, differs: what is measured flatters)"
    same = [line for line in lines if "the same tokens" in line]
    assert any(line.startswith("1 of 4 test rows have the input of a row that trains") for line in lines)
    assert same == []  # a brace is an unknown token here, and seen
    _, lines = prepared("custom", tmp_path, tokenizer=poor_tokenizer, max_input_length=3)
    [same] = [line for line in lines if "the same tokens" in line]
    assert same.startswith("inputs that are the same tokens as a training row's: ") and same.endswith(note)
    assert int(re.search(r"(\d) of 4 test", same)[1]) >= 1  # "good zz" has lost its end
