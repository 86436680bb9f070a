"""The command `jpeft report`."""

import json
import subprocess
import sys

import pytest

from jpeft.cli import main
from tests.report.synthetic import record, write_run


def test_it_prints_tables_and_findings(grid, capsys):
    assert main(["report", str(grid)]) == 0
    shown = capsys.readouterr()
    assert "Table 6" in shown.out and "The paper's findings" in shown.out and not shown.err


def test_it_writes_and_says_what_to_open(tmp_path, capsys):
    write_run(tmp_path / "runs/a", record())
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/result.json").write_text('{"status": "do')
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert f"open {tmp_path / 'out/index.html'}" in shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith(f"left out: {tmp_path / 'runs/b/result.json'}: is not valid JSON")
    assert "runs/b/result.json" in (tmp_path / "out/index.html").read_text()
    assert "runs/b/result.json" in (tmp_path / "out/report.md").read_text()


def test_thousands_of_damaged_files_do_not_flood_the_terminal(tmp_path, capsys):
    for index in range(60):
        (tmp_path / f"{index}\n").mkdir()
        (tmp_path / f"{index}\n" / "result.json").write_text("")
    write_run(tmp_path / "good", record())
    assert main(["report", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 51 and shown.err.splitlines()[-1].startswith("left out: 10 more")
    assert len(json.loads(shown.out)["left_out"]) == 60


def test_json_alone_is_on_standard_output(tmp_path, capsys):
    write_run(tmp_path / "a", record(metric=0.5))
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["groups"][0]["cells"][0]["metric"]["mean"] == 0.5
    assert (tmp_path / "out/index.html").exists()


def test_the_paper_against_itself(capsys):
    assert main(["report", "--paper"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("46 of 48 entries agree", "27 of 32", "7 of 8", "disagrees"))
    assert main(["report", "--paper", "--json"]) == 0
    tables = {table["name"]: table for table in json.loads(capsys.readouterr().out)["sections"][0]["tables"]}
    assert len(tables["paper-table-5"]["rows"]) == 48 and len(tables["paper-disagreements"]["rows"]) == 8


@pytest.mark.parametrize("arguments", [[], ["--paper", "runs"], ["there/is/nothing"]])
def test_a_wrong_call(arguments, capsys):
    assert main(["report", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1


def test_results_none_of_which_can_be_used_are_a_failure(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: no result can be used: 1 file left out."


def test_jax_is_not_loaded(tmp_path):
    write_run(tmp_path / "a", record())
    program = (
        "import sys; from jpeft.cli import main; "
        f"status = main(['report', {str(tmp_path / 'a')!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "assert status == 0 and 'jax' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
