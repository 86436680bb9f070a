"""The paper's tables from results; derived values are worked out by hand."""

import dataclasses

import pytest

from jpeft.report import csvs, tables
from jpeft.report.groups import Group, Key, Spread, group, published_group
from jpeft.report.names import PAPER_TASKS, PEFT
from jpeft.report.records import load
from jpeft.report.table import Column, Table, Value, mark_best, show
from tests.report.synthetic import custom, record, write_run


def entry(table: Table, row: str, column: str) -> Value:
    (found,) = [values for values in table.rows if values[0].value == row]
    return found[[column_.full_name for column_ in table.columns].index(column)]


def seconds(total: float) -> dict[str, float]:
    return {"total": total, "train": total, "validation": 0.0, "test": 0.0, "compile": 0.0, "zero_shot": 0.0}


@pytest.fixture
def few(tmp_path) -> Group:
    """CoLA at low scale, all methods, with round seconds and parameter counts; no SAMSum."""
    totals = {"full": 60.0, "ia3": 30.0, "lora": 90.0, "bitfit": 120.0, "prompt": 560.0}
    for method, total in totals.items():
        made = record(method, "cola", "low", metric=0.6, seconds=seconds(total), trainable_parameters=200_000)
        write_run(tmp_path / method, made)
    (only,) = group(load([tmp_path])[0])
    return only


def test_table_1_sets_ours_beside_the_papers(few):
    value = entry(tables.table_1(few), "LoRA (low)", "CoLA")
    assert (value.value, value.published) == (0.6, 0.76436)
    assert show(value, "metric").line() == "0.6000 (paper 0.7644, −0.1644)"


def test_what_was_not_run_is_missing_in_every_table(few):
    for make in (tables.table_1, tables.table_2, tables.table_4, tables.figure_1, tables.table_5, tables.table_6):
        for row in make(few).rows:
            assert row[-1].value is None and "missing" in show(row[-1], "metric").line()


def test_rows_columns_and_tables_of_which_nothing_was_run_are_not_shown(few):
    shown = {table.name: table for table in tables.paper_tables(few)}
    assert list(shown) == ["table-1", "table-3", "table-4", "figure-1", "speed-ups", "table-5", "table-6"]
    assert [column.name for column in shown["table-1"].columns] == ["PEFT/Dataset", "CoLA"]
    assert [row[0].value for row in shown["table-1"].rows] == [
        "Zero-shot",
        *(f"{label} (low)" for label in ("Full Tuning", "(IA)³", "LoRA", "BitFit", "Prompt Tune")),
    ]
    assert not shown["table-1"].missing
    note = shown["table-1"].notes[-1]
    assert note == "Not shown, since nothing of them was run: 10 rows and 3 columns of the paper's table."


def test_the_derived_tables(few):
    assert entry(tables.table_5(few), "LoRA (low)", "CoLA").value == pytest.approx(0.3)  # 0.6 / 2
    assert entry(tables.table_6(few), "LoRA (low)", "CoLA").value == pytest.approx(0.4)  # 0.6 / 1.5 minutes
    assert entry(tables.figure_1(few), "BitFit (low)", "CoLA").value == 2.0
    assert entry(tables.speedups(few), "low", "CoLA").value == pytest.approx(0.7)  # 1 - 60 / 200
    assert entry(tables.table_4(few), "BitFit (low)", "CoLA, seconds").value == 120.0


def test_a_speed_up_needs_all_four_methods(few):
    less = dataclasses.replace(few, cells={k: c for k, c in few.cells.items() if k.method != "prompt"})
    assert tables.speedup(few, "cola", "low") and tables.speedup(less, "cola", "low") is None


def test_figure_1_of_the_paper_is_table_4_divided():
    assert tables.relative_time(published_group(), "prompt", "cola", "low") == Spread.single(1124 / 89)
    low = [tables.relative_time(published_group(), method, task, "low") for method in PEFT for task in PAPER_TASKS]
    assert all(one and one.mean > 1 for one in low)


