"""What is there: per asset, which partitions are present, missing, failed or stale.

Present is what Dagster recorded as materialized and, for a table of the offline store, what has a
file that can be read. Failed is a partition whose latest attempt failed after its latest success.
Stale is a partition whose provenance differs from what it would have now, or that was made from a
stale one. An asset that keeps no provenance, such as a report, is stale where something that it
reads was materialized after it.

What a person alone makes again, the topic model, may be stale and is none the less the current one:
its dependants are not stale because of it.

`asset_inventory` keeps the counts, one row per asset, and does not list itself.
"""

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.history.topic_model import TOPIC_MODEL
from churn_assets.monitoring.refresh_log import Target, attempts
from churn_assets.stores.artefacts import find_provenance
from churn_assets.stores.offline import OfflineStore, Query
from churn_assets.stores.pages import markdown
from churn_assets.stores.provenance import current_provenance, upstream_keys
from churn_assets.stores.tables import Column, Table

# What a person alone makes again.
ON_DEMAND = frozenset({TOPIC_MODEL})
# The one partition of an asset without partitions.
WHOLE = ""
# Metadata in which an asset without a file says what a partition was made from.
PROVENANCE = ("code_version", "inputs")
PAGE = 1_000

ASSET_INVENTORY = Table(
    "asset_inventory",
    key=("position",),
    columns=(
        Column("position", "INTEGER", "Place in the order of the data, from 0"),
        Column("asset", "VARCHAR", "The asset"),
        Column("asset_group", "VARCHAR", "Its group"),
        Column("existing", "BIGINT", "Partitions that exist now; 1 without partitions"),
        Column("present", "BIGINT", "Partitions that were made"),
        Column("missing", "BIGINT", "Partitions that exist and were not made"),
        Column("failed", "BIGINT", "Partitions whose latest attempt failed"),
        Column("stale", "BIGINT", "Partitions that would be others if they were made now"),
        Column("first_gap", "VARCHAR", "The first that is missing, failed or stale"),
    ),
    partitioned_by=None,
)


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

    @property
    def first_gap(self) -> str | None:
        return min({*self.missing, *self.failed, *self.stale}, default=None)


def present_partitions(
    defs: dg.Definitions, store: OfflineStore, instance: dg.DagsterInstance, asset: dg.AssetKey
) -> set[str]:
    """The materialized partitions of an asset."""
    table = store.tables.get(asset.path[-1])
    node = defs.resolve_asset_graph().get(asset)
    if not node.is_partitioned:
        materialized = instance.get_latest_materialization_event(asset) is not None
        has_file = table is None or store.has(table, None)
        return {WHOLE} if materialized and has_file else set()
    recorded = set(instance.get_materialized_partitions(asset))
    return {key for key in recorded if store.has(table, key)} if table else recorded


