"""The service: its endpoints, what they share, and what runs beside them.

Every read of a customer goes through `Session.read` or `read_one`, which charge the caller's rate,
look the rows up and record them in the audit log before anything is answered. Single reads and
predictions run on the event loop, since they take a fraction of a millisecond; batches and
refreshes run in threads. A watcher looks every second for a new version, a new champion and an
online store that went or came back.

Limits: a rate counts per worker process. TLS is left to the proxy in front.
"""

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from churn_assets.cutoffs import midnight, utc_now
from churn_assets.definitions import offline_store
from churn_assets.features import feature_columns, sensitive_features
from churn_assets.serving import schemas, telemetry
from churn_assets.serving.access import Access, Caller, RateLimit
from churn_assets.serving.audit import AuditLog
from churn_assets.serving.refresh import recompute
from churn_assets.serving.rows import Found, Row, Rows, Unavailable
from churn_assets.serving.scoring import LiveChampion, LiveModel
from churn_assets.serving.together import Together
from churn_assets.settings import Settings
from churn_assets.stores.models import ModelStore

WATCH_SECONDS = 1.0
GARBAGE_OBJECTS = 50_000
MAX_ID_LENGTH = 256
PAGE = Path(__file__).parent / "page"

FEATURE_NAMES = [column.name for column in feature_columns()]
SENSITIVE_NAMES = [name for name in FEATURE_NAMES if name in sensitive_features()]
PLAIN_NAMES = [name for name in FEATURE_NAMES if name not in SENSITIVE_NAMES]

log = logging.getLogger(__name__)
router = APIRouter()


class Service:
    """What all requests of a worker share."""

    def __init__(self, settings: Settings) -> None:
        self.access = Access.from_settings(settings)
        self.rate_limit = RateLimit(settings.rate_limit)
        self.rows = Rows(settings.home, settings.redis_url)
        self.audit = AuditLog(settings.home)
        self.champion = LiveChampion(ModelStore(settings.home), settings.lookback_days)
        self.offline = offline_store(settings)
        self.calendar = settings.calendar()
        self.refreshing = threading.Lock()
        self.find = Together(self._find)
        self.score = Together(self._score)

    def _find(self, customer_ids: Sequence[str]) -> list[Found]:
        found = self.rows.read(customer_ids)
        return [Found([row], found.cutoff, found.source, found.stale) for row in found.rows]

    def _score(self, rows: Sequence[Row]) -> list[tuple[LiveModel, dict[str, Any]]]:
        model = self.model
        return [(model, prediction) for prediction in model.predict(rows)]

    @property
    def model(self) -> LiveModel:
        """The champion; raises HTTPException 503 where there is none."""
        if self.champion.model is None:
            raise HTTPException(503, f"There is no model: {self.champion.problem}.")
        return self.champion.model

    def watch(self) -> None:
        """Follow what is published and chosen, and say so in the metrics."""
        before = self.champion.model
        self.rows.watch()
        self.champion.watch()
        telemetry.ONLINE_UP.set(not self.rows.away)
        if cutoff := self.rows.cutoff:
            telemetry.CUTOFF_AGE.set((utc_now() - midnight(cutoff)).total_seconds())
        if (model := self.champion.model) and model is not before:
            if before:
                telemetry.MODEL_INFO.labels(before.manifest.model, before.manifest.version).set(0)
            telemetry.MODEL_INFO.labels(model.manifest.model, model.manifest.version).set(1)

    def readiness(self) -> schemas.Readiness:
        """Whether rows can be served and scored; degraded is ready."""
        model, snapshot = self.champion.model, self.rows.snapshot
        champion = f"{model.decision.model} of {model.decision.model_cutoff}" if model else "none"
        checks = {
            "online store": self.rows.away or "ok",
            "features": f"version {snapshot.version}" if snapshot else "no version was seen live",
            "model": ": ".join(filter(None, [champion, self.champion.problem])),
        }
        return schemas.Readiness(ready=bool(model and snapshot), checks=checks)

    def close(self) -> None:
        self.rows.close()
        self.audit.close()


