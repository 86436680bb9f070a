"""Configs are checked completely before anything is loaded."""

import dataclasses
import json
from importlib import resources
from typing import Any

import pytest

from jpeft.config import Run, default_config, of_any_version
from jpeft.errors import UserError
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.typed_config import differences, unknown_key


def config(**changes):
    """The default config with `section__key` set in the mapping, bypassing the types of `ml_collections`."""
    values = default_config().to_dict()
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    return values


def run(**changes):
    return Run.from_config(config(**changes))


def test_the_default_config_is_a_run():
    assert Run.from_config(default_config()) == Run.from_config({})


def test_a_section_in_a_keys_place_is_said_with_its_keys():
    said = unknown_key(Run, "train.learning_rate")
    assert said == "config.train.learning_rate is a section; give one of its keys: initial, warmup, annealing."


def test_a_key_of_a_section_that_is_none_is_looked_for_in_all():
    """As from the flag `--config.trian.seed=1`."""
    assert unknown_key(Run, "trian.seed").endswith("did you mean config.train.seed?")
    assert unknown_key(Run, "optimizer.weight_decay").endswith("did you mean config.train.weight_decay?")
    told = "; config.train.learning_rate has annealing, initial, warmup."
    assert unknown_key(Run, "train.learning_rate.peak").endswith(told)
    assert unknown_key(Run, "train.learning_rate.warm_up").endswith("did you mean config.train.learning_rate.warmup?")
    assert unknown_key(Run, "lora.rank").endswith("did you mean config.method.rank?")


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("trian", "config.train"),
        ("train__batchsize", "config.train.batch_size"),
        ("train__learning_rate__warm_up", "config.train.learning_rate.warmup"),
        ("method__target", "config.method.targets"),
        ("data__max_val", "config.data.max_validation"),
        ("model__lora_rank", "config.method.rank"),
        ("method__lora_alpha", "config.method.alpha"),
        ("data__max_epochs", "config.train.max_epochs"),
        ("eval__beams", "config.eval.num_beams"),
        ("train__lr", "config.train.learning_rate"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest_known_one(key, closest):
    with pytest.raises(UserError) as raised:
        run(**{key: 1})
    assert str(raised.value) == f"unknown config key config.{key.replace('__', '.')}; did you mean {closest}?"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train__batch_size", "16", "expected int or auto"),
        ("train__batch_size", 16.0, "expected int or auto"),
        ("train__batch_size", True, "expected int or auto"),
        ("train__seed", None, "expected int"),
        ("train__weight_decay", "none", "expected float"),
        ("train__weight_decay", True, "expected float"),
        ("train__learning_rate__warmup", "high", "expected float"),
        ("method__targets", ("q", "v"), "expected str"),
        ("method__rank", "8", "expected int"),
        ("eval__zero_shot", 1, "expected bool"),
        ("model__name", None, "expected str"),
        (
            "train__learning_rate",
            3e-3,
            "it is a section with keys of its own: set these, such as config.train.learning_rate.initial",
        ),
        ("train", None, "it is a section with keys of its own: set these, such as config.train.seed"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(key, value, expected):
    with pytest.raises(UserError) as raised:
        run(**{key: value})
    assert str(raised.value) == f"config.{key.replace('__', '.')} is {value!r}; {expected}" + "."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dtype": "float16"}, "model.dtype is 'float16'; expected one of auto, float32, bfloat16"),
        ({"model__remat": "all"}, "model.remat is 'all'; expected one of none, dots, block"),
        ({"model__dropout_rate": 1.0}, "model.dropout_rate is 1.0; expected a share below 1"),
        ({"model__dropout_rate": -0.1}, "model.dropout_rate is -0.1; expected at least 0"),
        ({"method__name": "lara"}, "method.name is 'lara'; expected one of full, lora, ia3, bitfit, prompt"),
        ({"method__reading": "mine"}, "method.reading is 'mine'; expected 'paper' or 'official'"),
        ({"method__name": "ia3", "method__rank": 4}, "method.rank is no option of ia3"),
        ({"method__rank": 0}, "rank"),
        ({"method__stacks": "encoder,middle"}, "method.stacks is 'middle'; expected one of encoder, decoder"),
        ({"method__layers": "a"}, "method.layers is 'a'; expected indices and ranges: 0,2,6-11"),
        ({"method__layers": "3-"}, "method.layers is '3-'"),
        ({"method__layers": "-3"}, "method.layers is '-3'"),
        ({"method__layers": "5-2"}, "method.layers is '5-2'"),
        ({"method__layers": "1-2-3"}, "method.layers is '1-2-3'"),
        ({"ablation__name": "first"}, "ablation.name is 'first', which lora does not have; there are: early, later"),
        ({"ablation__name": "drop_dense"}, "ablation.name is 'drop_dense', which lora does not have"),
        ({"ablation__name": "early", "method__name": "full"}, "the ones that have any are lora, ia3"),
        ({"data__task": "agnew"}, "data.task is 'agnew'; expected one of agnews, cola, e2e, samsum, custom"),
        ({"data__scale": "tiny"}, "data.scale is 'tiny'; expected one of low, medium, high, all"),
        ({"data__source": "web"}, "data.source is 'web'; expected one of auto, hub, local, tfds, sample"),
        ({"data__source": "sample", "data__path": "rows"}, "data.path 'rows' would not be read"),
        ({"data__source": "sample", "data__task": "custom"}, "data.task 'custom' has no generated rows"),
        ({"data__kind": "regression"}, "data.kind is 'regression'"),
        ({"data__kind": "generation"}, "data.kind 'generation' does not fit agnews"),
        ({"data__template": "Topic?"}, "data.template 'Topic?' names no column"),
        ({"data__template": "{text:>1000000000}"}, "asks for a format; write {text}, a column's name alone"),
        ({"data__options": "some"}, "data.options is 'some'; expected one of auto, list, none"),
        ({"data__options": "none"}, "data.options is 'none', which is for rows of your own; set the prompt of agnews"),
        ({"data__input": "text"}, "data.input names a column of your own rows, of data.task=custom"),
        (
            {"data__task": "custom", "data__path": "x.jsonl", "data__kind": "generation", "data__options": "list"},
            "data.kind 'generation' has no labels to list",
        ),
        ({"data__task": "custom"}, "name their file with --config.data.path"),
        ({"data__max_train": 0}, "data.max_train is 0; expected at least 1"),
        ({"data__max_validation": 0}, "data.max_validation is 0; expected at least 1"),
        ({"data__max_test": -1}, "data.max_test is -1; expected at least 1"),
        ({"data__max_input_length": 1}, "data.max_input_length is 1; expected at least 2"),
        ({"data__max_target_length": 1}, "data.max_target_length is 1; expected at least 2"),
        ({"data__split_seed": -1}, "data.split_seed is -1; expected at least 0"),
        ({"data__sample_seed": -1}, "data.sample_seed is -1; expected at least 0"),
        ({"train__seed": -1}, "train.seed is -1; expected at least 0"),
        ({"train__seed": 2**32}, "train.seed is 4294967296; expected at most 4,294,967,295"),
        ({"train__seed": 2**70}, "train.seed is a number of 71 bits"),
        ({"train__max_epochs": 0}, "train.max_epochs is 0; expected at least 1"),
        ({"train__max_epochs": 2147483648}, "train.max_epochs is 2147483648; expected at most 1,000,000"),
        ({"train__batch_size": 10**9}, "train.batch_size is 1000000000; expected at most 65,536"),
        ({"eval__num_beams": 10**6}, "eval.num_beams is 1000000; expected at most 256"),
        ({"data__max_target_length": 10**8}, "data.max_target_length is 100000000; expected at most"),
        ({"method__rank": 10**9}, "method.rank is 1000000000; expected at most 4,096"),
        ({"method__alpha": float("nan")}, "method.alpha is nan"),
        ({"method__name": "prompt", "method__prompt_length": 10**9}, "method.prompt_length is 1000000000"),
        ({"method__layers": "0-9999999999"}, "method.layers is '0-9999999999'; expected indices and ranges"),
        ({"method__layers": "9" * 5000}, "none above 10,000"),
        ({"ablation__seed": -1}, "ablation.seed is -1; expected at least 0"),
        ({"model__name": "m" * 5000}, "longer than a file's name can be"),
        ({"model__name": "x" * 10**6}, "config.model.name holds 1,000,000 characters"),
        ({"model__name": " "}, "config.model.name is empty"),
        ({"data__path": "~no_such_user_here/rows"}, "no such home directory"),
        ({"data__path": "rows\0.csv"}, "holds a NUL character"),
        ({"data__path": "\udcff.csv"}, r"data.path: '\xff.csv' holds bytes that are not UTF-8; rename the file"),
        ({"data__template": "{text} \ud83d"}, r"data.template: '{text} \ud83d' holds half of a surrogate pair"),
        ({"train__batch_size": 0}, "train.batch_size is 0; expected at least 1"),
        ({"train__accumulation_steps": 0}, "train.accumulation_steps is 0; expected at least 1"),
        ({"train__patience": 0}, "train.patience is 0; expected at least 1"),
        ({"train__learning_rate__warmup": -1.0}, "train.learning_rate.warmup is -1.0; expected at least 0"),
        ({"train__learning_rate__initial": float("inf")}, "train.learning_rate.initial is inf"),
        ({"train__warmup_fraction": 1.1}, "train.warmup_fraction is 1.1; expected at most 1"),
        ({"train__warmup_fraction": -0.1}, "train.warmup_fraction is -0.1; expected at least 0"),
        ({"train__weight_decay": float("nan")}, "train.weight_decay is nan; expected a number"),
        ({"train__clip_grad_norm": 0.0}, "train.clip_grad_norm is 0.0; expected more than 0, or None"),
        ({"train__checkpoint_every_seconds": -1}, "train.checkpoint_every_seconds is -1"),
        ({"eval__num_beams": 0}, "eval.num_beams is 0; expected at least 1"),
        ({"eval__batch_size": 0}, "eval.batch_size is 0; expected at least 1"),
        ({"eval__answer": "guess"}, "eval.answer is 'guess'; expected one of auto, generate, score"),
        ({"eval__answer": "score", "data__task": "samsum"}, "samsum has no fixed set of labels"),
        (
            {"eval__answer": "score", "data__task": "custom", "data__kind": "generation", "data__path": "x.jsonl"},
            "custom has no fixed set of labels",
        ),
    ],
)
def test_a_value_that_can_not_be_meant_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError) as raised:
        run(**changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("scale", "max_train", "max_epochs"),
    [("low", 100, 10), ("medium", 1_000, 5), ("high", 10_000, 1), ("all", None, 10)],
)
def test_a_scale_fills_in_rows_and_epochs(scale, max_train, max_epochs):
    filled = run(data__scale=scale)
    assert (filled.data.max_train, filled.train.max_epochs) == (max_train, max_epochs)


