"""Trains a SentencePiece vocabulary on a corpus and writes it as a Hugging Face tokenizer (Kudo 2018, unigram model).

Special ids are T5's: pad 0, `</s>` 1, `<unk>` 2, and for a T5 the 100 sentinels `<extra_id_99>` ... `<extra_id_0>`
last. Unlike T5's own vocabulary it keeps line breaks, as one piece per run of blank lines, since dialogues and lists of
options need them; and it falls back to bytes, so that no text becomes `<unk>`.
"""

import io
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jpeft.errors import UserError
from jpeft.files import write_whole

USUAL_SIZE = 16_384  # pieces, if the text gives as many
NUM_SENTINELS = 100
_PAD, _EOS, _UNK = "<pad>", "</s>", "<unk>"
_LINE_BREAK = "▁\n"
_MAX_SENTENCE = 2000  # characters; SentencePiece's trainer is slow on longer ones


def train_vocabulary(texts: Iterable[str], size: int | None, directory: Path, *, with_sentinels: bool = True) -> int:
    """Trains a vocabulary on `texts` and writes its tokenizer files to `directory`.

    Args:
      texts: to train on.
      size: pieces, including special ones and sentinels; None is `USUAL_SIZE`, or fewer if the texts do not give as
        many.
      directory: to write to.
      with_sentinels: for a T5: add sentinels, and make `transformers` append `</s>` to texts. Decoder-only models have
        neither.

    Returns:
      The number of pieces.

    Raises:
      UserError: the texts are too few for this size, or need a larger one; the message names a size that works.
    """
    import sentencepiece

    sentinels = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)] if with_sentinels else []
    added = len(sentinels) + 1  # pieces added to SentencePiece's: sentinels and the line break
    normalizer = _normalizer()
    sentences = (piece for text in texts for piece in _sentences(normalizer.normalize_str(text)) if piece)
    first = next(sentences, None)
    if first is None:
        raise UserError("the corpus holds no text to make a vocabulary of; see data.sources.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences),
            model_writer=model,
            # Below 4 it fails before it reports the size that it needs.
            vocab_size=max(4, (size or USUAL_SIZE) - added),
            hard_vocab_limit=False,  # may give fewer pieces: checked below
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
        raise UserError(_too_small(size, str(error), added)) from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]
    made = len(pieces) + added
    if size is not None and made < size:
        raise UserError(
            f"tokenizer.size is {size:,}, and this corpus gives {made:,} pieces at most: give --config.tokenizer.size="
            f"{made} or none (which takes as many as there are, {USUAL_SIZE:,} at most), or more text."
        )
    _write(_fast_tokenizer(pieces, sentinels), sentinels, directory)
    return made


def _too_small(size: int | None, error: str, added: int) -> str:
    """The message for a size that SentencePiece refused: each character of the text and each byte is a piece."""
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", error)
    if needed:
        least = int(needed[1]) + added
        return (
            f"tokenizer.size is {size or USUAL_SIZE:,}, and the characters of this corpus, the 256 bytes and the "
            f"special pieces are {least:,} alone; give --config.tokenizer.size={least} or more."
        )
    reason = error.partition("\n")[0]
    return f"no vocabulary of {size or USUAL_SIZE:,} pieces can be made of this text ({reason})."


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


def _fast_tokenizer(pieces: list[tuple[str, float]], sentinels: list[str]) -> tokenizers.Tokenizer:
    vocabulary = [*pieces, (_LINE_BREAK, 0.0), *((sentinel, 0.0) for sentinel in reversed(sentinels))]
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
    tokenizer.add_special_tokens([_PAD, _EOS, _UNK, *reversed(sentinels)])
    if not sentinels:
        return tokenizer
    # As T5's own tokenizer does in transformers: texts end with </s>.
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"$A {_EOS}", pair=f"$A {_EOS} $B {_EOS}", special_tokens=[(_EOS, tokenizer.token_to_id(_EOS))]
    )
    return tokenizer


def _write(tokenizer: tokenizers.Tokenizer, sentinels: list[str], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    special = {"pad_token": _PAD, "eos_token": _EOS, "unk_token": _UNK}
    t5_keys = {"extra_ids": NUM_SENTINELS, "model_max_length": 512} if sentinels else {}
    config = {
        **special,
        **t5_keys,
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": False,
        # Transformers' own T5 tokenizer would replace the normalisation by T5's.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, value in {
        "special_tokens_map.json": {**special, "additional_special_tokens": sentinels},
        "tokenizer_config.json": config,
    }.items():
        with write_whole(directory / name) as beside:
            beside.write_text(json.dumps(value, indent=2) + "\n")
    # Last, since its presence marks the directory as complete.
    with write_whole(directory / "tokenizer.json") as beside:
        tokenizer.save(str(beside))
