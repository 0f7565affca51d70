"""Raw tables: every source row of a slice, validated; what cannot be used is quarantined.

Grain: one row per event, profile version, review or survey, in the slice `[K, next K)` of its own
timestamp. Every source row up to the end of the newest slice is either ingested or quarantined,
exactly once, with the first reason that applies in the order of `quarantine.REASONS`. Rows before
CHURN_START are kept with the first slice, rows at or after CHURN_END with the last, rows without a
usable timestamp with the newest of the run that first reads their file. Later rows are pending and
counted in the metadata of the newest slice.

Nothing here reads features or labels, and nothing later reads the source.
"""

import datetime as dt
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.history.deliveries import Delivery
from churn_assets.history.findings import Findings
from churn_assets.history.opened import OpenedTable, open_table
from churn_assets.history.quarantine import QUARANTINED_ROWS, quarantine_metadata
from churn_assets.history.readings import earlier_readings, noted, untimed_before
from churn_assets.history.validation import read_slices
from churn_assets.sources.manifest import look, record
from churn_assets.sources.source import Source
from churn_assets.sources.synthetic import Synthetic
from churn_assets.sources.tables import RAW_TABLES, RawTable
from churn_assets.stores.catalog import OPENS_AT_START, RAW
from churn_assets.stores.erased import Erased
from churn_assets.stores.io_manager import shown
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import row_count
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import provenances
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Raised by hand where a source row is read otherwise: every slice shows as stale then, and a person
# decides when archives are read again. The golden rows of the tests change with it.
PARSER_VERSION = "1"


def assets(
    calendar: Calendar,
    source: Source,
    store: OfflineStore,
    now: Callable[[], dt.datetime] = utc_now,
) -> list[dg.AssetsDefinition]:
    """The raw tables and their quarantine, written together because a row is in one of them."""
    tables = [*(raw.table for raw in RAW_TABLES), QUARANTINED_ROWS]
    descriptions = {
        "raw_events": "What customers did, one row per event or order line.",
        "raw_customers": "Profile versions, one row per customer and moment of change.",
        "raw_reviews": "Product reviews as written.",
        "raw_satisfaction": "Answers to satisfaction surveys.",
        "quarantined_rows": "Source rows that could not be used, each with its reason.",
    }

    opens = {OPENS_AT_START: True} if isinstance(source, Synthetic) else {}

    @dg.multi_asset(
        name="raw",
        outs={
            table.name: dg.AssetOut(
                description=f"{descriptions[table.name]}\n\n{__doc__}",
                kinds={"duckdb", "parquet"},
                owners=["team:data"],
                tags={"layer": "raw"},
                metadata={"dagster/column_schema": table.as_dagster(), **opens},
                code_version=PARSER_VERSION,
                group_name=RAW,
                dagster_type=dg.Nothing,
                is_required=False,
            )
            for table in tables
        },
        partitions_def=calendar.slices,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="raw",
        can_subset=True,
    )
    def raw(context: dg.AssetExecutionContext) -> Iterator[dg.Output[None]]:
        keys = list(context.partition_keys)
        calendar.require_past_end(now())
        selected = sorted(asset.path[-1] for asset in context.selected_asset_keys)
        read = tables_to_read(selected)
        erased, looked_at = Erased.read(store.home), source.looked_at()
        ingested: dict[str, dict[str, int]] = {}
        with store.connect() as connection:
            connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
            keep_rejected(connection, store, keys, read)
            for raw_table in RAW_TABLES:
                name = raw_table.source_name
                if raw_table not in read:
                    ingested[name] = stored_rows(store, raw_table, keys)
                    continue
                read_at = now()
                files = looked_at.input_files(raw_table)
                seen = look(store.home, name, files, read_at)
                opened = open_table(connection, looked_at, raw_table, files, seen, calendar, keys)
                if opened is None:
                    context.log.info(f"{raw_table.table.name}: the source has no such table")
                    nothing = dict.fromkeys(keys, raw_table.table.empty())
                    ingested[name] = hand_over(context, store, connection, raw_table.table, nothing)
                    continue
                opened.require_times()
                untimed = untimed_before(store, connection, opened)
                opened = opened.with_untimed(calendar, keys[-1], untimed)
                delivery = None
                if not isinstance(source, Synthetic):
                    delivery = Delivery(read_at, record(store.home, name, opened.seen))
                newest = None if calendar.end else calendar.keys(calendar.slices, read_at)[-1]
                ingested[name] = publish_slices(
                    *(context, store, connection, opened, calendar, keys, erased, delivery, newest)
                )
            shown_of = quarantine_metadata(connection, ingested, keys)
            rows = {key: f"SELECT * FROM rejected_rows WHERE slice = DATE '{key}'" for key in keys}
            hand_over(context, store, connection, QUARANTINED_ROWS, rows, shown_of)
        for name in selected:
            yield dg.Output(None, name)

    return [raw]


