"""T5 in Flax NNX: one network for T5 1.0, T5 1.1 and FLAN-T5 (Raffel et al. 2020; Shazeer 2020 for the gated block).

Blocks of equal structure are stored stacked, every leaf with a leading `layers` axis, and run by `jax.lax.scan`; a
`Stack` is a list of such *segments*, usually a single one. The network does not depend on any PEFT method: it declares
the roles of its modules (`T5.site_roles`) and the kind of sites without weights (`site_kind`).

The compute dtype travels with the activations: `T5.dtype` is applied once, at the embedding, and every layer casts its
weights to the dtype of its input. Softmax, norm statistics, scales and logits are float32.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jpeft.model.attention import Before, Cached, CachedParts, KeysValues, ScoreBias, prefix_bias
from jpeft.model.layers import (
    MASKED,
    EmbeddedInput,
    Embedding,
    Linear,
    RMSNorm,
    activated,
    apart,
    dropout,
    lengths_of,
    refuse_longer,
    split_key,
)
from jpeft.model.placement import placed
from jpeft.model.stack import SegmentCache, Segments, concatenate_heads, num_stacked, only_layer
from jpeft.model.t5_config import T5Config


class Attention(nnx.Module):
    """Multi-head attention with an additive bias.

    Scores are not divided by sqrt(d_kv): T5 folds that into the initial scale of q, and released weights rely on it.
    """

    site_kind: ClassVar[str] = "attention"

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        d_model, d_heads = config.d_model, config.num_heads * config.d_kv
        self.q = Linear(d_model, d_heads, stddev=(d_model * config.d_kv) ** -0.5, rngs=rngs)
        self.k = Linear(d_model, d_heads, stddev=d_model**-0.5, rngs=rngs)
        self.v = Linear(d_model, d_heads, stddev=d_model**-0.5, rngs=rngs)
        self.o = Linear(d_heads, d_model, stddev=d_heads**-0.5, rngs=rngs)
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        self.site_widths = (d_model, d_heads)

    def _heads(self, x: Float[Array, "batch length d_heads"]) -> Float[Array, "batch num_heads length d_kv"]:
        return placed(x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2), "heads")

    def keys_values(self, x: Float[Array, "batch kv_len d_model"]) -> KeysValues:
        """Project `x` to keys and values; during generation this is done once per token and cached."""
        return KeysValues(self._heads(self.k(x)), self._heads(self.v(x)))

    def __call__(
        self,
        x: Float[Array, "batch q_len d_model"],
        read: KeysValues | CachedParts,
        bias: ScoreBias,
        key: Key[Array, ""] | None = None,
        before: tuple[Array, Array, Array | None] | None = None,
    ) -> Float[Array, "batch q_len d_model"]:
        """Attend from x to keys and values.

        Args:
          x: the normed input, of which the queries are made.
          read: the keys and values to attend to.
          bias: additive biases of the scores.
          key: the random key for dropout; None disables it.
          before: the fields of a `Before`: a prefix of keys and values, which gets no position bias.
        """
        if before is not None:
            keys, values, shown = Before(*before)
            bias = prefix_bias(bias, keys.shape[1], shown, read.length)
            read = read.prepend(self._heads(keys), self._heads(values))
        mixed = read.attend(self._heads(self.q(x)), bias, dropout_rate=self.dropout_rate, key=key)
        return self.o(mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """The feed-forward of a block, without biases: `wo(act(wi x))`, or gated: `wo(act(wi_0 x) * wi_1 x)`."""

    wi: Linear
    wi_0: Linear
    wi_1: Linear

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        for name in ("wi_0", "wi_1") if config.is_gated else ("wi",):
            setattr(self, name, Linear(config.d_model, config.d_ff, stddev=config.d_model**-0.5, rngs=rngs))
        self.wo = Linear(config.d_ff, config.d_model, stddev=config.d_ff**-0.5, rngs=rngs)
        self.is_gated = config.is_gated
        self.activation = config.activation
        self.dropout_rate = config.dropout_rate

    def __call__(
        self, x: Float[Array, "batch length d_model"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch length d_model"]:
        if self.is_gated:
            hidden = activated(self.activation, self.wi_0(x), self.wi_1(x))
        else:
            hidden = activated(self.activation, self.wi(x))
        return self.wo(dropout(hidden, self.dropout_rate, key))


class Block(nnx.Module):
    """One layer: self-attention, cross-attention (decoder only) and feed-forward, with pre-norms and residuals."""

    def __init__(self, config: T5Config, *, decoder: bool, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon)

        self.self_attention_norm, self.self_attention = norm(), Attention(config, rngs=rngs)
        if decoder:
            self.cross_attention_norm, self.cross_attention = norm(), Attention(config, rngs=rngs)
        self.feed_forward_norm, self.feed_forward = norm(), FeedForward(config, rngs=rngs)
        self.decoder = decoder
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        self_bias: ScoreBias,
        encoded: Float[Array, "batch enc_len d_model"] | None = None,
        cross_bias: ScoreBias = (),
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length d_model"]:
        """Run the block over whole sequences, as in training."""
        return self.read(x, self_bias, encoded, cross_bias, key)[0]

    def read(
        self,
        x: Float[Array, "batch length d_model"],
        self_bias: ScoreBias,
        encoded: Float[Array, "batch enc_len d_model"] | None = None,
        cross_bias: ScoreBias = (),
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length d_model"], dict[str, KeysValues]]:
        """Like `__call__`, but also returns the keys and values of each attention by its name."""
        keys, kept = split_key(key, 6), {}
        h = self.self_attention_norm(x)
        kept["self_attention"] = self.self_attention.keys_values(h)
        h = self.self_attention(h, kept["self_attention"], self_bias, keys[0])
        x = x + dropout(h, self.dropout_rate, keys[1])
        if self.decoder:
            assert encoded is not None
            h = self.cross_attention_norm(x)
            kept["cross_attention"] = self.cross_attention.keys_values(encoded)
            h = self.cross_attention(h, kept["cross_attention"], cross_bias, keys[2])
            x = x + dropout(h, self.dropout_rate, keys[3])
        h = self.feed_forward(self.feed_forward_norm(x), keys[4])
        return placed(x + dropout(h, self.dropout_rate, keys[5]), "hidden"), kept

    def step(
        self,
        x: Float[Array, "batch 1 d_model"],
        self_bias: ScoreBias,
        read: Cached,
        cross_bias: ScoreBias,
        cache: SegmentCache,
        layer: Int[Array, ""] | None,
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 d_model"], SegmentCache]:
        """Generate one token, attending to the tokens generated so far and to the encoder's output.

        Args:
          x: the hidden state of the new token.
          self_bias: biases of the self-attention, for the new token alone.
          read: keys and values of the encoder's output.
          cross_bias: biases of the cross-attention.
          cache: keys and values of the generated tokens.
          layer: the index of this layer in `cache`; None if that holds a single layer.
          position: the index of the new token.
        """
        h = self.self_attention_norm(x)
        cache = cache.write(layer, position, self.self_attention.keys_values(h))
        x = x + self.self_attention(h, CachedParts((cache.of(layer),)), self_bias)
        x = x + self.cross_attention(self.cross_attention_norm(x), CachedParts((read,)), cross_bias)
        return placed(x + self.feed_forward(self.feed_forward_norm(x)), "hidden"), cache


class RelativeBias(Embedding):
    """The relative position bias: one learned number per head and bucket of distances.

    Each small distance has a bucket of its own; larger ones share buckets of logarithmically growing size.
    """

    def __init__(self, config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs):
        super().__init__(
            config.relative_attention_num_buckets, config.num_heads, stddev=config.d_model**-0.5, rngs=rngs
        )
        self.bidirectional = bidirectional
        self.max_distance = config.relative_attention_max_distance
        self.num_buckets = config.relative_attention_num_buckets

    def _bucket_of_distance(self) -> np.ndarray:
        """The bucket of each distance from 0 to `max_distance` within one direction."""
        num_buckets = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        num_exact = num_buckets // 2
        distance = np.arange(self.max_distance + 1, dtype=np.float32)
        # In float32 like the reference implementation, so that no bucket's boundary moves.
        spread = np.log(np.maximum(distance, 1) / np.float32(num_exact)) / np.float32(
            math.log(self.max_distance / num_exact)
        )
        large = num_exact + (spread * (num_buckets - num_exact)).astype(np.int32)
        return np.where(distance < num_exact, distance, np.minimum(large, num_buckets - 1)).astype(np.int32)

    def bias(self, q_len: int, kv_len: int) -> Float[Array, "1 num_heads q_len kv_len"]:
        """The bias of every query position for every key position, float32."""
        relative = jnp.arange(kv_len)[None, :] - jnp.arange(q_len)[:, None]
        if self.bidirectional:
            direction = jnp.where(relative > 0, self.num_buckets // 2, 0)
        else:
            direction, relative = 0, jnp.minimum(relative, 0)
        distance = jnp.minimum(jnp.abs(relative), self.max_distance)
        buckets = direction + jnp.asarray(self._bucket_of_distance())[distance]
        return jnp.moveaxis(self(buckets), -1, 0)[None].astype(jnp.float32)


class Stack(Segments):
    """The encoder or the decoder: its blocks, as segments of stacked blocks, relative position bias and final norm."""

    def __init__(self, config: T5Config, *, decoder: bool, rngs: nnx.Rngs):
        num_layers = config.num_decoder_layers if decoder else config.num_layers
        keys = jax.random.split(rngs.params(), num_layers)
        blocks = jax.vmap(lambda key: Block(config, decoder=decoder, rngs=nnx.Rngs(key)))(keys)
        super().__init__(blocks)
        self.relative_attention_bias = RelativeBias(config, bidirectional=not decoder, rngs=rngs)
        self.final_norm = RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon)
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        self_bias: ScoreBias,
        encoded: Float[Array, "batch enc_len d_model"] | None = None,
        cross_bias: ScoreBias = (),
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length d_model"]:
        """Run all blocks over whole sequences."""
        x_key, out_key, *segment_keys = split_key(key, 2 + len(self.segments))
        x = dropout(x, self.dropout_rate, x_key)
        x = self.run(x, segment_keys, self_bias, encoded, cross_bias)
        return dropout(self.final_norm(x), self.dropout_rate, out_key)

    def attended(
        self,
        x: Float[Array, "1 length d_model"],
        self_bias: ScoreBias,
        encoded: Float[Array, "1 enc_len d_model"] | None = None,
        cross_bias: ScoreBias = (),
    ) -> tuple[Float[Array, "1 length d_model"], dict[str, tuple[Array, Array]]]:
        """Run all blocks on a batch of one row.

        Returns:
          The output, and keys and values, each `[layers, length, d_heads]`, by the name of the attention.
        """

        def body(x: Array, block: Block) -> tuple[Array, dict[str, KeysValues]]:
            return block.read(x, self_bias, encoded, cross_bias)

        found: dict[str, list[KeysValues]] = {}
        for block in self.segments:
            x, kept = jax.lax.scan(body, x, block)
            for name, pair in kept.items():
                found.setdefault(name, []).append(pair)
        return self.final_norm(x), {name: concatenate_heads(pairs) for name, pairs in found.items()}

    def read_by_cross_attention(self, encoded: Float[Array, "batch enc_len d_model"]) -> list[Cached]:
        """Each segment's keys and values of `encoded`, with a leading `layers` axis if it has several layers."""

        def read_by(block: Block) -> Cached:
            if num_stacked(block) == 1:
                return only_layer(block).cross_attention.keys_values(encoded).cached()
            return jax.lax.map(lambda block: block.cross_attention.keys_values(encoded).cached(), block)

        return [read_by(block) for block in self.segments]

    def step(
        self,
        x: Float[Array, "batch 1 d_model"],
        self_bias: ScoreBias,
        reads: list[Cached],
        cross_bias: ScoreBias,
        caches: list[SegmentCache],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 d_model"], list[SegmentCache]]:
        """Run all blocks over one new token; returns the output and the updated caches."""

        def block_step(block, x, read, cache, layer):
            return block.step(x, self_bias, read, cross_bias, cache, layer, position)

        x, new_caches = self.run_step(x, caches, reads, block_step)
        return self.final_norm(x), new_caches


@dataclasses.dataclass(frozen=True)
class T5Decoding:
    """The generation of one batch of answers (see `jpeft.model.language_model.Decoding`).

    Attributes:
      model: the network.
      self_bias: biases of the decoder's self-attention for all positions.
      reads: each segment's keys and values of the encoder's output.
      cross_bias: biases of the cross-attention.
      first: the start token, the input of the first step.
      caches: empty caches for the generated tokens, one per segment.
    """

    model: "T5"
    self_bias: Float[Array, "1 num_heads max_length max_length"]
    reads: list[Cached]
    cross_bias: ScoreBias
    first: Int[Array, " batch"]
    caches: list[SegmentCache]

    def step(
        self, tokens: Int[Array, " batch"], caches: list[SegmentCache], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], list[SegmentCache]]:
        """Return the logits of the token after `tokens`, which are at `position`, and the updated caches."""
        x = self.model.shared(tokens[:, None]).astype(self.model.dtype)
        self_bias = jax.lax.dynamic_slice_in_dim(self.self_bias, position, 1, axis=2)
        x, caches = self.model.decoder.step(x, (self_bias,), self.reads, self.cross_bias, caches, position)
        return self.model.logits(x)[:, 0], caches


