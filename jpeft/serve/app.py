"""The server's HTTP side: what is taken, what is answered, and every way to refuse. The answering is the batcher's."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StrictBool
from starlette.routing import Match

from jpeft import __version__
from jpeft.errors import RunFailed, UserError
from jpeft.serve.bank import BankFull, UnknownAdapter
from jpeft.serve.batcher import Batcher, NotAnswered, QueueFull
from jpeft.serve.engine import Asking, Engine, NoNumber, Replaced
from jpeft.serve.metrics import Metrics
from jpeft.serve.middleware import CountRequests, LimitBody
from jpeft.serve.page import document_page
from jpeft.serve.shelf import NAME_PATTERN, NotOnShelf, Shelf
from jpeft.serve.strict_json import StrictJsonRoute

_DESCRIPTION = """Answers of one base model with many adapters. Requests for different adapters are answered together.
Every refusal is a JSON object whose `detail` is one line."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on what a client may ask for, and for how long.

    Attributes:
      inputs: the most inputs of one request.
      body_bytes: the largest body of a request.
      characters: of one input, all of its columns together.
      queued_rows: that may wait; further requests are told to come again.
      wait_seconds: that a row waits for others to join its batch.
      request_seconds: after which a request is given up.
    """

    inputs: int = 16
    body_bytes: int = 1 << 20
    characters: int = 1 << 16
    queued_rows: int = 256
    wait_seconds: float = 0.005
    request_seconds: float = 60.0

    def __post_init__(self):
        for name, flag in _FLAGS.items():
            if getattr(self, name) <= 0:
                raise UserError(f"{flag} is {getattr(self, name):g}; give a number above 0.")
        if self.wait_seconds < 0:
            raise UserError(f"--max-wait-ms is {1000 * self.wait_seconds:g}; give 0 or more.")
        if self.queued_rows < self.inputs:
            raise UserError(
                f"--max-queue is {self.queued_rows}, and a request may have {self.inputs} inputs (--max-inputs), which "
                f"would never find a place; give a --max-queue of at least {self.inputs}, or a --max-inputs of at most "
                f"{self.queued_rows}."
            )


_FLAGS = {  # of the limits that are above 0
    "inputs": "--max-inputs",
    "body_bytes": "--max-body-bytes",
    "characters": "--max-input-chars",
    "queued_rows": "--max-queue",
    "request_seconds": "--timeout",
}
_COME_BACK = {"Retry-After": "5"}  # to a server that takes the place of one that stops, or has failed
_MOST_COLUMNS = 64  # of a row
_LONGEST_PLACE = 120  # characters of where a wrong value stands
_Columns: TypeAlias = Annotated[dict[str, JsonValue], Field(min_length=1, max_length=_MOST_COLUMNS)]


class Service:
    """What all routes of the server use. While it is `draining`, new work is refused and accepted work finished."""

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
    output_tokens: int = Field(description="Tokens of the text, its end included.")
    ended: bool = Field(description="False where the text was cut at `max_output_tokens`.")
    input_cut: bool = Field(
        description="Whether the input was longer than the adapter's run took; its longest column lost its end."
    )
    confidence: float | None = Field(
        description="Mean log-probability of the tokens of a chosen label; null for what is generated."
    )
    probabilities: dict[str, float] | None = Field(
        description="Probability of each label, among these labels, where one was chosen; null for what is generated."
    )


class Predictions(BaseModel):
    """The answers to a request's inputs, in their order."""

    adapter: str | None
    predictions: list[Prediction]


class HowAsked(BaseModel):
    """How an adapter takes inputs and gives answers: template, labels and lengths, as in the run that trained it."""

    template: str | None = Field(
        description="The template that is applied; null where there is none: a text is the whole prompt."
    )
    columns: list[str] | None = Field(description="Columns that the template names, for inputs that are objects.")
    answers: str = Field(description="`labels`: one is chosen. `text`: it is generated.")
    labels: list[str] | None
    max_input_tokens: int = Field(
        description="The longest input; longer ones are cut, or refused where there is no template."
    )
    max_output_tokens: int = Field(description="The longest generated answer, where a request does not say otherwise.")
    notes: list[str] = Field(description="Where answers may differ from those of the adapter's own run.")


