"""The paper's tables from results, worked by hand where they are derived."""

import dataclasses

import pytest

from jpeft.report import tables
from jpeft.report.groups import Group, Key, Spread, group, published_group
from jpeft.report.names import PEFT, TASKS
from jpeft.report.records import load
from jpeft.report.table import Column, Table, Value, mark_best, show
from tests.report.synthetic import record, write_run


def entry(table: Table, row: str, column: str) -> Value:
    (found,) = [values for values in table.rows if values[0].value == row]
    return found[[column_.full_name for column_ in table.columns].index(column)]


def seconds(total: float) -> dict[str, float]:
    return {"total": total, "train": total, "validation": 0.0, "test": 0.0, "compile": 0.0}


@pytest.fixture
def few(tmp_path) -> Group:
    """CoLA at low scale, all methods, with seconds and parameters that are easy to divide by; no SAMSum."""
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
    for table in tables.paper_tables(few):
        for row in table.rows:
            value = row[-1] if table.name != "table-3" else Value(None)
            assert value.value is None and "missing" in show(value, "metric").line(), table.name


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
    low = [tables.relative_time(published_group(), method, task, "low") for method in PEFT for task in TASKS]
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
        assert not table.has_published and "generated data" in table.title


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
    made = {**record(), "task": "custom", "scale": "all", "method": "adapterfish"}
    write_run(tmp_path, made)
    (only,) = group(load([tmp_path])[0])
    assert Key("adapterfish", "custom", "all") in only.cells
    (row,) = tables.all_cells(only).rows
    assert [value.value for value in row[:4]] == ["adapterfish", "", "custom", "all"]
    assert tables.table_1(only).missing == 16 * 4


@pytest.mark.parametrize(
    ("number", "style", "text"),
    [
        (0.67816, "metric", "0.6782"),
        (-0.11882, "signed", "−0.1188"),
        (0.000327, "percent", "0.0327 %"),
        (3_538_944, "count", "3,538,944"),
        (3.5, "count", "3.5"),
        (37_575_360, "bytes", "37.6 MB"),
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
