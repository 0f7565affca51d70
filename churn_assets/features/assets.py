"""The assets of feature groups: one per group, made from its declaration.

Every cutoff of a range is computed in one query, and no row passes through Python.
"""

import datetime as dt
from collections.abc import Callable

import dagster as dg

from churn_assets import features
from churn_assets.cutoffs import Calendar, parse_key, utc_now
from churn_assets.features import Groups
from churn_assets.features.group import FeatureGroup, group_query
from churn_assets.stores.offline import Query, Scan, buckets
from churn_assets.stores.tables import sql_version

# Any cutoff serves to make a group's code version; it must only be the same at every load.
ANY_CUTOFF = dt.date(2000, 1, 1)


def assets(
    groups: Groups, calendar: Calendar, now: Callable[[], dt.datetime] = utc_now
) -> list[dg.AssetsDefinition]:
    """One asset per feature group, computing every cutoff of a range in one query."""
    return [_asset(group, calendar, now) for group in groups]


def _asset(
    group: FeatureGroup, calendar: Calendar, now: Callable[[], dt.datetime]
) -> dg.AssetsDefinition:
    rollup_days = group.rollup_days(calendar.lookback_days)
    code = group_query(group, [ANY_CUTOFF], calendar.lookback_days, {n: n for n in rollup_days})

    @dg.asset(
        name=group.name,
        description=f"{group.description}\n\n{features.__doc__}",
        ins={
            rollup: dg.AssetIn(partition_mapping=calendar.slices_before(days))
            for rollup, days in rollup_days.items()
        },
        partitions_def=calendar.cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(code),
        group_name="features",
        kinds={"duckdb", "parquet"},
        owners=[group.owner],
        tags={"layer": "features"},
        metadata={"dagster/column_schema": group.table.as_dagster()},
    )
    def feature_group(context: dg.AssetExecutionContext, **rollups: Scan) -> Query:
        calendar.require_arrived(context.partition_keys, now())
        cutoffs = [parse_key(key) for key in context.partition_keys]
        bucketed = buckets(*rollups.values())
        return Query(
            [
                group_query(
                    group,
                    cutoffs,
                    calendar.lookback_days,
                    {name: scan.bucket(b, len(bucketed)) for name, scan in rollups.items()},
                )
                for b in bucketed
            ],
            describe=group.describe,
        )

    return feature_group
