"""What both sides do: sizes, random weights, token batches, and the arithmetic of it."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jpeft.model.t5_config import T5Config

METHODS = ("full", "lora", "ia3", "bitfit", "prompt")
PROMPT_LENGTH = 100
LORA_RANK = 8
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Size:
    """A T5 1.1 and the batch that it is given."""

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    vocab_size: int
    rows: int = 16
    input_length: int = 128
    target_length: int = 64


SIZES = {
    "tiny": Size(64, 16, 128, 2, 4, 1024, rows=4, input_length=32, target_length=16),
    "mini": Size(192, 32, 512, 3, 6, 16384),
    "small": Size(512, 64, 1024, 8, 6, 32128),  # FLAN-T5-small
    "large": Size(1024, 64, 2816, 24, 16, 32128, input_length=256),  # FLAN-T5-large
    "xl": Size(2048, 64, 5120, 24, 32, 32128, input_length=256),  # FLAN-T5-XL
    "xxl": Size(4096, 64, 10240, 24, 64, 32128, input_length=256),  # FLAN-T5-XXL
}


def write_checkpoint(size: Size, directory: Path, *, dropout_rate: float) -> None:
    """A random model in Hugging Face layout, which both sides read."""
    from flax import nnx

    from jpeft.model import weights
    from jpeft.model.t5 import T5

    weights.save(T5(config_of(size, dropout_rate=dropout_rate), rngs=nnx.Rngs(0)), directory)


def config_of(size: Size, *, dropout_rate: float) -> "T5Config":
    """The size as jpeft's network has it."""
    from jpeft.model.t5_config import T5Config

    return T5Config(**config_values(size), dropout_rate=dropout_rate)


def config_values(size: Size) -> dict[str, Any]:
    """What a T5 of the size has in its config, by the names that jpeft and `transformers` share."""
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    own = {name: getattr(size, name) for name in names}
    return {
        **own,
        "num_decoder_layers": size.num_layers,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def token_batch(size: Size, *, rows: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows without padding: `inputs: [rows, input_length]`, `targets: [rows, target_length]`, int32."""
    draw = np.random.default_rng(seed)
    rows = size.rows if rows is None else rows
    return {
        "inputs": draw.integers(3, size.vocab_size, (rows, size.input_length), dtype=np.int32),
        "targets": draw.integers(3, size.vocab_size, (rows, size.target_length), dtype=np.int32),
    }


def forward_flops(size: Size, method: str, *, rows: int) -> float:
    """Arithmetic of the matrix products of one forward pass over `rows` rows; what adapters add is left out."""
    inner = size.num_heads * size.d_kv
    enc_len = size.input_length + (PROMPT_LENGTH if method == "prompt" else 0)
    dec_len = size.target_length
    attention, feed_forward = 4 * size.d_model * inner, 3 * size.d_model * size.d_ff
    encoder = enc_len * (attention + feed_forward) + 2 * enc_len**2 * inner
    decoder = dec_len * (attention + 2 * size.d_model * inner + feed_forward) + enc_len * 2 * size.d_model * inner
    decoder += 2 * dec_len**2 * inner + 2 * dec_len * enc_len * inner
    head = dec_len * size.d_model * size.vocab_size
    return 2.0 * rows * (size.num_layers * (encoder + decoder) + head)


def train_flops(size: Size, method: str) -> float:
    """Of one step: forward and activations' gradients, and for full tuning the weights' gradients."""
    return forward_flops(size, method, rows=size.rows) * (3 if method == "full" else 2)


def generation_bytes(size: Size, method: str | None, *, rows: int, itemsize: int) -> float:
    """What must be read of memory to generate `target_length` tokens of each row, and nothing else.

    The encoder's weights once; for every token the decoder's and the head's, and the keys and values of the encoder's
    output and of half of the longest answer, which is what there is on average.
    """
    inner = size.num_heads * size.d_kv
    enc_len = size.input_length + (PROMPT_LENGTH if method == "prompt" else 0)
    feed_forward = 3 * size.d_model * size.d_ff
    encoder = size.num_layers * (4 * size.d_model * inner + feed_forward)
    # Of cross-attention q and o: its keys and values are made once.
    decoder = size.num_layers * (6 * size.d_model * inner + feed_forward) + size.d_model * size.vocab_size
    once = encoder + size.num_layers * 2 * size.d_model * inner
    attended = 2 * size.num_layers * rows * inner * (enc_len + size.target_length / 2)
    return itemsize * (once + size.target_length * (decoder + attended))
