"""Identifies the rows of a run by their content, not by their path, and records them in `splits.json`."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.data.batches import Tokens
from jpeft.data.mixture import paths_of
from jpeft.data.sources import load_sources, rows_digest, together
from jpeft.data.tasks import Task

_digests: dict[Hashable, str] = {}  # a cache: every cell of a grid asks for the same rows


def digest_now(task: Task, source: str, path: str | None, mix: str | None = None, *, sample_seed: int = 0) -> str:
    """Returns the `rows_digest` of the rows that a run of this task would read now.

    Cached within the process for files whose status is unchanged.

    Raises:
      UserError, RunFailed: see `load_rows`.
    """
    # Whether files are mixed decides if row ids begin with file names; the rates do not matter.
    key = (repr(task), source, path, mix is None, sample_seed, signature(path, mix))
    if key not in _digests:
        _digests[key] = rows_digest(together(load_sources(task, source, path, mix, sample_seed=sample_seed)))
    return _digests[key]


def signature(path: str | None, mix: str | None = None) -> Hashable:
    """Returns the status (size, times, inode) of the files at a path, to detect changes; None without files."""
    if path is None:
        return None
    if mix is not None:
        return tuple(signature(each) for each in paths_of(path, mix))
    place = Path(path).expanduser()
    try:
        files = [place] if place.is_file() else sorted([*place.glob("*"), *place.glob("*/*")])
        # A copy can keep the size and mtime of the file that it replaces, but not its inode and ctime.
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
    """Returns the content of `splits.json`.

    Args:
      row_ids, tokens: by split.
      digest: `rows_digest` of all rows.
      origins: fingerprints, by config key, of the other files that were read, such as those of the base.
    """
    return {
        "data_digest": digest,
        "origins": dict(origins),
        "rows": dict(row_ids),
        "cut": {name: {"inputs": part.cut_inputs, "targets": part.cut_targets} for name, part in tokens.items()},
        "shapes": [list(shape) for shape in shapes],
    }
