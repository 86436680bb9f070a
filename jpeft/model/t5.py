"""T5 in Flax NNX: one network for T5 1.0, T5 1.1 and FLAN-T5 (Raffel et al. 2020; Shazeer 2020 for the gated block).

Blocks of equal structure are stored stacked, every leaf with a leading `layers` axis, and run by `jax.lax.scan`; a
`Stack` is a list of such *segments*, usually one. The network knows nothing of PEFT methods; what its parts are to them
it says in names (`T5.site_roles`) and, of what holds no weights, by `site_kind`.

Compute dtype travels with the activations: `T5.dtype` is applied once at the embedding, and every layer casts its own
weights to the dtype of its input. Softmax, norms' statistics, scales and the product that makes logits are float32.
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

from jpeft.model.attention import Before, Cached, CachedParts, KeysValues, ScoreBias, with_room
from jpeft.model.layers import ACTIVATIONS, MASKED, EmbeddedInput, Embedding, Linear, RMSNorm, apart, dropout, split_key
from jpeft.model.placement import placed
from jpeft.model.stack import SegmentCache, Segments, num_stacked, only_layer, side_by_side
from jpeft.model.t5_config import T5Config


class Attention(nnx.Module):
    """Multi-head attention with an additive bias.

    Logits are not divided by sqrt(d_kv): T5 folds that into the initial scale of q, and released weights rely on it.
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
        """The keys and values of `x`, which queries attend to; when decoding they are computed once and kept."""
        return KeysValues(self._heads(self.k(x)), self._heads(self.v(x)))

    def __call__(
        self,
        x: Float[Array, "batch q_len d_model"],
        read: KeysValues | CachedParts,
        bias: ScoreBias,
        key: Key[Array, ""] | None = None,
        before: tuple[Array, Array, Array | None] | None = None,
    ) -> Float[Array, "batch q_len d_model"]:
        """What queries of x make of what was read; of what is `before` it, too (a `Before`), at no position."""
        if before is not None:
            keys, values, shown = Before(*before)
            bias = with_room(bias, keys.shape[1], shown, read.length)
            read = read.behind(self._heads(keys), self._heads(values))
        mixed = read.mixed_by(self._heads(self.q(x)), bias, dropout_rate=self.dropout_rate, key=key)
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
        activation = ACTIVATIONS[self.activation]
        if self.is_gated:
            hidden = activation(self.wi_0(x)) * self.wi_1(x)
        else:
            hidden = activation(self.wi(x))
        return self.wo(dropout(hidden, self.dropout_rate, key))


