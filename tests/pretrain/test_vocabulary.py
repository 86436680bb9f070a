"""The vocabulary trained on a corpus: T5's special ids, line breaks kept, no unknown tokens."""

import json
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.vocabulary import train_vocabulary

TEXTS = [
    f"{who} wrote to {whom}.\n{whom}: When will the {what} be ready, {who}?\n{who}: On day {day}, I hope."
    for day, who in enumerate("Anna Boris Clara David Emil".split())
    for whom in "Fritz Greta Hans Ida".split()
    for what in "house bridge letter garden soup machine".split()
]
SIZE = 420


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(TEXTS, SIZE, directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer.load(directory)


def test_special_ids_are_t5s(tokenizer):
    backend = tokenizer._backend
    assert [backend.token_to_id(piece) for piece in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizer.vocab_size == SIZE
    assert tokenizer.sentinels == list(range(SIZE - 1, SIZE - 101, -1))


def test_transformers_users_get_the_end_of_a_text_too(directory):
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode("Anna wrote to Ida.").ids
    assert ids[-1] == 1 and 1 not in ids[:-1]
    assert Tokenizer.load(directory).encode(["Anna wrote to Ida."], max_length=50).ids == [ids]


def test_a_dialogue_keeps_its_turns(tokenizer):
    text = "Anna: Is the soup ready?\r\n\r\nBoris: On day 3."
    assert tokenizer.decode(tokenizer.ids([text])) == ["Anna: Is the soup ready?\nBoris: On day 3."]


# Characters that every version of Unicode normalises alike.
@given(
    st.text(st.characters(codec="latin-1", exclude_categories=["C", "Z"]) | st.sampled_from("日本語😀Жש"), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_no_text_is_unknown(tokenizer, text):
    import unicodedata

    (ids,) = tokenizer.ids([text])
    assert 2 not in ids and max(ids) < SIZE - 100
    assert tokenizer.decode([ids])[0].split() == unicodedata.normalize("NFKC", text).split()


def test_words_of_the_corpus_are_few_pieces(tokenizer):
    assert len(tokenizer.ids(["Anna wrote to Fritz."])[0]) < 10
    assert len(tokenizer.ids(["Xqkj vbwpt zz Lhfgx."])[0]) > 14


def test_transformers_opens_it_and_agrees(directory, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    assert [theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id] == [0, 1, 2]
    for text in [*TEXTS[:5], "It was\n\nnaïve"]:  # <extra_id_0> in a row is plain text
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.ids([text])[0]
    assert json.loads((directory / "tokenizer_config.json").read_text())["extra_ids"] == 100


@pytest.mark.parametrize("size", [30_000, 440])
def test_more_pieces_than_the_text_has_names_the_number_that_works(size, tmp_path):
    with pytest.raises(UserError, match=rf"tokenizer.size is {size:,}, and this corpus gives \d+ pieces") as refused:
        train_vocabulary(TEXTS, size, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    most = named(refused)
    assert train_vocabulary(TEXTS, most, tmp_path / "yes") == most
    assert Tokenizer.load(tmp_path / "yes").vocab_size == most


@pytest.mark.parametrize("size", [1, 101, 370])
def test_fewer_pieces_than_the_text_needs_names_the_number_that_works(size, tmp_path):
    with pytest.raises(UserError, match=rf"tokenizer.size is {size}, and the characters") as refused:
        train_vocabulary(TEXTS, size, tmp_path)
    assert train_vocabulary(TEXTS, named(refused), tmp_path) == named(refused)


def named(refused) -> int:
    assert "\n" not in str(refused.value)
    return int(re.search(r"--config\.tokenizer\.size=(\d+)", str(refused.value))[1])  # type: ignore[index]


@pytest.mark.parametrize("texts", [TEXTS, ["a"], ["Наука 日本 😀"], TEXTS[:2]])
def test_without_a_size_the_vocabulary_follows_the_text(texts, tmp_path):
    made = train_vocabulary(texts, None, tmp_path)
    assert 356 < made < 1000 and Tokenizer.load(tmp_path).vocab_size == made


@pytest.mark.parametrize("texts", [[], [""], [" \n ", "\t"]])
def test_a_corpus_without_text_is_one_line(texts, tmp_path):
    with pytest.raises(UserError, match="the corpus holds no text"):
        train_vocabulary(texts, None, tmp_path)
