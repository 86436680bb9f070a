"""Text to ids and back."""

import pytest
import tokenizers

from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return Tokenizer.load(tiny_tokenizer, vocab_size=320)


@pytest.fixture
def backend(tiny_tokenizer):
    return tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))


def test_ids_are_those_of_the_vocabulary_with_one_end_at_the_end(tokenizer, backend):
    texts = ["coach goal", "", "shares profit market"]
    encoded = tokenizer.encode(texts, max_length=50)
    assert encoded.ids == [[*backend.encode(text, add_special_tokens=False).ids, 1] for text in texts]
    assert encoded.num_cut == 0


def test_the_end_is_the_models_own(tiny_tokenizer):
    tokenizer = Tokenizer.load(tiny_tokenizer, vocab_size=320, eos_token_id=2)
    assert tokenizer.encode([""], max_length=5).ids == [[2]]


def test_what_is_too_long_is_cut_before_its_end_and_counted(tokenizer):
    [whole] = tokenizer.encode(["coach goal season"], max_length=50).ids
    exact = tokenizer.encode(["coach goal season", "a"], max_length=len(whole))
    assert (exact.ids[0], exact.num_cut) == (whole, 0)
    cut = tokenizer.encode(["coach goal season", "a"], max_length=len(whole) - 1)
    assert cut.ids[0] == [*whole[: len(whole) - 2], 1]
    assert cut.num_cut == 1


def test_decoding_gives_the_text_without_ends_and_padding(tokenizer):
    texts = ["Ann and Bob have lunch.", "", "coach"]
    rows = [[0, *ids, 0, 0] for ids in tokenizer.encode(texts, max_length=50).ids]
    assert tokenizer.decode(rows) == texts


def test_the_same_vocabulary_has_the_same_fingerprint_wherever_it_lies(tokenizer, tiny_tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    moved = Tokenizer.load(tmp_path, vocab_size=320)
    assert moved.fingerprint == tokenizer.fingerprint
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"</s>"', '"</e>"'))
    assert Tokenizer.load(tmp_path, vocab_size=320).fingerprint != tokenizer.fingerprint


def test_saving_into_its_own_directory_changes_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    Tokenizer.load(tmp_path, vocab_size=320).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_padding_and_cutting_that_a_tokenizer_file_asks_for_are_not_done(backend, tmp_path):
    backend.enable_padding(length=30)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    long, short = Tokenizer.load(tmp_path, vocab_size=320).encode(["coach goal season", ""], max_length=50).ids
    assert len(long) > 4
    assert short == [1]


def test_a_directory_without_a_tokenizer_is_named_with_what_it_should_hold(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer; expected tokenizer.json or spiece.model beside config.json"):
        Tokenizer.load(tmp_path, vocab_size=320)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_damaged_tokenizer_is_one_line_that_names_the_file(tmp_path, tiny_tokenizer, name):
    whole = (tiny_tokenizer / "tokenizer.json").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name} can not be read as a tokenizer \(.*\); copy it again") as raised:
        Tokenizer.load(tmp_path, vocab_size=320)
    assert "\n" not in str(raised.value)


def test_more_pieces_than_embeddings_is_an_error_with_both_numbers(tiny_tokenizer, backend):
    pieces = backend.get_vocab_size()
    assert Tokenizer.load(tiny_tokenizer, vocab_size=pieces).encode([""], max_length=2).ids == [[1]]
    with pytest.raises(UserError, match=f"the tokenizer has {pieces} pieces and the model {pieces - 1} embeddings"):
        Tokenizer.load(tiny_tokenizer, vocab_size=pieces - 1)
