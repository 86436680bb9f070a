"""T5 tokenizers: text to ids that end in `</s>`, and back."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jpeft.errors import UserError
from jpeft.files import read_json_object

VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json")
_MOST_BYTES = 256 * 2**20  # of a file; that of a vocabulary of 256,000 pieces has 34 MiB
_MOST_SETTINGS_BYTES = 4 * 2**20
_MOST_ADDED = 4096  # tokens beside a vocabulary's own; those of T5 are 100
_MOST_GROWTH = 10_000  # characters that the rules of a tokenizer may make of one; those of T5 make 18
_CONTROL = ("<pad>", "</s>", "<unk>", "<s>", "<mask>")
_SENTINEL = re.compile(r"\u2581?<extra_id_\d+>")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of one text each, `</s>` included, and how many texts had to be cut to fit."""

    ids: list[list[int]]
    num_cut: int


class Tokenizer:
    """A sentence-piece vocabulary with T5's special ids.

    Text is text: what spells `<pad>`, `</s>`, `<extra_id_0>` or a byte piece in it becomes its characters' pieces.
    Tokens that somebody added to the vocabulary (`<sep>`) are tokens wherever they stand, special or not.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, eos_token_id: int, directory: Path):
        self._directory = directory
        self.eos_token_id = eos_token_id
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._control = {
            name: id_
            for name, id_ in vocabulary.items()
            if name in _CONTROL or id_ == eos_token_id or _SENTINEL.fullmatch(name)
        }
        self._names = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or r"(?!)")
        self._silent = frozenset(self._control.values())
        # Told apart by content, so that token caches survive a moved directory and not a changed vocabulary. The
        # description holds the normaliser, the post-processor and added tokens, too.
        made_of = [backend.to_str(), eos_token_id, tokenizers.__version__, "text is text"]
        self.fingerprint = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        self._backend = _reading_text_as_text(backend, self._control)

    @classmethod
    def load(cls, directory: Path, *, vocab_size: int | None = None, eos_token_id: int = 1) -> "Tokenizer":
        """Opens `tokenizer.json`, or converts `spiece.model` where that is all there is.

        Args:
          vocab_size: embeddings of the model that it is for; None when there is no model yet.

        Raises:
          UserError: neither file is there, it is damaged, or it has more pieces than the model has embeddings.
        """
        path = next((directory / name for name in VOCABULARIES if (directory / name).is_file()), None)
        if path is None:
            raise UserError(
                f"{directory} has no tokenizer; expected tokenizer.json or spiece.model beside config.json."
            )
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size / 2**20:,.0f} MiB, more than the {_MOST_BYTES // 2**20} that a "
                "tokenizer may have; copy it again."
            )
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; copy it again.")
        if path.name == "spiece.model":
            _refuse_many_tokens(directory)
        with _one_line(lambda reason: f"{path} cannot be read as a tokenizer ({reason}); copy it again."):
            if path.name == "tokenizer.json":
                backend = tokenizers.Tokenizer.from_file(str(path))
            else:
                from transformers import T5Tokenizer

                backend = T5Tokenizer.from_pretrained(directory).backend_tokenizer
            growth = _growth(json.loads(backend.to_str()))
            if growth > _MOST_GROWTH:
                raise ValueError(f"its rules can make {growth:.0e} characters of one")
            backend.no_padding()
            backend.no_truncation()
            # A vocabulary without a piece for what is unknown shows here, not in the middle of a run.
            backend.decode(backend.encode("a\ue000 0", add_special_tokens=False).ids)
        pieces = max(backend.get_vocab_size(), max(backend.get_vocab().values(), default=0) + 1)
        if vocab_size is not None and pieces > vocab_size:
            raise UserError(
                f"{directory}: the tokenizer has {pieces} pieces and the model {vocab_size} "
                "embeddings; they are of different models."
            )
        return cls(backend, eos_token_id=eos_token_id, directory=directory)

    def encode(self, texts: Sequence[str], *, max_length: int) -> Encoded:
        """Ids of each text, at most `max_length` of them, the last always `</s>`."""
        num_cut, rows = 0, []
        for ids in self.ids(texts):
            num_cut += len(ids) >= max_length
            rows.append([*ids[: max_length - 1], self.eos_token_id])
        return Encoded(rows, num_cut)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each whole text, without `</s>`."""
        with self._working():
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def round_trip(self, texts: Sequence[str]) -> list[str]:
        """Each text as a model writes it: what the vocabulary folds is folded, what it does not have is lost."""
        return self.decode(self.ids(texts))

    @property
    def unknown_token_id(self) -> int | None:
        """The id of the token for characters that the vocabulary lacks; None if it lacks none."""
        return self._control.get("<unk>")

    def unknown_characters(self, text: str) -> list[str]:
        """Pieces of a text that the vocabulary does not have, each once, in order."""
        with self._working():
            encoding = self._backend.encode(text, add_special_tokens=False)
        lost = [
            text[start:end]
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ == self.unknown_token_id
        ]
        return list(dict.fromkeys(lost))

    def special_names(self, text: str) -> list[str]:
        """Names of padding, ends, sentinels and their like that a text spells, which are read as text."""
        return list(dict.fromkeys(self._names.findall(text)))

    @property
    def vocab_size(self) -> int:
        """The number of pieces in the vocabulary, special ones included."""
        return self._backend.get_vocab_size()

    def token_starts(self, texts: Sequence[str]) -> list[list[int]]:
        """For each token of each text the character that it begins at."""
        with self._working():
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [[start for start, _ in encoding.offsets] for encoding in encodings]

    @property
    def sentinels(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, ...; empty for a vocabulary without them."""
        return [self._control[name] for name in self.sentinel_names]

    @property
    def sentinel_names(self) -> list[str]:
        """`<extra_id_0>`, `<extra_id_1>`, ... as far as the vocabulary has them."""
        names = map("<extra_id_{}>".format, itertools.count())
        return list(itertools.takewhile(self._control.__contains__, names))

    def decode(self, rows: Sequence[Sequence[int]], *, keep_special: bool = False) -> list[str]:
        """Texts of id rows without surrounding white space.

        Args:
          keep_special: whether padding, ends and sentinels are written. Tokens that were added to the vocabulary
            always are: they are what somebody wanted to read.
        """
        rows = [[id_ for id_ in map(int, row) if keep_special or id_ not in self._silent] for row in rows]
        with self._working():
            return [text.strip() for text in self._backend.decode_batch(rows, skip_special_tokens=False)]

    def _working(self) -> contextlib.AbstractContextManager[None]:
        return _one_line(
            lambda reason: f"the tokenizer of {self._directory} fails on a text ({reason}); it cannot be used."
        )

    def save(self, directory: Path) -> None:
        """Copies the tokenizer's files, so that a saved model opens with its own."""
        for name in TOKENIZER_FILES:
            if (self._directory / name).is_file() and self._directory.resolve() != directory.resolve():
                shutil.copyfile(self._directory / name, directory / name)


def _refuse_many_tokens(directory: Path) -> None:
    """Raises `UserError`: files beside a `spiece.model` ask for so many more tokens that adding them takes minutes."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if not (directory / name).is_file():
            continue
        values = read_json_object(directory / name, most_bytes=_MOST_SETTINGS_BYTES)
        numbers = [len(value) for value in (values, *values.values()) if isinstance(value, list | dict)]
        extra = values.get("extra_ids")
        if isinstance(extra, int | float):
            numbers.append(int(extra))
        if max(numbers) > _MOST_ADDED:
            raise UserError(f"{directory / name} asks for {max(numbers):,} tokens; expected {_MOST_ADDED:,} at most.")


@contextlib.contextmanager
def _one_line(message: Callable[[str], str]) -> Iterator[None]:
    """Makes `UserError`s of what the tokenizers library raises: bare exceptions, and panics, no `Exception`s at all."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(message(str(error).partition("\n")[0])) from None


def _growth(described: Mapping[str, Any]) -> float:
    """At most how many characters the normaliser, or the decoder, makes of one by what it puts in places of others."""

    def of(step: Any) -> float:
        if not isinstance(step, Mapping):
            return 1.0
        found = 1.0
        for part in (*step.get("normalizers", ()), *step.get("decoders", ()), *step.get("pretokenizers", ())):
            found *= of(part)
        pattern = step.get("pattern") or {}
        if step.get("type") == "Replace":
            found *= max(1.0, len(step["content"]) / max(1, len(pattern.get("String", ""))))
        if step.get("type") == "Prepend":
            found *= 1 + len(step["prepend"])
        return found

    return max(of(described.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder"))


def _reading_text_as_text(backend: tokenizers.Tokenizer, control: Mapping[str, int]) -> tokenizers.Tokenizer:
    """A copy that never makes a control token of text.

    Two ways lead there. The library looks for special tokens before all else, which can be switched off; and a
    unigram vocabulary holds them (and byte pieces) as pieces like others, which is barred by splitting their names
    behind the first character. A special token that is none of the control tokens is then looked for like any other
    added one.
    """
    described = json.loads(backend.to_str())
    added = [token for token in described["added_tokens"] if token["special"] and token["content"] not in control]
    if added:
        for token in added:
            token["special"] = False
        backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    else:
        backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.encode_special_tokens = True
    rests: dict[str, list[str]] = {}
    for name in control:
        rests.setdefault(name[:1], []).append(re.escape(name[1:]))
    if "<0x00>" in backend.get_vocab():
        rests.setdefault("<", []).append("0x[0-9A-F]{2}>")
    splits = [f"{re.escape(first)}(?={'|'.join(filter(None, rest))})" for first, rest in rests.items() if any(rest)]
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex("|".join(splits)), "isolated")
    before = backend.pre_tokenizer
    backend.pre_tokenizer = split if before is None else tokenizers.pre_tokenizers.Sequence([before, split])
    return backend
