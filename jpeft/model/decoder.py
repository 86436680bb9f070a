"""A single decoder-only network for GPT-Neo, GPT-J, BLOOM, Llama, SmolLM2, Mistral, Qwen2 and Qwen3.

Their differences are a row of `jpeft.model.decoder_config.CHOICES`. Blocks are stored and run as T5's are
(`jpeft.model.stack`). Softmax, norm statistics, scales, rotary embeddings and logits are computed in float32,
everything else in the dtype of the activations.

A *slot* is an index along a batch's length axis. Prompts are right-aligned: the answer begins at the same slot in every
row, and shorter prompts have hidden slots (padding) before them. A token's *position* is the number of visible tokens
before it in its row. A soft prompt takes the first slots, visible or hidden like any other.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from jpeft.model.attention import Before, Cached, CachedParts, KeysValues, ScoreBias, prefix_bias, prefix_length
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.language_model import TooLong
from jpeft.model.layers import (
    MASKED,
    EmbeddedInput,
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    activated,
    dropout,
    lengths_of,
    refuse_longer,
    split_key,
)
from jpeft.model.placement import placed
from jpeft.model.stack import SegmentCache, Segments, concatenate_heads, num_stacked, only_layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Places:
    """The positions of a batch's tokens and its attention masks, as the blocks need them.

    Attributes:
      rotations: cosines and sines of the rotary embedding (Su et al. 2021, RoPE) for the new tokens; None for models
        without one.
      biases: additive biases of the scores, each `[batch, heads, queries, keys]` or 1 along an axis.
      near: a further bias for the layers with a sliding window; None if all layers have the same biases.
    """

    rotations: tuple[Float[Array, "batch 1 queries half"], Float[Array, "batch 1 queries half"]] | None
    biases: tuple[Float[Array, "_ _ _ keys"], ...]
    near: Float[Array, "batch 1 queries keys"] | None

    def layer_biases(self, windowed: Bool[Array, ""]) -> tuple[Float[Array, "_ _ _ keys"], ...]:
        """The biases of one layer; `windowed` says whether it has a sliding window."""
        return self.biases if self.near is None else (*self.biases, jnp.where(windowed, self.near, 0.0))


def make_norm(config: DecoderConfig, width: int) -> RMSNorm | LayerNorm:
    """Create the model's kind of norm, an RMSNorm or a LayerNorm, over `width` features."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(width, epsilon=config.norm_epsilon)


def make_linear(
    config: DecoderConfig, name: str, d_in: int, d_out: int, rngs: nnx.Rngs, *, float32_result: bool = False
) -> Linear:
    """Create the linear map called `name`, with a bias if the model has one there (`config.biases`)."""
    return Linear(
        d_in, d_out, stddev=d_in**-0.5, rngs=rngs, float32_result=float32_result, has_bias=name in config.biases
    )


