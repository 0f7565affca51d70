"""Raw tables: every source row of a slice, validated; what cannot be used is quarantined.

Grain: one row per event, profile version, review or survey, in the slice `[K, next K)` of its own
timestamp. Every source row up to the end of the newest slice is either ingested or quarantined,
exactly once, with the first reason that applies in the order of `quarantine.REASONS`. Rows without
a usable timestamp and rows before CHURN_START are kept with the first slice, rows at or after
CHURN_END with the last. Later rows are pending and counted in the metadata of the newest slice.

Nothing here reads features or labels, and nothing later reads the source.
"""

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.history.deliveries import (
    Delivery,
    files_seen,
    keep_withdrawn,
    lateness,
    settle_known,
)
from churn_assets.history.findings import Findings, find, require_times
from churn_assets.history.formats import find_formats
from churn_assets.history.parsing import parse_query, times_query
from churn_assets.history.quarantine import QUARANTINED_ROWS, quarantine_metadata
from churn_assets.history.readings import earlier_readings, noted
from churn_assets.sources.manifest import look, record, with_spans
from churn_assets.sources.rows import OURS
from churn_assets.sources.source import Source, SourceTable
from churn_assets.sources.synthetic import Synthetic
from churn_assets.sources.tables import EVENTS, KNOWN_AT, RAW_TABLES, WITHDRAWN_AT, RawTable
from churn_assets.stores.catalog import OPENS_AT_START, RAW
from churn_assets.stores.erased import Erased
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
    erased: Erased | None = None,
    delivery: Delivery | None = None,
) -> Findings:
    """Fill `valid_rows` with the table's rows of the slices, add rejected ones to `rejected_rows`.

    Both are temporary tables of the connection. `rejected_rows` has the columns of
    `quarantined_rows` and must exist; `valid_rows` is made anew. Rows of erased customers are in
    neither, and are counted as `erased_rows`. `valid_rows` also has what was read before and is no
    longer in the source.

    Args:
        connection: Sees the source.
        raw: The table.
        source: Its rows; None where the source has no such table.
        calendar: Places rows in slices.
        keys: The slices.
        erased: Whose rows are left out.
        delivery: What was read before; None where the rows stand for themselves.

    Returns:
        What is to be said of the rows.

    Raises:
        Refused: Nobody can tell how the source writes a column that rows need.
        ValueError: Most rows have no usable time.
    """
    if source is None:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE valid_rows AS {raw.table.empty()}")
        return Findings()
    formats = find_formats(connection, raw, source)
    read_at = delivery.read_at if delivery else None
    parsed = parse_query(raw, source, formats, calendar, read_at)
    files = connection.execute(
        times_query(raw, source, formats, calendar.slice_window(keys[-1])[1])
    ).fetchall()
    require_times(
        raw,
        sum(rows for _, rows, *_ in files),
        sum(usable for _, _, usable, *_ in files),
        next((unusable for *_, unusable in files if unusable), None),
    )
    spans = {file: (first, last) for file, _, _, _, first, last, _ in files}
    pending = sum(later for _, _, _, later, *_ in files)
    dates = ", ".join(f"DATE '{key}'" for key in keys)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE parsed_rows AS SELECT * FROM ({parsed}) "
        f"WHERE slice IN ({dates})"
    )
    left_out = _leave_out(connection, erased) if erased and erased.customers else {}
    files_seen(connection, delivery.seen if delivery else {})
    if raw.generated_id:
        _generate_ids(connection, raw)
    content = _content(raw)
    if delivery and delivery.earlier:
        settle_known(connection, raw, delivery, content)
    _mark_duplicates(connection, raw)
    columns = ", ".join(f"{sql} AS {name}" for name, sql in content.items())
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE valid_rows AS
        SELECT {columns}, known_at, CAST(NULL AS TIMESTAMPTZ) AS withdrawn_at
        FROM parsed_rows WHERE reason IS NULL"""
    )
    if delivery and delivery.earlier:
        keep_withdrawn(connection, raw, delivery, content)
    rejected = connection.execute("SELECT count(*) FROM parsed_rows WHERE reason IS NOT NULL")
    if rejected.fetchall()[0][0]:
        rows = source.relation
        if source.located:
            rows = f"(SELECT * EXCLUDE ({', '.join(OURS)}) FROM {rows})"
        connection.execute(
            f"""INSERT INTO rejected_rows
            SELECT '{raw.source_name}', slice, file, line, reason, in_period,
                CASE WHEN unreadable IS NULL THEN to_json(source_row) ELSE to_json(unreadable) END
            FROM parsed_rows JOIN (
                SELECT row_number() OVER () AS row_number, source_rows AS source_row
                FROM {rows} AS source_rows) USING (row_number)
            WHERE reason IS NOT NULL"""
        )
    findings = replace(find(connection, raw, source, formats, pending), spans=spans)
    connection.execute("DROP TABLE parsed_rows")
    late, metadata = lateness(connection, raw), dict(findings.metadata)
    for key, count in left_out.items():
        metadata[key] = {**metadata.get(key, {}), "erased_rows": count}
    for key, said in late.items():
        metadata[key] = {**metadata.get(key, {}), **said}
    return replace(findings, metadata=metadata)


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
            SELECT row_number, content || '-' || row_number() OVER (
                PARTITION BY content ORDER BY seen_us, row_number) AS id
            FROM (SELECT row_number, seen_us, md5(CAST(row({content}) AS VARCHAR)) AS content
                FROM parsed_rows LEFT JOIN files_seen USING (file)
                WHERE reason IS NULL AND {raw.generated_id} IS NULL)
        ) AS generated WHERE parsed_rows.row_number = generated.row_number"""
    )


