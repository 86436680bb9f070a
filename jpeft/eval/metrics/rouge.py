"""ROUGE, for text in any script."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from jpeft.eval.metrics.base import TEXTS, Answered, Metric

# Scripts written without spaces between words, as `(first, last, name)`: each character with its marks is a token.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF, "Thai, Lao"),
    (0x1000, 0x109F, "Burmese"),
    (0x1780, 0x17FF, "Khmer"),
    (0x3040, 0x30FF, "Hiragana, Katakana"),
    (0x3100, 0x312F, "Bopomofo"),
    (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0x9FFF, "Han"),
    (0xF900, 0xFAFF, "Han"),
    (0x20000, 0x3FFFF, "Han"),
)
_VARIANTS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # variation selectors: emoji or text style
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))  # modifiers that follow an emoji


class Rouge:
    """A ROUGE F-measure, 0 to 1, by the `rouge-score` package with Porter stemming.

    Args:
      kind: the package's name of the variant: `rouge1` and `rouge2` count shared words and pairs of words, `rougeL` the
        longest common subsequence, `rougeLsum` that of each line with all lines of the other side, for summaries with
        one sentence per line.
      tokenizer: `rouge_score` is the package's own, used by the paper: tokens are runs of a-z and 0-9. `unicode` gives
        the same tokens on such text, and also counts letters, digits and marks of every script, single characters in
        scripts without spaces, and symbols such as emoji. Only words of a-z are stemmed.
    """

    def __init__(self, kind: str = "rougeL", tokenizer: str = "unicode"):
        from rouge_score import rouge_scorer, tokenizers  # imported here, because it takes a second

        stems = tokenizers.DefaultTokenizer(use_stemmer=True)
        self._kind = kind
        self._unicode = None if tokenizer == "rouge_score" else _Unicode(stems)
        self._scorer = rouge_scorer.RougeScorer([kind], tokenizer=stems if self._unicode is None else _Spaces())

    def __call__(self, prediction: str, target: str) -> float:
        if self._unicode is not None:  # of whole texts: the scorer of rougeLsum tokenises line by line
            prediction, target = self._unicode.spaced(prediction), self._unicode.spaced(target)
        return float(self._scorer.score(target, prediction)[self._kind].fmeasure)  # the integer 0 for an empty text

    def best(self, prediction: str, references: Sequence[str]) -> float:
        """Returns the best score over the references."""
        return max(self(prediction, reference) for reference in references)


def tokenizer_for(texts: Iterable[str]) -> str:
    """Chooses the tokenizer for these references: `rouge_score` if it covers all of their letters, else `unicode`."""
    for text in texts:
        if not any(character.isascii() and character.isalnum() for character in text):
            return "unicode"  # `rouge_score` would find no token in it
        if any(not character.isascii() and _asks_for_unicode(character) for character in text):
            return "unicode"
    return "rouge_score"


def _asks_for_unicode(character: str) -> bool:
    # Currency signs do not count: published results on English text, such as E2E with its £, use `rouge_score`.
    return _is_word(character) or (stands_alone(character) and unicodedata.category(character) != "Sc")


class _Spaces:
    """A tokenizer for `rouge-score` of texts whose tokens are already separated by white space."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


class _Unicode:
    """A tokenizer for any script. Words of a-z and 0-9 are tokenised by `rouge-score`."""

    def __init__(self, stems):
        self._stems = stems

    def spaced(self, text: str) -> str:
        """Returns the tokens of each line, separated by spaces; its punctuation if the text has no tokens."""
        lines = text.split("\n")
        tokens = [self.tokenize(line) for line in lines]
        if not any(tokens):
            tokens = [[each for each in _normalised(line) if not each.isspace()] for line in lines]
        return "\n".join(map(" ".join, tokens))

    def tokenize(self, text: str) -> list[str]:
        text = _normalised(text)
        tokens, word = [], ""
        for character in text:
            if unicodedata.category(character) == "Cf" or character in _VARIANTS:  # invisible
                continue
            if character in _SKIN_TONES and tokens and not word:
                tokens[-1] += character
                continue
            alone = stands_alone(character)
            if _is_word(character) and not alone:
                marks_last = not word and tokens and unicodedata.category(character)[0] == "M"
                if marks_last and stands_alone(tokens[-1][0]):
                    tokens[-1] += character
                else:
                    word += character
                continue
            if word:
                tokens += self._stemmed(word)
                word = ""
            if alone:
                tokens.append(character)
        return tokens + (self._stemmed(word) if word else [])

    def _stemmed(self, word: str) -> list[str]:
        return self._stems.tokenize(word) if word.isascii() else [word]


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _is_word(character: str) -> bool:
    """Whether a character is a letter, a digit or a combining mark, such as the vowels of Hindi."""
    return unicodedata.category(character)[0] in "LNM"


def stands_alone(character: str) -> bool:
    """Whether a character is a token by itself: of a script without spaces, or a symbol such as an emoji."""
    category = unicodedata.category(character)
    if category[0] == "L" or category[0] == "N":
        return without_spaces(character) is not None
    return category == "So" or (category in ("Sm", "Sc") and not character.isascii())


def without_spaces(character: str) -> str | None:
    """Returns the script of a character if it is written without spaces between words; otherwise None."""
    number = ord(character)
    return next((script for first, last, script in _WITHOUT_SPACES if first <= number <= last), None)


def tokenizer_of(answered: Answered) -> str:
    """Returns the tokenizer of ROUGE for these answers: the given one, or that of `tokenizer_for` the references."""
    if answered.rouge_tokenizer is not None:
        return answered.rouge_tokenizer
    return tokenizer_for(reference for references in answered.tokenizer_references for reference in references)


def _of_targets(kind: str) -> Callable[[Answered], list[float]]:
    def scores(answered: Answered) -> list[float]:
        rouge = Rouge(kind, tokenizer_of(answered))
        return [rouge(p, t) for p, t in zip(answered.predictions, answered.targets, strict=True)]

    return scores


def _of_references(kind: str) -> Callable[[Answered], list[float]]:
    def scores(answered: Answered) -> list[float]:
        rouge = Rouge(kind, tokenizer_of(answered))
        return [rouge.best(p, r) for p, r in zip(answered.predictions, answered.references, strict=True)]

    return scores


def _computed_by(answered: Answered) -> str:
    return f"tokenizer:{tokenizer_of(answered)}"


SEVERAL = "_multi_reference"
_KINDS = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_lsum": "rougeLsum"}
_TITLES = {"rouge_l": "ROUGE-L", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_lsum": "ROUGE-Lsum"}
ROUGE_L = Metric("rouge_l", "ROUGE-L", scores=_of_targets("rougeL"), needs=(TEXTS,), computed_by=_computed_by)
ROUGE_METRICS = (
    ROUGE_L,
    *(
        Metric(name, _TITLES[name], scores=_of_targets(kind), needs=(TEXTS,), computed_by=_computed_by)
        for name, kind in _KINDS.items()
        if name != "rouge_l"
    ),
    *(
        Metric(
            f"{name}{SEVERAL}",
            f"{_TITLES[name]}, multi-reference",
            scores=_of_references(kind),
            needs=(TEXTS,),
            computed_by=_computed_by,
        )
        for name, kind in _KINDS.items()
    ),
)
# The names by `rouge-score` and Hugging Face's `evaluate`.
ROUGE_SPELLINGS = {kind.lower(): name for name, kind in _KINDS.items()}
