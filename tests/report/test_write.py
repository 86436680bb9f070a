"""One report written as HTML, Markdown, CSV, JSON and figures."""

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from jpeft.errors import RunFailed, UserError
from jpeft.report import csvs, document, figures, markdown, page, plain
from jpeft.report.findings import Finding
from jpeft.report.groups import group
from jpeft.report.records import load
from jpeft.report.table import Column, Table, Value
from jpeft.report.write import to_json, write
from tests.report.synthetic import custom, record, write_grid, write_run


class Page(HTMLParser):
    """A parsed page: tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside[-1:]):
            self.text += data


@pytest.fixture(scope="module")
def report(grid, tmp_path_factory):
    """The directory of the written report on the grid."""
    results, problems = load([grid])
    groups = group(results)
    directory = tmp_path_factory.mktemp("report")
    write(document.of_runs(groups, problems), directory, groups)
    return directory


def test_every_file_is_there_and_listed(report):
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    assert names == set(json.loads((report / "report.json").read_text())["files"])
    for name in ("performance", "ablations", "figure-1-run-time", "pareto-seconds", "pareto-parameters"):
        assert {f"figures/{name}.png", f"figures/{name}.svg"} <= names
    assert {f"csv/table-{number}.csv" for number in range(1, 7)} | {"csv/speed-ups.csv", "csv/times.csv"} <= names
    assert (report / "figures/performance.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_asks_for_nothing_outside_itself(report):
    found = Page((report / "index.html").read_text())
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "img")
    assert "@import" not in (report / "index.html").read_text()


def test_every_link_of_the_page_leads_somewhere_and_no_id_stands_twice(report):
    found = Page((report / "index.html").read_text())
    ids = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = {link[1:] for _, attributes in found.tags if (link := attributes.get("href")) and len(link) > 1}
    targets |= {link[1:] for _, attributes in found.tags if (link := attributes.get("xlink:href"))}
    assert targets <= set(ids)


def test_page_and_markdown_show_the_same_numbers(report):
    shown = Page((report / "index.html").read_text()).text
    text = (report / "report.md").read_text()
    table = json.loads((report / "report.json").read_text())["sections"][0]["tables"][0]
    for row in table["rows"][1:]:
        for value in row[1:]:
            assert f"{value['value']:.4f}" in shown and f"{value['value']:.4f}" in text
            assert f"paper {value['published']:.4f}" in shown and f"paper {value['published']:.4f}" in text


def test_figures_in_the_page_take_the_pages_colours(report):
    svg = re.findall(r"<svg.*?</svg>", (report / "index.html").read_text(), flags=re.DOTALL)
    assert len(svg) == 7
    assert all("var(--lora)" in one or "var(--muted)" in one for one in svg)
    assert not re.search(r"#(?:2563eb|1f2328|ffffff)", "".join(svg))
    assert "#2563eb" in (report / "figures/performance.svg").read_text()  # independent of the page's styles


def test_a_name_is_shown_as_it_is_and_is_no_markup(tmp_path):
    name = "<script>alert(1)</script>|[x](javascript:y)*$a_b$"
    write_run(tmp_path / "a", record(model=name, source="<b>s"))
    (tmp_path / "<i>bad").mkdir()
    (tmp_path / "<i>bad/result.json").write_text("{")
    results, problems = load([tmp_path])
    groups = group(results)
    write(document.of_runs(groups, problems), tmp_path / "out", groups)
    html = (tmp_path / "out/index.html").read_text()
    found = Page(html)
    assert sum(tag == "script" for tag, _ in found.tags) == 1 and not {"b", "i"} & {tag for tag, _ in found.tags}
    assert "<script>alert(1)</script>|[x](javascript:y)" in found.text
    text = (tmp_path / "out/report.md").read_text()
    assert "<script>" not in text and "<b>" not in text and not re.search(r"(?<!\\)\]\(javascript", text)
    assert "$a_b$" in (tmp_path / "out/figures/performance.svg").read_text()


@pytest.mark.parametrize("verdict", ["mixed", "within the spread", "holds"])
def test_any_verdict_for_the_papers_own_tables_reads_as_a_sentence(verdict):
    evidence = Table("finding-best", "Which is best", [Column("Task")], [])
    finding = Finding("best", "None is best", "holds", "All.", f"{verdict}. 2 of 4.", evidence)
    made = document.Document("title", [], [document.Section("one", "One", findings=[finding])])
    assert f"In the paper's own tables: {verdict}. 2 of 4." in markdown.render(made, {})
    assert f"In the paper's own tables: {verdict}. 2 of 4." in Page(page.render(made, {})).text


@pytest.mark.slow
def test_generated_data_is_labelled_everywhere(tmp_path):
    write_grid(tmp_path / "runs", only=60, source="sample")
    groups = group(load([tmp_path / "runs"])[0])
    made = document.of_runs(groups, [])
    write(made, tmp_path / "out", groups)
    (section,) = made.sections
    assert "generated data" in section.heading
    for table in [*section.tables(), *(finding.evidence for finding in section.findings)]:
        assert "generated data" in table.title and not any(value.published for row in table.rows for value in row)
    for figure in section.figures():
        assert "generated data" in figure.caption
        assert "generated data" in (tmp_path / f"out/figures/{figure.name}.svg").read_text()
    assert not any(finding.of_paper for finding in section.findings)
    assert "the paper 0" not in (tmp_path / "out/report.md").read_text()


@pytest.fixture
def undrawn(monkeypatch):
    """Replace figures by empty files, for tests of files and text."""
    empty = figures.Drawn(b"png", b"<svg></svg>", "<svg></svg>")
    monkeypatch.setattr(figures, "render", lambda figure: empty)


def test_groups_have_sections_and_files_of_their_own(undrawn, tmp_path):
    for index, (model, source) in enumerate([("mini", "local"), ("mini", "sample"), ("Mini!", "local")]):
        write_run(tmp_path / "runs" / str(index), record(model=model, source=source))
    groups = group(load([tmp_path / "runs"])[0])
    write(document.of_runs(groups, []), tmp_path / "out", groups)
    names = {path.name for path in (tmp_path / "out/csv").iterdir()}
    assert names == {"mini-local", "mini-local-2", "mini-sample"}
    ids = [attributes.get("id") for _, attributes in Page((tmp_path / "out/index.html").read_text()).tags]
    assert names <= set(ids)


def test_what_an_earlier_report_left_is_removed_and_nothing_else(undrawn, tmp_path):
    (tmp_path / "out/csv").mkdir(parents=True)
    (tmp_path / "out/csv/mine.csv").write_text("mine")
    write_run(tmp_path / "a", record())
    groups = group(load([tmp_path / "a"])[0])
    write(document.of_runs(groups, []), tmp_path / "out", groups)
    assert (tmp_path / "out/figures/performance.png").exists()
    write(document.of_paper(), tmp_path / "out")
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert "csv/paper-table-5.csv" in left and "csv/mine.csv" in left
    assert not {"figures/performance.png", "csv/table-1.csv"} & left


def test_files_that_no_report_wrote_are_not_written_over(undrawn, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    for index in (None, '{"mine": 1}', "no JSON", '{"files": ["report.md"]}'):
        if index is not None:
            (tmp_path / "report.json").write_text(index)
        with pytest.raises(UserError, match="has .*index.html.*, which by its report.json no report wrote"):
            write(document.of_paper(), tmp_path)
        assert (tmp_path / "index.html").read_text() == "mine"


def test_without_matplotlib_the_rest_is_written_and_it_is_said(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name == "jpeft.report.figures" or name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr("jpeft.report.figures", raising=False)
    write_run(tmp_path / "a", record())
    groups = group(load([tmp_path / "a"])[0])
    files, without = write(document.of_runs(groups, []), tmp_path / "out", groups)
    assert without and "matplotlib is not installed" in without and "\n" not in without
    assert "matplotlib is not installed" in (tmp_path / "out/index.html").read_text()
    assert not any(path.suffix == ".png" for path in files) and (tmp_path / "out/csv/table-1.csv").exists()


@pytest.mark.slow
def test_the_same_results_give_the_same_files(grid, report, tmp_path):
    results, problems = load([grid])
    groups = group(list(reversed(results)))
    write(document.of_runs(groups, problems), tmp_path, groups)
    for name in json.loads((report / "report.json").read_text())["files"]:
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


def test_csv_has_plain_numbers_and_the_papers_in_columns_of_their_own(report):
    rows = list(csv.DictReader(io.StringIO((report / "csv/table-1.csv").read_text())))
    assert rows[1]["PEFT/Dataset"] == "Full Tuning (low)"
    assert float(rows[1]["AG News, paper"]) == 0.8588 and float(rows[1]["AG News, sd"]) > 0
    difference = float(rows[1]["AG News"]) - 0.8588
    assert float(rows[1]["AG News, difference"]) == pytest.approx(difference)
    assert rows[0]["AG News, paper"] == ""


def test_csv_runs_no_formula_of_a_name():
    table = Table("t", "t", [Column("a"), Column("b", "metric")], [[Value("=HYPERLINK(1)"), Value(-0.5)]])
    assert csvs.render(table).splitlines()[1] == "'=HYPERLINK(1),-0.5"


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@sum", "\t=1"])
def test_csv_runs_no_formula_of_a_metric(name):
    table = Table("t", "t", [Column(name, "metric")], [[Value(0.5, sd=0.1, count=2, published=0.25)]])
    (heads, _) = csv.reader(io.StringIO(csvs.render(table)))
    assert heads == [f"'{name}{of}" for of in ("", ", sd", ", seeds", ", paper", ", difference")]


def test_missing_is_said_in_every_format():
    table = Table("t", "Title", [Column("a"), Column("b", "metric")], [[Value("x"), Value(None, published=0.5)]])
    section = document.Section("s", "heading", parts=[("part", [table])])
    made = document.Document("title", [], [section])
    assert "| x | missing (paper 0.5000) |" in markdown.render(made, {})
    assert "missing" in Page(page.render(made, {})).text
    assert plain.of_table(table)["rows"] == [["x", {"value": None, "published": 0.5, "difference": None}]]
    assert csvs.render(table).splitlines()[1] == "x,,0.5,"


def test_json_holds_every_cell_with_its_seeds(report):
    data = json.loads((report / "report.json").read_text())
    cells = data["groups"][0]["cells"]
    assert len(cells) == 104
    one = next(c for c in cells if (c["method"], c["task"], c["scale"], c["ablation"]) == ("ia3", "cola", "low", None))
    assert one["seeds"] == [0, 1] and one["metric"]["low"] <= one["metric"]["mean"] <= one["metric"]["high"]


def test_a_directory_that_can_not_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write(document.of_paper(), tmp_path / "file")
    with pytest.raises(RunFailed, match="cannot be written"):
        write(document.of_paper(), tmp_path / "file" / "inner")


def test_the_paper_as_a_report(tmp_path):
    write(document.of_paper(), tmp_path)
    assert "46 of 48 entries agree" in Page((tmp_path / "index.html").read_text()).text
    assert "**disagrees**" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["sections"][0]["facts"]


def test_a_number_that_is_not_finite_never_reaches_the_json():
    with pytest.raises(ValueError, match="Out of range"):
        to_json({"metric": float("nan")})


@pytest.mark.slow
def test_many_results(tmp_path):
    written = write_grid(tmp_path / "runs", seeds=5, only=500, curve=False)
    results, problems = load([tmp_path / "runs"])
    groups = group(results)
    files, without = write(document.of_runs(groups, problems), tmp_path / "out", groups)
    assert (written, len(results), problems, without) == (500, 500, [], None)
    assert "500 results in 1 group" in Page(files[0].read_text()).text


def test_a_report_of_ones_own_rows_leads_with_what_was_run_and_says_nothing_of_the_paper(tmp_path):
    for index in range(18):
        digest = {"data_digest": f"{index:07d}" + "a" * 57, "path": f"/rows/topic{index}.csv"}
        custom(tmp_path / "runs", str(index), metric=0.5 + index / 100, curve=index < 3, **digest)
    results, problems = load([tmp_path / "runs"])
    groups = group(results)
    made = document.of_runs(groups, problems)
    (section,) = made.sections
    assert section.heading == "mini, rows of your own" and not section.findings and not section.remarks
    assert [heading for heading, _ in section.parts] == ["What was run", "More of it"]
    first = section.tables()[0]
    assert first.name == "own-results" and len(first.rows) == 18
    assert ("results", "18 results in 18 cells, seed 0") in section.facts
    shown = Page(page.render(made, {})).text
    assert "cannot be said" not in shown and "missing" not in shown and "paper" not in shown
    assert "topic7.csv 0000007" in shown and "18 results in 1 group" in shown
    assert "missing" not in markdown.render(made, {})
    data = plain.of_document(made, groups)
    assert len({cell["data"] for cell in data["groups"][0]["cells"]}) == 18 and not data["left_out"]


def test_rows_of_ones_own_have_a_panel_each(tmp_path):
    for index in range(4):
        digest = {"data_digest": f"{index:07d}" + "a" * 57, "path": f"/rows/topic{index}.csv"}
        custom(tmp_path / "runs", str(index), curve=True, **digest)
    groups = group(load([tmp_path / "runs"])[0])
    write(document.of_runs(groups, []), tmp_path / "out", groups)
    # one method each: nothing to compare
    assert {path.stem for path in (tmp_path / "out/figures").iterdir()} == {"validation-curves", "training-curves"}
    drawn = (tmp_path / "out/figures/training-curves.svg").read_text()
    assert all(f"topic{index}.csv {index:07d}" in drawn for index in range(4)) and "missing" not in drawn


def test_of_a_few_cells_of_the_paper_only_what_they_speak_of_is_shown(tmp_path):
    write_run(tmp_path / "a", record("lora", "agnews", "low"))
    write_run(tmp_path / "b", record("full", "agnews", "low"))
    custom(tmp_path, "c", data_digest="c" * 64)
    made = document.of_runs(group(load([tmp_path])[0]), [])
    (section,) = made.sections
    assert [heading for heading, _ in section.parts] == [
        "What was run",
        "What the paper prints",
        "What the paper lacks",
    ]
    assert section.parts_and_findings()[1] is None  # the findings follow the results
    assert [finding.name for finding in section.findings] == ["convergence"]
    assert "Findings of the paper of which no cell was run: For (IA)³ later layers" in section.remarks[0]
    table = next(table for table in section.tables() if table.name == "table-1")
    assert len(table.rows) == 3 and len(table.columns) == 2 and not table.missing


def test_a_run_whose_directory_has_a_name_that_is_not_utf_8_is_reported(undrawn, tmp_path):
    write_run(tmp_path / "runs/a\udcff", record())
    results, problems = load([tmp_path / "runs"])
    groups = group(results)
    write(document.of_runs(groups, problems), tmp_path / "out", groups)
    written = json.dumps(json.loads((tmp_path / "out/report.json").read_text()))
    assert "runs/a\\udcff/result.json" in written
