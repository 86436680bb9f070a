"""SentencePiece vocabularies in GGUF files give the same tokens as SentencePiece."""

import io

import pytest
import sentencepiece
from gguf import GGUFWriter

from jpeft.data.prompts import PromptTokens
from jpeft.model.gguf import GgufFile
from jpeft.model.gguf_tokenizer import backend_of
from jpeft.model.tokenizer import Tokenizer

TEXTS = [
    "the striker saw a goal in the final",
    "the goal, the coach and the 1234 seasons: 5.6!",
    "caf\u00e9 na\u00efve \u6771\u4eac \U0001f642",
    "Merger of banks lifts shares",
]
CORPUS = [*TEXTS, "the president met the minister", "a market of shares and profits", "robots and planets"] * 6


def train(kind: str, **options) -> sentencepiece.SentencePieceProcessor:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=made, model_type=kind, minloglevel=2, num_threads=1, **options
    )
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def write(path, model, kind: str, *, charsmap: bytes = b"", padding: int = 0) -> None:
    """Write pieces, scores and kinds as llama.cpp's converter does, padded to the rows of the embedding."""
    writer = GGUFWriter(str(path), "llama" if kind == "llama" else "t5")
    size = model.get_piece_size()
    writer.add_tokenizer_model(kind)
    writer.add_token_list([*map(model.id_to_piece, range(size)), *(f"[PAD{n}]" for n in range(size, size + padding))])
    writer.add_token_scores([*map(model.get_score, range(size)), *[-1000.0] * padding])
    of = lambda n: 2 if model.is_unknown(n) else 3 if model.is_control(n) else 6 if model.is_byte(n) else 1
    writer.add_token_types([*map(of, range(size)), *[5] * padding])
    writer.add_unk_token_id(model.unk_id())
    writer.add_eos_token_id(model.eos_id())
    if model.bos_id() >= 0:
        writer.add_bos_token_id(model.bos_id())
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_bpe_with_bytes_as_llama_has_it(tmp_path):
    model = train("bpe", vocab_size=400, byte_fallback=True, normalization_rule_name="identity")
    write(tmp_path / "a.gguf", model, "llama")
    tokenizer = Tokenizer.load(tmp_path / "a.gguf", eos_token_id=model.eos_id(), continues=True)
    for text in TEXTS:
        assert tokenizer.ids([text]) == [model.encode(text)], text
        assert tokenizer.decode([model.encode(text)]) == [text]
    assert tokenizer.wording.before == (model.bos_id(),)  # a Llama's texts begin with it by default
    assert tokenizer.wording.lead == ""  # the vocabulary itself adds the space before words
    assert not {0, 1, 2} & set(tokenizer.ids(["</s><s><unk>"])[0])


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_unigram_as_t5_has_it(tmp_path, rule):
    sizes = dict(vocab_size=120, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    model = train("unigram", normalization_rule_name=rule, **sizes)
    from sentencepiece import sentencepiece_model_pb2 as description

    rules = description.ModelProto.FromString(model.serialized_model_proto()).normalizer_spec.precompiled_charsmap
    write(tmp_path / "a.gguf", model, "t5", charsmap=rules, padding=128)
    tokenizer = Tokenizer.load(tmp_path / "a.gguf")
    for text in [*TEXTS, "  two   spaces ", "\uff34\uff28\uff25 \ufb01nal"]:
        assert tokenizer.ids([text]) == [model.encode(text)], text
    assert [tokenizer.sentinels[0], tokenizer.sentinels[99]] == [
        model.get_piece_size() + 99,
        model.get_piece_size(),
    ]


def test_what_a_file_says_of_special_tokens_is_a_tokenizer_config(tmp_path):
    model = train("bpe", vocab_size=400, byte_fallback=True)
    write(tmp_path / "a.gguf", model, "llama")
    _, settings = backend_of(GgufFile(tmp_path / "a.gguf"))
    assert (settings["bos_token"], settings["eos_token"], settings["unk_token"]) == ("<s>", "</s>", "<unk>")


def test_a_conversation_has_the_tokens_of_llama_cpp(tmp_path):
    """A space belongs before each text that follows a special token, and before no answer that continues text."""
    model = train("bpe", vocab_size=400, byte_fallback=True, normalization_rule_name="identity")
    write(tmp_path / "a.gguf", model, "llama")
    template = (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'goal: ' + m['content'] + '</s>coach:\\n' }}"
        "{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    tokenizer = Tokenizer.load(tmp_path / "a.gguf", eos_token_id=model.eos_id(), continues=True).asked_by(template)
    [prompt] = PromptTokens("{text}", tokenizer, 200)([{"text": TEXTS[0]}]).ids
    start, end = model.bos_id(), model.eos_id()
    assert prompt == [start, *model.encode(f"goal: {TEXTS[0]}"), end, *model.encode("coach:\n")]
    [answer] = tokenizer.answers([TEXTS[1]])
    assert [*model.encode("coach:\n"), *answer] == [*model.encode(f"coach:\n{TEXTS[1]}"), end]
