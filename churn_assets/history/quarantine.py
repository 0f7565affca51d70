"""Quarantine: the source rows of a slice that could not be used, each with its reason.

Grain: one row per rejected source row, in the slice of its own time. Rows without a usable
timestamp and rows before CHURN_START are kept with the first slice, rows at or after CHURN_END with
the last; they do not count in a slice's rate.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from churn_assets.history.ways import place
from churn_assets.stores.pages import markdown
from churn_assets.stores.tables import SLICE, Column, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

REASONS = (
    "missing_customer_id",
    "missing_timestamp",
    "unparseable_timestamp",
    "unparseable_number",
    "negative_amount",
    "out_of_range",
    "duplicate_id",
    "before_start",
    "future_timestamp",
    "unreadable_row",
)

QUARANTINED_ROWS = Table(
    "quarantined_rows",
    key=("source", "file", "line"),
    columns=(
        Column("source", "VARCHAR", "Table that the row was meant for"),
        SLICE,
        Column("file", "VARCHAR", "File that it is from, in the input folder; empty without files"),
        Column("line", "BIGINT", "Line of the file on which it begins, or row, from 1"),
        Column("reason", "VARCHAR", f"First that applies of {', '.join(REASONS)}"),
        Column("in_period", "BOOLEAN", "Whether its time lies in the slice: the rate counts those"),
        Column(
            "row",
            "VARCHAR",
            "The row as the source has it, as JSON; a line that is no row as text",
        ),
    ),
    partitioned_by="slice",
)


def quarantine_metadata(
    connection: "DuckDBPyConnection",
    ingested: dict[str, dict[str, int]],
    keys: Sequence[str],
) -> dict[str, dict[str, object]]:
    """Per slice: rejected rows by table and reason, and their share of its own rows."""
    rejected = connection.execute(
        "SELECT CAST(slice AS VARCHAR), source, reason, in_period, count(*), "
        f"arg_min({place()}, (file, line)) FROM rejected_rows "
        "GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    metadata: dict[str, dict[str, object]] = {}
    for key in keys:
        rows = [row[1:] for row in rejected if row[0] == key]
        of_period = sum(count for _, _, in_period, count, _ in rows if in_period)
        total = of_period + sum(counts.get(key, 0) for counts in ingested.values())
        lines = [[source, reason, f"{count:,}", first] for source, reason, _, count, first in rows]
        table = markdown(["table", "reason", "rows", "first"], lines)
        metadata[key] = {
            "quarantine_rate": of_period / total if total else 0.0,
            "by_reason": dg.MetadataValue.md(table if lines else "Nothing was rejected."),
        }
    return metadata