def test_rows_and_epochs_that_are_given_stay():
    given = run(data__scale="high", data__max_train=7, train__max_epochs=3)
    assert (given.data.max_train, given.train.max_epochs) == (7, 3)


@pytest.mark.parametrize("method", ["full", "lora", "ia3", "bitfit", "prompt"])
def test_the_learning_rates_are_the_papers(method):
    paper = json.loads(resources.files("jpeft.report").joinpath("published.json").read_text())
    rates = run(method__name=method).train.learning_rate
    assert dataclasses.asdict(rates) == paper["hyperparameters"]["learning_rate"][method]


def test_rates_that_are_all_0_are_refused_and_one_above_0_is_enough():
    rates = {f"train__learning_rate__{point}": 0.0 for point in ("initial", "warmup", "annealing")}
    with pytest.raises(UserError, match="train.learning_rate is 0 at all three points, so nothing would be trained"):
        run(**rates)
    for point in rates:
        run(**rates | {point: 1e-3})


def test_a_learning_rate_that_is_given_replaces_that_one_point():
    rates = run(method__name="prompt", train__learning_rate__warmup=0).train.learning_rate
    assert (rates.initial, rates.warmup, rates.annealing) == (3e-3, 0.0, 3e-2)


@pytest.mark.parametrize("key", ["targets", "stacks", "layers", "pattern"])
def test_an_ablation_and_a_selection_of_ones_own_are_not_both_taken(key):
    values = {"targets": "q,v", "stacks": "encoder", "layers": "0-3", "pattern": ".*/q"}
    with pytest.raises(UserError, match="both select; give one of them"):
        run(ablation__name="early", **{f"method__{key}": values[key]})


