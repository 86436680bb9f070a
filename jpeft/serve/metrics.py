"""The server's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)


class Metrics:
    """The metrics of one server; two servers in one process do not share them."""

    def __init__(self, *, queued: Callable[[], int], adapters: Callable[[], int]):
        """Registers the metrics; the arguments are called whenever the metrics are read."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        seconds = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
        self._requests = Counter(
            "jpeft_requests", "Requests answered, by route, method and status.", ["route", "method", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "jpeft_request_seconds", "From the request's head to its answer's end.", ["route"],
            registry=self._registry, buckets=seconds,
        )  # fmt: skip
        self._batch_rows = Histogram(
            "jpeft_batch_rows",
            "Rows answered together.",
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        self._batch_seconds = Histogram(
            "jpeft_batch_seconds", "Time that a batch took.", registry=self._registry, buckets=seconds
        )
        self._cut = Counter(
            "jpeft_inputs_cut", "Inputs that were cut to what their adapter's run took.", registry=self._registry
        )
        Gauge("jpeft_queue_rows", "Rows that wait.", registry=self._registry).set_function(queued)
        Gauge("jpeft_adapters", "Adapters loaded.", registry=self._registry).set_function(adapters)

    def batch(self, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def cut(self, inputs: int) -> None:
        """Counts inputs that were cut to the input lengths of their adapters' runs."""
        self._cut.inc(inputs)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts an HTTP request and its duration by route, method and status."""
        self._requests.labels(route, method, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
