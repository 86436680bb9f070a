"""One decoder-only network: GPT-Neo, GPT-J, BLOOM, and Llama with its like (SmolLM2, Mistral, Qwen2, Qwen3).

In what they differ is a row of `jpeft.model.decoder_config.CHOICES`. Blocks are stored and run as T5's are
(`jpeft.model.stack`), and dtypes are the same: softmax, norms' statistics, scales, rotations by position and the
product that makes logits are float32, the rest is in the dtype of the activations.

A row of a batch stands in *slots*. A prompt ends where its answer begins, at the same slot in every row, so what is
shorter has hidden slots before it; a token's position is how many shown ones stand before it in its row. Soft prompts
come before all, and are shown or hidden slots like others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from jpeft.errors import UserError
from jpeft.model.attention import Before, Cached, CachedParts, KeysValues, ScoreBias, with_room
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.layers import (
    ACTIVATIONS,
    MASKED,
    EmbeddedInput,
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    dropout,
    split_key,
)
from jpeft.model.placement import placed
from jpeft.model.stack import SegmentCache, Segments, num_stacked, only_layer, side_by_side


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Places:
    """Where the tokens of a batch stand, and what each may see.

    Attributes:
      rotations: cosines and sines of the angles by which queries and keys are rotated (Su et al. 2021, RoPE); None
        where positions are no angles.
      biases: added to scores in parts, each `[batch, heads, queries, keys]` where it is not 1.
      near: the same of layers alone that see a few tokens back; None where no layer is told apart from others.
    """

    rotations: tuple[Float[Array, "batch 1 queries half"], Float[Array, "batch 1 queries half"]] | None
    biases: tuple[Float[Array, "_ _ _ keys"], ...]
    near: Float[Array, "batch 1 queries keys"] | None

    def of_layer(self, windowed: Bool[Array, ""]) -> tuple[Float[Array, "_ _ _ keys"], ...]:
        """The biases of a layer that is one of those with a window, or is not."""
        return self.biases if self.near is None else (*self.biases, jnp.where(windowed, self.near, 0.0))


def norm_of(config: DecoderConfig, width: int) -> RMSNorm | LayerNorm:
    """A new norm over `width` numbers, of the kind that the model has: an RMSNorm or a LayerNorm."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(width, epsilon=config.norm_epsilon)


def linear_of(config: DecoderConfig, name: str, d_in: int, d_out: int, rngs: nnx.Rngs, *, wide: bool = False) -> Linear:
    """A linear map, with a bias where the model has one in the map of that name."""
    return Linear(d_in, d_out, stddev=d_in**-0.5, rngs=rngs, wide=wide, has_bias=name in config.biases)


