"""A run as typed data. `ml_collections` holds it in files and flags; everything behind this module sees `Run`."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jpeft.adapters.locate import stored_reading
from jpeft.data import task_file
from jpeft.data.mixture import names_of, paths_of
from jpeft.data.prepare import choose_task
from jpeft.data.sources import check_source
from jpeft.data.splits import MAX_EVALUATED, SCALES
from jpeft.data.task_file import DTYPES
from jpeft.data.tasks import OPTIONS, Task
from jpeft.data.weighting import given_weights, require_classes
from jpeft.errors import UserError
from jpeft.eval.metrics import METRICS, check_metrics, listed, named, own
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
LOSS = "validation/loss"  # what is monitored unless a config says otherwise


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Attributes:
      name: hub id, local directory in Hugging Face layout, GGUF file, or a packaged model: mini, smollm2.
      dtype: of the frozen weights and of the computation; `auto` is bfloat16 on GPU and TPU, float32 on CPU.
      dropout_rate: None takes the checkpoint's own.
      remat: what the backward pass computes anew beside what costs little: `none`, `dots` (attention), `block`;
        `auto` is the first of them with which a step fits the device at hand (docs/accelerators.md).
      quantization: of the frozen maps within the blocks: `int8` or `nf4`; `auto` keeps them as the files do, `none`
        makes wide, that is of 16 or 32 bits, what a file has in fewer (docs/quantised-bases.md).
      double_quantization: nf4's magnitudes in 8 bits.
      quantize_wo: T5's wo, too, which otherwise stays wide.
      scan_layers: whether a stack's layers are one compiled loop. Layer after layer takes longer to compile and runs
        faster, generation most, since no layer is cut out of the stacked weights; None is that for up to 8 layers.
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
    """The PEFT method, its reading and options; None leaves an option to the reading.

    Attributes:
      name: full, lora, ia3, bitfit, prompt, adapter, prefix, ln, dora, adalora, vera.
      reading: `paper` (Pu et al.) or `official` (the method's authors). Left open it is the paper's, but the official
        one for LoRA on rows of your own, which PEFT opens, and the adapter's with `from_adapter`.
      rank, alpha, rank_stabilized: of lora and dora; vera has a rank.
      b_rate_ratio: of lora and dora: the learning rate of B over that of A (LoRA+).
      prompt_length, prompt_init: of prompt; init is `vocabulary` or `uniform`.
      bottleneck, placement, activation: of adapter: its width; `houlsby` (after attention and feed-forward) or
        `pfeiffer` (after the feed-forward alone); gelu, relu or silu.
      lora_init: of lora: `plain`; `pissa`, from the principal part of each map; `loftq`, from what rounding takes away.
      prefix_length, prefix_init, prefix_projection: of prefix; init is `vocabulary` or `normal`, the last the hidden
        width of a network that makes keys and values while they train, 0 for none.
      projection_seed: of vera: that its random matrices are made from.
      norm_parts: of ln: `both`, `scale` or `bias`.
      initial_rank, orthogonality, allocate_every, initial_fraction, final_fraction: of adalora, beside rank (the mean
        that remains) and alpha: the rank of each map at first, 0 for half as much again; weight of the penalty; steps
        between two allocations; shares of the steps before ranks fall, and after.
      targets: names of the sites to adapt, with commas: `q,v`.
      stacks: `encoder`, `decoder` or both, with commas.
      layers: indices of blocks in each stack, with commas and ranges: `0,2,6-11`.
      pattern: regular expression that must match a site's whole path, `decoder/layers/.*/cross_attention/.*`.
      from_adapter: an earlier run, or an adapter's directory, to start from.
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
    """One of the paper's ablations, or None; `seed` draws the layers of `random`."""

    name: str | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The config's section `data`: the task to learn, and where its rows are.

    Attributes:
      task: agnews, cola, e2e, samsum, or custom for rows of your own.
      scale: low, medium, high (the paper's), or all: how many rows train and for how many epochs.
      source: auto, hub, local, tfds, sample. `auto` is local where `path` is given, the hub otherwise; `sample` makes
        rows in the shapes of the four tasks, to try the program on without a network.
      path: a file or directory of rows (docs/data.md); with `mix` several, with commas.
      mix: how several files' rows are mixed: `proportional` to their numbers, `equal`, or a rate for each: `3,1`.
      weight: a column of how much each training row counts, a number of 0 or more; None for all the same.
      input, target: columns of the text and of the answer of rows of your own; None is `input` and `target`.
      template: prompt with `{column}` in it; None is the task's own, or `input` alone.
      options: whether the prompt of your own classes lists them: `list`, `none`, or `auto`, which lists them behind a
        template with words of its own that does not name them, where they leave the text three quarters of the input.
      kind: of a custom task, `classification` or `generation`; None tells it from the targets.
      chat_template: how a decoder-only model is asked: `auto`, as the user of a chat if its files hold the template of
        one; `none`, by the prompt alone, which the answer continues; or a file with a Jinja template. A T5 has none.
      max_train, max_validation, max_test: rows at most; None is the scale's, and 2,500.
      max_input_length, max_target_length: tokens at most; None is the task's.
      split_seed: draws the splits; the same for every method.
      sample_seed: which rows `sample` makes.
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
    """The schedule's three points: rises linearly from `initial` to `warmup`, then falls linearly to `annealing`."""

    initial: float | None = None
    warmup: float | None = None
    annealing: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The config's section `train`. A model may bring settings for what is left open here (docs/mini.md).

    Attributes:
      seed: of initial values, of the order of rows and of dropout.
      max_epochs: None is the scale's.
      batch_size: rows of a micro-batch. `auto` is as if left open, or fewer where the device at hand lacks the memory
        (docs/accelerators.md); a step's rows stay the same, of more micro-batches.
      accumulation_steps: micro-batches of an optimizer step.
      patience: epochs without a better value of `monitor` before training stops.
      monitor: the number that says which epoch was the best: its adapter is tested and kept. `validation/loss`, or
        `validation/` and a metric (docs/metrics.md), for which every epoch ends with answers to the validation rows.
      warmup_fraction: share of all steps in which the learning rate rises; the paper does not print it.
      weight_decay: AdamW's, on matrices only.
      clip_grad_norm: largest norm of the gradient, which is scaled down to it where it is larger; None does not clip.
      label_smoothing: share of each target token's probability that is spread evenly over the whole vocabulary, in the
        training loss alone.
      class_weights: how much the training rows of each class count: `balanced`, each class the same in all, or
        `label=weight` with commas (a label with a comma in quotes); None for all the same (docs/training.md).
      checkpoint_every_seconds: besides at every epoch's end.
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
      zero_shot: also score the model alone, before any method is attached.
      answer: how a test row is answered: `generate` writes the answer, `score` takes the likeliest of the task's labels
        and generates too, to say how often the two agree (docs/predict.md). `auto` scores classes of your own rows, as
        `predict` and `serve` then do, and generates otherwise, as the paper does.
      metrics: what answers are judged by, names with commas (docs/metrics.md), a function of your own by
        `module:name`. None is the task's own. Your own rows are judged by the first of them; the benchmark's tasks by
        theirs, with these beside it.
      num_beams: of generation; 1 is greedy.
      batch_size: rows of a validation or generation batch; `auto` is as if left open, or fewer where the device at
        hand lacks the memory.
    """

    zero_shot: bool = False
    answer: str = "auto"
    metrics: str | None = None
    num_beams: int = 1
    batch_size: int | str = or_auto(32)


_MOST_LAYERS = 10_000
# The least and the most that a number can be. Those of rows, tokens and sizes are far above what anyone trains with and
# below what stops the host: whether a run fits a device is `jpeft plan`'s to say.
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
    "data.max_target_length": (2, 4_096),  # generating takes memory by its square
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
    """Over how many devices, along each axis, a run is spread (docs/mesh.md). Their product is the number of devices.

    Attributes:
      data: parts of each batch; every part has all weights.
      fsdp: parts of each batch, with the weights stored in as many parts and gathered where they are used.
      model: parts of the heads, inner widths and vocabulary, computed apart.
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
    """One run: a model, a method, a task, and how to train and judge it. What a file leaves open is filled in."""

    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    ablation: AblationConfig = AblationConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Run":
        """Checks every key and value before anything is loaded.

        Raises:
          UserError: an unknown key (the message names the closest known one), or a value that cannot be meant.
        """
        config = config.to_dict() if isinstance(config, ConfigDict) else config
        run = parse(cls, config, "config")
        for key in ("model.name", "method.from_adapter", "data.chat_template"):
            check_path(key, value_at(config, key))
        for path in paths_of(run.data.path, run.data.mix):
            check_path("data.path", path)
        if run.eval.answer == "auto" and (run.data.task != "custom" or run.data.kind == "generation"):
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
        if one_of("eval.answer", self.eval.answer, ANSWERS) == "score":
            told_from_rows = task.name == "custom" and self.data.kind is None
            require_labels(told_from_rows or task.kind == "classification", task.name)
        known = None if self.data.task == "custom" and self.data.kind is None else task.kind
        check_metrics(
            "eval.metrics", task.metrics, kind=known, answer=self.eval.answer, custom=self.data.task == "custom"
        )
        if (metric := monitored_metric(self.train.monitor)) is not None:
            check_metrics("train.monitor", [metric], kind=known, answer=self.eval.answer)
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
            require_classes(known)
        if self.data.task == "custom" and self.data.path is None:
            raise UserError("data.task is 'custom', rows of your own: name their file with --config.data.path.")
        if self.ablation.name is not None:
            require_ablation(self.method.name, self.ablation.name)
        if self.ablation.name and any(
            (self.method.targets, self.method.layers, self.method.pattern, self.method.stacks)
        ):
            raise UserError("ablation.name and method.{targets,stacks,layers,pattern} both select; give one of them.")

    def mildest(self) -> "Run":
        """The run with the first choice for every key that is `auto`: what a run is without it."""
        left, run = [key for key in FITTED if value_at(self.to_dict(), key) == AUTO], self
        if not left:
            return self
        settings = settings_of(self.model.name)
        values = settings.for_method(self.method.name, self.method.reading) if settings else {}
        for key in left:
            run = with_value(run, key, values.get(key, value_at(_DEFAULTS, key)))
        return run

    def rows(self) -> tuple[int, int]:
        """Rows of a micro-batch, and of a batch that is evaluated; of those that are `auto` the first choice."""
        run = self.mildest()
        return int(run.train.batch_size), int(run.eval.batch_size)

    def data_choices(self) -> dict[str, Any]:
        """The arguments of `jpeft.data.prepare.prepare` besides the task: where rows come from, how they are drawn."""
        data, (rows, evaluated) = self.data, self.rows()
        return {
            "source": data.source,
            "path": data.path,
            "mix": data.mix,
            "weight": data.weight,
            "class_weights": self.train.class_weights,
            "kind": data.kind,
            "options": data.options,
            "split_seed": data.split_seed,
            "max_train": data.max_train,
            "max_validation": data.max_validation,
            "max_test": data.max_test,
            "batch_size": rows,
            "accumulation_steps": self.train.accumulation_steps,
            "eval_batch_size": evaluated,
            "max_input_length": data.max_input_length,
            "max_target_length": data.max_target_length,
            "sample_seed": data.sample_seed,
        }

    def quantization(self) -> Quantization | None:
        """How the frozen base is kept; None as its files have it."""
        model = self.model
        kind, *more = model.quantization.split(",")
        if kind in QUANTIZATION_CHOICES and more:  # the words of other commands' --quantization
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
                f"method.lora_init is {self.method.lora_init!r}, which begins with what rounding takes away of the "
                "base; set model.quantization to nf4 or int8, of a wide model."
            )
        if quantization is not None and is_rounded and METHODS[self.method.name].trains_base:
            raise UserError(
                f"model.quantization is {quantization.kind!r}, and method {self.method.name} trains the base's own "
                "weights, which have to be wide; leave it open, or choose a method that adds to a frozen base."
            )

    def build_task(self) -> Task:
        """The task, with the config's template, kind and metrics."""
        data = self.data
        task = choose_task(data.task, template=data.template, kind=data.kind, input=data.input, target=data.target)
        if one_of("data.options", data.options, OPTIONS) != "auto" and task.name != "custom":
            raise UserError(
                f"data.options is {data.options!r}, of rows of your own; the prompt of {task.name} is data.template."
            )
        if data.options == "list" and task.kind != "classification" and data.kind is not None:
            raise UserError(
                "data.options is 'list', and data.kind 'generation' has no labels to list; leave one of them out."
            )
        return dataclasses.replace(task, metrics=listed("eval.metrics", self.eval.metrics))

    def build_method(self) -> Method:
        """The method in its reading, with the options that the config gives. Raises `UserError` as `build`."""
        given = {key: getattr(self.method, key) for key in method_options()}
        return build(self.method.name, self.method.reading, {k: v for k, v in given.items() if v is not None})

    def targets(self) -> tuple[str, ...] | None:
        """Names of the sites to adapt, such as `q` and `v`; None leaves them to the method."""
        return _listed(self.method.targets)

    def stacks(self) -> tuple[str, ...] | None:
        """Names of the layer stacks to adapt, such as `encoder`; None for all of them."""
        return _listed(self.method.stacks)

    def layer_indices(self) -> frozenset[int] | None:
        """Indices of the blocks to adapt in each stack, counted from 0; None for all of them.

        Raises:
          UserError: `method.layers` is no list of indices and ranges.
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
        """The run as `config.json` of its directory holds it."""
        return dataclasses.asdict(self)


# Keys that may be `auto`: what they are then is settled by what fits the device (`jpeft.train.fitting`).
FITTED = ("model.remat", "train.batch_size", "eval.batch_size")
_DEFAULTS = Run().to_dict()


def taken_from_model(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """What a run takes from its model's own settings, by config key: all that the config leaves open."""
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    return _model_settings(config, parse(Run, config, "config"))[1]


def _model_settings(config: Mapping[str, Any], run: Run) -> tuple[ModelSettings | None, dict[str, Any]]:
    settings = settings_of(run.model.name)
    reading = value_at(config, "method.reading") or _usual_reading(run)
    values = settings.for_method(run.method.name, reading) if settings else {}
    return settings, {key: value for key, value in values.items() if value_at(config, key) is None}


def _usual_reading(run: Run) -> str:
    """The reading of a run whose config leaves it open."""
    if run.method.from_adapter is not None and _peft_holds_another_reading(run.method.name):
        return stored_reading(run.method.from_adapter)
    return "official" if (run.data.task, run.method.name) == ("custom", "lora") else "paper"


def _peft_holds_another_reading(name: str) -> bool:
    """Whether Hugging Face PEFT has the method in its authors' reading and not in the paper's."""
    method = METHODS.get(name)
    return method is not None and issubclass(method, PeftLayout) and method().peft_lacks is not None


def default_config() -> ConfigDict:
    """Every key with its default, for config files to change. An unset key takes a value of its type from a flag."""
    return placeholders(Run)


# What a run did before there was a key for it, by its config, where that is not the key's default.
_BEFORE_THE_KEY: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "eval.answer": lambda config: "generate",
    "data.options": lambda config: "none" if value_at(config, "data.task") == "custom" else "auto",
}