def test_several_seeds_have_a_spread(mini):
    value = entry(tables.table_1(mini), "LoRA (low)", "CoLA")
    assert value.count == 2 and value.sd
    assert show(value, "metric").spread == f"± {value.sd:.4f} (n=2)"


def test_a_table_of_another_model_says_that_it_is_no_comparison(few):
    assert all("mini" in table.title for table in tables.paper_tables(few) + tables.further_tables(few))
    assert "between two models" in " ".join(tables.table_1(few).notes)
    same = dataclasses.replace(few, model="google/flan-t5-xl")
    assert "between two models" not in " ".join(tables.table_1(same).notes)


def test_generated_data_stands_beside_no_published_number(few):
    sample = dataclasses.replace(few, source="sample")
    for table in tables.paper_tables(sample) + tables.further_tables(sample):
        assert not any(value.published for row in table.rows for value in row) and "generated data" in table.title


def test_what_the_paper_lacks(mini):
    other = tables.other_metrics(mini)
    assert entry(other, "Zero-shot", "CoLA, Matthews correlation").value == 0.02
    metric = mini.metric("lora", "e2e", "high")
    assert metric
    assert entry(other, "LoRA (high)", "E2E NLG, ROUGE-L, multi-reference").value == pytest.approx(metric.mean / 2)
    times = tables.times(mini)
    assert entry(times, "LoRA, CoLA (low)", "Seconds, validation").value == 600.0
    assert len(times.rows) == 104 == len(tables.all_cells(mini).rows)
    sizes = tables.sizes(mini)
    assert entry(sizes, "LoRA", "Adapter file").value == 4 * 3_538_944
    assert entry(sizes, "LoRA", "Peak memory, largest of all runs, CoLA").value == 1_589_387_264


def test_a_task_and_a_method_of_ones_own_are_in_the_table_of_every_cell(tmp_path):
    custom(tmp_path, "a", data_digest="3f2a9c1" + "0" * 57)
    (only,) = group(load([tmp_path])[0])
    assert Key("lora", "custom", "all", data="mine.jsonl 3f2a9c1") in only.cells
    (row,) = tables.all_cells(only).rows
    assert [value.value for value in row[:4]] == ["LoRA", "custom", "mine.jsonl 3f2a9c1", "all"]
    assert tables.table_1(only).missing == 16 * 4 and not only.has_papers


def test_a_run_on_several_files_has_a_line_for_each_and_other_metrics_their_error(tmp_path):
    part = {"validation_examples": 10, "test_examples": 40, "validation_loss": 0.5, "metrics": {"accuracy": 0.9}}
    files = {"old.jsonl": part, "new.jsonl": part | {"test_examples": 60, "metrics": {"accuracy": 0.7}}}
    trust = {"metric": "macro_f1", "standard_error": 0.021, "interval": [0.7, 0.8], "method": "bootstrap", "rows": 100}
    digest = {"data_digest": "3f2a9c1" + "0" * 57}
    custom(
        tmp_path,
        "a",
        by_source=files,
        uncertainties={"macro_f1": trust},
        metrics={"accuracy": 0.8, "macro_f1": 0.75},
        metric=0.8,
        **digest,
    )
    (only,) = group(load([tmp_path])[0])
    (parts,) = tables.each_file(only)
    assert [[value.value for value in row[1:]] for row in parts.rows] == [
        ["old.jsonl", "40", 0.9, 0.5],
        ["new.jsonl", "60", 0.7, 0.5],
    ]
    (other,) = tables.own_metrics(only)
    assert (other.rows[0][1].value, other.rows[0][1].error) == (0.75, 0.021)
    custom(
        tmp_path,
        "b",
        by_source=files,
        seed=1,
        uncertainties={"macro_f1": trust},
        metrics={"accuracy": 0.8, "macro_f1": 0.75},
        metric=0.8,
        **digest,
    )
    (both,) = group(load([tmp_path])[0])
    (other,) = tables.own_metrics(both)
    assert (other.rows[0][1].count, other.rows[0][1].error) == (2, None)  # the spread is shown instead
    assert len(tables.each_file(both)[0].rows) == 2
    assert tables.own_tables(both)[-1].name == "files"