def rotated(
    x: Float[Array, "batch heads length d_head"],
    rotations: tuple[Float[Array, "batch 1 length half"], Float[Array, "batch 1 length half"]],
    *,
    neighbours: bool,
) -> Float[Array, "batch heads length d_head"]:
    """The first numbers of each head rotated in pairs: of neighbours, or of the i-th and the one half a width on."""
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
    """Cosines and sines of the angles by which heads at these positions are rotated."""
    steps = np.arange(0, config.rotary_width, 2, dtype=np.float32) / np.float32(config.rotary_width)
    angles = positions[..., None].astype(jnp.float32) * (np.float32(1) / np.float32(config.rotary_base) ** steps)
    return jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """How much a score changes with a key's position, by head (Press et al. 2022): a geometric series.

    Where the number of heads is no power of two, those of the power below, and then every second of the power above.
    """
    below = 2 ** int(np.floor(np.log2(num_heads)))
    slopes = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    slopes += [2.0 ** (-4 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    return np.asarray(slopes, np.float32)


class CausalAttention(nnx.Module):
    """Causal attention; a head of keys and values may serve several heads of queries."""

    site_kind: ClassVar[str] = "attention"

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        d_queries, d_keys = config.num_heads * config.d_head, config.num_kv_heads * config.d_head
        self.q = linear_of(config, "q", config.d_model, d_queries, rngs)
        self.k = linear_of(config, "k", config.d_model, d_keys, rngs)
        self.v = linear_of(config, "v", config.d_model, d_keys, rngs)
        self.o = linear_of(config, "o", d_queries, config.d_model, rngs)
        if config.qk_norm:
            self.q_norm, self.k_norm = norm_of(config, config.d_head), norm_of(config, config.d_head)
        self.config = config
        self.site_widths = (config.d_model, d_keys)

    def _heads(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch heads length d_head"]:
        return x.reshape(*x.shape[:2], -1, self.config.d_head).swapaxes(1, 2)

    def _rotated(self, x: Float[Array, "batch heads length d_head"], places: Places) -> Array:
        if places.rotations is not None:
            x = rotated(x, places.rotations, neighbours=self.config.positions == "pairs")
        return placed(x, "heads")

    def keys_values(self, x: Float[Array, "batch length d_model"], places: Places) -> KeysValues:
        """The keys and values of `x`, which queries attend to; when decoding they are computed once and kept."""
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
        """What queries of x make of what was read; of what is `before` it, too (a `Before`), whatever the window."""
        q = self._heads(self.q(x))
        q = self._rotated(self.q_norm(q) if self.config.qk_norm else q, places)
        scale = self.config.d_head**-0.5 if self.config.scales_scores else 1.0
        rate = self.config.dropout_rate
        bias = places.of_layer(windowed)
        if before is not None:
            read, bias = self._with(Before(*before), read, bias)
        mixed = read.mixed_by(q, bias, scale=scale, dropout_rate=rate, key=key)
        return self.o(mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def _with(
        self, before: Before, read: KeysValues | CachedParts, bias: ScoreBias
    ) -> tuple[KeysValues | CachedParts, ScoreBias]:
        """Keys, values and biases with those that stand before the text, as `transformers` takes a cache of as many.

        There the text begins at the position after theirs, and keys of a cache are rotated already. Here the text
        begins at 0 whatever is before it, so such keys are rotated back by as many positions as there are: scores
        depend on differences of positions alone, and these are the same. ALiBi's too: the i-th of p stands at i - p.
        """
        keys, values = self._heads(before.keys), self._heads(before.values)
        rows, _, length, _ = keys.shape
        if self.config.positions in ("halves", "pairs"):
            shown = jnp.ones((rows, length), bool) if before.shown is None else before.shown
            back = jnp.broadcast_to(-jnp.sum(shown, axis=1, keepdims=True), (rows, length))
            keys = rotated(keys, rotations_of(self.config, back), neighbours=self.config.positions == "pairs")
        bias = with_room(bias, length, before.shown, read.length)
        if self.config.positions == "alibi":
            positions = np.pad(np.arange(-length, 0, dtype=np.float32), (0, read.length))
            bias = (*bias, jnp.asarray(alibi_slopes(self.config.num_heads)[None, :, None, None] * positions))
        return read.behind(keys, values), bias


class DecoderFeedForward(nnx.Module):
    """The feed-forward of a block: `down(act(up x))`, or gated: `down(act(gate x) * up x)`."""

    gate: Linear

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        if config.gated:
            self.gate = linear_of(config, "gate", config.d_model, config.d_ff, rngs)
        self.up = linear_of(config, "up", config.d_model, config.d_ff, rngs)
        self.down = linear_of(config, "down", config.d_ff, config.d_model, rngs)
        self.gated = config.gated
        self.activation = config.activation

    def __call__(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch length d_model"]:
        activation = ACTIVATIONS[self.activation]
        if self.gated:
            hidden = activation(self.gate(x)) * self.up(x)
        else:
            hidden = activation(self.up(x))
        return self.down(hidden)


class DecoderBlock(nnx.Module):
    """One layer: attention and feed-forward, one after the other or both of the same normed input."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.self_attention_norm, self.self_attention = (
            norm_of(config, config.d_model),
            CausalAttention(config, rngs=rngs),
        )
        if not config.parallel:
            self.feed_forward_norm = norm_of(config, config.d_model)
        self.feed_forward = DecoderFeedForward(config, rngs=rngs)
        self.parallel = config.parallel
        self.dropout_rate = config.dropout_rate

    def _joined(self, x: Array, h: Array, attended: Array, keys: Sequence[Key[Array, ""] | None]) -> Array:
        """What goes to the next layer, from the input, the same normed, and what attention makes of that."""
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
        """The whole sequence at once, as in training."""
        return self.read(x, places, windowed, key)[0]

    def read(
        self,
        x: Float[Array, "batch length d_model"],
        places: Places,
        windowed: Bool[Array, ""],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length d_model"], KeysValues]:
        """As `__call__`, and the sequence's keys and values."""
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
        """One token of generation, attending to the prompt's keys and values and to what `cache` holds of `layer`."""
        h = self.self_attention_norm(x)
        cache = cache.write(layer, position, self.self_attention.keys_values(h, places))
        read = CachedParts((prompt, cache.of(layer)))
        return self._joined(x, h, self.self_attention(h, read, places, windowed), (None, None)), cache


class DecoderStack(Segments):
    """The blocks, as segments of stacked blocks, and the norm after them."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        keys = jax.random.split(rngs.params(), config.num_layers)
        super().__init__(jax.vmap(lambda key: DecoderBlock(config, rngs=nnx.Rngs(key)))(keys))
        self.final_norm = norm_of(config, config.d_model)
        self.dropout_rate = config.dropout_rate
        self.windowed = tuple(layer in config.windowed for layer in range(config.num_layers))

    def __call__(
        self, x: Float[Array, "batch length d_model"], places: Places, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch length d_model"]:
        """Runs every block over whole sequences."""
        x_key, *segment_keys = split_key(key, 1 + len(self.segments))
        x = dropout(x, self.dropout_rate, x_key)
        return self.final_norm(self.run(x, segment_keys, places, each=(jnp.asarray(self.windowed),)))

    def read(self, x: Float[Array, "batch length d_model"], places: Places) -> list[Cached]:
        """Per segment the keys and values of a sequence, with an axis of layers first where a segment has several."""

        def body(x: Array, layer: tuple[DecoderBlock, Array]) -> tuple[Array, Cached]:
            block, windowed = layer
            x, read = block.read(x, places, windowed)
            return x, read.cached()

        found = []
        for block, windowed in zip(self.segments, self.per_segment(jnp.asarray(self.windowed)), strict=True):
            if num_stacked(block) == 1:
                x, kept = body(x, (only_layer(block), windowed[0]))
            else:
                x, kept = jax.lax.scan(body, x, (block, windowed))
                kept = jax.tree.map(lambda leaf: placed(leaf, "cache"), kept)
            found.append(kept)
        return found

    def step(
        self,
        x: Float[Array, "batch 1 d_model"],
        places: Places,
        prompts: Sequence[Cached],
        caches: Sequence[SegmentCache],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 d_model"], list[SegmentCache]]:
        """Runs every block over one new token; returns its output and the extended caches."""

        def of_block(block, x, kept, cache, layer):
            prompt, windowed = kept
            return block.step(x, places, windowed, prompt, cache, layer, position)

        windowed = self.per_segment(jnp.asarray(self.windowed))
        windowed = [one[0] if len(one) == 1 else one for one in windowed]
        x, caches = self.run_step(x, caches, list(zip(prompts, windowed, strict=True)), of_block)
        return self.final_norm(x), caches


@dataclasses.dataclass(frozen=True)
class DecoderDecoding:
    """The generation of one batch of answers (`jpeft.model.language_model.Decoding`).

    Attributes:
      prompts: of each segment the keys and values of all tokens of the prompts but the last.
      shown: slots of these that are no filling.
      positions: of these slots.
      first: the last token of each prompt.
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
        """Logits of the token after `tokens`, the answer's `position`-th."""
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
    """A decoder-only model. Call it for the logits of whole sequences; `jpeft.model.decode` generates with it."""

    # What PEFT methods call its parts, by the last part of their paths.
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
            self.embedding_norm = norm_of(config, config.d_model)
        self.decoder = DecoderStack(config, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = linear_of(config, "lm_head", config.d_model, config.vocab_size, rngs, wide=True)
        self.config = config
        self.dtype = jnp.dtype(dtype)

    # --- from tokens to what the blocks are given ---

    def embedded(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length d_model"]:
        """The tokens' vectors in the dtype that the model computes in, without positions."""
        return self.shared(tokens).astype(self.dtype)

    def with_positions(
        self, x: Float[Array, "batch length d_model"], positions: Int[Array, "batch length"]
    ) -> Float[Array, "batch length d_model"]:
        """The vectors with what a model adds to them: positions where they are learned, and a norm where it has one."""
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        if self.config.positions == "learned":
            added = self.positions(positions + self._before()[1]).astype(jnp.float32)
            x = (x.astype(jnp.float32) + added).astype(x.dtype)
        return x

    def places(
        self,
        queries: Int[Array, "batch queries"],
        keys: Int[Array, "batch keys"],
        *allowed: Bool[Array, "_ _ keys"],
    ) -> Places:
        """What tells blocks where tokens stand.

        Args:
          queries, keys: positions of the tokens that see, and of those that are seen.
          allowed: whether one may see the other in a layer without a window, `[batch, queries, keys]`: where all of
            these are true. A mask that is the same for all rows or queries has 1 in their place.
        """
        config, rotations = self.config, None
        if config.positions in ("halves", "pairs"):
            rotations = rotations_of(config, queries)
        biases = [hiding(mask) for mask in allowed]
        if config.positions == "alibi":  # softmax takes no notice of what is the same for all keys of a query
            slopes = jnp.asarray(alibi_slopes(config.num_heads))[None, :, None, None]
            biases.append(slopes * keys[:, None, None, :].astype(jnp.float32))
        near = None
        if config.window is not None and config.windowed and keys.shape[1] > config.window:
            near = hiding(queries[:, :, None] - keys[:, None, :] < config.window)
            if len(config.windowed) == config.num_layers:
                biases, near = [*biases, near], None
        return Places(rotations, tuple(biases), near)

    def _before(self) -> tuple[int, Int[Array, "batch 1"] | int]:
        """Room for keys that are put before the text, and how many there are, of each row where rows have their own.

        Learned positions count them, as a cache's in `transformers`. Others know differences alone, where it is enough
        that attention counts them (`CausalAttention._with`).
        """
        attached: list[Any] = [getattr(block.self_attention, "adapter", None) for block in self.decoder.segments]
        room, number = 0, 0
        for adapter in attached:
            if hasattr(adapter, "num_before"):
                here, counted = adapter.num_before()
                # A row's prefix may stand in a part of the layers, another row's in others.
                plain = isinstance(number, int) and isinstance(counted, int)
                room, number = max(room, here), max(number, counted) if plain else jnp.maximum(number, counted)
        return room, number

    def _refuse_length(self, slots: int) -> None:
        slots += self._before()[0]
        if self.config.positions == "learned" and slots > self.config.max_positions:
            raise UserError(
                f"{slots} tokens are more than the {self.config.max_positions} positions that this model knows; lower "
                "data.max_input_length or data.max_target_length."
            )

    def longest_input(self, answer_length: int) -> int | None:
        """How many tokens a prompt may have before answers of `answer_length`; None where positions have no end."""
        if self.config.positions != "learned":
            return None
        token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        soft = jax.eval_shape(lambda x: self.decoder_input(self.embedded(x), x >= 0)[0], token).shape[1] - 1
        # The last token of a prompt is the answer's first input.
        return max(1, self.config.max_positions - answer_length - soft - self._before()[0] + 1)

    # --- whole sequences ---

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        shown: Bool[Array, "batch length"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch slots d_model"]:
        """The last hidden state at every slot, those of a soft prompt first; `key` draws dropout masks."""
        x, shown = self.decoder_input(self.embedded(tokens), shown)
        self._refuse_length(x.shape[1])
        positions = positions_of(shown)
        places = self.places(positions, positions, shown[:, None], before_itself(x.shape[1]))
        return self.decoder(self.with_positions(x, positions), places, key)

    def logits(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch length vocab"]:
        """Scores of the next token, float32, from the last hidden states."""
        scores = self.shared.scores(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return placed(scores, "logits")

    def __call__(
        self, tokens: Int[Array, "batch length"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch length vocab"]:
        """Logits of the token after each; what stands after a token changes nothing at it."""
        return self.logits(self.hidden(tokens, jnp.ones(tokens.shape, bool), key)[:, -tokens.shape[1] :])

    def hidden_of(
        self, batch: dict[str, Array], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch targets d_model"]:
        """The last hidden state at each slot whose next token is a target.

        Args:
          batch: as the family makes it; or packed, with `segment_ids`, as `jpeft.pretrain.next_token` makes it. Then
            each slot may have a target, and its example sees itself alone.
        """
        tokens, targets = batch["tokens"], batch["decoder_target_tokens"].shape[1]
        if "segment_ids" in batch:
            positions, own = within_segments(batch["segment_ids"])
            places = self.places(positions, positions, own)
            return self.decoder(self.with_positions(self.embedded(tokens), positions), places, key)
        slots = jnp.arange(tokens.shape[1])
        shown = slots >= tokens.shape[1] - targets - batch["input_lengths"][:, None]
        return self.hidden(tokens, shown, key)[:, -targets - 1 : -1]

    def hidden_of_labels(
        self,
        inputs: Int[Array, "batch in_length"],
        labels: Int[Array, "batch length"],
        segment_ids: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """The same for several answers to each prompt, one behind the other, which do not see each other.

        Each begins with the last token of its row's prompt, in the place of whatever it begins with in `labels`.
        """
        tokens, shown, first = self._but_last(inputs)
        offsets, own = within_segments(segment_ids)
        labels = jnp.where(offsets == 0, first[:, None], labels)
        x, shown = self.decoder_input(self.embedded(tokens), shown)
        before = x.shape[1]
        self._refuse_length(before + labels.shape[1])
        x = jnp.concatenate([x, self.embedded(labels)], axis=1)
        sees_prompt = jnp.broadcast_to(shown[:, None], (*labels.shape, before))
        of_labels = jnp.concatenate([sees_prompt, jnp.broadcast_to(own, (*labels.shape, labels.shape[1]))], axis=2)
        of_prompt = jnp.pad(shown[:, None] & before_itself(before), ((0, 0), (0, 0), (0, labels.shape[1])))
        start = jnp.sum(shown, axis=1, keepdims=True)
        positions = jnp.concatenate([positions_of(shown), start + offsets], axis=1)
        places = self.places(positions, positions, jnp.concatenate([of_prompt, of_labels], axis=1))
        return self.decoder(self.with_positions(x, positions), places)[:, before:]

    def attended(self, tokens: Int[Array, " length"]) -> dict[str, tuple[Array, Array]]:
        """Keys and values of each attention while the model reads `tokens`, `[layers, length, width]`, by its path.

        A star stands in the path for the layer's index.
        """
        positions = jnp.arange(len(tokens))[None]
        places = self.places(positions, positions, before_itself(len(tokens)))
        x = self.with_positions(self.embedded(tokens[None]), positions)
        return {
            "decoder/layers/*/self_attention": side_by_side([kept.whole() for kept in self.decoder.read(x, places)])
        }

    # --- generation ---

    def _but_last(self, inputs: Int[Array, "batch length"]) -> tuple[Array, Array, Array]:
        """Prompts at the ends of their rows, without their last tokens; which slots are theirs; and the last tokens.

        A prompt ends with the last token that is not padding: within it, what ends a turn of a chat may be the token
        that fills rows up.
        """
        tokens, shown = right_aligned(inputs, self.config.pad_token_id)
        first, tokens, shown = tokens[:, -1], tokens[:, :-1], shown[:, :-1]
        if tokens.shape[1] == 0:  # a slot that nobody sees: arrays without any are a special case everywhere
            tokens, shown = (jnp.pad(x, ((0, 0), (1, 0))) for x in (tokens, shown))
        return tokens, shown, first

    def begin(self, inputs: Int[Array, "batch length"], max_length: int, num_beams: int = 1) -> DecoderDecoding:
        """Reads the prompts, and is ready for answers of `max_length` tokens; beams of a row are neighbours."""
        tokens, shown, first = self._but_last(inputs)
        x, shown = self.decoder_input(self.embedded(tokens), shown)
        self._refuse_length(x.shape[1] + max_length)
        positions = positions_of(shown)
        places = self.places(positions, positions, shown[:, None], before_itself(x.shape[1]))
        prompts = self.decoder.read(self.with_positions(x, positions), places)
        shown, positions, first = (jnp.repeat(x, num_beams, axis=0) for x in (shown, positions, first))
        caches = [SegmentCache.empty(prompt, max_length, num_beams) for prompt in prompts]
        return DecoderDecoding(self, prompts, shown, positions, first.astype(jnp.int32), caches, max_length)


def hiding(allowed: Bool[Array, "_ _ keys"]) -> Float[Array, "_ 1 _ keys"]:
    """A mask as the bias that is added to scores: 0 where one may see the other, `MASKED` where not."""
    return jnp.where(allowed, 0.0, MASKED)[:, None]


def before_itself(length: int) -> Bool[Array, "1 {length} {length}"]:
    """Whether one token may see another: itself, and what is before it."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def within_segments(
    segment_ids: Int[Array, "batch slots"],
) -> tuple[Int[Array, "batch slots"], Bool[Array, "batch slots slots"]]:
    """Of texts one behind the other each slot's position in its own, and which slots of its text it may see."""
    slots = jnp.arange(segment_ids.shape[1])
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    offsets = slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
    return offsets, (segment_ids[:, :, None] == segment_ids[:, None, :]) & (slots[:, None] >= slots[None])


def positions_of(shown: Bool[Array, "batch slots"]) -> Int[Array, "batch slots"]:
    """The position of each slot: how many shown ones stand before it; of hidden ones whatever is no harm."""
    return jnp.maximum(jnp.cumsum(shown, axis=1, dtype=jnp.int32) - 1, 0)


def right_aligned(
    rows: Int[Array, "batch length"], pad_token_id: int
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """Rows that are filled up behind their ends, filled up before them instead, and which slots are theirs."""
    length = rows.shape[1]
    used = jnp.max(jnp.where(rows != pad_token_id, np.arange(1, length + 1), 0), axis=1, keepdims=True)
    source = jnp.arange(length) - (length - used)
    shown = source >= 0
    return jnp.where(shown, jnp.take_along_axis(rows, jnp.maximum(source, 0), axis=1), pad_token_id), shown
