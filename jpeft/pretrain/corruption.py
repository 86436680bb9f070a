"""Span corruption, T5's pretraining objective (Raffel et al. 2020, section 3.1.4).

For `Thank you for inviting me to your party last week` the encoder's input is `Thank you <0> me to your party <1>
week`, and the decoder's target `<0> for inviting <1> last`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jpeft.errors import UserError


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """The share of a text's tokens that is masked, and the mean length of the masked spans.

    Attributes:
      sentinels: ids of `<extra_id_0>`, `<extra_id_1>`, ..., each standing for one span.
      eos_token_id: ends input and target.
      noise_density: share of tokens that are masked.
      mean_span_length: in tokens.
    """

    sentinels: Sequence[int]
    eos_token_id: int
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def num_noise(self, length: int) -> tuple[int, int]:
        """The number of masked tokens and of spans in a text of `length` tokens. At least one token stays."""
        noise = min(max(round(length * self.noise_density), 1), length - 1)
        spans = min(max(round(noise / self.mean_span_length), 1), length - noise)
        return noise, spans

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of the input and of the target made of a text of `length` tokens, including `</s>`."""
        noise, spans = self.num_noise(length)
        return length - noise + spans + 1, noise + spans + 1

    def longest_text(self, input_length: int, target_length: int) -> int:
        """Tokens of the longest text whose input and target fit, with no more spans than there are sentinels.

        Raises:
          UserError: not even a text of two tokens fits, or there are no sentinels.
        """
        length = 2
        while (
            self.lengths(length)[0] <= input_length
            and self.lengths(length)[1] <= target_length
            and self.num_noise(length)[1] <= len(self.sentinels)
        ):
            length += 1
        if length == 2:
            raise UserError(
                f"no text fits rows of {input_length} input and {target_length} target tokens with "
                f"{len(self.sentinels)} sentinels; make the rows longer, or take a vocabulary with <extra_id_0>."
            )
        return length - 1

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Input and target of a text of at least two tokens, of which the first is never masked."""
        noise, spans = self.num_noise(len(ids))
        lengths = np.stack([_partition(len(ids) - noise, spans, rng), _partition(noise, spans, rng)], axis=1)
        hidden = np.repeat(np.tile([False, True], spans), lengths.ravel())
        sentinels, eos = np.asarray(self.sentinels[:spans]), [self.eos_token_id]
        kept_ends = np.cumsum(lengths[:, 0])
        hidden_starts = np.cumsum(lengths[:, 1]) - lengths[:, 1]
        return (
            np.concatenate([np.insert(ids[~hidden], kept_ends, sentinels), eos]),
            np.concatenate([np.insert(ids[hidden], hidden_starts, sentinels), eos]),
        )


def _partition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Splits `total` into `parts` positive integers, all such partitions equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
