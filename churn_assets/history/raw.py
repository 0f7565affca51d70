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
from churn_assets.history.deliveries import (
    Delivery,
    files_seen,
    find_withdrawn,
    lateness,
    settle_known,
)
from churn_assets.history.findings import Findings, find
from churn_assets.history.opened import OpenedTable, open_table, open_whole
from churn_assets.history.parsing import parse_query
from churn_assets.history.quarantine import QUARANTINED_ROWS, quarantine_metadata
from churn_assets.history.readings import earlier_readings, noted, untimed_before
from churn_assets.sources.manifest import look, record
from churn_assets.sources.reading import own_columns
from churn_assets.sources.source import Source, SourceTable
from churn_assets.sources.synthetic import Synthetic
from churn_assets.sources.tables import EVENTS, KNOWN_AT, RAW_TABLES, WITHDRAWN_AT, RawTable
from churn_assets.stores.catalog import OPENS_AT_START, RAW
from churn_assets.stores.erased import Erased
from churn_assets.stores.io_manager import shown
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import row_count
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import provenances
from churn_assets.stores.sql import identifier, quoted
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Raised by hand where a source row is read otherwise: every slice shows as stale then, and a person
# decides when archives are read again. The golden rows of the tests change with it.
PARSER_VERSION = "1"

# What a missing value of a column means.
EVENT_DEFAULTS = {
    "order_id": (
        "CASE WHEN event_type IN ('purchase', 'refund') THEN coalesce(order_id, event_id) "
        "ELSE order_id END"
    ),
    "quantity": "coalesce(quantity, 1)",
    "amount": "coalesce(amount, 0)",
}


def ingest(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    source: SourceTable | None,
    calendar: Calendar,
    keys: Sequence[str],
    delivery: Delivery | None = None,
) -> Findings:
    """As `read_slices`, of a source table of which all rows are there.

    Raises:
        Refused: Nobody can tell how the source writes a column that rows need.
        ValueError: Most rows have no usable time.
    """
    if source is None:
        connection.execute(f"CREATE OR REPLACE TEMP VIEW valid_rows AS {raw.table.empty()}")
        return Findings(raw)
    opened = open_whole(connection, raw, source, delivery.seen if delivery else {})
    opened.require_times()
    opened = opened.with_untimed(calendar, keys[-1])
    return read_slices(connection, opened, source, calendar, keys, delivery=delivery)


def read_slices(
    connection: "DuckDBPyConnection",
    opened: OpenedTable,
    source: SourceTable,
    calendar: Calendar,
    keys: Sequence[str],
    erased: Erased | None = None,
    delivery: Delivery | None = None,
) -> Findings:
    """Make `valid_rows` of the table's rows of slices, add rejected ones to `rejected_rows`.

    The one is a view, the other a table of the connection that must exist, with the columns of
    `quarantined_rows`. Rows of erased customers are in
    neither, and are counted as `erased_rows`. `valid_rows` also has what was read before and is no
    longer in the source.

    Args:
        connection: Sees the source.
        opened: The table.
        source: At least its rows of the slices.
        calendar: Places rows in slices.
        keys: The slices.
        erased: Whose rows are left out.
        delivery: What was read before; None where the rows stand for themselves.

    Returns:
        What is to be said of the rows.
    """
    raw, earlier = opened.raw, bool(delivery and delivery.earlier)
    read_at = delivery.read_at if delivery else None
    untimed = opened.slice_of_untimed
    parsed = parse_query(raw, source, opened.formats, calendar, untimed, read_at)
    blocks = " OR ".join(
        f"slice BETWEEN DATE '{block[0]}' AND DATE '{block[-1]}'"
        for block in calendar.contiguous(keys)
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE parsed_rows AS SELECT * FROM ({parsed}) WHERE {blocks}"
    )
    left_out = _leave_out(connection, erased) if erased and erased.customers else {}
    files_seen(connection, delivery.seen if delivery else {})
    if raw.generated_id:
        _generate_ids(connection, raw)
    content = _content(raw)
    if delivery and earlier:
        settle_known(connection, raw, delivery, content)
    _mark_duplicates(connection, raw)
    columns = ", ".join(f"{sql} AS {name}" for name, sql in content.items())
    valid = (
        f"SELECT {columns}, known_at, CAST(NULL AS TIMESTAMPTZ) AS withdrawn_at "
        "FROM parsed_rows WHERE reason IS NULL"
    )
    if delivery and earlier:
        find_withdrawn(connection, raw, delivery, content, f"({valid})")
        valid += " UNION ALL BY NAME FROM withdrawn_rows"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW valid_rows AS {valid}")
    findings = find(connection, raw, source, opened.formats)
    if findings.by_reason.keys() - {None}:
        _keep_rejected(connection, raw, source)
    may_be_late = earlier or KNOWN_AT.name in source.columns
    late = lateness(connection, raw) if may_be_late else {}
    metadata = dict(findings.metadata)
    for key, count in left_out.items():
        metadata[key] = {**metadata.get(key, {}), "erased_rows": count}
    for key, said in late.items():
        metadata[key] = {**metadata.get(key, {}), **said}
    return replace(findings, metadata=metadata)


