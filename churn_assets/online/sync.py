"""The online row: every feature of a customer at the served cutoff, and the champion's prediction.

Grain: one row per customer of the population of a scored cutoff. The IO manager publishes it to
Redis; an older cutoff never replaces a newer one. After every sync a blocking check reads the
live version back and compares it with the offline rows.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups, feature_columns
from churn_assets.online import rows
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.provenance import code_digest, provenances
from churn_assets.stores.tables import Table, cutoff_table, sql_version

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

PREDICTION_COLUMNS = ("churn_probability", "prediction", "model_version")

ONLINE_FEATURES = "online_features"


def online_table(groups: Groups) -> Table:
    """The columns of an online row: every feature, then the prediction."""
    predicted = [c for c in CHURN_PREDICTIONS.columns if c.name in PREDICTION_COLUMNS]
    return cutoff_table(ONLINE_FEATURES, [*feature_columns(groups), *predicted])


def online_sources(groups: Groups) -> list[str]:
    """The tables that an online row is joined from."""
    return [CHURN_PREDICTIONS.name, *(group.name for group in groups)]


def online_query(groups: Groups, relations: Mapping[str, str]) -> str:
    """Predictions with every feature group joined on.

    Args:
        groups: The feature groups.
        relations: A SQL relation of one cutoff for `churn_predictions` and each feature group.
    """
    joins = " ".join(
        f"JOIN {relations[group.name]} AS {group.name} USING (customer_id, cutoff)"
        for group in groups
    )
    predictions = relations[CHURN_PREDICTIONS.name]
    return online_table(groups).typed(f"SELECT * FROM {predictions} AS churn_predictions {joins}")


def differences(
    connection: "DuckDBPyConnection", online: "pa.Table", offline: str
) -> dict[str, int]:
    """How many customers differ in each column; nothing where the two sides are equal.

    NULL equals NULL only. `customer_id` counts the customers that one side lacks.

    Args:
        connection: An open DuckDB connection.
        online: The columns of `online_table`, as they were read back.
        offline: A SQL relation with the same columns.
    """
    one_side = "online.customer_id IS NULL OR offline.customer_id IS NULL"
    counts = [f"count(*) FILTER ({one_side}) AS customer_id"] + [
        f"count(*) FILTER (NOT ({one_side}) AND online.{name} IS DISTINCT FROM offline.{name}) "
        f"AS {name}"
        for name in online.column_names
        if name != "customer_id"
    ]
    connection.register("online", online)
    row = connection.sql(
        f"SELECT {', '.join(counts)} FROM online FULL JOIN {offline} AS offline "
        "ON online.customer_id = offline.customer_id"
    ).to_arrow_table()
    return {name: count for name, count in row.to_pylist()[0].items() if count}


def assets(groups: Groups, calendar: Calendar, store: OfflineStore) -> list[dg.AssetsDefinition]:
    """The online sync."""

    @dg.asset(
        description=__doc__,
        ins={
            name: dg.AssetIn(partition_mapping=calendar.same_cutoff)
            for name in online_sources(groups)
        },
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="online_io_manager",
        code_version=sql_version(
            online_query(groups, {name: name for name in online_sources(groups)}),
            code_digest(rows),
        ),
        group_name="online",
        kinds={"redis"},
        owners=["team:ml"],
        tags={"layer": "online"},
        metadata={"dagster/column_schema": online_table(groups).as_dagster()},
        pool="online",
    )
    def online_features(context: dg.AssetExecutionContext, **tables: Scan) -> Query:
        newest = max(context.partition_keys)
        made_from = provenances(store, ONLINE_FEATURES)
        for key in context.partition_keys:
            # Redis keeps the newest versions only, so what each was made from is kept by Dagster.
            context.add_asset_metadata(made_from(key), partition_key=key)
        query = online_query(groups, {name: scan.sql for name, scan in tables.items()})
        return Query(f"SELECT * FROM ({query}) WHERE cutoff = DATE '{newest}'")

    return [online_features]


def checks(
    groups: Groups, calendar: Calendar, store: OfflineStore
) -> list[dg.AssetChecksDefinition]:
    """The parity of the online and the offline rows."""

    @dg.asset_check(
        asset=ONLINE_FEATURES,
        description="The rows read back from Redis equal the offline rows of the cutoff.",
        blocking=True,
        partitions_def=calendar.scored_cutoffs,
    )
    def online_equals_offline(
        context: dg.AssetCheckExecutionContext, online_features: Any
    ) -> dg.AssetCheckResult:
        if online_features is None:
            description = "Another cutoff is live, so nothing of this one is served."
            return dg.AssetCheckResult(passed=True, description=description)
        newest = max(context.op_execution_context.partition_keys)
        scans = {
            name: store.scan(store.tables[name], [newest]).sql for name in online_sources(groups)
        }
        with store.connect() as connection:
            found = differences(connection, online_features, f"({online_query(groups, scans)})")
        return dg.AssetCheckResult(
            passed=not found,
            description="Publish the cutoff again: something changed its rows." if found else None,
            metadata={"rows": online_features.num_rows, "customers_that_differ": found},
        )

    return [online_equals_offline]
