"""Prompts as token ids, cut to a maximum length. Training, `predict` and `serve` all tokenise prompts here."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from jpeft.data.template import Template
from jpeft.errors import UserError
from jpeft.model.chat import TextPlace
from jpeft.model.tokenizer import Tokenizer

CUTTING = "the longest columns, at their ends"  # names the way of cutting in the key of cached tokens


@dataclasses.dataclass(frozen=True)
class PromptIds:
    """Token ids of whole prompts, special tokens included, and whether each prompt was cut."""

    ids: list[list[int]]
    cut: list[bool]

    @property
    def num_cut(self) -> int:
        """The number of prompts that were cut."""
        return sum(self.cut)


@dataclasses.dataclass(frozen=True)
class _Together:
    """Parts of a prompt that are tokenised together: texts around the row's, of its template, and its columns.

    Attributes:
      parts: text and None, or "" and the name of a column.
      place: of the whole in the prompt.
      own: the indices of the template's parts.
    """

    parts: tuple[tuple[str, str | None], ...]
    place: TextPlace
    own: range


class PromptTokens:
    """Converts rows to the token ids of their prompts, at most `max_length` each.

    A prompt that is too long is cut at the end of its longest column; if several columns are long, they are cut to the
    same length. The template's own text, with the instruction and the options, is never cut. Neither are the tokens
    around a prompt (`Tokenizer.wording`): the `</s>` of a T5, or the markup of a user's message of a chat model.

    The names of special tokens in a row are plain text. In the template `<extra_id_0>` and so on are the vocabulary's
    sentinels, which prompt a T5 that was not tuned on instructions; other names of special tokens are plain text there,
    too.

    Args:
      max_length: in tokens.
      key: config key of `max_length`, for messages.

    Attributes:
      own_length: number of tokens in every prompt: the template's own text and the tokens around the prompt.

    Raises:
      UserError: `max_length` leaves no room for a row beside the template's own text.
    """

    def __init__(
        self,
        template: Template | str,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        key: str = "data.max_input_length",
    ):
        self.template = Template.parse(template) if isinstance(template, str) else template
        self._tokenizer, self._max_length = tokenizer, max_length
        self._pieces = list(self._split_at_ids())
        self._together = [piece for piece in self._pieces if isinstance(piece, _Together)]
        self._is_cut_at_end = (
            self.template.is_bare and not tokenizer.wording.before and len(tokenizer.wording.after) == 1
        )
        self.own_length = len(self._whole([dict.fromkeys(self.template.columns, "")])[0])
        if self.own_length >= max_length:
            raise UserError(
                f"the template's own text has {self.own_length} tokens, {self._around()} included, and {key} is "
                f"{max_length}: no room is left for a row's; shorten the template or set {key} to "
                f"{self.own_length + 1} or more."
            )

    def __call__(self, rows: Sequence[Mapping[str, str]]) -> PromptIds:
        """Tokenises each row's prompt. A row needs the text of every column of the template; others are ignored."""
        ids = self._whole(rows)
        cut = [len(row) > self._max_length for row in ids]
        if self._is_cut_at_end:
            ids = [[*row[: self._max_length - 1], row[-1]] if long else row for row, long in zip(ids, cut, strict=True)]
            return PromptIds(ids, cut)
        shortened = {i: dict(rows[i]) for i, long in enumerate(cut) if long}
        while shortened:
            self._shorten(list(shortened.values()))
            for i, made in zip(list(shortened), self._whole(list(shortened.values())), strict=True):
                ids[i] = made
                if len(made) <= self._max_length:
                    del shortened[i]
        return PromptIds(ids, cut)

    def _around(self) -> str:
        wording = self._tokenizer.wording
        if wording.chat_template is None:
            return "</s>"
        return "what the chat template puts around it" if len(wording.after) else "what texts begin with"

    def _split_at_ids(self) -> Iterator[_Together | int]:
        """Yields parts to be tokenised together, and between them single ids of special tokens."""
        sentinels = dict(zip(self._tokenizer.sentinel_names, self._tokenizer.sentinels, strict=True))
        wording = self._tokenizer.wording
        parts: list[tuple[str, str | None] | int] = []
        for text, column in self.template.parts:
            pieces = [text] if column is not None else re.split(r"(<extra_id_\d+>)", text)
            parts += [
                sentinels[piece] if piece in sentinels else (piece, column) for piece in pieces if piece or column
            ]
        around = (
            [piece if isinstance(piece, int) else (piece, None) for piece in pieces]
            for pieces in (wording.before, wording.after)
        )
        before, after = around
        whole, own = [*before, *parts, *after], range(len(before), len(before) + len(parts))
        ends = [-1, *(at for at, part in enumerate(whole) if isinstance(part, int)), len(whole)]
        id_at = lambda at: whole[at] if 0 <= at < len(whole) else None
        for left, right in itertools.pairwise(ends):
            if left >= 0:
                yield whole[left]
            inside = range(max(left + 1, own.start) - left - 1, min(right, own.stop) - left - 1)
            yield _Together(tuple(whole[left + 1 : right]), self._tokenizer.place(id_at(left), id_at(right)), inside)

    def _filled(self, fields: Mapping[str, str]) -> list[list[tuple[str, int]]]:
        """The text of each part that is tokenised with others, and how many characters its beginning lacks.

        What a chat template strips from messages is stripped here.
        """
        filled = [
            [(text if column is None else fields[column], 0) for text, column in each.parts] for each in self._together
        ]
        left, right = self._tokenizer.wording.prompt_strip
        own = [(texts, i) for texts, each in zip(filled, self._together, strict=True) for i in each.own]
        for texts, i in own:
            text, _ = texts[i]
            texts[i] = text.lstrip(left), len(text) - len(text.lstrip(left))
            if texts[i][0]:
                break
        for texts, i in reversed(own):
            text, gone = texts[i]
            texts[i] = text.rstrip(right), gone
            if texts[i][0]:
                break
        return filled

    def _encoded(
        self, rows: Sequence[Mapping[str, str]], encode: Callable[[list[str], TextPlace], list[list[int]]]
    ) -> Iterator[Iterator[list[int]]]:
        """Yields for each row what `encode` makes of its texts that are tokenised together, in order."""
        filled = [self._filled(fields) for fields in rows]
        encoded = [
            encode(["".join(text for text, _ in of_row[i]) for of_row in filled], each.place)
            for i, each in enumerate(self._together)
        ]
        return map(iter, zip(*encoded, strict=True))

    def _whole(self, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """Tokenises prompts without cutting them."""
        ids = []
        for encoded in self._encoded(rows, self._tokenizer.ids):
            of_pieces = ([piece] if isinstance(piece, int) else next(encoded) for piece in self._pieces)
            ids.append([*itertools.chain.from_iterable(of_pieces)])
        return ids

    def _shorten(self, rows: Sequence[dict[str, str]]) -> None:
        """Removes text, at least one character, from the longest columns of rows whose prompts are too long."""
        starts_of_rows = [[*each] for each in self._encoded(rows, self._tokenizer.token_starts)]
        for fields, starts in zip(rows, starts_of_rows, strict=True):
            total, of_column = sum(isinstance(piece, int) for piece in self._pieces), {}
            occurrences = dict.fromkeys(self.template.columns, 0)
            for each, texts, tokens in zip(self._together, self._filled(fields), starts, strict=True):
                position = 0
                total += len(tokens)
                for (_, column), (text, gone) in zip(each.parts, texts, strict=True):
                    end = position + len(text)
                    if column is not None:
                        occurrences[column] += 1
                        inside = [start - position + gone for start in tokens if position <= start < end]
                        of_column.setdefault(column, inside)
                    position = end
            self._cut_to_level(fields, of_column, occurrences, total - self._max_length)

    @staticmethod
    def _cut_to_level(
        fields: dict[str, str], starts: Mapping[str, list[int]], occurrences: Mapping[str, int], excess: int
    ) -> None:
        """Cuts the longest columns of a row to a common number of tokens, the largest that frees `excess` tokens.

        Args:
          starts: by column, the character at which each of its tokens starts.
          occurrences: by column, how often the template contains it.
        """
        longest = max(map(len, starts.values()))
        if longest == 0:  # what makes the prompt long stands between texts that have no token
            fields.update(dict.fromkeys(starts, ""))
            return
        freed = lambda level: sum(occurrences[c] * max(0, len(at) - level) for c, at in starts.items())
        level = next(level for level in range(longest - 1, -1, -1) if freed(level) >= excess or level == 0)
        excess = min(excess, freed(level))
        for column, at in sorted(starts.items(), key=lambda item: -len(item[1])):
            # Columns of equal length are cut in turn, so that none loses a token that would still fit.
            over = min(max(0, len(at) - level), -(-excess // occurrences[column]))
            if over > 0:
                fields[column] = fields[column][: at[len(at) - over]]
                excess -= over * occurrences[column]
