"""Tokenizers: text to ids and back."""

import json
import re
import shutil

import pytest
import tokenizers

from jpeft.errors import UserError
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.t5_config import T5Config
from jpeft.model.t5_family import T5_FAMILY
from jpeft.model.tokenizer import Tokenizer, tokenizer_files


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


def test_what_was_saved_has_every_file_of_the_tokenizer(tiny_tokenizer, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(tiny_tokenizer, before)
    after.mkdir()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (before / name).write_text("{}")
    Tokenizer.load(before).save(after)
    assert {path.name for path in tokenizer_files(after)} == {path.name for path in before.iterdir()}
    assert Tokenizer.load(after).is_same_as(Tokenizer.load(before))
    (after / "tokenizer_config.json").write_text('{"pad_token": "<unk>"}')
    assert not Tokenizer.load(after).is_same_as(Tokenizer.load(before))


def test_padding_and_cutting_that_a_tokenizer_file_asks_for_are_not_done(backend, tmp_path):
    backend.enable_padding(length=30)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    long, short = Tokenizer.load(tmp_path, vocab_size=320).encode(["coach goal season", ""], max_length=50).ids
    assert len(long) > 4
    assert short == [1]


def test_a_vocabulary_that_asks_for_dropout_gives_the_same_tokens_each_time(tmp_path):
    merges = [("a", "b"), ("ab", "ab")]
    model = tokenizers.models.BPE({"</s>": 0, "a": 1, "b": 2, "ab": 3, "abab": 4}, merges, dropout=0.5)
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path, eos_token_id=0).ids(["abab" * 9] * 9) == [[4] * 9] * 9


def test_a_directory_without_a_tokenizer_is_named_with_what_it_should_hold(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer; expected tokenizer.json or spiece.model beside config.json"):
        Tokenizer.load(tmp_path, vocab_size=320)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_damaged_tokenizer_is_one_line_that_names_the_file(tmp_path, tiny_tokenizer, name):
    whole = (tiny_tokenizer / "tokenizer.json").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name} cannot be read as a tokenizer \(.*\); copy it again") as raised:
        Tokenizer.load(tmp_path, vocab_size=320)
    assert "\n" not in str(raised.value)


def test_more_pieces_than_embeddings_is_an_error_with_both_numbers(tiny_tokenizer, backend):
    pieces = backend.get_vocab_size()
    assert Tokenizer.load(tiny_tokenizer, vocab_size=pieces).encode([""], max_length=2).ids == [[1]]
    with pytest.raises(UserError, match=f"the tokenizer has {pieces} pieces and the model {pieces - 1} embeddings"):
        Tokenizer.load(tiny_tokenizer, vocab_size=pieces - 1)


SPECIAL = ["</s>", "<pad>", "<unk>", "<extra_id_0>", "＜/s＞"]


@pytest.fixture(scope="module")
def with_added(tiny_tokenizer, tmp_path_factory):
    """The vocabulary with a sentinel and two added structural tokens."""
    backend = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.add_special_tokens(["<extra_id_0>", "<sep>"])
    backend.add_tokens(["[X]"])
    directory = tmp_path_factory.mktemp("added")
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.load(directory)


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("text", ["{}", "goal {} coach", "goal{}coach", "{}{}"])
def test_text_that_spells_a_special_token_is_text(with_added, name, text):
    text = text.replace("{}", name)
    [ids] = with_added.ids([text])
    assert not {0, 1, 2, *with_added.sentinels} & set(ids)
    assert with_added.decode([ids]) == [text.replace("＜/s＞", "</s>")]


def test_a_byte_piece_that_a_text_spells_is_text(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"<0x{i:02X}>", -1.0) for i in range(256))]
    pieces += [(character, -5.0) for character in "\u2581<>0x41"]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 2, byte_fallback=True))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace(), tokenizers.decoders.Fuse()]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    [literal, needed] = tokenizer.ids(["<0x41>", "A"])
    assert not set(literal) & set(range(3, 259))
    assert needed[-1] == 3 + 0x41
    assert tokenizer.decode([literal, needed]) == ["<0x41>", "A"]


def test_tokens_that_were_added_stay_tokens_in_texts_and_are_read_in_answers(with_added, tmp_path):
    [ids] = with_added.ids(["goal <sep> coach [X]"])
    assert {with_added._backend.token_to_id(name) for name in ("<sep>", "[X]")} <= set(ids)
    assert with_added.decode([[0, *ids, 1, 0, 0]]) == ["goal <sep> coach [X]"]
    assert "<extra_id_0>" not in with_added.decode([[*with_added.sentinels, *ids]])[0]
    assert "<extra_id_0>" in with_added.decode([[*with_added.sentinels, *ids]], keep_special=True)[0]


