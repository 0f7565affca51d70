"""The operations of the service: paths, requests, answers and the problems each may have.

What an operation does is in `serving.service` and the modules that it uses.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic_core import to_json

from churn_assets.features import (
    Groups,
)
from churn_assets.serving import schemas, telemetry
from churn_assets.serving.refresh import recompute
from churn_assets.serving.rows import Found, Row
from churn_assets.serving.service import Allowed, Service, Session

MAX_ID_LENGTH = 256

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


async def unavailable(request: Request, error: Exception) -> Response:
    """There is nothing to serve from yet."""
    return JSONResponse({"detail": str(error)}, 503)


def routes(groups: Groups) -> APIRouter:
    """All operations, with the features of an installation in their schemas."""
    own, router = schemas.feature_schemas(groups), APIRouter()
    FeatureRows: Any = own.rows

    @router.get(
        "/features/{customer_id:path}",
        response_model=own.customer,
        responses=PROBLEMS | NOT_FOUND,
    )
    async def features(
        customer_id: CustomerId, session: Annotated[Session, Depends(Allowed("features"))]
    ) -> Response:
        """The features of a customer at the served cutoff."""
        found = await session.read_one("features", customer_id)
        row = session.feature_row(only_row(found))
        return answer({**row, **served(found), "withheld": session.withheld})

    @router.post("/features:batch", response_model=own.batch, responses=PROBLEMS)
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
        body: schemas.CustomerIds | FeatureRows,
        session: Annotated[Session, Depends(Allowed("predict"))],
    ) -> Response:
        """The champion's predictions for many customers, or for raw features."""
        model = session.service.model
        if isinstance(body, FeatureRows):
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
        response_model=own.refreshed,
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
            fresh = recompute(
                service.groups, service.offline, service.calendar, customer_id, found.cutoff
            )
        finally:
            service.refreshing.release()
        if fresh is None and found.rows[0] is None:
            raise HTTPException(404, "No such customer at the served cutoff.")
        online, visible = session.visible(found.rows[0] or {}), fresh and session.visible(fresh)
        differences = [
            {"feature": name, "online": online.get(name), "recomputed": (visible or {}).get(name)}
            for name in service.feature_names
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

    return router