class Block(nnx.Module):
    """One layer: self-attention, in the decoder cross-attention, feed-forward; each normed before and added after."""

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
        """The whole sequence at once, as in training."""
        return self.read(x, self_bias, encoded, cross_bias, key)[0]

    def read(
        self,
        x: Float[Array, "batch length d_model"],
        self_bias: ScoreBias,
        encoded: Float[Array, "batch enc_len d_model"] | None = None,
        cross_bias: ScoreBias = (),
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length d_model"], dict[str, KeysValues]]:
        """The same, and the keys and values of each attention by its name."""
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
        """One token of generation, attending to what `cache` holds of `layer` and to what was `read` of the encoder."""
        h = self.self_attention_norm(x)
        cache = cache.write(layer, position, self.self_attention.keys_values(h))
        x = x + self.self_attention(h, CachedParts((cache.of(layer),)), self_bias)
        x = x + self.cross_attention(self.cross_attention_norm(x), CachedParts((read,)), cross_bias)
        return placed(x + self.feed_forward(self.feed_forward_norm(x)), "hidden"), cache


class RelativeBias(Embedding):
    """A learned bias per head and bucket of distance; small distances have buckets of their own, large ones share."""

    def __init__(self, config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs):
        super().__init__(
            config.relative_attention_num_buckets, config.num_heads, stddev=config.d_model**-0.5, rngs=rngs
        )
        self.bidirectional = bidirectional
        self.max_distance = config.relative_attention_max_distance
        self.num_buckets = config.relative_attention_num_buckets

    def _bucket_of_distance(self) -> np.ndarray:
        """Bucket of each distance from 0 to `max_distance`, within one direction."""
        num_buckets = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        num_exact = num_buckets // 2
        distance = np.arange(self.max_distance + 1, dtype=np.float32)
        # In float32, as the reference computes it: a bucket's border must not move.
        spread = np.log(np.maximum(distance, 1) / np.float32(num_exact)) / np.float32(
            math.log(self.max_distance / num_exact)
        )
        large = num_exact + (spread * (num_buckets - num_exact)).astype(np.int32)
        return np.where(distance < num_exact, distance, np.minimum(large, num_buckets - 1)).astype(np.int32)

    def bias(self, q_len: int, kv_len: int) -> Float[Array, "1 num_heads q_len kv_len"]:
        """The bias of every query position to every key position, float32."""
        relative = jnp.arange(kv_len)[None, :] - jnp.arange(q_len)[:, None]
        if self.bidirectional:
            direction = jnp.where(relative > 0, self.num_buckets // 2, 0)
        else:
            direction, relative = 0, jnp.minimum(relative, 0)
        distance = jnp.minimum(jnp.abs(relative), self.max_distance)
        buckets = direction + jnp.asarray(self._bucket_of_distance())[distance]
        return jnp.moveaxis(self(buckets), -1, 0)[None].astype(jnp.float32)


class Stack(Segments):
    """The blocks of the encoder or of the decoder, as segments of stacked blocks, and the norm after them."""

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
        """Runs every block over whole sequences."""
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
        """The output for one row, and keys and values of each kind of attention, `[layers, length, d_heads]`."""

        def body(x: Array, block: Block) -> tuple[Array, dict[str, KeysValues]]:
            return block.read(x, self_bias, encoded, cross_bias)

        found: dict[str, list[KeysValues]] = {}
        for block in self.segments:
            x, kept = jax.lax.scan(body, x, block)
            for name, pair in kept.items():
                found.setdefault(name, []).append(pair)
        return self.final_norm(x), {name: side_by_side(pairs) for name, pairs in found.items()}

    def read_by_cross_attention(self, encoded: Float[Array, "batch enc_len d_model"]) -> list[Cached]:
        """Per segment the keys and values of `encoded`, with an axis of layers first where a segment has several."""

        def of_segment(block: Block) -> Cached:
            if num_stacked(block) == 1:
                return only_layer(block).cross_attention.keys_values(encoded).cached()
            return jax.lax.map(lambda block: block.cross_attention.keys_values(encoded).cached(), block)

        return [of_segment(block) for block in self.segments]

    def step(
        self,
        x: Float[Array, "batch 1 d_model"],
        self_bias: ScoreBias,
        reads: list[Cached],
        cross_bias: ScoreBias,
        caches: list[SegmentCache],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 d_model"], list[SegmentCache]]:
        """Runs every block over one new token; returns its output and the extended caches."""

        def of_block(block, x, read, cache, layer):
            return block.step(x, self_bias, read, cross_bias, cache, layer, position)

        x, new_caches = self.run_step(x, caches, reads, of_block)
        return self.final_norm(x), new_caches


@dataclasses.dataclass(frozen=True)
class T5Decoding:
    """The generation of one batch of answers (`jpeft.model.language_model.Decoding`)."""

    model: "T5"
    self_bias: Float[Array, "1 num_heads max_length max_length"]
    reads: list[Cached]
    cross_bias: ScoreBias
    first: Int[Array, " batch"]
    caches: list[SegmentCache]

    def step(
        self, tokens: Int[Array, " batch"], caches: list[SegmentCache], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], list[SegmentCache]]:
        """Logits of the token after `tokens`, which stand at `position`."""
        x = self.model.shared(tokens[:, None]).astype(self.model.dtype)
        self_bias = jax.lax.dynamic_slice_in_dim(self.self_bias, position, 1, axis=2)
        x, caches = self.model.decoder.step(x, (self_bias,), self.reads, self.cross_bias, caches, position)
        return self.model.logits(x)[:, 0], caches


class T5(nnx.Module):
    """The encoder-decoder. Call it for the logits of a training batch; `jpeft.model.decode` generates with it."""

    # What PEFT methods call its parts, by the last part of their paths; `wi` and `wi_1` are what the activation gates.
    site_roles: ClassVar[dict[str, str]] = {
        **{name: name for name in ("q", "k", "v", "o")},
        **{"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"},
        **{f"{part}_norm": "norm" for part in ("self_attention", "cross_attention", "feed_forward", "final")},
        **{"shared": "vocabulary", "encoder_input": "input"},
    }
    kept_wide: ClassVar[tuple[str, ...]] = ("wo",)  # of the maps that are quantised elsewhere, unless asked for

    def __init__(self, config: T5Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.shared = Embedding(config.vocab_size, config.d_model, stddev=1.0, rngs=rngs)
        self.encoder_input = EmbeddedInput(config.d_model)
        self.encoder = Stack(config, decoder=False, rngs=rngs)
        self.decoder = Stack(config, decoder=True, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size, stddev=config.d_model**-0.5, rngs=rngs, wide=True)
        self.config = config
        self.dtype = jnp.dtype(dtype)

    def encode(
        self,
        encoder_input_tokens: Int[Array, "batch enc_len"],
        key: Key[Array, ""] | None = None,
        segment_ids: Int[Array, "batch enc_len"] | None = None,
    ) -> tuple[Float[Array, "batch new_len d_model"], ScoreBias]:
        """The encoder's output and the bias that hides its padding; a soft prompt makes both longer.

        With `segment_ids`, a position attends to those of its own segment only.
        """
        mask = encoder_input_tokens != self.config.pad_token_id
        x, mask = self.encoder_input(self.shared(encoder_input_tokens).astype(self.dtype), mask)
        mask_bias = jnp.where(mask, 0.0, MASKED)[:, None, None, :]
        bias = (self.encoder.relative_attention_bias.bias(x.shape[1], x.shape[1]), mask_bias)
        if segment_ids is not None:
            bias = (*bias, apart(segment_ids, segment_ids))
        return self.encoder(x, bias, key=key), (mask_bias,)

    def logits(self, x: Float[Array, "batch dec_len d_model"]) -> Float[Array, "batch dec_len vocab"]:
        """Scores of the next token, float32, from the decoder's output.

        Their product is: rounded to bfloat16, a logit of 140 is off by up to 0.5.
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
        """Logits of every target position; arguments as of `hidden`."""
        return self.logits(self.hidden(encoder_input_tokens, decoder_input_tokens, key, segment_ids))

    def hidden(
        self,
        encoder_input_tokens: Int[Array, "batch enc_len"],
        decoder_input_tokens: Int[Array, "batch dec_len"],
        key: Key[Array, ""] | None = None,
        segment_ids: tuple[Int[Array, "batch enc_len"], Int[Array, "batch dec_len"]] | None = None,
    ) -> Float[Array, "batch dec_len d_model"]:
        """The decoder's output at every target position, which `logits` takes.

        `key` draws dropout masks; without it there is no dropout.

        Padding (`pad_token_id`) in `encoder_input_tokens` is not attended to. `decoder_input_tokens` are the targets
        shifted right behind `decoder_start_token_id`; what stands after a row's last target changes nothing before it.

        Args:
          segment_ids: for rows packed of several examples, the number of the example that each position of the encoder
            and of the decoder belongs to; examples do not see each other. Relative positions need no change: a
            distance within an example is the same wherever the example stands. Not together with a soft prompt.
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
        """Calls `hidden` with the arrays of a batch, one that the family padded or that pretraining packed."""
        packed = "encoder_segment_ids" in batch
        segment_ids = (batch["encoder_segment_ids"], batch["decoder_segment_ids"]) if packed else None
        return self.hidden(batch["encoder_input_tokens"], batch["decoder_input_tokens"], key, segment_ids)

    def hidden_of_labels(
        self,
        inputs: Int[Array, "batch enc_len"],
        labels: Int[Array, "batch length"],
        segment_ids: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """The decoder's output for several answers to each input, packed in one row, kept apart by `segment_ids`."""
        encoded, cross_bias = self.encode(inputs)
        x = self.shared(labels).astype(self.dtype)
        return self.decoder(
            x, (self.causal_bias(labels.shape[1]), apart(segment_ids, segment_ids)), encoded, cross_bias
        )

    def attended(self, tokens: Int[Array, " length"]) -> dict[str, tuple[Array, Array]]:
        """Keys and values of each attention while `tokens` are both read and written, each `[layers, length, d_heads]`.

        By the attention's path, with a star for the layer's index.
        """
        x, length = self.shared(tokens[None]).astype(self.dtype), len(tokens)
        encoded, of_encoder = self.encoder.attended(x, (self.encoder.relative_attention_bias.bias(length, length),))
        nothing_hidden = jnp.zeros((1, 1, 1, length))
        _, of_decoder = self.decoder.attended(x, (self.causal_bias(length),), encoded, (nothing_hidden,))
        stacks = {"encoder": of_encoder, "decoder": of_decoder}
        return {f"{stack}/layers/*/{name}": pair for stack, found in stacks.items() for name, pair in found.items()}

    def longest_input(self, answer_length: int) -> int | None:
        """None: relative positions have no end."""
        return None

    def begin(self, inputs: Int[Array, "batch enc_len"], max_length: int, num_beams: int = 1) -> T5Decoding:
        """Encodes the inputs, and is ready for answers of `max_length` tokens; beams of a row are neighbours."""
        encoded, cross_bias = self.encode(inputs)
        reads = self.decoder.read_by_cross_attention(encoded)
        cross_bias = tuple(jnp.repeat(part, num_beams, axis=0) for part in cross_bias)
        first = jnp.full((inputs.shape[0] * num_beams,), self.config.decoder_start_token_id, jnp.int32)
        caches = [SegmentCache.empty(read, max_length, num_beams) for read in reads]
        return T5Decoding(self, self.causal_bias(max_length), reads, cross_bias, first, caches)

    def causal_bias(self, length: int) -> Float[Array, "1 num_heads length length"]:
        """Relative position bias of the decoder with the future hidden."""
        future = np.triu(np.full((length, length), MASKED, np.float32), k=1)
        return self.decoder.relative_attention_bias.bias(length, length) + future[None, None]
