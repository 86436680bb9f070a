"""Prompts as token ids, cut to a maximum length. Training, `predict` and `serve` all tokenise prompts here."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

from jpeft.data.template import Template
from jpeft.errors import UserError
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

    def _split_at_ids(self):
        """Yields lists of parts to be tokenised together, and between them single ids of special tokens."""
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
        together: list[tuple[str, str | None]] = []
        for part in (*before, *parts, *after):
            if isinstance(part, int):
                yield together
                yield part
                together = []
            else:
                together.append(part)
        yield together

    def _texts(self, fields: Mapping[str, str]) -> list[str]:
        lists = (parts for parts in self._pieces if isinstance(parts, list))
        return ["".join(text if column is None else fields[column] for text, column in parts) for parts in lists]

    def _whole(self, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """Tokenises prompts without cutting them."""
        texts = [self._texts(fields) for fields in rows]
        encoded = iter(self._tokenizer.ids([text for row in texts for text in row]))
        ids = []
        for _ in rows:
            of_pieces = ([piece] if isinstance(piece, int) else next(encoded) for piece in self._pieces)
            ids.append([*itertools.chain.from_iterable(of_pieces)])
        return ids

    def _shorten(self, rows: Sequence[dict[str, str]]) -> None:
        """Removes text, at least one character, from the longest columns of rows whose prompts are too long."""
        texts = [self._texts(fields) for fields in rows]
        starts = iter(self._tokenizer.token_starts([text for row in texts for text in row]))
        for fields in rows:
            total, of_column = 0, {}
            occurrences = dict.fromkeys(self.template.columns, 0)
            for parts in self._pieces:
                if isinstance(parts, int):
                    total += 1
                    continue
                tokens, position = next(starts), 0
                total += len(tokens)
                for text, column in parts:
                    end = position + len(text if column is None else fields[column])
                    if column is not None:
                        occurrences[column] += 1
                        of_column.setdefault(column, [start - position for start in tokens if position <= start < end])
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
        freed = lambda level: sum(occurrences[c] * max(0, len(at) - level) for c, at in starts.items())
        level = next(level for level in range(longest - 1, -1, -1) if freed(level) >= excess or level == 0)
        excess = min(excess, freed(level))
        for column, at in sorted(starts.items(), key=lambda item: -len(item[1])):
            # Columns of equal length are cut in turn, so that none loses a token that would still fit.
            over = min(max(0, len(at) - level), -(-excess // occurrences[column]))
            if over > 0:
                fields[column] = fields[column][: at[len(at) - over]]
                excess -= over * occurrences[column]