@pytest.mark.parametrize(
    ("text", "indices"),
    [(None, None), ("3", {3}), ("0,2,6-8", {0, 2, 6, 7, 8}), (" 1 , 4-4 ", {1, 4}), ("2-3,3-4", {2, 3, 4})],
)
def test_layers_are_indices_and_ranges_with_commas(text, indices):
    assert run(method__layers=text).layer_indices() == indices


def test_targets_and_stacks_are_names_with_commas():
    chosen = run(method__targets="q, v", method__stacks="decoder")
    assert (chosen.targets(), chosen.stacks()) == (("q", "v"), ("decoder",))
    assert (run().targets(), run().stacks()) == (None, None)


def test_the_method_has_the_options_of_its_config_and_the_rest_of_its_reading():
    assert run(method__rank=8).build_method() == Lora(rank=8)
    assert run(method__reading="official", method__rank=8, method__alpha=4).build_method() == Lora.official(
        rank=8, alpha=4.0
    )
    assert run(method__name="ia3").build_method() == Ia3()


def test_the_task_has_the_template_and_kind_of_its_config():
    task = run(data__task="custom", data__path="x.csv", data__template="{q}?", data__kind="classification").build_task()
    assert (task.template, task.kind) == ("{q}?", "classification")


def test_unset_keys_of_the_default_config_take_values_of_their_type_only():
    values: Any = default_config()
    assert values.method.rank is None
    values.method.rank = 8
    values.data.path = "rows.csv"
    values.train.learning_rate.warmup = 1e-2
    values.train.clip_grad_norm = 1.0
    filled = Run.from_config(values)
    assert (filled.method.rank, filled.data.path, filled.train.clip_grad_norm) == (8, "rows.csv", 1.0)
    assert filled.train.learning_rate.warmup == 1e-2
    for section, key, value in [("method", "rank", "8"), ("data", "path", 3), ("model", "dropout_rate", "x")]:
        with pytest.raises(TypeError):
            values[section][key] = value


