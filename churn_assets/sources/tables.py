"""The four tables that a source may have: events, customers, reviews, satisfaction surveys.

Their columns, types, keys and requirements are declared here once; sources read for them, and
`history.raw` stores their rows. How a value is parsed is not said here.
"""

from dataclasses import dataclass

from churn_assets.stores.sql import day_of
from churn_assets.stores.tables import CUSTOMER_ID, SLICE, Column, Table

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
DECIMAL = "DECIMAL(18, 4)"
MOST_VOTES = 1_000_000_000

KNOWN_AT = Column(
    "known_at", TIMESTAMPTZ, "When the row became known: its own time unless it came late", "UTC"
)
WITHDRAWN_AT = Column(
    "withdrawn_at", TIMESTAMPTZ, "When a later delivery no longer had it; NULL while it has", "UTC"
)


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
        essential: Columns whose bad value costs the row; of others it costs only the value.
        generated_id: A column that is filled from the row's content where it is missing.
        optional_key: A column of the key that may be missing.
        at_cutoffs: Whether cutoffs read its rows as they are, without a rollup.
    """

    source_name: str
    columns: tuple[Column, ...]
    timestamp: str
    key: tuple[str, ...]
    required_columns: frozenset[str]
    essential: frozenset[str]
    required: bool = False
    generated_id: str | None = None
    optional_key: str | None = None
    at_cutoffs: bool = False

    @property
    def table(self) -> Table:
        first, *others = self.columns
        return Table(
            f"raw_{self.source_name}",
            key=(*dict.fromkeys((self.timestamp, *self.key)), KNOWN_AT.name),
            optional_key=self.optional_key,
            columns=(first, SLICE, *others, WITHDRAWN_AT),
            partitioned_by="slice",
            refuse_shrinking=True,
            moment=f"epoch_us({self.timestamp})",
            known_day=day_of(f"coalesce(known_at, {self.timestamp})") if self.at_cutoffs else None,
            replaced_day=day_of("withdrawn_at") if self.at_cutoffs else None,
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
        Column(
            "quantity",
            DECIMAL,
            "Pieces, or parts of one; 1 where missing",
            "pieces",
            minimum=0,
            maximum=1_000_000,
        ),
        Column(
            "amount",
            DECIMAL,
            "Line total; 0 where missing",
            "currency",
            minimum=0,
            maximum=10_000_000_000,
        ),
        KNOWN_AT,
    ),
    timestamp="event_timestamp",
    key=("customer_id", "order_id", "event_id"),
    required_columns=frozenset({"customer_id", "event_timestamp", "event_type"}),
    essential=frozenset({"event_timestamp", "quantity", "amount"}),
    required=True,
    generated_id="event_id",
    optional_key="order_id",
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
        KNOWN_AT,
    ),
    timestamp="updated_at",
    key=("customer_id", "updated_at"),
    required_columns=frozenset({"customer_id", "updated_at"}),
    essential=frozenset({"updated_at"}),
    at_cutoffs=True,
)
REVIEWS = RawTable(
    source_name="reviews",
    columns=(
        CUSTOMER_ID,
        Column("review_id", "VARCHAR", "Identifies the review; a hash of the row where missing"),
        Column("product_id", "VARCHAR", "The reviewed product"),
        Column("review_timestamp", TIMESTAMPTZ, "When it was written", "UTC"),
        Column("rating", "DOUBLE", "Stars", "stars", minimum=1, maximum=5),
        Column("text", "VARCHAR", "The unmodified text"),
        Column(
            "helpful_votes",
            "BIGINT",
            "Votes that found it helpful",
            "votes",
            minimum=0,
            maximum=MOST_VOTES,
        ),
        Column(
            "total_votes",
            "BIGINT",
            "All votes",
            "votes",
            minimum=0,
            maximum=MOST_VOTES,
        ),
        KNOWN_AT,
    ),
    timestamp="review_timestamp",
    key=("review_id",),
    required_columns=frozenset({"customer_id", "review_timestamp"}),
    essential=frozenset({"review_timestamp"}),
    generated_id="review_id",
)
SATISFACTION = RawTable(
    source_name="satisfaction",
    columns=(
        CUSTOMER_ID,
        Column("surveyed_at", TIMESTAMPTZ, "When the customer answered", "UTC"),
        Column("satisfaction_score", "BIGINT", "The answer", "points", minimum=1, maximum=5),
        KNOWN_AT,
    ),
    timestamp="surveyed_at",
    key=("customer_id", "surveyed_at"),
    required_columns=frozenset({"customer_id", "surveyed_at", "satisfaction_score"}),
    essential=frozenset({"surveyed_at", "satisfaction_score"}),
    at_cutoffs=True,
)
RAW_TABLES = (EVENTS, CUSTOMERS, REVIEWS, SATISFACTION)
