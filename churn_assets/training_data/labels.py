"""Labels: what each customer of the population did in `[C, C + horizon)`.

Grain: one row per customer with an event in `[C - lookback, C)` and labelled cutoff `C`. A
partition exists only once its labels are mature. Nothing that is used as a feature may read this.
"""

import datetime as dt
from collections.abc import Sequence

import dagster as dg

from churn_assets.cutoffs import DAY_US, Calendar, parse_key
from churn_assets.features.group import cutoff_rows, population
from churn_assets.history.rollups import DAILY_ACTIVITY, DAILY_ORDERS
from churn_assets.stores.offline import Query, Scan, buckets
from churn_assets.stores.tables import Column, cutoff_table, sql_version

CHURN_LABELS = cutoff_table(
    "churn_labels",
    [
        Column(
            "churned", "INTEGER", "1 where there is no purchase within the horizon", "0 or 1", 0, 1
        ),
        Column("purchased", "INTEGER", "1 where there is one: 1 - churned", "0 or 1", 0, 1),
        Column("future_revenue", "DECIMAL(38, 4)", "Purchases within the horizon", "currency", 0),
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


SATISFACTION_CHURN_LABELS = cutoff_table(
    "satisfaction_churn_labels",
    [
        Column("satisfaction_score", "INTEGER", "The latest survey within the horizon", "1 to 5"),
        Column("satisfaction_churn_probability", "DOUBLE", "What the score stands for"),
        Column("satisfaction_churned", "INTEGER", "A draw with that probability", "0 or 1"),
    ],
)

# Probability of churn by satisfaction score, as published with the survey-based alternative.
CHURN_PROBABILITY = {1: 0.8, 2: 0.6, 3: 0.35, 4: 0.15, 5: 0.05}


def satisfaction_churn_labels_query(
    cutoffs: Sequence[dt.date],
    lookback_days: int,
    horizon_days: int,
    seed: int,
    daily_activity: str,
    raw_satisfaction: str,
) -> str:
    """Survey-based labels of all the given cutoffs, NULL for customers without a survey.

    The draw is uniform from the first 52 bits of md5 of `seed|customer_id|cutoff`, so it is the
    same in every run and for every engine.
    """
    probability = " ".join(f"WHEN {score} THEN {p}" for score, p in CHURN_PROBABILITY.items())
    draw = (
        f"CAST('0x' || md5({seed} || '|' || customer_id || '|' || CAST(cutoff AS VARCHAR))[:13] "
        "AS BIGINT) / 4503599627370496.0"
    )
    return f"""
        WITH {cutoff_rows(cutoffs)},
        population AS ({population(daily_activity, lookback_days)}),
        surveys AS (
            SELECT customer_id, cutoff_day, max_by(satisfaction_score, surveyed_at) AS score
            FROM (SELECT *, epoch_us(surveyed_at) // {DAY_US} AS day FROM {raw_satisfaction})
            JOIN cutoffs ON day >= cutoff_day AND day < cutoff_day + {horizon_days}
            GROUP BY customer_id, cutoff_day
        ),
        scored AS (
            SELECT population.customer_id, cutoff, score,
                CAST(CASE score {probability} END AS DOUBLE) AS p
            FROM population LEFT JOIN surveys ON surveys.customer_id = population.customer_id
                AND surveys.cutoff_day = population.cutoff_day
        )
        SELECT customer_id, cutoff, score AS satisfaction_score,
            p AS satisfaction_churn_probability,
            CASE WHEN {draw} < p THEN 1 WHEN p IS NOT NULL THEN 0 END AS satisfaction_churned
        FROM scored
    """


def assets(calendar: Calendar, seed: int) -> list[dg.AssetsDefinition]:
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

    satisfaction_code = satisfaction_churn_labels_query(
        [dt.date(2000, 1, 1)],
        calendar.lookback_days,
        calendar.horizon_days,
        seed,
        DAILY_ACTIVITY.name,
        "raw_satisfaction",
    )

    @dg.asset(
        description=(
            "The published alternative: churn drawn from what customers answer in surveys. "
            f"Never the training target.\n\n{__doc__}"
        ),
        ins={
            "daily_activity": dg.AssetIn(
                partition_mapping=calendar.slices_before(calendar.lookback_days)
            ),
            "raw_satisfaction": dg.AssetIn(partition_mapping=calendar.horizon_slices),
        },
        partitions_def=calendar.labeled_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(satisfaction_code),
        group_name="labels",
        kinds={"duckdb", "parquet"},
        owners=["team:ml"],
        tags={"layer": "labels"},
        metadata={"dagster/column_schema": SATISFACTION_CHURN_LABELS.as_dagster()},
    )
    def satisfaction_churn_labels(
        context: dg.AssetExecutionContext, daily_activity: Scan, raw_satisfaction: Scan
    ) -> Query:
        return Query(
            [
                satisfaction_churn_labels_query(
                    [parse_key(key) for key in context.partition_keys],
                    calendar.lookback_days,
                    calendar.horizon_days,
                    seed,
                    daily_activity.sql,
                    raw_satisfaction.sql,
                )
            ]
        )

    return [churn_labels, satisfaction_churn_labels]
