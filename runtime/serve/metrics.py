"""The server's metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The counters of one server; label values come from fixed sets, never from requests."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter(
            "deeprank_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "deeprank_request_seconds", "Time from request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("deeprank_requests_in_flight", "Requests in progress", registry=registry)
        self.connections = Gauge("deeprank_connections", "Open connections", registry=registry)
        self.body_bytes = Gauge("deeprank_body_bytes", "Bytes of uploads held in memory", registry=registry)
        self.turned_away = Counter(
            "deeprank_requests_turned_away", "Requests refused because of overload", registry=registry
        )
        self.batches = Histogram(
            "deeprank_batch_pictures", "Pictures in a batch", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.embedding = Histogram(
            "deeprank_embedding_seconds", "Time of the network for a batch", buckets=_SECONDS, registry=registry
        )
        self.searching = Histogram(
            "deeprank_search_seconds", "Time of the searches for a batch", buckets=_SECONDS, registry=registry
        )
        self.thumbnails = Counter("deeprank_thumbnails", "Thumbnails sent", ["source"], registry=registry)
        self.decoding_stopped = Counter(
            "deeprank_decoding_stopped", "Pictures whose decoding was stopped, by reason", ["reason"], registry=registry
        )
        self.items = Gauge("deeprank_index_items", "Pictures in the index", registry=registry)
        self.reopened = Counter("deeprank_index_reopened", "Times that the index was replaced", registry=registry)
        self.ready = Gauge("deeprank_ready", "1 while the index can be read", registry=registry)
