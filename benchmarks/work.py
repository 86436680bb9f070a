"""The workload of both sides: model sizes, random checkpoints, token batches, and their FLOPs and memory traffic."""

import abc
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("full", "lora", "ia3", "bitfit", "prompt")
PROMPT_LENGTH = 100
LORA_RANK = 8
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size(abc.ABC):
    """The dimensions of a model and of the batches it processes."""

    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    vocab_size: int
    rows: int = 16
    input_length: int = 128
    target_length: int = 64

    @abc.abstractmethod
    def config_values(self) -> dict[str, Any]:
        """The entries of the model's `config.json`, without dropout."""

    @abc.abstractmethod
    def spread(self, name: str, shape: tuple[int, ...]) -> float:
        """The standard deviation of a random weight by its path and shape; 0 for a weight that is initialised to 1."""

    @abc.abstractmethod
    def forward_flops(self, method: str, *, rows: int) -> float:
        """FLOPs of the matrix products of one forward pass over `rows` rows, without those that an adapter adds."""

    @abc.abstractmethod
    def generation_bytes(self, method: str | None, *, rows: int, itemsize: int) -> float:
        """The fewest bytes to read from memory to generate `target_length` tokens for each row."""

    def train_flops(self, method: str) -> float:
        """FLOPs of one step: forward pass and gradients of activations, for full tuning also gradients of weights."""
        return self.forward_flops(method, rows=self.rows) * (3 if method == "full" else 2)

    def read_length(self, method: str | None) -> int:
        """Input tokens per row, including a soft prompt."""
        return self.input_length + (PROMPT_LENGTH if method == "prompt" else 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Size(Size):
    """A T5 1.1: gated feed-forward layers, untied output layer."""

    d_kv: int

    def config_values(self) -> dict[str, Any]:
        names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        return {
            "model_type": "t5",
            **{name: getattr(self, name) for name in names},
            "num_decoder_layers": self.num_layers,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
        }

    def spread(self, name: str, shape: tuple[int, ...]) -> float:
        if "scale" in name:
            return 0.0
        of_queries = self.d_kv**-0.5 if "['q']" in name else 1.0  # T5 scales queries here instead of attention scores
        return of_queries * (shape[-2] ** -0.5 if "kernel" in name else 1.0)

    def forward_flops(self, method: str, *, rows: int) -> float:
        inner = self.num_heads * self.d_kv
        enc_len, dec_len = self.read_length(method), self.target_length
        attention, feed_forward = 4 * self.d_model * inner, 3 * self.d_model * self.d_ff
        encoder = enc_len * (attention + feed_forward) + 2 * enc_len**2 * inner
        decoder = dec_len * (attention + 2 * self.d_model * inner + feed_forward) + enc_len * 2 * self.d_model * inner
        decoder += 2 * dec_len**2 * inner + 2 * dec_len * enc_len * inner
        head = dec_len * self.d_model * self.vocab_size
        return 2.0 * rows * (self.num_layers * (encoder + decoder) + head)

    def generation_bytes(self, method: str | None, *, rows: int, itemsize: int) -> float:
        """The encoder's weights once; for every token those of decoder and output layer, and cached keys and values.

        The cache holds those of the encoder's output and, on average, of half of the answer.
        """
        inner = self.num_heads * self.d_kv
        feed_forward = 3 * self.d_model * self.d_ff
        encoder = self.num_layers * (4 * self.d_model * inner + feed_forward)
        # Only q and o of cross-attention: its keys and values are computed once.
        decoder = self.num_layers * (6 * self.d_model * inner + feed_forward) + self.d_model * self.vocab_size
        once = encoder + self.num_layers * 2 * self.d_model * inner
        attended = 2 * self.num_layers * rows * inner * (self.read_length(method) + self.target_length / 2)
        return itemsize * (once + self.target_length * (decoder + attended))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaSize(Size):
    """A Llama with tied embeddings and heads of width `d_model / num_heads`."""

    num_kv_heads: int

    def config_values(self) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": 2048,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }

    def spread(self, name: str, shape: tuple[int, ...]) -> float:
        if "scale" in name:
            return 0.0
        return shape[-2] ** -0.5 if "kernel" in name else self.d_model**-0.5

    def _block(self) -> int:
        """Number of weights in one block."""
        return self.d_model * (2 * self.d_model + 2 * self._width_of_keys() + 3 * self.d_ff)

    def _width_of_keys(self) -> int:
        return self.d_model * self.num_kv_heads // self.num_heads

    def forward_flops(self, method: str, *, rows: int) -> float:
        """FLOPs of a forward pass that computes logits for the answer alone."""
        length = self.read_length(method) + self.target_length
        blocks = self.num_layers * (length * self._block() + 2 * length**2 * self.d_model)
        return 2.0 * rows * (blocks + self.target_length * self.d_model * self.vocab_size)

    def generation_bytes(self, method: str | None, *, rows: int, itemsize: int) -> float:
        """All weights once for the prompts and for every token but the first, and cached keys and values.

        The cache holds those of the prompts and, on average, of half of the answer.
        """
        weights = self.num_layers * self._block() + self.d_model * self.vocab_size
        cached = self.read_length(method) + self.target_length / 2
        attended = 2 * self.num_layers * rows * self._width_of_keys() * cached
        return itemsize * self.target_length * (weights + attended)


SIZES: dict[str, Size] = {
    "tiny": T5Size(
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        vocab_size=1024,
        rows=4,
        input_length=32,
        target_length=16,
    ),
    "mini": T5Size(d_model=192, d_kv=32, d_ff=512, num_layers=3, num_heads=6, vocab_size=16384),
    # FLAN-T5-small, large, XL and XXL
    "small": T5Size(d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, vocab_size=32128),
    "large": T5Size(d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, vocab_size=32128, input_length=256),
    "xl": T5Size(d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, vocab_size=32128, input_length=256),
    "xxl": T5Size(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128, input_length=256),
    "tiny-llama": LlamaSize(
        d_model=64,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=1024,
        rows=4,
        input_length=32,
        target_length=16,
    ),
    "smollm2": LlamaSize(  # SmolLM2-135M
        d_model=576,
        d_ff=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        vocab_size=49152,
        rows=8,
        input_length=96,
        target_length=32,
    ),
}


def config_of(size: Size, *, dropout_rate: float) -> Any:
    """The jpeft model config of a size.

    Raises:
      ValueError: dropout for a Llama, which has none.
    """
    from jpeft.model.decoder_config import DecoderConfig
    from jpeft.model.t5_config import T5Config

    if isinstance(size, T5Size):
        return T5Config.from_dict({**size.config_values(), "dropout_rate": dropout_rate})
    if dropout_rate:
        raise ValueError(f"dropout {dropout_rate:g}: a Llama has none.")
    return DecoderConfig.from_dict(size.config_values())


def write_checkpoint(size: Size, directory: Path, *, dropout_rate: float) -> None:
    """Write a random model in the Hugging Face layout, which both sides load."""
    from jpeft.model.family import family_with

    config = config_of(size, dropout_rate=dropout_rate)
    family = family_with(config)
    family.save(family.build(config, dtype=np.float32), directory)


def token_batch(size: Size, *, rows: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows without padding: `inputs: [rows, input_length]`, `targets: [rows, target_length]`, int32."""
    draw = np.random.default_rng(seed)
    rows = size.rows if rows is None else rows
    return {
        "inputs": draw.integers(3, size.vocab_size, (rows, size.input_length), dtype=np.int32),
        "targets": draw.integers(3, size.vocab_size, (rows, size.target_length), dtype=np.int32),
    }
