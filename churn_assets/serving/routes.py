"""The operations of the service, each under its path.

Reads and predictions of one customer run on the event loop, because they take a fraction of a
millisecond. Batches and refreshes run in threads, one at a time (`turns`).

What an operation takes and gives is declared in `schemas`; who may call it is decided in `access`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from pydantic_core import to_json

from churn_assets.features import Groups
from churn_assets.serving import schemas, telemetry
from churn_assets.serving.bodies import BodyRoute
from churn_assets.serving.problems import NOT_FOUND, PROBLEMS
from churn_assets.serving.refresh import recompute
from churn_assets.serving.rows import Found, Row
from churn_assets.serving.service import Allowed, Service, Session

CustomerId = Annotated[
    str,
    PathParameter(
        min_length=1,
        max_length=schemas.MAX_ID_LENGTH,
        pattern=r"^[^\n]*$",  # the path of a route does not match a line feed
        description="The customer, slashes and all",
    ),
]

FeaturesSession = Annotated[Session, Depends(Allowed("features"))]

PredictSession = Annotated[Session, Depends(Allowed("predict"))]

RefreshSession = Annotated[Session, Depends(Allowed("refresh"))]

MetricsSession = Annotated[Session, Depends(Allowed("metrics"))]


def operations(groups: Groups) -> APIRouter:
    """All operations of an installation with these feature groups."""
    models = schemas.feature_schemas(groups)
    FeatureRows = models.feature_rows
    one_customer = PROBLEMS | NOT_FOUND

    # Only the request of this operation holds features, so it alone is declared for the groups.
    def predict(
        body: schemas.CustomerIds | FeatureRows,  # type: ignore[valid-type]
        session: PredictSession,
    ) -> Response:
        """The champion's predictions for many customers, or for raw features."""
        return predict_many(body, session)

    router = APIRouter()
    router.get(
        "/features/{customer_id:path}",
        response_model=models.customer_features,
        responses=one_customer,
    )(features)
    with_body = partial(
        router.add_api_route, methods=["POST"], responses=PROBLEMS, route_class_override=BodyRoute
    )
    with_body("/features:batch", features_batch, response_model=models.feature_batch)
    router.post(
        "/predict/{customer_id:path}",
        response_model=schemas.CustomerPrediction,
        responses=one_customer,
    )(predict_customer)
    with_body("/predict", predict, response_model=schemas.Predictions)
    router.post(
        "/refresh/{customer_id:path}", response_model=models.refreshed, responses=one_customer
    )(refresh)
    router.get("/health")(health)
    router.get("/ready", responses={503: {"model": schemas.Readiness, "description": "Not ready"}})(
        ready
    )
    router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
            **{status: PROBLEMS[status] for status in (401, 403)},
        },
    )(metrics)
    return router


async def features(customer_id: CustomerId, session: FeaturesSession) -> Response:
    """The features of a customer at the served cutoff."""
    found = await session.read_one("features", customer_id)
    row = feature_row(session, only_row(found))
    return answer({**row, **served(found), "withheld": session.withheld})


def features_batch(body: schemas.CustomerIds, session: FeaturesSession) -> Response:
    """The features of many customers, all of one version."""
    found = session.read("features", body.customer_ids)
    return answer(
        {
            "rows": [feature_row(session, row) for row in found.rows if row],
            "missing": missing(body.customer_ids, found),
            **served(found),
            "withheld": session.withheld,
        }
    )


async def predict_customer(
    customer_id: CustomerId,
    session: PredictSession,
    explain: Annotated[bool, Query(description="Add the reasons, in some 20 ms")] = False,
) -> Response:
    """The champion's prediction for a customer, from the features at the served cutoff."""
    found = await session.read_one("predict", customer_id)
    row = only_row(found)
    seen = session.visible(row)
    model, prediction = await session.service.score(seen)
    told = {"reasons": await run_in_threadpool(model.reasons, seen)} if explain else {}
    return answer(
        {
            "customer_id": customer_id,
            **prediction,
            **model.description,
            **served(found),
            **told,
        }
    )


def predict_many(body: schemas.CustomerIds | schemas.FeatureRows, session: Session) -> Response:
    """What operation `predict` answers."""
    model = session.service.model
    if isinstance(body, schemas.FeatureRows):
        given = [row.model_dump(exclude_none=True) for row in body.rows]
        if told := {name for row in given for name in row} & {*session.withheld}:
            names = ", ".join(sorted(told))
            raise HTTPException(403, f"Features {names} need the scope `sensitive`.")
        session.charge(len(given))
        session.record("predict", rows=len(given))
        return answer({"rows": model.predict(given), "missing": [], **model.description})
    found = session.read("predict", body.customer_ids)
    known = [row for row in found.rows if row]
    predictions = model.predict([session.visible(row) for row in known])
    rows = [
        {"customer_id": row["customer_id"], **prediction}
        for row, prediction in zip(known, predictions, strict=True)
    ]
    lacking = missing(body.customer_ids, found)
    return answer({"rows": rows, "missing": lacking, **model.description, **served(found)})


async def refresh(customer_id: CustomerId, session: RefreshSession) -> Response:
    """The features of a customer recomputed from the offline store at the served cutoff.

    It writes nothing: a difference is corrected by a new sync. Each worker does one at a time, of
    each caller in turn.
    """
    service, caller = session.service, session.caller.name
    with service.refreshes.one(caller):
        async with service.refresh_turns.turn(caller):
            return await run_in_threadpool(refreshed, customer_id, session)


def refreshed(customer_id: str, session: Session) -> Response:
    """What operation `refresh` answers."""
    service = session.service
    found = session.read("refresh", [customer_id])
    fresh = recompute(service.groups, service.offline, service.calendar, customer_id, found.cutoff)
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


async def health() -> schemas.Health:
    """Whether the process answers."""
    return schemas.Health()


async def ready(request: Request, response: Response) -> schemas.Readiness:
    """Whether it can serve, and why not. Answers from a snapshot count as ready."""
    service: Service = request.app.state.service
    readiness = service.readiness()
    response.status_code = 200 if readiness.ready else 503
    return readiness


def metrics(session: MetricsSession) -> Response:
    """Latency, hit rate, age of the served cutoff, model version, of all workers."""
    content, media_type = telemetry.metrics()
    return Response(content, media_type=media_type)


def answer(content: Mapping[str, Any]) -> Response:
    """The content as JSON.

    The content is not validated, which would cost more than making it. Tests hold every answer to
    its schema.
    """
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


def feature_row(session: Session, row: Row) -> dict[str, Any]:
    """A row as it is answered: a `FeatureRow` of `schemas.feature_schemas`."""
    return {
        "customer_id": row["customer_id"],
        "features": session.visible(row),
        "published": session.published(row),
    }


def served(found: Found) -> dict[str, Any]:
    """Where rows come from, as it is answered: see `schemas.Served`."""
    return {"cutoff": found.cutoff, "source": found.source, "stale": found.stale}


def only_row(found: Found) -> Row:
    """The row of the one customer of a read; raises HTTPException 404 where there is none."""
    if (row := found.rows[0]) is None:
        raise HTTPException(404, "The served version has no such customer.")
    return row


def missing(customer_ids: Sequence[str], found: Found) -> list[str]:
    """The customers that have no row."""
    pairs = zip(customer_ids, found.rows, strict=True)
    return [customer_id for customer_id, row in pairs if row is None]