def publish_slices(
    context: dg.AssetExecutionContext,
    store: OfflineStore,
    connection: "DuckDBPyConnection",
    opened: OpenedTable,
    calendar: Calendar,
    keys: Sequence[str],
    erased: Erased,
    delivery: Delivery | None,
    newest: str | None,
) -> dict[str, int]:
    """Read and publish slices of a table, some at a time; returns the rows of each.

    Args:
        context: The run.
        store: Where the table is.
        connection: Has `rejected_rows`.
        opened: The table.
        calendar: Places rows in slices.
        keys: The slices.
        erased: Whose rows are left out.
        delivery: The reading; None where the source makes its rows.
        newest: The newest slice there is, whose page shows how many rows are later; None of a dump.
    """
    raw, written = opened.raw, dict[str, int]()
    found = Findings(raw, opened.formats.unclear)
    for some, source in opened.read(connection, calendar, keys):
        notes: dict[str, dict[str, str]] = {}
        if delivery and calendar.end is None:  # a dump is what it is, whenever it is read
            earlier = earlier_readings(store, raw, opened.source, some)
            delivery = replace(delivery, earlier=earlier)
            notes = {key: noted(delivery, opened.source, calendar, key) for key in some}
        findings = read_slices(connection, opened, source, calendar, some, erased, delivery)
        shown_of = {key: dict(findings.metadata.get(key, {})) for key in some}
        if newest in some:
            shown_of[newest]["pending_rows"] = opened.pending(connection, calendar, newest)
        rows = {key: f"SELECT * FROM valid_rows WHERE slice = DATE '{key}'" for key in some}
        written |= hand_over(context, store, connection, raw.table, rows, shown_of, notes)
        found = findings + found
        context.log.info(f"{raw.table.name}: {len(written)} of {len(keys)} slices")
    connection.execute("DROP VIEW valid_rows")
    connection.execute("DROP TABLE parsed_rows")
    for warning in (*opened.source.warnings(), *found.warnings):
        context.log.warning(warning)
    return written


def tables_to_read(selected: Collection[str]) -> list[RawTable]:
    """The source tables that a run reads: those it was asked for, or all for the quarantine alone.

    Quarantine is written with every table, and a table with its quarantine: a row is in one of
    them, whatever was asked for.
    """
    asked = [raw_table for raw_table in RAW_TABLES if raw_table.table.name in selected]
    return asked or list(RAW_TABLES)


def keep_rejected(
    connection: "DuckDBPyConnection",
    store: OfflineStore,
    keys: Sequence[str],
    read: Sequence[RawTable],
) -> None:
    """Add to `rejected_rows` what is in quarantine of tables that a run does not read."""
    present = sorted(set(keys) & set(store.keys(QUARANTINED_ROWS)))
    names = ", ".join(f"'{raw_table.source_name}'" for raw_table in read)
    connection.execute(
        f"INSERT INTO rejected_rows FROM {store.unchecked(QUARANTINED_ROWS, present).sql} "
        f"WHERE source NOT IN ({names})"
    )


def stored_rows(store: OfflineStore, raw_table: RawTable, keys: Sequence[str]) -> dict[str, int]:
    """The rows of each slice that a table has already."""
    table = raw_table.table
    return {key: row_count(store.path(table, key)) for key in keys if store.has(table, key)}


def hand_over(
    context: dg.AssetExecutionContext,
    store: OfflineStore,
    connection: "DuckDBPyConnection",
    table: Table,
    rows: Mapping[str, str],
    shown_of: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    notes: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, int]:
    """Publish slices of a table, and record those that the run was not asked for.

    Args:
        context: The run.
        store: Where the table is.
        connection: Sees the rows.
        table: The table.
        rows: The rows of each slice, as SQL.
        shown_of: What Dagster shows of each beside its rows.
        notes: See `Query`.

    Returns:
        The rows of each slice.
    """
    began = time.monotonic()
    written = store.publish(
        connection, table, Query(rows, notes=notes), list(rows), provenances(store, table.name)
    )
    seconds = (time.monotonic() - began) / len(rows)
    for key, partition in written.items():
        metadata = shown(connection, table, partition, seconds) | dict(shown_of.get(str(key), {}))
        asset = dg.AssetKey(table.name)
        if asset in context.selected_asset_keys:
            context.add_asset_metadata(metadata, table.name, key)
        else:
            context.log_event(dg.AssetMaterialization(asset, partition=key, metadata=metadata))
    return {str(key): partition.rows for key, partition in written.items()}