def of_any_version(config: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with the keys that its version did not have yet, as that version would have had them.

    Args:
      now: a whole config of the same kind, of today. Not changed and not copied from but for its keys.
    """
    defaults = Run().to_dict()
    for key, meant in _BEFORE_THE_KEY.items():
        section, name = key.split(".")
        defaults[section][name] = meant(config)
    return filled_in(config, now, defaults)


def monitored_metric(monitor: str) -> str | None:
    """The metric that `train.monitor` is of, as `METRICS` has it or by `module:name`; None where it is the loss.

    Raises:
      UserError: there is no such number.
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
    """Raises `UserError` where a batch, its rows given by config key, cannot be cut into the mesh's equal parts."""
    for key, rows in batches.items():
        if rows % (mesh.data * mesh.fsdp):
            raise UserError(
                f"{key}={rows} rows cannot be shared out evenly over mesh.data={mesh.data} x "
                f"mesh.fsdp={mesh.fsdp} parts; choose a multiple."
            )


def require_labels(there: bool, task: str) -> None:
    """Raises `UserError` where labels are to be scored and the task's answers are free text."""
    if not there:
        raise UserError(f"eval.answer is 'score', but {task} has no fixed set of labels; use eval.answer=generate.")


def _given(value: int | None, otherwise: int | None) -> int | None:
    return otherwise if value is None else value


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