def rotated(
    x: Float[Array, "batch heads length d_head"],
    rotations: tuple[Float[Array, "batch 1 length half"], Float[Array, "batch 1 length half"]],
    *,
    neighbours: bool,
) -> Float[Array, "batch heads length d_head"]:
    """Apply a rotary embedding to the first `2 * half` features of each head.

    Args:
      x: queries or keys.
      rotations: cosines and sines of the angles.
      neighbours: whether features `2i` and `2i + 1` form a pair (GPT-J), rather than `i` and `i + half` (Llama).
    """
    cosines, sines = rotations
    half = cosines.shape[-1]
    wide = x.astype(jnp.float32)
    if neighbours:
        one, other = wide[..., 0 : 2 * half : 2], wide[..., 1 : 2 * half : 2]
    else:
        one, other = wide[..., :half], wide[..., half : 2 * half]
    parts = (one * cosines - other * sines, other * cosines + one * sines)
    if neighbours:
        both = jnp.stack(parts, axis=-1).reshape(*x.shape[:-1], 2 * half)
    else:
        both = jnp.concatenate(parts, axis=-1)
    return jnp.concatenate([both.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def rotations_of(
    config: DecoderConfig, positions: Int[Array, "batch length"]
) -> tuple[Float[Array, "batch 1 length half"], Float[Array, "batch 1 length half"]]:
    """Cosines and sines of the rotary embedding at `positions`, float32; `RotaryScaling.size` is not applied."""
    angles = positions[..., None].astype(jnp.float32) * config.rotary_frequencies()
    return jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slope of each head (Press et al. 2022), the factor of the key's position in a score.

    For a power of two they are a geometric series. For any other number of heads, they are those of the next lower
    power of two, followed by every second one of the next higher.
    """
    below = 2 ** int(np.floor(np.log2(num_heads)))
    slopes = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    slopes += [2.0 ** (-4 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    return np.asarray(slopes, np.float32)


class CausalAttention(nnx.Module):
    """Causal self-attention, with grouped queries if there are fewer heads of keys and values than of queries."""

    site_kind: ClassVar[str] = "attention"

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        d_queries, d_keys = config.num_heads * config.d_head, config.num_kv_heads * config.d_head
        self.q = make_linear(config, "q", config.d_model, d_queries, rngs)
        self.k = make_linear(config, "k", config.d_model, d_keys, rngs)
        self.v = make_linear(config, "v", config.d_model, d_keys, rngs)
        self.o = make_linear(config, "o", d_queries, config.d_model, rngs)
        if config.qk_norm:
            self.q_norm, self.k_norm = make_norm(config, config.d_head), make_norm(config, config.d_head)
        self.config = config
        self.site_widths = (config.d_model, d_keys)

    def _heads(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch heads length d_head"]:
        return x.reshape(*x.shape[:2], -1, self.config.d_head).swapaxes(1, 2)

    def _rotated(self, x: Float[Array, "batch heads length d_head"], places: Places) -> Array:
        if places.rotations is not None:
            x = rotated(x, places.rotations, neighbours=self.config.positions == "pairs")
        return placed(x, "heads")

    def keys_values(self, x: Float[Array, "batch length d_model"], places: Places) -> KeysValues:
        """Project `x` to keys and values; during generation this is done once per token and cached."""
        k = self._heads(self.k(x))
        k = self.k_norm(k) if self.config.qk_norm else k
        return KeysValues(self._rotated(k, places), placed(self._heads(self.v(x)), "heads"))

    def __call__(
        self,
        x: Float[Array, "batch queries d_model"],
        read: KeysValues | CachedParts,
        places: Places,
        windowed: Bool[Array, ""],
        key: Key[Array, ""] | None = None,
        before: tuple[Array, Array, Array | None] | None = None,
    ) -> Float[Array, "batch queries d_model"]:
        """Attend from x to keys and values.

        Args:
          x: the normed input, of which the queries are made.
          read: the keys and values to attend to.
          places: positions and masks.
          windowed: whether this layer has a sliding window.
          key: the random key for dropout; None disables it.
          before: the fields of a `Before`: a prefix of keys and values, which every query sees despite the window.
        """
        q = self._heads(self.q(x))
        q = self._rotated(self.q_norm(q) if self.config.qk_norm else q, places)
        scale = self.config.d_head**-0.5 if self.config.scales_scores else 1.0
        rate = self.config.dropout_rate
        bias = places.layer_biases(windowed)
        if before is not None:
            read, bias = self._prepend(Before(*before), read, bias)
        mixed = read.attend(q, bias, scale=scale, dropout_rate=rate, key=key)
        return self.o(mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def _prepend(
        self, before: Before, read: KeysValues | CachedParts, bias: ScoreBias
    ) -> tuple[KeysValues | CachedParts, ScoreBias]:
        """Prepend a prefix to keys, values and biases, with the scores that `transformers` gives such a cache.

        In `transformers` the text's positions begin after the prefix, whose keys are not rotated again. Here they
        always begin at 0, so the prefix keys are rotated back by the number of visible prefix positions. Scores depend
        on differences of positions only, and those are equal. YaRN's factor, which `transformers` applies to the text's
        keys alone, is not applied to them. With ALiBi, prefix position i of p is likewise at i - p.
        """
        keys, values = self._heads(before.keys), self._heads(before.values)
        rows, _, length, _ = keys.shape
        if self.config.positions in ("halves", "pairs"):
            shown = jnp.ones((rows, length), bool) if before.shown is None else before.shown
            back = jnp.broadcast_to(-jnp.sum(shown, axis=1, keepdims=True), (rows, length))
            keys = rotated(keys, rotations_of(self.config, back), neighbours=self.config.positions == "pairs")
        bias = prefix_bias(bias, length, before.shown, read.length)
        if self.config.positions == "alibi":
            positions = np.pad(np.arange(-length, 0, dtype=np.float32), (0, read.length))
            bias = (*bias, jnp.asarray(alibi_slopes(self.config.num_heads)[None, :, None, None] * positions))
        return read.prepend(keys, values), bias


class DecoderFeedForward(nnx.Module):
    """The feed-forward of a block: `down(act(up x))`, or gated: `down(act(gate x) * up x)`."""

    gate: Linear

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        if config.gated:
            self.gate = make_linear(config, "gate", config.d_model, config.d_ff, rngs)
        self.up = make_linear(config, "up", config.d_model, config.d_ff, rngs)
        self.down = make_linear(config, "down", config.d_ff, config.d_model, rngs)
        self.gated = config.gated
        self.activation = config.activation

    def __call__(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch length d_model"]:
        if self.gated:
            hidden = activated(self.activation, self.gate(x), self.up(x))
        else:
            hidden = activated(self.activation, self.up(x))
        return self.down(hidden)


class DecoderBlock(nnx.Module):
    """One layer: attention and feed-forward, in sequence or in parallel on the same normed input."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.self_attention_norm = make_norm(config, config.d_model)
        self.self_attention = CausalAttention(config, rngs=rngs)
        if not config.parallel:
            self.feed_forward_norm = make_norm(config, config.d_model)
        self.feed_forward = DecoderFeedForward(config, rngs=rngs)
        self.parallel = config.parallel
        self.dropout_rate = config.dropout_rate

    def _joined(self, x: Array, h: Array, attended: Array, keys: Sequence[Key[Array, ""] | None]) -> Array:
        """The block's output from its input x, the normed input h and the attention's output."""
        mixed = x + dropout(attended, self.dropout_rate, keys[0])
        h = h if self.parallel else self.feed_forward_norm(mixed)
        return placed(mixed + dropout(self.feed_forward(h), self.dropout_rate, keys[1]), "hidden")

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        places: Places,
        windowed: Bool[Array, ""],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length d_model"]:
        """Run the block over whole sequences, as in training."""
        return self.read(x, places, windowed, key)[0]

    def read(
        self,
        x: Float[Array, "batch length d_model"],
        places: Places,
        windowed: Bool[Array, ""],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length d_model"], KeysValues]:
        """Like `__call__`, but also returns the keys and values."""
        weights_key, *keys = split_key(key, 3)
        h = self.self_attention_norm(x)
        read = self.self_attention.keys_values(h, places)
        attended = self.self_attention(h, read, places, windowed, weights_key)
        return self._joined(x, h, attended, keys), read

    def step(
        self,
        x: Float[Array, "batch 1 d_model"],
        places: Places,
        windowed: Bool[Array, ""],
        prompt: Cached,
        cache: SegmentCache,
        layer: Int[Array, ""] | None,
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 d_model"], SegmentCache]:
        """Generate one token, attending to the prompt and to the tokens generated so far.

        Args:
          x: the hidden state of the new token.
          places: its position and masks.
          windowed: whether this layer has a sliding window.
          prompt: the prompt's keys and values.
          cache: keys and values of the generated tokens.
          layer: the index of this layer in `cache`; None if that holds a single layer.
          position: the index of the new token among the generated ones.
        """
        h = self.self_attention_norm(x)
        cache = cache.write(layer, position, self.self_attention.keys_values(h, places))
        read = CachedParts((prompt, cache.of(layer)))
        return self._joined(x, h, self.self_attention(h, read, places, windowed), (None, None)), cache


class DecoderStack(Segments):
    """The blocks, as segments of stacked blocks, and the final norm."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        keys = jax.random.split(rngs.params(), config.num_layers)
        super().__init__(jax.vmap(lambda key: DecoderBlock(config, rngs=nnx.Rngs(key)))(keys))
        self.final_norm = make_norm(config, config.d_model)
        self.dropout_rate = config.dropout_rate
        self.windowed = tuple(layer in config.windowed for layer in range(config.num_layers))

    def __call__(
        self, x: Float[Array, "batch length d_model"], places: Places, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch length d_model"]:
        """Run all blocks over whole sequences."""
        x_key, *segment_keys = split_key(key, 1 + len(self.segments))
        x = dropout(x, self.dropout_rate, x_key)
        return self.final_norm(self.run(x, segment_keys, places, each=(jnp.asarray(self.windowed),)))

    def read(self, x: Float[Array, "batch length d_model"], places: Places) -> list[Cached]:
        """Read prompts; returns each segment's keys and values, with a `layers` axis first if it has several layers."""

        def body(x: Array, layer: tuple[DecoderBlock, Array]) -> tuple[Array, Cached]:
            block, windowed = layer
            x, read = block.read(x, places, windowed)
            return x, read.cached()

        caches = []
        for block, windowed in zip(self.segments, self.per_segment(jnp.asarray(self.windowed)), strict=True):
            if num_stacked(block) == 1:
                x, kept = body(x, (only_layer(block), windowed[0]))
            else:
                x, kept = jax.lax.scan(body, x, (block, windowed))
                kept = jax.tree.map(lambda leaf: placed(leaf, "cache"), kept)
            caches.append(kept)
        return caches

    def step(
        self,
        x: Float[Array, "batch 1 d_model"],
        places: Places,
        prompts: Sequence[Cached],
        caches: Sequence[SegmentCache],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 d_model"], list[SegmentCache]]:
        """Run all blocks over one new token; returns the output and the updated caches."""

        def block_step(block, x, constants, cache, layer):
            prompt, windowed = constants
            return block.step(x, places, windowed, prompt, cache, layer, position)

        windowed = self.per_segment(jnp.asarray(self.windowed))
        windowed = [one[0] if len(one) == 1 else one for one in windowed]
        x, caches = self.run_step(x, caches, list(zip(prompts, windowed, strict=True)), block_step)
        return self.final_norm(x), caches


@dataclasses.dataclass(frozen=True)
class DecoderDecoding:
    """The generation of one batch of answers (see `jpeft.model.language_model.Decoding`).

    Attributes:
      model: the network.
      prompts: each segment's keys and values of the prompts without their last tokens.
      shown: True where a prompt slot is not padding.
      positions: the positions of the prompt slots.
      first: the last token of each prompt, the input of the first step.
      caches: empty caches for the generated tokens, one per segment.
      max_length: the largest number of tokens to generate.
    """

    model: "Decoder"
    prompts: list[Cached]
    shown: Bool[Array, "batch slots"]
    positions: Int[Array, "batch slots"]
    first: Int[Array, " batch"]
    caches: list[SegmentCache]
    max_length: int

    def step(
        self, tokens: Int[Array, " batch"], caches: list[SegmentCache], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], list[SegmentCache]]:
        """Return the logits of the answer's token number `position` (from 0), and the updated caches.

        Args:
          tokens: the previous token of each row.
          caches: keys and values of the tokens before it.
          position: the index of the token to predict.
        """
        rows, written = len(self.shown), jnp.arange(self.max_length)
        start = jnp.sum(self.shown, axis=1, keepdims=True)  # the position of the first token
        positions = jnp.concatenate([self.positions, start + written], axis=1)
        seen = jnp.broadcast_to(written <= position, (rows, self.max_length))
        allowed = jnp.concatenate([self.shown, seen], axis=1)[:, None]
        x = self.model.embedded(tokens[:, None])
        x = self.model.with_positions(x, start + position)
        places = self.model.places(start + position, positions, allowed)
        x, caches = self.model.decoder.step(x, places, self.prompts, caches, position)
        return self.model.logits(x)[:, 0], caches


class Decoder(nnx.Module):
    """A decoder-only language model; calling it returns the logits of whole sequences."""

    # The role of each module for PEFT methods, by the last part of its path.
    site_roles: ClassVar[dict[str, str]] = {
        **{name: name for name in ("q", "k", "v", "o", "gate", "up", "down")},
        **{f"{part}_norm": "norm" for part in ("self_attention", "feed_forward", "final", "embedding", "q", "k")},
        **{"shared": "vocabulary", "decoder_input": "input"},
    }

    def __init__(self, config: DecoderConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        stddev = config.d_model**-0.5
        self.shared = Embedding(config.vocab_size, config.d_model, stddev=stddev, rngs=rngs)
        self.decoder_input = EmbeddedInput(config.d_model)
        if config.positions == "learned":
            self.positions = Embedding(config.max_positions, config.d_model, stddev=stddev, rngs=rngs)
        if config.embedding_norm:
            self.embedding_norm = make_norm(config, config.d_model)
        self.decoder = DecoderStack(config, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = make_linear(config, "lm_head", config.d_model, config.vocab_size, rngs, float32_result=True)
        self.config = config
        self.dtype = jnp.dtype(dtype)

    # --- inputs of the blocks ---

    def embedded(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length d_model"]:
        """Embed tokens in the compute dtype, without positions."""
        return self.shared(tokens).astype(self.dtype)

    def with_positions(
        self, x: Float[Array, "batch length d_model"], positions: Int[Array, "batch length"]
    ) -> Float[Array, "batch length d_model"]:
        """Apply the embedding norm and add learned position embeddings, for models that have them."""
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        if self.config.positions == "learned":
            added = self.positions(positions + self._prefix_length()[1]).astype(jnp.float32)
            x = (x.astype(jnp.float32) + added).astype(x.dtype)
        return x

    def places(
        self,
        queries: Int[Array, "batch queries"],
        keys: Int[Array, "batch keys"],
        *allowed: Bool[Array, "_ _ keys"],
    ) -> Places:
        """Build positions and attention masks for the blocks.

        Args:
          queries, keys: positions of the attending tokens, and of those attended to.
          allowed: masks `[batch, queries, keys]`, where `batch` and `queries` may be 1; a query may attend to a key
            where all of them are True (and, in a windowed layer, the key is near enough).
        """
        config, rotations = self.config, None
        if config.positions in ("halves", "pairs"):
            rotations = rotations_of(config, queries)
            if config.rotary_scaling is not None and config.rotary_scaling.size != 1:
                cosines, sines = rotations
                rotations = cosines * config.rotary_scaling.size, sines * config.rotary_scaling.size
        biases = [mask_bias(mask) for mask in allowed]
        if config.positions == "alibi":  # of the key only: softmax ignores what all keys of a query have in common
            slopes = jnp.asarray(alibi_slopes(config.num_heads))[None, :, None, None]
            biases.append(slopes * keys[:, None, None, :].astype(jnp.float32))
        near = None
        if config.window is not None and config.windowed and keys.shape[1] > config.window:
            near = mask_bias(queries[:, :, None] - keys[:, None, :] < config.window)
            if len(config.windowed) == config.num_layers:
                biases, near = [*biases, near], None
        return Places(rotations, tuple(biases), near)

    def _prefix_length(self) -> tuple[int, Int[Array, "batch 1"] | int]:
        """The length of the attentions' key-value prefixes as `prefix_length` returns it.

        Learned positions are counted from the beginning of the prefix, as `transformers` counts those of a cache. Other
        kinds depend on differences of positions only, which `CausalAttention._prepend` takes care of.
        """
        return prefix_length(block.self_attention for block in self.decoder.segments)

    def _refuse_length(self, slots: int) -> None:
        slots += self._prefix_length()[0]
        if self.config.positions == "learned" and slots > self.config.max_positions:
            raise TooLong(slots, self.config.max_positions)

    def longest_input(self, answer_length: int) -> int | None:
        """The largest number of prompt tokens before answers of `answer_length`; None if positions are unlimited."""
        if self.config.positions != "learned":
            return None
        token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        soft = jax.eval_shape(lambda x: self.decoder_input(self.embedded(x), x >= 0)[0], token).shape[1] - 1
        # The last token of a prompt is the answer's first input.
        return max(1, self.config.max_positions - answer_length - soft - self._prefix_length()[0] + 1)

    # --- whole sequences ---

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        shown: Bool[Array, "batch length"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch slots d_model"]:
        """The final hidden state at every slot, including those of a soft prompt, which come first.

        Args:
          tokens: token ids, padded before the prompt and after the answer.
          shown: True where a slot is not padding.
          key: the random key for dropout; None disables it.
        """
        x, shown = self.decoder_input(self.embedded(tokens), shown)
        self._refuse_length(x.shape[1])
        positions = positions_of(shown)
        places = self.places(positions, positions, shown[:, None], causal_mask(x.shape[1]))
        return self.decoder(self.with_positions(x, positions), places, key)

    def logits(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch length vocab"]:
        """Logits of the next token, float32, from the final hidden states."""
        scores = self.shared.scores(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return placed(scores, "logits")

    def __call__(
        self, tokens: Int[Array, "batch length"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch length vocab"]:
        """Logits of each token's successor; attention is causal, so later tokens do not change them."""
        return self.logits(self.hidden(tokens, jnp.ones(tokens.shape, bool), key)[:, -tokens.shape[1] :])

    def hidden_of(
        self, batch: dict[str, Array], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch targets d_model"]:
        """The final hidden state at each slot whose next token is a target.

        Args:
          batch: a padded batch from `DecoderFamily.batch`, or a packed one with `segment_ids` from
            `jpeft.pretrain.next_token`, in which every slot may have a target and tokens attend only within their
            example.
          key: the random key for dropout; None disables it.

        Raises:
          UserError: a row has more slots than the model has learned positions, or a packed one a soft prompt.
        """
        tokens, targets = batch["tokens"], batch["decoder_target_tokens"].shape[1]
        if "segment_ids" in batch:
            x, _ = self.decoder_input(self.embedded(tokens), batch["segment_ids"] > 0)
            refuse_longer(x, tokens.shape[1], instead="with input_lengths in place of segment_ids")
            self._refuse_length(x.shape[1])
            positions, own = within_segments(batch["segment_ids"])
            places = self.places(positions, positions, own)
            return self.decoder(self.with_positions(x, positions), places, key)
        slots = jnp.arange(tokens.shape[1])
        shown = slots >= tokens.shape[1] - targets - batch["input_lengths"][:, None]
        return self.hidden(tokens, shown, key)[:, -targets - 1 : -1]

    def hidden_of_labels(
        self,
        inputs: Int[Array, "batch in_length"],
        labels: Int[Array, "batch length"],
        segment_ids: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """Final hidden states for several candidate answers to each prompt, packed into one row.

        Answers attend to the prompt and to themselves, not to each other. The first token of each answer in `labels` is
        a placeholder, replaced by the last token of the row's prompt.
        """
        tokens, shown, first = self._split_last_token(inputs)
        offsets, own = within_segments(segment_ids)
        labels = jnp.where(offsets == 0, first[:, None], labels)
        x, shown = self.decoder_input(self.embedded(tokens), shown)
        before = x.shape[1]
        self._refuse_length(before + labels.shape[1])
        x = jnp.concatenate([x, self.embedded(labels)], axis=1)
        sees_prompt = jnp.broadcast_to(shown[:, None], (*labels.shape, before))
        label_mask = jnp.concatenate([sees_prompt, jnp.broadcast_to(own, (*labels.shape, labels.shape[1]))], axis=2)
        prompt_mask = jnp.pad(shown[:, None] & causal_mask(before), ((0, 0), (0, 0), (0, labels.shape[1])))
        start = jnp.sum(shown, axis=1, keepdims=True)
        positions = jnp.concatenate([positions_of(shown), start + offsets], axis=1)
        places = self.places(positions, positions, jnp.concatenate([prompt_mask, label_mask], axis=1))
        return self.decoder(self.with_positions(x, positions), places)[:, before:]

    def attended(self, tokens: Int[Array, " length"]) -> dict[str, tuple[Array, Array]]:
        """Keys and values of each attention while the model reads `tokens`, each `[layers, length, width]`.

        Returns:
          Pairs by the attention's path, with `*` in place of the layer's index.
        """
        positions = jnp.arange(len(tokens))[None]
        places = self.places(positions, positions, causal_mask(len(tokens)))
        x = self.with_positions(self.embedded(tokens[None]), positions)
        return {
            "decoder/layers/*/self_attention": concatenate_heads(
                [kept.whole() for kept in self.decoder.read(x, places)]
            )
        }

    # --- generation ---

    def _split_last_token(self, inputs: Int[Array, "batch length"]) -> tuple[Array, Array, Array]:
        """Right-align prompts and split off their last tokens.

        Returns:
          The other tokens, which of their slots are not padding, and the last tokens.
        """
        tokens, shown = right_aligned(inputs, self.config.padding_id)
        first, tokens, shown = tokens[:, -1], tokens[:, :-1], shown[:, :-1]
        if tokens.shape[1] == 0:  # add a hidden slot, so that no other code has to handle empty arrays
            tokens, shown = (jnp.pad(x, ((0, 0), (1, 0))) for x in (tokens, shown))
        return tokens, shown, first

    def begin(self, inputs: Int[Array, "batch length"], max_length: int, num_beams: int = 1) -> DecoderDecoding:
        """Read the prompts and allocate caches for answers of `max_length` tokens; beams of a row are neighbours."""
        tokens, shown, first = self._split_last_token(inputs)
        x, shown = self.decoder_input(self.embedded(tokens), shown)
        self._refuse_length(x.shape[1] + max_length)
        positions = positions_of(shown)
        places = self.places(positions, positions, shown[:, None], causal_mask(x.shape[1]))
        prompts = self.decoder.read(self.with_positions(x, positions), places)
        shown, positions, first = (jnp.repeat(x, num_beams, axis=0) for x in (shown, positions, first))
        caches = [SegmentCache.empty(prompt, max_length, num_beams) for prompt in prompts]
        return DecoderDecoding(self, prompts, shown, positions, first.astype(jnp.int32), caches, max_length)


def mask_bias(allowed: Bool[Array, "_ _ keys"]) -> Float[Array, "_ 1 _ keys"]:
    """Convert a mask to an additive bias of the scores: 0 where it is True, `MASKED` elsewhere."""
    return jnp.where(allowed, 0.0, MASKED)[:, None]


def causal_mask(length: int) -> Bool[Array, "1 {length} {length}"]:
    """The causal mask: True where a key is the query's own slot or before it."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def within_segments(
    segment_ids: Int[Array, "batch slots"],
) -> tuple[Int[Array, "batch slots"], Bool[Array, "batch slots slots"]]:
    """Positions and causal masks of packed texts.

    Returns:
      Each slot's position within its own text, and which slots of that text it may attend to.
    """
    slots = jnp.arange(segment_ids.shape[1])
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    offsets = slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
    return offsets, (segment_ids[:, :, None] == segment_ids[:, None, :]) & (slots[:, None] >= slots[None])


def positions_of(shown: Bool[Array, "batch slots"]) -> Int[Array, "batch slots"]:
    """The position of each slot, the number of visible slots before it; of hidden slots any valid position."""
    return jnp.maximum(jnp.cumsum(shown, axis=1, dtype=jnp.int32) - 1, 0)


def right_aligned(
    rows: Int[Array, "batch length"], padding_id: int
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """Move the padding of right-padded rows to their left; also returns which slots are not padding."""
    length = rows.shape[1]
    source = jnp.arange(length) - (length - lengths_of(rows, padding_id))
    shown = source >= 0
    return jnp.where(shown, jnp.take_along_axis(rows, jnp.maximum(source, 0), axis=1), padding_id), shown
