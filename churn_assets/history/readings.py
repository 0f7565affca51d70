"""Readings: how the slices of a raw table were read, as the footers of their files say."""

from collections.abc import Sequence

from churn_assets.cutoffs import Calendar, epoch_us, parse_key
from churn_assets.history.deliveries import Delivery, EarlierReading
from churn_assets.sources.manifest import Seen, files_digest
from churn_assets.sources.source import SourceTable
from churn_assets.sources.tables import RawTable
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import footer
from churn_assets.stores.provenance import current_provenance
from churn_assets.stores.tables import sql_version


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
