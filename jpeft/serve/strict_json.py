"""Strict JSON request bodies, parsed as files of rows are: a repeated key is an error."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from jpeft.errors import UserError
from jpeft.files import JsonParser

_PARSER = JsonParser(unique=True)


class StrictJsonRoute(APIRoute):
    """A route that parses bodies with `JsonParser` and responds to its errors with status 422."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Overrides FastAPI's handler to parse the body first."""
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await answer(_StrictRequest(request.scope, request.receive))

        return handler


class _StrictRequest(Request):
    async def json(self) -> Any:
        encoding = self.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise HTTPException(422, f"the body has the Content-Encoding {encoding[:40]!r}; send it as plain JSON.")
        try:
            return _PARSER.parse((await self.body()).decode("utf-8-sig"), "the body")
        except UnicodeDecodeError:
            raise HTTPException(422, "the body is not UTF-8; send JSON in UTF-8.") from None
        except UserError as error:
            raise HTTPException(422, str(error)) from None
