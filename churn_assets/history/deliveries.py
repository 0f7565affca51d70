"""Deliveries: what a reading of the source adds to the history that was read before.

A row is known from its own time on, or from its `known_at` where the source has that column, except
where it comes in a file that appeared or changed after its slice was first read: then from the
moment at which that file was first seen. A row that was read before keeps the moment at which it
became known. One that the source no longer has stays, with `withdrawn_at`, for the cutoffs that saw
it. So a late delivery changes nothing for a cutoff that lies before it.

Reading again because rows are read otherwise, after a new parser or another query, is no delivery:
rows are recognised by their key and keep their moments, and what is no longer read is not there.

With CHURN_END, history is a dump that depends on nothing but itself: only a column `known_at` makes
rows late, and what is read again takes the place of what was read before.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from churn_assets.cutoffs import DAY_US, epoch_us
from churn_assets.sources.input_files import file_name
from churn_assets.sources.manifest import Seen
from churn_assets.sources.tables import RawTable
from churn_assets.stores.pages import markdown
from churn_assets.stores.sql import day_of, utc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Days up to which rows are counted together as so late.
LATENESS = (1, 3, 7, 30, 90)


# Joins `parsed` rows with what was seen of the part of the file that they are from.
SEEN = (
    "ASOF LEFT JOIN files_seen ON parsed.file = files_seen.file "
    "AND parsed.line >= files_seen.first_line"
)


@dataclass(frozen=True)
class EarlierReading:
    """A slice as it was read before.

    Args:
        rows: A relation of its rows.
        first_read: When it was first read, in microseconds since 1970.
        alike: Whether its rows were read as they are now.
    """

    rows: str
    first_read: int
    alike: bool


@dataclass(frozen=True)
class Delivery:
    """What a reading of a table knows of its source and of earlier readings.

    Args:
        read_at: The moment of the reading.
        seen: The files of the table.
        earlier: The slices that were read before, by key.
    """

    read_at: dt.datetime
    seen: Seen
    earlier: Mapping[str, EarlierReading] = field(default_factory=dict)


def settle_known(
    connection: "DuckDBPyConnection", raw: RawTable, delivery: Delivery, content: Mapping[str, str]
) -> None:
    """Set `known_at` in `parsed_rows`, where slices were read before, and make `earlier_rows`.

    Args:
        connection: Has `parsed_rows` and `files_seen`.
        raw: The table.
        delivery: The reading.
        content: SQL over `parsed_rows` for each column that was read before.
    """
    columns = ", ".join(raw.table.column_names)
    parts = [
        f"SELECT {columns}, {reading.first_read} AS first_read, {reading.alike} AS alike "
        f"FROM {reading.rows}"
        for reading in delivery.earlier.values()
    ]
    slices = ", ".join(
        f"(DATE '{key}', {reading.first_read}, {reading.alike})"
        for key, reading in delivery.earlier.items()
    )
    connection.execute(f"CREATE OR REPLACE TEMP TABLE earlier_rows AS {' UNION ALL '.join(parts)}")
    same, key = _equal(content), _equal(raw.key)
    valid = ", ".join(f"{sql} AS {name}" for name, sql in content.items())
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE settled AS
        WITH matched AS (
            SELECT row_id, CASE WHEN alike THEN was.known_at
                WHEN was.known_at > was.{raw.timestamp}
                    THEN greatest(now.{raw.timestamp}, was.known_at)
                ELSE now.known_at END AS was_known
            FROM (SELECT rowid AS row_id, known_at, {valid} FROM parsed_rows WHERE reason IS NULL)
                AS now
            JOIN earlier_rows AS was ON now.slice = was.slice AND {key}
            WHERE was.withdrawn_at IS NULL AND (NOT alike OR ({same}))
        )
        SELECT row_id, CASE WHEN was_known IS NOT NULL THEN was_known
            WHEN NOT is_given AND seen > first_read
                THEN greatest({raw.timestamp}, make_timestamptz(seen))
            ELSE known_at END AS known_at
        FROM (
            SELECT row_id, {raw.timestamp}, known_at, is_given, first_read, was_known,
                coalesce(CASE WHEN alike THEN seen_us ELSE first_seen_us END,
                    {epoch_us(delivery.read_at)}) AS seen
            FROM (SELECT *, rowid AS row_id FROM parsed_rows WHERE reason IS NULL) AS parsed
            JOIN (VALUES {slices}) AS slices (slice, first_read, alike) USING (slice)
            {SEEN}
            LEFT JOIN matched USING (row_id)
        )"""
    )
    connection.execute(
        "UPDATE parsed_rows SET known_at = settled.known_at FROM settled "
        "WHERE parsed_rows.rowid = settled.row_id"
    )
    connection.execute("DROP TABLE settled")


