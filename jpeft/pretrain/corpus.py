"""Corpus files as token ids on disk: tokenised once, then read in place however large they are."""

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
_MADE = {"text": "bare", "pairs": "as prompts and answers"}  # what the cache holds of each kind
_READ_AS = 2  # raised when other rows are read of the same bytes, as when quotes in a CSV came to mean something else
_ROWS_AT_ONCE = 2000


@dataclasses.dataclass(frozen=True)
class Texts:
    """Token ids of many texts; `self[i]` are those of the i-th."""

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    def lengths(self) -> np.ndarray:
        """The number of tokens of each text of the corpus, in order."""
        return np.diff(self.ends, prepend=0)


def load_texts(
    files: Sequence[Path], kind: str, tokenizer: Tokenizer, *, report: Callable[[str], None] = lambda line: None
) -> tuple[Texts, ...]:
    """One `Texts` for a source of kind `text`, two (inputs, targets) for `pairs`; from the cache where it has them.

    Of a text the ids of its own tokens alone; inputs and targets are prompts and answers as fine-tuning makes them,
    with what stands around them (`Tokenizer.wording`).

    Raises:
      UserError: as `read_texts`.
      RunFailed: the cache cannot be written.
    """
    own = tokenizer.asked_by(NONE) if kind == "text" else tokenizer  # around a text stands nothing of a chat
    digest = hashlib.sha256(f"{own.fingerprint} {kind} {_MADE[kind]} {_READ_AS}".encode())
    for file in files:
        digest.update(f" {kind_of(file)}".encode())  # the same bytes are other rows as .csv than as .tsv
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    directory = cache_directory() / "corpus" / digest.hexdigest()
    try:
        return _read(directory, COLUMNS[kind])
    except (OSError, ValueError, EOFError):  # it is not there, or it is damaged and made again
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
    """The tokens of each column, as `_tokenise` wrote them. Raises whatever NumPy does, or `ValueError`: damaged."""
    texts = tuple(
        Texts(
            np.load(directory / f"{column}.ids.npy", mmap_mode="r", allow_pickle=False),
            np.load(directory / f"{column}.ends.npy", allow_pickle=False),
        )
        for column in columns
    )
    for ids, ends in ((text.ids, text.ends) for text in texts):
        if (ids.dtype, ids.ndim, ends.dtype, ends.ndim) != (np.uint32, 1, np.int64, 1):
            raise ValueError("other arrays")
        bounds = np.concatenate([[0], ends])
        if len(ends) != len(texts[0]) or (np.diff(bounds) < 0).any() or bounds[-1] != len(ids):
            raise ValueError("other rows")
    return texts


@contextlib.contextmanager
def _written_in(directory: Path) -> Iterator[None]:
    """Raises `RunFailed` where the system cannot write there: what could not, and what to set."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else ""
        above = bool(named) and is_within(directory, Path(named))
        if not (is_disk_full(error) or above or is_within(named, directory)):
            raise  # of a file of the corpus
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
        # Without a copy in memory: what is mapped is written out piece by piece.
        ids = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)
        _save(directory / f"{column}.ids.npy", ids)
        _save(directory / f"{column}.ends.npy", np.cumsum(lengths[column], dtype=np.int64))
        del ids
        path.unlink()


def _save(path: Path, array: np.ndarray) -> None:
    with write_whole(path) as beside, beside.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def says_nothing(texts: Texts, empty: Sequence[int]) -> np.ndarray:
    """`[len(texts)]`: whether each is what is made of an empty text, `empty`."""
    lengths = texts.lengths()
    found = lengths == len(empty)
    for i in np.flatnonzero(found):
        found[i] = np.array_equal(texts[int(i)], empty)
    return found


def empty_pair(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What is made of an input and of a target without any text."""
    (input_,), (target,) = _prompts(tokenizer, [""]), tokenizer.answers([""])
    return input_, target


def _prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Whole inputs as prompts; what is too long for a row is left out elsewhere, and never cut."""
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
