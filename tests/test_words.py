"""One name for one thing, and English as it is written: what can be told of the words of the house by reading it."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "jpeft").rglob("*.py"))


def _defined(path: Path) -> set[str]:
    """Public classes and types that a module defines at its top level; constants and one-letter names are none."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return {name for name in names if re.fullmatch(r"[A-Z][A-Za-z]*[a-z][A-Za-z]*", name)}


def test_no_two_public_types_of_the_house_have_one_name():
    places = defaultdict(list)
    for path in SOURCES:
        for name in _defined(path):
            places[name].append(str(path.relative_to(ROOT)))
    assert len(places) > 200, "the scan finds the classes of the house"
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_cannot_is_one_word():
    texts = [*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.py")]
    written = re.compile(r"\bcan\s+not\b(?!\s+only)", re.IGNORECASE)
    assert [str(path) for path in texts if written.search(path.read_text())] == []


def test_every_public_function_and_class_has_a_docstring():
    without = []
    for path in SOURCES:
        module = ast.parse(path.read_text())
        for node in module.body:
            public = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                without.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert without == []
