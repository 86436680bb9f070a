"""The config of a pretraining run as typed, checked dataclasses."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jpeft.config import MeshConfig, require_even_batches
from jpeft.data.task_file import DTYPES
from jpeft.errors import UserError
from jpeft.model.chat import AUTO
from jpeft.model.decoder_config import CHOICES, DecoderConfig
from jpeft.model.stack import REMAT_POLICIES
from jpeft.model.t5_config import T5Config
from jpeft.pretrain.corpus import KINDS
from jpeft.typed_config import (
    ABOVE_ZERO,
    SEEDS,
    check_bounds,
    check_path,
    filled_in,
    one_of,
    parse,
    placeholders,
    value_at,
)

OPTIMIZERS = ("adamw", "adafactor")
EMBEDDINGS = ("random", "cooccurrence")
FAMILIES = ("t5", "llama")
_SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers")
# Keys without effect beside `model.start`, which brings sizes and vocabulary.
_KEYS_OF_NEW_MODELS = {"model": (*_SIZES, "dropout_rate", "embeddings"), "tokenizer": ("size", "megabytes")}
# Keys that only a T5 has a use for.
_KEYS_OF_T5 = (("model", "num_decoder_layers"), ("data", "noise_density"), ("data", "mean_span_length"))


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network. Pretraining itself has no dropout.

    Attributes:
      start: a model of any family to continue from, by name, directory or GGUF file; it gives architecture, sizes and
        vocabulary. None makes a new one.
      family: of a new model: `t5` (T5 1.1: gated GELU, untied head) or `llama` (decoder-only, tied head).
      d_model, d_kv, d_ff, num_heads, num_layers: sizes, named as in the `config.json` of a T5; d_kv is the width of a
        head.
      num_decoder_layers: of a T5.
      dtype: of the computation; `auto` is bfloat16 on GPU and TPU, float32 on CPU. Weights are float32.
      remat: what the backward pass recomputes beside cheap operations: `none`, `dots` (attention), `block`.
      dropout_rate: written to the new model's `config.json`, for fine-tuning.
      stored_dtype: of the weights in the model that is written.
      embeddings: initial embeddings of a new model: `random`, or from the `cooccurrence` of tokens in the corpus.
    """

    start: str | None = None
    family: str = "t5"
    d_model: int = 256
    d_kv: int = 64
    d_ff: int = 640
    num_heads: int = 4
    num_layers: int = 4
    num_decoder_layers: int = 3
    dtype: str = "auto"
    remat: str = "none"
    dropout_rate: float = 0.1
    stored_dtype: str = "bfloat16"
    embeddings: str = "cooccurrence"

    @property
    def is_decoder_only(self) -> bool:
        """Whether a new model is decoder-only."""
        return self.family != "t5"

    def new_config(
        self, vocab_size: int, *, pad_token_id: int, eos_token_id: int, max_positions: int
    ) -> T5Config | DecoderConfig:
        """The config of a new model of these sizes, without dropout.

        Args:
          vocab_size: rows of the embedding table.
          pad_token_id, eos_token_id, max_positions: used by decoder-only models.
        """
        if not self.is_decoder_only:
            return self._t5_config(vocab_size)
        return self._decoder_config(vocab_size, pad_token_id, eos_token_id, max_positions)

    def _t5_config(self, vocab_size: int) -> T5Config:
        sizes = {key: getattr(self, key) for key in ("d_model", "d_kv", "d_ff", "num_heads")}
        return T5Config(
            **sizes,
            vocab_size=vocab_size,
            num_layers=self.num_layers,
            num_decoder_layers=self.num_decoder_layers,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )

    def _decoder_config(
        self, vocab_size: int, pad_token_id: int, eos_token_id: int, max_positions: int
    ) -> DecoderConfig:
        return DecoderConfig(
            **{"model_type": self.family, **CHOICES[self.family]},
            vocab_size=vocab_size,
            d_model=self.d_model,
            d_head=self.d_kv,
            d_ff=self.d_ff,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            rotary_width=self.d_kv,
            max_positions=max_positions,
            tie_word_embeddings=True,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary of a new model.

    Attributes:
      path: a directory with a tokenizer, or the name of a model that has one; None trains one on the corpus.
      size: pieces of a trained vocabulary, including special ids, bytes and sentinels; None is 16,384, or fewer if the
        corpus does not give as many.
      megabytes: millions of characters of text to train it on, taken from the sources by their rates.
    """

    path: str | None = None
    size: int | None = None
    megabytes: float = 60.0


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Files of one kind, and their share of the training tokens.

    Attributes:
      files: a glob pattern relative to `data.path`: `books-*.jsonl.xz`. JSON Lines (plain, .gz, .xz, .zst) or Parquet.
      kind: `text` (column `text`) or `pairs` (columns `input` and `target`).
      rate: share of the training tokens, relative to the other sources' rates.
    """

    files: str
    kind: str
    rate: float


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The config's section `data`: the corpus.

    Attributes:
      path: directory of the files.
      sources: each with `files`, `kind` and `rate`, by a name of your choice.
      input_length, target_length: tokens of a packed row in the encoder and in the decoder; a row of a decoder-only
        model has the sum of both.
      noise_density, mean_span_length: of span corruption, the objective of a T5 on texts.
      chat_template: how a decoder-only model is prompted with the input of a pair: `auto`, as its files say; `none`; or
        a file with a Jinja template.
    """

    path: str | None = None
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    input_length: int = 256
    target_length: int = 96
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    chat_template: str = "auto"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The config's section `train`: optimizer, schedule and batches.

    Attributes:
      steps: optimizer steps of the whole run.
      batch_size: packed rows of a micro-batch.
      accumulation_steps: micro-batches of a step.
      optimizer: `adamw` or `adafactor`, both with steps relative to the size of each weight.
      learning_rate: the peak. The rate rises linearly from 0 over `warmup_steps`, then falls linearly to 0 after the
        last step.
      weight_decay: of matrices; adamw only.
      clip_grad_norm: largest norm of the gradient; None does not clip.
      seed: of initial values, of span corruption and of the order of pieces.
    """

    steps: int = 5000
    batch_size: int = 16
    accumulation_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-2
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip_grad_norm: float | None = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """The config's section `log`: validation, checkpoints and samples.

    Attributes:
      validate_every: steps between validations.
      validation_batches: the most batches, of texts and of pairs each.
      checkpoint_every_seconds: time between checkpoints; there is also one at every validation.
      samples: held-out texts and pairs for which generated targets are shown at every validation.
    """

    validate_every: int = 250
    validation_batches: int = 8
    checkpoint_every_seconds: float = 300.0
    samples: int = 4


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """The config of `jpeft pretrain`, one typed section for each part of the run."""

    model: NetworkConfig = NetworkConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: CorpusConfig = CorpusConfig()
    train: OptimizerConfig = OptimizerConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Pretraining":
        """Parses and checks a config, before anything is loaded.

        Raises:
          UserError: a key is unknown or a value is invalid.
        """
        values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
        values["data"] = dict(values.get("data", {}))
        sources = values["data"].pop("sources", {})
        run = parse(cls, values, "config")
        for key, path in (
            ("model.start", run.model.start),
            ("tokenizer.path", run.tokenizer.path),
            ("data.path", run.data.path),
            ("data.chat_template", run.data.chat_template),
        ):
            check_path(key, path)
        sources = {name: _source(name, source) for name, source in sources.items()}
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=sources))
        run._check()
        return run

    def _check(self) -> None:
        values = self.to_dict()
        for key, (least, most) in _BOUNDS.items():
            check_bounds(key, value_at(values, key), least, most)
        one_of("model.dtype", self.model.dtype, DTYPES)
        one_of("model.stored_dtype", self.model.stored_dtype, ("float32", "bfloat16"))
        one_of("model.remat", self.model.remat, REMAT_POLICIES)
        one_of("model.embeddings", self.model.embeddings, EMBEDDINGS)
        one_of("model.family", self.model.family, FAMILIES)
        one_of("train.optimizer", self.train.optimizer, OPTIMIZERS)
        if self.data.path is None:
            raise UserError("data.path is not given; name the directory of the corpus with --config.data.path.")
        if not self.data.sources:
            raise UserError(
                "data.sources is empty; the config has to name at least one (see jpeft/configs/pretrain/mini.py)."
            )
        is_new = self.model.start is None
        has_texts = any(source.kind == "text" for source in self.data.sources.values())
        if is_new and self.model.embeddings == "cooccurrence" and not has_texts:
            raise UserError(
                "data.sources has no source of kind 'text', which model.embeddings=cooccurrence of a new model needs; "
                "give one, or model.embeddings=random."
            )
        if self.model.start is None or self.model.is_decoder_only:
            why = f"model.family is {self.model.family!r}"
            self.refuse_keys_of_other_families(why, decoder_only=self.model.is_decoder_only)
        if self.model.is_decoder_only:
            if self.model.d_kv % 2:
                raise UserError(f"model.d_kv is {self.model.d_kv}; expected an even number: positions turn pairs.")
            if self.model.d_model % self.model.num_heads:
                raise UserError(
                    f"model.d_model is {self.model.d_model} and model.num_heads {self.model.num_heads}; expected a "
                    "multiple, which transformers needs to open such a model."
                )
        if self.model.start is not None and self.tokenizer.path is not None:
            raise UserError("model.start brings its own vocabulary; leave tokenizer.path out.")
        if self.model.start is not None and self.model.is_decoder_only:
            raise UserError("model.start brings its own architecture; leave model.family out.")
        require_even_batches(self.mesh, {"train.batch_size": self.train.batch_size})
        if not self.model.dropout_rate < 1:
            raise UserError(f"model.dropout_rate is {self.model.dropout_rate}; expected at least 0 and less than 1.")
        if not self.data.noise_density < 1:
            raise UserError(f"data.noise_density is {self.data.noise_density}; expected a share below 1.")

    def refuse_keys_of_other_families(self, why: str, *, decoder_only: bool) -> None:
        """Raises `UserError` if a key is set that a model of this kind has no use for.

        Args:
          why: the beginning of the message.
          decoder_only: whether the model is decoder-only, or a T5.
        """
        if not decoder_only:
            if self.data.chat_template != AUTO:
                raise UserError(f"{why}, and data.chat_template is for decoder-only models; leave it out.")
            return
        for section, key in _KEYS_OF_T5:
            if self._is_set(section, key):
                raise UserError(f"{why}, and {section}.{key} is for a T5 only; leave it out.")

    def _is_set(self, section: str, key: str) -> bool:
        """Whether a key differs from its default."""
        return getattr(getattr(self, section), key) != getattr(getattr(Pretraining(), section), key)

    def not_used(self) -> list[str]:
        """The keys that are set but have no effect if `model.start` is given."""
        return [
            f"{section}.{key}"
            for section, keys in _KEYS_OF_NEW_MODELS.items()
            for key in keys
            if self._is_set(section, key)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The run as the `config.json` of its directory holds it."""
        return dataclasses.asdict(self)


# Lower and upper bounds of numbers. The upper ones are far above any sensible value and only protect the host.
_SIZE, _NUMBER = (1, 65_536), (1, 10**9)
_BOUNDS: Mapping[str, tuple[int | float, int | float]] = {
    "model.d_model": _SIZE,
    "model.d_kv": _SIZE,
    "model.d_ff": _SIZE,
    "model.num_heads": _SIZE,
    "model.num_layers": (1, 1000),
    "model.num_decoder_layers": (1, 1000),
    "model.dropout_rate": (0.0, 1.0),
    "tokenizer.size": (1, 1_000_000),
    "tokenizer.megabytes": (ABOVE_ZERO, 1e9),
    "data.input_length": _SIZE,
    "data.target_length": _SIZE,
    "data.noise_density": (ABOVE_ZERO, 1.0),
    "data.mean_span_length": (ABOVE_ZERO, 1e9),
    "train.steps": _NUMBER,
    "train.batch_size": _SIZE,
    "train.accumulation_steps": _SIZE,
    "train.learning_rate": (ABOVE_ZERO, 1e9),
    "train.warmup_steps": (0, 10**9),
    "train.weight_decay": (0.0, 1e9),
    "train.clip_grad_norm": (ABOVE_ZERO, 1e9),
    "train.seed": SEEDS,
    "log.validate_every": _NUMBER,
    "log.validation_batches": _SIZE,
    "log.checkpoint_every_seconds": (0.0, 1e9),
    "log.samples": (0, 65_536),
    "mesh.data": _SIZE,
    "mesh.fsdp": _SIZE,
    "mesh.model": _SIZE,
}
_MOST_RATE = 1e100  # rates are summed and multiplied by bytes, which must not overflow


def _source(name: str, values: Any) -> SourceConfig:
    path = f"data.sources.{name}"
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is {values!r}; expected files, kind and rate.")
    missing = [field.name for field in dataclasses.fields(SourceConfig) if values.get(field.name) is None]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}.")
    source = typing.cast(SourceConfig, parse(SourceConfig, values, path))
    one_of(f"{path}.kind", source.kind, KINDS)
    if Path(source.files).is_absolute() or ".." in Path(source.files).parts:
        raise UserError(f"{path}.files is {source.files!r}; expected a pattern below data.path, such as books-*.jsonl.")
    if not 0 < source.rate <= _MOST_RATE:
        raise UserError(f"{path}.rate is {source.rate}; expected more than 0, {_MOST_RATE:g} at most.")
    return source


def of_any_version(config: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the keys of `now` that the `config.json` of an earlier version lacks, with their defaults."""
    return filled_in(config, now, Pretraining().to_dict())


def default_pretraining(sources: Mapping[str, SourceConfig]) -> ConfigDict:
    """A config with every key at its default and these sources, for config files to change."""
    config = placeholders(Pretraining)
    config.update({"data": {"sources": {name: dataclasses.asdict(source) for name, source in sources.items()}}})
    return config
