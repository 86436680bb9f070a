"""The server's routes: each asks the batcher or the engine. What they take and give is in `schema`."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BeforeValidator, Field

from jpeft import __version__
from jpeft.errors import UserError
from jpeft.serve.batcher import Batcher
from jpeft.serve.engine import Asking, Engine
from jpeft.serve.limits import Limits
from jpeft.serve.metrics import Metrics
from jpeft.serve.middleware import CountRequests, LimitBody
from jpeft.serve.page import document_page
from jpeft.serve.refusals import answer_errors, problems
from jpeft.serve.schema import (
    Adapters,
    Columns,
    GenerationFields,
    Health,
    HowAsked,
    Loaded,
    Name,
    Prediction,
    Predictions,
    no_other_kind,
)
from jpeft.serve.shelf import Shelf
from jpeft.serve.strict_json import StrictJsonRoute

_DESCRIPTION = """Answers of one base model with many adapters. Requests for different adapters are answered together.
Every refusal is a JSON object whose `detail` is one line."""
_COME_BACK = {"Retry-After": "5"}  # to a server that takes the place of one that stops, or has failed


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

    def answering(self) -> None:
        """Refuses a request where nothing is answered any more."""
        if not self.batcher.running:
            raise HTTPException(503, "nothing is answered any more; the server has to be started again.", _COME_BACK)

    def accepting(self) -> None:
        """Refuses new work of a server that stops."""
        if self.draining:
            raise HTTPException(503, "the server is stopping.", _COME_BACK)


def make_app(service: Service) -> FastAPI:
    """The application. Its engine has to be compiled before the first request."""

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
    app.add_middleware(LimitBody, max_bytes=service.limits.body_bytes)
    app.add_middleware(CountRequests, metrics=service.metrics)
    answer_errors(app)
    _answers(app, service)
    _adapters(app, service)
    _operation(app, service)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        """This document for people."""
        return HTMLResponse(document_page(app.openapi()))

    return app


def _answers(app: FastAPI, service: Service) -> None:
    """The route that answers inputs."""
    limits, engine = service.limits, service.engine

    class Generation(GenerationFields):
        """Inputs for one adapter."""

        inputs: Annotated[
            list[Annotated[str, Field(min_length=1, max_length=limits.characters)] | Columns],
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
        max_output_tokens: Annotated[
            Annotated[int, Field(ge=1, le=engine.shapes.output_lengths[-1])] | None, BeforeValidator(no_other_kind)
        ] = Field(None, description="Where a generated answer is cut; null is what the adapter's run gave at most.")

    @app.post(
        "/generate",
        tags=["answers"],
        dependencies=[Depends(service.accepting)],
        responses=problems(400, 404, 409, 413, 422, 429, 500, 503, 504),
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


def _characters(given: str | Mapping[str, Any]) -> int:
    return len(given) if isinstance(given, str) else sum(len(str(value)) for value in given.values())


def _adapters(app: FastAPI, service: Service) -> None:
    """The routes that tell of adapters, and load and unload them."""
    engine = service.engine

    @app.get("/adapters", tags=["adapters"])
    def adapters() -> Adapters:
        """Adapters that are loaded and how each is asked, those that could be, and those that cannot be and why."""
        askings, (available, not_served) = engine.askings, service.shelf.survey()
        left_out = {name: engine.left_out[name] for name in available if name in engine.left_out}
        return Adapters(
            capacity=engine.bank.capacity,
            loaded=list(askings),
            available=available,
            not_served={**not_served, **left_out},
            asked={name: _how_asked(engine, asking) for name, asking in askings.items()},
            base=_how_asked(engine, engine.asking(None)),
        )

    @app.put(
        "/adapters/{name}",
        tags=["adapters"],
        dependencies=[Depends(service.accepting)],
        responses=problems(404, 409, 422, 503),
    )
    def load(name: Name) -> Loaded:
        """Loads an adapter of the operator's directory; one that is loaded is read again."""
        method = engine.load(name, service.shelf.find(name))
        return Loaded(name=name, method=method.name)

    @app.delete(
        "/adapters/{name}",
        tags=["adapters"],
        status_code=204,
        dependencies=[Depends(service.accepting)],
        responses=problems(404, 422, 503),
    )
    def unload(name: Name) -> None:
        """Takes an adapter from the device; its files stay. Requests that wait for it are answered with 404."""
        engine.unload(name)


def _how_asked(engine: Engine, asking: Asking) -> HowAsked:
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


def _operation(app: FastAPI, service: Service) -> None:
    """The routes for those who run the server."""

    @app.get("/healthz", tags=["operation"], dependencies=[Depends(service.answering)], responses=problems(503))
    async def healthz() -> Health:
        """200 while the process answers at all; 503 is for whoever restarts it."""
        return Health(status="ok")

    ready = [Depends(service.accepting), Depends(service.answering)]

    @app.get("/readyz", tags=["operation"], dependencies=ready, responses=problems(503))
    async def readyz() -> Health:
        """200 while new requests are taken: every program is compiled before the first connection is."""
        return Health(status="ready")

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(service.metrics.text())