@dataclass(frozen=True)
class Session:
    """One request of one caller."""

    service: Service
    caller: Caller
    request_id: str

    async def read_one(self, action: str, customer_id: str) -> Found:
        """The row of a customer, charged and recorded; raises HTTPException as `read` does."""
        self.service.rate_limit.charge(self.caller, 1)
        found = await self.service.find(customer_id)
        self._record(action, [customer_id], found)
        return found

    def read(self, action: str, customer_ids: Sequence[str]) -> Found:
        """The rows of some customers, charged and recorded.

        Raises:
            HTTPException: 429 over the rate; 503 where the read cannot be recorded.
            Unavailable: There is nothing to serve from.
        """
        self.service.rate_limit.charge(self.caller, len(customer_ids))
        found = self.service.rows.read(customer_ids)
        self._record(action, customer_ids, found)
        return found

    def _record(self, action: str, customer_ids: Sequence[str], found: Found) -> None:
        known = [row is not None for row in found.rows]
        try:
            self.service.audit.record(
                self.request_id,
                self.caller.name,
                action,
                not self.withheld,
                found.source,
                found.cutoff,
                [*zip(customer_ids, known, strict=True)],
            )
        except OSError as error:
            log.error("The audit log cannot be written: %s", error)
            raise HTTPException(503, "The audit log cannot be written; see the log.") from None
        telemetry.labelled(telemetry.READS, found.source).inc(sum(known))
        telemetry.labelled(telemetry.READS, "missing").inc(len(known) - sum(known))

    @property
    def withheld(self) -> list[str]:
        """The features that the caller may not see."""
        return [] if "sensitive" in self.caller.scopes else SENSITIVE_NAMES

    def visible(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The features of a row that the caller may see."""
        names = PLAIN_NAMES if self.withheld else FEATURE_NAMES
        return {name: row[name] for name in names if name in row}

    def feature_row(self, row: Row) -> dict[str, Any]:
        """A row as it is answered: see `schemas.FeatureRow`."""
        return {
            "customer_id": row["customer_id"],
            "features": self.visible(row),
            "published": {
                "churn_probability": row["churn_probability"],
                "prediction": row["prediction"],
                "model_version": row["model_version"],
            },
        }


Operation = Callable[[str, Session], Awaitable[Response]]


class Allowed(HTTPBearer):
    """A session of a caller that has a scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            scheme_name="bearer", description="An API key, or a JSON web token", auto_error=False
        )
        self.scope = scope

    async def __call__(self, request: Request) -> Session:  # type: ignore[override]
        credentials = await super().__call__(request)
        service: Service = request.app.state.service
        token = credentials.credentials if credentials else None
        caller = service.access.caller(request, token, self.scope)
        request.scope["caller"] = caller.name
        return Session(service, caller, request.scope["request_id"])


CustomerId = Annotated[
    str,
    PathParameter(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern=r"^[^\n]*$",  # a path ends at a line feed
        description="The customer, slashes and all",
    ),
]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": schemas.Problem, "description": "The body is no JSON"},
    401: {"model": schemas.Problem, "description": "No valid key or token"},
    403: {"model": schemas.Problem, "description": "The scope is lacking"},
    413: {"description": "The body is too large", "content": {"text/plain": {}}},
    422: {"model": schemas.InvalidRequest, "description": "A value is not what it has to be"},
    429: {"model": schemas.Problem, "description": "Over the caller's rate"},
    503: {"model": schemas.Problem, "description": "Nothing to serve from yet"},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.Problem, "description": "The served version has no such customer"}
}


def answer(content: Mapping[str, Any]) -> Response:
    """JSON, without the cost of validating what was just made; tests hold it to the schema."""
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


def served(found: Found) -> dict[str, Any]:
    return {"cutoff": found.cutoff, "source": found.source, "stale": found.stale}


def only_row(found: Found) -> Row:
    """The row of the customer that was asked for; raises HTTPException 404 without one."""
    if (row := found.rows[0]) is None:
        raise HTTPException(404, "The served version has no such customer.")
    return row


def missing(customer_ids: Sequence[str], found: Found) -> list[str]:
    pairs = zip(customer_ids, found.rows, strict=True)
    return [customer_id for customer_id, row in pairs if row is None]


@router.get(
    "/features/{customer_id:path}",
    response_model=schemas.CustomerFeatures,
    responses=PROBLEMS | NOT_FOUND,
)
async def features(
    customer_id: CustomerId, session: Annotated[Session, Depends(Allowed("features"))]
) -> Response:
    """The features of a customer at the served cutoff."""
    found = await session.read_one("features", customer_id)
    row = session.feature_row(only_row(found))
    return answer({**row, **served(found), "withheld": session.withheld})


