"""Span corruption, T5's pretraining task (Raffel et al. 2020, section 3.1.4).

Of `Thank you for inviting me to your party last week` the encoder reads `Thank you <0> me to your party <1> week`, and
the decoder writes `<0> for inviting <1> last`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jpeft.errors import UserError


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """How much of a text is hidden, and in spans of which mean length; both in tokens.

    Attributes:
      sentinels: ids of `<extra_id_0>`, `<extra_id_1>`, ...: one stands for each span.
    """

    sentinels: Sequence[int]
    eos_token_id: int
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def num_noise(self, length: int) -> tuple[int, int]:
        """How many tokens of a text of `length` are hidden, and in how many spans. At least one stays."""
        noise = min(max(round(length * self.noise_density), 1), length - 1)
        spans = min(max(round(noise / self.mean_span_length), 1), length - noise)
        return noise, spans

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of the input and of the target made of a text of `length`, `</s>` included."""
        noise, spans = self.num_noise(length)
        return length - noise + spans + 1, noise + spans + 1

    def longest_text(self, input_length: int, target_length: int) -> int:
        """The longest text whose input and target fit, and that has no more spans than there are sentinels.

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
        """Input and target of a text of at least two tokens; the text begins with a token that stays."""
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
    """`total` as a sum of `parts` positive integers, every such sum equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
