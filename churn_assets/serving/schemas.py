"""What the service takes and gives, for its OpenAPI schema and for validating requests.

Every feature appears with its description, unit, window and group as it is declared. Requests are
strict: a number in quotes, an unknown field or NaN is refused, never guessed at.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from churn_assets.features import Groups

# Bounds of what one request may cost; a batch of so many rows of raw features is about 2 MB.
MAX_CUSTOMERS = 1_000

MAX_BODY_BYTES = 4_000_000


def _whole(value: Any) -> Any:
    """JSON has one kind of number, in which 1.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The bounds within which that one kind of number, a double to most readers, is exact.
Integer = Annotated[int, Field(ge=1 - 2**53, le=2**53 - 1), BeforeValidator(_whole)]

TYPES: dict[str, Any] = {
    "VARCHAR": str,
    "INTEGER": Integer,
    "BIGINT": Integer,
    "DOUBLE": Annotated[float, Field(allow_inf_nan=False)],
    "BOOLEAN": bool,
}

CustomerId = Annotated[str, Field(min_length=1, max_length=256)]

Probability = Annotated[float, Field(ge=0, le=1)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _feature_fields(groups: Groups) -> dict[str, Any]:
    return {
        feature.name: (
            TYPES[feature.dtype] | None,
            Field(
                None,
                description=feature.description,
                json_schema_extra={
                    "x-unit": feature.unit,
                    "x-window": feature.window,
                    "x-group": group.name,
                    "x-sensitive": feature.sensitive,
                },
            ),
        )
        for group in groups
        for feature in group.features
    }


class CustomerIds(Request):
    customer_ids: Annotated[list[CustomerId], Field(min_length=1, max_length=MAX_CUSTOMERS)]


class Served(BaseModel):
    """Where rows come from; all rows of one answer come from one version."""

    cutoff: dt.date = Field(description="The features hold what was known before its UTC midnight")
    source: Literal["redis", "snapshot"] = Field(
        description="The online store, or the service's own copy of the version it last saw live"
    )
    stale: bool = Field(description="True where the online store could not confirm the rows")


class Prediction(BaseModel):
    churn_probability: Probability = Field(description="P(no purchase within the horizon)")
    prediction: Literal["CHURN RISK", "RETAIN"] = Field(
        description="CHURN RISK at or above the model's threshold"
    )


class Published(Prediction):
    """The prediction as it was published with the features."""

    model_version: str


class Model(BaseModel):
    """The champion: the model of the newest decision."""

    model: str
    model_cutoff: dt.date = Field(description="The cutoff that it was trained for")
    model_version: str
    threshold: Probability = Field(description="From which contacting a customer pays")


class LivePrediction(Prediction):
    purchase_probability: Probability = Field(description="The complement of churn_probability")


class CustomerPrediction(LivePrediction, Model, Served):
    customer_id: str
    reasons: list[str] | None = Field(
        None, description="What speaks for the prediction, where `explain` asks for it"
    )


class PredictedRow(LivePrediction):
    customer_id: str | None = Field(None, description="Absent for raw features")


class Predictions(Model):
    rows: list[PredictedRow] = Field(description="In the order asked for")
    missing: list[str] = Field(description="Customers that the served version does not have")
    cutoff: dt.date | None = Field(None, description="As in /features; absent for raw features")
    source: Literal["redis", "snapshot"] | None = None
    stale: bool | None = None


class Difference(BaseModel):
    feature: str
    online: Any
    recomputed: Any


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, str] = Field(description="What works, and why something does not")


class Problem(BaseModel):
    detail: str


class InvalidRequest(BaseModel):
    detail: list[dict[str, Any]] = Field(description="Where and what; never the value")


@dataclass(frozen=True)
class FeatureSchemas:
    """The requests and answers that hold features, which an installation's groups decide.

    Args:
        rows: A request with rows of raw features, in field `rows`.
        customer: The features of one customer.
        batch: Those of many.
        refreshed: Those of one customer, recomputed.
    """

    rows: type[BaseModel]
    customer: type[BaseModel]
    batch: type[BaseModel]
    refreshed: type[BaseModel]


def feature_schemas(groups: Groups) -> FeatureSchemas:
    """The schemas for the features of these groups."""
    Features: Any = create_model(
        "Features",
        __base__=Request,
        __doc__="Features by name; null where undefined. "
        "Counts and sums are 0 where nothing happened.",
        **_feature_fields(groups),
    )

    class FeatureRows(Request):
        rows: Annotated[list[Features], Field(min_length=1, max_length=MAX_CUSTOMERS)]

    class FeatureRow(BaseModel):
        customer_id: str
        features: Features = Field(description="All but the withheld ones")
        published: Published

    class CustomerFeatures(FeatureRow, Served):
        withheld: list[str] = Field(description="Features that the caller may not see")

    class FeatureBatch(Served):
        rows: list[FeatureRow] = Field(description="In the order asked for")
        missing: list[str] = Field(description="Customers that the served version does not have")
        withheld: list[str] = Field(description="Features that the caller may not see")

    class Refreshed(Served):
        customer_id: str
        features: Features | None = Field(
            description="Recomputed at the cutoff; null where the customer has no event in the "
            "lookback"
        )
        differences: list[Difference] = Field(description="Where the online row has another value")
        withheld: list[str]

    return FeatureSchemas(FeatureRows, CustomerFeatures, FeatureBatch, Refreshed)
