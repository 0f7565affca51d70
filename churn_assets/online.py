"""The online row: every feature of a customer at the served cutoff, and the champion's prediction.

Grain: one row per customer of the population of a scored cutoff. The IO manager publishes it to
Redis; an older cutoff never replaces a newer one.
"""

from collections.abc import Mapping

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.features import GROUPS
from churn_assets.predictions import CHURN_PREDICTIONS
from churn_assets.stores.offline import Query, Scan
from churn_assets.tables import Column, Table, cutoff_table

PREDICTION_COLUMNS = ("churn_probability", "prediction", "model_version")

ONLINE_FEATURES: Table = cutoff_table(
    "online_features",
    [
        *(column for group in GROUPS for column in group.table.columns[2:]),
        *(column for column in CHURN_PREDICTIONS.columns if column.name in PREDICTION_COLUMNS),
    ],
)


def online_query(relations: Mapping[str, str]) -> str:
    """Predictions with every feature group joined on.

    Args:
        relations: A SQL relation of one cutoff for `churn_predictions` and each feature group.
    """
    joins = " ".join(
        f"JOIN {relations[group.name]} AS {group.name} USING (customer_id, cutoff)"
        for group in GROUPS
    )
    columns = ", ".join(_qualified(column) for column in ONLINE_FEATURES.columns)
    return f"SELECT {columns} FROM {relations[CHURN_PREDICTIONS.name]} AS churn_predictions {joins}"


def _qualified(column: Column) -> str:
    return column.name if column.name in ("customer_id", "cutoff") else f'"{column.name}"'


def assets(calendar: Calendar) -> list[dg.AssetsDefinition]:
    """The online sync."""

    @dg.asset(
        description=__doc__,
        ins={
            name: dg.AssetIn(partition_mapping=calendar.same_cutoff)
            for name in (CHURN_PREDICTIONS.name, *(group.name for group in GROUPS))
        },
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="online_io_manager",
        group_name="online",
        kinds={"redis"},
        owners=["team:ml"],
        tags={"layer": "online"},
        metadata={"dagster/column_schema": ONLINE_FEATURES.as_dagster()},
        pool="online",
    )
    def online_features(context: dg.AssetExecutionContext, **tables: Scan) -> Query:
        newest = max(context.partition_keys)
        query = online_query({name: scan.sql for name, scan in tables.items()})
        return Query([f"SELECT * FROM ({query}) WHERE cutoff = DATE '{newest}'"])

    return [online_features]
