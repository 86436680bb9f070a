"""The server's error responses: a status, and one line instead of a list or a traceback."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.routing import Match

from jpeft.errors import RunFailed, UserError
from jpeft.serve.bank import BankFull, UnknownAdapter
from jpeft.serve.batcher import NotAnswered, QueueFull
from jpeft.serve.engine import NoNumber, Replaced
from jpeft.serve.schema import Problem
from jpeft.serve.shelf import NotOnShelf

_LONGEST_PLACE = 120  # characters of the location of a wrong value
_REASONS = {
    400: "The body cannot be read.",
    404: "No such adapter.",
    409: "The bank is full, or an adapter was replaced while the request waited.",
    413: "The body is too large.",
    422: "A value is wrong, an input too long, or the adapter does not fit.",
    429: "The queue is full; `Retry-After` says when to come again.",
    500: "The work failed; the server's log has the cause.",
    503: "The server is stopping, or answers nothing any more.",
    504: "No answer in time.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        documented[status] = {"model": Problem, "description": _REASONS[status]}
        if status in (429, 503):
            documented[status]["headers"] = _RETRY_AFTER
    return documented


def answer_errors(app: FastAPI) -> None:
    """Adds the handlers that turn each error into a status and one line."""

    def answers(status: int, headers: dict[str, str] | None = None):
        async def handler(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": str(error)}, status, headers)

        return handler

    async def wrong_value(request: Request, error: RequestValidationError) -> JSONResponse:
        if error.errors()[0]["loc"] == ("body",) and not _is_json(sent := request.headers.get("content-type", "")):
            how = f"as {sent[:80]!r}" if sent else "without a content type"
            return JSONResponse({"detail": f"the body was sent {how}; send it as application/json."}, 422)
        return JSONResponse({"detail": _first_of(error.errors())}, 422)

    async def wrong_method(request: Request, error: HTTPException) -> JSONResponse:
        # The methods of all routes with this path; each route knows only its own.
        routes = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
        return JSONResponse({"detail": error.detail}, 405, {"Allow": ", ".join(sorted(methods))})

    async def queue_full(request: Request, error: QueueFull) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(error.retry_after_seconds)})

    async def too_late(request: Request, error: TimeoutError) -> JSONResponse:
        return JSONResponse({"detail": "no answer in time; try again, or with fewer inputs."}, 504)

    app.exception_handler(RequestValidationError)(wrong_value)
    app.exception_handler(405)(wrong_method)
    app.exception_handler(QueueFull)(queue_full)
    app.exception_handler(TimeoutError)(too_late)
    for error, status in [
        (UnknownAdapter, 404),
        (NotOnShelf, 404),
        (BankFull, 409),
        (Replaced, 409),
        (UserError, 422),
        (RunFailed, 422),
    ]:
        app.add_exception_handler(error, answers(status))
    for error in (NotAnswered, NoNumber):
        app.add_exception_handler(error, answers(500))


def _is_json(content_type: str) -> bool:
    """Whether a body of this content type is parsed as JSON: `application/json`, or `application/...+json`."""
    kind, _, of_it = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (of_it == "json" or of_it.endswith("+json"))


def _is_columns(part: Any) -> bool:
    return str(part).startswith("dict[")


def _first_of(errors: Sequence[Any]) -> str:
    """The location of the first wrong value and what is wrong with it.

    An input may be a text or columns, with an error for each alternative: the one with the deepest location is taken.
    The names of types in pydantic's locations are left out.
    """
    inner = lambda error: error["loc"][:3] == errors[0]["loc"][:3]
    of_columns = lambda error: isinstance(error.get("input"), dict) and _is_columns(error["loc"][-1])
    error = max(filter(inner, errors), key=lambda error: (of_columns(error), len(error["loc"])))
    place, columns = list(error["loc"]), any(_is_columns(part) for part in error["loc"])
    if error["loc"][:2] == ("body", "inputs") and len(place) > 3:
        place = [*place[:3], *place[4:5]] if columns else place[:3]
    where = ".".join(map(str, place))[:_LONGEST_PLACE]
    others = {error["loc"][:3] for error in errors} - {errors[0]["loc"][:3]}
    more = f" (and {len(others)} more)" if others else ""
    line = f"{where}: {error['msg']}{more}"
    return " ".join(line.encode(errors="replace").decode().split())  # a column's name may hold anything
