"""Exact match and F1 of question answering, as in SQuAD's evaluation script, for text in any script."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from jpeft.eval.metrics.base import TEXTS, Answered, Metric
from jpeft.eval.metrics.rouge import stands_alone
from jpeft.rows.values import alike
from jpeft.words import short

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ARTICLE_IN_FRONT = re.compile(r"^(a|an|the) ")
_AROUND = ".,:;!?\"'"  # punctuation around a text, which does not change what it says


def normalised(text: str) -> str:
    """Normalises a text as SQuAD does (Rajpurkar et al. 2016): case, punctuation, English articles, white space.

    It agrees with SQuAD's script on ASCII text. In addition it normalises Unicode (NFKC) and removes punctuation of all
    scripts (Lewis et al. 2020, MLQA).
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", text).split())


def _tokens(text: str) -> list[str]:
    """Splits a text into words, and into characters in scripts without spaces between words."""
    tokens = []
    for word in normalised(text).split():
        start = 0
        for i, character in enumerate(word):
            if stands_alone(character):
                tokens += [word[start:i], character]
                start = i + 1
        tokens.append(word[start:])
    return [token for token in tokens if token]


def _exact_match(prediction: str, reference: str) -> float:
    return float(normalised(prediction) == normalised(reference))


def _f1(prediction: str, reference: str) -> float:
    """Returns the F1 of shared tokens; 1 if neither side has any token."""
    given, wanted = _tokens(prediction), _tokens(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def _best(score: Callable[[str, str], float]) -> Callable[[Answered], list[float]]:
    """Takes the best score over the references of each row, as SQuAD does."""
    return lambda answered: [
        max(score(prediction, reference) for reference in references)
        for prediction, references in zip(answered.predictions, answered.references, strict=True)
    ]


def _caution(answered: Answered, trained: Sequence[str]) -> str | None:
    """Counts rows whose target SQuAD's normalisation leaves empty, or makes the same as one that reads otherwise."""
    read: dict[str, dict[str, str]] = {}  # by what is compared, a text for each way it reads
    # Of the references of a row that are one to the metric, one: any of them is right there.
    of_rows = ({normalised(text): text for text in reversed(references)} for references in answered.references)
    for text in (*(text for texts in of_rows for text in texts.values()), *trained):
        read.setdefault(normalised(text), {}).setdefault(_as_read(text), text)
    lost = {key: list(texts.values()) for key, texts in read.items() if not key or len(texts) > 1}
    found = [key for references in answered.references for key in _keys(references) if key in lost]
    if not found:
        return None
    rows = sum(not lost.keys().isdisjoint(_keys(references)) for references in answered.references)
    examples = lost[found[0]][:2]
    return (
        f"{rows:,} of {len(answered.references):,} test targets are empty, or the same as another one, to exact_match "
        f"and f1, which ignore punctuation and articles, such as {' and '.join(map(short, examples))}: a wrong answer "
        "may count as right; the metric accuracy compares texts as they are"
    )


def _keys(references: Sequence[str]) -> list[str]:
    return [normalised(text) for text in references]


def _as_read(text: str) -> str:
    """Returns a key that is equal for texts that only differ by what SQuAD means to ignore."""
    core = alike(text).strip(_AROUND)
    return _ARTICLE_IN_FRONT.sub("", core)


QUESTION_ANSWERING_METRICS = (
    Metric(
        "exact_match",
        "exact match",
        scores=_best(_exact_match),
        is_share=True,
        needs=(TEXTS,),
        caution=_caution,
    ),
    Metric("f1", "F1 of words", scores=_best(_f1), needs=(TEXTS,), caution=_caution),
)
