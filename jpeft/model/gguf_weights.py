"""Presents a GGUF file's model in Hugging Face's layout: config fields, weight names and the order of rows.

The loaders of Hugging Face checkpoints then read it, too. llama.cpp's `tensor_mapping.py` defines the names of each
architecture.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jpeft.errors import UserError
from jpeft.leaves import Part
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.gguf import GgufFile, Tensor, kind_of, open_gguf
from jpeft.model.weight_files import Checkpoint
from jpeft.words import one_line

FREQUENCY_FACTORS = "rope_freqs.weight"  # a tensor of Llama 3.1's files that is no weight


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How one of llama.cpp's architectures maps to Hugging Face's layout.

    Attributes:
      config: makes the fields of a `config.json` from a file.
      stacks: Hugging Face's names of the stacks by llama.cpp's prefix of their blocks.
      in_block: Hugging Face's names of modules within a block by llama.cpp's.
      alone: the same of modules outside of blocks.
      permuted: whether rows of q and k are ordered for rotary pairs `(2i, 2i + 1)` rather than `(i, i + half)`.
    """

    config: Callable[[GgufFile], dict[str, Any]]
    stacks: Mapping[str, str]
    in_block: Mapping[str, str]
    alone: Mapping[str, str]
    permuted: bool = False


def _llama_config(file: GgufFile) -> dict[str, Any]:
    """The config of a Llama, Mistral, SmolLM2, Qwen2 or Qwen3."""
    arch = file.metadata["general.architecture"]
    key = lambda name: f"{arch}.{name}"
    if file.number(key("expert_count"), default=0):
        raise UserError(f"{file.path} is a mixture of experts, which jpeft has no network for.")
    heads, width = file.number(key("attention.head_count")), file.number(key("embedding_length"))
    if isinstance(heads, list) or heads < 1 or width < 1:
        raise UserError(
            f"{file.path}: {key('attention.head_count')} is {heads} and {key('embedding_length')} {width}; expected "
            "integers of at least 1."
        )
    head = file.number(key("attention.key_length"), default=width // heads)
    rotated = file.number(key("rope.dimension_count"), default=head)
    if file.number(key("attention.value_length"), default=head) != head or rotated != head:
        raise UserError(
            f"{file.path}: {rotated} of {head} features of a head are rotated, or values have another width; a {arch} "
            "in Hugging Face's layout rotates all features and has values of the same width."
        )
    window = file.number(key("attention.sliding_window"), default=0)
    model_type = "mistral" if arch == "llama" and window else arch
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config = {
        "model_type": model_type,
        "architectures": [f"{names[model_type]}ForCausalLM"],
        "vocab_size": _rows(file, "token_embd.weight"),
        "hidden_size": width,
        "intermediate_size": file.number(key("feed_forward_length")),
        "num_hidden_layers": file.number(key("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": file.number(key("attention.head_count_kv"), default=heads),
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": file.number(key("context_length")),
        "rms_norm_eps": _tidy(file.number(key("attention.layer_norm_rms_epsilon"), whole=False)),
        "rope_theta": _tidy(file.number(key("rope.freq_base"), default=10_000.0, whole=False)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        **_token_ids(file),
    }
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_down.bias" in file.tensors
    if window:
        config["sliding_window"] = window
    if scaling := _rotary_scaling(file, key, config):
        config["rope_scaling"] = scaling
    return config


def _rotary_scaling(file: GgufFile, key: Callable[[str], str], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of the config; None if positions are not scaled.

    As in llama.cpp, a factor without a type is linear scaling, and older files call that factor `rope.scale_linear`.
    """
    factor = file.number(key("rope.scale_linear"), default=1.0, whole=False)
    factor = file.number(key("rope.scaling.factor"), default=factor, whole=False)
    kind = file.text(key("rope.scaling.type"))
    if kind is None:
        kind = "linear" if factor not in (0, 1) else "none"
    if FREQUENCY_FACTORS in file.tensors:
        if kind != "none":
            raise UserError(
                f"{file.path} has both {FREQUENCY_FACTORS} and {key('rope.scaling')}.*; expected one of them."
            )
        return _llama3_scaling(file, config)
    if kind == "none":
        return None
    for name in ("attn_factor", "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor"):
        if (stored := key(f"rope.scaling.{name}")) in file.metadata:
            raise UserError(f"{file.path} has {stored}, which jpeft does not read; expected a file without it.")
    names = {
        "original_max_position_embeddings": "original_context_length",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    held = {ours: file.metadata.get(key(f"rope.scaling.{theirs}")) for ours, theirs in names.items()}
    return {"rope_type": kind, "factor": factor} | {name: value for name, value in held.items() if value is not None}


def _llama3_scaling(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's `rope_scaling`, of which llama.cpp stores only by how much each frequency is divided.

    Only the factor differs among the released models, 8 or 32, and it is the largest of the divisors.
    """
    divisors = file.read(FREQUENCY_FACTORS).ravel()
    factor = _tidy(float(divisors.max()))
    released = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = {"rope_type": "llama3", "factor": factor, **released}
    made = DecoderConfig.from_dict({**config, "rope_scaling": scaling}, str(file.path))
    plain = dataclasses.replace(made, rotary_scaling=None)
    expected = plain.rotary_frequencies() / made.rotary_frequencies()
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise UserError(
            f"{file.path}: {FREQUENCY_FACTORS} divides rotary frequencies in another way than Llama 3.1 to 3.3 do, "
            "which jpeft does not read."
        )
    return scaling


def _t5_config(file: GgufFile) -> dict[str, Any]:
    key = "t5.{}".format
    layers = file.number(key("block_count"))
    gated = "enc.blk.0.ffn_gate.weight" in file.tensors
    if "enc.blk.1.attn_rel_b.weight" in file.tensors:
        raise UserError(f"{file.path} is a umt5, with a relative bias in every layer, which jpeft's T5 does not have.")
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": _rows(file, "token_embd.weight"),
        "d_model": file.number(key("embedding_length")),
        "d_kv": file.number(key("attention.key_length")),
        "d_ff": file.number(key("feed_forward_length")),
        "num_layers": layers,
        "num_decoder_layers": file.number(key("decoder_block_count"), default=layers),
        "num_heads": file.number(key("attention.head_count")),
        "relative_attention_num_buckets": file.number(key("attention.relative_buckets_count")),
        "layer_norm_epsilon": _tidy(file.number(key("attention.layer_norm_epsilon"), whole=False)),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "decoder_start_token_id": file.number(key("decoder_start_token_id"), default=0),
        **_token_ids(file),
    }


def _rows(file: GgufFile, name: str) -> int:
    if name not in file.tensors:
        raise UserError(f"{file.path} lacks {name}; it is not a complete model.")
    return file.tensors[name].shape[0]


def _token_ids(file: GgufFile) -> dict[str, int]:
    """Ids of the BOS, EOS and padding tokens, as far as the file has them."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    keys = {ours: f"tokenizer.ggml.{theirs}_token_id" for ours, theirs in names.items()}
    return {ours: file.number(key) for ours, key in keys.items() if key in file.metadata}


def _tidy(value: float) -> float:
    """A float32 in its shortest decimal form: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


_LLAMA = _Layout(
    config=_llama_config,
    stacks={"blk": "model.layers"},
    in_block={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    alone={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    permuted=True,
)
_QWEN = dataclasses.replace(_LLAMA, permuted=False)
_T5 = _Layout(
    config=_t5_config,
    stacks={"enc.blk": "encoder.block", "dec.blk": "decoder.block"},
    in_block={
        "attn_norm": "layer.0.layer_norm",
        **{f"attn_{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
        "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
        "cross_attn_norm": "layer.1.layer_norm",
        **{f"cross_attn_{part}": f"layer.1.EncDecAttention.{part}" for part in "qkvo"},
        "cross_attn_rel_b": "layer.1.EncDecAttention.relative_attention_bias",
        "ffn_norm": "layer.{last}.layer_norm",
        "ffn_gate": "layer.{last}.DenseReluDense.wi_0",
        "ffn_up": "layer.{last}.DenseReluDense.{up}",
        "ffn_down": "layer.{last}.DenseReluDense.wo",
    },
    alone={
        "token_embd": "shared",
        "output": "lm_head",
        "enc.output_norm": "encoder.final_layer_norm",
        "dec.output_norm": "decoder.final_layer_norm",
    },
)
ARCHITECTURES: Mapping[str, _Layout] = {"llama": _LLAMA, "qwen2": _QWEN, "qwen3": _QWEN, "t5": _T5}


def _layout(file: GgufFile) -> _Layout:
    arch = file.text("general.architecture")
    if arch is None or arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{file.path} has the architecture {one_line(str(arch))}; expected one of {known}.")
    return ARCHITECTURES[arch]


def gguf_config(path: Path) -> dict[str, Any]:
    """The fields of a `config.json` for the model of a GGUF file.

    Raises:
      UserError: the architecture is not supported, or an entry is missing.
      RunFailed: the file is damaged.
    """
    file = open_gguf(path)
    return _layout(file).config(file)


class GgufWeights(Checkpoint):
    """The weights of a GGUF file under Hugging Face's names, dequantized to float32 one at a time.

    llama.cpp pairs neighbouring features of q and k for rotary embeddings and orders the rows of both maps accordingly.
    Hugging Face pairs the first half of a head with the second, and that is the order returned here.
    """

    def __init__(self, path: Path):
        """Open a file. Raises as `gguf_config`, or `UserError` if a tensor's name is unknown to the architecture."""
        self._file = open_gguf(path)
        layout = _layout(self._file)
        self._config = layout.config(self._file)
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in self._file.tensors.items():
            if name != FREQUENCY_FACTORS:  # part of the config
                self._tensors[self._named(name, layout)] = tensor
        self._heads: dict[str, int] = {}
        if layout.permuted:
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
            for name, tensor in self._tensors.items():
                module = name.split(".")[-2]
                if module in heads:
                    self._heads[name] = self._config[heads[module]]
                    if self._heads[name] < 1 or tensor.shape[0] % (2 * self._heads[name]):
                        raise UserError(
                            f"{path}: {tensor.name} has {tensor.shape[0]} rows; expected a multiple of 2 for each of "
                            f"{self._heads[name]} heads."
                        )

    def _named(self, name: str, layout: _Layout) -> str:
        stem, _, leaf = name.rpartition(".")
        found = re.fullmatch(r"((?:enc\.|dec\.)?blk)\.(\d{1,4})\.(\w+)", stem)
        if found and found[1] in layout.stacks and found[3] in layout.in_block:
            last = 2 if found[1] == "dec.blk" else 1
            up = "wi_1" if self._config.get("feed_forward_proj", "").startswith("gated") else "wi"
            within = layout.in_block[found[3]].format(last=last, up=up)
            hub = f"{layout.stacks[found[1]]}.{int(found[2])}.{within}"
        elif stem in layout.alone:
            hub = layout.alone[stem]
        else:
            raise UserError(f"{self._file.path} holds {one_line(name)}, which is no weight of its architecture.")
        return f"{hub}.{leaf}"

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, part: Part) -> np.ndarray:
        tensor = self._tensors[name]
        if len(tensor.shape) == 1:
            whole = self._file.read(tensor.name)
            if name in self._heads:
                whole = whole[_unpermuted(tensor.shape[0], self._heads[name])]
            return whole[part]
        rows: np.ndarray | slice = part[0]
        if name in self._heads:
            rows = _unpermuted(tensor.shape[0], self._heads[name])[part[0]]
        return self._file.read(tensor.name, rows)[(slice(None), *part[1:])]

    @property
    def stored_dtype(self) -> Literal["float32", "bfloat16"]:
        """The dtype in which to save the matrices without loss: bfloat16 if the largest one has it, else float32."""
        largest = max(self._tensors.values(), key=lambda tensor: math.prod(tensor.shape))
        return "bfloat16" if kind_of(largest.kind).name == "BF16" else "float32"


def _unpermuted(rows: int, heads: int) -> np.ndarray:
    """For each row of q or k in Hugging Face's order, its index in llama.cpp's order."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
