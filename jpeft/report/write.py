"""Writes a report to a directory; each file is written whole or not at all."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object, write_whole
from jpeft.report import csvs, markdown, page, plain
from jpeft.report.document import Document
from jpeft.report.groups import Group

_INDEX = "report.json"


def write(document: Document, directory: Path, groups: Sequence[Group] = ()) -> tuple[list[Path], str | None]:
    """Writes `index.html`, `report.md`, `report.json`, `csv/` and `figures/`, and removes files of an earlier report.

    Returns:
      The files, the page first; and a line on what could not be made and why, or None.

    Raises:
      UserError: `directory` is a file, or holds a file of the same name that no report wrote.
      RunFailed: the directory cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory} is a file; name a directory.")
    texts: dict[str, str | bytes] = {}
    svgs: dict[tuple[str, str], str] = {}
    figure_files: dict[tuple[str, str], str] = {}
    without = None
    try:
        from jpeft.report import figures
    except ImportError:
        figures = None
    several = len(document.sections) > 1
    for section in document.sections:
        inner = f"{section.name}/" if several else ""
        for table in [*section.tables(), *(finding.evidence for finding in section.findings)]:
            texts[f"csv/{inner}{table.name}.csv"] = csvs.render(table)
        for figure in section.figures():
            if figures is None:
                without = "no figures: matplotlib is not installed (pip install 'jpeft[plots]')"
                continue
            drawn = figures.render(figure)
            svgs[section.name, figure.name] = drawn.inline_svg
            figure_files[section.name, figure.name] = f"figures/{inner}{figure.name}.png"
            texts[f"figures/{inner}{figure.name}.png"] = drawn.png
            texts[f"figures/{inner}{figure.name}.svg"] = drawn.svg
    texts = {
        "index.html": page.render(document, svgs, without=without),
        "report.md": markdown.render(document, figure_files),
        **texts,
    }
    data = plain.of_document(document, list(groups))
    texts[_INDEX] = to_json({**data, "files": [*texts, _INDEX]})
    _require_no_others(directory, texts)
    try:
        _remove_earlier(directory, keep=set(texts))
        # The index first: if this is killed, the files that follow are known to be a report's.
        for name in sorted(texts, key=lambda name: name != _INDEX):
            _write(directory / name, texts[name])
    except OSError as error:
        raise RunFailed(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return [directory / name for name in texts], without


def to_json(value: Any) -> str:
    """JSON with one line per key, except for the innermost objects."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _require_no_others(directory: Path, names: Iterable[str]) -> None:
    """Raises `UserError` if files of these names exist that no report is known to have written."""
    ours = _written_before(directory)
    others = [name for name in names if name not in ours and (directory / name).exists()]
    if others:
        raise UserError(
            f"--out {directory} has {', '.join(others[:3])}, which by its {_INDEX} no report wrote; name another "
            "directory."
        )


def _written_before(directory: Path) -> set[str]:
    """The files of an earlier report in this directory, from its index."""
    try:
        files = read_json_object(directory / _INDEX).get("files")
    except UserError:
        return set()
    return {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()


def _remove_earlier(directory: Path, keep: set[str]) -> None:
    """Removes files of an earlier report that this one does not have, since they would seem to belong to it."""
    for name in _written_before(directory) - keep:
        path = Path(name)
        ours = path.suffix in (".csv", ".png", ".svg") and path.parts[:1] in (("csv",), ("figures",))
        if ours and ".." not in path.parts:
            (directory / path).unlink(missing_ok=True)


def _write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as beside:
        # A report's index may name any directory.
        beside.write_bytes(text if isinstance(text, bytes) else text.encode(errors="backslashreplace"))