def test_what_a_run_writes_down_is_the_same_run_again():
    first = run(method__name="prompt", data__scale="medium", train__learning_rate__warmup=0.5)
    assert Run.from_config(json.loads(json.dumps(first.to_dict()))) == first


def test_differences_name_each_key_with_both_values():
    before, after = (
        run().to_dict(),
        run(train__batch_size=8, method__rank=4, train__learning_rate__warmup=0.5).to_dict(),
    )
    assert differences(before, after) == [
        "method.rank: None -> 4",
        "train.batch_size: 16 -> 8",
        "train.learning_rate.warmup: 0.003 -> 0.5",
    ]
    assert differences(before, before) == []
    del after["eval"]["num_beams"]
    assert "eval.num_beams: 1 -> None" in differences(before, after)


def test_a_number_that_differs_by_rounding_alone_is_the_same():
    assert differences({"rate": 3e-4 / 10}, {"rate": 3e-5}) == []
    assert differences({"rate": 3e-5}, {"rate": 3.0000001e-5}) != []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "generate"),
        ({"data__task": "custom", "data__path": "x.jsonl"}, "auto"),  # the rows say whether they are classes
        ({"data__task": "custom", "data__path": "x.jsonl", "data__kind": "generation"}, "generate"),
        ({"data__task": "custom", "data__path": "x.jsonl", "data__kind": "classification"}, "auto"),
        ({"eval__answer": "score"}, "score"),
    ],
)
def test_the_benchmark_is_answered_as_the_paper_does_and_ones_own_classes_as_predict_does(changes, expected):
    assert run(**changes).eval.answer == expected


@pytest.mark.parametrize(
    ("task", "changed"),
    [("agnews", []), ("custom", ["data.options: 'none' -> 'auto'", "eval.answer: 'generate' -> 'auto'"])],
)
def test_a_config_of_a_version_without_a_key_says_what_that_version_did(task, changed):
    """Benchmark configs keep their behaviour; prompts of custom classes did not list the labels before."""
    now = Run.from_config({"data": {"task": task, "path": "rows.jsonl" if task == "custom" else None}}).to_dict()
    before = json.loads(json.dumps(now))
    del before["data"]["options"], before["eval"]["answer"], before["mesh"], before["data"]["target"]
    assert differences(of_any_version(before, now), now) == changed
