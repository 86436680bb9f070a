"""A report as files in a directory, each whole or not there."""

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
    """Writes `index.html`, `report.md`, `report.json`, `csv/` and `figures/`; what an earlier report left there goes.

    Returns:
      The files, the page first, and a line that says what is not there and why, or None.

    Raises:
      UserError: `directory` is a file, or a file that no report wrote stands where this one's would.
      RunFailed: it cannot be written to.
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
        # The index first: what comes after it is known as a report's, should this be killed.
        for name in sorted(texts, key=lambda name: name != _INDEX):
            _write(directory / name, texts[name])
    except OSError as error:
        raise RunFailed(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return [directory / name for name in texts], without


def to_json(value: Any) -> str:
    """JSON with a line for each key but the innermost."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _require_no_others(directory: Path, names: Iterable[str]) -> None:
    """Raises `UserError`: files of these names are there, and nothing says that a report wrote them."""
    ours = _written_before(directory)
    others = [name for name in names if name not in ours and (directory / name).exists()]
    if others:
        raise UserError(
            f"--out {directory} has {', '.join(others[:3])}, of which no {_INDEX} says that a report wrote it; name "
            "another directory."
        )


def _written_before(directory: Path) -> set[str]:
    """What a report that was written here before says that it wrote."""
    try:
        files = read_json_object(directory / _INDEX).get("files")
    except UserError:
        return set()
    return {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()


def _remove_earlier(directory: Path, keep: set[str]) -> None:
    """Removes what a report wrote here before and this one does not: it would be read as a part of this one."""
    for name in _written_before(directory) - keep:
        path = Path(name)
        ours = path.suffix in (".csv", ".png", ".svg") and path.parts[:1] in (("csv",), ("figures",))
        if ours and ".." not in path.parts:
            (directory / path).unlink(missing_ok=True)


def _write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as beside:
        # A directory that is named in a report may have any name.
        beside.write_bytes(text if isinstance(text, bytes) else text.encode(errors="backslashreplace"))