def test_ones_own_results_show_rows_settings_and_how_far_one_seed_may_be_trusted(tmp_path):
    trust = {"metric": "accuracy", "standard_error": 0.0123, "interval": [0.78, 0.83], "method": "wilson", "rows": 900}
    digest = {"data_digest": "3f2a9c1" + "0" * 57}
    custom(tmp_path, "a", metric=0.8, settings={"method.rank": 4}, uncertainty=trust, **digest)
    custom(tmp_path, "b", metric=0.7, settings={"method.rank": 8}, seed=0, finished="2020-01-01", **digest)
    custom(tmp_path, "c", metric=0.6, path="/rows/other.csv", data_digest="e" * 64, uncertainty=None)
    (only,) = group(load([tmp_path])[0])
    table = tables.own_results(only)
    columns = [column.name for column in table.columns]
    assert columns[:5] == ["Data", "Method", "Setting", "Metric", "Score"] and columns[-1] == "95 % interval"
    assert [[value.value for value in (*row[:5], row[-1])] for row in table.rows] == [
        ["mine.jsonl 3f2a9c1", "LoRA", "rank 4", "accuracy", 0.8, "0.780–0.830"],
        ["mine.jsonl 3f2a9c1", "LoRA", "rank 8", "accuracy", 0.7, ""],
        ["other.csv eeeeeee", "LoRA", "", "accuracy", 0.6, ""],
    ]
    assert show(table.rows[0][4], "metric").line() == "0.8000 se 0.0123"
    assert csvs.render(table).splitlines()[0].startswith('Data,Method,Setting,Metric,Score,"Score, standard error"')
    assert [part.data for part in only.by_data()] == ["mine.jsonl 3f2a9c1", "other.csv eeeeeee"]
    assert (
        only.by_data()[0].metric("lora", "custom", "all").mean == 0.8
    )  # the later of two settings represents the cell


def test_the_untuned_score_stands_beside_ones_own_results_of_every_method(tmp_path):
    for method in ("lora", "prompt"):
        custom(tmp_path, method, method=method, zero_shot={"accuracy": 0.25}, seconds=seconds(20.0))
    (only,) = group(load([tmp_path])[0])
    table = tables.own_results(only)
    untuned = [column.name for column in table.columns].index("Untuned")
    assert [row[untuned].value for row in table.rows] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("number", "style", "text"),
    [
        (0.67816, "metric", "0.6782"),
        (-0.11882, "signed", "−0.1188"),
        (0.000327, "percent", "0.0327 %"),
        (3_538_944, "count", "3,538,944"),
        (3.5, "count", "3.5"),
        (37_575_360, "bytes", "37.6 MB"),
        (999_999, "bytes", "1.00 MB"),
        (1249.4, "seconds", "1,249"),
        (0.251, "seconds", "0.25"),
        (3.014e-05, "number", "3.014e-05"),
        (0.0028, "published", "0.0028"),
    ],
)
def test_how_numbers_are_written(number, style, text):
    assert show(Value(number), style).main == text


def test_the_best_is_marked_where_there_is_one():
    rows = [
        [Value("a"), Value(0.5), Value(0.1)],
        [Value("b"), Value(0.6), Value(0.1)],
        [Value("c"), Value(None), Value(None)],
    ]
    marked = mark_best(rows, (1, 2))
    assert [[value.tone for value in row] for row in marked] == [["", "", ""], ["", "best", ""], ["", "", ""]]


def test_a_row_of_another_width_is_a_defect():
    with pytest.raises(AssertionError):
        Table("t", "t", [Column("a")], [[Value(1), Value(2)]])
