"""Middleware for every request: it counts requests and limits the size of their bodies."""

import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jpeft.serve.metrics import Metrics


class CountRequests:
    """Middleware that counts requests by route and method; unknown ones are counted as one, to bound the number."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = "other" if route == "other" or status == 405 else scope["method"]
            self._metrics.request(route, method, status, time.monotonic() - started)


class LimitBody:
    """Middleware that refuses a body of more than `max_bytes`, by its declared length or while it is received.

    Not Starlette's own, which responds with plain text if the length is declared.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        too_large = f"the body is too large; at most {self._max_bytes} bytes are taken."
        if int(Headers(scope=scope).get("content-length", "0")) > self._max_bytes:
            return await JSONResponse({"detail": too_large}, 413)(scope, receive, send)
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, too_large)
            return message

        await self._app(scope, limited, send)