def _keep_rejected(connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable) -> None:
    """Add the rejected rows of `parsed_rows` to `rejected_rows`, as the source has them."""
    columns = own_columns(connection, source.relation)
    row = ", ".join(f"'{quoted(name)}': {identifier(name)}" for name in columns)
    connection.execute(
        f"""INSERT INTO rejected_rows
        SELECT '{raw.source_name}', slice, file, line, reason, in_period,
            CASE WHEN unreadable IS NULL THEN to_json(source_row) ELSE to_json(unreadable) END
        FROM (SELECT * FROM parsed_rows WHERE reason IS NOT NULL)
        JOIN (SELECT {source.file} AS file, {source.row} AS source_id, {{{row}}} AS source_row
            FROM {source.relation} AS source_rows) USING (file, source_id)"""
    )


def _content(raw: RawTable) -> dict[str, str]:
    """SQL over `parsed_rows` for the columns that say what a row is, but not when it was known."""
    defaults = EVENT_DEFAULTS if raw is EVENTS else {}
    others = (KNOWN_AT.name, WITHDRAWN_AT.name)
    return {n: defaults.get(n, n) for n in raw.table.column_names if n not in others}


def _leave_out(connection: "DuckDBPyConnection", erased: Erased) -> dict[str, int]:
    """Delete the rows of erased customers from `parsed_rows`, and count them by slice."""
    theirs = f"{erased.has('customer_id')} OR {erased.is_in('unreadable')}"
    counts = connection.execute(
        f"SELECT CAST(slice AS VARCHAR), count(*) FROM parsed_rows WHERE {theirs} GROUP BY ALL"
    ).fetchall()
    connection.execute(f"DELETE FROM parsed_rows WHERE {theirs}")
    return dict(counts)


def _generate_ids(connection: "DuckDBPyConnection", raw: RawTable) -> None:
    """Give rows without an id a hash of their content and of their number among equal rows.

    Without ids nobody can tell a repeated line from a repeated delivery, so both stay. Those that
    were seen first are numbered first: a later delivery adds numbers.
    """
    own = (raw.generated_id, KNOWN_AT.name)
    content = ", ".join(column.name for column in raw.columns if column.name not in own)
    connection.execute(
        f"""UPDATE parsed_rows SET {raw.generated_id} = generated.id FROM (
            SELECT row_id, content || '-' || row_number() OVER (
                PARTITION BY content ORDER BY seen_us, file, line, row_id) AS id
            FROM (SELECT rowid AS row_id, file, line,
                    md5(CAST(row({content}) AS VARCHAR)) AS content
                FROM parsed_rows WHERE reason IS NULL AND {raw.generated_id} IS NULL)
            LEFT JOIN files_seen USING (file)
        ) AS generated WHERE parsed_rows.rowid = generated.row_id"""
    )


def _mark_duplicates(connection: "DuckDBPyConnection", raw: RawTable) -> None:
    """Reject all but the row of an id within a slice that was known first, then in file order.

    A default of a part of the id counts as what it stands for.
    """
    defaults = EVENT_DEFAULTS if raw is EVENTS else {}
    values = ["slice", *(defaults.get(name, name) for name in raw.key)]
    of_key = ", ".join(values)
    # That all hashes are different proves that all keys are.
    rows, hashes = connection.execute(
        f"SELECT count(*), count(DISTINCT hash({of_key})) FROM parsed_rows WHERE reason IS NULL"
    ).fetchall()[0]
    if rows == hashes:
        return
    connection.execute(
        f"""UPDATE parsed_rows SET reason = 'duplicate_id' WHERE rowid IN (
            SELECT row_id FROM (SELECT rowid AS row_id, * FROM parsed_rows WHERE reason IS NULL)
            WHERE hash({of_key}) IN (
                SELECT hash({of_key}) FROM parsed_rows WHERE reason IS NULL
                GROUP BY 1 HAVING count(*) > 1)
            QUALIFY row_number() OVER (
                PARTITION BY {of_key} ORDER BY known_at, {raw.timestamp}, file, line, row_id
            ) > 1)"""
    )


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
        erased = Erased.read(store.home)
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
                seen = look(store.home, name, source.input_files(raw_table), read_at)
                opened = open_table(connection, source, raw_table, seen, calendar, keys)
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
        if delivery and calendar.end is None:  # a dump is what it is, whenever it is read
            earlier = earlier_readings(store, raw, opened.source, some)
            delivery = replace(delivery, earlier=earlier)
        findings = read_slices(connection, opened, source, calendar, some, erased, delivery)
        notes = {}
        if delivery and calendar.end is None:
            notes = {key: noted(delivery, opened.source, calendar, key) for key in some}
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
