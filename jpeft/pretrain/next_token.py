"""The pretraining objective of decoder-only models: next-token prediction on texts and on the answers of pairs."""

from collections.abc import Sequence

import numpy as np

from jpeft.errors import UserError
from jpeft.model.chat import NONE
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.config import CorpusConfig
from jpeft.pretrain.objective import LEAST_TEXT, Objective
from jpeft.pretrain.packing import TokenPair


class NextToken(Objective):
    """Texts train on every token; pairs on the answer only, as in fine-tuning.

    A row is one sequence of `data.input_length` + `data.target_length` tokens. Each piece of a text begins with the
    vocabulary's start tokens, if any, and the last piece ends with the end token. The first token of an example has
    nothing before it, so it is never a target.
    """

    def __init__(
        self, input_length: int, target_length: int, *, before: Sequence[int], eos_token_id: int, pad_token_id: int
    ):
        super().__init__(input_length, target_length)
        self._before, self._eos, self._pad = list(before), eos_token_id, pad_token_id

    @classmethod
    def of(cls, tokenizer: Tokenizer, data: CorpusConfig, *, pad_token_id: int) -> "NextToken":
        """The objective of a config's section `data`."""
        # Without a chat template these are token ids only.
        before = [int(id_) for id_ in tokenizer.asked_by(NONE).wording.before]
        return cls(
            data.input_length,
            data.target_length,
            before=before,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad_token_id,
        )

    @property
    def room(self) -> tuple[int]:
        return (self.input_length + self.target_length,)

    def sides(self, lengths: np.ndarray) -> np.ndarray:
        return lengths.sum(axis=1, keepdims=True)

    def longest_text(self) -> int:
        longest = self.room[0] - len(self._before) - 1
        if longest < LEAST_TEXT:
            raise UserError(
                f"no text fits rows of {self.room[0]} tokens; make data.input_length or data.target_length larger."
            )
        return longest

    def text_lengths(self, length: int, *, is_end: bool) -> tuple[int, int]:
        first = len(self._before) or 1
        return first, length + len(self._before) + is_end - first

    def of_text(self, ids: np.ndarray, *, is_end: bool, rng: np.random.Generator) -> TokenPair:
        whole = np.concatenate([self._before, ids, [self._eos] * is_end]).astype(np.int32)
        first = len(self._before) or 1
        return TokenPair(whole[:first], whole[first:])

    def pack(self, rows: Sequence[Sequence[TokenPair]]) -> Batch:
        """Packs examples into a batch, every array `[batch, length]`.

        Returns:
          `tokens` int32; `segment_ids` int32: 1 for a row's first example, 2 for its second, 0 for padding;
          `decoder_target_tokens` int32: at each token the next one of its example; `decoder_loss_weights` float32: 1
          where that is a target, 0 elsewhere.
        """
        shape = (len(rows), self.room[0])
        tokens, targets = np.full(shape, self._pad, np.int32), np.full(shape, self._pad, np.int32)
        segments, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for i, examples in enumerate(rows):
            at = 0
            for segment, example in enumerate(examples, start=1):
                answer, end = at + len(example.input), at + len(example.input) + len(example.target)
                tokens[i, at:answer], tokens[i, answer:end] = example.input, example.target
                segments[i, at:end] = segment
                targets[i, answer - 1 : end - 1], weights[i, answer - 1 : end - 1] = example.target, 1
                at = end
        return {
            "tokens": tokens,
            "segment_ids": segments,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": weights,
        }

    def token_counts(self, batch: Batch) -> tuple[int, int]:
        targets = int((batch["decoder_loss_weights"] > 0).sum())
        return int((batch["segment_ids"] > 0).sum()) - targets, targets

    def fill(self, input_tokens: int, target_tokens: int, rows: int) -> dict[str, float]:
        return {"row": (input_tokens + target_tokens) / max(rows * self.room[0], 1)}

    def to_answer(self, batch: Batch, row: int, *, is_text: bool) -> TokenPair:
        """The prompt and the answer of a pair, or the two halves of a text.

        The prompt is cut at its beginning to `input_length` tokens, the answer at its end to `target_length`.
        """
        own = batch["segment_ids"][row] == 1
        tokens, is_target = batch["tokens"][row][own], batch["decoder_loss_weights"][row][own] > 0
        begins = min(len(tokens) // 2, self.input_length) if is_text else int(np.argmax(is_target)) + 1
        return TokenPair(tokens[:begins][-self.input_length :], tokens[begins:][: self.target_length])
