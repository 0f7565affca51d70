"""Raw tables: every source row of a slice, validated; what cannot be used is quarantined.

Grain: one row per event, profile version, review or survey, in the slice `[K, next K)` of its own
timestamp. Every source row up to the end of the newest slice is either ingested or quarantined,
exactly once, with the first reason that applies in the order of `REASONS`. Rows without a usable
timestamp and rows before CHURN_START are kept with the first slice, rows at or after CHURN_END
with the last. Later rows are pending and counted in the metadata of the newest slice.

Nothing here reads features or labels, and nothing later reads the source.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from churn_assets.cutoffs import Calendar, midnight, utc_now
from churn_assets.sources import Source, SourceTable, number_as_text
from churn_assets.stores.offline import OfflineStore, Query, utc
from churn_assets.tables import CUSTOMER_ID, SLICE, Column, Table, markdown

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

REASONS = (
    "missing_customer_id",
    "missing_timestamp",
    "unparseable_timestamp",
    "unparseable_number",
    "negative_amount",
    "duplicate_id",
    "before_start",
    "future_timestamp",
)
EVENT_TYPES = (
    "page_view",
    "product_view",
    "search",
    "add_to_cart",
    "remove_from_cart",
    "purchase",
    "refund",
    "other",
)

TIMESTAMPTZ = "TIMESTAMP WITH TIME ZONE"
AMOUNT = "DECIMAL(18, 4)"


@dataclass(frozen=True)
class RawTable:
    """A raw table and how it is validated.

    Args:
        source_name: What sources call it.
        columns: Its columns without `slice`; their types decide how values are parsed.
        timestamp: The column that places a row in time.
        key: The columns that identify a row; a second row with the same key is a duplicate.
        required_columns: Columns without which the source is refused.
        required: Whether a source must have this table at all.
        generated_id: A column that is filled from the row's content where it is missing.
    """

    source_name: str
    columns: tuple[Column, ...]
    timestamp: str
    key: tuple[str, ...]
    required_columns: frozenset[str]
    required: bool = False
    generated_id: str | None = None

    @property
    def table(self) -> Table:
        first, *others = self.columns
        return Table(
            f"raw_{self.source_name}",
            key=tuple(dict.fromkeys((self.timestamp, *self.key))),
            columns=(first, SLICE, *others),
            partitioned_by="slice",
            refuse_shrinking=True,
            moment=f"epoch_us({self.timestamp})",
        )

    @property
    def source_columns(self) -> list[str]:
        return [column.name for column in self.columns]


EVENTS = RawTable(
    source_name="events",
    columns=(
        CUSTOMER_ID,
        Column("event_id", "VARCHAR", "Identifies the event; a hash of the row where missing"),
        Column("event_timestamp", TIMESTAMPTZ, "When it happened", "UTC, microseconds"),
        Column("event_type", "VARCHAR", f"One of {', '.join(EVENT_TYPES)}"),
        Column("channel", "VARCHAR", "Where it happened, such as web or mobile; lower case"),
        Column("session_id", "VARCHAR", "Session within the customer; ends at UTC midnight"),
        Column(
            "order_id", "VARCHAR", "Order of a purchase or refund line; its event_id if missing"
        ),
        Column("product_id", "VARCHAR", "The product"),
        Column("quantity", "BIGINT", "Pieces; 1 where missing", "pieces"),
        Column("amount", AMOUNT, "Line total, never negative; 0 where missing", "currency"),
    ),
    timestamp="event_timestamp",
    key=("event_id",),
    required_columns=frozenset({"customer_id", "event_timestamp", "event_type"}),
    required=True,
    generated_id="event_id",
)
CUSTOMERS = RawTable(
    source_name="customers",
    columns=(
        CUSTOMER_ID,
        Column("updated_at", TIMESTAMPTZ, "From when on this version is valid", "UTC"),
        Column("signup_at", TIMESTAMPTZ, "When the account was opened", "UTC"),
        Column("birth_date", "DATE", "Date of birth"),
        Column("gender", "VARCHAR", "As given"),
        Column("location", "VARCHAR", "Country or region"),
        Column("income", "VARCHAR", "Income bracket"),
        Column("education", "VARCHAR", "Highest degree"),
        Column("loyalty_status", "VARCHAR", "Tier of the loyalty programme"),
        Column("premium", "BOOLEAN", "Whether the customer pays for membership"),
        Column("device", "VARCHAR", "Main device"),
    ),
    timestamp="updated_at",
    key=("customer_id", "updated_at"),
    required_columns=frozenset({"customer_id", "updated_at"}),
)
REVIEWS = RawTable(
    source_name="reviews",
    columns=(
        CUSTOMER_ID,
        Column("review_id", "VARCHAR", "Identifies the review; a hash of the row where missing"),
        Column("product_id", "VARCHAR", "The reviewed product"),
        Column("review_timestamp", TIMESTAMPTZ, "When it was written", "UTC"),
        Column("rating", "DOUBLE", "Stars", "1 to 5"),
        Column("text", "VARCHAR", "The unmodified text"),
        Column("helpful_votes", "BIGINT", "Votes that found it helpful", "votes"),
        Column("total_votes", "BIGINT", "All votes", "votes"),
    ),
    timestamp="review_timestamp",
    key=("review_id",),
    required_columns=frozenset({"customer_id", "review_timestamp"}),
    generated_id="review_id",
)
SATISFACTION = RawTable(
    source_name="satisfaction",
    columns=(
        CUSTOMER_ID,
        Column("surveyed_at", TIMESTAMPTZ, "When the customer answered", "UTC"),
        Column("satisfaction_score", "BIGINT", "The answer", "1 to 5"),
    ),
    timestamp="surveyed_at",
    key=("customer_id", "surveyed_at"),
    required_columns=frozenset({"customer_id", "surveyed_at", "satisfaction_score"}),
)
RAW_TABLES = (EVENTS, CUSTOMERS, REVIEWS, SATISFACTION)

QUARANTINED_ROWS = Table(
    "quarantined_rows",
    key=("source", "row_number"),
    columns=(
        Column("source", "VARCHAR", "Table that the row was meant for"),
        SLICE,
        Column("row_number", "BIGINT", "Position in the source, from 1"),
        Column("reason", "VARCHAR", f"First that applies of {', '.join(REASONS)}"),
        Column("in_period", "BOOLEAN", "Whether its time lies in the slice: the rate counts those"),
        Column("row", "VARCHAR", "The row as the source has it, as JSON"),
    ),
    partitioned_by="slice",
)

# What a missing value of a column means, and how categories are normalised.
EVENT_DEFAULTS = {
    "event_type": (
        "CASE WHEN event_type = 'browse' THEN 'page_view' "
        f"WHEN event_type IN {EVENT_TYPES} THEN event_type ELSE 'other' END"
    ),
    "order_id": (
        "CASE WHEN event_type IN ('purchase', 'refund') THEN coalesce(order_id, event_id) "
        "ELSE order_id END"
    ),
    "quantity": "coalesce(quantity, 1)",
    "amount": "coalesce(amount, 0)",
}
LOWER_CASE = {"event_type", "channel"}
VERBATIM = {"text"}
BLANKS = "' ' || chr(9) || chr(10) || chr(13) || chr(160)"
FREE_RANGE = (-(10**18), 10**18)
RANGES = {"satisfaction_score": (1, 5)}


def as_text(expression: str, dtype: str, column: str) -> str:
    """The text of a source value; blank is missing, and ids of floating-point columns are whole."""
    if column in VERBATIM:
        return f"CAST({expression} AS VARCHAR)"
    text = f"CAST({expression} AS VARCHAR)"
    if dtype in ("DOUBLE", "FLOAT"):
        text = number_as_text(expression)
    if column in LOWER_CASE:
        text = f"lower(trim({text}, {BLANKS}))"
    return f"CASE WHEN trim({text}, {BLANKS}) <> '' THEN {text} END"


def parsed(expression: str, source_dtype: str, column: Column) -> tuple[str, str]:
    """How a source value becomes ours, and the condition under which it could not.

    Text without a zone is UTC. Numbers keep every digit up to the column's scale; a fraction of a
    piece, an infinity or a NaN is no number.
    """
    text = as_text(expression, source_dtype, column.name)
    if column.dtype == "VARCHAR":
        return text, "false"
    if column.dtype in (TIMESTAMPTZ, "DATE"):
        typed = source_dtype.startswith(("TIMESTAMP", "DATE"))
        given = expression if typed else text
        instant = f"TRY_CAST({given} AS {column.dtype})"
        value = f"CASE WHEN isfinite({instant}) THEN {instant} END"
    elif column.dtype == "BIGINT":
        exact = f"TRY_CAST({text} AS DECIMAL(38, 15))"
        low, high = RANGES.get(column.name, FREE_RANGE)
        value = (
            f"CASE WHEN {exact} = trunc({exact}) AND {exact} BETWEEN {low} AND {high} "
            f"THEN TRY_CAST({exact} AS BIGINT) END"
        )
    elif column.dtype == "DOUBLE":
        number = f"TRY_CAST({text} AS DOUBLE)"
        value = f"CASE WHEN isfinite({number}) THEN {number} END"
    else:
        value = f"TRY_CAST({text} AS {column.dtype})"
    missing = text if source_dtype not in ("DOUBLE", "FLOAT") else expression
    return value, f"({missing} IS NOT NULL AND ({value}) IS NULL)"


def parse_query(
    raw: RawTable, source: SourceTable, dtypes: dict[str, str], calendar: Calendar
) -> str:
    """Every source row with its number, its values as ours, its slice and what is wrong with it.

    Args:
        raw: The table to parse for.
        source: The source's rows.
        dtypes: DuckDB type of each expression in `source.columns`.
        calendar: Places rows in slices.
    """
    values: list[str] = []
    bad_row_time = "false"
    bad_times: list[str] = []
    bad_numbers: list[str] = []
    for column in raw.columns:
        expression = source.columns.get(column.name)
        if expression is None:
            values.append(f"CAST(NULL AS {column.dtype}) AS {column.name}")
            continue
        value, bad = parsed(f"({expression})", dtypes[column.name], column)
        values.append(f"{value} AS {column.name}")
        is_time = column.dtype in (TIMESTAMPTZ, "DATE")
        (bad_times if is_time else bad_numbers).append(bad)
        if column.name == raw.timestamp:
            bad_row_time = bad
    start = utc(midnight(calendar.start))
    first = f"DATE '{calendar.first_slice}'"
    future, last = "false", first
    if calendar.end is not None:
        future = f"{raw.timestamp} >= {utc(calendar.end)}"
        last = f"DATE '{calendar.last_slice}'"
    early = f"{raw.timestamp} < {start}"
    # A profile that is older than our history is still the customer's profile.
    before_start = "false" if raw is CUSTOMERS else early
    amount = "amount < 0" if any(c.name == "amount" for c in raw.columns) else "false"
    return f"""
        SELECT row_number, {", ".join(c.name for c in raw.columns)},
            CASE WHEN {raw.timestamp} IS NULL OR {early} THEN {first} WHEN {future} THEN {last}
                ELSE {calendar.slice_of(raw.timestamp)} END AS slice,
            CASE WHEN customer_id IS NULL THEN 'missing_customer_id'
                WHEN {raw.timestamp} IS NULL AND NOT bad_row_time THEN 'missing_timestamp'
                WHEN bad_time THEN 'unparseable_timestamp'
                WHEN bad_number THEN 'unparseable_number'
                WHEN {amount} THEN 'negative_amount'
                WHEN {before_start} THEN 'before_start'
                WHEN {future} THEN 'future_timestamp' END AS reason,
            ({raw.timestamp} IS NOT NULL AND NOT ({before_start}) AND NOT ({future})) AS in_period
        FROM (SELECT row_number() OVER () AS row_number, {", ".join(values)},
                {bad_row_time} AS bad_row_time,
                ({" OR ".join(bad_times) or "false"}) AS bad_time,
                ({" OR ".join(bad_numbers) or "false"}) AS bad_number
            FROM {source.relation} AS source_rows)
    """


def ingest(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    source: SourceTable | None,
    calendar: Calendar,
    keys: Sequence[str],
) -> None:
    """Fill `valid_rows` with the table's rows of the slices, add rejected ones to `rejected_rows`.

    Both are temporary tables of the connection. `rejected_rows` has the columns of
    `quarantined_rows` and must exist; `valid_rows` is made anew.
    """
    if source is None:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE valid_rows AS {raw.table.empty()}")
        return
    expressions = ", ".join(f"({sql}) AS {name}" for name, sql in source.columns.items())
    described = connection.execute(f"DESCRIBE SELECT {expressions} FROM {source.relation}")
    dtypes = {name: dtype for name, dtype, *_ in described.fetchall()}
    dates = ", ".join(f"DATE '{key}'" for key in keys)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE parsed_rows AS SELECT * FROM "
        f"({parse_query(raw, source, dtypes, calendar)}) WHERE slice IN ({dates})"
    )
    if raw.generated_id:
        _generate_ids(connection, raw)
    _mark_duplicates(connection, raw)
    defaults = EVENT_DEFAULTS if raw is EVENTS else {}
    columns = ", ".join(
        f"{defaults[name]} AS {name}" if name in defaults else name
        for name in raw.table.column_names
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE valid_rows AS "
        f"SELECT {columns} FROM parsed_rows WHERE reason IS NULL"
    )
    rejected = connection.execute("SELECT count(*) FROM parsed_rows WHERE reason IS NOT NULL")
    if rejected.fetchall()[0][0]:
        connection.execute(
            f"""INSERT INTO rejected_rows
            SELECT '{raw.source_name}', slice, row_number, reason, in_period, to_json(source_row)
            FROM parsed_rows JOIN (
                SELECT row_number() OVER () AS row_number, source_rows AS source_row
                FROM {source.relation} AS source_rows) USING (row_number)
            WHERE reason IS NOT NULL"""
        )
    connection.execute("DROP TABLE parsed_rows")


def _generate_ids(connection: "DuckDBPyConnection", raw: RawTable) -> None:
    """Give rows without an id a hash of their content and of their number among equal rows.

    Without ids nobody can tell a repeated line from a repeated delivery, so both stay.
    """
    content = ", ".join(c.name for c in raw.columns if c.name != raw.generated_id)
    connection.execute(
        f"""UPDATE parsed_rows SET {raw.generated_id} = generated.id FROM (
            SELECT row_number, content || '-' || row_number() OVER (
                PARTITION BY content ORDER BY row_number) AS id
            FROM (SELECT row_number, md5(CAST(row({content}) AS VARCHAR)) AS content
                FROM parsed_rows WHERE reason IS NULL AND {raw.generated_id} IS NULL)
        ) AS generated WHERE parsed_rows.row_number = generated.row_number"""
    )


def _mark_duplicates(connection: "DuckDBPyConnection", raw: RawTable) -> None:
    """Reject all but the first row of an id within a slice, by timestamp and then file order."""
    key = ", ".join(raw.key)
    connection.execute(
        f"""UPDATE parsed_rows SET reason = 'duplicate_id' WHERE row_number IN (
            SELECT row_number FROM parsed_rows
            SEMI JOIN (SELECT slice, {key} FROM parsed_rows WHERE reason IS NULL
                GROUP BY ALL HAVING count(*) > 1) USING (slice, {key})
            WHERE reason IS NULL
            QUALIFY row_number() OVER (
                PARTITION BY slice, {key} ORDER BY {raw.timestamp}, row_number) > 1)"""
    )


def _pending(
    connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable, end: dt.datetime
) -> int:
    """Source rows at or after `end`: they wait for their slice to be over."""
    column = next(c for c in raw.columns if c.name == raw.timestamp)
    expression = f"({source.columns[raw.timestamp]})"
    described = connection.execute(f"DESCRIBE SELECT {expression} AS t FROM {source.relation}")
    value, _ = parsed(expression, described.fetchall()[0][1], column)
    rows = connection.execute(
        f"SELECT count(*) FROM {source.relation} AS source_rows WHERE {value} >= {utc(end)}"
    )
    return int(rows.fetchall()[0][0])


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

    @dg.multi_asset(
        name="raw",
        outs={
            table.name: dg.AssetOut(
                description=f"{descriptions[table.name]}\n\n{__doc__}",
                kinds={"duckdb", "parquet"},
                owners=["team:data"],
                tags={"layer": "raw"},
                metadata={"dagster/column_schema": table.as_dagster()},
                group_name="raw",
                dagster_type=dg.Any,
            )
            for table in tables
        },
        partitions_def=calendar.slices,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="raw",
    )
    def raw(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        keys = list(context.partition_keys)
        calendar.require_past_end(now())
        begin, end = calendar.slice_window(keys[0])[0], calendar.slice_window(keys[-1])[1]
        newest = calendar.keys(calendar.slices, now())[-1]
        with store.connect() as connection:
            connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
            ingested: dict[str, dict[str, int]] = {}
            for raw_table in RAW_TABLES:
                source_table = source.read(connection, raw_table, begin, end)
                ingest(connection, raw_table, source_table, calendar, keys)
                name = raw_table.table.name
                counts = connection.execute(
                    "SELECT CAST(slice AS VARCHAR), count(*) FROM valid_rows GROUP BY 1"
                ).fetchall()
                ingested[raw_table.source_name] = dict(counts)
                if source_table is None:
                    context.log.info(f"{name}: the source has no such table")
                elif newest in keys and calendar.end is None:
                    newest_end = calendar.slice_window(newest)[1]
                    pending = _pending(connection, raw_table, source_table, newest_end)
                    context.add_asset_metadata({"pending_rows": pending}, name, newest)
                yield dg.Output(Query(["SELECT * FROM valid_rows"], connection), name)
                connection.execute("DROP TABLE valid_rows")
            for key, metadata in quarantine_metadata(connection, ingested, keys).items():
                context.add_asset_metadata(metadata, QUARANTINED_ROWS.name, key)
            yield dg.Output(
                Query(["SELECT * FROM rejected_rows"], connection), QUARANTINED_ROWS.name
            )

    return [raw]


def quarantine_metadata(
    connection: "DuckDBPyConnection",
    ingested: dict[str, dict[str, int]],
    keys: Sequence[str],
) -> dict[str, dict[str, object]]:
    """Per slice: rejected rows by table and reason, and the share of the slice's own rows."""
    rejected = connection.execute(
        "SELECT CAST(slice AS VARCHAR), source, reason, in_period, count(*) FROM rejected_rows "
        "GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    metadata: dict[str, dict[str, object]] = {}
    for key in keys:
        rows = [row[1:] for row in rejected if row[0] == key]
        of_period = sum(count for _, _, in_period, count in rows if in_period)
        total = of_period + sum(counts.get(key, 0) for counts in ingested.values())
        lines = [[source, reason, f"{count:,}"] for source, reason, _, count in rows]
        table = markdown(["table", "reason", "rows"], lines)
        metadata[key] = {
            "quarantine_rate": of_period / total if total else 0.0,
            "by_reason": dg.MetadataValue.md(table if lines else "Nothing was rejected."),
        }
    return metadata
