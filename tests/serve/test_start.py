"""The server starts without the adapters that cannot be read, and logs those that fail because of a defect."""

import logging

import pytest

from jpeft.errors import RunFailed, UserError
from jpeft.model import t5_weights
from jpeft.serve import start
from jpeft.serve.shelf import Shelf


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (UserError("it names no method"), []),
        (RunFailed("it is damaged"), []),
        (PermissionError("not for you"), []),
        (KeyError("a defect"), ["ia3 cannot be looked at"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_wrong_with_files_is_said_later_and_a_defect_is_logged_at_once(
    error, logged, deeper_checkpoint, tiny_shelf, monkeypatch, caplog
):
    def read(directory, model):
        raise error

    monkeypatch.setattr(start, "read_adapter", read)
    with caplog.at_level(logging.INFO):
        assert start._room_of(Shelf(tiny_shelf), ["ia3"], t5_weights.load(deeper_checkpoint)) == []
    assert [record.getMessage() for record in caplog.records if record.name == start.__name__] == logged
    assert all(record.exc_info for record in caplog.records if record.name == start.__name__)
