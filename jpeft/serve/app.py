"""The server's HTTP side: what is taken, what is answered, and every way to refuse. The answering is the batcher's."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.routing import Match

from jpeft import __version__
from jpeft.errors import RunFailed, UserError
from jpeft.serve.bank import BankFull, UnknownAdapter
from jpeft.serve.batcher import Batcher, NotAnswered, QueueFull
from jpeft.serve.engine import Engine, Row
from jpeft.serve.metrics import Metrics
from jpeft.serve.middleware import CountRequests, LimitBody
from jpeft.serve.shelf import NAME_PATTERN, NotOnShelf, Shelf

_DESCRIPTION = """Answers of one T5 with many adapters. Requests for different adapters are answered together.
Every refusal is a JSON object whose `detail` is one line."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for, and for how long.

    Attributes:
      inputs: of one request.
      body_bytes: of one request.
      queued_rows: that may wait; further requests are told to come again.
      wait_seconds: that a row waits for others to join its batch.
      request_seconds: after which a request is given up.
    """

    inputs: int = 16
    body_bytes: int = 1 << 20
    queued_rows: int = 256
    wait_seconds: float = 0.005
    request_seconds: float = 60.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0 and field.name != "wait_seconds":
                raise UserError(f"the limit {field.name} is {getattr(self, field.name)}; it must be above 0.")
        if self.queued_rows < self.inputs:
            raise UserError(f"a queue of {self.queued_rows} inputs can not take a request of {self.inputs}.")


class Service:
    """What the routes share. `draining` refuses new work while what was accepted is finished."""

    def __init__(self, engine: Engine, shelf: Shelf, limits: Limits):
        self.engine, self.shelf, self.limits = engine, shelf, limits
        self.draining = False
        self.metrics = Metrics(queued=lambda: self.batcher.queued, adapters=lambda: len(engine.bank.names))
        self.batcher = Batcher(
            engine.answer,
            fit_together=engine.fit_together,
            max_rows=engine.shapes.batch_sizes[-1],
            max_wait_seconds=limits.wait_seconds,
            max_queue=limits.queued_rows,
            on_batch=self.metrics.batch,
        )


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class Prediction(BaseModel):
    """The answer to one input."""

    text: str
    output_tokens: int = Field(description="Tokens generated, the end of the text included.")
    ended: bool = Field(description="False where the text was cut at `max_output_tokens`.")


class Predictions(BaseModel):
    """The answers to a request's inputs, in their order."""

    adapter: str | None
    predictions: list[Prediction]


class Adapters(BaseModel):
    """What is loaded and what could be."""

    capacity: int = Field(description="How many adapters can be loaded at once.")
    loaded: list[str]
    available: list[str] = Field(description="Names in the operator's directory, loaded or not.")


class Loaded(BaseModel):
    """An adapter that was loaded."""

    name: str
    method: str


class Health(BaseModel):
    """That the server is there."""

    status: str


Name = Annotated[str, Path(pattern=NAME_PATTERN, description="Of a directory in the operator's directory of adapters.")]

