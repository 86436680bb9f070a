"""`search.json`: the rows that a search is of and the plan that it decided on, so that a resumed search keeps to it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.files import read_json_object, write_whole
from jpeft.recommend.budget import SearchPlan
from jpeft.recommend.trials import FACTORS, RANK_FACTOR

_FILE = "search.json"
_VERSION = 2  # of the file's format


class _Damaged(Exception):
    """`search.json` does not hold what a search writes."""


def open_record(workdir: Path, methods: Sequence[str], fingerprint: str) -> dict[str, Any]:
    """Reads and checks the record of a search, or begins a new one.

    Args:
      methods: those that are to be tried now.
      fingerprint: digest of the rows.

    Raises:
      UserError: the file is damaged, of an earlier version of jpeft, or of other rows.
    """
    file = workdir / _FILE
    if not file.exists():
        record: dict[str, Any] = {"version": _VERSION, "rows": fingerprint}
        write_record(workdir, record)
        return record
    try:
        record = read_json_object(file, error=_Damaged)
        if "data" in record or ("rows" in record and record.get("version") != _VERSION):
            raise UserError(
                f"{workdir} holds a search of an earlier version of jpeft, which decided otherwise; name "
                "another --workdir."
            )
        rows, decided = record["rows"], record.get("decided")
        if decided is not None:
            _check_decided(decided, methods)
    except (_Damaged, KeyError, TypeError, ValueError) as why:
        if isinstance(why, UserError):
            raise
        raise UserError(f"{file} is damaged; remove it to go on, or name another --workdir.") from None
    if rows != fingerprint:
        raise UserError(f"{workdir} holds a search of other rows than --data has now; name another --workdir.")
    return record


def write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes `search.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    with write_whole(workdir / _FILE) as beside:
        beside.write_text(json.dumps(record, indent=2) + "\n")


def _check_decided(decided: Any, methods: Sequence[str]) -> None:
    recorded_plan(decided["plan"])
    rates = {(method, factor, 1) for method in methods for factor in FACTORS}
    known = rates | {(method, 1.0, RANK_FACTOR) for method in methods}
    if not decided["tried"] or not isinstance(decided["asked"], dict):
        raise _Damaged("nothing was tried")
    if decided["asked"].get("methods") == sorted(methods) and any(
        (method, factor, rank_factor) not in known for method, factor, rank_factor in decided["tried"]
    ):
        raise _Damaged("something else was tried")


def recorded_plan(values: Any) -> SearchPlan:
    """The plan in a record. Raises an exception for anything that is not a plan."""
    numbers = {key: values[key] for key in ("epochs", "train", "test", "seconds", "over")}
    for key, value in numbers.items():
        least = 0 if key in ("seconds", "over") else 1
        optional = value is None and key in ("train", "test")
        if not optional and (isinstance(value, bool) or not isinstance(value, int | float) or value < least):
            raise _Damaged(key)
        if not optional and least and not isinstance(value, int):
            raise _Damaged(key)
    methods, left_out, zero_shot = values["methods"], values["left_out"], values["zero_shot"]
    if not isinstance(methods, list) or not all(isinstance(method, str) for method in methods):
        raise _Damaged("methods")
    if not isinstance(left_out, dict) or not isinstance(zero_shot, bool):
        raise _Damaged("left_out")
    return SearchPlan(
        methods=tuple(methods), left_out={str(k): str(v) for k, v in left_out.items()}, zero_shot=zero_shot, **numbers
    )
