"""Labels: what each customer of the population did in `[C, C + horizon)`.

Grain: one row per customer with an event in `[C - lookback, C)` and labelled cutoff `C`. A
partition exists only once its labels are mature, and says what was known at that moment: what
becomes known later changes no label, and is counted by `realised_performance`. Nothing that is used
as a feature may read this.
"""

import datetime as dt
import math
from collections.abc import Callable
from fractions import Fraction

import dagster as dg

from churn_assets.cutoffs import Calendar, day_number, parse_key
from churn_assets.features.queries import ANY_CUTOFF, population
from churn_assets.history.known import known_before, placed
from churn_assets.history.rollups import DAILY_ACTIVITY, DAILY_ORDERS
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.tables import Column, Table, cutoff_table, sql_version

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
    cutoff: dt.date,
    matures_on: dt.date,
    lookback_days: int,
    horizon_days: int,
    daily_activity: str,
    daily_orders: str,
) -> str:
    """Labels of a cutoff. Relations are rollups before and from the cutoff on."""
    return f"""
        WITH population AS ({population(daily_activity, cutoff, lookback_days)}),
        future AS (
            SELECT customer_id, sum(purchase_orders) AS orders, sum(purchase_amount) AS revenue
            FROM {daily_orders} AS orders
            WHERE {in_horizon(cutoff, matures_on, horizon_days)}
            GROUP BY customer_id
        )
        SELECT population.customer_id, DATE '{cutoff}' AS cutoff,
            CASE WHEN coalesce(orders, 0) > 0 THEN 0 ELSE 1 END AS churned,
            CASE WHEN coalesce(orders, 0) > 0 THEN 1 ELSE 0 END AS purchased,
            coalesce(revenue, 0) AS future_revenue
        FROM population
        LEFT JOIN future ON future.customer_id = population.customer_id
    """


def in_horizon(cutoff: dt.date, matures_on: dt.date | None, horizon_days: int) -> str:
    """The predicate of what happened in `[cutoff, cutoff + horizon)` and was known at maturity.

    What is known by now, where no maturity is given.
    """
    day = day_number(cutoff)
    known = known_before(day_number(matures_on)) if matures_on else "replaced_day IS NULL"
    return f"day >= {day} AND day < {day} + {horizon_days} AND {known}"


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
    cutoff: dt.date,
    matures_on: dt.date,
    lookback_days: int,
    horizon_days: int,
    seed: int,
    daily_activity: str,
    raw_satisfaction: str,
) -> str:
    """Survey-based labels of a cutoff, NULL for customers without a survey.

    The draw is uniform from the first 52 bits of md5 of `seed|customer_id|cutoff`, so it is the
    same in every run and for every engine. Digests are compared as text, in which hex digits of
    equal length have the order of the numbers.
    """
    probability = " ".join(f"WHEN {score} THEN {p}" for score, p in CHURN_PROBABILITY.items())
    limit = " ".join(
        f"WHEN {score} THEN '{_hex_limit(p)}'" for score, p in CHURN_PROBABILITY.items()
    )
    draw = f"substr(md5(concat('{seed}|', customer_id, '|{cutoff}')), 1, 13)"
    surveys = placed(raw_satisfaction, "surveyed_at")
    return f"""
        WITH population AS ({population(daily_activity, cutoff, lookback_days)}),
        surveys AS (
            SELECT customer_id, max_by(satisfaction_score, surveyed_at) AS score
            FROM {surveys} AS surveys
            WHERE {in_horizon(cutoff, matures_on, horizon_days)}
            GROUP BY customer_id
        ),
        scored AS (
            SELECT population.customer_id, score,
                CAST(CASE score {probability} END AS DOUBLE) AS p,
                CASE score {limit} END AS drawn_below
            FROM population LEFT JOIN surveys ON surveys.customer_id = population.customer_id
        )
        SELECT customer_id, DATE '{cutoff}' AS cutoff, score AS satisfaction_score,
            p AS satisfaction_churn_probability,
            CASE WHEN {draw} < drawn_below THEN 1 WHEN p IS NOT NULL THEN 0 END
                AS satisfaction_churned
        FROM scored
    """


def _hex_limit(probability: float) -> str:
    """The least 13 hex digits that are not below a probability as a share of 2^52."""
    return f"{math.ceil(Fraction(probability) * 2**52):013x}"


def assets(calendar: Calendar, seed: int) -> list[dg.AssetsDefinition]:
    """The label sets."""
    days = (calendar.lookback_days, calendar.horizon_days)

    def labels(
        table: Table, outcomes: str, description: str, query: Callable[..., str]
    ) -> dg.AssetsDefinition:
        """A label set of the customers with activity, from what `outcomes` says of the horizon.

        `query` takes a cutoff, the day before which outcomes count as known, and two relations.
        """
        before = calendar.slices_before(calendar.lookback_days)

        @dg.asset(
            name=table.name,
            description=f"{description}\n\n{__doc__}",
            ins={
                DAILY_ACTIVITY.name: dg.AssetIn(partition_mapping=before),
                outcomes: dg.AssetIn(partition_mapping=calendar.horizon_slices),
            },
            partitions_def=calendar.labeled_cutoffs,
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=sql_version(query(ANY_CUTOFF, ANY_CUTOFF, DAILY_ACTIVITY.name, outcomes)),
            group_name="labels",
            kinds={"duckdb", "parquet"},
            owners=["team:ml"],
            tags={"layer": "labels"},
            metadata={"dagster/column_schema": table.as_dagster()},
        )
        def label_set(context: dg.AssetExecutionContext, **scans: Scan) -> Query:
            def of_cutoff(cutoff: dt.date) -> str:
                return query(
                    cutoff,
                    calendar.labels_known_before(cutoff),
                    scans[DAILY_ACTIVITY.name].before(cutoff, calendar.lookback_days).sql,
                    scans[outcomes].after(cutoff, calendar.horizon_days).sql,
                )

            return Query({key: of_cutoff(parse_key(key)) for key in context.partition_keys})

        return label_set

    return [
        labels(
            CHURN_LABELS,
            DAILY_ORDERS.name,
            "Whether each customer purchased within the horizon.",
            lambda cutoff, known, *rows: churn_labels_query(cutoff, known, *days, *rows),
        ),
        labels(
            SATISFACTION_CHURN_LABELS,
            "raw_satisfaction",
            "The published alternative: churn drawn from what customers answer in surveys. "
            "Never the training target.",
            lambda cutoff, known, *rows: satisfaction_churn_labels_query(
                cutoff, known, *days, seed, *rows
            ),
        ),
    ]
