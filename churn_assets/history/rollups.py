"""Daily rollups: partial aggregates of a slice, from which every cutoff's features add up.

Grain: `daily_activity` and `daily_orders` one row per customer, UTC day and version,
`daily_products` one per customer, day, purchased product and version. A version is the whole state
of its key as known from `known_day` on (`history.known`); without late rows there is one. A raw row
is read when its slice is rolled up and never again by a feature. Orders and sessions are identified
by (customer_id, id, UTC day), both end at midnight, so their distinct counts add up over days and
nothing crosses a cutoff.

Days are integers since 1970-01-01 and instants microseconds since then, so that the queries over
rollups need no date functions. Sums of money are exact decimals, which makes every result
independent of the order of summation.
"""

from collections.abc import Callable

import dagster as dg

from churn_assets.cutoffs import DAY_US, Calendar
from churn_assets.history.known import DAY, KNOWN_DAY, REPLACED_DAY, placed, versions
from churn_assets.sources.tables import EVENT_TYPES, EVENTS
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.tables import CUSTOMER_ID, SLICE, Column, Table, sql_version

SUM = "DECIMAL(38, 4)"

DAILY_ACTIVITY = Table(
    "daily_activity",
    key=("customer_id", "day", "known_day"),
    columns=(
        CUSTOMER_ID,
        SLICE,
        DAY,
        KNOWN_DAY,
        REPLACED_DAY,
        Column("events", "BIGINT", "Events of any type", "events"),
        *(
            Column(f"{event_type}_events", "BIGINT", f"Events of type {event_type}", "events")
            for event_type in EVENT_TYPES
        ),
        Column("mobile_events", "BIGINT", "Events on channel mobile", "events"),
        Column("web_events", "BIGINT", "Events on channel web", "events"),
        Column("session_count", "BIGINT", "Distinct sessions", "sessions"),
        Column("session_us", "BIGINT", "Total of last minus first event of sessions", "µs"),
        Column("first_event_us", "BIGINT", "First event", "µs since 1970-01-01"),
        Column("last_event_us", "BIGINT", "Last event", "µs since 1970-01-01"),
        Column("amount_events", "BIGINT", "Events with an amount other than 0", "events"),
        Column("amount_sum", SUM, "Their total amount", "currency"),
        Column("amount_sum_squares", "DECIMAL(38, 8)", "Total of squares", "currency²"),
        Column("amount_max", "DECIMAL(18, 4)", "Their largest amount", "currency"),
        Column("amount_min", "DECIMAL(18, 4)", "Their smallest amount", "currency"),
    ),
    partitioned_by="slice",
    moment="last_event_us",
    known_day=KNOWN_DAY.name,
    replaced_day=REPLACED_DAY.name,
)
DAILY_ORDERS = Table(
    "daily_orders",
    key=("customer_id", "day", "known_day"),
    columns=(
        CUSTOMER_ID,
        SLICE,
        DAY,
        KNOWN_DAY,
        REPLACED_DAY,
        Column("purchase_orders", "BIGINT", "Distinct orders with a purchase line", "orders"),
        Column("refund_orders", "BIGINT", "Distinct orders with a refund line", "orders"),
        Column("purchase_quantity", SUM, "Pieces purchased", "pieces"),
        Column("purchase_amount", SUM, "Total of purchase lines", "currency"),
        Column("refund_amount", SUM, "Total of refund lines", "currency"),
        Column("first_purchase_us", "BIGINT", "First purchase line", "µs since 1970-01-01"),
        Column("last_purchase_us", "BIGINT", "Last purchase line", "µs since 1970-01-01"),
    ),
    partitioned_by="slice",
    moment=f"CAST(day AS BIGINT) * {DAY_US}",
    known_day=KNOWN_DAY.name,
    replaced_day=REPLACED_DAY.name,
)
DAILY_PRODUCTS = Table(
    "daily_products",
    key=("customer_id", "day", "product_id", "known_day"),
    columns=(
        CUSTOMER_ID,
        SLICE,
        DAY,
        KNOWN_DAY,
        REPLACED_DAY,
        Column("product_id", "VARCHAR", "A product that was purchased"),
        Column("purchase_quantity", SUM, "Pieces purchased", "pieces"),
        Column("purchase_amount", SUM, "Total of its purchase lines", "currency"),
    ),
    partitioned_by="slice",
    moment=f"CAST(day AS BIGINT) * {DAY_US}",
    known_day=KNOWN_DAY.name,
    replaced_day=REPLACED_DAY.name,
)

EVENT_US = "unix_micros(event_timestamp)"
VERSION = "customer_id, slice, day, known_day, replaced_day"


