"""Connections between the processes of a run that break when one of them ends, however it ends.

JAX notices the loss of a process when a sum over hosts fails, or after some seconds without heartbeats; then a thread
of its own aborts the process, and no Python runs any more that could tell the user what to do. A connection that the
system closes is noticed at once, and in Python. What closes no connection, such as a host without power, is left to
JAX.
"""

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable

_DONE, _FAILED = b".", b"!"  # what a process says at its end; one that is killed says nothing
_SECONDS_TO_CONNECT = 10


class Lifeline:
    """This process's ends of the connections; the first process has one to each of the others."""

    def __init__(self, on_loss: Callable[[bool], None]):
        """`on_loss` is called, in a thread, when another process has failed (True) or ended without a word (False)."""
        self._on_loss = on_loss
        self._ends: list[socket.socket] = []
        self._closed = False

    def offer(self) -> str:
        """Waits for the others, in a thread; returns the port and the word that `grasp` needs."""
        word = secrets.token_hex(16)  # the port is open to whoever can reach the host
        server = _server()

        def accept() -> None:
            while True:
                end, _ = server.accept()
                with contextlib.suppress(OSError):
                    end.settimeout(_SECONDS_TO_CONNECT)
                    if end.recv(len(word), socket.MSG_WAITALL).decode(errors="replace") == word:
                        self._hold(end)
                        continue
                end.close()

        threading.Thread(target=accept, daemon=True).start()
        return f"{server.getsockname()[1]} {word}"

    def grasp(self, host: str, offered: str) -> None:
        """Connects to what the first process offered. Raises OSError where it cannot be reached."""
        port, word = offered.split()
        end = socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT)
        end.sendall(word.encode())
        self._hold(end)

    def _hold(self, end: socket.socket) -> None:
        end.settimeout(None)
        self._ends.append(end)

        def wait() -> None:
            with end:
                try:
                    said = end.recv(1)
                except OSError:  # reset by a process that was killed
                    said = b""
            if said != _DONE and not self._closed:
                self._on_loss(said == _FAILED)

        threading.Thread(target=wait, daemon=True).start()

    def close(self, *, failed: bool) -> None:
        """Tells the others how this process ends."""
        self._closed = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.sendall(_FAILED if failed else _DONE)
                end.shutdown(socket.SHUT_WR)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
