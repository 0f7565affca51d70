"""What is there: per asset, which partitions are present, missing, failed or stale.

Present is what Dagster recorded as materialized and, for a table of the offline store, what has a
file. Failed is a partition whose latest attempt failed after its latest success. Stale is a file
whose provenance differs from what it would have now, or that was made from such a file.
"""

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.stores.models import find_provenance
from churn_assets.stores.offline import OfflineStore, current_provenance, upstream_keys

# The one partition of an asset without partitions.
WHOLE = ""


@dataclass(frozen=True)
class AssetInventory:
    """The partitions of one asset; an unpartitioned asset has the one partition `WHOLE`."""

    asset: dg.AssetKey
    group: str
    existing: Sequence[str]
    present: frozenset[str]
    failed: frozenset[str]
    stale: frozenset[str]

    @property
    def missing(self) -> list[str]:
        return [key for key in self.existing if key not in self.present]


def present_partitions(
    defs: dg.Definitions, store: OfflineStore, instance: dg.DagsterInstance, asset: dg.AssetKey
) -> set[str]:
    """The materialized partitions of an asset."""
    table = store.tables.get(asset.path[-1])
    node = defs.resolve_asset_graph().get(asset)
    if not node.is_partitioned:
        materialized = instance.get_latest_materialization_event(asset) is not None
        has_file = table is None or store.path(table, None).exists()
        return {WHOLE} if materialized and has_file else set()
    recorded = set(instance.get_materialized_partitions(asset))
    return recorded & set(store.keys(table)) if table else recorded


def failed_partitions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> set[str]:
    """Partitions whose latest attempt belongs to a run that failed."""
    log = instance.event_log_storage
    attempts = log.get_latest_asset_partition_materialization_attempts_without_materializations(
        asset
    )
    runs = {run_id for run_id, _ in attempts.values()}
    failed = (
        {
            record.dagster_run.run_id
            for record in instance.get_run_records(
                dg.RunsFilter(run_ids=list(runs), statuses=[dg.DagsterRunStatus.FAILURE])
            )
        }
        if runs
        else set()
    )
    return {key for key, (run_id, _) in attempts.items() if run_id in failed}


def inventory(
    defs: dg.Definitions,
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    now: dt.datetime,
) -> list[AssetInventory]:
    """Every materializable asset in data order, with its partitions."""
    graph = defs.resolve_asset_graph()
    specs = {spec.key: spec for spec in defs.resolve_all_asset_specs()}
    stale: dict[dg.AssetKey, set[str]] = {}
    on_disk = cache(store.present)
    rows = []
    for asset in graph.toposorted_asset_keys:
        if asset not in graph.materializable_asset_keys:
            continue
        node = graph.get(asset)
        definition = node.partitions_def
        existing = (
            calendar.keys(definition, now)
            if isinstance(definition, dg.TimeWindowPartitionsDefinition)
            else [WHOLE]
        )
        present = present_partitions(defs, store, instance, asset)
        stale[asset] = {
            key
            for key in present
            if _is_stale(store, calendar, specs[asset], key or None, stale, on_disk)
        }
        rows.append(
            AssetInventory(
                asset,
                node.group_name,
                existing,
                frozenset(present),
                frozenset(failed_partitions(instance, asset)),
                frozenset(stale[asset]),
            )
        )
    return rows


def _is_stale(
    store: OfflineStore,
    calendar: Calendar,
    spec: dg.AssetSpec,
    key: str | None,
    stale: dict[dg.AssetKey, set[str]],
    on_disk: Callable[[str], Sequence[str | None]],
) -> bool:
    name = spec.key.path[-1]
    table = store.tables.get(name)
    made_from = (
        store.provenance(table, key) if table else find_provenance(store.artefact(name, key))
    )
    if made_from is None:
        return False
    if made_from != current_provenance(store, calendar, spec, key, on_disk):
        return True
    return any(
        upstream_keys(calendar, dep.partition_mapping, key, _keys(stale[dep.asset_key]))
        for dep in spec.deps
        if stale.get(dep.asset_key)
    )


def _keys(partitions: Collection[str]) -> list[str | None]:
    return [key or None for key in sorted(partitions)]
