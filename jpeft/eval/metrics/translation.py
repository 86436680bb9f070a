"""BLEU and chrF of a whole split, by sacrebleu: on the scale of 0 to 100 that papers print."""

import dataclasses
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from jpeft.eval.metrics.base import TEXTS, Answered, Metric, Weighted
from jpeft.eval.metrics.rouge import without_spaces

_PACKAGE = ("sacrebleu", "metrics")


def bleu_tokenizer(answered: Answered) -> str:
    """The name of the sacrebleu tokenizer that suits the script of the references.

    `13a`, sacrebleu's default and that of published figures, where words have spaces between them. It would take a
    Chinese sentence for one word: `zh` where a reference holds Han characters and no other script without spaces,
    `char` where one does (Thai, Japanese, Burmese ...).
    """
    scripts = {without_spaces(c) for references in answered.references for text in references for c in text}
    scripts -= {None}
    return "13a" if not scripts else "zh" if scripts == {"Han"} else "char"


def _bleu(answered: Answered) -> Any:
    from sacrebleu.metrics.bleu import BLEU  # not waited for by who does not ask for it

    return BLEU(tokenize=bleu_tokenizer(answered))


def _chrf(answered: Answered) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _by_sacrebleu(make: Callable[[Answered], Any]) -> Callable[[Answered], Weighted]:
    """sacrebleu's number of any sample of rows: what each row adds to it is counted once."""

    def of_split(answered: Answered) -> Weighted:
        answered = composed(answered)
        scorer = make(answered)
        # sacrebleu's own split of the work, between `corpus_score`'s two halves; tests hold the sum against that.
        counts = np.array(scorer._extract_corpus_statistics(list(answered.predictions), _streams(answered)))
        return lambda weights: scorer._compute_score_from_stats(np.rint(weights @ counts).astype(int).tolist()).score

    return of_split


def composed(answered: Answered) -> Answered:
    """The same texts with each letter and its marks as one character where there is one (NFC).

    A decomposed text looks the same, and no letter of it with a mark would be found in the other.
    """
    one = lambda text: unicodedata.normalize("NFC", text)
    return dataclasses.replace(
        answered,
        predictions=[one(text) for text in answered.predictions],
        references=[[one(text) for text in texts] for texts in answered.references],
    )


def _streams(answered: Answered) -> list[list[str | None]]:
    """First references of all rows, then the second ones...; None where a row has fewer."""
    most = max(map(len, answered.references))
    return [[references[i] if i < len(references) else None for references in answered.references] for i in range(most)]


def _signature(make: Callable[[Answered], Any]) -> Callable[[Answered], str]:
    def told(answered: Answered) -> str:
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

    return told


def _metric(name: str, title: str, make: Callable[[Answered], Any]) -> Metric:
    return Metric(
        name,
        title,
        of_split=_by_sacrebleu(make),
        range=(0.0, 100.0),
        needs=(TEXTS,),
        package=_PACKAGE,
        told=_signature(make),
    )


TRANSLATION_METRICS = (_metric("bleu", "BLEU", _bleu), _metric("chrf", "chrF", _chrf))
