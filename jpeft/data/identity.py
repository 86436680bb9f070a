"""Whether the rows of a run are those of another: known by content, not by where they lie."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.data.batches import Tokens
from jpeft.data.mixture import paths_of
from jpeft.data.sources import load_sources, rows_digest, together
from jpeft.data.tasks import Task

_known: dict[Hashable, str] = {}  # a grid asks for the same rows once a cell


def digest_now(task: Task, source: str, path: str | None, mix: str | None = None, *, sample_seed: int = 0) -> str:
    """`rows_digest` of what a run of this task would read now. Files that look unchanged are read once a process.

    Raises:
      UserError, RunFailed: as `load_rows`.
    """
    # The names that several files have in row ids depend on how many there are, not on the rates.
    key = (repr(task), source, path, mix is None, sample_seed, signature(path, mix))
    if key not in _known:
        _known[key] = rows_digest(together(load_sources(task, source, path, mix, sample_seed=sample_seed)))
    return _known[key]


def signature(path: str | None, mix: str | None = None) -> Hashable:
    """Sizes and times of the files at a path of rows, which change when one is edited; None where there are none."""
    if path is None:
        return None
    if mix is not None:
        return tuple(signature(each) for each in paths_of(path, mix))
    place = Path(path).expanduser()
    try:
        files = [place] if place.is_file() else sorted([*place.glob("*"), *place.glob("*/*")])
        # A copy may have the size and the time of writing of what it replaces, not its number and time of change.
        return tuple(
            (str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            for file in files
            if (status := file.stat())
        )
    except OSError:
        return None


def data_record(
    row_ids: Mapping[str, list[str]],
    tokens: Mapping[str, Tokens],
    shapes: Sequence[Any],
    digest: str,
    origins: Mapping[str, str],
) -> dict[str, Any]:
    """`splits.json`: `rows_digest` of all rows, row ids of every split, what was cut, the padded shapes.

    Args:
      origins: fingerprints of what else was read, the base among it.
    """
    return {
        "data_digest": digest,
        "origins": dict(origins),
        "rows": dict(row_ids),
        "cut": {name: {"inputs": part.cut_inputs, "targets": part.cut_targets} for name, part in tokens.items()},
        "shapes": [list(shape) for shape in shapes],
    }
