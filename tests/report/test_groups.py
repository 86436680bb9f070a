"""Means over seeds, and the cautions about results that differ."""

import json

import pytest

from jpeft.report.document import of_runs
from jpeft.report.groups import Group, Key, Spread, cautions, group, published_group
from jpeft.report.plain import of_document
from jpeft.report.records import load
from tests.report.synthetic import custom, record, write_run


def groups_of(tmp_path, *results, **train) -> list[Group]:
    for index, result in enumerate(results):
        write_run(tmp_path / str(index), result, curve=False, **(train if index else {}))
    return group(load([tmp_path])[0])


def test_mean_and_sample_standard_deviation():
    three = Spread.of([0.5, None, 0.7, 0.6])
    assert three and (three.mean, three.sd) == (pytest.approx(0.6), pytest.approx(0.1))
    assert (three.count, three.low, three.high) == (3, 0.5, 0.7)
    assert Spread.of([0.5]) == Spread(0.5, None, 1, 0.5, 0.5)
    assert Spread.of([None]) is None


def test_a_cell_is_the_mean_over_its_seeds(tmp_path):
    (only,) = groups_of(tmp_path, record(seed=0, metric=0.5), record(seed=1, metric=0.7))
    metric = only.metric("lora", "cola", "medium")
    assert metric and (metric.mean, metric.count) == (pytest.approx(0.6), 2)
    assert only.metric("lora", "cola", "low") is None


@pytest.mark.parametrize("key", ["model", "source", "reading", "quantization"])
def test_another_model_source_or_reading_is_another_group(key, tmp_path):
    assert len(groups_of(tmp_path, record(), record(seed=1, **{key: "other"}))) == 2


def test_a_base_in_few_bits_is_another_group_also_of_a_record_that_does_not_say_so(tmp_path):
    write_run(tmp_path / "wide", record(), curve=False)
    write_run(tmp_path / "nf4", record(seed=1), curve=False)
    file = tmp_path / "nf4/config.json"
    config = json.loads(file.read_text())
    config["model"] |= {"quantization": "nf4", "double_quantization": True, "quantize_wo": False}
    file.write_text(json.dumps(config))
    wide, few = group(load([tmp_path])[0])
    assert wide.title == "mini, source `local`" and few.title == "mini in nf4,double, source `local`"
    assert [cell.metric.count for one in (wide, few) for cell in one.cells.values() if cell.metric] == [1, 1]
    shown = of_document(of_runs([wide, few], []), [wide, few])
    assert [one["quantization"] for one in shown["groups"]] == [None, "nf4,double"]
    assert [section.name for section in of_runs([wide, few], []).sections] == ["mini-local", "mini-nf4-double-local"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"commit": "0000000"}, "2 different commits"),
        ({"commit": None}, "none (installed package)"),
        ({"versions": {"jpeft": "0.1.0", "jax": "0.11.0", "flax": "0.12.8"}}, "jax 0.11.0"),
        ({"device": "NVIDIA H200"}, "seconds and their memory are not comparable"),
        ({"mesh": {"data": 2, "fsdp": 1, "model": 1}}, "different meshes"),
        ({"test_examples": 100}, "not all results have the same test rows"),
        ({"test_examples": 100}, "the paper's test split has 522"),
        ({"train_examples": 10}, "not all results have the same train rows"),
        ({"trainable_parameters": 5}, "trains 5 or 3,538,944 parameters"),
    ],
)
def test_what_differs_within_a_group_is_said(changes, says, tmp_path):
    (only,) = groups_of(tmp_path, record(), record(seed=1, **changes))
    assert says in " ".join(cautions(only))


def test_settings_that_differ_are_said(tmp_path):
    (only,) = groups_of(tmp_path, record(), record(seed=1), patience=3, learning_rate={"warmup": 0.1})
    said = " ".join(cautions(only))
    assert "differ in `train.patience`" in said
    assert "The seeds of lora cola medium differ in `train.learning_rate.warmup`" in said


def test_texts_that_were_cut_are_said(tmp_path):
    write_run(tmp_path, record(), curve=False)
    config = tmp_path / "config.json"
    own = json.loads(config.read_text())

    def said(**lengths: int | None) -> list[str]:
        config.write_text(json.dumps({**own, "data": {**own["data"], **lengths}}))
        (only,) = group(load([tmp_path])[0])
        return cautions(only)

    assert not any("cut to" in caution for caution in said(max_input_length=None))
    assert "Inputs were cut to 256 tokens, not to the task's own length." in said(max_input_length=256)


def test_a_clean_group_needs_no_caution(mini):
    assert cautions(mini) == []


def test_generated_data_is_said(tmp_path):
    (only,) = groups_of(tmp_path, record(source="sample", test_examples=600))
    assert "generated data" in only.title and "generated data" in cautions(only)[0]
    assert not any("paper's test split" in text for text in cautions(only))


@pytest.mark.parametrize("method", ["full", "prompt"])
def test_every_methods_runs_have_the_zero_shot_score_of_the_bare_model(method, tmp_path):
    seconds = record()["seconds"] | {"zero_shot": 2.0}
    (only,) = groups_of(tmp_path, record(method, zero_shot={"accuracy": 0.3}, seconds=seconds))
    score = only.zero_shot("cola")
    assert score and score.mean == 0.3
    assert only.zero_shot("agnews") is None


def test_a_run_that_started_from_an_adapter_has_it_too(tmp_path):
    seconds = record()["seconds"] | {"zero_shot": 2.0}
    started = {"method.from_adapter": "/runs/earlier/adapter"}
    custom(tmp_path, "lora", zero_shot={"accuracy": 0.3}, seconds=seconds, settings=started)
    (only,) = group(load([tmp_path])[0])
    score = only.zero_shot("custom")
    assert score and score.mean == 0.3


def test_a_zero_shot_score_from_before_it_was_the_bare_models_does_not_count(tmp_path):
    """Such a result has no phase of its own for it: the untrained method was tested, a prompt included."""
    (only,) = groups_of(tmp_path, record("prompt", zero_shot={"accuracy": 0.1}))
    assert only.zero_shot("cola") is None


def test_the_paper_as_cells():
    paper = published_group()
    assert len(paper.cells) == 104
    assert paper.cells[Key("ia3", "agnews", "low")].metric == Spread.single(0.67)
    assert paper.metric("lora", "cola", "medium", "early") == Spread.single(0.70306)


def test_answers_that_were_made_in_another_way_are_said_and_older_runs_generated(tmp_path):
    generated = write_run(tmp_path / "0", record(), curve=False).with_name("config.json")
    write_run(tmp_path / "1", record(seed=1), curve=False)

    def said() -> str:
        (only,) = group(load([tmp_path])[0])
        return " ".join(caution for caution in cautions(only) if "eval.answer" in caution)

    def set_answer(**answer: str) -> None:
        config = json.loads(generated.read_text())
        generated.write_text(json.dumps({**config, "eval": {**config.get("eval", {}), **answer}}))

    set_answer(answer="generate")  # like the other run, whose older config lacks the key
    assert not said()
    set_answer(answer="score")
    assert "The runs differ in `eval.answer`: 'score' (1 result), 'generate' (1 result)." in said()