@router.post("/features:batch", response_model=schemas.FeatureBatch, responses=PROBLEMS)
def features_batch(
    body: schemas.CustomerIds, session: Annotated[Session, Depends(Allowed("features"))]
) -> Response:
    """The features of many customers, all of one version."""
    found = session.read("features", body.customer_ids)
    return answer(
        {
            "rows": [session.feature_row(row) for row in found.rows if row],
            "missing": missing(body.customer_ids, found),
            **served(found),
            "withheld": session.withheld,
        }
    )


@router.post(
    "/predict/{customer_id:path}",
    response_model=schemas.CustomerPrediction,
    responses=PROBLEMS | NOT_FOUND,
)
async def predict_customer(
    customer_id: CustomerId,
    session: Annotated[Session, Depends(Allowed("predict"))],
    explain: Annotated[bool, Query(description="Add the reasons, in some 20 ms")] = False,
) -> Response:
    """The champion's prediction for a customer, from the features at the served cutoff."""
    found = await session.read_one("predict", customer_id)
    row = only_row(found)
    model, prediction = await session.service.score(row)
    told = {"reasons": await run_in_threadpool(model.reasons, row)} if explain else {}
    return answer(
        {
            "customer_id": customer_id,
            **prediction,
            **model.description,
            **served(found),
            **told,
        }
    )


@router.post("/predict", response_model=schemas.Predictions, responses=PROBLEMS)
def predict(
    body: schemas.CustomerIds | schemas.FeatureRows,
    session: Annotated[Session, Depends(Allowed("predict"))],
) -> Response:
    """The champion's predictions for many customers, or for raw features."""
    model = session.service.model
    if isinstance(body, schemas.FeatureRows):
        session.service.rate_limit.charge(session.caller, len(body.rows))
        rows = model.predict([row.model_dump() for row in body.rows])
        return answer({"rows": rows, "missing": [], **model.description})
    found = session.read("predict", body.customer_ids)
    known = [row for row in found.rows if row]
    rows = [
        {"customer_id": row["customer_id"], **prediction}
        for row, prediction in zip(known, model.predict(known), strict=True)
    ]
    lacking = missing(body.customer_ids, found)
    return answer({"rows": rows, "missing": lacking, **model.description, **served(found)})


@router.post(
    "/refresh/{customer_id:path}",
    response_model=schemas.Refreshed,
    responses=PROBLEMS | NOT_FOUND,
)
def refresh(
    customer_id: CustomerId, session: Annotated[Session, Depends(Allowed("refresh"))]
) -> Response:
    """The features of a customer recomputed from the offline store at the served cutoff.

    It writes nothing: a difference is corrected by a new sync. Each worker does one at a time.
    """
    service = session.service
    found = session.read("refresh", [customer_id])
    if not service.refreshing.acquire(blocking=False):
        raise HTTPException(429, "A refresh is running; try again.", {"Retry-After": "1"})
    try:
        fresh = recompute(service.offline, service.calendar, customer_id, found.cutoff)
    finally:
        service.refreshing.release()
    if fresh is None and found.rows[0] is None:
        raise HTTPException(404, "No such customer at the served cutoff.")
    online, visible = session.visible(found.rows[0] or {}), fresh and session.visible(fresh)
    differences = [
        {"feature": name, "online": online.get(name), "recomputed": (visible or {}).get(name)}
        for name in FEATURE_NAMES
        if online.get(name) != (visible or {}).get(name)
    ]
    return answer(
        {
            "customer_id": customer_id,
            "features": visible,
            "differences": differences,
            **served(found),
            "withheld": session.withheld,
        }
    )


