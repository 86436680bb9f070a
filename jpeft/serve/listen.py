"""The server process: its socket, its start and its graceful stop. Web libraries are imported lazily."""

import contextlib
import importlib.util
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from jpeft.errors import UserError

if TYPE_CHECKING:
    from jpeft.serve.app import Service

_EXTRA = ("fastapi", "uvicorn", "prometheus_client")
_SECONDS_BEYOND_A_REQUEST = 5


def require_extra() -> None:
    """Raises `UserError` if the libraries of the extra `serve` are not installed."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"jpeft serve needs {', '.join(missing)}; install them: pip install 'jpeft[serve]'.")


def bind(host: str, port: int) -> socket.socket:
    """Binds a socket without listening yet. Raises `UserError` if the address is in use or invalid."""
    with contextlib.ExitStack() as undo:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            bound = undo.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((address[0], port, *address[2:]))  # the resolver accepts ports of any size
        except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: too long a host name
            raise UserError(f"cannot listen at {host}:{port} ({error}).") from None
        undo.pop_all()
    return bound


def serve_until_told(service: "Service", bound: socket.socket, listening: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then finishes accepted requests.

    Args:
      listening: called with the URL once connections are accepted.
    """
    import uvicorn

    from jpeft.serve.app import make_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = bound.getsockname()[:2]
            listening(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

        def handle_exit(self, sig: int, frame) -> None:
            service.draining = True  # open connections are told that the server stops
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        make_app(service),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(service.limits.request_seconds) + _SECONDS_BEYOND_A_REQUEST,
    )
    server = Server(config)
    # uvicorn handles the signals and afterwards raises the one it received again, for the previous handlers. These must
    # not be Python's own, with which the exit status would not be 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[bound])
