"""Validation: the rows of slices as a source has them, told into valid and rejected ones.

Temporary tables of a connection pass between the steps, because each looks at all rows at once:
parsed, known when, told from duplicates. Nothing is written that outlives the connection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar
from churn_assets.history.deliveries import (
    SEEN,
    Delivery,
    files_seen,
    find_withdrawn,
    lateness,
    settle_known,
)
from churn_assets.history.findings import Findings, find
from churn_assets.history.opened import OpenedTable, open_whole
from churn_assets.history.parsing import parse_query
from churn_assets.sources.reading import own_columns
from churn_assets.sources.source import SourceTable
from churn_assets.sources.tables import EVENTS, KNOWN_AT, WITHDRAWN_AT, RawTable
from churn_assets.stores.erased import Erased
from churn_assets.stores.sql import identifier, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

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
    _mark_duplicates(connection, raw, content)
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
    """Add the rejected rows of `parsed_rows` to `rejected_rows`, as the source has them.

    Ours come first, so that the text of a row does not depend on which files are read with it.
    """
    columns = own_columns(connection, source.relation)
    ours = {name: place for place, name in enumerate(raw.source_columns)}
    columns.sort(key=lambda name: (ours.get(name.lower(), len(ours)), name))
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
                PARTITION BY content ORDER BY seen_us, parsed.file, line, row_id) AS id
            FROM (SELECT rowid AS row_id, file, line,
                    md5(CAST(row({content}) AS VARCHAR)) AS content
                FROM parsed_rows WHERE reason IS NULL AND {raw.generated_id} IS NULL) AS parsed
            {SEEN}
        ) AS generated WHERE parsed_rows.rowid = generated.row_id"""
    )


def _mark_duplicates(
    connection: "DuckDBPyConnection", raw: RawTable, content: Mapping[str, str]
) -> None:
    """Reject all but the row of an id within a slice that was known first, then in file order.

    A default of a part of the id counts as what it stands for.
    """
    of_key = ", ".join(["slice", *(content[name] for name in raw.key)])
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
