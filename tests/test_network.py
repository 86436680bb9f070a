"""Whether the hub can be reached, by its own client."""

import time

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from jpeft import network
from jpeft.network import why_unreachable, without_network


class Session:
    def __init__(self, answer):
        self.answer = answer

    def head(self, url, *, timeout):
        assert url == constants.ENDPOINT and timeout <= 5
        return self.answer()


@pytest.fixture
def client(monkeypatch):
    def use(answer):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: Session(answer))

    return use


def test_an_answer_is_enough_whatever_it_is(client):
    client(lambda: "503 Service Unavailable")
    assert why_unreachable() is None


def test_an_error_says_why_in_one_line(client):
    def fail():
        raise OSError("[Errno -2] Name or service not known\nRequest URL: https://huggingface.co")

    client(fail)
    assert why_unreachable() == "[Errno -2] Name or service not known"


def test_a_name_server_that_never_answers_is_waited_for_so_long(client):
    client(lambda: time.sleep(2))
    started = time.monotonic()
    assert why_unreachable(0.1) == f"no answer from {constants.ENDPOINT} in 0.1 s"
    assert time.monotonic() - started < 1


def test_told_to_be_offline_it_asks_nobody(client, monkeypatch):
    client(None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert why_unreachable() == "HF_HUB_OFFLINE is set"


def test_libraries_are_offline_within_and_as_before_after(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), without_network():
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_it_takes_seconds_not_half_a_minute():
    assert network._MOST_SECONDS <= 5
