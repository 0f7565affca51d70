"""Readings: how the slices of a raw table were read, and which have to be read again.

The footer of a slice says which files it was read from. Where the manifest knows of others that may
have rows of the slice, something was delivered since.
"""

import datetime as dt
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar, epoch_us
from churn_assets.history.deliveries import Delivery, EarlierReading
from churn_assets.history.opened import OpenedTable, open_table, window_of
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.ways import Refused
from churn_assets.sources.input_files import file_name
from churn_assets.sources.manifest import files_digest, look, read_manifest, record
from churn_assets.sources.source import Source, SourceTable
from churn_assets.sources.tables import EVENTS, RAW_TABLES, REVIEWS, RawTable
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import footer
from churn_assets.stores.provenance import current_provenance
from churn_assets.stores.sql import quoted
from churn_assets.stores.tables import sql_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# What is made of the slices of a raw table, slice by slice.
MADE_OF = {
    EVENTS: ("daily_activity", "daily_orders", "daily_products"),
    REVIEWS: ("scored_reviews",),
}

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


def untimed_before(
    store: OfflineStore, connection: "DuckDBPyConnection", opened: OpenedTable
) -> dict[str, str]:
    """The slices in whose quarantine rows without a usable time are, by unplaced file or part."""
    if not opened.unplaced:
        return {}
    names = ", ".join(f"'{quoted(file_name(key))}'" for key in opened.unplaced)
    found = connection.execute(
        f"""SELECT file, CAST(max(slice) AS VARCHAR) FROM {store.unchecked(QUARANTINED_ROWS).sql}
        WHERE source = '{opened.raw.source_name}' AND file IN ({names})
            AND reason IN ('missing_timestamp', 'unparseable_timestamp') GROUP BY file"""
    )
    slices = dict(found.fetchall())
    return {key: slices[file_name(key)] for key in opened.unplaced if file_name(key) in slices}


def noted(delivery: Delivery, source: SourceTable, calendar: Calendar, key: str) -> dict[str, str]:
    """What the footer of a slice says of how it was read: see `stores.parquet.NOTES`."""
    earlier = delivery.earlier.get(key)
    return {
        "first_read": str(earlier.first_read if earlier else epoch_us(delivery.read_at)),
        "files": files_digest(delivery.seen, key, window_of(calendar, [key])),
        "query": query_digest(source),
    }


def query_digest(source: SourceTable) -> str:
    """What tells a query from another; empty without one."""
    return sql_version(source.query) if source.query else ""


def notice_deliveries(
    source: Source, store: OfflineStore, calendar: Calendar, now: dt.datetime
) -> None:
    """Look for files that are new or changed, and note in the manifest what is in them.

    Only these are opened. Where nobody can tell the times of a file by itself, it may have rows of
    every slice. With CHURN_END nothing is delivered any more.
    """
    if calendar.end is not None:
        return
    source = source.looked_at()
    for raw_table in RAW_TABLES:
        try:
            files = source.input_files(raw_table)
            seen = look(store.home, raw_table.source_name, files, now)
            if any(file.contents is None for file in seen.values()):
                with store.connect() as connection, suppress(Refused):
                    opened = open_table(connection, source, raw_table, files, seen, calendar, ())
                    seen = opened.seen if opened else seen
        except (OSError, ValueError) as error:
            # The ingestion meets it too, and says so where people look.
            log.warning("%s: %s", raw_table.source_name, error)
            continue
        record(store.home, raw_table.source_name, seen)


def delivered_since(
    store: OfflineStore, calendar: Calendar, raw_table: RawTable, keys: Collection[str]
) -> frozenset[str]:
    """The slices that were read from other files than the manifest knows for them now.

    Those as well of which something was made from an earlier reading, because a run was killed.
    """
    if calendar.end is not None:
        return frozenset()
    tables = [raw_table.table, *(store.tables[name] for name in MADE_OF.get(raw_table, ()))]
    seen = read_manifest(store.home).get(raw_table.source_name, {})

    def differs(key: str) -> bool:
        paths = [path for path in (store.path(table, key) for table in tables) if path.exists()]
        said = {footer(path).notes.get("files") for path in paths} - {None}
        return bool(said - {files_digest(seen, key, window_of(calendar, [key]))})

    return frozenset(filter(differs, keys))
