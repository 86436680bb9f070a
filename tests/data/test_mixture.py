"""Mixing several files by rate: the rows of an epoch and their order."""

import json
from typing import Any

import numpy as np
import pytest

from jpeft.data.batches import train_order
from jpeft.data.mixture import Mix, names_of, paths_of, rates_of
from jpeft.data.prepare import DataRequest, choose_task, prepare
from jpeft.data.sources import require_path
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from tests.padded import padded

MIX = Mix.of(("a", "b"), (6, 30), "2,1")


def test_an_epoch_has_as_many_rows_as_all_files_shared_out_by_rate():
    assert MIX.quotas == (24, 12) and sum(MIX.quotas) == 36
    assert Mix.of("ab", (6, 30), "proportional").quotas == (6, 30)
    assert Mix.of("abc", (4, 3, 3), "equal").quotas == (4, 3, 3)  # 10 / 3 each: the first of equal remainders
    assert MIX.in_words() == "an epoch mixes a 24 (4 times its 6 rows), b 12 (0.4 times its 30 rows)"


def test_every_file_goes_through_all_of_its_rows_before_any_comes_again():
    epochs = [MIX.order(seed=3, epoch=epoch) for epoch in range(5)]
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=36)
        assert counts[:6].tolist() == [4] * 6 and counts[6:].sum() == 12 and counts[6:].max() <= 2
    # 2.5 epochs of 12 rows are b's 30: those of the first two and half of the third are all different.
    assert len({*epochs[0][epochs[0] >= 6], *epochs[1][epochs[1] >= 6]}) == 24
    assert (np.bincount(np.concatenate(epochs), minlength=36)[6:] == 2).all()


def test_the_order_is_a_function_of_seed_and_epoch_and_differs_with_both():
    order = lambda seed, epoch: MIX.order(seed=seed, epoch=epoch).tolist()
    assert order(1, 4) == order(1, 4)
    assert order(1, 4) != order(1, 5) and order(1, 4) != order(2, 4)
    assert order(1, 4) != sorted(order(1, 4))  # files are shuffled among each other
    proportional = Mix.of(("a", "b"), (6, 30), "proportional")
    assert sorted(proportional.order(seed=0, epoch=7)) == list(range(36))


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ("1", "has 1 rates and data.path 2 files"),
        ("1,x", "expected proportional, equal, or a rate"),
        ("1,0", "expected rates above 0"),
        ("1,inf", "expected rates above 0"),
        ("1,1e-9", "b gives no row of the 36"),
        ("1e308,1e-308", "b gives no row of the 36"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(mix, says):
    with pytest.raises(UserError, match=says):
        Mix.of(("a", "b"), (6, 30), mix)


def test_paths_and_their_names():
    assert paths_of("a,b.csv", None) == ("a,b.csv",) and names_of(("a,b.csv",)) == ("",)
    assert paths_of(" a.csv, b.csv", "1,3") == ("a.csv", "b.csv")
    assert names_of(("x/a.csv", "y/a.csv", "b.csv")) == ("x/a.csv", "y/a.csv", "b.csv")
    with pytest.raises(UserError, match="data.mix mixes several files and data.path is 'a.csv'"):
        paths_of("a.csv", "equal")
    with pytest.raises(UserError, match="twice"):
        names_of(("x/a.csv", "x/a.csv"))
    assert rates_of("3,1", [1, 1]) == [0.75, 0.25]


def test_rates_of_any_size_are_shared_out(prepared):
    assert rates_of("1e308,1e308", [1, 1]) == [0.5, 0.5]
    assert Mix.of("ab", (6, 30), "1e308,0.5e308").quotas == (24, 12)
    assert Mix.of("ab", (6, 30), "2e-320,1e-320").quotas == (24, 12)
    data, _ = prepared(mix="1e308,1e308")
    mix = data.tokens["train"].mix
    assert mix is not None and len(mix.order(seed=0, epoch=0)) == 48


def test_a_file_with_too_few_rows_is_named(prepared, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"input": "alone", "target": "good"}\n')
    with pytest.raises(UserError, match=r"^one\.jsonl: the \w+ split is empty \("):
        prepared(path=f"{tmp_path}/one.jsonl,{tmp_path}/many.jsonl")


def test_white_space_around_the_column_of_weights_is_no_part_of_its_name(prepared):
    data, said = prepared(mix="proportional", weight=" w ")
    assert set(data.tokens["train"].weights.tolist()) == {1, 4}
    assert any("weighted by the column 'w'" in line for line in said)


def test_test_rows_that_validate_are_told(prepared, tmp_path):
    for part in ("train", "validation", "test"):
        start = "train" if part == "train" else "held out"
        rows = [{"input": f"{start} {i}", "target": "good" if i % 2 else "bad"} for i in range(20)]
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, said = prepared(path=str(tmp_path / "own"), mix=None)
    assert any(line.startswith("20 of 20 test rows have the input of a row that validates") for line in said)


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer):
    """Prepares two files of 40 and 20 rows with other keys."""

    def rows(name, number, **more):
        made = [{"input": f"{name} {i}", "target": "good" if i % 4 else "bad", **more} for i in range(number)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))
        return str(tmp_path / name)

    paths = ",".join([rows("few.jsonl", 20, w=4), rows("many.jsonl", 40, w=1)])
    tokenizer = Tokenizer.load(tiny_tokenizer)

    def of(**choices):
        said = []
        choices: dict[str, Any] = {
            "path": paths,
            "mix": "1,1",
            "kind": None,
            "split_seed": 0,
            "source": "auto",
            **choices,
        }
        caps: dict[str, Any] = {"max_train": None, "max_validation": None, "max_test": None}
        sizes: dict[str, Any] = {"batch_size": 4, "accumulation_steps": 1, "eval_batch_size": 4}
        request = DataRequest(**choices, **caps, **sizes)
        return prepare(choose_task("custom", kind=request.kind), tokenizer, request, report=said.append), said

    return of


