"""T5 tokenizers: text to ids that end in `</s>`, and back."""

import dataclasses
import hashlib
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from jpeft.errors import UserError

VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of one text each, `</s>` included, and how many texts had to be cut to fit."""

    ids: list[list[int]]
    num_cut: int


class Tokenizer:
    """A sentence-piece vocabulary with T5's special ids."""

    def __init__(self, backend: tokenizers.Tokenizer, *, eos_token_id: int, directory: Path):
        self._backend = backend
        self._directory = directory
        self.eos_token_id = eos_token_id
        # Told apart by content, so that token caches survive a moved directory and not a changed vocabulary.
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()

    @classmethod
    def load(cls, directory: Path, *, vocab_size: int | None = None, eos_token_id: int = 1) -> "Tokenizer":
        """Opens `tokenizer.json`, or converts `spiece.model` where that is all there is.

        Args:
          vocab_size: embeddings of the model that it is for; None when there is no model yet.

        Raises:
          UserError: neither file is there, it is damaged, or it has more pieces than the model has embeddings.
        """
        if (directory / "tokenizer.json").is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
            except Exception as error:  # tokenizers raises bare Exception
                raise UserError(_can_not_be_read(directory / "tokenizer.json", error)) from None
        elif (directory / "spiece.model").is_file():
            from transformers import T5Tokenizer

            try:
                backend = T5Tokenizer.from_pretrained(directory).backend_tokenizer
            except Exception as error:  # of whichever reader transformers falls back to last
                raise UserError(_can_not_be_read(directory / "spiece.model", error)) from None
        else:
            raise UserError(
                f"{directory} has no tokenizer; expected tokenizer.json or spiece.model beside config.json."
            )
        if vocab_size is not None and backend.get_vocab_size() > vocab_size:
            raise UserError(
                f"{directory}: the tokenizer has {backend.get_vocab_size()} pieces and the model {vocab_size} "
                "embeddings; they are of different models."
            )
        backend.no_padding()
        backend.no_truncation()
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
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    @property
    def vocab_size(self) -> int:
        """Pieces, special ones included."""
        return self._backend.get_vocab_size()

    @property
    def sentinels(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, ...; empty for a vocabulary without them."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        names = itertools.takewhile(vocabulary.__contains__, map("<extra_id_{}>".format, itertools.count()))
        return [vocabulary[name] for name in names]

    def decode(self, rows: Sequence[Sequence[int]], *, keep_special: bool = False) -> list[str]:
        """Texts of id rows without surrounding white space and, unless asked for, without special tokens."""
        texts = self._backend.decode_batch([list(row) for row in rows], skip_special_tokens=not keep_special)
        return [text.strip() for text in texts]

    def save(self, directory: Path) -> None:
        """Copies the tokenizer's files, so that a saved model opens with its own."""
        for name in TOKENIZER_FILES:
            if (self._directory / name).is_file() and self._directory.resolve() != directory.resolve():
                shutil.copyfile(self._directory / name, directory / name)


def _can_not_be_read(path: Path, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return f"{path} can not be read as a tokenizer ({reason}); copy it again."
