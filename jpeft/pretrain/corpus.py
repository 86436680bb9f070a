"""Corpus files as token ids on disk: tokenised once, then memory-mapped, whatever their size."""

import contextlib
import dataclasses
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jpeft.data.prompts import PromptTokens
from jpeft.errors import RunFailed
from jpeft.files import cache_directory, write_whole
from jpeft.model.chat import NONE
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.corpus_rows import read_texts
from jpeft.rows.reading import kind_of
from jpeft.trouble import is_disk_full, is_within

KINDS = ("text", "pairs")
COLUMNS = {"text": ("text",), "pairs": ("input", "target")}
_FORMAT = {"text": "bare", "pairs": "as prompts and answers"}  # of the cached ids, part of the cache key
_READER_VERSION = 2  # increased when the same bytes are read as other rows
_ROWS_AT_ONCE = 2000


@dataclasses.dataclass(frozen=True)
class Texts:
    """Token ids of many texts; `self[i]` are those of text i.

    Attributes:
      ids: `[tokens]`, of all texts one after another.
      ends: `[texts]`, the end of each text in `ids`.
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    def lengths(self) -> np.ndarray:
        """`[texts]`: the number of tokens of each text."""
        return np.diff(self.ends, prepend=0)


def load_texts(
    files: Sequence[Path], kind: str, tokenizer: Tokenizer, *, report: Callable[[str], None] = lambda line: None
) -> tuple[Texts, ...]:
    """Tokenises a source, or loads its tokens from the cache.

    Of a text only its own tokens are stored; inputs and targets become prompts and answers as in fine-tuning, including
    what surrounds them (`Tokenizer.wording`).

    Returns:
      One `Texts` for a source of kind `text`, two (inputs, targets) for `pairs`.

    Raises:
      UserError: as `read_texts`.
      RunFailed: the cache cannot be written.
    """
    own = tokenizer.asked_by(NONE) if kind == "text" else tokenizer  # texts are not wrapped in a chat template
    digest = hashlib.sha256(f"{own.fingerprint} {kind} {_FORMAT[kind]} {_READER_VERSION}".encode())
    for file in files:
        digest.update(f" {kind_of(file)}".encode())  # the same bytes mean other rows in a .csv than in a .tsv
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    directory = cache_directory() / "corpus" / digest.hexdigest()
    try:
        return _read(directory, COLUMNS[kind])
    except (OSError, ValueError, EOFError):  # absent, or damaged
        shutil.rmtree(directory, ignore_errors=True)
        report(f"tokenises {', '.join(file.name for file in files)}")
    with _written_in(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, ignore_cleanup_errors=True) as beside:
            _tokenise(files, COLUMNS[kind], tokenizer, Path(beside), report)
            with contextlib.suppress(OSError):  # another process was as fast
                Path(beside).rename(directory)
    return _read(directory, COLUMNS[kind])


def _read(directory: Path, columns: Sequence[str]) -> tuple[Texts, ...]:
    """Loads the tokens of each column, as written by `_tokenise`. Raises NumPy's errors or `ValueError` if damaged."""
    texts = tuple(
        Texts(
            np.load(directory / f"{column}.ids.npy", mmap_mode="r", allow_pickle=False),
            np.load(directory / f"{column}.ends.npy", allow_pickle=False),
        )
        for column in columns
    )
    for ids, ends in ((text.ids, text.ends) for text in texts):
        if (ids.dtype, ids.ndim, ends.dtype, ends.ndim) != (np.uint32, 1, np.int64, 1):
            raise ValueError("wrong dtype or shape")
        bounds = np.concatenate([[0], ends])
        if len(ends) != len(texts[0]) or (np.diff(bounds) < 0).any() or bounds[-1] != len(ids):
            raise ValueError("inconsistent lengths")
    return texts


@contextlib.contextmanager
def _written_in(directory: Path) -> Iterator[None]:
    """Turns an `OSError` of writing to the cache into a `RunFailed` that says what to do."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else ""
        above = bool(named) and is_within(directory, Path(named))
        if not (is_disk_full(error) or above or is_within(named, directory)):
            raise  # an error of reading the corpus
        raise RunFailed(
            f"{directory} cannot be written ({error.strerror or error}), where the tokens of a corpus are kept; set "
            "the environment variable JPEFT_CACHE to a directory that can be and has room."
        ) from None


def _tokenise(
    files: Sequence[Path],
    columns: Sequence[str],
    tokenizer: Tokenizer,
    directory: Path,
    report: Callable[[str], None],
) -> None:
    lengths: dict[str, list[int]] = {column: [] for column in columns}
    raw = {column: (directory / f"{column}.raw").open("wb") for column in columns}
    for file in files:
        for rows in _groups(read_texts(file, columns, report=report)):
            for column, texts in zip(columns, zip(*rows, strict=True), strict=True):
                for ids in _IDS[column](tokenizer, texts):
                    raw[column].write(np.asarray(ids, np.uint32).tobytes())
                    lengths[column].append(len(ids))
    for column in columns:
        raw[column].close()
        path = directory / f"{column}.raw"
        # Not copied to memory: a memory map is written out piece by piece.
        ids = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)
        _save(directory / f"{column}.ids.npy", ids)
        _save(directory / f"{column}.ends.npy", np.cumsum(lengths[column], dtype=np.int64))
        del ids
        path.unlink()


def _save(path: Path, array: np.ndarray) -> None:
    with write_whole(path) as beside, beside.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def are_empty(texts: Texts, empty: Sequence[int]) -> np.ndarray:
    """`[len(texts)]`: whether each text equals `empty`, the ids of an empty text."""
    lengths = texts.lengths()
    found = lengths == len(empty)
    for i in np.flatnonzero(found):
        found[i] = np.array_equal(texts[int(i)], empty)
    return found


def empty_pair(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of an empty input and of an empty target."""
    (input_,), (target,) = _prompts(tokenizer, [""]), tokenizer.answers([""])
    return input_, target


def _prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Inputs as prompts of any length; those that are too long for a row are left out later, never truncated."""
    return PromptTokens("{input}", tokenizer, sys.maxsize)([{"input": text} for text in texts]).ids


_IDS: Mapping[str, Callable[[Tokenizer, Sequence[str]], list[list[int]]]] = {
    "text": lambda tokenizer, texts: tokenizer.ids(texts),
    "input": _prompts,
    "target": lambda tokenizer, texts: tokenizer.answers(texts),
}


def _groups(rows: Iterator[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    group = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
