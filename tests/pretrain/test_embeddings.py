"""Embeddings from co-occurrence: tokens with similar contexts get similar vectors."""

import numpy as np

from jpeft.pretrain.corpus import Texts
from jpeft.pretrain.embeddings import cooccurrence_embeddings


def test_tokens_of_the_same_company_are_near():
    draw = np.random.default_rng(0)
    # Tokens 10..19 occur near each other, and so do 20..29; 5 occurs everywhere, 30 and 31 nowhere.
    texts = [np.where(draw.random(40) < 0.2, 5, draw.integers(start, start + 10, 40)) for start in [10, 20] * 150]
    ids = np.concatenate(texts)
    vectors = cooccurrence_embeddings([(Texts(ids, np.cumsum([40] * 300)), 1.0)], vocab_size=32, width=8, seed=0)
    np.testing.assert_allclose(np.mean(vectors**2, axis=1), 1, rtol=0.7)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near, far = unit[10:20] @ unit[10:20].T, unit[10:20] @ unit[20:30].T
    assert near[~np.eye(10, dtype=bool)].mean() > 0.5 > 0.2 > far.mean()
    assert np.isfinite(vectors).all() and abs(vectors[30]).max() > 0
