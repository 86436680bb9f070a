"""TCP connections between the processes of a run, which break when one of the processes ends, however it ends.

JAX notices a lost process when a collective fails or after some seconds without heartbeats; then one of its threads
aborts this process, and no Python code runs that could tell the user what to do. A connection closed by the operating
system is noticed at once, and in Python. Losses that close no connection, such as a host without power, are left to
JAX.
"""

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable

_DONE, _FAILED = b".", b"!"  # sent by a process when it ends; one that is killed sends nothing
_SECONDS_TO_CONNECT = 10


class Lifeline:
    """This process's connections. The first process has one to each of the others."""

    def __init__(self, on_loss: Callable[[bool], None]):
        """Creates no connection yet.

        Args:
          on_loss: called in a thread when another process has failed (True) or was lost without a message (False).
        """
        self._on_loss = on_loss
        self._connections: list[socket.socket] = []
        self._closed = False

    def offer(self) -> str:
        """Accepts connections in a thread; returns the port and the password that `grasp` needs."""
        password = secrets.token_hex(16)  # anyone who can reach the host can connect to the port
        server = _server()

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                with contextlib.suppress(OSError):
                    connection.settimeout(_SECONDS_TO_CONNECT)
                    if connection.recv(len(password), socket.MSG_WAITALL).decode(errors="replace") == password:
                        self._hold(connection)
                        continue
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        return f"{server.getsockname()[1]} {password}"

    def grasp(self, host: str, offered: str) -> None:
        """Connects to the first process. Raises `OSError` if it cannot be reached."""
        port, password = offered.split()
        connection = socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT)
        connection.sendall(password.encode())
        self._hold(connection)

    def _hold(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        self._connections.append(connection)

        def wait() -> None:
            with connection:
                try:
                    received = connection.recv(1)
                except OSError:  # reset by a process that was killed
                    received = b""
            if received != _DONE and not self._closed:
                self._on_loss(received == _FAILED)

        threading.Thread(target=wait, daemon=True).start()

    def close(self, *, failed: bool) -> None:
        """Tells the other processes how this one ends."""
        self._closed = True
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(_FAILED if failed else _DONE)
                connection.shutdown(socket.SHUT_WR)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
