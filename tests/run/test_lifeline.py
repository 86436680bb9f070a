"""Connections that report the end of another process; here both ends are in one process."""

import queue
import socket

import pytest

from jpeft.run.lifeline import Lifeline


@pytest.fixture
def ends():
    """The lifelines of the first process and of another, what each noticed, and the offer of the first."""
    heard = queue.Queue(), queue.Queue()
    first, other = (Lifeline(of_loss.put) for of_loss in heard)
    offered = first.offer()
    other.grasp("localhost", offered)
    return first, other, heard, offered


def test_a_process_that_ends_without_a_word_is_noticed_at_once(ends):
    _, other, (first_heard, _), _ = ends
    other._connections[0].shutdown(socket.SHUT_RDWR)  # as the system does for a process that was killed
    assert first_heard.get(timeout=10) is False


def test_a_process_that_fails_is_told_apart(ends):
    _, other, (first_heard, other_heard), _ = ends
    other.close(failed=True)
    assert first_heard.get(timeout=10) is True
    assert other_heard.empty()


def test_a_process_that_has_done_its_part_is_not_missed(ends):
    first, other, (first_heard, _), _ = ends
    other.close(failed=False)
    with pytest.raises(queue.Empty):
        first_heard.get(timeout=0.3)
    first.close(failed=False)


def test_strangers_are_not_let_in(ends):
    first, _, (first_heard, _), offered = ends
    port = int(offered.split()[0])
    with socket.create_connection(("localhost", port), timeout=10) as stranger:
        stranger.sendall(b"x" * 32)
        assert stranger.recv(1) == b""  # the connection was closed
    with pytest.raises(queue.Empty):
        first_heard.get(timeout=0.3)
    assert len(first._connections) == 1
