"""A law over every config key: changing it changes what it is for, and nothing else.

A scripted run (`scripted.py`) is split into the parts that it consists of and the things that it does; `CHANGES` lists
for every key which of them another value changes. A key with no effect or with an unlisted one fails, and so does a key
that is missing from the list.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.adapters.files import save_adapter
from jpeft.config import Run
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.model.decoder_config import CHOICES, DecoderConfig
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import family_with
from jpeft.peft.attaching import attach
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from jpeft.train.session import Session
from tests.conftest import TINY, news, random_t5, write_parquet
from tests.decoders import TINY_DECODERS, random_decoder
from tests.model.gguf_files import write_chat_tokenizer
from tests.train.scripted import digest, run_scripted, traced


class Change(typing.NamedTuple):
    """Another value of a key.

    Attributes:
      value: differs from the default run's.
      parts: the parts of a run that it changes; see `parts_of`.
      given: keys without which the key has no meaning; they are set on both sides.
      also: keys that change together with it.
    """

    value: typing.Any
    parts: set[str]
    given: dict[str, typing.Any] = {}
    also: dict[str, typing.Any] = {}


TEXTS = {"texts", "tokens", "trained", "validated"}
SPLITS = {"rows", *TEXTS}
PROGRAMS = {"train", "loss", "generate"}
SCHEDULE = {"rates", "saved"}  # of a run of more or fewer steps
TREES = {"start", "update", *PROGRAMS}  # of an adapter with other leaves
PROMPT = {"method.name": "prompt"}
ADAPTER = {"method.name": "adapter"}
PREFIX = {"method.name": "prefix"}
ADALORA = {"method.name": "adalora"}
COLA = {"data.task": "cola"}
UNCAPPED = {"data.max_train": None, "train.max_epochs": None}
CUSTOM = {"data.task": "custom", "data.path": "<custom>", "data.input": "text"}

CHANGES: dict[str, Change] = {
    "model.name": Change("<other>", {"base"}),
    "model.dtype": Change("bfloat16", {"base", *PROGRAMS}),
    "model.dropout_rate": Change(0.3, {"train"}),
    "model.remat": Change("block", PROGRAMS),
    "model.quantization": Change("int8", {"base", *PROGRAMS}),
    "model.double_quantization": Change(True, {"base", *PROGRAMS}, {"model.quantization": "nf4"}),
    "model.quantize_wo": Change(True, {"base", *PROGRAMS}, {"model.quantization": "int8"}),
    "model.scan_layers": Change(True, {"update", *PROGRAMS}),
    "method.name": Change("prompt", {*TREES, "rates"}),
    "method.reading": Change("official", TREES),
    "method.rank": Change(3, TREES),
    "method.alpha": Change(2.0, PROGRAMS),
    "method.rank_stabilized": Change(True, PROGRAMS),
    "method.lora_init": Change("pissa", {"base", "start", *PROGRAMS}, {"method.reading": "official"}),
    "method.b_rate_ratio": Change(16.0, {"update"}),
    "method.prompt_length": Change(7, TREES, PROMPT),
    "method.prompt_init": Change("uniform", {"start"}, PROMPT),
    "method.bottleneck": Change(7, TREES, ADAPTER),
    "method.placement": Change("pfeiffer", TREES, ADAPTER),
    "method.activation": Change("relu", PROGRAMS, ADAPTER),
    "method.prefix_length": Change(7, TREES, PREFIX),
    "method.prefix_init": Change("normal", {"start"}, PREFIX),
    "method.prefix_projection": Change(4, TREES, PREFIX),
    "method.projection_seed": Change(1, PROGRAMS, {"method.name": "vera"}),
    "method.norm_parts": Change("scale", TREES, {"method.name": "ln", "model.name": "<bloom>"}),
    "method.initial_rank": Change(9, TREES, ADALORA),
    "method.orthogonality": Change(0.3, {"update"}, ADALORA),
    "method.allocate_every": Change(3, {"update"}, ADALORA),
    "method.initial_fraction": Change(0.3, {"update"}, ADALORA),
    "method.final_fraction": Change(0.1, {"update"}, ADALORA),
    "method.targets": Change("q", TREES),
    "method.stacks": Change("decoder", TREES),
    "method.layers": Change("1", TREES),
    "method.pattern": Change(".*/cross_attention/v", TREES),
    "method.from_adapter": Change("<adapter>", {"start"}),
    "ablation.name": Change("random", TREES),
    "ablation.seed": Change(1, {"start", *PROGRAMS}, {"ablation.name": "random"}),
    "data.task": Change("cola", SPLITS | {"lengths"}),
    "data.scale": Change(
        "medium", {*SPLITS, *SCHEDULE} - {"validated"}, {"data.max_train": None, "train.max_epochs": None}
    ),
    "data.source": Change("sample", SPLITS, COLA, also={"data.path": None}),
    "data.path": Change("<other data>", TEXTS),
    "data.mix": Change("3,1", {"trained"}, {**CUSTOM, "data.path": "<two>", "data.mix": "1,1"}),
    "data.weight": Change("weight", {"trained"}, CUSTOM),
    "data.input": Change("title", TEXTS, CUSTOM),
    "data.target": Change("mood", SPLITS, CUSTOM),
    "data.options": Change("list", TEXTS, CUSTOM),
    "data.template": Change("Topic? {text}", TEXTS),
    "data.chat_template": Change("none", {"tokens", "trained", "validated"}, {"model.name": "<chat>"}),
    "data.kind": Change("generation", {*SPLITS, "metric", "answered"} - {"trained"}, CUSTOM),
    "data.max_train": Change(16, {"rows", "texts", "tokens", "trained", *SCHEDULE}),
    "data.max_validation": Change(6, {"rows", "texts", "tokens", "validated"}),
    "data.max_test": Change(6, {"rows", "texts", "tokens", "answered"}),
    "data.max_input_length": Change(90, {"tokens", "trained", "validated", "lengths"}),
    "data.max_target_length": Change(5, {"tokens", "trained", "validated", "lengths", "generate"}),
    "data.split_seed": Change(1, SPLITS),
    "data.sample_seed": Change(1, TEXTS, {"data.source": "sample", "data.path": None, **COLA}),
    "train.seed": Change(1, {"start", "trained"}),
    "train.max_epochs": Change(3, {"trained", "validated", "epochs", *SCHEDULE}),
    "train.batch_size": Change(3, {"trained", *SCHEDULE}),
    "train.accumulation_steps": Change(1, {"trained", *SCHEDULE}),
    "train.patience": Change(1, {"trained", "validated", "saved", "epochs"}),
    "train.monitor": Change("validation/accuracy", {"answered", "trained", "validated", "saved", "epochs"}),
    "train.learning_rate.initial": Change(1e-5, {"rates"}),
    "train.learning_rate.warmup": Change(1e-1, {"rates"}),
    "train.learning_rate.annealing": Change(1e-5, {"rates"}),
    "train.warmup_fraction": Change(0.5, {"rates"}),
    "train.weight_decay": Change(0.1, {"update"}),
    "train.clip_grad_norm": Change(1.0, {"update"}),
    "train.label_smoothing": Change(0.1, {"train"}),
    "train.class_weights": Change("balanced", {"trained"}, {**CUSTOM, "data.target": "mood"}),
    "train.checkpoint_every_seconds": Change(0.0, {"saved"}),
    "eval.zero_shot": Change(True, {"answered", "saved"}),
    "eval.answer": Change("score", {"answered", "metric"}),
    "eval.metrics": Change("macro_f1", {"metric"}),
    "eval.num_beams": Change(3, {"generate"}),
    "eval.batch_size": Change(4, {"validated", "answered"}),
    "mesh.data": Change(2, {"mesh", "update", *PROGRAMS}),  # which adds up the sums of the parts
    "mesh.fsdp": Change(2, {"mesh", *PROGRAMS}),
    "mesh.model": Change(2, {"mesh", *PROGRAMS}),
}


def keys_of(cls: type, prefix: str = "") -> set[str]:
    found = set()
    for field in dataclasses.fields(cls):
        nested = dataclasses.is_dataclass(field.type)
        found |= keys_of(typing.cast(type, field.type), f"{prefix}{field.name}.") if nested else {prefix + field.name}
    return found


def test_every_key_is_entered():
    assert set(CHANGES) == keys_of(Run)


@pytest.fixture(scope="module")
def places(tmp_path_factory, deeper_checkpoint, tiny_tokenizer, toy_data):
    """Values for the placeholders in angle brackets."""
    root = tmp_path_factory.mktemp("keys")
    t5_weights.save(random_t5(TINY, seed=8), root / "model")
    (root / "model/tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    for split, rows in (("train", 120), ("test", 24)):
        write_parquet(root / f"data/ag_news/{split}.parquet", news(rows, seed=77))
    custom = {"text": news(90, seed=5)["text"], "title": news(90, seed=6)["text"]}
    classes = {"target": ["yes", "no", "maybe"] * 30, "mood": ["glad"] * 45 + ["sad"] * 45}
    classes |= {"weight": [1, 2, 3] * 30}
    write_parquet(root / "custom.parquet", {**custom, **classes})
    write_parquet(root / "more.parquet", {"text": news(60, seed=9)["text"], "target": ["yes", "no"] * 30})
    tuned = random_t5(TINY, seed=3)
    tuned = attach(tuned, Lora(), select(tuned, Lora()), jax.random.key(5))
    save_adapter(tuned, Lora(), select(tuned, Lora()), root / "adapter", base_name="tiny")
    sizes = {"vocab_size": 320, "d_model": 16, "d_head": 4, "d_ff": 24, "num_heads": 4, "num_kv_heads": 2}
    chatting = DecoderConfig(
        **CHOICES["llama"], **sizes, model_type="llama", num_layers=2, rotary_width=4, pad_token_id=2, eos_token_id=2
    )
    DECODER_FAMILY.save(DECODER_FAMILY.build(chatting, dtype=jnp.float32), root / "chat")
    write_chat_tokenizer(root / "chat")
    DECODER_FAMILY.save(random_decoder(TINY_DECODERS["bloom"]), root / "bloom")
    (root / "bloom/tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    return {
        "<chat>": str(root / "chat"),
        "<bloom>": str(root / "bloom"),
        "<tiny>": str(deeper_checkpoint),
        "<toy>": str(toy_data),
        "<other>": str(root / "model"),
        "<other data>": str(root / "data"),
        "<custom>": str(root / "custom.parquet"),
        "<two>": f"{root / 'custom.parquet'},{root / 'more.parquet'}",
        "<adapter>": str(root / "adapter"),
    }


BASE = {
    "model.name": "<tiny>",
    "method.name": "lora",
    "data.path": "<toy>",
    "data.max_train": 24,
    "data.max_validation": 10,
    "data.max_test": 9,
    "train.max_epochs": 4,
    "train.batch_size": 4,
    "train.accumulation_steps": 2,
    "train.patience": 2,
    "eval.batch_size": 8,
}


def run_of(keys: dict[str, typing.Any], places: dict[str, str]) -> Run:
    config: dict[str, typing.Any] = {}
    for key, value in keys.items():
        *sections, name = key.split(".")
        at = config
        for section in sections:
            at = at.setdefault(section, {})
        at[name] = places.get(value, value) if isinstance(value, str) else value
    return Run.from_config(config)


def parts_of(script) -> dict[str, typing.Any]:
    """The parts of a run by name; two runs agree in a part if its values are equal."""
    assembly, programs = script.assembly, script.programs
    data, task = assembly.data, assembly.data.task
    model = nnx.merge(assembly.graphdef, script.start, assembly.base)
    adapter, base = script.start, assembly.base
    values = lambda kind: {name: digest(np.asarray(x, np.float32)) for name, x in named_leaves(model, kind).items()}
    shapes = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    batch = family_with(model.config).batch_shapes(4, (16, 4))
    key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    trainer, schedule = script.trainer, script.trainer.course.schedule
    sums = jax.eval_shape(programs.zero_sums, adapter)
    trees = (shapes(adapter), shapes(base))
    return {
        "rows": data.row_ids(),
        "texts": [(e.input, e.target, e.references) for part in data.examples.values() for e in part],
        "tokens": [digest(*part.inputs, *part.targets) for part in data.tokens.values()],
        "lengths": (task.max_input_length, task.max_target_length),
        "metric": (task.metric, sorted(script.result["metrics"])),
        "base": (values(nnx.Param), {str(leaf.dtype) for leaf in jax.tree.leaves(base)}),
        "start": values(Adapter),
        "train": traced(programs.accumulate, sums, *trees, key, number, number, batch),
        "update": traced(programs.update, shapes(trainer.state), sums, schedule),
        "loss": traced(programs.loss, *trees, batch),
        "generate": traced(programs.answering.generate, *trees, jax.ShapeDtypeStruct((4, 16), jnp.int32)),
        "rates": [float(schedule(step)) for step in range(trainer.course.total_steps)],
        "trained": script.of("train"),
        "validated": [event[1] for event in script.of("validate")],
        "answered": [
            (kind, adapter and (adapter - 99) // assembly.steps_per_epoch, shape[0])
            for kind, adapter, shape in (event for event in script.events if event[0] in ("answer", "score"))
        ],
        "saved": script.of("save"),
        "epochs": script.result["epochs_run"],
        "mesh": assembly.layout.shape,
    }


@pytest.fixture(scope="module")
def parts(places, tmp_path_factory):
    """`parts_of` a run with these keys over `BASE`; runs with equal keys are executed once."""
    session, made = Session(), {}
    monkeypatch = pytest.MonkeyPatch()

    def of(keys):
        name = repr(sorted(keys.items()))
        if name not in made:
            run = run_of({**BASE, **keys}, places)
            workdir = tmp_path_factory.mktemp("run") / "x"
            script = run_scripted(run, workdir, monkeypatch, session=session, losses=(3.0, 1.0, 2.0))
            made[name] = parts_of(script)
        return made[name]

    return of


# The keys that no other test of the default suite covers; all keys would take a minute.
DEFAULT = (  # what tests/test_breaks.py breaks is noticed by these
    "model.dropout_rate",
    "model.remat",
    "train.warmup_fraction",
    "train.weight_decay",
    "train.clip_grad_norm",
    "train.monitor",
    "train.label_smoothing",
    "data.mix",
    "data.weight",
    "eval.metrics",
    "eval.num_beams",
)


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[] if key in DEFAULT else pytest.mark.slow) for key in CHANGES]
)
def test_a_key_changes_what_it_is_for_and_nothing_else(key, parts):
    change = CHANGES[key]
    before, after = parts(change.given), parts({**change.given, **change.also, key: change.value})
    assert {name for name in before if before[name] != after[name]} == change.parts