class Direct:
    """Middleware: a short way to an operation for the plain requests to it, `METHOD /name/id`.

    FastAPI and its middleware take most of the time of a read to find out which operation it is and
    what that depends on, and these depend on the customer and the caller only. Every other request
    goes on, one with a query, a body or too long an id for example, to where it is told what is
    wrong with it.
    """

    def __init__(self, app: ASGIApp, operations: Collection[Operation]) -> None:
        self.app = app
        self.operations: dict[str, tuple[str, APIRoute, Any]] = {}
        for route in router.routes:
            if isinstance(route, APIRoute) and route.endpoint in operations:
                (session,) = route.dependant.dependencies
                path = route.path.removesuffix("{customer_id:path}")
                for method in route.methods or ():
                    self.operations[path] = method, route, session.call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._way(scope) if scope["type"] == "http" else None
        if way is None:
            await self.app(scope, receive, send)
            return
        customer_id, route, allowed = way
        scope["route"] = route
        request = Request(scope)
        try:
            response = await route.endpoint(customer_id, await allowed(request))
        except HTTPException as error:
            response = await http_exception_handler(request, error)
        except Unavailable as error:
            response = await unavailable(request, error)
        await response(scope, receive, send)

    def _way(self, scope: Scope) -> tuple[str, APIRoute, Any] | None:
        """The customer, the route and the dependency that gives its session."""
        path: str = scope["path"]
        start = path.find("/", 1) + 1
        found = self.operations.get(path[:start])
        plain = (
            found
            and found[0] == scope["method"]
            and not scope["query_string"]
            and 0 < len(path) - start <= MAX_ID_LENGTH
            and "\n" not in path
            and all(
                name != b"transfer-encoding" and (name != b"content-length" or value == b"0")
                for name, value in scope["headers"]
            )
        )
        return (path[start:], *found[1:]) if found and plain else None


@router.get("/health")
async def health() -> schemas.Health:
    """Whether the process answers."""
    return schemas.Health()


@router.get("/ready", responses={503: {"model": schemas.Readiness, "description": "Not ready"}})
async def ready(request: Request, response: Response) -> schemas.Readiness:
    """Whether it can serve, and why not. Answers from a snapshot count as ready."""
    service: Service = request.app.state.service
    readiness = service.readiness()
    response.status_code = 200 if readiness.ready else 503
    return readiness


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
        **{status: PROBLEMS[status] for status in (401, 403)},
    },
)
def metrics(session: Annotated[Session, Depends(Allowed("metrics"))]) -> Response:
    """Latency, hit rate, age of the served cutoff, model version, of all workers."""
    content, media_type = telemetry.metrics()
    return Response(content, media_type=media_type)


async def unavailable(request: Request, error: Exception) -> Response:
    """There is nothing to serve from yet."""
    return JSONResponse({"detail": str(error)}, 503)


async def invalid_request(request: Request, error: Exception) -> Response:
    """What is wrong and where, without the value that was sent: it may be a customer's."""
    assert isinstance(error, RequestValidationError)
    detail = [{name: e[name] for name in ("type", "loc", "msg")} for e in error.errors()]
    return JSONResponse({"detail": detail}, 422)


def page(name: str) -> None:
    """Serve a file of the page; the browser is told to load nothing else."""

    @router.get("/" if name == "index.html" else f"/{name}", include_in_schema=False)
    async def file() -> FileResponse:
        return FileResponse(PAGE / name)


for name in ("index.html", "page.css", "page.js"):
    page(name)


async def watch(service: Service) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            await asyncio.to_thread(service.watch)
        except Exception:  # the next round may fare better, and requests go on meanwhile
            log.exception("The watcher failed.")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load everything before the first request, and let nothing of it be collected."""
    service: Service = app.state.service
    await asyncio.to_thread(service.watch)
    if service.champion.model:
        service.champion.model.predict([{}])
    gc.collect()
    gc.freeze()
    # A request makes some hundred objects and no cycle: look for one less often than by default.
    gc.set_threshold(GARBAGE_OBJECTS, *gc.get_threshold()[1:])
    watcher = asyncio.create_task(watch(service))
    log.info("serving", extra={"fields": service.readiness().model_dump()})
    yield
    watcher.cancel()
    service.close()
    gc.unfreeze()


def create_app(settings: Settings) -> FastAPI:
    """The service of an installation.

    Raises:
        SettingsError: A key is malformed; the message does not show it.
    """
    app = FastAPI(
        title="churn-assets",
        description="Online features and live churn predictions. `x-unit`, `x-window` (days) and "
        "`x-group` of a feature are as in the feature registry.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=schemas.MAX_BODY_BYTES,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={RequestValidationError: invalid_request, Unavailable: unavailable},
    )
    app.state.service = Service(settings)
    app.add_middleware(Direct, operations=[features, predict_customer])
    app.add_middleware(telemetry.Telemetry)  # around everything that was added before it
    app.include_router(router)
    return app


def from_environment() -> FastAPI:
    """What a worker process runs."""
    return create_app(Settings.read())
