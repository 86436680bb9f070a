"""The paper's derived tables, recomputed from its other tables."""

from decimal import Decimal

import pytest

from jpeft.report.consistency import Check, comparisons, disagreements, remarks, table


def test_how_many_entries_agree():
    assert {one.name: (one.agreeing, len(one.checks)) for one in comparisons()} == {
        "paper-table-5": (46, 48),
        "paper-table-6": (27, 32),
        "paper-speed-ups": (7, 8),
        "paper-table-2": (8, 8),
    }


def test_which_entries_disagree():
    off = {(one.name, check.label, check.task) for one in comparisons() for check in one.checks if not check.agrees}
    assert off == {
        ("paper-table-5", "BitFit (med.)", "e2e"),
        ("paper-table-5", "BitFit (high)", "samsum"),
        ("paper-table-6", "(IA)³ (low)", "agnews"),
        ("paper-table-6", "LoRA (low)", "agnews"),
        ("paper-table-6", "LoRA (low)", "cola"),
        ("paper-table-6", "Full Tuning (med.)", "agnews"),
        ("paper-table-6", "(IA)³ (med.)", "agnews"),
        ("paper-speed-ups", "speed-up (medium)", "samsum"),
    }


@pytest.mark.parametrize(
    ("printed", "recomputed", "agrees"),
    [("0.16", "0.169", True), ("0.17", "0.169", True), ("0.18", "0.169", False), ("3.01E-5", "0.0000301359", True)],
)
def test_an_entry_may_be_rounded_or_cut(printed, recomputed, agrees):
    assert Check("", "cola", Decimal(printed), Decimal(recomputed)).agrees == agrees


def test_the_table_marks_what_disagrees():
    marked = {one.name: sum(row[-1].tone == "bad" for row in table(one).rows) for one in comparisons()}
    assert marked == {"paper-table-5": 2, "paper-table-6": 5, "paper-speed-ups": 1, "paper-table-2": 0}


def test_what_disagrees_stands_together():
    rows = disagreements(comparisons()).rows
    assert len(rows) == 8
    assert [value.value for value in rows[-1][1:4]] == ["speed-up (medium)", "SAMSum", 0.64]


def test_section_3_2_forgets_ia3_on_cola():
    assert "(IA)³ on CoLA at medium scale (537 s against 608 s)" in remarks()[0]
