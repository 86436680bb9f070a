"""Tokenizers of T5 and of decoder-only models, which never turn text into control tokens."""

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
from jpeft.model.chat import ALONE, TextPlace, Wording
from jpeft.model.gguf import is_gguf, open_gguf
from jpeft.trouble import first_line
from jpeft.words import short, the_first, why_not_utf8

VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
_ADDED_TOKENS = "added_tokens.json"  # what transformers 4 wrote beside a vocabulary
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    _ADDED_TOKENS,
)
_MOST_BYTES = 256 * 2**20  # of a file; a vocabulary of 256,000 pieces takes 34 MiB
_MOST_SETTINGS_BYTES = 4 * 2**20
_MOST_ADDED = 4096  # added tokens; T5 has 100
_MOST_GROWTH = 10_000  # characters that a tokenizer's rules may make of one; T5's make 18
_ROLES = ("pad_token", "eos_token", "bos_token", "unk_token", "mask_token")  # keys of tokenizer_config.json
_CONTROL = ("<pad>", "</s>", "<unk>", "<s>", "<mask>")  # control tokens by name, for files without such keys
_SAVE_AGAIN = "load the tokenizer by transformers and save it again, which writes all of it into tokenizer.json"
_SCHEMES = {"always": "each text", "first": "the first text alone", "never": "no text"}  # `prepend_scheme`s, in words
_SENTINEL = re.compile(r"\u2581?<extra_id_\d+>")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of texts, each with its end token, and how many of the texts had to be truncated."""

    ids: list[list[int]]
    num_cut: int


class Tokenizer:
    """A vocabulary, its model's special ids, and the texts around prompts and answers (`wording`).

    Text never becomes control tokens: `<pad>`, `</s>`, `<extra_id_0>`, `<|im_end|>` or a byte piece that is spelled out
    in a text is tokenised as ordinary characters. Tokens that were added to the vocabulary (such as `<sep>`) are
    recognised everywhere; for a T5 that includes special ones which are no control tokens.
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
        model = described["model"]  # other kinds without an unknown token raise an error, or lose a whole word
        affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        self._may_leave_out = model["type"] == "BPE" and not affixes
        self._added = added = backend.get_added_tokens_decoder()
        ids = {*self.ends, *(added.keys() & special_ids), self._unknown}
        ids |= {_named(backend, self._settings, role) for role in _ROLES}
        if continues and (pad := _named(backend, self._settings, "pad_token")) not in added:
            ids -= {pad} - {self._unknown, *self.ends}  # an ordinary one, such as GPT-2's `!`, remains one
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._control = {
            name: id_ for name, id_ in vocabulary.items() if name in _CONTROL or id_ in ids or _SENTINEL.fullmatch(name)
        }
        if continues:  # chat markup: a row that spells one out must not begin another message
            self._control |= {token.content: id_ for id_, token in added.items() if token.special}
        self._names = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or r"(?!)")
        self._silent = frozenset(self._control.values())
        self._backend = _reading_text_as_text(described, self._control)
        self._rules = {name: described[name] for name in ("normalizer", "pre_tokenizer")}
        self._reading = {"nothing": self._backend}  # backends by `TextPlace.follows`

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
        """Load `tokenizer.json`, else `spiece.model`, or the tokenizer of a GGUF file.

        Args:
          directory: the model's directory or GGUF file.
          vocab_size: the number of the model's embeddings; None if there is no model yet.
          eos_token_id: the id of the end-of-text token; None takes it from `tokenizer_config.json`.
          continues: whether the model is decoder-only, so that the answer continues the prompt.
          other_ends: ids of further tokens at which the model stops; a chat template may end answers with one.
          special_ids: ids with a role in `config.json`, such as padding; those of added tokens are control tokens, and
            an ordinary token remains one. Tokens with a role in `tokenizer_config.json` need not be listed.

        Raises:
          UserError: there is no tokenizer, it is damaged, it has more pieces than the model has embeddings, or its
            end-of-text token is unknown.
        """
        backend, settings = _read_gguf(directory) if is_gguf(directory) else _read(directory)
        pieces = _num_ids(backend)
        if vocab_size is not None and pieces > vocab_size:
            raise UserError(
                f"{directory}: the tokenizer has {pieces} pieces and the model {vocab_size} "
                "embeddings; they are of different models, so copy both again from the same one."
            )
        if eos_token_id is None:
            eos_token_id = _named(backend, settings, "eos_token")
        if eos_token_id is None:
            raise UserError(
                f"{directory}: tokenizer_config.json names no eos_token of the vocabulary; set it to the token that "
                "ends a text."
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
        """A copy that wraps prompts and answers in a chat template.

        Args:
          chat_template: the template's text; `auto` for the model's own, if it has one; `none` for no template. None,
            which runs of a T5 record, means `auto`.

        Raises:
          UserError: a template is given for an encoder-decoder. An unusable template raises only when `wording` is
            first used.
        """
        chosen = chat_template or chat.AUTO
        if not self._continues and chosen not in (chat.AUTO, chat.NONE):
            raise UserError(
                f"data.chat_template is for decoder-only models, and {self._directory} is an encoder-decoder; leave it "
                "out."
            )
        other = copy.copy(self)
        for made in ("wording", "fingerprint", "chat_tokens", "_place_of_answers"):
            other.__dict__.pop(made, None)
        other._chat = chosen
        return other

    @functools.cached_property
    def wording(self) -> Wording:
        """The texts and tokens around a prompt and its answer. Raises `UserError` if the chat template is unusable."""
        eos = self.eos_token_id
        if not self._continues:
            return Wording(after=(eos,), end=eos)
        template = self._settings.get("chat_template") if self._chat == chat.AUTO else self._chat
        if not isinstance(template, str) or template == chat.NONE:
            with self._working():
                first = self._backend.encode("a", add_special_tokens=False).ids[0]
                begun = self._backend.encode("a", add_special_tokens=True).ids
            begin = tuple(begun[: begun.index(first)]) if first in begun else ()
            return Wording(before=begin, lead="" if self._adds_space else " ", end=eos, chat_template=chat.NONE)
        source = str(self._directory) if self._chat == chat.AUTO else "data.chat_template"
        names, control = self._roles(), self._control
        end = chat.end_of(template, names=names, control=control, source=source)
        return chat.wording_of(
            template,
            names=names,
            control=control,
            end=end if end is not None and end in self.ends else eos,
            source=source,
        )

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text by itself."""
        with self._working():
            return self._backend.encode("a", add_special_tokens=False).tokens[0][:1] in ("\u2581", "\u0120")

    def place(self, before: int | None, after: int | None) -> TextPlace:
        """The place of a text between two special tokens of the chat template; None for no token."""
        if self.wording.chat_template in (None, chat.NONE):
            return ALONE
        strips = (self._takes_space(before)[1], self._takes_space(after)[0])
        return TextPlace("nothing" if before is None else "token", strips)

    def _takes_space(self, id_: int | None) -> tuple[bool, bool]:
        """Whether white space before an added token belongs to it, and white space after it."""
        token = None if id_ is None else self._added.get(id_)
        return (False, False) if token is None else (token.lstrip, token.rstrip)

    @functools.cached_property
    def _place_of_answers(self) -> TextPlace:
        wording = self.wording
        if wording.chat_template in (None, chat.NONE):
            return ALONE
        *others, last = wording.after or ("",)
        if isinstance(last, str):
            token = others[-1] if others and isinstance(others[-1], int) else None
            # The text may consist of white space that the token takes, or end with a token that is not special.
            last = next(reversed(self.ids([last], self.place(token, None))[0]), token)
            follows = "token" if last is not None and (last in self._added or last == token) else "text"
        else:
            follows = "token"
        strips = (follows == "token" and self._takes_space(last)[1], self._takes_space(wording.end)[0])
        return TextPlace(follows, strips)

    def _roles(self) -> dict[str, str]:
        """Special tokens by role, the variables of chat templates."""
        named = {role: self._settings.get(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
        texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in named.items()}
        return {role: text for role, text in texts.items() if isinstance(text, str)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash for token caches: it changes with the vocabulary, the wording and the tokenizers library's version."""
        # By content, so that caches survive a moved directory but not a changed vocabulary. The description includes
        # the normaliser, the post-processor and added tokens.
        made_of = [self._described, self.eos_token_id, tokenizers.__version__, "text is text", sorted(self._control)]
        if self._continues:
            of = self.wording
            made_of += ["continues", of.before, of.after, of.lead, of.end, of.chat_template]
            made_of += [self.chat_tokens] if self.chat_tokens is not None else []
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    @functools.cached_property
    def chat_tokens(self) -> str | None:
        """A digest of what makes texts in the chat template other tokens than by themselves; None if nothing does.

        The vocabulary and the template are not part of it. Earlier versions tokenised each text in a chat template by
        itself, so that their adapters of such a model learned other tokens.
        """
        of = self.wording
        if of.chat_template in (None, chat.NONE):
            return None
        tokens = {piece for piece in (*of.before, *of.after) if isinstance(piece, int)}
        places = {self._place_of_answers.follows, *(["token"] if tokens else [])}
        made_of = (
            [place for place in sorted(places) if _rules_after(self._rules, place) != self._rules],
            [id_ for id_ in sorted({*tokens, of.end}) if any(self._takes_space(id_))],
            [strip for strip in (of.prompt_strip, of.answer_strip) if strip != ("", "")],
            of.tail,
            of.lead if self._adds_space else "",
        )
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest() if any(made_of) else None

    @functools.cached_property
    def _described(self) -> str:
        return self._source.to_str()

    @functools.cached_property
    def notes(self) -> list[str]:
        """What `transformers` takes from the files beside `tokenizer.json` and jpeft does not, in a line each."""
        found = []
        added = _read_added(self._directory, self._settings)
        missing = [short(name) for name in dict.fromkeys(added) if self._source.token_to_id(name) is None]
        if missing:
            found.append(
                f"{self._directory}: files beside tokenizer.json add tokens that it lacks ({the_first(missing)}), "
                f"which are ordinary text here and tokens in transformers: {_SAVE_AGAIN}"
            )
        asked = self._settings.get("add_prefix_space")
        before = json.loads(self._described)["pre_tokenizer"] or {}
        if isinstance(asked, bool) and before.get("type") == "ByteLevel" and before["add_prefix_space"] != asked:
            found.append(
                f"{self._directory}: add_prefix_space is {json.dumps(asked)} in tokenizer_config.json and "
                f"{json.dumps(not asked)} in tokenizer.json, which counts here: {_SAVE_AGAIN}"
            )
        asked, own = _scheme_of_llama(self._settings), _scheme_of(self._rules)
        if asked not in (None, own) and "\u2581" in json.dumps(self._rules, ensure_ascii=False):
            found.append(
                f"{self._directory}: transformers 5 puts a space before {_SCHEMES[asked]}, since tokenizer_config.json "
                f"names a LlamaTokenizer, and tokenizer.json, which counts here, before {_SCHEMES[own]}: {_SAVE_AGAIN}"
            )
        templates = self._settings.get("chat_template")
        if self._continues and isinstance(templates, list) and templates:
            named = the_first([*map(short, templates)])
            found.append(
                f"{self._directory}: none of its chat templates ({named}) is the default: prompts have none unless "
                "data.chat_template names a file with one"
            )
        return found

    @property
    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens by their names."""
        return self._source.get_vocab(with_added_tokens=True)

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template; None if it has none."""
        template = self._settings.get("chat_template")
        return template if isinstance(template, str) else None

    def is_same_as(self, other: "Tokenizer") -> bool:
        """Whether another tokenizer has the same vocabulary, special tokens and chat template."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("_described", "_settings", "_control", "ends")
        )

    def encode(self, texts: Sequence[str], *, max_length: int) -> Encoded:
        """Tokenise answers, truncated to `max_length` ids including the end token, which is always kept."""
        num_cut, rows = 0, []
        for ids in self.answers(texts):
            num_cut += len(ids) > max_length
            rows.append([*ids[:-1][: max_length - 1], ids[-1]])
        return Encoded(rows, num_cut)

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise answers as they follow a prompt, with the end token and without truncation."""
        of = self.wording
        texts = [of.lead + chat.stripped(text, of.answer_strip) + of.tail for text in texts]
        return [[*ids, of.end] for ids in self.ids(texts, self._place_of_answers)]

    def ids(self, texts: Sequence[str], place: TextPlace = ALONE) -> list[list[int]]:
        """Tokenise texts that stand at a place, without special tokens or truncation."""
        with self._working(texts):
            backend, texts = self._reading_at(place), [place.stripped(text) for text in texts]
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _reading_at(self, place: TextPlace) -> tokenizers.Tokenizer:
        if place.follows not in self._reading:
            rules = _rules_after(self._rules, place.follows)
            described = None if rules == self._rules else {**json.loads(self._described), **rules}
            made = self._backend if described is None else _reading_text_as_text(described, self._control)
            self._reading[place.follows] = made
        return self._reading[place.follows]

    def round_trip(self, texts: Sequence[str]) -> list[str]:
        """Encode and decode texts: they come back normalised, without characters that the vocabulary lacks."""
        return self.decode(self.ids(texts))

    @property
    def pad_token_id(self) -> int:
        """The padding id named by `tokenizer_config.json`, else the end-of-text id."""
        id_ = _named(self._source, self._settings, "pad_token")
        return self.eos_token_id if id_ is None else id_

    @property
    def unknown_token_id(self) -> int | None:
        """The id of the unknown token, for characters that the vocabulary lacks; None if there is none.

        Also None if it equals the end-of-text id, as byte-level vocabularies have it, which lack no character.
        """
        return None if self._unknown == self.eos_token_id else self._unknown

    @functools.cached_property
    def leaves_out_characters(self) -> bool:
        """Whether a character that the vocabulary lacks is dropped, or becomes the end-of-text token."""
        return self._may_leave_out and self.unknown_token_id is None and bool(self._left_out("a\ue000"))

    def unknown_characters(self, text: str) -> list[str]:
        """The distinct pieces of a text that the vocabulary lacks, in order."""
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
        """Characters other than white space that have no token; in their presence an encoding's offsets are wrong."""
        return [character for character in text if not character.isspace() and self._has_no_token(character)]

    @functools.cached_property
    def _has_no_token(self) -> Callable[[str], bool]:
        """A cached test of whether a character, after normalisation, contains a part without a token."""
        backend, unknown = self._source, self._unknown

        @functools.cache
        def has_none(character: str) -> bool:
            folded = backend.normalizer.normalize_str(character) if backend.normalizer else character
            pieces = backend.pre_tokenizer.pre_tokenize_str(folded) if backend.pre_tokenizer else [(folded, None)]
            made = [backend.model.tokenize(part) for piece, _ in pieces for part in piece]
            return any(all(token.id == unknown for token in tokens) for tokens in made)

        return has_none

    def special_names(self, text: str) -> list[str]:
        """The names of control tokens that a text spells out, which are tokenised as ordinary text."""
        return list(dict.fromkeys(self._names.findall(text)))

    def ordinary(self, id_: int) -> str | None:
        """The name of an ordinary token; None if the id is a control token's or none of the vocabulary."""
        return None if id_ in self._silent else self._source.id_to_token(id_)

    @property
    def vocab_size(self) -> int:
        """The largest id of the vocabulary plus one, which counts special pieces and gaps."""
        return _num_ids(self._source)

    def token_starts(self, texts: Sequence[str], place: TextPlace = ALONE) -> list[list[int]]:
        """The index of the first character of each token of each text, which stands at a place."""
        with self._working(texts):
            shortened = [place.stripped(text) for text in texts]
            encodings = self._reading_at(place).encode_batch(shortened, add_special_tokens=False)
        gone = [len(text) - len(text.lstrip()) if place.strips[0] else 0 for text in texts]
        return [[skip + at for at, _ in encoding.offsets] for skip, encoding in zip(gone, encodings, strict=True)]

    @property
    def sentinels(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, ...; empty for a vocabulary without them."""
        return [self._control[name] for name in self.sentinel_names]

    @property
    def sentinel_names(self) -> list[str]:
        """`<extra_id_0>`, `<extra_id_1>`, ..., up to the first that the vocabulary lacks."""
        names = map("<extra_id_{}>".format, itertools.count())
        return list(itertools.takewhile(self._control.__contains__, names))

    def decode(self, rows: Sequence[Sequence[int]], *, keep_special: bool = False) -> list[str]:
        """Decode rows of ids to texts without surrounding white space.

        Args:
          rows: token ids; negative ones, which are padding, are left out.
          keep_special: whether to keep control tokens (padding, ends, sentinels). Other added tokens are always kept.
        """
        silent = () if keep_special else self._silent
        rows = [[id_ for id_ in map(int, row) if id_ >= 0 and id_ not in silent] for row in rows]
        with self._working():
            return [text.strip() for text in self._backend.decode_batch(rows, skip_special_tokens=False)]

    def _working(self, texts: Sequence[str] = ()) -> contextlib.AbstractContextManager[None]:
        def why(reason: str) -> str:
            invalid = next(filter(None, map(why_not_utf8, texts)), None)  # a fault of the text, not the tokenizer
            return f"{invalid or f'the tokenizer of {self._directory} fails on a text ({reason}); it cannot be used'}."

        return _one_line(why)

    def save(self, directory: Path) -> None:
        """Copy the tokenizer's files to a saved model's directory, or create them from a GGUF file."""
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
    """The files of a model's tokenizer; none for a GGUF file, which contains it."""
    return [model / name for name in TOKENIZER_FILES if (model / name).is_file()]


def _num_ids(backend: tokenizers.Tokenizer) -> int:
    return max(backend.get_vocab_size(), max(backend.get_vocab().values(), default=0) + 1)


def _named(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], role: str) -> int | None:
    """The id of the special token with a role such as `eos_token`; None if the settings name none."""
    token = settings.get(role)
    name = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(name) if isinstance(name, str) else None


def _unknown_of(described: Mapping[str, Any], backend: tokenizers.Tokenizer) -> int | None:
    """The id of the unknown token according to the vocabulary's model, or None."""
    model = described["model"]
    if model["type"] == "Unigram":
        return model.get("unk_id")
    name = model.get("unk_token")
    return backend.token_to_id(name) if isinstance(name, str) else None


def _read(directory: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Read the tokenizer of a directory and its settings. Raises as `Tokenizer.load`."""
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
    return backend, read_settings(directory)


def _read_gguf(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    from jpeft.model.gguf_tokenizer import backend_of

    file = open_gguf(path)
    with _one_line(lambda reason: f"{path}: its tokenizer cannot be used ({reason}); convert the model again."):
        backend, settings = backend_of(file)
        _try_out(backend)
    return backend, settings


def _try_out(backend: tokenizers.Tokenizer) -> None:
    """Encode and decode an unknown character, so that an unusable vocabulary fails here and not during a run."""
    if isinstance(backend.model, tokenizers.models.BPE):
        backend.model.dropout = None  # the same text has the same tokens each time
    backend.no_padding()
    backend.no_truncation()
    backend.decode(backend.encode("a\ue000 0", add_special_tokens=False).ids)


def read_settings(directory: Path) -> dict[str, Any]:
    """Read special tokens and the chat template; `tokenizer_config.json` overrides `special_tokens_map.json`."""
    held: dict[str, Any] = {}
    for file in (directory / "special_tokens_map.json", directory / "tokenizer_config.json"):
        values = read_json_object(file, most_bytes=_MOST_SETTINGS_BYTES) if file.is_file() else {}
        held |= {key: value for key, value in values.items() if value is not None or key not in held}
    template = directory / "chat_template.jinja"
    if template.is_file():
        held["chat_template"] = read_text(template, most_bytes=_MOST_SETTINGS_BYTES)
    templates = held.get("chat_template")
    if isinstance(templates, list):  # several by name, as in models with tool use
        named = {each.get("name"): each.get("template") for each in templates if isinstance(each, dict)}
        held["chat_template"] = named.get("default", [*map(str, named)])  # names are no template; `notes` has them
    return held


def _scheme_of_llama(settings: Mapping[str, Any]) -> str | None:
    """The `prepend_scheme` that transformers 5 gives a `LlamaTokenizer`, whatever tokenizer.json has; else None."""
    if settings.get("tokenizer_class") not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return None
    if settings.get("add_prefix_space") is False:
        return "never"
    return "always" if settings.get("legacy") else "first"


def _scheme_of(rules: Mapping[str, Any]) -> str:
    """The `prepend_scheme` of a normaliser and a pre-tokenizer."""
    after = {place: _rules_after(rules, place) for place in ("token", "text")}
    return "never" if after["text"] == rules else "first" if after["token"] != rules else "always"


def _read_added(directory: Path, settings: Mapping[str, Any]) -> list[str]:
    """The names of the tokens that the files beside a vocabulary add to it."""
    decoder, *several = (
        settings.get(key) for key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")
    )
    tokens = [*decoder.values()] if isinstance(decoder, dict) else []
    for each in several:  # a list, or in files of transformers 5 tokens by what they are for
        tokens += each.values() if isinstance(each, dict) else each if isinstance(each, list) else []
    names = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    if (directory / _ADDED_TOKENS).is_file():
        with contextlib.suppress(UserError, RunFailed):  # where it counts, its reader says what is wrong
            names += read_json_object(directory / _ADDED_TOKENS, most_bytes=_MOST_SETTINGS_BYTES)
    return [name for name in names if isinstance(name, str)]


def _refuse_many_tokens(directory: Path) -> None:
    """Raise `UserError` if files beside a `spiece.model` list so many added tokens that adding them takes minutes."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", _ADDED_TOKENS):
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
    """Convert errors of the tokenizers library, bare `Exception`s and Rust panics, to `UserError`s."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(message(first_line(error))) from None


def _growth(described: Mapping[str, Any]) -> float:
    """An upper bound of how many characters the normaliser, the pre-tokenizer or the decoder makes of one."""

    def growth_of(step: Any) -> float:
        if not isinstance(step, Mapping):
            return 1.0
        found = 1.0
        for part in (*step.get("normalizers", ()), *step.get("decoders", ()), *step.get("pretokenizers", ())):
            found *= growth_of(part)
        pattern = step.get("pattern") or {}
        if step.get("type") == "Replace":
            found *= max(1.0, len(step["content"]) / max(1, len(pattern.get("String", ""))))
        if step.get("type") == "Prepend":
            found *= 1 + len(step["prepend"])
        return found

    return max(growth_of(described.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder"))


def _rules_after(rules: Mapping[str, Any], follows: str) -> dict[str, Any]:
    """A normaliser and a pre-tokenizer by which a text begins as it would after a special token or after other text.

    In a whole conversation, a tokenizer that puts a space (or SentencePiece's `\u2581`) before a text does so at the
    beginning, or also after each special token, but not within text.

    Args:
      rules: `normalizer` and `pre_tokenizer` of a tokenizer's description.
      follows: as `TextPlace.follows`.
    """

    def normalized(step: Any) -> Any:
        if not isinstance(step, Mapping) or follows != "text":
            return step
        if step["type"] == "Sequence":
            steps = [normalized(each) for each in step["normalizers"]]
            return {**step, "normalizers": [each for each in steps if each is not None]}
        pattern = (step.get("pattern") or {}).get("Regex", "") if step["type"] == "Replace" else ""
        if step["type"] == "Prepend" or pattern.startswith(("^", r"\A")):
            return None
        return {**step, "strip_left": False} if step["type"] == "Strip" else step

    def split(step: Any, *, is_first: bool = True) -> Any:
        if not isinstance(step, Mapping) or follows == "nothing":
            return step
        if step["type"] == "Sequence":
            steps = [split(each, is_first=is_first and i == 0) for i, each in enumerate(step["pretokenizers"])]
            return {**step, "pretokenizers": steps}
        # After a step that splits texts, a space before each piece marks words.
        never = is_first and follows == "text"
        if step["type"] == "Metaspace" and (never or step.get("prepend_scheme") == "first"):
            return {**step, "prepend_scheme": "never"}
        return {**step, "add_prefix_space": False} if step["type"] == "ByteLevel" and never else step

    return {"normalizer": normalized(rules["normalizer"]), "pre_tokenizer": split(rules["pre_tokenizer"])}


def _reading_text_as_text(described: Mapping[str, Any], control: Mapping[str, int]) -> tokenizers.Tokenizer:
    """Build a tokenizer that never turns text into control tokens.

    Text could become one in two ways. The library searches texts for special tokens, which is switched off; special
    tokens that are no control tokens become ordinary added tokens, which are still searched for. And a unigram
    vocabulary holds control tokens and byte pieces among its pieces, which is prevented by splitting their names after
    the first character.
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
