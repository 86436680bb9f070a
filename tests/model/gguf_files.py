"""Small GGUF files in the format of llama.cpp's converter, and the weights and vocabularies in them."""

import json
from pathlib import Path

import numpy as np
import tokenizers
from gguf import GGMLQuantizationType, GGUFWriter, quants

# The chat template of SmolLM2's files.
CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["the coach saw a goal in the season", "Which topic is this news article about?", "World Sports Business 2024"]

HEADS, KV_HEADS, HEAD, WIDTH, INNER, LAYERS = 4, 2, 8, 32, 64, 2


def byte_level() -> tokenizers.Tokenizer:
    """A byte-level vocabulary of 320 pieces, special tokens first."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, bytes_])
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return made


def write_chat_tokenizer(directory: Path) -> None:
    """Write the tokenizer files of a chat model."""
    byte_level().save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}, "chat_template": CHAT}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def llama_weights(arch: str = "llama", *, tied: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights with Hugging Face's names and row order."""
    draw = np.random.default_rng(seed)
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (320, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attn.q_proj.weight": (q, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (kv, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (kv, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, q),
            f"{layer}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{layer}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, INNER),
        }
        if arch == "qwen2":
            rows = {"q": q, "k": kv, "v": kv}
            shapes |= {f"{layer}.self_attn.{part}_proj.bias": (rows[part],) for part in "qkv"}
        if arch == "qwen3":
            shapes |= {f"{layer}.self_attn.{part}_norm.weight": (HEAD,) for part in "qk"}
    if not tied:
        shapes["lm_head.weight"] = (320, WIDTH)
    return {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row permutation of `LlamaModel.permute` in llama.cpp's converter."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def write_llama(
    path: Path,
    weights: dict[str, np.ndarray],
    *,
    arch: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    chat: str | None = CHAT,
    pre: str = "smollm",
    vocabulary: bool = True,
    entries: dict[str, str | float | int] | None = None,
    rotary_base: float = 100_000.0,
    divisors: np.ndarray | None = None,
) -> None:
    """Write the file of a Llama, Qwen2 or Qwen3 with matrices of type `kind`; `divisors` scale rotary frequencies."""
    writer = GGUFWriter(str(path), arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(rotary_base)
    writer.add_rope_dimension_count(HEAD)
    for key, value in (entries or {}).items():
        {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}[type(value)](key, value)
    if vocabulary:
        backend = byte_level()
        pieces = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
        merges = [" ".join(pair) for pair in _merges(backend)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(pieces)
        writer.add_token_types([3 if piece in SPECIAL else 1 for piece in pieces])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
        if chat is not None:
            writer.add_chat_template(chat)
    if divisors is not None:
        _add(writer, "rope_freqs.weight", divisors, GGMLQuantizationType.F32)
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if module.startswith("model.layers."):
            _, _, layer, inner = module.split(".", 3)
            stored = f"blk.{layer}.{_NAMES[inner]}.{leaf}"
        else:
            outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            stored = f"{outer[module]}.{leaf}"
        if arch == "llama" and module.endswith((".q_proj", ".k_proj")):
            value = _permuted(value, HEADS if module.endswith(".q_proj") else KV_HEADS)
        _add(writer, stored, value, kind if value.ndim > 1 else GGMLQuantizationType.F32)
    _close(writer)


def _merges(backend: tokenizers.Tokenizer) -> list[list[str]]:
    return json.loads(backend.to_str())["model"]["merges"]


def _add(writer: GGUFWriter, name: str, value: np.ndarray, kind: GGMLQuantizationType) -> None:
    writer.add_tensor(name, quants.quantize(value, kind), raw_dtype=kind)


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_t5(path: Path, weights: dict[str, np.ndarray], config: dict, *, pieces: list[tuple[str, float]]) -> None:
    """Write the file of a T5 from weights with Hugging Face's names, with a unigram vocabulary."""
    writer = GGUFWriter(str(path), "t5")
    writer.add_context_length(512)
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    writer.add_uint32("t5.decoder_block_count", config["num_decoder_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_decoder_start_token_id(config["decoder_start_token_id"])
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    writer.add_token_types([3, 3, 2, *[5 if piece.startswith("[PAD") else 1 for piece, _ in pieces[3:]]])
    writer.add_add_space_prefix(True)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    for name, value in weights.items():
        _add(writer, _t5_name(name), value, GGMLQuantizationType.F32)
    _close(writer)


def _t5_name(name: str) -> str:
    outer = {"shared.weight": "token_embd", "lm_head.weight": "output"}
    outer |= {f"{stack}coder.final_layer_norm.weight": f"{stack}.output_norm" for stack in ("en", "de")}
    outer = {key: value.replace("en.", "enc.").replace("de.", "dec.") for key, value in outer.items()}
    if name in outer:
        return f"{outer[name]}.weight"
    stack, _, block, _, sub, *rest = name.removesuffix(".weight").split(".")
    begin = f"{stack[:3]}.blk.{block}"
    last = "1" if stack == "encoder" else "2"
    if rest == ["layer_norm"]:
        of = "ffn" if sub == last else "attn" if sub == "0" else "cross_attn"
        return f"{begin}.{of}_norm.weight"
    module, leaf = rest
    if module == "DenseReluDense":
        return f"{begin}.{ {'wi_0': 'ffn_gate', 'wi_1': 'ffn_up', 'wi': 'ffn_up', 'wo': 'ffn_down'}[leaf] }.weight"
    of = "attn" if module == "SelfAttention" else "cross_attn"
    return f"{begin}.{of}_{'rel_b' if leaf == 'relative_attention_bias' else leaf}.weight"