_REASONS = {
    400: "The body can not be read.",
    404: "No such adapter.",
    409: "The bank is full.",
    413: "The body is too large.",
    422: "A value is wrong, an input too long, or the adapter does not fit.",
    429: "The queue is full; `Retry-After` says when to come again.",
    500: "The work failed; the server's log has the cause.",
    503: "The server is stopping.",
    504: "No answer in time.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these statuses."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        documented[status] = {"model": Problem, "description": _REASONS[status]}
        if status in (429, 503):
            documented[status]["headers"] = _RETRY_AFTER
    return documented


def _no_other_kind(value: Any) -> Any:
    """Refuses what Python would take for an integer and JSON Schema would not."""
    if isinstance(value, bool | str):
        raise ValueError("should be a number")
    return value


def make_app(service: Service) -> FastAPI:
    """The application. Its engine has to be compiled before the first request."""
    limits, engine, bank = service.limits, service.engine, service.engine.bank
    longest_output = engine.shapes.output_lengths[-1]

    class Generation(BaseModel):
        """Inputs for one adapter."""

        model_config = ConfigDict(extra="forbid")

        inputs: Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(
                min_length=1,
                max_length=limits.inputs,
                description=f"Texts of at most {engine.shapes.input_lengths[-1]} tokens each.",
                examples=[["summarize: Ann: lunch? Bob: yes"]],
            ),
        ]
        adapter: str | None = Field(None, pattern=NAME_PATTERN, description="null is the base without an adapter.")
        max_output_tokens: Annotated[int, BeforeValidator(_no_other_kind)] = Field(
            engine.shapes.output_lengths[0], ge=1, le=longest_output, description="After which an answer is cut."
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        answering = asyncio.create_task(service.batcher.run())
        yield
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering

    app = FastAPI(
        title="jpeft serve",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
    )
    app.add_middleware(LimitBody, max_bytes=limits.body_bytes)
    app.add_middleware(CountRequests, metrics=service.metrics)
    _answer_errors(app)

    def accepting() -> None:
        if service.draining:
            raise HTTPException(503, "the server is stopping.", {"Retry-After": "5"})

    @app.post(
        "/generate",
        tags=["answers"],
        dependencies=[Depends(accepting)],
        responses=_problems(400, 404, 413, 422, 429, 500, 503, 504),
    )
    async def generate(request: Generation) -> Predictions:
        """Answers each input by the named adapter, the likeliest token at every step."""
        if request.adapter is not None and request.adapter not in bank.names:
            raise UnknownAdapter([request.adapter])
        async with asyncio.timeout(limits.request_seconds):
            # In a thread: a body of the largest size would hold up all others.
            tokens = await asyncio.to_thread(engine.tokenize, request.inputs)
            rows = [Row(ids, request.adapter, request.max_output_tokens) for ids in tokens]
            answers = await service.batcher.submit(rows)
        predictions = [Prediction(**dataclasses.asdict(answer)) for answer in answers]
        return Predictions(adapter=request.adapter, predictions=predictions)

    @app.get("/adapters", tags=["adapters"])
    def adapters() -> Adapters:
        """Names of the adapters that are loaded, and of those that could be."""
        return Adapters(capacity=bank.capacity, loaded=bank.names, available=service.shelf.names())

    @app.put(
        "/adapters/{name}",
        tags=["adapters"],
        dependencies=[Depends(accepting)],
        responses=_problems(404, 409, 422, 503),
    )
    def load(name: Name) -> Loaded:
        """Loads an adapter of the operator's directory; one that is loaded is read again."""
        method = bank.add(name, service.shelf.find(name))
        return Loaded(name=name, method=method.name)

    @app.delete(
        "/adapters/{name}",
        tags=["adapters"],
        status_code=204,
        dependencies=[Depends(accepting)],
        responses=_problems(404, 422, 503),
    )
    def unload(name: Name) -> None:
        """Takes an adapter from the device; its files stay. Requests that wait for it are answered with 404."""
        bank.remove(name)

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Health:
        """200 while the process answers at all."""
        return Health(status="ok")

    @app.get("/readyz", tags=["operation"], dependencies=[Depends(accepting)], responses=_problems(503))
    async def readyz() -> Health:
        """200 while new requests are taken: every program is compiled before the first connection is."""
        return Health(status="ready")

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(service.metrics.text())

    return app


def _answer_errors(app: FastAPI) -> None:
    """Gives each error its status, and one line in the place of a list or a traceback."""

    def answers(status: int, headers: dict[str, str] | None = None):
        async def handler(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": str(error)}, status, headers)

        return handler

    async def wrong_value(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _first_of(error.errors())}, 422)

    async def wrong_method(request: Request, error: HTTPException) -> JSONResponse:
        # Of all routes of this path; each alone knows its own method.
        routes = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
        return JSONResponse({"detail": error.detail}, 405, {"Allow": ", ".join(sorted(methods))})

    async def queue_full(request: Request, error: QueueFull) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(error.retry_after_seconds)})

    async def too_late(request: Request, error: TimeoutError) -> JSONResponse:
        return JSONResponse({"detail": "no answer in time; try again, or with fewer inputs."}, 504)

    app.add_exception_handler(RequestValidationError, wrong_value)
    app.add_exception_handler(405, wrong_method)
    app.add_exception_handler(QueueFull, queue_full)
    app.add_exception_handler(TimeoutError, too_late)
    for error, status in [
        (UnknownAdapter, 404),
        (NotOnShelf, 404),
        (BankFull, 409),
        (UserError, 422),
        (RunFailed, 422),
    ]:
        app.add_exception_handler(error, answers(status))
    app.add_exception_handler(NotAnswered, answers(500))


def _first_of(errors: Sequence[Any]) -> str:
    """Where the first wrong value stands and what is wrong with it."""
    where = ".".join(str(part) for part in errors[0]["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {errors[0]['msg']}{more}"
