"""What the service takes and gives: models that validate requests and describe the OpenAPI schema.

Models without features are classes here. Models with features depend on an installation's groups
and are made by `feature_schemas`; each feature appears with its declared description, unit, window
and group. Requests are strict: a number in quotes, an unknown field or NaN is refused, never
guessed at.

The operations themselves are in `routes`.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from churn_assets.features import Groups

MAX_ID_LENGTH = 256

# These two bound what one request may cost. A full batch of raw features is about 2 MB.
MAX_CUSTOMERS = 1_000

MAX_BODY_BYTES = 4_000_000


def _whole(value: Any) -> Any:
    """JSON has one kind of number, in which 1.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Most readers of JSON hold a number as a double, which is exact within these bounds.
Integer = Annotated[int, Field(ge=1 - 2**53, le=2**53 - 1), BeforeValidator(_whole)]

TYPES: dict[str, Any] = {
    "VARCHAR": str,
    "INTEGER": Integer,
    "BIGINT": Integer,
    "DOUBLE": Annotated[float, Field(allow_inf_nan=False)],
    "BOOLEAN": bool,
}

CustomerId = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]

Probability = Annotated[float, Field(ge=0, le=1)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        """Refuse the first unknown field: by itself pydantic lists all of them, however many."""
        if isinstance(content, dict) and not content.keys() <= cls.model_fields.keys():
            unknown = next(name for name in content if name not in cls.model_fields)
            raise PydanticCustomError(
                "extra_forbidden", "{name} is no field", {"name": unknown[:MAX_ID_LENGTH]}
            )
        return content


# The first item that is wrong is told, not every one.
_LIST = Field(min_length=1, max_length=MAX_CUSTOMERS), FailFast()


class CustomerIds(Request):
    customer_ids: Annotated[list[CustomerId], *_LIST]


class FeatureRows(Request):
    """Rows of raw features; `feature_schemas` makes the model that declares their fields."""

    rows: list[Any]


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
        description="CHURN RISK at or above the threshold, from which contacting pays"
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
    """The models that hold the features of an installation."""

    feature_rows: type[FeatureRows]
    customer_features: type[BaseModel]
    feature_batch: type[BaseModel]
    refreshed: type[BaseModel]


def feature_schemas(groups: Groups) -> FeatureSchemas:
    """The models that hold the features of these groups."""
    features: Any = create_model(
        "Features",
        __base__=Request,
        __doc__="Features by name; null where undefined. "
        "Counts and sums are 0 where nothing happened.",
        **_feature_fields(groups),
    )
    several: Any = Annotated[list[features], *_LIST]
    withheld = (list[str], Field(description="Features that the caller may not see"))
    row: Any = create_model(
        "FeatureRow",
        customer_id=str,
        features=(features, Field(description="All but the withheld ones")),
        published=(
            Published | None,
            Field(
                description="Null without the scope `predict`, and where the model has learned "
                "from features that the caller may not see"
            ),
        ),
    )
    return FeatureSchemas(
        feature_rows=create_model("FeatureRows", __base__=FeatureRows, rows=several),
        customer_features=create_model(
            "CustomerFeatures", __base__=(row, Served), withheld=withheld
        ),
        feature_batch=create_model(
            "FeatureBatch",
            __base__=Served,
            rows=(list[row], Field(description="In the order asked for")),
            missing=(
                list[str],
                Field(description="Customers that the served version does not have"),
            ),
            withheld=withheld,
        ),
        refreshed=create_model(
            "Refreshed",
            __base__=Served,
            customer_id=str,
            features=(
                features | None,
                Field(
                    description="Recomputed at the cutoff; null where the customer has no event in "
                    "the lookback"
                ),
            ),
            differences=(
                list[Difference],
                Field(description="Where the online row has another value"),
            ),
            withheld=list[str],
        ),
    )


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