class T5(nnx.Module):
    """The encoder-decoder; calling it returns the logits of a training batch."""

    # The role of each module for PEFT methods and sharding, by the last part of its path. The activation acts on
    # `wi_0`, which gates `wi_1`.
    site_roles: ClassVar[dict[str, str]] = {
        **{name: name for name in ("q", "k", "v", "o")},
        **{"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"},
        **{f"{part}_norm": "norm" for part in ("self_attention", "cross_attention", "feed_forward", "final")},
        **{"shared": "vocabulary", "encoder_input": "input"},
    }
    # Maps that are quantized only on request: the sums of `wo` overflow half precision.
    kept_wide: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: T5Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.shared = Embedding(config.vocab_size, config.d_model, stddev=1.0, rngs=rngs)
        self.encoder_input = EmbeddedInput(config.d_model)
        self.encoder = Stack(config, decoder=False, rngs=rngs)
        self.decoder = Stack(config, decoder=True, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.d_model, config.vocab_size, stddev=config.d_model**-0.5, rngs=rngs, float32_result=True
            )
        self.config = config
        self.dtype = jnp.dtype(dtype)

    def encode(
        self,
        encoder_input_tokens: Int[Array, "batch enc_len"],
        key: Key[Array, ""] | None = None,
        segment_ids: Int[Array, "batch enc_len"] | None = None,
    ) -> tuple[Float[Array, "batch new_len d_model"], ScoreBias]:
        """Run the encoder; returns its output and the bias that masks its padding. A soft prompt makes both longer.

        Args:
          encoder_input_tokens: token ids, padded.
          key: the random key for dropout; None disables it.
          segment_ids: for packed rows, the example of each position; positions attend only within their example.
        """
        length = encoder_input_tokens.shape[1]
        mask = jnp.arange(length) < lengths_of(encoder_input_tokens, self.config.padding_id)
        x, mask = self.encoder_input(self.shared(encoder_input_tokens).astype(self.dtype), mask)
        mask_bias = jnp.where(mask, 0.0, MASKED)[:, None, None, :]
        bias = (self.encoder.relative_attention_bias.bias(x.shape[1], x.shape[1]), mask_bias)
        if segment_ids is not None:
            refuse_longer(x, length, instead="without encoder_segment_ids and decoder_segment_ids")
            bias = (*bias, apart(segment_ids, segment_ids))
        return self.encoder(x, bias, key=key), (mask_bias,)

    def logits(self, x: Float[Array, "batch dec_len d_model"]) -> Float[Array, "batch dec_len vocab"]:
        """Logits of the next token from the decoder's output.

        The product's result is float32: rounded to bfloat16, a logit of 140 would be off by up to 0.5.
        """
        if self.config.scales_outputs:
            x = (x.astype(jnp.float32) * self.config.d_model**-0.5).astype(x.dtype)
        scores = self.shared.scores(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return placed(scores, "logits")

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "batch enc_len"],
        decoder_input_tokens: Int[Array, "batch dec_len"],
        key: Key[Array, ""] | None = None,
        segment_ids: tuple[Int[Array, "batch enc_len"], Int[Array, "batch dec_len"]] | None = None,
    ) -> Float[Array, "batch dec_len vocab"]:
        """The logits at every target position; arguments as of `hidden`."""
        return self.logits(self.hidden(encoder_input_tokens, decoder_input_tokens, key, segment_ids))

    def hidden(
        self,
        encoder_input_tokens: Int[Array, "batch enc_len"],
        decoder_input_tokens: Int[Array, "batch dec_len"],
        key: Key[Array, ""] | None = None,
        segment_ids: tuple[Int[Array, "batch enc_len"], Int[Array, "batch dec_len"]] | None = None,
    ) -> Float[Array, "batch dec_len d_model"]:
        """The decoder's output at every target position, the input of `logits`.

        Args:
          encoder_input_tokens: token ids; padding at their end (`config.padding_id`) is masked.
          decoder_input_tokens: the targets shifted right, beginning with `decoder_start_token_id`. Attention is causal,
            so padding after a row's targets needs no mask.
          key: the random key for dropout; None disables it.
          segment_ids: for packed rows, the index of the example of each position of the encoder and of the decoder;
            examples do not attend to each other. Relative positions are correct as they are, since distances within an
            example do not change.

        Raises:
          UserError: rows are packed, and the model has a soft prompt.
        """
        encoder_key, decoder_key = split_key(key, 2)
        encoder_segment_ids, decoder_segment_ids = (None, None) if segment_ids is None else segment_ids
        encoded, cross_bias = self.encode(encoder_input_tokens, encoder_key, encoder_segment_ids)
        x = self.shared(decoder_input_tokens).astype(self.dtype)
        self_bias: ScoreBias = (self.causal_bias(x.shape[1]),)
        if encoder_segment_ids is not None and decoder_segment_ids is not None:
            self_bias = (*self_bias, apart(decoder_segment_ids, decoder_segment_ids))
            cross_bias = (*cross_bias, apart(decoder_segment_ids, encoder_segment_ids))
        return self.decoder(x, self_bias, encoded, cross_bias, decoder_key)

    def hidden_of(
        self, batch: dict[str, Array], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dec_len d_model"]:
        """Call `hidden` with the arrays of a batch, padded by the family or packed by pretraining."""
        packed = "encoder_segment_ids" in batch
        segment_ids = (batch["encoder_segment_ids"], batch["decoder_segment_ids"]) if packed else None
        return self.hidden(batch["encoder_input_tokens"], batch["decoder_input_tokens"], key, segment_ids)

    def hidden_of_labels(
        self,
        inputs: Int[Array, "batch enc_len"],
        labels: Int[Array, "batch length"],
        segment_ids: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """The decoder's output for several answers to each input, packed into one row and told apart by segment id."""
        encoded, cross_bias = self.encode(inputs)
        x = self.shared(labels).astype(self.dtype)
        return self.decoder(
            x, (self.causal_bias(labels.shape[1]), apart(segment_ids, segment_ids)), encoded, cross_bias
        )

    def attended(self, tokens: Int[Array, " length"]) -> dict[str, tuple[Array, Array]]:
        """Keys and values of each attention, with `tokens` as the input of both the encoder and the decoder.

        Returns:
          Pairs, each `[layers, length, d_heads]`, by the attention's path with `*` in place of the layer's index.
        """
        x, length = self.shared(tokens[None]).astype(self.dtype), len(tokens)
        encoded, encoder_pairs = self.encoder.attended(x, (self.encoder.relative_attention_bias.bias(length, length),))
        nothing_hidden = jnp.zeros((1, 1, 1, length))
        _, decoder_pairs = self.decoder.attended(x, (self.causal_bias(length),), encoded, (nothing_hidden,))
        stacks = {"encoder": encoder_pairs, "decoder": decoder_pairs}
        return {f"{stack}/layers/*/{name}": pair for stack, found in stacks.items() for name, pair in found.items()}

    def longest_input(self, answer_length: int) -> int | None:
        """None: relative positions do not limit the length."""
        return None

    def begin(self, inputs: Int[Array, "batch enc_len"], max_length: int, num_beams: int = 1) -> T5Decoding:
        """Encode the inputs and allocate caches for answers of `max_length` tokens; beams of a row are neighbours."""
        encoded, cross_bias = self.encode(inputs)
        reads = self.decoder.read_by_cross_attention(encoded)
        cross_bias = tuple(jnp.repeat(part, num_beams, axis=0) for part in cross_bias)
        first = jnp.full((inputs.shape[0] * num_beams,), self.config.decoder_start_token_id, jnp.int32)
        caches = [SegmentCache.empty(read, max_length, num_beams) for read in reads]
        return T5Decoding(self, self.causal_bias(max_length), reads, cross_bias, first, caches)

    def causal_bias(self, length: int) -> Float[Array, "1 num_heads length length"]:
        """The decoder's relative position bias with later positions masked."""
        future = np.triu(np.full((length, length), MASKED, np.float32), k=1)
        return self.decoder.relative_attention_bias.bias(length, length) + future[None, None]
