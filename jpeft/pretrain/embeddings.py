"""Initial embeddings from the co-occurrence of tokens in the texts to train on.

One pass over all of them, which takes a minute: tokens that occur near the same tokens get similar vectors
(positive pointwise mutual information and its leading singular vectors; Levy, Goldberg and Dagan 2015). A small model
sees too little text in training to learn as much about its rarer tokens.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from jpeft.pretrain.corpus import Texts

_WINDOW = 16  # tokens to each side
_MOST_CONTEXTS = 4096  # columns of the co-occurrence matrix: the most frequent tokens
_SMOOTHING = 0.75  # exponent of the contexts' frequencies, which dampens rare ones
_CHUNK = 1_000_000  # tokens counted at once


def cooccurrence_embeddings(
    weighted: Iterable[tuple[Texts, np.ndarray, float]], *, vocab_size: int, width: int, seed: int
) -> np.ndarray:
    """Computes `[vocab_size, width]` float32 embeddings, each row with mean square 1.

    Args:
      weighted: texts, the indices of those to count (validation's should not be), and their share of the mixture.
      vocab_size, width: the shape.
      seed: of random rows for tokens that do not occur in the texts.
    """
    sources, frequency = [], np.zeros(vocab_size)
    for texts, counted, share in weighted:
        occurring = sum(np.bincount(ids, minlength=vocab_size) for ids, _ in _chunks(texts, counted))
        weight = share / max(np.sum(occurring), 1)
        frequency += occurring * weight
        sources.append((texts, counted, weight))
    contexts = np.argsort(-frequency, kind="stable")[: max(_MOST_CONTEXTS, width)]
    counts = np.zeros((vocab_size, len(contexts)), np.float32)
    context_of = np.full(vocab_size, -1, np.int64)
    context_of[contexts] = np.arange(len(contexts))
    for texts, counted, weight in sources:
        for ids, text_of in _chunks(texts, counted):
            _count(counts, ids, text_of, context_of, weight)
    vectors = _leading_vectors(_positive_information(counts), width)
    size = np.sqrt(np.mean(np.square(vectors), axis=1, keepdims=True))
    random = np.random.default_rng([seed, 5]).standard_normal(vectors.shape).astype(np.float32)
    return np.where(size > 0, vectors / np.where(size > 0, size, 1), random)


def _chunks(texts: Texts, counted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the tokens of the counted texts, and the index of the text of each, in chunks."""
    is_counted = np.zeros(len(texts), bool)
    is_counted[counted] = True
    for start in range(0, len(texts.ids), _CHUNK):
        ids = np.asarray(texts.ids[start : start + _CHUNK], np.int64)
        text_of = np.searchsorted(texts.ends, np.arange(start, start + len(ids)), side="right")
        kept = is_counted[text_of]
        yield ids[kept], text_of[kept]


def _count(counts: np.ndarray, ids: np.ndarray, text_of: np.ndarray, context_of: np.ndarray, weight: float) -> None:
    flat, contexts = counts.reshape(-1), context_of[ids]
    for distance in range(1, _WINDOW + 1):
        of_one_text = text_of[:-distance] == text_of[distance:]
        for tokens, near in ((ids[:-distance], contexts[distance:]), (ids[distance:], contexts[:-distance])):
            known = of_one_text & (near >= 0)
            np.add.at(flat, tokens[known] * counts.shape[1] + near[known], np.float32(weight))


def _positive_information(counts: np.ndarray) -> np.ndarray:
    """Replaces the counts by `max(0, log(p(token, context) / p(token) p(context)))`, in place."""
    tokens = counts.sum(axis=1, dtype=np.float64)
    contexts = counts.sum(axis=0, dtype=np.float64) ** _SMOOTHING
    contexts /= contexts.sum()
    for row, total in zip(counts, tokens, strict=True):
        if total > 0:
            with np.errstate(divide="ignore"):
                np.maximum(np.log(row / (total * np.maximum(contexts, 1e-30))), 0, out=row)
    return counts


def _leading_vectors(matrix: np.ndarray, width: int) -> np.ndarray:
    """Left singular vectors times the square root of their singular values, via the smaller Gram matrix."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]
    return (matrix @ vectors) * np.maximum(values, 1e-12) ** -0.25
