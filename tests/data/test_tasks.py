"""Rows become prompts and targets; errors name what a row lacks."""

import pytest

from jpeft.data.prepare import choose_task
from jpeft.data.tasks import TASKS, examples, label_numbers
from jpeft.errors import UserError

E2E_ROWS = {
    "meaning_representation": ["name[Giraffe]", "name[Alimentum]", "name[Giraffe]", "name[Giraffe]"],
    "human_reference": ["Eat at Giraffe.", "Alimentum is open.", "Giraffe it is.", "Eat at Giraffe."],
}


def test_an_ag_news_row_becomes_a_question_with_its_topics_and_the_name_of_its_label():
    made = examples(TASKS["agnews"], "train", {"text": ["a", "Oil rises"], "label": [0, 2]}, [1])
    assert [example.id for example in made] == ["train/1"]
    assert made[0].input == (
        "Oil rises\n\nWhich topic is this news article about?\n\nOPTIONS:\n- World\n- Sports\n- Business\n- Sci/Tech"
    )
    assert made[0].target == "Business"
    assert made[0].references == ("Business",)


@pytest.mark.parametrize(
    ("task", "row", "start", "target"),
    [
        ("cola", {"sentence": "Him ran.", "label": 0, "idx": 4}, "Him ran.\n\nWould a linguist", "unacceptable"),
        ("cola", {"sentence": "He ran.", "label": 1, "idx": 5}, "He ran.\n\nWould a linguist", "acceptable"),
        (
            "e2e",
            {"meaning_representation": "name[Giraffe]", "human_reference": "Giraffe!"},
            "Facts about a restaurant: name[Giraffe]\n\n",
            "Giraffe!",
        ),
        (
            "samsum",
            {"id": "1", "dialogue": "Ann: hi\r\nBob: hi", "summary": "They greet."},
            "Ann: hi\r\nBob: hi\n\nBriefly summarize",
            "They greet.",
        ),
        ("custom", {"input": "2 + 2", "target": 4}, "2 + 2", "4"),
    ],
)
def test_a_row_of_each_task_becomes_a_prompt_and_its_answer(task, row, start, target):
    [made] = examples(TASKS[task], "test", {column: [value] for column, value in row.items()}, [0])
    assert made.input.startswith(start)
    assert made.target == target


def test_braces_in_a_rows_text_are_text():
    [made] = examples(TASKS["custom"], "train", {"input": ["{target} {0} {"], "target": ["x"]}, [0])
    assert made.input == "{target} {0} {"


@pytest.mark.parametrize(
    ("task", "metric"), [("agnews", "accuracy"), ("cola", "accuracy"), ("e2e", "rouge_l"), ("samsum", "rouge_l")]
)
def test_classification_is_judged_by_accuracy_and_generation_by_rouge_l(task, metric):
    assert TASKS[task].metric == metric


def test_texts_of_the_same_meaning_are_each_others_references_with_their_own_first_and_none_twice():
    made = examples(TASKS["e2e"], "test", E2E_ROWS, [2, 1])
    assert made[0].references == ("Giraffe it is.", "Eat at Giraffe.")
    assert made[1].references == ("Alimentum is open.",)


def test_an_input_that_is_no_text_is_named_with_its_row_where_it_is_chosen():
    rows = {"meaning_representation": ["name[A]", ["name[A]"], "name[A]"], "human_reference": ["x", "y", "z"]}
    assert [row.references for row in examples(TASKS["e2e"], "test", rows, [0, 2])] == [("x", "z"), ("z", "x")]
    with pytest.raises(UserError, match="row test/1: the column 'meaning_representation' holds a list"):
        examples(TASKS["e2e"], "test", rows, [1])


def test_references_come_from_rows_that_were_not_drawn_too():
    assert "Giraffe it is." in examples(TASKS["e2e"], "test", E2E_ROWS, [0])[0].references


@pytest.mark.parametrize("label", [4, -1, "Weather", True, 1.0])
def test_an_unknown_label_is_named_with_its_row_and_the_known_ones(label):
    with pytest.raises(UserError, match=r"row train/0 has the unknown label .*known: .*World.*Sci/Tech"):
        examples(TASKS["agnews"], "train", {"text": ["x"], "label": [label]}, [0])


@pytest.mark.parametrize("label", [3, "3", "Sci/Tech"])
def test_a_label_may_be_its_number_or_its_name(label):  # a CSV file has the number as text
    assert examples(TASKS["agnews"], "train", {"text": ["x"], "label": [label]}, [0])[0].target == "Sci/Tech"