def _mark_duplicates(connection: "DuckDBPyConnection", raw: RawTable) -> None:
    """Reject all but the row of an id within a slice that was known first, then in file order.

    A default of a part of the id counts as what it stands for.
    """
    defaults = EVENT_DEFAULTS if raw is EVENTS else {}
    key = ["key_slice", *(f"key_{name}" for name in raw.key)]
    values = ["slice AS key_slice", *(f"{defaults.get(n, n)} AS key_{n}" for n in raw.key)]
    identified = (
        f"SELECT row_number, {raw.timestamp}, known_at, {', '.join(values)} FROM parsed_rows "
        "WHERE reason IS NULL"
    )
    same = " AND ".join(f"identified.{name} IS NOT DISTINCT FROM repeated.{name}" for name in key)
    connection.execute(
        f"""UPDATE parsed_rows SET reason = 'duplicate_id' WHERE row_number IN (
            SELECT row_number FROM ({identified}) AS identified
            SEMI JOIN (SELECT {", ".join(key)} FROM ({identified})
                GROUP BY ALL HAVING count(*) > 1) AS repeated ON {same}
            QUALIFY row_number() OVER (
                PARTITION BY {", ".join(key)} ORDER BY known_at, {raw.timestamp}, row_number
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
                dagster_type=dg.Any,
                is_required=False,
            )
            for table in tables
        },
        partitions_def=calendar.slices,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="raw",
        can_subset=True,
    )
    def raw(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        keys = list(context.partition_keys)
        calendar.require_past_end(now())
        begin, end = calendar.slice_window(keys[0])[0], calendar.slice_window(keys[-1])[1]
        newest = calendar.keys(calendar.slices, now())[-1]
        selected = {asset.path[-1] for asset in context.selected_asset_keys}
        read = tables_to_read(selected)
        erased = Erased.read(store.home)
        with store.connect() as connection:
            connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
            keep_rejected(connection, store, keys, read)
            ingested: dict[str, dict[str, int]] = {}
            for raw_table in RAW_TABLES:
                name = raw_table.table.name
                if raw_table not in read:
                    ingested[raw_table.source_name] = stored_rows(store, raw_table, keys)
                    continue
                read_at = now()
                files = source.input_files(raw_table)
                seen = look(store.home, raw_table.source_name, files, read_at)
                source_table = source.read(connection, raw_table, begin, end)
                delivery = None
                if source_table and not isinstance(source, Synthetic):
                    # A dump is what it is, whenever it is read.
                    again = [] if calendar.end else keys
                    earlier = earlier_readings(store, raw_table, source_table, again)
                    delivery = Delivery(read_at, seen, earlier)
                findings = ingest(
                    connection, raw_table, source_table, calendar, keys, erased, delivery
                )
                seen = with_spans(seen, findings.spans)
                seen = record(store.home, raw_table.source_name, seen)
                counts = connection.execute(
                    "SELECT CAST(slice AS VARCHAR), count(*) FROM valid_rows GROUP BY 1"
                ).fetchall()
                ingested[raw_table.source_name] = dict(counts)
                shown = {key: dict(findings.metadata.get(key, {})) for key in keys}
                if source_table is None:
                    context.log.info(f"{name}: the source has no such table")
                else:
                    for warning in (*source_table.warnings(), *findings.warnings):
                        context.log.warning(warning)
                    if newest in keys and calendar.end is None:
                        shown[newest]["pending_rows"] = findings.pending
                notes = {}
                if delivery and source_table and calendar.end is None:
                    notes = {
                        key: noted(delivery, seen, source_table, calendar, key) for key in keys
                    }
                query = Query("SELECT * FROM valid_rows", connection, notes=notes)
                yield from hand_over(context, store, raw_table.table, query, shown)
                connection.execute("DROP TABLE valid_rows")
            query = Query("SELECT * FROM rejected_rows", connection)
            shown = quarantine_metadata(connection, ingested, keys)
            yield from hand_over(context, store, QUARANTINED_ROWS, query, shown)

    return [raw]


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
    table: Table,
    query: Query,
    shown: Mapping[str, Mapping[str, Any]],
) -> Iterator[dg.Output[Query]]:
    """Give a table to the IO manager; one that the run was not asked for, publish and record.

    Args:
        context: The run.
        store: Where the table is.
        table: The table.
        query: Its rows in the slices of the run.
        shown: What Dagster shows of each slice beside its rows.
    """
    asset = dg.AssetKey(table.name)
    if asset in context.selected_asset_keys:
        for shown_key, metadata in shown.items():
            if metadata:
                context.add_asset_metadata(dict(metadata), table.name, shown_key)
        yield dg.Output(query, table.name)
        return
    assert query.connection is not None
    written = store.publish(
        query.connection,
        table,
        query,
        list(context.partition_keys),
        provenances(store, table.name),
    )
    for key, partition in written.items():
        recorded = {"dagster/row_count": partition.rows, **shown.get(key or "", {})}
        context.log_event(dg.AssetMaterialization(asset, partition=key, metadata=recorded))