def test_tokens_are_known_by_all_that_makes_them(tiny_tokenizer, tmp_path, tokenizer):
    seen = {tokenizer.fingerprint, Tokenizer.load(tiny_tokenizer, eos_token_id=2).fingerprint}

    def change(backend, what):
        if what == "normalizer":
            backend.normalizer = tokenizers.normalizers.Lowercase()
        elif what == "post_processor":
            backend.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
        else:
            backend.add_tokens(["[X]"])

    for what in ("normalizer", "post_processor", "added"):
        backend = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
        change(backend, what)
        backend.save(str(tmp_path / "tokenizer.json"))
        seen.add(Tokenizer.load(tmp_path).fingerprint)
    assert len(seen) == 5


def damaged(path, described, **parts):
    path.write_text(json.dumps({**described, **parts}))
    return path.parent


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled_charsmap"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
                }
            },
            r"its rules can make 1e\+12 characters of one",
        ),
        ({"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 20_000}}, "its rules can make"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}, "added_tokens": []}, "unk_id"),
        ({"model": []}, "untagged enum"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a"}, "content": ""}}, "parenthes"),
    ],
)
def test_a_tokenizer_that_can_not_work_is_one_line_that_names_the_file(tmp_path, tiny_tokenizer, parts, reason, capfd):
    described = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    with pytest.raises(UserError, match=rf"tokenizer.json cannot be read as a tokenizer \(.*{reason}") as raised:
        Tokenizer.load(damaged(tmp_path / "tokenizer.json", described, **parts))
    assert "\n" not in str(raised.value)


def test_an_expression_that_gives_up_on_a_text_is_one_line(tmp_path, tiny_tokenizer, capfd):
    described = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.load(damaged(tmp_path / "tokenizer.json", described, pre_tokenizer=split))
    with pytest.raises(UserError, match=r"fails on a text \(.*retry-limit-in-match over\); it cannot be used"):
        tokenizer.ids(["a" * 40 + "b!"])


def test_a_text_that_is_none_is_not_put_down_to_the_tokenizer(tiny_tokenizer):
    tokenizer = Tokenizer.load(tiny_tokenizer)
    for use in (tokenizer.ids, tokenizer.token_starts, lambda texts: tokenizer.unknown_characters(texts[-1])):
        with pytest.raises(UserError, match=r"^'a\\ud83d' holds half of a surrogate pair; remove it\.$"):
            use(["a text", "a\ud83d"])


def test_an_id_beyond_the_embeddings_counts_though_the_pieces_are_few(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 900}, "<unk>"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="the tokenizer has 901 pieces and the model 320 embeddings"):
        Tokenizer.load(tmp_path, vocab_size=320)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"extra_ids": 100000000}'),
        ("tokenizer_config.json", json.dumps({"additional_special_tokens": [f"<x{i}>" for i in range(5000)]})),
        ("special_tokens_map.json", json.dumps({"additional_special_tokens": [f"<x{i}>" for i in range(5000)]})),
        ("added_tokens.json", json.dumps({f"<x{i}>": 32_100 + i for i in range(5000)})),
        ("added_tokens.json", "[" * 100_000),
        ("tokenizer_config.json", "[1]"),
    ],
)
def test_what_stands_beside_a_sentencepiece_model_is_looked_at_before_it_is_added(name, content, tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"no matter")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<sep>": 320, "</s>": 1}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"320": {"content": "<sep>"}, "1": {"content": "</s>"}}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<sep>", {"content": "</s>"}]}),
        ("special_tokens_map.json", {"additional_special_tokens": [{"content": "<sep>"}, "</s>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<sep>", "other": "</s>"}}),
    ],
)
def test_tokens_that_files_beside_tokenizer_json_add_are_named(name, content, tiny_tokenizer, tmp_path):
    shutil.copy(tiny_tokenizer / "tokenizer.json", tmp_path)
    assert Tokenizer.load(tmp_path).notes == []
    (tmp_path / name).write_text(json.dumps(content))
    [note] = Tokenizer.load(tmp_path).notes
    assert "files beside tokenizer.json add tokens that it lacks ('<sep>'), which are ordinary text here" in note


