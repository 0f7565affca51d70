"""Readings: how the slices of a raw table were read, and which have to be read again.

The footer of a slice says which files it was read from. Where the manifest knows of others that may
have rows of the slice, something was delivered since.
"""

import datetime as dt
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar, epoch_us, parse_key
from churn_assets.history.deliveries import Delivery, EarlierReading
from churn_assets.history.formats import find_formats
from churn_assets.history.parsing import times_query
from churn_assets.history.ways import Refused
from churn_assets.sources.manifest import (
    Seen,
    files_digest,
    look,
    read_manifest,
    record,
    with_spans,
)
from churn_assets.sources.source import Source, SourceTable
from churn_assets.sources.tables import RAW_TABLES, RawTable
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import footer
from churn_assets.stores.provenance import current_provenance
from churn_assets.stores.tables import sql_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)


def earlier_readings(
    store: OfflineStore, raw_table: RawTable, source: SourceTable, keys: Sequence[str]
) -> dict[str, EarlierReading]:
    """Those of the slices that were read before, and how."""
    table = raw_table.table
    found: dict[str, EarlierReading] = {}
    for key in keys:
        if not store.has(table, key):
            continue
        path = store.path(table, key)
        said = footer(path)
        # Of version 0.1 and of a dump, which say nothing, the file is as old as the reading.
        first_read = said.notes.get("first_read") or path.stat().st_mtime_ns // 1000
        alike = said.notes.get("query") == query_digest(source) and (
            said.provenance == current_provenance(store, table.name, key)
        )
        rows = store.unchecked(table, [key]).sql
        found[key] = EarlierReading(rows, int(first_read), alike)
    return found


def noted(
    delivery: Delivery, seen: Seen, source: SourceTable, calendar: Calendar, key: str
) -> dict[str, str]:
    """What the footer of a slice says of how it was read: see `stores.parquet.NOTES`."""
    earlier = delivery.earlier.get(key)
    return {
        "first_read": str(earlier.first_read if earlier else epoch_us(delivery.read_at)),
        "files": files_digest(seen, *files_window(calendar, key)),
        "query": query_digest(source),
    }


def files_window(calendar: Calendar, key: str) -> tuple[int, int]:
    """The times, in microseconds since 1970, of rows that are kept with a slice.

    Rows from before CHURN_START are kept with the first one.
    """
    begin, end = calendar.slice_window(key)
    return (0 if parse_key(key) == calendar.first_slice else epoch_us(begin)), epoch_us(end)


def query_digest(source: SourceTable) -> str:
    """What tells a query from another; empty without one."""
    return sql_version(source.query) if source.query else ""


def notice_deliveries(
    source: Source, store: OfflineStore, calendar: Calendar, now: dt.datetime
) -> None:
    """Look for files that are new or changed, and note in the manifest which times they span.

    Only these are opened. Where nobody can tell the times of a file by itself, it may have rows of
    every slice. With CHURN_END nothing is delivered any more.
    """
    if calendar.end is not None:
        return
    for raw_table in RAW_TABLES:
        try:
            seen = look(store.home, raw_table.source_name, source.input_files(raw_table), now)
            unknown = [name for name, file in seen.items() if not file.spanned]
            if unknown:
                with store.connect() as connection:
                    found = _spans(connection, source, raw_table, unknown, now)
                seen = with_spans(seen, found)
        except (OSError, ValueError) as error:
            # The ingestion meets it too, and says so where people look.
            log.warning("%s: %s", raw_table.source_name, error)
            continue
        record(store.home, raw_table.source_name, seen)


def _spans(
    connection: "DuckDBPyConnection",
    source: Source,
    raw_table: RawTable,
    names: Collection[str],
    now: dt.datetime,
) -> dict[str, tuple[int | None, int | None]]:
    """The first and the last time of the rows of files; those that nobody can tell are left out."""
    rows = source.read(connection, raw_table, now, now, names)
    if rows is None:
        return {}
    try:
        formats = find_formats(connection, raw_table, rows)
    except Refused:
        return {}
    found = connection.execute(times_query(raw_table, rows, formats, now)).fetchall()
    return {file: (first, last) for file, _, _, _, first, last, _ in found if file in names}


def delivered_since(
    store: OfflineStore, calendar: Calendar, raw_table: RawTable, keys: Collection[str]
) -> frozenset[str]:
    """The slices that were read from other files than the manifest knows for them now."""
    if calendar.end is not None:
        return frozenset()
    table = raw_table.table
    seen = read_manifest(store.home).get(raw_table.source_name, {})

    def differs(key: str) -> bool:
        said = footer(store.path(table, key)).notes.get("files")
        return said is not None and said != files_digest(seen, *files_window(calendar, key))

    return frozenset(filter(differs, keys))
