"""What the README and the other pages point at is there: files and places in them, commands, configs."""

import functools
import re
from pathlib import Path

import pytest

from jpeft.cli import _COMMANDS, build_parser
from jpeft.cli.config_flags import own_flags
from jpeft.cli.run import _SHORT
from jpeft.config import Run
from jpeft.configs import find
from jpeft.errors import UserError
from jpeft.pretrain.config import Pretraining
from jpeft.typed_config import keys_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
LINKING = [*PAGES, *(ROOT / name for name in BESIDE), *sorted((ROOT / "docs/results").rglob("*.md"))]


def _text(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def _anchors(page: Path) -> set[str]:
    """What a link to a heading of a page ends with, as GitHub makes it."""
    names: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", _text(page), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w -]", "", text).replace(" ", "-")
        seen = sum(re.fullmatch(re.escape(name) + r"(-\d+)?", other) is not None for other in names)
        names.append(f"{name}-{seen}" if seen else name)
    return set(names)


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_to_headings_in_them(page):
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", _text(page)):
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not there.exists() or anchor and there.suffix == ".md" and anchor not in _anchors(there):
            missing.append(link)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_that_are_named_are_there(page):
    keys = {*keys_of(Run), *keys_of(Pretraining)}
    sections = {key.rpartition(".")[0] for key in keys} | {"data.sources"}
    named = re.findall(r"--config\.([a-z_]+\.[a-z_.]*[a-z_])", page.read_text())
    assert [key for key in named if key not in keys | sections and not key.startswith("data.sources.")] == []


@functools.cache
def _flags() -> dict[str, set[str]]:
    """The flags of each command."""
    (commands,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    of_config = {"--config", "--help", *(f"--{flag}" for flag in own_flags())}
    flags = {name: {*parser._option_string_actions} for name, parser in commands.items()}
    return flags | {"train": of_config | {f"--{flag}" for flag in _SHORT}, "pretrain": of_config}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_that_are_written_out_are_flags_of_these(page):
    flags = _flags()
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    unknown = [
        f"{name} {flag}"
        for name, rest in re.findall(r"^ *(?:`)?jpeft ([a-z]+) ([^\n`]*)", text, flags=re.MULTILINE)
        for flag in re.findall(r"(?:^| )(--[a-z][a-z_-]*)(?![\w.-])", rest.partition(" # ")[0])
        if flag not in flags[name]
    ]
    assert unknown == []


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if page.name not in readme] == []
