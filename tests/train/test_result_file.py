"""A result that was damaged since is one line, and not a traceback of whoever prints it."""

import pytest

from jpeft.errors import RunFailed
from jpeft.train.result_file import check_result, damage_of

RESULT = {
    "method": "lora",
    "task": "custom",
    "model": "mini",
    "metric_name": "accuracy",
    "metric": 0.5,
    "metrics": {"accuracy": 0.5},
    "zero_shot": {"accuracy": 0.25},
    "validation_loss": 1,
    "best_epoch": 0,
    "epochs_run": 1,
    "test_examples": 9,
    "adapter_bytes": 100,
    "seconds": {"total": 3.5},
    "uncertainty": {"interval": [0.1, 0.9], "standard_error": None},
    "per_class": {"macro_f1": 0.1, "majority": {"label": "a", "share": 0.5}},
}


def test_what_a_run_writes_is_whole_with_and_without_what_older_versions_did_not_write(tmp_path):
    check_result(RESULT, tmp_path)
    check_result({**RESULT, "zero_shot": None, "uncertainty": None, "per_class": None}, tmp_path)
    check_result({name: RESULT[name] for name in RESULT if name not in ("uncertainty", "per_class")}, tmp_path)


@pytest.mark.parametrize(
    "by_epoch", [5, [], [{}], [{"accuracy": 0.5}], [{"macro_f1": None}], [{"macro_f1": "x"}], ["x"]]
)
def test_what_was_monitored_is_there_for_every_epoch(by_epoch):
    monitored = {**RESULT, "monitor": "validation/macro_f1", "validation_metrics": [{"macro_f1": 0.5, "accuracy": 1}]}
    assert damage_of(monitored) is None and damage_of({**monitored, "best_epoch": 1}) is not None
    damaged = by_epoch != []
    assert (damage_of({**monitored, "validation_metrics": by_epoch}) is not None) == damaged


def _is_right(name: str, value: object) -> bool:
    """Whether a key may hold such a value; what stands inside of a section is another matter."""
    if name in ("metric", "validation_loss"):
        return type(value) in (int, float)
    return type(value) is type(RESULT[name]) and not isinstance(value, dict)


VALUES = ["x", [1], 5, {"interval": [1]}, {"accuracy": None}, True, 1.5]
WRONG = [(name, value) for name in RESULT for value in VALUES if not _is_right(name, value)]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_key_of_another_type_is_named(name, value, tmp_path):
    with pytest.raises(RunFailed, match=f"result.json is damaged .its {name} "):
        check_result({**RESULT, name: value}, tmp_path / "result.json")


def test_a_missing_key_is_named_where_all_have_to_be_there(tmp_path):
    assert damage_of({"status": "done"}) is None
    with pytest.raises(RunFailed, match="lacks seconds"):
        check_result({name: RESULT[name] for name in RESULT if name != "seconds"}, tmp_path)
