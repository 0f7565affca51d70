"""Logs and metrics of the service. Neither ever holds a customer id: routes appear as templates.

Logs are JSON, one object per line on standard output. Metrics are Prometheus', and cover all worker
processes where `PROMETHEUS_MULTIPROC_DIR` is set, as `churn serve` does for more than one.
"""

import datetime as dt
import logging
import os
import secrets
import time
from functools import lru_cache
from traceback import extract_tb
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic_core import to_json
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

REQUEST_SECONDS = Histogram(
    "churn_request_seconds",
    "Time from the request's head to the response's end",
    ["route", "status"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)

READS = Counter(
    "churn_customer_reads", "Customers looked up: where they were found, or missing", ["source"]
)

REFUSALS = Counter("churn_refusals", "Requests refused for want of a right or a limit", ["status"])

# The watcher sets gauges all the time, so the most recent value of any process is right.
CUTOFF_AGE = Gauge(
    "churn_served_cutoff_age_seconds", "Age of the served cutoff", multiprocess_mode="mostrecent"
)

ONLINE_UP = Gauge(
    "churn_online_store_up", "Whether the online store answers", multiprocess_mode="mostrecent"
)

MODEL_INFO = Gauge(
    "churn_model_info",
    "1 for the champion in use",
    ["model", "version"],
    multiprocess_mode="mostrecent",
)

# What every response carries: nothing is cached, sniffed, framed or loaded from elsewhere.
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "churn_assets.serving.telemetry.JsonLines"}},
    "handlers": {
        "out": {
            "class": "logging.StreamHandler",
            "formatter": "json",
            "stream": "ext://sys.stdout",
        }
    },
    "root": {"handlers": ["out"], "level": "WARNING"},
    "loggers": {
        "churn_assets": {"level": "INFO"},
        "uvicorn": {"level": "INFO"},
    },
}


def _kinds_and_places(error: BaseException | None) -> list[str]:
    """An exception and those that led to it, without their texts: these may name a customer."""
    told: list[str] = []
    while error:
        places = [f"{f.filename}:{f.lineno} {f.name}" for f in extract_tb(error.__traceback__)]
        told = [type(error).__name__, *places, *told]
        error = error.__cause__ or error.__context__
    return told


class JsonLines(logging.Formatter):
    """One JSON object per line; `extra={"fields": …}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": dt.datetime.fromtimestamp(record.created, dt.UTC),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = _kinds_and_places(record.exc_info[1])
        return to_json(line).decode()


@lru_cache
def labelled(metric: Any, *values: Any) -> Any:
    """The metric of some label values; prometheus_client takes longer to find it than to count."""
    return metric.labels(*values)


class Telemetry:
    """Times, counts, logs and names every request, and answers 500 where an endpoint fails."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = secrets.token_hex(16)
        scope["request_id"] = request_id
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += [*HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception:
            log.exception("An endpoint failed.", extra={"fields": {"request_id": request_id}})
            if status:
                raise
            text = f"The service failed; its log says why under request {request_id}."
            await JSONResponse({"detail": text}, 500)(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "(none)")
            labelled(REQUEST_SECONDS, route, status).observe(seconds)
            if status in (401, 403, 413, 429):
                labelled(REFUSALS, status).inc()
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 3),
                "caller": scope.get("caller"),
            }
            log.info("request", extra={"fields": fields})


def metrics() -> tuple[bytes, str]:
    """All metrics of all workers in Prometheus' text format, and its content type."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
