"""A GGUF file's model as Hugging Face files would have it: sizes, names of weights and the order of their rows.

So whatever reads those reads these. What each architecture's names mean stands in llama.cpp's `tensor_mapping.py`.
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
from jpeft.model.gguf import GgufFile, Tensor, kind_of, open_gguf
from jpeft.model.weight_files import Checkpoint
from jpeft.words import one_line


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How an architecture of llama.cpp is written in Hugging Face's layout.

    Attributes:
      config: makes the `config.json`.
      stacks: the paths of our stacks by the beginning of llama.cpp's names of their blocks.
      in_block: names within a block.
      alone: names outside of blocks.
      optional: which of the names, as Hugging Face has them, may be absent.
      permuted: whether rows of q and k stand in pairs that are rotated together, not in halves.
    """

    config: Callable[[GgufFile], dict[str, Any]]
    stacks: Mapping[str, str]
    in_block: Mapping[str, str]
    alone: Mapping[str, str]
    permuted: bool = False


def _llama_config(file: GgufFile) -> dict[str, Any]:
    """Of Llama, Mistral, SmolLM2, Qwen2, Qwen3."""
    arch = file.metadata["general.architecture"]
    key = lambda name: f"{arch}.{name}"
    if file.number(key("expert_count"), default=0):
        raise UserError(f"{file.path} is a mixture of experts, which jpeft has no network for.")
    if "rope_freqs.weight" in file.tensors:
        raise UserError(f"{file.path} has rope_freqs.weight, Llama 3.1's scaled rotary positions, which are not read.")
    heads, width = file.number(key("attention.head_count")), file.number(key("embedding_length"))
    if isinstance(heads, list) or heads < 1 or width < 1:
        raise UserError(f"{file.path}: {key('attention.head_count')} is {heads} and the width {width}; expected 1 up.")
    head = file.number(key("attention.key_length"), default=width // heads)
    rotated = file.number(key("rope.dimension_count"), default=head)
    if file.number(key("attention.value_length"), default=head) != head or rotated != head:
        raise UserError(
            f"{file.path}: heads of {head} numbers of which {rotated} are rotated by their position; a {arch} in "
            "Hugging Face's layout rotates all, and values are as wide."
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
    scaling = file.text(key("rope.scaling.type"))
    if scaling not in (None, "none"):
        factor = file.number(key("rope.scaling.factor"), whole=False)
        config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    return config


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
        raise UserError(f"{file.path} lacks {name}; it is no whole model, or a vocabulary alone.")
    return file.tensors[name].shape[0]


def _token_ids(file: GgufFile) -> dict[str, int]:
    """Ids of the tokens that begin, end and fill up texts, as far as the file has them."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    keys = {ours: f"tokenizer.ggml.{theirs}_token_id" for ours, theirs in names.items()}
    return {ours: file.number(key) for ours, key in keys.items() if key in file.metadata}


def _tidy(value: float) -> float:
    """A float32 as it was written: 1e-05, not 9.999999747378752e-06."""
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
        raise UserError(f"{file.path} is of the architecture {one_line(str(arch))}; of GGUF files {known} are read.")
    return ARCHITECTURES[arch]


def gguf_config(path: Path) -> dict[str, Any]:
    """The `config.json` that a GGUF file's model has in Hugging Face's layout.

    Raises:
      UserError: the architecture is none that is read, or an entry is missing.
      RunFailed: the file is damaged.
    """
    file = open_gguf(path)
    return _layout(file).config(file)


class GgufWeights(Checkpoint):
    """The weights of a GGUF file under Hugging Face's names, in float32, dequantised one at a time.

    llama.cpp rotates numbers of q and k by pairs of neighbours, Hugging Face the first half with the second,
    and orders the rows of both maps for that; here they stand as Hugging Face has them.
    """

    def __init__(self, path: Path):
        """Raises as `gguf_config`; or `UserError`: an array's name is none of the architecture's."""
        self._file = open_gguf(path)
        layout = _layout(self._file)
        self._config = layout.config(self._file)
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in self._file.tensors.items():
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
                            f"{path}: {tensor.name} has {tensor.shape[0]} rows, which are not those of "
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
            raise UserError(f"{self._file.path} holds {one_line(name)}, which jpeft has no place for.")
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
        """In which a directory made of it is to hold its matrices: that of numbers as exact as these."""
        largest = max(self._tensors.values(), key=lambda tensor: math.prod(tensor.shape))
        return "bfloat16" if kind_of(largest.kind).name == "BF16" else "float32"


def _unpermuted(rows: int, heads: int) -> np.ndarray:
    """Which stored row each row of q's or k's map is, as Hugging Face orders them."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
