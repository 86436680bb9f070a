"""Embeddings from co-occurrence: tokens with similar contexts get similar vectors."""

import itertools

import numpy as np

from jpeft.pretrain import embeddings
from jpeft.pretrain.corpus import Texts
from jpeft.pretrain.embeddings import cooccurrence_embeddings


def test_tokens_of_the_same_company_are_near():
    draw = np.random.default_rng(0)
    # Tokens 10..19 occur near each other, and so do 20..29; 5 occurs everywhere, 30 and 31 nowhere.
    texts = [np.where(draw.random(40) < 0.2, 5, draw.integers(start, start + 10, 40)) for start in [10, 20] * 150]
    ids = np.concatenate(texts)
    texts = Texts(ids, np.cumsum([40] * 300))
    vectors = cooccurrence_embeddings([(texts, np.arange(300), 1.0)], vocab_size=32, width=8, seed=0)
    np.testing.assert_allclose(np.mean(vectors**2, axis=1), 1, rtol=0.7)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near, far = unit[10:20] @ unit[10:20].T, unit[10:20] @ unit[20:30].T
    assert near[~np.eye(10, dtype=bool)].mean() > 0.5 > 0.2 > far.mean()
    assert np.isfinite(vectors).all() and abs(vectors[30]).max() > 0


def test_neighbouring_texts_and_those_left_out_are_not_counted(monkeypatch):
    """What is counted of some texts is what is counted of each of them alone."""
    draw = np.random.default_rng(1)
    texts = [draw.integers(3 * kind, 3 * kind + 3, draw.integers(0, 9)) for kind in draw.integers(0, 4, 80)]
    whole = Texts(np.concatenate(texts), np.cumsum([len(text) for text in texts]))
    counted = np.arange(0, 80, 3)
    counts = []
    original = embeddings._positive_information
    monkeypatch.setattr(embeddings, "_positive_information", lambda n: original(counts.append(n.copy()) or n))
    for chunk in (1_000_000, 40):
        monkeypatch.setattr(embeddings, "_CHUNK", chunk)
        cooccurrence_embeddings([(whole, counted, 1.0)], vocab_size=13, width=4, seed=0)
    expected = np.zeros((13, 13))
    for text in (texts[i] for i in counted):
        for i, j in itertools.permutations(range(len(text)), 2):
            expected[text[i], text[j]] += 1
    tokens = sum(len(texts[i]) for i in counted)
    order = np.argsort(-np.bincount(np.concatenate([texts[i] for i in counted]), minlength=13), kind="stable")
    np.testing.assert_allclose(counts[0], expected[:, order] / tokens, rtol=1e-5)
    assert counts[1].any() and (counts[1] <= counts[0]).all()  # pairs are counted within chunks
