"""What a call leaves open is filled in from the adapter's run; what it says goes before that."""

import json
import shutil

import pytest

from jpeft.config import Run
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed
from jpeft.predict.answer_source import AnswerSource, task_of
from jpeft.predict.call import Call
from tests.report.synthetic import record


@pytest.fixture
def run(tmp_path):
    """A run's directory, as far as its task goes; the adapter's own in it."""

    def make(data: dict, result: dict):
        config = Run.from_config({"data": data}).to_dict()
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "result.json").write_text(json.dumps({**record(), **result}))
        (tmp_path / "adapter").mkdir()
        return tmp_path / "adapter"

    return make


def call(tmp_path, task: TaskOfRun | None, **given) -> Call:
    return Call.of(AnswerSource("mini", tmp_path, task=task), **given)


CUSTOM = {"task": "custom", "path": "rows.jsonl"}


def test_a_task_of_the_benchmark_is_known_by_its_name(run):
    task = task_of(run({"task": "cola"}, {}))
    assert task and task.labels == ("unacceptable", "acceptable")
    assert task.template.startswith("{sentence}") and (task.max_input_length, task.max_target_length) == (128, 8)


def test_a_users_own_task_by_what_its_run_wrote_down(run):
    data = {**CUSTOM, "template": "{title}?", "max_input_length": 40, "max_target_length": 9}
    expected = TaskOfRun("{title}?", ("good", "bad"), 40, 9, kind="classification", answer="score")
    assert task_of(run(data, {"labels": ["good", "bad"]})) == expected


def test_an_adapter_of_no_run_has_no_task(run, tmp_path):
    adapter = run(CUSTOM, {})
    assert task_of(tmp_path) is None
    (tmp_path / "result.json").unlink()
    assert task_of(adapter) is None


def test_a_run_with_unknown_keys_is_not_passed_over(run, tmp_path):
    adapter = run(CUSTOM, {})
    (tmp_path / "config.json").write_text('{"data": {"tusk": "cola"}}')
    with pytest.raises(RunFailed, match="did you mean config.data.task"):
        task_of(adapter)


def test_the_task_fills_in_what_the_call_leaves_open(tmp_path):
    task = TaskOfRun("{text}?", ("A", "B"), 40, 9)
    filled = call(tmp_path, task)
    assert filled.labels == ("A", "B") and (filled.max_input_length, filled.max_output_length) == (40, 9)
    assert filled.prompt.template == "{text}?" and not filled.prompt.required
    assert call(tmp_path, task, generate=True).labels is None
    own = call(tmp_path, task, labels=["C", "D"], template="{other}", max_input_length=7)
    assert (own.labels, own.prompt.template, own.prompt.required, own.max_input_length) == (
        ("C", "D"),
        "{other}",
        True,
        7,
    )
    alone = call(tmp_path, None)
    assert alone.labels is None and (alone.max_input_length, alone.max_output_length) == (512, 128)
    assert call(tmp_path, TaskOfRun("{input}", (), 40, 9)).labels is None


def test_the_prompt_lists_the_labels_of_the_call_if_that_of_the_run_lists_its_own(tmp_path):
    task, said = TaskOfRun("{text}?\n\nOPTIONS:\n- A\n- B", ("A", "B"), kind="classification", options="auto"), []
    other = call(tmp_path, task, labels=["C", "D"], report=said.append)
    assert (other.prompt.template, other.prompt.required) == ("{text}?\n\nOPTIONS:\n- C\n- D", False) and not said
    templated = call(tmp_path, task, template="{text}!", report=said.append)
    assert (templated.prompt.template, templated.prompt.required) == ("{text}!\n\nOPTIONS:\n- A\n- B", True)
    assert said == ["the prompt ends in a list of the labels, as in the run"]


def test_what_the_adapter_carries_goes_before_its_run_and_wherever_it_is_copied(run, tmp_path):
    adapter = run(CUSTOM, {"labels": ["old", "older"]})
    carried = TaskOfRun("{text}?", ("A", "B"), 40, 9, kind="classification", answer="score", dtype="bfloat16")
    carried.write(adapter)
    assert task_of(adapter) == carried
    shutil.copytree(adapter, tmp_path / "copied")
    assert task_of(tmp_path / "copied") == carried
    assert call(tmp_path, carried).dtype == "bfloat16" and call(tmp_path, carried, dtype="auto").dtype == "auto"


@pytest.mark.parametrize("labels", [7, [1, 2], {"a": 1}, "AB"])
def test_labels_of_a_damaged_result_are_named(labels, run):
    with pytest.raises(RunFailed, match="labels"):
        task_of(run(CUSTOM, {"labels": labels}))


def test_one_label_is_no_choice_and_very_many_are_generated_as_their_run_did(tmp_path):
    many = tuple(f"label {i}" for i in range(101))
    assert call(tmp_path, TaskOfRun("{text}?", ("only",))).labels is None
    assert call(tmp_path, TaskOfRun("{text}?", many)).labels is None
    assert call(tmp_path, TaskOfRun("{text}?", many, answer="score")).labels == many
    assert call(tmp_path, TaskOfRun("{text}?", many[:100])).labels == many[:100]
