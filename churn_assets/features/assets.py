"""The assets of feature groups, made from their declarations.

Groups that look equally far back are made together: of each cutoff the population is computed once
and a rollup is read once for all of them, and then each group is written. Any group can be made
alone, with the same values. No row passes through Python.
"""

import datetime as dt
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import dagster as dg

from churn_assets import features
from churn_assets.cutoffs import Calendar, parse_key, utc_now
from churn_assets.features import Groups
from churn_assets.features.group import FeatureGroup
from churn_assets.features.queries import ANY_CUTOFF, feature_query
from churn_assets.stores.io_manager import shown
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.provenance import provenances
from churn_assets.stores.tables import sql_version


def assets(
    groups: Groups,
    calendar: Calendar,
    store: OfflineStore,
    now: Callable[[], dt.datetime] = utc_now,
) -> list[dg.AssetsDefinition]:
    """The groups of the lookback, and those that look at all that was before the cutoff."""
    lookback = calendar.lookback_days
    lifetime = [g for g in groups if math.inf in g.rollup_days(lookback).values()]
    recent = [group for group in groups if group not in lifetime]
    together = (("recent_features", recent), ("lifetime_features", lifetime))
    return [_asset(name, made, calendar, store, now) for name, made in together if made]


def _asset(
    name: str,
    groups: Sequence[FeatureGroup],
    calendar: Calendar,
    store: OfflineStore,
    now: Callable[[], dt.datetime],
) -> dg.AssetsDefinition:
    lookback = calendar.lookback_days
    reads = {group.name: group.rollup_days(lookback) for group in groups}
    rollups = sorted({rollup for days in reads.values() for rollup in days})
    reach = {rollup: max(d.get(rollup, 0) for d in reads.values()) for rollup in rollups}

    @dg.multi_asset(
        name=name,
        outs={
            group.name: dg.AssetOut(
                description=f"{group.description}\n\n{features.__doc__}",
                code_version=sql_version(
                    feature_query([group], ANY_CUTOFF, lookback, lambda rollup, _: rollup)
                ),
                kinds={"duckdb", "parquet"},
                owners=[group.owner],
                tags={"layer": "features"},
                metadata={"dagster/column_schema": group.table.as_dagster()},
                dagster_type=dg.Nothing,
                is_required=False,
            )
            for group in groups
        },
        ins={
            rollup: dg.AssetIn(partition_mapping=calendar.slices_before(days))
            for rollup, days in reach.items()
        },
        internal_asset_deps={
            group: {dg.AssetKey(rollup) for rollup in days} for group, days in reads.items()
        },
        partitions_def=calendar.cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name="features",
        can_subset=True,
    )
    def feature_groups(
        context: dg.AssetExecutionContext, **scans: Scan
    ) -> Iterator[dg.Output[None]]:
        keys = list(context.partition_keys)
        calendar.require_arrived(keys, now())
        selected = context.op_execution_context.selected_output_names
        asked = [group for group in groups if group.name in selected]
        provenance = {group.name: provenances(store, group.name) for group in asked}
        with store.connect() as connection:
            for done, key in enumerate(keys, 1):
                began, cutoff = time.monotonic(), parse_key(key)
                query = feature_query(asked, cutoff, lookback, partial(_before, scans, cutoff))
                connection.execute(f"CREATE OR REPLACE TEMP TABLE features_at AS {query}")
                for group in asked:
                    rows = Query({key: "SELECT * FROM features_at"})
                    written = store.publish(
                        connection, group.table, rows, [key], provenance[group.name]
                    )
                    seconds, began = time.monotonic() - began, time.monotonic()
                    metadata = shown(connection, group.table, written[key], seconds, group.describe)
                    context.add_asset_metadata(metadata, group.name, key)
                context.log.info(f"{key}: {done} of {len(keys)} cutoffs")
        for group in asked:
            yield dg.Output(None, group.name)

    return feature_groups


def _before(scans: Mapping[str, Scan], cutoff: dt.date, rollup: str, days: float) -> str:
    return scans[rollup].before(cutoff, days).sql
