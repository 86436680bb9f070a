"""The `Family` of decoder-only models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.model import decoder_weights
from jpeft.model.decoder import Decoder
from jpeft.model.decoder_config import CHOICES, RELEASED, DecoderConfig
from jpeft.model.family import Batch, Family
from jpeft.model.plain_decoder import plain_logits
from jpeft.model.stack import arrange
from jpeft.model.weights import Filling


class DecoderFamily(Family):
    """GPT-Neo, GPT-J, BLOOM, Llama, Mistral, SmolLM2, Qwen2 and Qwen3."""

    name: ClassVar[str] = "decoder-only model"
    tag: ClassVar[str] = "text-generation"
    network: ClassVar[type[nnx.Module]] = Decoder
    modules: ClassVar = ("shared", "decoder_input", "positions", "embedding_norm", "decoder", "lm_head")
    config_type: ClassVar[type] = DecoderConfig
    model_types: ClassVar[tuple[str, ...]] = tuple(CHOICES)
    released: ClassVar = RELEASED
    task_type: ClassVar[str] = "CAUSAL_LM"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    continues: ClassVar[bool] = True

    def read_config(self, directory: Path) -> DecoderConfig:
        return decoder_weights.read_config(directory)

    def load(self, directory: Path, **options: Any) -> Decoder:
        return decoder_weights.load(directory, **options)

    def save(self, model: Decoder, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
        decoder_weights.save(model, directory, kind=kind, dtype=dtype)

    def open_filling(self, directory: Path) -> Filling[Decoder]:
        return decoder_weights.open_filling(*decoder_weights.read_directory(directory), source=str(directory))

    def quantized_layout(self, config: DecoderConfig) -> tuple[Sequence[str], Mapping[str, str]]:
        decoder_weights.refuse_fused(config)
        return decoder_weights.KEPT_WIDE, {}

    def module_name(self, config: DecoderConfig, path: str) -> str:
        return decoder_weights.hub_module(config, path)

    def fused_rows(self, config: DecoderConfig, path: str) -> np.ndarray | None:
        return decoder_weights.rows_of(config, path)

    def plain_logits(self, directory: Path, *probe: np.ndarray) -> np.ndarray:
        return plain_logits(directory, *probe)

    def build(self, config: DecoderConfig, *, dtype: Any, seed: int = 0) -> Decoder:
        return Decoder(config, dtype=dtype, rngs=nnx.Rngs(seed))

    def arrange(self, model: Decoder, *, scan_layers: bool | None, remat: str | None = None) -> None:
        arrange((model.decoder,), scan=scan_layers, remat=remat)

    def stacks(self, config: DecoderConfig) -> dict[str, int]:
        return config.stacks

    def probe(self, config: DecoderConfig) -> tuple[np.ndarray, ...]:
        """Tokens `[4, 24]` without padding."""
        low = min(3, config.vocab_size - 1)
        return (np.random.default_rng(0).integers(low, config.vocab_size, (4, 24)).astype(np.int32),)

    def batch(
        self,
        inputs: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        shape: tuple[int, int],
        *,
        batch_size: int,
        config: DecoderConfig,
        row_weights: Sequence[float] | None = None,
    ) -> Batch:
        """Make a batch of `batch_size` rows; missing rows are padding with weight 0.

        Returns:
          A dict of `tokens: [batch, in_length + target_length]` int32, in which the right-aligned input is followed by
          the left-aligned target, so that targets begin at the same index in all rows; `input_lengths: [batch]` int32;
          `decoder_target_tokens: [batch, target_length]` int32; and `decoder_loss_weights: [batch, target_length]`
          float32, the row's weight on the tokens of its target and 0 on padding.
        """
        in_length, target_length = shape
        tokens = np.full((batch_size, in_length + target_length), config.pad_token_id, np.int32)
        counts = np.zeros((batch_size, target_length), np.float32)
        lengths = np.zeros(batch_size, np.int32)
        for i, (its_input, its_target) in enumerate(zip(inputs, targets, strict=True)):
            lengths[i] = len(its_input)
            tokens[i, in_length - len(its_input) : in_length] = its_input
            tokens[i, in_length : in_length + len(its_target)] = its_target
            counts[i, : len(its_target)] = 1.0 if row_weights is None else row_weights[i]
        return {
            "tokens": tokens,
            "input_lengths": lengths,
            "decoder_target_tokens": np.ascontiguousarray(tokens[:, in_length:]),
            "decoder_loss_weights": counts,
        }

    def padded_alike(self, batches: Sequence[Batch], config: DecoderConfig) -> list[Batch]:
        def lengths(batch: Batch) -> np.ndarray:  # of inputs and of targets
            target_length = batch["decoder_target_tokens"].shape[1]
            return np.array([batch["tokens"].shape[1] - target_length, target_length])

        longest = np.max([lengths(batch) for batch in batches], axis=0)

        def filled(batch: Batch) -> Batch:
            before, behind = longest - lengths(batch)
            pad = config.pad_token_id
            return {
                "tokens": np.pad(batch["tokens"], ((0, 0), (before, behind)), constant_values=pad),
                "input_lengths": batch["input_lengths"],
                "decoder_target_tokens": np.pad(
                    batch["decoder_target_tokens"], ((0, 0), (0, behind)), constant_values=pad
                ),
                "decoder_loss_weights": np.pad(batch["decoder_loss_weights"], ((0, 0), (0, behind))),
            }

        return [filled(batch) for batch in batches]

    def batch_shapes(self, rows: int, shape: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "tokens": jax.ShapeDtypeStruct((rows, sum(shape)), jnp.int32),
            "input_lengths": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "decoder_target_tokens": jax.ShapeDtypeStruct((rows, shape[1]), jnp.int32),
            "decoder_loss_weights": jax.ShapeDtypeStruct((rows, shape[1]), jnp.float32),
        }

    def cache_numbers(self, config: DecoderConfig, shape: tuple[int, int], *, parts: int = 1) -> int:
        """Counts keys and values of the prompt and of the generated tokens."""
        return 2 * config.num_layers * (config.num_kv_heads * config.d_head // parts) * sum(shape)


DECODER_FAMILY = DecoderFamily()
