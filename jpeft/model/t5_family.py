"""The `Family` of T5, mT5 and FLAN-T5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.model import t5_weights
from jpeft.model.family import Batch, Family
from jpeft.model.plain import plain_logits
from jpeft.model.stack import arrange
from jpeft.model.t5 import T5
from jpeft.model.t5_config import RELEASED, T5Config
from jpeft.model.tokenizer import Tokenizer
from jpeft.model.weight_files import read_values
from jpeft.model.weights import Filling


class T5Family(Family):
    """The encoder-decoder of Raffel et al. (2020): T5 1.0, T5 1.1, mT5 and FLAN-T5."""

    name: ClassVar[str] = "T5"
    tag: ClassVar[str] = "t5"
    network: ClassVar[type[nnx.Module]] = T5
    modules: ClassVar = ("shared", "encoder_input", "encoder", "decoder", "lm_head")
    config_type: ClassVar[type] = T5Config
    model_types: ClassVar[tuple[str, ...]] = ("t5", "mt5")
    released: ClassVar = RELEASED
    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    auto_class: ClassVar[str] = "T5ForConditionalGeneration"
    continues: ClassVar[bool] = False

    def recognises(self, model_type: str) -> bool:
        return model_type.endswith("t5")  # `read_config` says why it refuses other T5s, such as umt5

    def read_config(self, directory: Path) -> T5Config:
        return t5_weights.read_config(directory)

    def load(self, directory: Path, **options: Any) -> T5:
        return t5_weights.load(directory, **options)

    def save(self, model: T5, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
        t5_weights.save(model, directory, kind=kind, dtype=dtype)

    def open_filling(self, directory: Path) -> Filling[T5]:
        return t5_weights.open_filling(directory)

    def quantized_layout(self, config: T5Config) -> tuple[Sequence[str], Mapping[str, str]]:
        return t5_weights.KEPT_WIDE, t5_weights.tensor_copies(config)

    def special_ids(self, config: T5Config) -> tuple[int, ...]:
        return config.pad_token_id, config.decoder_start_token_id

    def tokenizer(self, directory: Path, config: T5Config) -> Tokenizer:
        tokenizer = super().tokenizer(directory, config)
        if (name := tokenizer.ordinary(config.pad_token_id)) is not None:
            raise UserError(
                f"{directory}: pad_token_id {config.pad_token_id} is {name!r}, an ordinary token, which would fill up "
                "answers; set it in config.json to the id of a token that no text has, such as <pad>."
            )
        return tokenizer

    def notes(self, directory: Path, tokenizer: Tokenizer) -> list[str]:
        notes = super().notes(directory, tokenizer)
        values, file = read_values(directory)
        if values.get("decoder_start_token_id") is None:
            start = T5Config.from_dict(values, file).decoder_start_token_id
            notes.append(
                f"{file}: no file has decoder_start_token_id, with which answers begin; taken is the padding, {start}, "
                "as T5s are pretrained"
            )
        return notes

    def module_name(self, config: T5Config, path: str) -> str:
        return t5_weights.hub_module(path)

    def plain_logits(self, directory: Path, *probe: np.ndarray) -> np.ndarray:
        return plain_logits(directory, *probe)

    def build(self, config: T5Config, *, dtype: Any, seed: int = 0) -> T5:
        return T5(config, dtype=dtype, rngs=nnx.Rngs(seed))

    def arrange(self, model: T5, *, scan_layers: bool | None, remat: str | None = None) -> None:
        arrange((model.encoder, model.decoder), scan=scan_layers, remat=remat)

    def stacks(self, config: T5Config) -> dict[str, int]:
        return config.stacks

    def probe(self, config: T5Config) -> tuple[np.ndarray, ...]:
        """Tokens of the encoder `[4, 24]` and of the decoder `[4, 12]`; later rows of the encoder end in padding."""
        draw = np.random.default_rng(0)
        inputs, targets = (
            draw.integers(min(3, config.vocab_size - 1), config.vocab_size, (4, length)).astype(np.int32)
            for length in (24, 12)
        )
        for row in range(4):
            inputs[row, 24 - 6 * row :] = config.padding_id
        targets[:, 0] = config.decoder_start_token_id
        return inputs, targets

    def batch(
        self,
        inputs: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        shape: tuple[int, int],
        *,
        batch_size: int,
        config: T5Config,
        row_weights: Sequence[float] | None = None,
    ) -> Batch:
        """Make a batch of `batch_size` rows; missing rows are padding with weight 0.

        Returns:
          A dict of `encoder_input_tokens: [batch, enc_len]` int32; `decoder_target_tokens: [batch, dec_len]` int32, and
          these shifted right, `decoder_input_tokens: [batch, dec_len]`; and `decoder_loss_weights: [batch, dec_len]`
          float32, the row's weight on the tokens of its target and 0 on padding.
        """
        enc_len, dec_len = shape
        encoder = np.full((batch_size, enc_len), config.padding_id, np.int32)
        target = np.full((batch_size, dec_len), config.pad_token_id, np.int32)
        counts = np.zeros((batch_size, dec_len), np.float32)
        for i, (its_input, its_target) in enumerate(zip(inputs, targets, strict=True)):
            encoder[i, : len(its_input)] = its_input
            target[i, : len(its_target)] = its_target
            counts[i, : len(its_target)] = 1.0 if row_weights is None else row_weights[i]
        start = np.full((batch_size, 1), config.decoder_start_token_id, np.int32)
        return {
            "encoder_input_tokens": encoder,
            "decoder_input_tokens": np.concatenate([start, target[:, :-1]], axis=1),
            "decoder_target_tokens": target,
            "decoder_loss_weights": counts,
        }

    def padded_alike(self, batches: Sequence[Batch], config: T5Config) -> list[Batch]:
        filling = {
            "encoder_input_tokens": config.padding_id,
            "decoder_input_tokens": config.pad_token_id,
            "decoder_target_tokens": config.pad_token_id,
            "decoder_loss_weights": 0,
        }

        def filled(name: str, leaf: np.ndarray) -> np.ndarray:
            more = max(batch[name].shape[1] for batch in batches) - leaf.shape[1]
            return np.pad(leaf, ((0, 0), (0, more)), constant_values=filling[name])

        return [{name: filled(name, leaf) for name, leaf in batch.items()} for batch in batches]

    def batch_shapes(self, rows: int, shape: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        enc_len, dec_len = shape

        return {
            "encoder_input_tokens": jax.ShapeDtypeStruct((rows, enc_len), jnp.int32),
            "decoder_input_tokens": jax.ShapeDtypeStruct((rows, dec_len), jnp.int32),
            "decoder_target_tokens": jax.ShapeDtypeStruct((rows, dec_len), jnp.int32),
            "decoder_loss_weights": jax.ShapeDtypeStruct((rows, dec_len), jnp.float32),
        }

    def cache_numbers(self, config: T5Config, shape: tuple[int, int], *, parts: int = 1) -> int:
        """Counts keys and values of the generated tokens and of the encoder's output."""
        return 2 * config.num_decoder_layers * (config.num_heads * config.d_kv // parts) * sum(shape)


T5_FAMILY = T5Family()