def find_withdrawn(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    delivery: Delivery,
    content: Iterable[str],
    valid: str,
) -> None:
    """Make `withdrawn_rows` of what was read before and is no longer there, with `withdrawn_at`.

    Drops `earlier_rows`. For the other arguments see `settle_known`.

    Args:
        valid: A relation of the rows that are there.
    """
    columns = ", ".join(raw.table.column_names)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE withdrawn_rows AS
        SELECT {columns} FROM earlier_rows WHERE withdrawn_at IS NOT NULL
        UNION ALL BY NAME
        SELECT * REPLACE ({utc(delivery.read_at)} AS withdrawn_at) FROM (
            SELECT {columns} FROM earlier_rows AS was
            WHERE withdrawn_at IS NULL AND alike AND NOT EXISTS (
                SELECT 1 FROM {valid} AS now WHERE {_equal(content)}))"""
    )
    connection.execute("DROP TABLE earlier_rows")


def _equal(names: Iterable[str]) -> str:
    """SQL for whether columns of `now` and `was` have the same values."""
    return " AND ".join(f"now.{name} IS NOT DISTINCT FROM was.{name}" for name in names)


def files_seen(connection: "DuckDBPyConnection", seen: Seen) -> None:
    """Make the temporary table `files_seen`: when each file was seen, first and as it is now.

    A file that is read in parts has a row for each, with its first line.
    """
    import pyarrow as pa

    files = list(seen.items())
    columns = {
        "file": pa.array([file_name(key) for key, _ in files], pa.string()),
        "first_line": pa.array([file.line for _, file in files], pa.int64()),
        "seen_us": pa.array([file.seen for _, file in files], pa.int64()),
        "first_seen_us": pa.array([file.first_seen for _, file in files], pa.int64()),
    }
    connection.register("looked_at", pa.table(columns))
    connection.execute("CREATE OR REPLACE TEMP TABLE files_seen AS FROM looked_at")
    connection.unregister("looked_at")


def lateness(connection: "DuckDBPyConnection", raw: RawTable) -> dict[str, dict[str, object]]:
    """Per slice of `valid_rows`: how many rows became known late, and by how much."""
    days = f"(epoch_us(known_at) - epoch_us({raw.timestamp})) / {DAY_US}"
    counts = ", ".join(
        f"count(*) FILTER (WHERE late AND behind <= {most} AND behind > {least})"
        for least, most in zip((0, *LATENESS), (*LATENESS, "'infinity'::DOUBLE"), strict=True)
    )
    rows = connection.execute(
        f"""SELECT CAST(slice AS VARCHAR), count(*), count(*) FILTER (WHERE late),
            count(withdrawn_at), {counts}
        FROM (
            SELECT *, {days} AS behind,
                {day_of("known_at")} > {day_of(raw.timestamp)} AS late
            FROM valid_rows)
        GROUP BY 1"""
    ).fetchall()
    shown: dict[str, dict[str, object]] = {}
    names = [f"up to {d} days" for d in LATENESS] + ["more"]
    for key, total, late, withdrawn, *by in rows:
        if late or withdrawn:
            shown[key] = {"late_rows": late, "withdrawn_rows": withdrawn}
        if late:
            most = max(by)
            lines = [
                [name, f"{n:,}", f"{n / total:.2%}", "█" * round(20 * n / most)]
                for name, n in zip(names, by, strict=True)
            ]
            table = markdown(["late by", "rows", "share of the slice", ""], lines)
            shown[key]["lateness"] = dg.MetadataValue.md(table)
    return shown
