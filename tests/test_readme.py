"""What the README and the pages of `docs/` point at is there: files, commands, configs."""

import re
from pathlib import Path

import pytest

from jpeft.cli import _COMMANDS
from jpeft.configs import find
from jpeft.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_that_are_named_are_there(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for named in re.findall(r"--config[ =]([A-Za-z0-9_./:]+)", text):
        if named.startswith(("my_", "...")):  # a user's own
            continue
        try:
            find(named)
        except UserError as error:
            pytest.fail(str(error))


def test_the_commands_of_the_readme_are_commands():
    known = {command.__name__.rpartition(".")[2].removesuffix("_adapter") for command in _COMMANDS}
    named = re.findall(r"^jpeft ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert named and set(named) <= known
