"""Rebuilds the tokenizer of a GGUF file: byte-level BPE (`gpt2`), SentencePiece BPE (`llama`) or unigram (`t5`).

A file holds pieces, scores or merges, and the name of a pre-tokenizer, whose meaning llama.cpp's `llama-vocab.cpp`
defines. An unknown name is refused, since a wrong pre-tokenizer would silently change the tokens of numbers and white
space.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jpeft.errors import UserError
from jpeft.model.gguf import GgufFile
from jpeft.words import one_line

_CONTROL, _OWN = 3, 4  # kinds of pieces: special tokens, and tokens added by users
_UNKNOWN = 2
_T5_SENTINELS = 100  # llama.cpp's converter writes them as [PAD32000] and so on

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _as_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _as_gpt2()])


def _split_by(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def make() -> pre_tokenizers.PreTokenizer:
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_])

    return make


# Pre-tokenizers by the value of `tokenizer.ggml.pre`.
PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), _as_gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _digits_apart),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), _split_by(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _split_by(_QWEN2)),
    "tekken": _split_by(_TEKKEN),
}
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")  # a word in the vocabulary is not merged
_BEGIN_ADDED = ("llama-bpe", "llama3", "llama-v3")  # add a BOS token if the file does not say


def backend_of(file: GgufFile) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Build the tokenizer of a file.

    Returns:
      The tokenizer, and the content of a `tokenizer_config.json` for it: special tokens by role, and the chat template.

    Raises:
      UserError: the file has no tokenizer, one of an unsupported kind, or an inconsistent one.
    """
    kind = file.text("tokenizer.ggml.model")
    if kind is None or kind not in _MAKERS:
        said = "no tokenizer" if kind is None else f"a tokenizer of the kind {one_line(kind)}"
        raise UserError(f"{file.path} has {said}; expected one of {', '.join(_MAKERS)}.")
    pieces = file.items("tokenizer.ggml.tokens", str)
    if not pieces:
        raise UserError(f"{file.path} lacks tokenizer.ggml.tokens, the pieces of its vocabulary.")
    kinds = file.items("tokenizer.ggml.token_type", int) or []
    backend = _MAKERS[kind](file, pieces)
    if backend.get_vocab_size() != len(pieces):
        raise UserError(
            f"{file.path}: only {backend.get_vocab_size():,} of {len(pieces):,} pieces are distinct; expected all."
        )
    added = [
        AddedToken(piece, normalized=False, special=piece_kind != _OWN)
        for piece, piece_kind in zip(pieces, kinds, strict=False)
        if piece_kind in (_CONTROL, _UNKNOWN, _OWN)
    ]
    backend.add_tokens(added)
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, name in roles.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            if (number := file.number(key)) >= len(pieces):
                raise UserError(f"{file.path}: {key} is {number}; expected less than {len(pieces):,}, its pieces.")
            settings[role] = pieces[number]
    begins = kind == "llama" or file.text("tokenizer.ggml.pre") in _BEGIN_ADDED
    if file.flag("tokenizer.ggml.add_bos_token", begins) and "bos_token" in settings:
        begin = settings["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, pieces.index(begin))]
        )
    chat = file.text("tokenizer.chat_template")
    return backend, settings | ({"chat_template": chat} if chat else {})


def _byte_level(file: GgufFile, pieces: Sequence[str]) -> tokenizers.Tokenizer:
    split = file.text("tokenizer.ggml.pre") or "default"
    if split not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{file.path}: its pre-tokenizer is {one_line(split)!r}; expected one of {known}.")
    merges = [tuple(merge.split(" ")) for merge in file.items("tokenizer.ggml.merges", str) or []]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise UserError(f"{file.path}: tokenizer.ggml.merges is no list of pairs of pieces; convert the model again.")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in _WHOLE_WORDS)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = PRE_TOKENIZERS[split]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(file: GgufFile, pieces: Sequence[str]) -> tokenizers.Tokenizer:
    spaced = file.flag("tokenizer.ggml.add_space_prefix", True)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    unknown = pieces[file.number("tokenizer.ggml.unknown_token_id", default=0)]
    model = models.BPE(
        vocab=vocabulary,
        merges=_implied_merges(vocabulary, _scores(file, pieces)),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    # llama.cpp puts the space before each text that follows a token of its own, not only at the beginning.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="\u2581", prepend_scheme="always" if spaced else "never", split=False
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if spaced else [])])
    return backend


def _unigram(file: GgufFile, pieces: Sequence[str]) -> tokenizers.Tokenizer:
    padding = [number for number, piece in enumerate(pieces) if piece == f"[PAD{number}]"]
    named = list(pieces)
    for place, number in enumerate(padding[:_T5_SENTINELS]):
        named[number] = f"<extra_id_{_T5_SENTINELS - 1 - place}>"
    unknown = file.number("tokenizer.ggml.unknown_token_id", default=2)
    scored = list(zip(named, map(float, _scores(file, pieces)), strict=True))
    backend = tokenizers.Tokenizer(models.Unigram(scored, unknown, byte_fallback=False))
    rules = file.items("tokenizer.ggml.precompiled_charsmap", int)
    if rules:
        backend.normalizer = normalizers.Precompiled(bytes(number % 256 for number in rules))
    space = {"replacement": "\u2581", "prepend_scheme": "always", "split": True}
    whole = pre_tokenizers.Metaspace(**space)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), whole])
    backend.decoder = decoders.Metaspace(**space)
    backend.add_special_tokens([named[number] for number in padding[:_T5_SENTINELS]])
    return backend


_MAKERS: Mapping[str, Callable[[GgufFile, Sequence[str]], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece_bpe,
    "t5": _unigram,
}


def _scores(file: GgufFile, pieces: Sequence[str]) -> list[float]:
    scores = file.items("tokenizer.ggml.scores", float) or []
    if len(scores) != len(pieces):
        raise UserError(f"{file.path}: {len(scores):,} scores for {len(pieces):,} pieces; convert the model again.")
    return scores


def _implied_merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's BPE implies: any two neighbours that form a piece, by decreasing score."""
    merges = []
    for piece, number in vocabulary.items():
        if len(piece) > 256:  # not a word; an untrusted file may hold long texts as pieces
            continue
        halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[number], *pair) for pair in pairs]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(first, second) for _, first, second in merges]
