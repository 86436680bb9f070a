"""BLEU and chrF of a split by sacrebleu, on the usual scale of 0 to 100."""

import collections
import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jpeft.eval.metrics.base import TEXTS, Answered, Metric, Weighted
from jpeft.eval.metrics.rouge import without_spaces

_PACKAGE = ("sacrebleu", "metrics")


def bleu_tokenizer(answered: Answered) -> str:
    """Chooses sacrebleu's tokenizer by the scripts of the references.

    `13a`, sacrebleu's default and that of published results, needs spaces between words. The others are used if the
    references have at least as many letters of scripts without spaces as white space makes words: `zh` if nine tenths
    of these letters are Han, otherwise `char` (Thai, Japanese, Burmese and so on).
    """
    words, characters = 0, collections.Counter()
    for references in answered.tokenizer_references:
        for text in references:
            words += len(text.split())
            characters.update(text)
    letters = collections.Counter()  # by script
    for character, count in characters.items():
        if unicodedata.category(character)[0] == "L" and (script := without_spaces(character)) is not None:
            letters[script] += count
    if not letters or letters.total() < words:
        return "13a"
    return "zh" if letters["Han"] >= 0.9 * letters.total() else "char"


def _bleu_caution(answered: Answered, trained: Sequence[str]) -> str | None:
    tokenizer = bleu_tokenizer(answered)
    if tokenizer == "13a":
        return None
    what = "each Chinese character is a word" if tokenizer == "zh" else "each character is a word, of every script"
    return (
        f"BLEU uses the tokenizer {tokenizer!r}, to which {what}, since most of the references are written without "
        "spaces: do not compare it with BLEU by '13a'"
    )


def _bleu(answered: Answered) -> Any:
    from sacrebleu.metrics.bleu import BLEU  # an optional package

    return BLEU(tokenize=bleu_tokenizer(answered))


def _chrf(answered: Answered) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _by_sacrebleu(make: Callable[[Answered], Any]) -> Callable[[Answered], Weighted]:
    """Makes `Metric.of_split`: counts the statistics of each row once, and scores any weighted sum of them."""

    def of_split(answered: Answered) -> Weighted:
        answered = composed(answered)
        scorer = make(answered)
        # These private methods are the two halves of sacrebleu's `corpus_score`; tests compare the result with it.
        counts = np.array(scorer._extract_corpus_statistics(list(answered.predictions), _streams(answered)))
        return lambda weights: scorer._compute_score_from_stats(np.rint(weights @ counts).astype(int).tolist()).score

    return of_split


def composed(answered: Answered) -> Answered:
    """Normalises all texts to NFC, since composed and decomposed letters look equal but do not match."""
    one = lambda text: unicodedata.normalize("NFC", text)
    return dataclasses.replace(
        answered,
        predictions=[one(text) for text in answered.predictions],
        references=[[one(text) for text in texts] for texts in answered.references],
    )


def _streams(answered: Answered) -> list[list[str | None]]:
    """Returns the first references of all rows, then the second ones and so on; None if a row has fewer."""
    most = max(map(len, answered.references))
    return [[references[i] if i < len(references) else None for references in answered.references] for i in range(most)]


def _signature(make: Callable[[Answered], Any]) -> Callable[[Answered], str]:
    def signature(answered: Answered) -> str:
        scorer = make(composed(answered))
        scorer.corpus_score(list(answered.predictions[:1]), [stream[:1] for stream in _streams(answered)])
        several = {len(references) for references in answered.references}
        nrefs = str(several.pop()) if len(several) == 1 else "var"
        parts = str(scorer.get_signature()).split("|")
        parts = [f"nrefs:{nrefs}" if part.startswith("nrefs:") else part for part in parts]
        texts = [*answered.predictions, *(text for references in answered.references for text in references)]
        if not all(unicodedata.is_normalized("NFC", text) for text in texts):
            parts.append("form:NFC")
        return "|".join(parts)

    return signature


def _metric(
    name: str,
    title: str,
    make: Callable[[Answered], Any],
    caution: Callable[[Answered, Sequence[str]], str | None] | None = None,
) -> Metric:
    return Metric(
        name,
        title,
        of_split=_by_sacrebleu(make),
        range=(0.0, 100.0),
        needs=(TEXTS,),
        package=_PACKAGE,
        computed_by=_signature(make),
        caution=caution,
    )


TRANSLATION_METRICS = (_metric("bleu", "BLEU", _bleu, _bleu_caution), _metric("chrf", "chrF", _chrf))