@pytest.mark.parametrize(("asked", "notes"), [(True, 1), (False, 0), (None, 0)])
def test_a_space_that_only_its_config_puts_in_front_is_named(asked, notes, backend, tmp_path):
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": asked}))
    found = Tokenizer.load(tmp_path).notes
    assert len(found) == notes and all(
        "add_prefix_space is true in tokenizer_config.json and false" in n for n in found
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_an_empty_vocabulary_is_one_line(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is empty"):
        Tokenizer.load(tmp_path)


@pytest.fixture(params=["tokenizer_config.json", "special_tokens_map.json", "config.json alone"])
def bert_like(request, tmp_path):
    """A WordPiece vocabulary with BERT's special tokens, which different files name."""
    words = ["[PAD]", "[SEP]", "[UNK]", "[MASK]", "<answer>", "good", "bad", "##ly", "hello"]
    ids = {word: id_ for id_, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[SEP]", "[UNK]", "<answer>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    roles = {"pad_token": "[PAD]", "eos_token": {"content": "[SEP]"}, "unk_token": "[UNK]", "mask_token": "[MASK]"}
    if request.param != "config.json alone":
        (tmp_path / request.param).write_text(json.dumps(roles))
    config = T5Config(vocab_size=16, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    return T5_FAMILY.tokenizer(tmp_path, config)


def test_special_tokens_are_known_by_id_and_role_whatever_they_are_called(bert_like):
    assert bert_like.decode([[5, 1, 0, 0], [4, 2, 1, 0]]) == ["good", "<answer>"]
    assert bert_like.decode([[5, 1, 0]], keep_special=True) == ["good [SEP] [PAD]"]
    assert bert_like.special_names("a [PAD] b [SEP] <answer>") == ["[PAD]", "[SEP]"]
    assert not {0, 1} & set(bert_like.ids(["hello [PAD] [SEP]"])[0])
    assert 4 in bert_like.ids(["hello <answer>"])[0]


def test_an_ordinary_token_that_pads_is_kept_in_texts(tmp_path):
    """As in vocabularies of GPT-2's kind, whose `!` has the id that some files name as the padding."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {"<e>": 0, **{letter: i + 1 for i, letter in enumerate(letters)}}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<e>", "pad_token": "!"}))
    tokenizer = DECODER_FAMILY.tokenizer(tmp_path, DecoderConfig(vocab_size=300, pad_token_id=ids["!"], eos_token_id=0))
    assert tokenizer.ids(["a!"]) == [[ids["a"], ids["!"]]]
    assert tokenizer.decode([[ids["!"], ids["a"], 0, -1, -1]]) == ["!a"]
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(
        UserError, match=r"pad_token_id \d+ is '!', an ordinary token, which would fill up answers; set"
    ):
        T5_FAMILY.tokenizer(tmp_path, T5Config(vocab_size=300, pad_token_id=ids["!"], eos_token_id=0))


def test_what_is_unknown_is_known_by_the_vocabularys_own_word_for_it(bert_like):
    assert bert_like.unknown_token_id == 2
    assert bert_like.unknown_characters("hello goodly mouse") == ["mouse"]


def test_an_end_that_stands_for_the_unknown_too_makes_no_text_unknown(tmp_path):
    model = tokenizers.models.BPE({"<e>": 0, "a": 1}, [], unk_token="<e>")  # as in GPT-2's files
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path, eos_token_id=0).unknown_token_id is None


@pytest.mark.parametrize("unknown", [None, "<e>"])
def test_a_vocabulary_that_leaves_characters_out_tells_which(tmp_path, unknown):
    """BPE without an unknown token silently drops unknown characters."""
    model = tokenizers.models.BPE({"<e>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")], unk_token=unknown)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    poor = Tokenizer.load(tmp_path, eos_token_id=0)
    assert poor.leaves_out_characters
    assert poor.unknown_characters("ab éa 😀 b é") == ["é", "😀"]
    assert poor.unknown_characters("ab\n ba") == []


def test_a_vocabulary_of_bytes_leaves_no_character_out(tmp_path):
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model = tokenizers.models.BPE({"<e>": 0, **{letter: i + 1 for i, letter in enumerate(sorted(letters))}}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    whole = Tokenizer.load(tmp_path, eos_token_id=0)
    assert not whole.leaves_out_characters
    assert whole.unknown_characters("ab é 😀") == []


def test_texts_are_tokens_of_another_kind_where_other_tokens_are_special(bert_like, tmp_path):
    again = Tokenizer.load(tmp_path, eos_token_id=1, special_ids=(0, 4))
    assert again.fingerprint != bert_like.fingerprint
