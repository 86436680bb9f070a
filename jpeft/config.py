"""The typed config of a run, `Run`. `ml_collections` configs of files and flags are converted to it here."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jpeft.adapters.locate import stored_reading
from jpeft.data import task_file
from jpeft.data.mixture import names_of, paths_of
from jpeft.data.prepare import DataRequest, choose_task
from jpeft.data.sources import check_source
from jpeft.data.splits import MAX_EVALUATED, SCALES
from jpeft.data.task_file import DTYPES
from jpeft.data.tasks import CUSTOM, OPTIONS, Task
from jpeft.data.weighting import given_weights, require_classes
from jpeft.errors import UserError
from jpeft.eval.metrics import METRICS, check_metrics, named, own, parse_metrics
from jpeft.model.family import stack_names
from jpeft.model.quantized import CHOICES as QUANTIZATION_CHOICES
from jpeft.model.quantized import Quantization
from jpeft.model.settings import ModelSettings, settings_of
from jpeft.model.stack import REMAT_POLICIES
from jpeft.peft.interchange import PeftLayout
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS, build, method_options, require_ablation
from jpeft.typed_config import (
    ANY,
    AUTO,
    SEEDS,
    check_bounds,
    check_path,
    filled_in,
    left_open,
    one_of,
    or_auto,
    parse,
    placeholders,
    value_at,
    with_value,
)
from jpeft.words import shortened

ANSWERS = ("auto", *task_file.ANSWERS)
LOSS = "validation/loss"  # the default of `train.monitor`


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Attributes:
      name: hub id, local directory in Hugging Face layout, GGUF file, or a packaged model: mini, smollm2.
      dtype: of the frozen weights and of the computation; `auto` is bfloat16 on GPU and TPU, float32 on CPU. CPUs with
        AMX (Intel's Xeons since 2023) take about half the time in bfloat16 if the model is large (docs/run.md).
      dropout_rate: None is the checkpoint's own.
      remat: what the backward pass rematerialises, apart from cheap operations: `none`, `dots` (attention), `block`;
        `auto` is the first of them with which a training step fits the device (docs/accelerators.md).
      quantization: of the frozen linear maps within the blocks: `int8` or `nf4`; `auto` keeps them as the files have
        them, `none` dequantizes quantized files to 16 or 32 bits (docs/quantised-bases.md).
      double_quantization: whether nf4's scales are quantized to 8 bits.
      quantize_wo: whether to quantize T5's wo, too, which is left at 16 or 32 bits otherwise.
      scan_layers: whether the layers of a stack are one compiled loop. Unrolled layers take longer to compile and run
        faster, generation above all, since no layer is sliced out of the stacked weights; None unrolls up to 8 layers.
    """

    name: str = "google/flan-t5-xl"
    dtype: str = "auto"
    dropout_rate: float | None = None
    remat: str = "none"
    quantization: str = "auto"
    double_quantization: bool = False
    quantize_wo: bool = False
    scan_layers: bool | None = None


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """The PEFT method, its reading and its options. An option that is None has the default of the reading.

    Attributes:
      name: full, lora, ia3, bitfit, prompt, adapter, prefix, ln, dora, adalora, vera.
      reading: `paper` (Pu et al.) or `official` (the method's authors). The default is `paper`, except `official` for
        LoRA on rows of your own (Hugging Face PEFT can load it), and the adapter's own with `from_adapter`.
      rank, alpha, rank_stabilized: of lora and dora; vera has a rank, too.
      b_rate_ratio: of lora and dora: ratio of the learning rates of B and A (LoRA+).
      prompt_length, prompt_init: of prompt; init is `vocabulary` or `uniform`.
      bottleneck, placement, activation: of adapter: its width; `houlsby` (after attention and feed-forward) or
        `pfeiffer` (after the feed-forward only); gelu, relu or silu.
      lora_init: of lora: `plain`; `pissa`, from the principal components of each map; `loftq`, from the error of
        quantization.
      prefix_length, prefix_init, prefix_projection: of prefix; init is `vocabulary` or `normal`; projection is the
        hidden width of a network that produces keys and values during training, 0 for none.
      projection_seed: of vera: seed of its random matrices.
      norm_parts: of ln: `both`, `scale` or `bias`.
      initial_rank, orthogonality, allocate_every, initial_fraction, final_fraction: of adalora, with rank (the final
        mean rank) and alpha: initial rank of each map, 0 for 1.5 times the rank; weight of the penalty; steps between
        two allocations; fractions of the steps before the ranks decrease, and after.
      targets: names of the sites to adapt, separated by commas: `q,v`.
      stacks: `encoder`, `decoder` or both, separated by a comma.
      layers: indices of the blocks of each stack, and ranges, separated by commas: `0,2,6-11`.
      pattern: regular expression that matches the whole path of a site: `decoder/layers/.*/cross_attention/.*`.
      from_adapter: an earlier run, or the directory of an adapter, to start from.
    """

    name: str = "lora"
    reading: str = left_open("paper")
    rank: int | None = None
    alpha: float | None = None
    rank_stabilized: bool | None = None
    b_rate_ratio: float | None = None
    lora_init: str | None = None
    prompt_length: int | None = None
    prompt_init: str | None = None
    bottleneck: int | None = None
    placement: str | None = None
    activation: str | None = None
    prefix_length: int | None = None
    prefix_init: str | None = None
    prefix_projection: int | None = None
    norm_parts: str | None = None
    initial_rank: int | None = None
    orthogonality: float | None = None
    allocate_every: int | None = None
    initial_fraction: float | None = None
    final_fraction: float | None = None
    projection_seed: int | None = None
    targets: str | None = None
    stacks: str | None = None
    layers: str | None = None
    pattern: str | None = None
    from_adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """One of the paper's ablations.

    Attributes:
      name: of the ablation; None for no ablation.
      seed: of the layers that the ablation `random` selects.
    """

    name: str | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The config's section `data`: the task to learn, and its rows.

    Attributes:
      task: agnews, cola, e2e, samsum, or custom for rows of your own.
      scale: low, medium, high (the paper's), or all: sets the number of training rows and of epochs.
      source: auto, hub, local, tfds, sample. `auto` is local if `path` is given and the hub otherwise; `sample`
        generates rows in the format of the four tasks, to try jpeft without a network.
      path: a file or directory of rows (docs/data.md); with `mix` several of them, separated by commas.
      mix: how the rows of several files are mixed: `proportional` to their numbers, `equal`, or a rate for each: `3,1`.
      weight: column with the weight of each training row in the loss, 0 or more; None weights all rows equally.
      input, target: columns of the text and of the answer in rows of your own; None is `input` and `target`.
      template: the prompt, with columns in braces, `{column}`; None is the task's own, or the column `input`.
      options: whether the prompt of your own classes lists them: `list`, `none`, or `auto`, which appends the list to a
        template that has words of its own and does not name the classes, if these words and the list take a quarter of
        the input length at most.
      kind: of a custom task, `classification` or `generation`; None infers it from the targets.
      chat_template: how a decoder-only model is prompted: `auto`, as a chat if its files have a chat template; `none`,
        by the plain prompt, which the answer continues; or a file with a Jinja template. T5 has no chat template.
      max_train, max_validation, max_test: maximum number of rows; None is the scale's, or 2,500.
      max_input_length, max_target_length: maximum number of tokens; None is the task's.
      split_seed: seed of the splits, the same for every method.
      sample_seed: seed of the rows that `sample` generates.
    """

    task: str = "agnews"
    scale: str = "low"
    source: str = "auto"
    path: str | None = None
    mix: str | None = None
    weight: str | None = None
    input: str | None = None
    target: str | None = None
    template: str | None = None
    options: str = "auto"
    kind: str | None = None
    chat_template: str = "auto"
    max_train: int | None = None
    max_validation: int = MAX_EVALUATED
    max_test: int = MAX_EVALUATED
    max_input_length: int | None = None
    max_target_length: int | None = None
    split_seed: int = 0
    sample_seed: int = 0


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """The learning rate: it rises linearly from `initial` to `warmup`, then falls linearly to `annealing`."""

    initial: float | None = None
    warmup: float | None = None
    annealing: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The config's section `train`. Keys that are left open take the model's recommended settings (docs/mini.md).

    Attributes:
      seed: of initial values, the order of rows, and dropout.
      max_epochs: None is the scale's.
      batch_size: rows of a micro-batch. `auto` is the default, or fewer rows if the device lacks the memory
        (docs/accelerators.md); an optimizer step keeps its number of rows, in more micro-batches.
      accumulation_steps: micro-batches of an optimizer step.
      patience: number of epochs without a better value of `monitor` before training stops.
      monitor: the number that selects the best epoch, whose adapter is tested and kept: `validation/loss`, or
        `validation/` and a metric (docs/metrics.md), for which the validation rows are answered after every epoch.
      warmup_fraction: fraction of all steps in which the learning rate rises; the paper does not print it.
      weight_decay: of AdamW, on matrices only.
      clip_grad_norm: maximum norm of the gradient, to which a larger one is scaled down; None does not clip.
      label_smoothing: probability that is spread evenly over the vocabulary in each target of the training loss.
      class_weights: weights of the classes in the training loss: `balanced`, the same total weight for each class, or
        `label=weight` pairs separated by commas (quote a label with a comma); None for no weights (docs/training.md).
      checkpoint_every_seconds: interval of checkpoints in addition to the one after every epoch.
    """

    seed: int = 0
    max_epochs: int | None = None
    batch_size: int | str = or_auto(16)
    accumulation_steps: int = left_open(4)
    patience: int = left_open(1)
    monitor: str = LOSS
    learning_rate: LearningRate = LearningRate()
    warmup_fraction: float = left_open(0.1)
    weight_decay: float = left_open(0.0)
    clip_grad_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: str | None = None
    checkpoint_every_seconds: float = 300.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The config's section `eval`: how to validate and test.

    Attributes:
      zero_shot: whether to test the base before training, too.
      answer: how test rows are answered: `generate` generates the answer; `score` takes the most likely of the task's
        labels, and also generates, to report how often the two agree (docs/predict.md). `auto` scores classes of your
        own rows, as `predict` and `serve` do, and generates otherwise, as the paper does.
      metrics: names of metrics, separated by commas (docs/metrics.md), or functions of your own by `module:name`. None
        is the task's own. Your own rows are judged by the first of them; the benchmark's tasks keep their main metric.
      num_beams: of generation; 1 is greedy decoding.
      batch_size: rows of a validation or generation batch; `auto` is the default, or fewer rows if the device lacks the
        memory.
    """

    zero_shot: bool = False
    answer: str = "auto"
    metrics: str | None = None
    num_beams: int = 1
    batch_size: int | str = or_auto(32)


_MOST_LAYERS = 10_000
# Lower and upper bounds of numbers. Those of rows, tokens and sizes are far above any sensible value and only protect
# the host; `jpeft plan` estimates whether a run fits a device.
_BOUNDS: Mapping[str, tuple[int | float, int | float]] = {
    "model.dropout_rate": (0.0, 1.0),
    "method.rank": (1, 4096),
    "method.alpha": (0.0, 1e6),
    "method.b_rate_ratio": (0.0, 1e6),
    "method.projection_seed": (0, 10**9),
    "method.prompt_length": (1, 16_384),
    "method.bottleneck": (1, 16_384),
    "method.prefix_length": (1, 16_384),
    "method.prefix_projection": (0, 65_536),
    "method.initial_rank": (0, 4096),
    "method.orthogonality": (0.0, 1e6),
    "method.allocate_every": (1, 10**9),
    "method.initial_fraction": (0.0, 1.0),
    "method.final_fraction": (0.0, 1.0),
    "ablation.seed": SEEDS,
    "data.max_train": (1, 10**9),
    "data.max_validation": (1, 10**9),
    "data.max_test": (1, 10**9),
    "data.max_input_length": (2, 65_536),
    "data.max_target_length": (2, 4_096),  # the memory of generation grows with its square
    "data.split_seed": SEEDS,
    "data.sample_seed": SEEDS,
    "train.seed": SEEDS,
    "train.learning_rate.initial": (0.0, ANY),
    "train.learning_rate.warmup": (0.0, ANY),
    "train.learning_rate.annealing": (0.0, ANY),
    "train.max_epochs": (1, 1_000_000),
    "train.batch_size": (1, 65_536),
    "train.accumulation_steps": (1, 65_536),
    "train.patience": (1, 1_000_000),
    "train.warmup_fraction": (0.0, 1.0),
    "train.weight_decay": (0.0, ANY),
    "train.clip_grad_norm": (0.0, ANY),
    "train.label_smoothing": (0.0, 1.0),
    "train.checkpoint_every_seconds": (0.0, ANY),
    "eval.num_beams": (1, 256),
    "eval.batch_size": (1, 65_536),
    "mesh.data": (1, 65_536),
    "mesh.fsdp": (1, 65_536),
    "mesh.model": (1, 65_536),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each axis of the mesh (docs/mesh.md). Their product is the number of devices.

    Attributes:
      data: shards of each batch, with all weights on every device.
      fsdp: further shards of each batch, with the weights sharded as well and gathered where they are used.
      model: shards of the attention heads, inner widths and vocabulary.
    """

    data: int = 1
    fsdp: int = 1
    model: int = 1

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.fsdp * self.model


@dataclasses.dataclass(frozen=True)
class Run:
    """The complete config of a run: model, method, task, training and evaluation. Keys left open are filled in."""

    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    ablation: AblationConfig = AblationConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Run":
        """Parses a config, fills in the keys that it leaves open, and checks every key and value.

        Raises:
          UserError: a key is unknown (the message names the closest known one), or a value is invalid.
        """
        config = config.to_dict() if isinstance(config, ConfigDict) else config
        run = parse(cls, config, "config")
        for key in ("model.name", "method.from_adapter", "data.chat_template"):
            check_path(key, value_at(config, key))
        for path in paths_of(run.data.path, run.data.mix):
            check_path("data.path", path)
        if run.eval.answer == "auto" and (run.data.task != CUSTOM or run.data.kind == "generation"):
            run = with_value(run, "eval.answer", "generate")
        settings, taken = _model_settings(config, run)
        for key, value in taken.items():
            run = with_value(run, key, value)
        if (metric := monitored_metric(run.train.monitor)) is not None:
            run = with_value(run, "train.monitor", f"validation/{metric}")
        if value_at(config, "method.reading") is None:
            run = with_value(run, "method.reading", _usual_reading(run))
        scale = one_of("data.scale", run.data.scale, SCALES)
        max_train, max_epochs = SCALES[scale]
        method = one_of("method.name", run.method.name, METHODS)
        rates = run.train.learning_rate
        rates = dataclasses.replace(
            LearningRate(*METHODS[method].learning_rates),
            **{k: v for k, v in dataclasses.asdict(rates).items() if v is not None},
        )
        run = dataclasses.replace(
            run,
            data=dataclasses.replace(run.data, max_train=_given(run.data.max_train, max_train)),
            train=dataclasses.replace(
                run.train, max_epochs=_given(run.train.max_epochs, max_epochs), learning_rate=rates
            ),
        )
        try:
            run._check()
        except UserError as error:
            if settings is not None and any(str(error).startswith(key) for key in taken):
                raise UserError(f"{settings.file}: {error}") from None
            raise
        return run

    def _check(self) -> None:
        values = self.to_dict()
        for key, (least, most) in _BOUNDS.items():
            check_bounds(key, value_at(values, key), least, most)
        if not any(dataclasses.astuple(self.train.learning_rate)):
            raise UserError(
                "train.learning_rate is 0 at all three points, so nothing would be trained; set one of initial, warmup "
                "and annealing above 0."
            )
        one_of("model.dtype", self.model.dtype, DTYPES)
        one_of("model.remat", self.model.remat, (*REMAT_POLICIES, AUTO))
        self._check_quantization()
        task = self.build_task()
        paths = paths_of(self.data.path, self.data.mix)
        names_of(paths)
        for path in paths:
            check_source(task, self.data.source, path)
        kind = None if task.is_custom and self.data.kind is None else task.kind  # None: inferred from the rows later
        if one_of("eval.answer", self.eval.answer, ANSWERS) == "score":
            require_labels(kind != "generation", task.name)
        check_metrics("eval.metrics", task.metrics, kind=kind, answer=self.eval.answer, custom=task.is_custom)
        if (metric := monitored_metric(self.train.monitor)) is not None:
            check_metrics("train.monitor", [metric], kind=kind, answer=self.eval.answer)
        self.build_method()
        self.layer_indices()
        for stack in self.stacks() or ():
            one_of("method.stacks", stack, stack_names())
        require_even_batches(self.mesh, dict(zip(("train.batch_size", "eval.batch_size"), self.rows(), strict=True)))
        if self.model.dropout_rate is not None and not self.model.dropout_rate < 1:
            raise UserError(f"model.dropout_rate is {self.model.dropout_rate}; expected a share below 1.")
        if self.train.clip_grad_norm is not None and not self.train.clip_grad_norm > 0:
            raise UserError(f"train.clip_grad_norm is {self.train.clip_grad_norm}; expected more than 0, or None.")
        if not self.train.label_smoothing < 1:
            raise UserError(f"train.label_smoothing is {self.train.label_smoothing}; expected a share below 1.")
        if self.train.class_weights is not None:
            given_weights(self.train.class_weights, "train.class_weights")
            require_classes(kind)
        if task.is_custom and self.data.path is None:
            raise UserError("data.task is 'custom', rows of your own: name their file with --config.data.path.")
        if self.ablation.name is not None:
            require_ablation(self.method.name, self.ablation.name)
        if self.ablation.name and any(
            (self.method.targets, self.method.layers, self.method.pattern, self.method.stacks)
        ):
            raise UserError("ablation.name and method.{targets,stacks,layers,pattern} both select; give one of them.")

    def mildest(self) -> "Run":
        """Returns the run with its default instead of every `auto`: the model's recommended setting, or jpeft's."""
        left, run = [key for key in FITTED if value_at(self.to_dict(), key) == AUTO], self
        if not left:
            return self
        settings = settings_of(self.model.name)
        values = settings.for_method(self.method.name, self.method.reading) if settings else {}
        for key in left:
            run = with_value(run, key, values.get(key, value_at(_DEFAULTS, key)))
        return run

    def rows(self) -> tuple[int, int]:
        """Returns `train.batch_size` and `eval.batch_size`, with the defaults instead of `auto`."""
        run = self.mildest()
        return int(run.train.batch_size), int(run.eval.batch_size)

    def data_request(self) -> DataRequest:
        """Returns what `jpeft.data.prepare.prepare` needs to know besides the task and the tokenizer."""
        data, (batch_size, eval_batch_size) = self.data, self.rows()
        return DataRequest(
            source=data.source,
            path=data.path,
            sample_seed=data.sample_seed,
            mix=data.mix,
            weight=data.weight,
            class_weights=self.train.class_weights,
            kind=data.kind,
            options=data.options,
            split_seed=data.split_seed,
            max_train=data.max_train,
            max_validation=data.max_validation,
            max_test=data.max_test,
            batch_size=batch_size,
            accumulation_steps=self.train.accumulation_steps,
            eval_batch_size=eval_batch_size,
            max_input_length=data.max_input_length,
            max_target_length=data.max_target_length,
        )

    def quantization(self) -> Quantization | None:
        """Returns the quantization of the frozen base; None leaves it as the model's files have it."""
        model = self.model
        kind, *more = model.quantization.split(",")
        if kind in QUANTIZATION_CHOICES and more:  # the syntax of --quantization of other commands
            keys = {"double": "double_quantization", "wo": "quantize_wo"}
            set_too = "".join(f", model.{keys[word]}=True" for word in more if word in keys)
            raise UserError(
                f"model.quantization is {model.quantization[:40]!r}; set model.quantization={kind}{set_too}."
            )
        one_of("model.quantization", model.quantization, QUANTIZATION_CHOICES)
        return Quantization.of(kind, double=model.double_quantization, wo=model.quantize_wo)

    def _check_quantization(self) -> None:
        quantization = self.quantization()
        is_rounded = quantization is not None and quantization.kind != "none"
        if not is_rounded and self.method.from_adapter is None and self.build_method().init_from_residual is not None:
            raise UserError(
                f"method.lora_init is {self.method.lora_init!r}, which starts from the error of quantizing the base; "
                "set model.quantization to nf4 or int8, for a model that is not quantized yet."
            )
        if quantization is not None and is_rounded and METHODS[self.method.name].trains_base:
            raise UserError(
                f"model.quantization is {quantization.kind!r}, and method {self.method.name} trains the base's own "
                "weights, which cannot be quantized; leave it open, or choose a method that adds to a frozen base."
            )

    def build_task(self) -> Task:
        """Returns the task with the config's template, kind and metrics. Raises `UserError` like `choose_task`."""
        data = self.data
        task = choose_task(data.task, template=data.template, kind=data.kind, input=data.input, target=data.target)
        if one_of("data.options", data.options, OPTIONS) != "auto" and not task.is_custom:
            raise UserError(
                f"data.options is {data.options!r}, which is for rows of your own; set the prompt of {task.name} with "
                "data.template."
            )
        if data.options == "list" and task.kind != "classification" and data.kind is not None:
            raise UserError(
                "data.options is 'list', and data.kind 'generation' has no labels to list; leave one of them out."
            )
        return dataclasses.replace(task, metrics=parse_metrics("eval.metrics", self.eval.metrics))

    def build_method(self) -> Method:
        """Returns the method in its reading, with the config's options. Raises `UserError` like `build`."""
        given = {key: getattr(self.method, key) for key in method_options()}
        return build(self.method.name, self.method.reading, {k: v for k, v in given.items() if v is not None})

    def targets(self) -> tuple[str, ...] | None:
        """Returns the names of the sites to adapt, such as `q` and `v`; None for the method's default."""
        return _listed(self.method.targets)

    def stacks(self) -> tuple[str, ...] | None:
        """Returns the names of the stacks to adapt, such as `encoder`; None for all of them."""
        return _listed(self.method.stacks)

    def layer_indices(self) -> frozenset[int] | None:
        """Returns the indices, from 0, of the blocks to adapt in each stack; None for all of them.

        Raises:
          UserError: `method.layers` is not a list of indices and ranges.
        """
        if self.method.layers is None:
            return None
        chosen: set[int] = set()
        for part in _listed(self.method.layers) or ():
            indices = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
            first, last = (int(i or indices[1]) for i in indices.groups()) if indices else (1, 0)
            if first > last or last > _MOST_LAYERS:
                raise UserError(
                    f"method.layers is {shortened(self.method.layers)}; expected indices and ranges: 0,2,6-11, "
                    f"none above {_MOST_LAYERS:,}."
                )
            chosen.update(range(first, last + 1))
        return frozenset(chosen)

    def to_dict(self) -> dict[str, Any]:
        """Returns the run as the content of `config.json`."""
        return dataclasses.asdict(self)


# Keys that may be `auto`, and are then set to values that fit the device (`jpeft.train.fitting`).
FITTED = ("model.remat", "train.batch_size", "eval.batch_size")
_DEFAULTS = Run().to_dict()


def taken_from_model(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values, by config key, that a run takes from its model's recommended settings."""
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    return _model_settings(config, parse(Run, config, "config"))[1]


def _model_settings(config: Mapping[str, Any], run: Run) -> tuple[ModelSettings | None, dict[str, Any]]:
    settings = settings_of(run.model.name)
    reading = value_at(config, "method.reading") or _usual_reading(run)
    values = settings.for_method(run.method.name, reading) if settings else {}
    return settings, {key: value for key, value in values.items() if value_at(config, key) is None}


def _usual_reading(run: Run) -> str:
    """Returns the default reading of a run."""
    if run.method.from_adapter is not None and _peft_holds_another_reading(run.method.name):
        return stored_reading(run.method.from_adapter)
    return "official" if (run.data.task, run.method.name) == (CUSTOM, "lora") else "paper"


def _peft_holds_another_reading(name: str) -> bool:
    """Whether Hugging Face PEFT can load the method's official reading but not the paper's."""
    method = METHODS.get(name)
    return method is not None and issubclass(method, PeftLayout) and method().peft_lacks is not None


def default_config() -> ConfigDict:
    """Returns a config with every key at its default, for config files to change; see `placeholders` for unset keys."""
    return placeholders(Run)


# Values of keys that older versions lacked, if their behaviour was not that of today's default.
_OLD_BEHAVIOUR: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "eval.answer": lambda config: "generate",
    "data.options": lambda config: "none" if value_at(config, "data.task") == CUSTOM else "auto",
}


def of_any_version(config: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the `config.json` of an older version with the keys that it lacks, set to that version's behaviour.

    Args:
      now: a complete config of this version, for its keys.
    """
    defaults = Run().to_dict()
    for key, old_value in _OLD_BEHAVIOUR.items():
        section, name = key.split(".")
        defaults[section][name] = old_value(config)
    return filled_in(config, now, defaults)


def monitored_metric(monitor: str) -> str | None:
    """Returns the name of the metric that `train.monitor` selects; None if it is the loss.

    Raises:
      UserError: `monitor` is neither the loss nor a known metric.
    """
    split, _, name = monitor.partition("/")
    if monitor == LOSS:
        return None
    if split != "validation" or not name:
        raise UserError(
            f"train.monitor is {monitor[:80]!r}; expected {LOSS}, or validation/ and a metric: {', '.join(METRICS)}, "
            "or a function of your own by module:name."
        )
    try:
        if own.is_own(name):
            own.check_name(name)
            return name
        return named(name).name
    except UserError as error:
        raise UserError(f"train.monitor: {error}") from None


def require_even_batches(mesh: MeshConfig, batches: Mapping[str, int]) -> None:
    """Raises `UserError` if the mesh cannot divide a batch into equal shards.

    Args:
      batches: batch sizes by config key.
    """
    for key, rows in batches.items():
        if rows % (mesh.data * mesh.fsdp):
            raise UserError(
                f"{key}={rows} rows cannot be shared out evenly over mesh.data={mesh.data} x "
                f"mesh.fsdp={mesh.fsdp} parts; choose a multiple."
            )


def require_labels(has_labels: bool, task: str) -> None:
    """Raises `UserError` if labels are to be scored but the task's answers are free text."""
    if not has_labels:
        raise UserError(f"eval.answer is 'score', but {task} has no fixed set of labels; use eval.answer=generate.")


def _given(value: int | None, otherwise: int | None) -> int | None:
    return otherwise if value is None else value


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
