"""Tokenisation and batching: padding, cutting, and that each row trains once per epoch."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jpeft.data import batches
from jpeft.data.batches import (
    Tokens,
    choose_shapes,
    eval_order,
    fitting_shape,
    longest_of,
    num_steps,
    require_text,
    tokenize,
    train_order,
)
from jpeft.data.tasks import Example
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from tests.padded import padded

LENGTHS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=60).map(np.array)


def tokens_of(*pairs):
    inputs, targets = zip(*pairs, strict=True)
    return Tokens([np.array(i, np.int32) for i in inputs], [np.array(t, np.int32) for t in targets], 0, 0)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return Tokenizer.load(tiny_tokenizer, vocab_size=320)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def make_examples(*pairs):
    return [Example(f"train/{i}", text, target, (target,)) for i, (text, target) in enumerate(pairs)]


def test_a_batch_is_padded_its_targets_shifted_right_and_its_padding_without_weight():
    tokens = tokens_of(([5, 6, 1], [8, 1]), ([7, 1], [9, 10, 1]), ([4, 1], [3, 1]))
    batch = padded(tokens, [1, 0], (4, 4), batch_size=3, start_token_id=2, pad_token_id=0)
    expected = {
        "encoder_input_tokens": [[7, 1, 0, 0], [5, 6, 1, 0], [0, 0, 0, 0]],
        "decoder_input_tokens": [[2, 9, 10, 1], [2, 8, 1, 0], [2, 0, 0, 0]],
        "decoder_target_tokens": [[9, 10, 1, 0], [8, 1, 0, 0], [0, 0, 0, 0]],
        "decoder_loss_weights": [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
    }
    assert {name: array.tolist() for name, array in batch.items()} == expected
    assert {str(array.dtype) for array in batch.values()} == {"int32", "float32"}


def test_another_padding_id_pads():
    batch = padded(tokens_of(([5, 1], [8, 1])), [0], (3, 4), batch_size=1, start_token_id=9, pad_token_id=7)
    assert batch["encoder_input_tokens"].tolist() == [[5, 1, 7]]
    assert batch["decoder_input_tokens"].tolist() == [[9, 8, 1, 7]]
    assert batch["decoder_target_tokens"].tolist() == [[8, 1, 7, 7]]


@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 8),
    accumulation_steps=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 20),
)
def test_every_row_trains_exactly_once_an_epoch(lengths, batch_size, accumulation_steps, seed, epoch):
    sizes = {"batch_size": batch_size, "accumulation_steps": accumulation_steps}
    steps = list(train_order(lengths, **sizes, seed=seed, epoch=epoch))
    assert sorted(row for step in steps for micro in step for row in micro) == list(range(len(lengths)))
    assert len(steps) == num_steps(len(lengths), **sizes)
    assert all(1 <= len(micro) <= batch_size for step in steps for micro in step)
    assert all(sum(map(len, step)) == batch_size * accumulation_steps for step in steps[:-1])
    assert list(train_order(lengths, **sizes, seed=seed, epoch=epoch)) == steps


def test_another_epoch_or_seed_has_another_order():
    lengths = np.full((100, 2), 5)

    def order(seed, epoch):
        steps = train_order(lengths, batch_size=4, accumulation_steps=2, seed=seed, epoch=epoch)
        return [row for step in steps for micro in step for row in micro]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert orders[0] != sorted(orders[0])


def test_rows_of_a_step_are_grouped_by_length():
    lengths = np.array([(90, 4), (10, 4), (80, 4), (12, 4)])
    [step] = train_order(lengths, batch_size=2, accumulation_steps=2, seed=0, epoch=0)
    assert step == [[1, 3], [2, 0]]


@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
def test_evaluation_sees_every_row_once_the_longest_inputs_first(lengths, batch_size):
    order = eval_order(lengths, batch_size=batch_size)
    flat = [row for rows in order for row in rows]
    assert sorted(flat) == list(range(len(lengths)))
    assert lengths[flat, 0].tolist() == sorted(lengths[:, 0].tolist(), reverse=True)
    assert all(len(rows) <= batch_size for rows in order)


def test_a_batch_is_as_long_as_its_longest_input_and_its_longest_target():
    lengths = np.array([(3, 9), (7, 2), (5, 5)])
    assert longest_of(lengths, [[0, 1], [2]]).tolist() == [[7, 9], [5, 5]]


@given(lengths=LENGTHS, max_shapes=st.integers(1, 8))
def test_shapes_hold_every_batch_and_are_no_more_than_allowed(lengths, max_shapes):
    shapes = choose_shapes(lengths, max_shapes=max_shapes)
    assert 1 <= len(shapes) <= max_shapes
    for longest in lengths:
        enc_len, dec_len = fitting_shape(shapes, longest[None])
        assert enc_len >= longest[0] and dec_len >= longest[1]
    assert shapes == sorted(set(shapes))
    assert all(a[1] <= b[1] for a, b in zip(shapes, shapes[1:], strict=False))
    assert all(enc_len % 16 == 0 and dec_len % 4 == 0 for enc_len, dec_len in shapes)
    # No larger than the longest batch asks for.
    assert shapes[-1][0] < lengths[:, 0].max() + 16
    assert shapes[-1][1] < lengths[:, 1].max() + 4


def test_a_further_shape_is_taken_where_it_saves_and_not_where_it_does_not():
    short_and_long = np.array([(16, 4)] * 50 + [(256, 8)] * 50)
    assert choose_shapes(short_and_long) == [(16, 4), (256, 8)]
    alike = np.array([(240, 4)] * 50 + [(256, 8)] * 50)
    assert choose_shapes(alike) == [(256, 8)]


def test_the_smallest_shape_that_holds_the_rows_is_taken():
    shapes = [(16, 4), (32, 8), (64, 8)]
    assert fitting_shape(shapes, np.array([(16, 4), (3, 1)])) == (16, 4)
    assert fitting_shape(shapes, np.array([(17, 4)])) == (32, 8)
    assert fitting_shape(shapes, np.array([(3, 5)])) == (32, 8)
    assert fitting_shape(shapes, np.array([(40, 1), (1, 8)])) == (64, 8)


def test_tokens_are_those_of_the_tokenizer_and_what_is_cut_is_counted(tokenizer, cache):
    pairs = [("coach goal season", "World"), ("shares", "Sports Business profit")]
    inputs, targets = (tokenizer.encode(texts, max_length=100).ids for texts in zip(*pairs, strict=True))
    longest_input, longest_target = max(map(len, inputs)), max(map(len, targets))
    tokens = tokenize(
        make_examples(*pairs), tokenizer, max_input_length=longest_input, max_target_length=longest_target - 1
    )
    assert [ids.tolist() for ids in tokens.inputs] == inputs
    assert [ids.tolist() for ids in tokens.targets] == [targets[0], [*targets[1][:-2], 1]]
    assert (tokens.cut_inputs, tokens.cut_targets) == (0, 1)
    assert tokens.lengths()[:, 0].tolist() == [len(ids) for ids in inputs]
    assert tokens.lengths()[:, 1].tolist() == [len(targets[0]), longest_target - 1]


def as_lists(tokens):
    ids = [[row.tolist() for row in part] for part in (tokens.inputs, tokens.targets)]
    return [*ids, tokens.cut_inputs, tokens.cut_targets]


def test_the_same_texts_are_tokenised_once(tokenizer, cache, monkeypatch):
    rows = make_examples(("coach goal season", "World"), ("shares", "Sports Business profit"))
    first = tokenize(rows, tokenizer, max_input_length=3, max_target_length=9)
    monkeypatch.setattr(Tokenizer, "encode", None)  # would fail if it were called
    assert as_lists(tokenize(rows, tokenizer, max_input_length=3, max_target_length=9)) == as_lists(first)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["input", "target", "length", "vocabulary"])
def test_other_texts_lengths_or_vocabularies_are_tokenised_anew(tokenizer, cache, change):
    tokenize(make_examples(("goal", "World")), tokenizer, max_input_length=9, max_target_length=9)
    text, target = ("coach" if change == "input" else "goal"), ("Sports" if change == "target" else "World")
    if change == "vocabulary":
        tokenizer.fingerprint = "another"
    max_input_length = 2 if change == "length" else 9
    tokenize(make_examples((text, target)), tokenizer, max_input_length=max_input_length, max_target_length=9)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("change", ["template", "fields", "end", "cutting"])
def test_another_template_column_end_or_way_to_cut_is_tokenised_anew(
    tokenizer, tiny_tokenizer, cache, monkeypatch, change
):
    def tokens(template="{a}{b}", fields=None, tokenizer=tokenizer):
        example = Example("train/0", "goalcoach", "World", ("World",), fields or {"a": "goal", "b": "coach"})
        tokenize([example], tokenizer, max_input_length=9, max_target_length=9, template=template)

    tokens()
    tokens()
    assert len(list(cache.iterdir())) == 1
    if change == "template":
        tokens("{a}{b}{a}")
    elif change == "fields":
        tokens(fields={"a": "goalcoach", "b": ""})
    elif change == "end":
        tokens(tokenizer=Tokenizer.load(tiny_tokenizer, eos_token_id=2))
    else:
        monkeypatch.setattr(batches, "CUTTING", "another way")
        tokens()
    assert len(list(cache.iterdir())) == 2


def test_a_cache_entry_of_other_rows_is_made_again(tokenizer, cache):
    rows = make_examples(("coach goal season", "World"), ("goal", "Sports"))
    first = tokenize(rows, tokenizer, max_input_length=9, max_target_length=9)
    [entry] = cache.iterdir()
    whole = entry.read_bytes()
    for stored in ({"inputs": np.zeros(3)}, {**load_file(entry), "input_lengths": np.array([1, 1])}):
        save_file(stored, entry)
        assert as_lists(tokenize(rows, tokenizer, max_input_length=9, max_target_length=9)) == as_lists(first)
        assert entry.read_bytes() == whole


@pytest.mark.parametrize("damage", [lambda data: data[:20], lambda data: b"", lambda data: b"x" * 100])
def test_a_damaged_cache_entry_is_made_again(tokenizer, cache, damage):
    rows = make_examples(("coach goal season", "World"))
    first = tokenize(rows, tokenizer, max_input_length=9, max_target_length=9)
    [entry] = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert as_lists(tokenize(rows, tokenizer, max_input_length=9, max_target_length=9)) == as_lists(first)
    assert entry.read_bytes() == whole


def test_an_empty_target_is_named_by_its_row():
    first = Example(id="train/4", input="", target="Sports", references=("Sports",))
    second = dataclasses.replace(first, id="train/9")
    tokens = tokens_of(([5, 1], [8, 1]), ([5, 1], [1]))
    with pytest.raises(UserError, match="row train/9 has an empty target; fill it in or remove the row"):
        require_text(tokens, [first, second])
    require_text(tokens_of(([1], [8, 1])), [first])  # an empty input may be meant
    unseen = dataclasses.replace(second, target=" \u200b\u2060")
    with pytest.raises(UserError, match="row train/9 has an empty target"):
        require_text(tokens_of(([5, 1], [8, 1])), [unseen])


def test_a_cache_that_can_not_be_written_is_done_without(tiny_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path / "file"))
    tokenizer = Tokenizer.load(tiny_tokenizer, vocab_size=320)
    example = Example(id="train/0", input="coach goal", target="Sports", references=("Sports",))
    assert len(tokenize([example], tokenizer, max_input_length=8, max_target_length=8)) == 1


def test_rows_of_tokens_are_padded_behind_and_below():
    found = batches.padded([np.array([3, 4]), [5], []], (4, 3), padding_id=9)
    assert found.dtype == np.int32
    assert found.tolist() == [[3, 4, 9], [5, 9, 9], [9, 9, 9], [9, 9, 9]]
