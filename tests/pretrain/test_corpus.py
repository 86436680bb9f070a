"""The cached tokens of a corpus: written once, and again if they are damaged."""

import os
from pathlib import Path

import numpy as np
import pytest

from jpeft.errors import RunFailed
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.corpus import _written_in, load_texts


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
    assert len(list((tmp_path / "corpus").iterdir())) == 1  # no temporary file is left


def test_tokens_are_on_the_disk_before_their_names_are(load, monkeypatch):
    synced, moved = [], []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number) or fsync(number))
    monkeypatch.setattr(Path, "rename", lambda path, target: moved.append(len(synced)) or rename(path, target))
    load()
    assert moved == [4]


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(tmp_path, tiny_tokenizer, monkeypatch):
    (tmp_path / "corpus.txt").write_text("a text\n")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunFailed) as raised:
        load_texts([tmp_path / "corpus.txt"], "text", Tokenizer.load(tiny_tokenizer))
    assert str(raised.value) == (
        f"{tmp_path}/file/corpus cannot be written (Not a directory), where the tokens of a corpus are kept; set the "
        "environment variable JPEFT_CACHE to a directory that can be and has room."
    )


def test_a_corpus_that_cannot_be_read_is_not_put_down_to_the_cache(tmp_path):
    with pytest.raises(PermissionError), _written_in(tmp_path / "cache/corpus"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "corpus.txt"))
    for where in ("cache", "cache/corpus/made/text.raw"):
        with pytest.raises(RunFailed, match="Permission denied.*JPEFT_CACHE"), _written_in(tmp_path / "cache/corpus"):
            raise PermissionError(13, "Permission denied", str(tmp_path / where))
