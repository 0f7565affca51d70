"""Labels: what each customer of the population did in `[C, C + horizon)`.

Grain: one row per customer with an event in `[C - lookback, C)` and labelled cutoff `C`. A
partition exists only once its labels are mature. Nothing that is used as a feature may read this.
"""

import datetime as dt
from collections.abc import Sequence

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.features.group import cutoff_rows, population
from churn_assets.rollups import DAILY_ACTIVITY, DAILY_ORDERS
from churn_assets.stores.offline import Query, Scan, buckets
from churn_assets.tables import Column, cutoff_table, sql_version

CHURN_LABELS = cutoff_table(
    "churn_labels",
    [
        Column("churned", "INTEGER", "1 where there is no purchase within the horizon", "0 or 1"),
        Column("purchased", "INTEGER", "1 where there is one: 1 - churned", "0 or 1"),
        Column("future_revenue", "DECIMAL(38, 4)", "Purchases within the horizon", "currency"),
    ],
)


def churn_labels_query(
    cutoffs: Sequence[dt.date],
    lookback_days: int,
    horizon_days: int,
    daily_activity: str,
    daily_orders: str,
) -> str:
    """Labels of all the given cutoffs. Relations are rollups before and from the cutoffs on."""
    return f"""
        WITH {cutoff_rows(cutoffs)},
        population AS ({population(daily_activity, lookback_days)}),
        future AS (
            SELECT customer_id, cutoff_day,
                sum(purchase_orders) AS orders,
                sum(purchase_amount) AS revenue
            FROM {daily_orders} AS orders
            JOIN cutoffs ON day >= cutoff_day AND day < cutoff_day + {horizon_days}
            GROUP BY customer_id, cutoff_day
        )
        SELECT population.customer_id, population.cutoff,
            CASE WHEN coalesce(orders, 0) > 0 THEN 0 ELSE 1 END AS churned,
            CASE WHEN coalesce(orders, 0) > 0 THEN 1 ELSE 0 END AS purchased,
            coalesce(revenue, 0) AS future_revenue
        FROM population
        LEFT JOIN future ON future.customer_id = population.customer_id
            AND future.cutoff_day = population.cutoff_day
    """


def assets(calendar: Calendar) -> list[dg.AssetsDefinition]:
    """The label sets."""
    code = churn_labels_query(
        [dt.date(2000, 1, 1)],
        calendar.lookback_days,
        calendar.horizon_days,
        DAILY_ACTIVITY.name,
        DAILY_ORDERS.name,
    )

    @dg.asset(
        description=f"Whether each customer purchased within the horizon.\n\n{__doc__}",
        ins={
            "daily_activity": dg.AssetIn(
                partition_mapping=calendar.slices_before(calendar.lookback_days)
            ),
            "daily_orders": dg.AssetIn(partition_mapping=calendar.horizon_slices),
        },
        partitions_def=calendar.labeled_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(code),
        group_name="labels",
        kinds={"duckdb", "parquet"},
        owners=["team:ml"],
        tags={"layer": "labels"},
        metadata={"dagster/column_schema": CHURN_LABELS.as_dagster()},
    )
    def churn_labels(
        context: dg.AssetExecutionContext, daily_activity: Scan, daily_orders: Scan
    ) -> Query:
        cutoffs = [parse_key(key) for key in context.partition_keys]
        bucketed = buckets(daily_activity, daily_orders)
        return Query(
            [
                churn_labels_query(
                    cutoffs,
                    calendar.lookback_days,
                    calendar.horizon_days,
                    daily_activity.bucket(b, len(bucketed)),
                    daily_orders.bucket(b, len(bucketed)),
                )
                for b in bucketed
            ]
        )

    return [churn_labels]