def daily_activity_query(events: str) -> str:
    """All activity of a customer and day. `events` is a relation of raw events."""
    columns = ("slice", "event_timestamp", "event_type", "channel", "session_id", "amount")
    rows = versions(placed(events, "event_timestamp"), ("customer_id", "day"), columns)
    types = ", ".join(
        f"count(*) FILTER (WHERE event_type = '{event_type}') AS {event_type}_events"
        for event_type in EVENT_TYPES
    )
    with_amount = "FILTER (WHERE amount <> 0)"
    # Of the many events without an amount no square is computed.
    square = "CASE WHEN amount <> 0 THEN CAST(amount AS DECIMAL(38, 4)) * amount END"
    return f"""
        WITH events AS (SELECT * FROM {rows} AS versions),
        days AS (
            SELECT {VERSION},
                count(*) AS events,
                {types},
                count(*) FILTER (WHERE channel = 'mobile') AS mobile_events,
                count(*) FILTER (WHERE channel = 'web') AS web_events,
                min({EVENT_US}) AS first_event_us,
                max({EVENT_US}) AS last_event_us,
                count(*) {with_amount} AS amount_events,
                coalesce(sum(amount), 0) AS amount_sum,
                coalesce(sum({square}), 0) AS amount_sum_squares,
                max(amount) {with_amount} AS amount_max,
                min(amount) {with_amount} AS amount_min
            FROM events
            GROUP BY {VERSION}
        ),
        session_days AS (
            SELECT customer_id, day, known_day,
                count(*) AS session_count,
                sum(last_us - first_us) AS session_us
            FROM (
                SELECT customer_id, day, known_day, session_id,
                    min({EVENT_US}) AS first_us, max({EVENT_US}) AS last_us
                FROM events
                WHERE session_id IS NOT NULL
                GROUP BY customer_id, day, known_day, session_id
            )
            GROUP BY customer_id, day, known_day
        )
        SELECT days.*,
            coalesce(session_count, 0) AS session_count,
            coalesce(session_us, 0) AS session_us
        FROM days LEFT JOIN session_days USING (customer_id, day, known_day)
    """


def daily_orders_query(events: str) -> str:
    """Orders of a customer and day; days without a purchase or refund have no row."""
    lines = f"(SELECT * FROM {events} AS events WHERE event_type IN ('purchase', 'refund'))"
    columns = ("slice", "event_timestamp", "event_type", "order_id", "quantity", "amount")
    rows = versions(placed(lines, "event_timestamp"), ("customer_id", "day"), columns)
    return f"""
        WITH order_parts AS (
            SELECT {VERSION}, event_type, order_id,
                sum(quantity) AS quantity,
                sum(amount) AS amount,
                min({EVENT_US}) AS first_us,
                max({EVENT_US}) AS last_us
            FROM {rows} AS events
            GROUP BY {VERSION}, event_type, order_id
        )
        SELECT {VERSION},
            count(*) FILTER (WHERE event_type = 'purchase') AS purchase_orders,
            count(*) FILTER (WHERE event_type = 'refund') AS refund_orders,
            coalesce(sum(quantity) FILTER (WHERE event_type = 'purchase'), 0) AS purchase_quantity,
            coalesce(sum(amount) FILTER (WHERE event_type = 'purchase'), 0) AS purchase_amount,
            coalesce(sum(amount) FILTER (WHERE event_type = 'refund'), 0) AS refund_amount,
            min(first_us) FILTER (WHERE event_type = 'purchase') AS first_purchase_us,
            max(last_us) FILTER (WHERE event_type = 'purchase') AS last_purchase_us
        FROM order_parts
        GROUP BY {VERSION}
    """


def daily_products_query(events: str) -> str:
    """Products that a customer purchased on a day."""
    lines = (
        f"(SELECT * FROM {events} AS events "
        "WHERE event_type = 'purchase' AND product_id IS NOT NULL)"
    )
    key = ("customer_id", "day", "product_id")
    rows = versions(placed(lines, "event_timestamp"), key, ("slice", "quantity", "amount"))
    return f"""
        SELECT {VERSION}, product_id,
            sum(quantity) AS purchase_quantity,
            sum(amount) AS purchase_amount
        FROM {rows} AS events
        GROUP BY {VERSION}, product_id
    """


ROLLUPS = (
    (DAILY_ACTIVITY, daily_activity_query, "Activity of each customer and day."),
    (DAILY_ORDERS, daily_orders_query, "Purchases and refunds of each customer and day."),
    (DAILY_PRODUCTS, daily_products_query, "Products each customer purchased on a day."),
)


def assets(calendar: Calendar) -> list[dg.AssetsDefinition]:
    """The rollup of each slice, from the raw events of the same slice."""

    def rollup(table: Table, query: Callable[[str], str], description: str) -> dg.AssetsDefinition:
        @dg.asset(
            name=table.name,
            description=f"{description}\n\n{__doc__}",
            ins={"events": dg.AssetIn(EVENTS.table.name, partition_mapping=calendar.same_cutoff)},
            partitions_def=calendar.slices,
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=sql_version(query("raw_events")),
            group_name="rollups",
            kinds={"duckdb", "parquet"},
            owners=["team:data"],
            tags={"layer": "rollups"},
            metadata={"dagster/column_schema": table.as_dagster()},
        )
        def daily_rollup(context: dg.AssetExecutionContext, events: Scan) -> Query:
            rows = {key: query(events.of(key).sql) for key in context.partition_keys}
            return Query(rows, notes=events.notes("files"))

        return daily_rollup

    return [rollup(*declaration) for declaration in ROLLUPS]
