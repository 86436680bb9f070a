"""Tokenizers, of T5 and of decoder-only models: text to ids, prompts and answers to what a model reads, and back."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object, read_text, write_whole
from jpeft.model import chat
from jpeft.model.chat import Wording
from jpeft.model.gguf import is_gguf, open_gguf
from jpeft.trouble import first_line
from jpeft.words import why_not_utf8

VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_MOST_BYTES = 256 * 2**20  # of a file; that of a vocabulary of 256,000 pieces has 34 MiB
_MOST_SETTINGS_BYTES = 4 * 2**20
_MOST_ADDED = 4096  # tokens beside a vocabulary's own; those of T5 are 100
_MOST_GROWTH = 10_000  # characters that the rules of a tokenizer may make of one; those of T5 make 18
_ROLES = ("pad_token", "eos_token", "bos_token", "unk_token", "mask_token")  # as the files beside a vocabulary say it
_CONTROL = ("<pad>", "</s>", "<unk>", "<s>", "<mask>")  # as T5's own files call them, where nothing says so
_SENTINEL = re.compile(r"\u2581?<extra_id_\d+>")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of one text each, the token that ends it included, and how many texts had to be cut to fit."""

    ids: list[list[int]]
    num_cut: int


class Tokenizer:
    """A vocabulary, the special ids of its model, and what stands around prompts and answers (`wording`).

    Text is text: what spells `<pad>`, `</s>`, `<extra_id_0>`, `<|im_end|>` or a byte piece in it becomes its
    characters' pieces. Tokens that somebody added to the vocabulary (`<sep>`) are tokens wherever they stand; of a T5's
    the special ones, too.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_id: int,
        directory: Path,
        continues: bool = False,
        settings: Mapping[str, Any] | None = None,
        other_ends: Collection[int] = (),
        special_ids: Collection[int] = (),
    ):
        self._directory, self._source = directory, backend
        self._continues, self._settings, self._chat = continues, dict(settings or {}), chat.AUTO
        self.eos_token_id, self.ends = eos_token_id, frozenset({eos_token_id, *other_ends})
        described = json.loads(backend.to_str())
        self._unknown = _unknown_of(described, backend)
        model = described["model"]  # of others without a token for the unknown a text is an error, or a word is whole
        affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        self._may_leave_out = model["type"] == "BPE" and not affixes
        ids = {*self.ends, *special_ids, self._unknown, *(_named(backend, self._settings, role) for role in _ROLES)}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._control = {
            name: id_ for name, id_ in vocabulary.items() if name in _CONTROL or id_ in ids or _SENTINEL.fullmatch(name)
        }
        if continues:  # chats are written with them: a row that spells one must not begin another message
            added = backend.get_added_tokens_decoder()
            self._control |= {token.content: id_ for id_, token in added.items() if token.special}
        self._names = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or r"(?!)")
        self._silent = frozenset(self._control.values())
        self._backend = _reading_text_as_text(described, self._control)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        vocab_size: int | None = None,
        eos_token_id: int | None = 1,
        continues: bool = False,
        other_ends: Collection[int] = (),
        special_ids: Collection[int] = (),
    ) -> "Tokenizer":
        """Opens `tokenizer.json`, converts `spiece.model` where that is all there is, or takes that of a GGUF file.

        Args:
          vocab_size: embeddings of the model that it is for; None when there is no model yet.
          eos_token_id: of the token that ends texts; None is what the settings beside the vocabulary name.
          continues: whether that model goes on with a prompt, which is a decoder-only one, or answers it apart.
          other_ends: ids of further tokens at which that model stops; a chat template may end answers with one.
          special_ids: of other tokens that are no text to that model, such as its padding, whatever they are called.
            Those with a role in the settings beside the vocabulary are known without.

        Raises:
          UserError: there is no tokenizer, it is damaged, it has more pieces than the model has embeddings, or no token
            is named that ends texts.
        """
        backend, settings = _read_gguf(directory) if is_gguf(directory) else _read(directory)
        pieces = _num_ids(backend)
        if vocab_size is not None and pieces > vocab_size:
            raise UserError(
                f"{directory}: the tokenizer has {pieces} pieces and the model {vocab_size} "
                "embeddings; they are of different models."
            )
        if eos_token_id is None:
            eos_token_id = _named(backend, settings, "eos_token")
        if eos_token_id is None:
            raise UserError(
                f"{directory}: its settings (tokenizer_config.json) name no eos_token of the vocabulary; write there "
                "what ends a text."
            )
        return cls(
            backend,
            eos_token_id=eos_token_id,
            directory=directory,
            continues=continues,
            settings=settings,
            other_ends=other_ends,
            special_ids=special_ids,
        )

    def asked_by(self, chat_template: str | None) -> "Tokenizer":
        """The same with prompts and answers put as a chat template says.

        Args:
          chat_template: its text; `auto` is the model's own if its files hold one, `none` is without. None, which is
            what runs of a T5 record, is `auto`.

        Raises:
          UserError: the model is no decoder-only one and a template is given. A template that cannot be used is told
            of when the first prompt is made.
        """
        chosen = chat_template or chat.AUTO
        if not self._continues and chosen not in (chat.AUTO, chat.NONE):
            raise UserError(
                f"data.chat_template is for decoder-only models, and {self._directory} is an encoder-decoder; leave it."
            )
        other = copy.copy(self)
        for made in ("wording", "fingerprint"):
            other.__dict__.pop(made, None)
        other._chat = chosen
        return other

    @functools.cached_property
    def wording(self) -> Wording:
        """What stands around a prompt and its answer. Raises `UserError`: the chat template cannot be used."""
        eos = self.eos_token_id
        if not self._continues:
            return Wording(after=(eos,), end=eos)
        template = self._settings.get("chat_template") if self._chat == chat.AUTO else self._chat
        with self._working():
            bare = self._backend.encode("a", add_special_tokens=False)
            begun = self._backend.encode("a", add_special_tokens=True).ids
        spaced = bare.tokens[0][:1] in ("\u2581", "\u0120")
        if not isinstance(template, str) or template == chat.NONE:
            begin = tuple(begun[: begun.index(bare.ids[0])]) if bare.ids[0] in begun else ()
            return Wording(before=begin, lead="" if spaced else " ", end=eos, chat_template=chat.NONE)
        source = str(self._directory) if self._chat == chat.AUTO else "data.chat_template"
        names, control = self._roles(), self._control
        end = chat.end_of(template, names=names, control=control, source=source)
        return chat.wording_of(
            template,
            names=names,
            control=control,
            end=end if end is not None and end in self.ends else eos,
            pad=self.pad_token_id,
            spaced=spaced,
            source=source,
        )

    def _roles(self) -> dict[str, str]:
        """Special tokens by role, as templates name them."""
        named = {role: self._settings.get(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
        texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in named.items()}
        return {role: text for role, text in texts.items() if isinstance(text, str)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """By which tokens of texts are known again: another vocabulary, version or wording is another fingerprint."""
        # Told apart by content, so that token caches survive a moved directory and not a changed vocabulary. The
        # description holds the normaliser, the post-processor and added tokens, too.
        made_of = [self._described, self.eos_token_id, tokenizers.__version__, "text is text", sorted(self._control)]
        if self._continues:
            made_of += ["continues", *dataclasses.astuple(self.wording)]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    @functools.cached_property
    def _described(self) -> str:
        return self._source.to_str()

    def encode(self, texts: Sequence[str], *, max_length: int) -> Encoded:
        """Ids of each text as an answer, at most `max_length` of them, the last always the one that ends it."""
        num_cut, rows = 0, []
        for ids in self.answers(texts):
            num_cut += len(ids) > max_length
            rows.append([*ids[:-1][: max_length - 1], ids[-1]])
        return Encoded(rows, num_cut)

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each whole text as a model writes it behind a prompt, the token that ends it included."""
        lead, end = self.wording.lead, self.wording.end
        return [[*ids, end] for ids in self.ids([lead + text for text in texts])]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each whole text, with no special token before or behind it and nothing cut."""
        with self._working(texts):
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def round_trip(self, texts: Sequence[str]) -> list[str]:
        """Each text as a model writes it: what the vocabulary folds is folded, what it does not have is lost."""
        return self.decode(self.ids(texts))

    @property
    def pad_token_id(self) -> int:
        """The id that fills rows up: what the settings beside the vocabulary name, or the one that ends texts."""
        id_ = _named(self._source, self._settings, "pad_token")
        return self.eos_token_id if id_ is None else id_

    @property
    def unknown_token_id(self) -> int | None:
        """The id of the token for characters that the vocabulary lacks; None if it lacks none.

        None, too, where it is the one that ends texts: byte-level vocabularies name that, and lack nothing.
        """
        return None if self._unknown == self.eos_token_id else self._unknown

    @functools.cached_property
    def leaves_out_characters(self) -> bool:
        """Whether a character that the vocabulary lacks becomes no token at all, or the one that ends texts."""
        return self._may_leave_out and self.unknown_token_id is None and bool(self._left_out("a\ue000"))

    def unknown_characters(self, text: str) -> list[str]:
        """Pieces of a text that the vocabulary does not have, each once, in order."""
        if self.leaves_out_characters:
            return list(dict.fromkeys(self._left_out(text)))
        with self._working([text]):
            encoding = self._backend.encode(text, add_special_tokens=False)
        lost = [
            text[start:end]
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ == self.unknown_token_id
        ]
        return list(dict.fromkeys(lost))

    def _left_out(self, text: str) -> list[str]:
        """Characters, white space apart, that no token stands for; offsets of the others are not to be relied on."""
        return [character for character in text if not character.isspace() and self._has_no_token(character)]

    @functools.cached_property
    def _has_no_token(self) -> Callable[[str], bool]:
        """Whether a character, as the vocabulary folds it, has a part for which its model gives nothing."""
        backend, unknown = self._source, self._unknown

        @functools.cache
        def has_none(character: str) -> bool:
            folded = backend.normalizer.normalize_str(character) if backend.normalizer else character
            pieces = backend.pre_tokenizer.pre_tokenize_str(folded) if backend.pre_tokenizer else [(folded, None)]
            made = [backend.model.tokenize(part) for piece, _ in pieces for part in piece]
            return any(all(token.id == unknown for token in tokens) for tokens in made)

        return has_none

    def special_names(self, text: str) -> list[str]:
        """Names of padding, ends, sentinels and their like that a text spells, which are read as text."""
        return list(dict.fromkeys(self._names.findall(text)))

    @property
    def vocab_size(self) -> int:
        """The number of ids that the vocabulary needs, those of special pieces and of holes included."""
        return _num_ids(self._source)

    def token_starts(self, texts: Sequence[str]) -> list[list[int]]:
        """For each token of each text the character that it begins at."""
        with self._working(texts):
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

    def _working(self, texts: Sequence[str] = ()) -> contextlib.AbstractContextManager[None]:
        def why(reason: str) -> str:
            said = next(filter(None, map(why_not_utf8, texts)), None)  # no fault of the tokenizer's
            told = f"the tokenizer of {self._directory} fails on a text ({reason}); it cannot be used"
            return f"{said or told}."

        return _one_line(why)

    def save(self, directory: Path) -> None:
        """Copies the tokenizer's files, so that a saved model opens with its own; of a GGUF file it writes them."""
        if not is_gguf(self._directory):
            for name in TOKENIZER_FILES:
                if (self._directory / name).is_file() and self._directory.resolve() != directory.resolve():
                    shutil.copyfile(self._directory / name, directory / name)
            if not any((directory / name).is_file() for name in VOCABULARIES):
                raise RunFailed(f"{self._directory}: the tokenizer's files are gone; {directory} has none now.")
            return
        with write_whole(directory / "tokenizer.json") as beside:
            beside.write_text(self._described, encoding="utf-8")
        with write_whole(directory / "tokenizer_config.json") as beside:
            beside.write_text(json.dumps(self._settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_files(model: Path) -> list[Path]:
    """The files beside a model's weights that its tokenizer is made of; none of a GGUF file, which holds its own."""
    names = (*TOKENIZER_FILES, "added_tokens.json")
    return [model / name for name in names if (model / name).is_file()]


def _num_ids(backend: tokenizers.Tokenizer) -> int:
    return max(backend.get_vocab_size(), max(backend.get_vocab().values(), default=0) + 1)


def _named(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], role: str) -> int | None:
    """The id of the special token that has a role such as `eos_token`; None where the settings name none."""
    token = settings.get(role)
    name = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(name) if isinstance(name, str) else None


def _unknown_of(described: Mapping[str, Any], backend: tokenizers.Tokenizer) -> int | None:
    """The id that a vocabulary gives to what it does not have, as its own model says."""
    model = described["model"]
    if model["type"] == "Unigram":
        return model.get("unk_id")
    name = model.get("unk_token")
    return backend.token_to_id(name) if isinstance(name, str) else None


def _read(directory: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of a model's directory and the settings beside it. Raises as `Tokenizer.load`."""
    path = next((directory / name for name in VOCABULARIES if (directory / name).is_file()), None)
    if path is None:
        raise UserError(f"{directory} has no tokenizer; expected tokenizer.json or spiece.model beside config.json.")
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
        _try_out(backend)
    return backend, _settings(directory)


def _read_gguf(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    from jpeft.model.gguf_tokenizer import backend_of

    file = open_gguf(path)
    with _one_line(lambda reason: f"{path}: its tokenizer cannot be used ({reason}); convert the model again."):
        backend, settings = backend_of(file)
        _try_out(backend)
    return backend, settings


def _try_out(backend: tokenizers.Tokenizer) -> None:
    """A vocabulary without a piece for what is unknown shows here, not in the middle of a run."""
    backend.no_padding()
    backend.no_truncation()
    backend.decode(backend.encode("a\ue000 0", add_special_tokens=False).ids)


def _settings(directory: Path) -> dict[str, Any]:
    """What files say of special tokens, `tokenizer_config.json` before the other, and the chat template."""
    held: dict[str, Any] = {}
    for file in (directory / "special_tokens_map.json", directory / "tokenizer_config.json"):
        values = read_json_object(file, most_bytes=_MOST_SETTINGS_BYTES) if file.is_file() else {}
        held |= {key: value for key, value in values.items() if value is not None or key not in held}
    template = directory / "chat_template.jinja"
    if template.is_file():
        held["chat_template"] = read_text(template, most_bytes=_MOST_SETTINGS_BYTES)
    templates = held.get("chat_template")
    if isinstance(templates, list):  # several by name, as models have that call tools
        named = {each.get("name"): each.get("template") for each in templates if isinstance(each, dict)}
        held["chat_template"] = named.get("default")
    return held


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
    except (UserError, RunFailed):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(message(first_line(error))) from None


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


def _reading_text_as_text(described: Mapping[str, Any], control: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The tokenizer of a description, which never makes a control token of text.

    Two ways lead there. The library looks for special tokens before all else, which can be switched off; and a
    unigram vocabulary holds them (and byte pieces) as pieces like others, which is barred by splitting their names
    behind the first character. A special token that is none of the control tokens is then looked for like any other
    added one.
    """
    names = {token["content"] for token in described["added_tokens"] if token["special"]} & control.keys()
    added = [{**token, "special": token["content"] in names} for token in described["added_tokens"]]
    backend = tokenizers.Tokenizer.from_str(json.dumps({**described, "added_tokens": added}))
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
