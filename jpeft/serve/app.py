"""The HTTP routes of the server; their requests and responses are defined in `schema`."""

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
_COME_BACK = {"Retry-After": "5"}  # sent while the server stops or after it failed: another may take its place


class Service:
    """The state that all routes share. While `draining`, new work is refused and accepted work is finished."""

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
        """Refuses a request if the batcher has stopped."""
        if not self.batcher.running:
            raise HTTPException(503, "the server no longer answers; it has to be restarted.", _COME_BACK)

    def accepting(self) -> None:
        """Refuses new work while the server is stopping."""
        if self.draining:
            raise HTTPException(503, "the server is stopping.", _COME_BACK)


def make_app(service: Service) -> FastAPI:
    """Makes the FastAPI application. The engine has to be compiled before the first request."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        answering = asyncio.create_task(service.batcher.run())
        yield
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # the batcher has logged it
            await answering

    app = FastAPI(
        title="jpeft serve",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads scripts from another server
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
        """This document as a page."""
        return HTMLResponse(document_page(app.openapi()))

    return app


def _answers(app: FastAPI, service: Service) -> None:
    """Adds the route that answers inputs."""
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
        """Answers each input with the named adapter, using the template, labels and lengths of its run.

        Generated answers are decoded greedily.
        """
        engine.asking(request.adapter)  # an unknown adapter is refused before any work
        for i, given in enumerate(request.inputs):
            if _characters(given) > limits.characters:
                raise UserError(f"inputs[{i}] has more than {limits.characters} characters; send less.")
        async with asyncio.timeout(limits.request_seconds):
            with service.batcher.place_for(len(request.inputs)):  # first: a full queue would waste the work
                # In a thread: tokenising the largest body would block the event loop.
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
    """Adds the routes that list, load and unload adapters."""
    engine = service.engine

    @app.get("/adapters", tags=["adapters"])
    def adapters() -> Adapters:
        """The adapters that are loaded, with their settings; those that could be loaded; those that cannot, and why."""
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
        """Loads an adapter from the operator's directory, or reloads it."""
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
        """Unloads an adapter; its files stay. Queued requests for it are answered with 404."""
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
    """Adds the routes for the server's operator: health checks and metrics."""

    @app.get("/healthz", tags=["operation"], dependencies=[Depends(service.answering)], responses=problems(503))
    async def healthz() -> Health:
        """200 while the server can answer; at 503 it has to be restarted."""
        return Health(status="ok")

    ready = [Depends(service.accepting), Depends(service.answering)]

    @app.get("/readyz", tags=["operation"], dependencies=ready, responses=problems(503))
    async def readyz() -> Health:
        """200 while new requests are accepted; every program is compiled before the server listens."""
        return Health(status="ready")

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Metrics for Prometheus."""
        return PlainTextResponse(service.metrics.text())
