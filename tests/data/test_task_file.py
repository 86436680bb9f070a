"""`task.json`: round trips, and one-line refusals of untrusted files."""

import dataclasses
import json
import os

import pytest

from jpeft.data.task_file import TASK_FILE, TaskOfRun
from jpeft.data.tasks import TASKS
from jpeft.errors import RunFailed

TASK = TaskOfRun(
    template="{title}: {body}?",
    labels=("Süß", "salty"),
    max_input_length=40,
    max_target_length=9,
    kind="classification",
    target="taste",
    answer="score",
    num_beams=2,
    dtype="bfloat16",
)


def test_what_is_written_is_read(tmp_path):
    assert TaskOfRun.read(tmp_path) is None
    TASK.write(tmp_path)
    assert TaskOfRun.read(tmp_path) == TASK
    values = json.loads((tmp_path / TASK_FILE).read_text(encoding="utf-8"))
    assert values["task"] == "custom" and values["labels"] == ["Süß", "salty"] and values["max_target_length"] == 9


LISTED = "\n\nOPTIONS:\n- Süß\n- salty"
OF_RUN, ADDED, ABSENT = (
    "the prompt names the run's labels, not those given (--template makes another)",
    "the prompt ends in a list of the labels, as in the run",
    "the prompt does not list the labels; in the run it did",
)
TOO_LONG = "the prompt does not list the labels, which do not fit it; in the run it did"
MANY = [f"label number {i} of many" for i in range(120)]


@pytest.mark.parametrize(
    ("own", "options", "template", "labels", "prompt", "note"),
    [
        ("{t}?" + LISTED, "auto", None, None, "{t}?" + LISTED, None),
        ("{t}?" + LISTED, "auto", None, [" {x}", "b"], "{t}?\n\nOPTIONS:\n- {{x}}\n- b", None),
        ("{t}?" + LISTED, "auto", "{t}!", None, "{t}!" + LISTED, ADDED),
        ("{t}?" + LISTED, "auto", "{t}!", ["a", "b"], "{t}!\n\nOPTIONS:\n- a\n- b", ADDED),
        ("{t}?" + LISTED, "auto", "{t}", None, "{t}", ABSENT),
        ("{t}?" + LISTED, "list", "{t}", None, "{t}" + LISTED, ADDED),
        ("{t}?" + LISTED, None, "{t}!", None, "{t}!" + LISTED, ADDED),  # of a version without this key
        ("{t}?" + LISTED, "none", "{t}!", None, "{t}!", ABSENT),  # the user's own list
        ("{t}?" + LISTED, "auto", "{t}: Süß or salty?", None, "{t}: Süß or salty?", None),
        ("{t}?" + LISTED, "list", "{t}?" + LISTED, None, "{t}?" + LISTED, None),  # as it stands in task.json
        ("{t}?" + LISTED, "list", "{t}: Süß or salty?", None, "{t}: Süß or salty?", None),
        ("{t}?" + LISTED, "auto", None, MANY, "{t}?", TOO_LONG),
        ("{t}?" + LISTED, "auto", "{t}!", MANY, "{t}!", ABSENT),
        ("{t}?" + LISTED, "auto", None, ["<extra_id_0>", "b"], "{t}?", TOO_LONG),
        ("{t}?", "none", "{t}!", ["a", "b"], "{t}!", None),
        ("{t}: Süß or salty?", "auto", None, ["a", "b"], "{t}: Süß or salty?", OF_RUN),
        ("{t}: Süß or salty?", "auto", None, ["salty", "Süß"], "{t}: Süß or salty?", None),
    ],
)
def test_another_template_or_other_labels_are_listed_as_the_run_listed_its_own(
    own, options, template, labels, prompt, note
):
    task = dataclasses.replace(TASK, template=own, options=options)
    assert (task.prompt(template, labels), task.prompt_note(template, labels)) == (prompt, note)


def test_the_labels_of_a_benchmark_task_are_replaced_and_its_other_templates_get_no_list():
    task = TaskOfRun.of(TASKS["cola"], answer="generate", num_beams=1, dtype="auto", options="auto")
    assert task.prompt(labels=["no", "yes"]).endswith("acceptable?\n\nOPTIONS:\n- no\n- yes")
    assert (task.prompt("{sentence} ok?"), task.prompt_note("{sentence} ok?")) == ("{sentence} ok?", ABSENT)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_the_benchmark_comes_back_whole(name, tmp_path):
    TaskOfRun.of(TASKS[name], answer="generate", num_beams=1, dtype="auto").write(tmp_path)
    read = TaskOfRun.read(tmp_path)
    assert read is not None and read.task() == TASKS[name]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"template": None}, "has no template"),
        ({"template": 3}, "template is 3; expected a text"),
        ({"template": "{a"}, "malformed"),
        ({"template": "no column"}, "names no column"),
        ({"template": "{a}" + "x" * 200_000}, "characters"),
        ({"labels": "AB"}, "labels is 'AB'; expected a list"),
        ({"labels": ["A", 2]}, "labels hold 2"),
        ({"labels": ["A", " "]}, "labels hold ' '"),
        ({"labels": ["x"] * 20_000}, "20,000 labels"),
        ({"max_input_length": 0}, "max_input_length is 0"),
        ({"max_input_length": 10**12}, "max_input_length is 1000000000000"),
        ({"max_target_length": True}, "max_target_length is True"),
        ({"max_target_length": 2.5}, "max_target_length is 2.5"),
        ({"max_target_length": 65_536}, "max_target_length is 65536; expected 2 to 4,096"),
        ({"num_beams": 10**6}, "num_beams is 1000000"),
        ({"kind": "regression"}, "kind is 'regression'"),
        ({"answer": "sing"}, "answer is 'sing'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_what_no_run_writes_is_refused_in_one_line(changed, says, tmp_path):
    TASK.write(tmp_path)
    values = json.loads((tmp_path / TASK_FILE).read_text(encoding="utf-8"))
    (tmp_path / TASK_FILE).write_text(json.dumps({**values, **changed}), encoding="utf-8")
    with pytest.raises(RunFailed) as refused:
        TaskOfRun.read(tmp_path)
    line = str(refused.value)
    assert says in line and TASK_FILE in line and "\n" not in line and len(line) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, '{"labels": [NaN]}', '{"num_beams": 1e999}'])
def test_what_is_no_such_file_is_refused(content, tmp_path):
    (tmp_path / TASK_FILE).write_text(content)
    with pytest.raises(RunFailed, match=TASK_FILE):
        TaskOfRun.read(tmp_path)


def test_a_pipe_or_a_directory_in_its_place_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    os.mkfifo(tmp_path / "one" / TASK_FILE)
    (tmp_path / "two" / TASK_FILE).mkdir(parents=True)
    for directory in ("one", "two"):
        with pytest.raises(RunFailed, match=TASK_FILE):
            TaskOfRun.read(tmp_path / directory)


@pytest.mark.parametrize("target", ["nowhere.json", "task.json"])
def test_a_link_that_leads_nowhere_is_not_taken_for_an_adapter_without_a_task(target, tmp_path):
    (tmp_path / "task.json").symlink_to(target)
    with pytest.raises(RunFailed, match=r"task\.json"):
        TaskOfRun.read(tmp_path)
