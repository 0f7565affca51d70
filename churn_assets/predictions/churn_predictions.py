"""Predictions: what the champion says of every customer, and whom it pays to contact.

Grain: one prediction per customer of the population and scored cutoff `C`. A prediction at `C`
reads the features of `C` and a model all of whose training labels were mature at `C`, which is
enforced. The threshold comes from what contacting is worth (`models.metrics.Economics`): with other
economics the probabilities and the models stay, and the predictions are made anew.
"""

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.features import Groups, feature_columns, feature_versions, sensitive_features
from churn_assets.models import contributions
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.champion import CHAMPION_MODEL, champion_of
from churn_assets.models.estimators import FittedModel
from churn_assets.predictions import reasons
from churn_assets.predictions.reasons import REASON_COLUMNS, Explainer
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import code_digest
from churn_assets.stores.tables import Column, cutoff_table, sql_version

if TYPE_CHECKING:
    import pandas as pd

AT_RISK, RETAINED = "CHURN RISK", "RETAIN"
CHURN_PREDICTIONS = cutoff_table(
    "churn_predictions",
    [
        Column(
            "churn_probability",
            "DOUBLE",
            "P(no purchase within the horizon)",
            minimum=0,
            maximum=1,
        ),
        Column("purchase_probability", "DOUBLE", "Its complement", minimum=0, maximum=1),
        Column("prediction", "VARCHAR", f"{AT_RISK} at or above the threshold, else {RETAINED}"),
        Column("threshold", "DOUBLE", "Probability from which contacting a customer pays"),
        Column("model_version", "VARCHAR", "Digest of the model that was used"),
        *REASON_COLUMNS,
    ],
)


def population_query(groups: Groups, store: OfflineStore, cutoff: dt.date) -> str:
    """A SELECT of customer_id and every feature of the population of a cutoff."""
    first, *others = groups
    key = cutoff.isoformat()
    names = ", ".join(column.name for column in feature_columns(groups))
    joins = " ".join(
        f"LEFT JOIN {store.scan(group.table, [key]).sql} AS {group.name} USING (customer_id)"
        for group in others
    )
    return (
        f"SELECT customer_id, {names} FROM {store.scan(first.table, [key]).sql} AS first_group "
        f"{joins}"
    )


def population_features(groups: Groups, store: OfflineStore, cutoff: dt.date) -> "pd.DataFrame":
    """customer_id and every feature of the population of a cutoff, ordered by customer."""
    with store.connect() as connection:
        return connection.execute(
            f"{population_query(groups, store, cutoff)} ORDER BY customer_id"
        ).df()


def explainer(
    groups: Groups, manifest: Manifest, model: FittedModel, lookback_days: int
) -> Explainer:
    """Tells the reasons of a model's predictions, without naming a sensitive feature."""
    return Explainer(model, groups, lookback_days, manifest.typical, sensitive_features(groups))


def predict(
    manifest: Manifest,
    model: FittedModel,
    explains: Explainer,
    features: "pd.DataFrame",
    threshold: float,
) -> "pd.DataFrame":
    """One row of `CHURN_PREDICTIONS`, without its cutoff, per row of features.

    Args:
        manifest: What the model is.
        model: The model.
        explains: Tells its reasons.
        features: One row per customer, with customer_id.
        threshold: Probability from which contacting a customer pays.
    """
    import numpy as np
    import pandas as pd

    churn = model.probabilities(features)
    at_risk = churn >= threshold
    predictions = pd.DataFrame(
        {
            "customer_id": features["customer_id"],
            "churn_probability": churn,
            "purchase_probability": 1 - churn,
            "prediction": np.where(at_risk, AT_RISK, RETAINED),
            "threshold": threshold,
            "model_version": manifest.version,
        }
    )
    names = [column.name for column in REASON_COLUMNS]
    told = pd.DataFrame(explains.reasons(features, at_risk), columns=names, dtype=object)
    return predictions.join(told)


def assets(
    groups: Groups, calendar: Calendar, store: OfflineStore, threshold: float
) -> list[dg.AssetsDefinition]:
    """The predictions of a cutoff; see `predict` for the threshold."""
    model_store = ModelStore(store.home)

    @dg.asset(
        description=f"The champion's predictions for the population.\n\n{__doc__}",
        deps=[
            dg.AssetDep(name, partition_mapping=calendar.same_cutoff)
            for name in (CHAMPION_MODEL.name, *(group.name for group in groups))
        ],
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(
            code_digest(predict, population_query, population_features, reasons, contributions),
            repr(threshold),
        ),
        group_name="predictions",
        kinds={"duckdb", "parquet"},
        owners=["team:ml"],
        tags={"layer": "predictions"},
        metadata={"dagster/column_schema": CHURN_PREDICTIONS.as_dagster()},
    )
    def churn_predictions(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        import pandas as pd

        scored = []
        for key in context.partition_keys:
            cutoff = parse_key(key)
            manifest = champion_of(calendar, model_store, cutoff)
            model = model_store.load(manifest, feature_versions(groups))
            explains = explainer(groups, manifest, model, calendar.lookback_days)
            features = population_features(groups, store, cutoff)
            predictions = predict(manifest, model, explains, features, threshold)
            scored.append(predictions.assign(cutoff=key))
            metadata = {
                "model": f"{manifest.model} of {manifest.cutoff}",
                "model_version": manifest.version,
                "threshold": threshold,
                "mean_churn_probability": float(predictions["churn_probability"].mean()),
                "churn_risk_share": float((predictions["prediction"] == AT_RISK).mean()),
            }
            defined = {k: v for k, v in metadata.items() if v == v}  # means of no rows are NaN
            context.add_asset_metadata(defined, partition_key=key)
        with store.connect() as connection:
            connection.register("scored", pd.concat(scored))
            yield dg.Output(Query("SELECT * FROM scored", connection))

    return [churn_predictions]
