"""T5's pretraining objective: span corruption of texts, and answers to pairs, in rows of an encoder and a decoder."""

from collections.abc import Sequence

import numpy as np

from jpeft.errors import UserError
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.config import CorpusConfig
from jpeft.pretrain.corruption import SpanCorruption
from jpeft.pretrain.objective import Objective
from jpeft.pretrain.packing import TokenPair


class Denoising(Objective):
    """Span corruption of texts; pairs unchanged."""

    def __init__(
        self, corruption: SpanCorruption, input_length: int, target_length: int, start_token_id: int, pad_token_id: int
    ):
        super().__init__(input_length, target_length)
        self._corruption, self._start, self._pad = corruption, start_token_id, pad_token_id

    @classmethod
    def of(cls, tokenizer: Tokenizer, data: CorpusConfig, *, start_token_id: int, pad_token_id: int) -> "Denoising":
        """The objective of a config's section `data`. Raises `UserError` if the vocabulary has no sentinels."""
        if not tokenizer.sentinels:
            raise UserError(
                "the vocabulary of model.start or tokenizer.path has no <extra_id_0>, which span corruption needs; "
                "take one with T5's sentinels, or leave both out to train a vocabulary."
            )
        corruption = SpanCorruption(
            tokenizer.sentinels,
            tokenizer.eos_token_id,
            noise_density=data.noise_density,
            mean_span_length=data.mean_span_length,
        )
        return cls(corruption, data.input_length, data.target_length, start_token_id, pad_token_id)

    @property
    def room(self) -> tuple[int, int]:
        return self.input_length, self.target_length

    def sides(self, lengths: np.ndarray) -> np.ndarray:
        return lengths

    def longest_text(self) -> int:
        return self._corruption.longest_text(*self.room)

    def text_lengths(self, length: int, *, is_end: bool) -> tuple[int, int]:
        return self._corruption.lengths(length)

    def of_text(self, ids: np.ndarray, *, is_end: bool, rng: np.random.Generator) -> TokenPair:
        return TokenPair(*self._corruption(ids, rng))

    def pack(self, rows: Sequence[Sequence[TokenPair]]) -> Batch:
        """Packs examples into a batch.

        Returns:
          What T5's `Family.batch` does, with each example's decoder input shifted right behind a start token of its
          own; and `encoder_segment_ids: [batch, enc_len]`, `decoder_segment_ids: [batch, dec_len]` int32: 1 for a row's
          first example, 2 for its second, 0 for padding.
        """

        def blank(length: int, value: int = 0) -> np.ndarray:
            return np.full((len(rows), length), value, np.int32)

        batch = {
            "encoder_input_tokens": blank(self.input_length, self._pad),
            "encoder_segment_ids": blank(self.input_length),
            "decoder_input_tokens": blank(self.target_length, self._pad),
            "decoder_target_tokens": blank(self.target_length, self._pad),
            "decoder_segment_ids": blank(self.target_length),
        }
        for i, examples in enumerate(rows):
            enc, dec = 0, 0
            for segment, example in enumerate(examples, start=1):
                enc_end, dec_end = enc + len(example.input), dec + len(example.target)
                batch["encoder_input_tokens"][i, enc:enc_end] = example.input
                batch["encoder_segment_ids"][i, enc:enc_end] = segment
                batch["decoder_input_tokens"][i, dec] = self._start
                batch["decoder_input_tokens"][i, dec + 1 : dec_end] = example.target[:-1]
                batch["decoder_target_tokens"][i, dec:dec_end] = example.target
                batch["decoder_segment_ids"][i, dec:dec_end] = segment
                enc, dec = enc_end, dec_end
        return {**batch, "decoder_loss_weights": (batch["decoder_segment_ids"] > 0).astype(np.float32)}

    def token_counts(self, batch: Batch) -> tuple[int, int]:
        return int((batch["encoder_segment_ids"] > 0).sum()), int((batch["decoder_segment_ids"] > 0).sum())

    def fill(self, input_tokens: int, target_tokens: int, rows: int) -> dict[str, float]:
        return {
            "input": input_tokens / max(rows * self.input_length, 1),
            "target": target_tokens / max(rows * self.target_length, 1),
        }

    def to_answer(self, batch: Batch, row: int, *, is_text: bool) -> TokenPair:
        return TokenPair(
            batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == 1],
            batch["decoder_target_tokens"][row][batch["decoder_segment_ids"][row] == 1],
        )