def test_a_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(UserError, match="train rows lack the column 'label'; there are: text, topic"):
        examples(TASKS["agnews"], "train", {"text": ["x"], "topic": [1]}, [0])


@pytest.mark.parametrize(
    ("task", "row", "column"),
    [
        ("samsum", {"dialogue": None, "summary": "s"}, "dialogue"),
        ("samsum", {"dialogue": "d", "summary": None}, "summary"),
        ("cola", {"sentence": "s", "label": None}, "label"),
    ],
)
def test_an_empty_field_is_named_with_its_row(task, row, column):
    with pytest.raises(UserError, match=f"row validation/0 has no '{column}'; fill it in or remove the row"):
        examples(TASKS[task], "validation", {name: [value] for name, value in row.items()}, [0])


def test_a_template_of_ones_own_may_use_any_column():
    task = TASKS["samsum"].with_template("{id}|{{{dialogue}}}")
    rows = {"id": ["7"], "dialogue": ["hi"], "summary": ["s"]}
    assert examples(task, "train", rows, [0])[0].input == "7|{hi}"


def test_a_template_may_show_the_target_where_another_column_is_there_too():
    task = TASKS["custom"].with_template("{input} ({target})")
    assert examples(task, "train", {"input": ["a"], "target": ["b"]}, [0])[0].input == "a (b)"


@pytest.mark.parametrize("template", ["Summarize.", "{}", "{input} {}", "{target}"])
def test_a_template_without_a_column_is_refused(template):
    with pytest.raises(UserError, match="names no column; write one in braces, such as {input}"):
        TASKS["custom"].with_template(template)


@pytest.mark.parametrize(
    "template", ["{input", "{input}}", "}{input}", "{input:d}", "{input:{width}}", '{"text": {input}}']
)
def test_a_malformed_template_is_refused_with_how_to_write_a_brace(template):
    with pytest.raises(UserError, match=r"is malformed \(.*\); write a brace itself as {{\."):
        TASKS["custom"].with_template(template)


def test_a_template_that_names_a_column_the_rows_lack_is_refused():
    task = TASKS["custom"].with_template("{question}")
    with pytest.raises(UserError, match="lack the column 'question'; there are: input, target"):
        examples(task, "train", {"input": ["a"], "target": ["b"]}, [0])


def test_an_unknown_task_or_kind_is_refused():
    with pytest.raises(UserError, match="data.task is 'agnew'; expected one of agnews, cola, e2e, samsum, custom"):
        choose_task("agnew")
    with pytest.raises(UserError, match="data.kind is 'regression'; expected classification or generation"):
        choose_task("custom", kind="regression")
    with pytest.raises(UserError, match="'generation' does not fit agnews, which is a classification task"):
        choose_task("agnews", kind="generation")


@pytest.mark.parametrize("label", [4, 0.0, "0.0", "-1", "4"])
def test_of_a_number_that_is_no_label_it_is_told_which_are(label):
    with pytest.raises(UserError, match=r"unknown label .*; known: 0 \(World\), 1 \(Sports\), 2 .*, 3 \(Sci/Tech\)"):
        examples(TASKS["agnews"], "train", {"text": ["Oil rises"], "label": [label]}, [0])


def test_a_row_that_writes_a_columns_name_otherwise_is_told_so():
    rows = {"input": ["a", None], "Input": [None, "b"], "target": ["x", "y"]}
    with pytest.raises(UserError, match="row train/1 has no 'input', but 'Input': write one name in every row"):
        examples(TASKS["custom"], "train", rows, [0, 1])
    with pytest.raises(UserError, match="row train/1 has no 'input'; fill it in or remove the row"):
        examples(TASKS["custom"], "train", {**rows, "Input": [None, None]}, [0, 1])


def test_numbers_of_labels_that_count_from_1_are_refused():
    agnews = TASKS["agnews"]
    assert label_numbers(agnews, "x.csv", [3, "1", "Sci/Tech", True, None, ["no text"], -1]) == {1, 3}
    assert label_numbers(agnews, "x.csv", [0, 4]) == {0, 4}  # one wrong label: an error of its own row
    assert label_numbers(TASKS["custom"], "x.csv", [1, 2]) == set()
    says = "labels of x.csv count from 1, up to 4, .* counting from 0: 0 is 'World', 3 is 'Sci/Tech'; subtract 1, or"
    with pytest.raises(UserError, match=says):
        label_numbers(agnews, "x.csv", ["1", "4"])
