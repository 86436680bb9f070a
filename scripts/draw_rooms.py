"""Draws the rooms of jpeft/ from the imports: who stands on whom, checked for circles and written to docs/design.md.

python scripts/draw_rooms.py            draws anew
python scripts/draw_rooms.py --check    exit status 1 where the page is not what the imports say, or there is a circle
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- rooms: drawn by scripts/draw_rooms.py -->", "<!-- end of rooms -->"
# Files at the top of the package that are rooms of their own; the others are ground.
_OWN = ("config", "results", "api")

Imports = dict[str, dict[str, set[str]]]  # room to the rooms that it imports, and which files do


def room_of(module: str) -> str | None:
    """The room that a module of the package is in: its folder, `ground`, or its own name."""
    parts = module.split(".")
    if parts[0] != "jpeft" or len(parts) == 1:
        return None
    if (ROOT / "jpeft" / parts[1]).is_dir():
        return parts[1]
    return parts[1] if parts[1] in _OWN else "ground"


def imports(package: Path = ROOT / "jpeft") -> Imports:
    """Which room imports which. Imports for types alone count too: whoever reads must know both."""
    found: Imports = {}
    for file in sorted(package.rglob("*.py")):
        relative = file.relative_to(package.parent).with_suffix("")
        here = room_of(".".join(relative.parts))
        if here is None or relative.name == "__init__" and len(relative.parts) == 2:
            continue
        for module in _imported(ast.parse(file.read_text(encoding="utf-8"))):
            there = room_of(module)
            if there is not None and there != here:
                found.setdefault(here, {}).setdefault(there, set()).add(str(file.relative_to(package.parent)))
        found.setdefault(here, {})
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def levels(found: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """How high each room stands: above all that it imports.

    Raises:
      ValueError: some stand on each other; says which.
    """
    level: dict[str, int] = {}
    while len(level) < len(found):
        ready = [room for room in found if room not in level and all(other in level for other in found[room])]
        if not ready:
            left = sorted(set(found) - set(level))
            circle = {room: sorted(set(found[room]) & set(left)) for room in left}
            raise ValueError(f"these rooms stand on each other: {circle}")
        for room in ready:
            level[room] = 1 + max((level[other] for other in found[room]), default=-1)
    return level


def drawn(found: Imports) -> str:
    """The picture as Mermaid, an arrow from each room to those that it stands on and not through another."""
    level = levels(found)
    below = {room: set(others) for room, others in found.items()}

    def through(room: str) -> set[str]:
        return set().union(*(below[other] | through(other) for other in below[room]))

    lines = ["```mermaid", "flowchart TD"]
    for height in sorted(set(level.values()), reverse=True):
        rooms = " ".join(f"{room}[{room}]" for room in sorted(level) if level[room] == height)
        lines.append(
            f"  subgraph level{height}[ ]\n    direction LR\n    {rooms.replace(' ', chr(10) + '    ')}\n  end"
        )
    for room in sorted(found, key=lambda room: (-level[room], room)):
        direct = below[room] - through(room)
        lines += [f"  {room} --> {other}" for other in sorted(direct, key=lambda other: (-level[other], other))]
    return "\n".join([*lines, "```"])


def main() -> int:
    """Draws, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where the page is not so")
    check = parser.parse_args().check
    try:
        picture = drawn(imports())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{PAGE} has no place for the picture: {BEGIN} ... {END}", file=sys.stderr)
        return 1
    new = f"{before}{BEGIN}\n\n{picture}\n\n{END}{after}"
    if check:
        print("as the imports say" if new == page else f"{PAGE} is not what the imports say; run scripts/draw_rooms.py")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
