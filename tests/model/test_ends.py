"""The tokens with which answers begin and end, from every file of a checkpoint that names some."""

import json
import shutil

import pytest
import tokenizers

import jpeft
from jpeft.errors import UserError
from jpeft.model.ends import settings_passed_over
from jpeft.model.family import family_in, save_model
from jpeft.model.tokenizer import VOCABULARIES
from jpeft.serve import start
from tests.decoders import LLAMA, random_decoder


@pytest.fixture
def llama(tmp_path, tiny_tokenizer):
    """A Llama without an end token in config.json; its tokenizer's settings name token 5."""
    directory = tmp_path / "llama"
    directory.mkdir()
    save_model(random_decoder(LLAMA), directory)
    for file in tiny_tokenizer.iterdir():
        shutil.copy(file, directory)
    config = json.loads((directory / "config.json").read_text())
    write(directory / "config.json", {**config, "eos_token_id": None})
    return directory


def write(file, values):
    file.write_text(json.dumps(values))


def settings(directory, **values):
    file = directory / "tokenizer_config.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    write(file, {**before, **values})


def text_of(directory, number: int) -> str:
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).id_to_token(number)


def ends(directory):
    return family_in(directory).read_config(directory).ends


def test_a_decoder_without_an_end_has_its_tokenizers(llama):
    settings(llama, eos_token=text_of(llama, 5))
    assert ends(llama) == (5,)
    model, tokenizer = jpeft.load(llama)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 5
    settings(llama, eos_token=None)
    with pytest.raises(UserError, match="names no eos_token of the vocabulary"):
        jpeft.load(llama)
    for name in VOCABULARIES:
        (llama / name).unlink(missing_ok=True)
    assert ends(llama) == (0,), "a directory without a tokenizer, of which only logits are asked"


@pytest.mark.parametrize(
    ("own", "generation", "right"),
    [(7, [9, 7], (7, 9)), (7, [9, 8], (9, 8)), (None, 4, (4,)), (7, None, (7,)), (7, [], (7,)), (7, 7, (7,))],
)
def test_generation_stops_where_its_own_config_says(own, generation, right, llama):
    config = json.loads((llama / "config.json").read_text())
    write(llama / "config.json", {**config, "eos_token_id": own})
    write(llama / "generation_config.json", {"eos_token_id": generation})
    assert ends(llama) == right


@pytest.mark.parametrize(
    ("generation", "says"),
    [
        ({"repetition_penalty": 1.2, "bad_words_ids": [[9]]}, "repetition_penalty=1.2, bad_words_ids=[[9]]"),
        ({"suppress_tokens": [1, 2], "forced_bos_token_id": 0}, "forced_bos_token_id=0, suppress_tokens=[1, 2]"),
        ({"repetition_penalty": 1.0, "min_length": 0, "suppress_tokens": [], "num_beams": 1, "do_sample": True}, None),
        (None, None),
    ],
)
def test_settings_that_transformers_alone_generates_by_are_named(generation, says, tmp_path):
    if generation is not None:
        write(tmp_path / "generation_config.json", generation)
    said = settings_passed_over(tmp_path)
    assert said is None if says is None else f"asks for {says}, which jpeft does not take from it" in str(said)


def test_who_answers_by_a_base_is_told_once_what_of_its_files_is_passed_over(tiny_checkpoint, tmp_path):
    base, adapters, lines = shutil.copytree(tiny_checkpoint, tmp_path / "base"), tmp_path / "none", []
    write(base / "generation_config.json", {"num_beams": 4})
    write(base / "added_tokens.json", {"<sep>": 319})
    adapters.mkdir()
    with pytest.warns(UserWarning) as warned:
        jpeft.load(base)
    with pytest.raises(UserError, match="holds no adapter to make room for"):
        choices = start.Choices(str(base), adapters, "float32", base_names=(), capacity=1, room=())
        start.start(choices, start.ShapeFlags(), say=lines.append)
    for said in ("\n".join(str(each.message) for each in warned), "\n".join(lines)):
        assert said.count("asks for num_beams=4, which") == said.count("tokens that it lacks ('<sep>'), which") == 1


def test_a_t5_stops_there_too_and_begins_as_in_training(tiny_checkpoint, tmp_path):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "t5")
    write(directory / "generation_config.json", {"eos_token_id": [1, 9], "decoder_start_token_id": 0})
    assert ends(directory) == (1, 9)
    write(directory / "generation_config.json", {"decoder_start_token_id": 5})
    with pytest.raises(UserError, match="decoder_start_token_id is 5, and 0 in config.json"):
        ends(directory)
    config = json.loads((directory / "config.json").read_text())
    write(directory / "config.json", {**config, "decoder_start_token_id": None})
    assert family_in(directory).read_config(directory).decoder_start_token_id == 5
    write(directory / "generation_config.json", {"decoder_start_token_id": [5]})
    with pytest.raises(UserError, match=r"decoder_start_token_id is \[5\]; expected an integer"):
        ends(directory)
    write(directory / "generation_config.json", {})
    family = family_in(directory)
    config = family.read_config(directory)
    assert config.decoder_start_token_id == config.pad_token_id == 0
    (note,) = family.notes(directory, family.tokenizer(directory, config))
    assert "no file has decoder_start_token_id, with which answers begin; taken is the padding, 0" in note
    (directory / "generation_config.json").write_text("[")
    with pytest.raises(UserError, match="generation_config.json"):
        ends(directory)
