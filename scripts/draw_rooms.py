"""Draw the dependencies between the packages ("rooms") of jpeft/ from their imports, as docs/rooms.svg.

python scripts/draw_rooms.py            writes docs/rooms.svg; fails if the imports have a cycle
python scripts/draw_rooms.py --check    writes nothing; exit status 1 if the file is out of date or there is a cycle
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "rooms.svg"  # shown in docs/design.md
# Top-level modules that are rooms of their own; all others form the room `ground`.
_OWN = ("config", "results", "api")

Imports = dict[str, dict[str, set[str]]]  # {room: {imported room: files with such an import}}


def room_of(module: str) -> str | None:
    """The room of a module: its package, its own name, or `ground`; None for `jpeft` itself and other packages."""
    parts = module.split(".")
    if parts[0] != "jpeft" or len(parts) == 1:
        return None
    if (ROOT / "jpeft" / parts[1]).is_dir():
        return parts[1]
    return parts[1] if parts[1] in _OWN else "ground"


def imports(package: Path = ROOT / "jpeft") -> Imports:
    """The imports between rooms. Imports for type checking count: a reader depends on them, too."""
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
    """The level of each room in the drawing: one above the highest room that it imports, 0 if it imports none.

    Raises:
      ValueError: rooms import each other in a cycle; the message names them.
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
    """The drawing as SVG: one row per level, and a line for each dependency that no other dependency implies."""
    level = levels(found)
    below = {room: set(others) for room, others in found.items()}

    def through(room: str) -> set[str]:
        return set().union(*(below[other] | through(other) for other in below[room]))

    direct = {room: sorted(below[room] - through(room)) for room in found}
    rows = [sorted(room for room in found if level[room] == height) for height in range(max(level.values()) + 1)]
    rows = _with_few_crossings(rows, direct)
    width, height = _STEP_X * max(map(len, rows)), _STEP_Y * len(rows)
    at = {
        room: (width / 2 + (i - (len(row) - 1) / 2) * _STEP_X, height - (n + 0.5) * _STEP_Y)
        for n, row in enumerate(rows)
        for i, room in enumerate(row)
    }
    lines = [
        f'<path d="M{x:g} {y + _BOX_Y / 2:g} C{x:g} {y + 50:g} {to_x:g} {to_y - 50:g} {to_x:g} {to_y - _BOX_Y / 2:g}"/>'
        for room in sorted(found)
        for (x, y), (to_x, to_y) in ((at[room], at[other]) for other in direct[room])
    ]
    boxes = [
        f'<rect x="{x - _BOX_X / 2:g}" y="{y - _BOX_Y / 2:g}" width="{_BOX_X}" height="{_BOX_Y}" rx="6"/>'
        f'<text x="{x:g}" y="{y + 5:g}">{room}</text>'
        for room, (x, y) in sorted(at.items())
    ]
    style = (
        "path{fill:none;stroke:#8a94a6;stroke-width:1.3}rect{fill:#eef3fb;stroke:#3b5b92;stroke-width:1.3}"
        "text{font:15px sans-serif;text-anchor:middle;fill:#16233a}.ground{fill:#fff}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    page = f'<rect class="ground" x="0" y="0" width="{width}" height="{height}" style="stroke:none"/>'
    return "\n".join([head, f"<style>{style}</style>", page, *lines, *boxes, "</svg>", ""])


_STEP_X, _STEP_Y, _BOX_X, _BOX_Y = 150, 78, 112, 34


def _with_few_crossings(rows: list[list[str]], direct: Mapping[str, list[str]]) -> list[list[str]]:
    """Order each row by the mean position of its rooms' neighbours, in a few alternating passes (barycentre method)."""
    place = {room: (i - (len(row) - 1) / 2) for row in rows for i, room in enumerate(row)}
    above: dict[str, list[str]] = {}
    for room, others in direct.items():
        for other in others:
            above.setdefault(other, []).append(room)
    for neighbours in (direct, above) * 3:
        for row in rows:
            means = {}
            for room in row:
                near = [place[other] for other in neighbours.get(room, [])]
                means[room] = sum(near) / len(near) if near else place[room]
            row.sort(key=lambda room, means=means: (means[room], room))
            place |= {room: i - (len(row) - 1) / 2 for i, room in enumerate(row)}
    return rows


def main() -> int:
    """Write the drawing, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if docs/rooms.svg is out of date"
    )
    check = parser.parse_args().check
    try:
        picture = drawn(imports())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if check:
        is_so = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == picture
        print("as the imports say" if is_so else f"{PICTURE} is not what the imports say; run scripts/draw_rooms.py")
        return int(not is_so)
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
