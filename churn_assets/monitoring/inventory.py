"""What is there: per asset, which partitions are present, missing, failed, stale or held back.

Present is what Dagster recorded as materialized and has the content that was written: a file that
can be read, the whole artefact of a model or the record of one that was pruned, or, of what was
published last, the rows online. Failed is a partition whose latest attempt failed after its latest
success. Stale is what `monitoring.staleness` says. Held back is a partition whose present content
breaks its contract. Foreign is what is there and is no partition as the settings have it, because
CHURN_START or CHURN_END changed or a clock was ahead: nothing reads it.

`asset_inventory` keeps the counts, one row per asset, and does not list itself.
"""

import datetime as dt
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.monitoring.refresh_log import Target, attempts
from churn_assets.monitoring.staleness import redefined, sources, stale
from churn_assets.online.io_manager import OnlineIOManager
from churn_assets.online.server import ServerError
from churn_assets.online.sync import ONLINE_FEATURES
from churn_assets.stores.artefacts import ArtefactStore
from churn_assets.stores.catalog import ON_DEMAND, WHOLE, Catalog
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.pages import markdown
from churn_assets.stores.partitions import Query
from churn_assets.stores.tables import Column, Table
from churn_assets.stores.verdicts import current_verdict, read_verdict

log = logging.getLogger(__name__)

# What the page of the inventory plots over time.
TOTALS = ("missing", "failed", "stale", "held_back", "foreign_partitions")

# Groups whose assets are models or decisions: files beside the tables.
KEEP_ARTEFACTS = frozenset({"models", ON_DEMAND})

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
        Column("first_gap", "VARCHAR", "The first that is missing, failed, stale or held back"),
        Column("held_back", "BIGINT", "Partitions that break their contract: nothing reads them"),
        Column("foreign_partitions", "BIGINT", "Partitions outside history: nothing reads them"),
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
    redefined: frozenset[str] = frozenset()
    held_back: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()

    @property
    def missing(self) -> list[str]:
        return [key for key in self.existing if key not in self.present]

    @property
    def first_gap(self) -> str | None:
        return min({*self.missing, *self.failed, *self.stale, *self.held_back}, default=None)


def present_partitions(
    defs: dg.Definitions, store: OfflineStore, instance: dg.DagsterInstance, asset: dg.AssetKey
) -> set[str]:
    """The materialized partitions of an asset whose content is there and can be read."""
    name = asset.path[-1]
    table, artefacts = store.tables.get(name), ArtefactStore(store.home)
    node = defs.resolve_asset_graph().get(asset)

    def is_there(key: str) -> bool:
        if table is not None and not store.has(table, key or None):
            return False
        return node.group_name not in KEEP_ARTEFACTS or artefacts.is_there(name, key or None)

    if node.is_partitioned:
        recorded = set(instance.get_materialized_partitions(asset))
    else:
        made = instance.get_latest_materialization_event(asset) is not None
        recorded = {WHOLE} if made else set()
    there = {key for key in recorded if is_there(key)}
    of_history = [key for key in there if store.belongs(name, key)]
    return there - lost_online(defs, instance, asset, of_history)


def lost_online(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    recorded: Collection[str],
) -> set[str]:
    """The newest partition of history, where it is not online as it was published.

    It never was where a newer one superseded it that is outside history by now. Of all others only
    Dagster's record remains: two versions are retained. Where the server does not answer, nobody
    can tell, and a warning says so.
    """
    online = (defs.resources or {}).get("online_io_manager")
    if not isinstance(online, OnlineIOManager) or asset.path[-1] != ONLINE_FEATURES:
        return set()
    if not recorded:
        return set()
    key = max(recorded)
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[key])
    [record] = instance.fetch_materializations(wanted, limit=1).records
    metadata = record.asset_materialization.metadata if record.asset_materialization else {}
    if "published" not in metadata:
        return set()
    if not metadata["published"].value:
        return {key}
    try:
        why = online.loss_of(str(metadata["version"].value))
    except (ServerError, OSError) as error:  # such as a private server that cannot be started
        log.warning("Whether %s %s is online cannot be told: %s", ONLINE_FEATURES, key, error)
        return set()
    return {key} if why else set()


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
    store = with_catalog(store, defs, calendar)
    stale_by_name: dict[str, frozenset[str]] = {}
    on_disk = cache(store.present)
    of_run = cache(partial(outcomes, instance))
    rows = []
    for asset in graph.toposorted_asset_keys:
        name = asset.path[-1]
        if asset not in graph.materializable_asset_keys or name == ASSET_INVENTORY.name:
            continue
        node = graph.get(asset)
        existing = store.declared.existing(name, now)
        there = present_partitions(defs, store, instance, asset)
        present = there & set(existing)
        made_from = sources(store, instance, name)
        stale_by_name[name] = stale(
            store, instance, name, present, made_from, stale_by_name, on_disk
        )
        table = store.tables.get(name)
        rows.append(
            AssetInventory(
                asset,
                node.group_name,
                existing,
                frozenset(present),
                frozenset(failed_partitions(instance, asset, of_run)),
                stale_by_name[name],
                redefined(store, name, present, made_from),
                held_back_partitions(store, table, present) if table else frozenset(),
                frozenset({*there, *store.on_disk(name)} - {*existing}),
            )
        )
    return rows


def with_catalog(store: OfflineStore, defs: dg.Definitions, calendar: Calendar) -> OfflineStore:
    """The store with the catalog of the code location, which a command opens it without."""
    if store.catalog is not None:
        return store
    return replace(
        store, catalog=cache(lambda: Catalog.of(calendar, defs.resolve_all_asset_specs()))
    )


def held_back_partitions(
    store: OfflineStore, table: Table, present: Collection[str]
) -> frozenset[str]:
    """Which of the present partitions of a table break its contract."""

    def is_held_back(key: str) -> bool:
        # Contents are read only of those whose verdict would hold them back.
        kept = read_verdict(store.home, table.name, key or None)
        if kept is None or not kept.holds_back:
            return False
        return current_verdict(store, table, key or None) is not None

    return frozenset(filter(is_held_back, present))


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
            "held_back": len(row.held_back),
            "foreign_partitions": len(row.foreign),
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
        totals = {n: sum(row[n] for row in rows) for n in TOTALS}
        context.add_asset_metadata({**totals, "inventory": dg.MetadataValue.md(table)})
        with store.connect() as connection:
            connection.register("inventories", pa.Table.from_pylist(rows))
            yield dg.Output(Query("FROM inventories", connection))

    return [asset_inventory]
