"""A SentencePiece vocabulary made from a corpus, as a Hugging Face tokenizer directory (Kudo 2018, unigram model).

T5's special ids: pad 0, `</s>` 1, `<unk>` 2, the 100 sentinels `<extra_id_99>` ... `<extra_id_0>` last. Unlike T5's
own vocabulary this one keeps line breaks, one piece however many blank lines there are, since dialogues and lists of
options live on them; and it falls back to bytes, so that no text is `<unk>`.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jpeft.errors import UserError
from jpeft.files import write_whole

NUM_SENTINELS = 100
_PAD, _EOS, _UNK = "<pad>", "</s>", "<unk>"
_LINE_BREAK = "▁\n"
_MAX_SENTENCE = 2000  # characters; SentencePiece's trainer is slow on longer ones


def train_vocabulary(texts: Iterable[str], size: int, directory: Path) -> None:
    """Trains `size` pieces, special ones and sentinels included, on `texts` and writes tokenizer files to `directory`.

    Raises:
      UserError: the texts are too few for so many pieces.
    """
    import sentencepiece

    normalizer = _normalizer()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(piece for text in texts for piece in _sentences(normalizer.normalize_str(text))),
            model_writer=model,
            vocab_size=size - NUM_SENTINELS - 1,  # the line break is added here
            model_type="unigram",
            normalization_rule_name="identity",
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=4 * _MAX_SENTENCE,  # in bytes
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=_PAD,
            eos_piece=_EOS,
            unk_piece=_UNK,
            num_threads=2,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"no vocabulary of {size} pieces can be made of this text ({str(error).partition(chr(10))[0]}); give more "
            "text or a smaller tokenizer.size."
        ) from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]
    _write(_fast_tokenizer(pieces), directory)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(tokenizers.Regex(r"[^\S\n]+"), " "),
            normalizers.Replace(tokenizers.Regex(r" ?\n[ \n]*"), " \n "),
            normalizers.Strip(left=True, right=True),
        ]
    )


def _sentences(text: str) -> Iterable[str]:
    for line in text.split(" \n "):
        for start in range(0, len(line), _MAX_SENTENCE):
            yield line[start : start + _MAX_SENTENCE]


def _fast_tokenizer(pieces: list[tuple[str, float]]) -> tokenizers.Tokenizer:
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(NUM_SENTINELS))]
    vocabulary = [*pieces, (_LINE_BREAK, 0.0), *((sentinel, 0.0) for sentinel in sentinels)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = _normalizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(" \n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([_PAD, _EOS, _UNK, *sentinels])
    # What T5's own tokenizer does for transformers' users: an input and a label end with </s>.
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"$A {_EOS}", pair=f"$A {_EOS} $B {_EOS}", special_tokens=[(_EOS, tokenizer.token_to_id(_EOS))]
    )
    return tokenizer


def _write(tokenizer: tokenizers.Tokenizer, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    special = {"pad_token": _PAD, "eos_token": _EOS, "unk_token": _UNK}
    extra = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)]
    config = {
        **special,
        "extra_ids": NUM_SENTINELS,
        "additional_special_tokens": extra,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        # Transformers' own T5 tokenizer would put T5's normalisation in the place of this one.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, value in {
        "special_tokens_map.json": {**special, "additional_special_tokens": extra},
        "tokenizer_config.json": config,
    }.items():
        with write_whole(directory / name) as beside:
            beside.write_text(json.dumps(value, indent=2) + "\n")
    with write_whole(directory / "tokenizer.json") as beside:  # last: with it the directory is complete
        tokenizer.save(str(beside))