class Adapters(BaseModel):
    """The names of the adapters that are loaded, and of those that could be."""

    capacity: int = Field(description="How many adapters can be loaded at once.")
    loaded: list[str]
    available: list[str] = Field(description="Names in the operator's directory, loaded or not.")
    not_served: dict[str, str] = Field(
        description="What is in the operator's directory and cannot be loaded, or could not when it was tried, and why."
    )
    asked: dict[str, HowAsked] = Field(description="How each loaded adapter is asked.")
    base: HowAsked = Field(description="How the base alone is asked.")


class Loaded(BaseModel):
    """The answer to a request to load an adapter: the one that was loaded."""

    name: str
    method: str


class Health(BaseModel):
    """The answer to a health check: the server is there."""

    status: str


Name = Annotated[
    str, Path(pattern=NAME_PATTERN, description="Name of a directory in the operator's directory of adapters.")
]

_REASONS = {
    400: "The body cannot be read.",
    404: "No such adapter.",
    409: "The bank is full, or an adapter was replaced while this waited.",
    413: "The body is too large.",
    422: "A value is wrong, an input too long, or the adapter does not fit.",
    429: "The queue is full; `Retry-After` says when to come again.",
    500: "The work failed; the server's log has the cause.",
    503: "The server is stopping, or answers nothing any more.",
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
            list[Annotated[str, Field(min_length=1, max_length=limits.characters)] | _Columns],
            Field(
                min_length=1,
                max_length=limits.inputs,
                description=(
                    "Texts, which take the place of the one column of the adapter's template, or objects with the "
                    f"columns that it names. {engine.shapes.input_lengths[-1]} tokens each at most, and "
                    f"{limits.characters} characters."
                ),
                examples=[["Ann: lunch? Bob: yes", {"text": "Ferrari wins in Monza"}]],
            ),
        ]
        adapter: str | None = Field(None, pattern=NAME_PATTERN, description="null is the base without an adapter.")
        template: StrictBool = Field(
            True, description="Whether the adapter's template is applied; if not, a text is the whole prompt."
        )
        labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = Field(
            None,
            description="Labels to choose from, in the place of the adapter's own. They need room (`--label-tokens`).",
        )
        generate: StrictBool = Field(False, description="Whether to generate though the adapter has labels.")
        max_output_tokens: Annotated[
            Annotated[int, Field(ge=1, le=longest_output)] | None, BeforeValidator(_no_other_kind)
        ] = Field(None, description="Where a generated answer is cut; null is what the adapter's run gave at most.")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        answering = asyncio.create_task(service.batcher.run())
        yield
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # the batcher has said it
            await answering

    app = FastAPI(
        title="jpeft serve",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # those fetch their scripts from another's server
        redoc_url=None,
    )
    app.router.route_class = StrictJsonRoute
    app.add_middleware(LimitBody, max_bytes=limits.body_bytes)
    app.add_middleware(CountRequests, metrics=service.metrics)
    _answer_errors(app)

    def answering() -> None:
        if not service.batcher.running:
            raise HTTPException(503, "nothing is answered any more; the server has to be started again.", _COME_BACK)

    def accepting() -> None:
        if service.draining:
            raise HTTPException(503, "the server is stopping.", _COME_BACK)

    def shown(asking: Asking) -> HowAsked:
        longest = engine.shapes.input_lengths[-1]
        return HowAsked(
            template=None if asking.prompt is None else asking.prompt.template,
            columns=None if asking.prompt is None else list(asking.prompt.columns),
            answers="text" if asking.labels is None else "labels",
            labels=None if asking.labels is None else list(asking.labels.texts),
            max_input_tokens=longest if asking.task is None else min(longest, asking.task.max_input_length),
            max_output_tokens=asking.max_output_tokens,
            notes=list(asking.notes),
        )

    @app.post(
        "/generate",
        tags=["answers"],
        dependencies=[Depends(accepting)],
        responses=_problems(400, 404, 409, 413, 422, 429, 500, 503, 504),
    )
    async def generate(request: Generation) -> Predictions:
        """Answers each input by the named adapter as its run did: its template, its labels, its lengths.

        Generated answers take the likeliest token at every step.
        """
        engine.asking(request.adapter)  # who asks for one that is not there is told before any work
        for i, given in enumerate(request.inputs):
            if _characters(given) > limits.characters:
                raise UserError(f"inputs[{i}] has more than {limits.characters} characters; send less.")
        async with asyncio.timeout(limits.request_seconds):
            with service.batcher.place_for(len(request.inputs)):  # before the work: none is done in vain
                # In a thread: a body of the largest size would hold up all others.
                rows = await asyncio.to_thread(
                    engine.rows,
                    request.inputs,
                    request.adapter,
                    template=request.template,
                    labels=request.labels,
                    generate=request.generate,
                    max_output_tokens=request.max_output_tokens,
                )
            answers = await service.batcher.submit(rows)
        service.metrics.cut(sum(row.cut for row in rows))
        predictions = [Prediction(**dataclasses.asdict(answer)) for answer in answers]
        return Predictions(adapter=request.adapter, predictions=predictions)

    @app.get("/adapters", tags=["adapters"])
    def adapters() -> Adapters:
        """Adapters that are loaded and how each is asked, those that could be, and those that cannot be and why."""
        askings, (available, not_served) = engine.askings, service.shelf.survey()
        left_out = {name: engine.left_out[name] for name in available if name in engine.left_out}
        return Adapters(
            capacity=bank.capacity,
            loaded=list(askings),
            available=available,
            not_served={**not_served, **left_out},
            asked={name: shown(asking) for name, asking in askings.items()},
            base=shown(engine.asking(None)),
        )

    @app.put(
        "/adapters/{name}",
        tags=["adapters"],
        dependencies=[Depends(accepting)],
        responses=_problems(404, 409, 422, 503),
    )
    def load(name: Name) -> Loaded:
        """Loads an adapter of the operator's directory; one that is loaded is read again."""
        method = engine.load(name, service.shelf.find(name))
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
        engine.unload(name)

    @app.get("/healthz", tags=["operation"], dependencies=[Depends(answering)], responses=_problems(503))
    async def healthz() -> Health:
        """200 while the process answers at all; 503 is for whoever restarts it."""
        return Health(status="ok")

    ready = [Depends(accepting), Depends(answering)]

    @app.get("/readyz", tags=["operation"], dependencies=ready, responses=_problems(503))
    async def readyz() -> Health:
        """200 while new requests are taken: every program is compiled before the first connection is."""
        return Health(status="ready")

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(service.metrics.text())

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        """This document for people."""
        return HTMLResponse(document_page(app.openapi()))

    return app


def _characters(given: str | Mapping[str, Any]) -> int:
    return len(given) if isinstance(given, str) else sum(len(str(value)) for value in given.values())


def _answer_errors(app: FastAPI) -> None:
    """Gives each error its status, and one line in the place of a list or a traceback."""

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
        # Of all routes of this path; each alone knows its own method.
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
    """Whether a body of this type is read as JSON: `application/json`, or `application/...+json`."""
    kind, _, of_it = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (of_it == "json" or of_it.endswith("+json"))


def _is_columns(part: Any) -> bool:
    return str(part).startswith("dict[")


def _first_of(errors: Sequence[Any]) -> str:
    """Where the first wrong value stands and what is wrong with it.

    An input may be a text or columns, and there is an error of each: the one that leads furthest is meant. Names of
    types are no part of a place.
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
    return " ".join(line.encode(errors="replace").decode().split())  # a column's name may be anything
