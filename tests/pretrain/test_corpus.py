"""The tokens of a corpus on disk: made once, and again where they are damaged."""

import os
from pathlib import Path

import numpy as np
import pytest

from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.corpus import load_texts


@pytest.fixture
def load(corpus, vocabulary, tmp_path, monkeypatch):
    """Loads the pairs of the corpus with an empty cache at first; returns their tokens and what was said meanwhile."""
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    tokenizer = Tokenizer.load(vocabulary)

    def loaded():
        said = []
        texts = load_texts([corpus / "pairs.jsonl"], "pairs", tokenizer, report=said.append)
        return [[ids.tolist() for ids in part] for part in ([*part] for part in texts)], said

    return loaded


def cached(directory: Path) -> list[Path]:
    return sorted(directory.glob("corpus/*/*"))


def test_a_corpus_is_tokenised_once(load, tmp_path):
    first, said = load()
    assert said == ["tokenises pairs.jsonl"] and len(first[0]) == len(first[1]) == 230
    assert [file.name for file in cached(tmp_path)] == [
        *("input.ends.npy", "input.ids.npy", "target.ends.npy", "target.ids.npy")
    ]
    assert load() == (first, [])


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def shorten(file: Path) -> None:
    np.save(file, np.load(file)[:-1])


def widen(file: Path) -> None:
    np.save(file, np.load(file).astype(np.float64))


@pytest.mark.parametrize("damage", [cut, shorten, widen, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["input.ids.npy", "target.ends.npy"])
def test_damaged_tokens_are_made_again(name, damage, load, tmp_path):
    first, _ = load()
    damage(next(file for file in cached(tmp_path) if file.name == name))
    assert load() == (first, ["tokenises pairs.jsonl"])
    assert load() == (first, [])
    assert len(list((tmp_path / "corpus").iterdir())) == 1  # nothing is left beside


def test_tokens_are_on_the_disk_before_their_names_are(load, monkeypatch):
    synced, moved = [], []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number) or fsync(number))
    monkeypatch.setattr(Path, "rename", lambda path, target: moved.append(len(synced)) or rename(path, target))
    load()
    assert moved == [4]