def outcomes(instance: dg.DagsterInstance, run_id: str) -> dict[Target, str]:
    """The status of everything that a failed run was to make; nothing of another run."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.status != dg.DagsterRunStatus.FAILURE:
        return {}
    return {target: status for target, (status, _) in attempts(instance, run).items()}


def failed_partitions(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    of_run: Callable[[str], Mapping[Target, str]],
) -> set[str]:
    """Partitions whose latest attempt failed; one that was skipped because of another did not.

    `of_run` gives the `outcomes` of a run.
    """
    log = instance.event_log_storage
    unmade = log.get_latest_asset_partition_materialization_attempts_without_materializations(asset)
    latest = {key: run_id for key, (run_id, _) in unmade.items()}
    if record := instance.get_asset_records([asset]):
        latest |= {WHOLE: record[0].asset_entry.last_run_id or ""}
    return {
        key
        for key, run_id in latest.items()
        if of_run(run_id).get((asset, key or None)) == "FAILURE"
    }


def inventory(
    defs: dg.Definitions,
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    now: dt.datetime,
) -> list[AssetInventory]:
    """Every other materializable asset in data order, with its partitions."""
    graph = defs.resolve_asset_graph()
    specs = {spec.key: spec for spec in defs.resolve_all_asset_specs()}
    stale: dict[dg.AssetKey, set[str]] = {}
    on_disk = cache(store.present)
    of_run = cache(partial(outcomes, instance))
    rows = []
    for asset in graph.toposorted_asset_keys:
        if asset not in graph.materializable_asset_keys or asset.path[-1] == ASSET_INVENTORY.name:
            continue
        node = graph.get(asset)
        definition = node.partitions_def
        existing = (
            calendar.keys(definition, now)
            if isinstance(definition, dg.TimeWindowPartitionsDefinition)
            else [WHOLE]
        )
        present = present_partitions(defs, store, instance, asset)
        stale[asset] = stale_partitions(
            store, calendar, instance, specs[asset], present & set(existing), stale, on_disk
        )
        rows.append(
            AssetInventory(
                asset,
                node.group_name,
                existing,
                frozenset(present),
                frozenset(failed_partitions(instance, asset, of_run)),
                frozenset(stale[asset]),
            )
        )
    return rows


def stale_partitions(
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    spec: dg.AssetSpec,
    present: Collection[str],
    stale: Mapping[dg.AssetKey, Collection[str]],
    on_disk: Callable[[str], Sequence[str | None]],
) -> set[str]:
    """Which of the present partitions of an asset would be others if they were made now.

    Args:
        store: Where files are.
        calendar: Where partitions lie.
        instance: Knows the assets that have no file.
        spec: The asset.
        present: Its partitions to look at.
        stale: The stale partitions of everything upstream.
        on_disk: See `current_provenance`.
    """
    name = spec.key.path[-1]
    table = store.tables.get(name)
    inherited = [
        (dep.partition_mapping, _keys(stale[dep.asset_key]))
        for dep in spec.deps
        if stale.get(dep.asset_key) and dep.asset_key.path[-1] not in ON_DEMAND
    ]
    published = cache(lambda: published_provenance(instance, spec.key))

    def is_stale(key: str | None) -> bool:
        if table:
            made_from: Mapping[str, str] | None = store.provenance(table, key)
        else:
            made_from = find_provenance(store.artefact(name, key)) or published().get(key or WHOLE)
        if made_from is None:
            return bool(inherited) or _is_older_than_inputs(instance, spec)
        return made_from != current_provenance(store, calendar, spec, key, on_disk) or any(
            upstream_keys(calendar, mapping, key, keys) for mapping, keys in inherited
        )

    return {key for key in present if is_stale(key or None)}


def published_provenance(
    instance: dg.DagsterInstance, asset: dg.AssetKey
) -> dict[str, dict[str, str]]:
    """Per partition, what an asset whose rows live elsewhere was made from, if it says so."""
    found: dict[str, dict[str, str]] = {}
    cursor, more = None, True
    while more:
        page = instance.fetch_materializations(asset, PAGE, cursor)
        cursor, more = page.cursor, page.has_more
        for record in page.records:  # newest first
            metadata = record.asset_materialization.metadata if record.asset_materialization else {}
            said = {k: str(metadata[k].value) for k in PROVENANCE if k in metadata}
            found.setdefault(record.partition_key or WHOLE, said)
    return {key: said for key, said in found.items() if said}


def _is_older_than_inputs(instance: dg.DagsterInstance, spec: dg.AssetSpec) -> bool:
    def newest(asset: dg.AssetKey) -> int:
        records = instance.fetch_materializations(asset, limit=1).records
        return records[0].storage_id if records else 0

    return any(newest(dep.asset_key) > newest(spec.key) for dep in spec.deps)


def _keys(partitions: Collection[str]) -> list[str | None]:
    return [key or None for key in sorted(partitions)]


def inventory_rows(inventories: Sequence[AssetInventory]) -> list[dict[str, Any]]:
    """The rows of `ASSET_INVENTORY`."""
    return [
        {
            "position": position,
            "asset": row.asset.path[-1],
            "asset_group": row.group,
            "existing": len(row.existing),
            "present": len(row.present),
            "missing": len(row.missing),
            "failed": len(row.failed),
            "stale": len(row.stale),
            "first_gap": row.first_gap,
        }
        for position, row in enumerate(inventories)
    ]


def assets(
    definitions: Callable[[], dg.Definitions],
    store: OfflineStore,
    calendar: Calendar,
    now: Callable[[], dt.datetime] = utc_now,
) -> list[dg.AssetsDefinition]:
    """The standing inventory of all other assets.

    Args:
        definitions: Gives the code location, which this asset is part of.
        store: Where files are.
        calendar: Where partitions lie.
        now: Decides which partitions exist.
    """

    @dg.asset(
        name=ASSET_INVENTORY.name,
        description=__doc__,
        code_version="1",
        group_name="monitoring",
        kinds={"dagster", "parquet"},
        owners=["team:data"],
        tags={"layer": "monitoring"},
        metadata={"dagster/column_schema": ASSET_INVENTORY.as_dagster()},
    )
    def asset_inventory(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        import pyarrow as pa

        rows = inventory_rows(inventory(definitions(), store, calendar, context.instance, now()))
        shown = ASSET_INVENTORY.column_names[1:]
        table = markdown(shown, [["" if row[n] is None else row[n] for n in shown] for row in rows])
        totals = {n: sum(row[n] for row in rows) for n in ("missing", "failed", "stale")}
        context.add_asset_metadata({**totals, "inventory": dg.MetadataValue.md(table)})
        with store.connect() as connection:
            connection.register("inventories", pa.Table.from_pylist(rows))
            yield dg.Output(Query(["FROM inventories"], connection))

    return [asset_inventory]
