"""`scripts/accelerator_table.py`: what it is asked to plan is what it plans."""

import pytest

from tests.script import imported


@pytest.fixture(scope="module")
def script():
    with imported("accelerator_table") as module:
        yield module


@pytest.fixture
def planned(script, tmp_path, monkeypatch):
    """Run the script without planning and with a page of its own; returns the rows that it would have planned."""

    class NoCompiler:
        def __init__(self, device):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    (tmp_path / "page.md").write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    monkeypatch.setattr(script, "ROWS", tmp_path / "rows")
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(script, "Remote", NoCompiler)

    def run(*arguments: str):
        rows = []
        monkeypatch.setattr(script, "plan_row", lambda row, _: rows.append(row) or {"fits": False, "why": "none"})
        assert script.main(arguments) == 0
        return rows

    return run


def test_devices_and_methods_choose_the_rows_that_are_planned(planned, tmp_path):
    some = planned("--only", "H100,v5p", "--methods", "lora")
    assert {(row.device, row.method) for row in some} == {("H100", "lora"), ("v5p", "lora")}
    assert "does not fit" in (tmp_path / "page.md").read_text()
    others = planned()  # all that is missing
    assert {row.device for row in others} > {"A10", "H100"}
    assert not {row.file for row in some} & {row.file for row in others}
    assert planned("--write") == planned() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "A11"], "--only has 'A11'; expected some of A10, "),
        (["--only", ""], "--only has ''; expected some of A10, "),
        (["--methods", "lor,lora"], "--methods has 'lor'; expected some of lora, "),
        (["--write", "--only", "A10"], "--only says what to plan, and --write plans nothing"),
        (["--write", "--methods", "lora"], "--methods says what to plan, and --write plans nothing"),
    ],
)
def test_a_wrong_call_writes_no_page(arguments, says, planned, tmp_path, capsys):
    before = (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit):
        planned(*arguments)
    assert says in capsys.readouterr().err and (tmp_path / "page.md").read_text() == before