def test_each_file_is_split_as_if_it_were_the_only_one(prepared, tmp_path):
    data, said = prepared()
    alone, _ = prepared(path=str(tmp_path / "few.jsonl"), mix=None)
    for part, ids in data.row_ids().items():
        of_few = [id.removeprefix("few.jsonl:") for id in ids if id.startswith("few.jsonl:")]
        assert of_few == alone.row_ids()[part]
    sizes = {part: {name: len(rows) for name, rows in data.rows_by_source(part).items()} for part in data.sources}
    assert sizes == {
        "train": {"few.jsonl": 16, "many.jsonl": 32},
        "validation": {"few.jsonl": 2, "many.jsonl": 4},
        "test": {"few.jsonl": 2, "many.jsonl": 4},
    }
    assert alone.sources == {} and alone.tokens["train"].mix is None
    mix = data.tokens["train"].mix
    assert mix is not None and mix.quotas == (24, 24)
    assert any(line.startswith("an epoch mixes few.jsonl 24 (1.5 times its 16 rows)") for line in said)
    assert "test rows: few.jsonl 2, many.jsonl 4" in said
    lengths = data.tokens["train"].lengths()
    order = train_order(lengths, batch_size=4, accumulation_steps=2, seed=5, epoch=1, mix=mix)
    drawn = [row for step in order for micro_batch in step for row in micro_batch]
    assert sorted(drawn) == sorted(mix.order(seed=5, epoch=1)) and sum(row < 16 for row in drawn) == 24


def test_rows_weigh_what_their_class_and_column_say_in_the_training_batch_alone(prepared):
    data, said = prepared(mix="proportional", weight="w", class_weights="bad=6,good=2")
    expected = [(4 if e.id.startswith("few") else 1) * (3 if e.target == "bad" else 1) for e in data.examples["train"]]
    tokens = data.tokens["train"]
    assert tokens.weights is not None and tokens.weights.tolist() == expected
    assert "class weights of the training loss: bad 6, good 2" in said
    rows = [0, len(expected) - 1]
    batch = padded(tokens, rows, (64, 16), batch_size=3, start_token_id=0, pad_token_id=0)
    by_row = batch["decoder_loss_weights"]
    assert by_row.max(axis=1).tolist() == [expected[0], expected[-1], 0]
    assert (by_row > 0).sum(axis=1).tolist() == [len(tokens.targets[r]) for r in rows] + [0]
    assert data.tokens["validation"].weights is None and data.tokens["test"].weights is None


def test_balanced_classes_have_equal_weights_in_an_epoch_of_the_mix(prepared):
    data, said = prepared(mix="equal", class_weights="balanced")
    tokens, total = data.tokens["train"], {"good": 0.0, "bad": 0.0}
    assert tokens.weights is not None and tokens.mix is not None
    assert tokens.mix.times.tolist() == [1.5] * 16 + [0.75] * 32
    for example, weight, times in zip(data.examples["train"], tokens.weights, tokens.mix.times, strict=True):
        total[example.target] += weight * times
    assert total["good"] == pytest.approx(total["bad"])
    of_rows = {target: sum(e.target == target for e in data.examples["train"]) for target in total}
    assert of_rows["good"] != of_rows["bad"]  # otherwise nothing would have to be balanced


def test_files_that_are_listed_need_a_mix(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("input,target\n")
    with pytest.raises(UserError, match="lists 2 files; say how they are mixed, such as --config.data.mix"):
        require_path(f"{tmp_path}/a.csv, {tmp_path}/b.csv")


def test_class_weights_of_texts_are_refused(prepared):
    with pytest.raises(UserError, match="train.class_weights is for classes"):
        prepared(kind="generation", class_weights="balanced")
