"""What customers did in the lookback: counts by event type, sessions, active days."""

from churn_assets.features.group import (
    LOOKBACK,
    Feature,
    FeatureGroup,
    ratio,
    whole_days_since,
)
from churn_assets.sources.tables import EVENT_TYPES

COUNTED_TYPES = ("add_to_cart", "page_view", "product_view", "search", "remove_from_cart")


def _count(name: str, column: str, source: str, unit: str, description: str) -> Feature:
    return Feature(
        name=name,
        sql=f"sum({column})",
        source=source,
        window=LOOKBACK,
        dtype="BIGINT",
        unit=unit,
        description=description,
        default=0,
        minimum=0,
    )


ACTIVITY = FeatureGroup(
    name="customer_activity_features",
    description=__doc__,
    owner="team:data",
    module=__name__,
    features=(
        _count("total_events", "events", "daily_activity", "events", "Events of any type"),
        _count(
            "purchase_count",
            "purchase_orders",
            "daily_orders",
            "orders",
            "Distinct orders with a purchase line",
        ),
        *(
            _count(
                f"{event_type}_count",
                f"{event_type}_events",
                "daily_activity",
                "events",
                f"Events of type {event_type}",
            )
            for event_type in COUNTED_TYPES
        ),
        _count(
            "refund_count",
            "refund_orders",
            "daily_orders",
            "orders",
            "Distinct orders with a refund line",
        ),
        _count(
            "session_count",
            "session_count",
            "daily_activity",
            "sessions",
            "Distinct sessions; a session ends at UTC midnight",
        ),
        Feature(
            name="avg_session_length",
            sql=ratio("sum(session_us)", "sum(session_count)") + " / 6e7",
            source="daily_activity",
            window=LOOKBACK,
            dtype="DOUBLE",
            unit="minutes",
            description="Mean over sessions of last minus first event",
            minimum=0,
        ),
        Feature(
            name="active_days",
            sql="count(*)",
            source="daily_activity",
            window=LOOKBACK,
            dtype="BIGINT",
            unit="days",
            description="Distinct UTC days with an event",
            default=0,
            minimum=0,
        ),
        Feature(
            name="last_active_days",
            sql=whole_days_since("max(last_event_us)"),
            source="daily_activity",
            window=LOOKBACK,
            dtype="INTEGER",
            unit="days",
            description="Whole days from the last event to the cutoff",
            minimum=0,
        ),
        *(
            Feature(
                name=f"event_vector_{event_type}",
                sql=ratio(f"sum({event_type}_events)", "sum(events)"),
                source="daily_activity",
                window=LOOKBACK,
                dtype="DOUBLE",
                unit="share",
                description=f"Events of type {event_type} among all events",
                minimum=0,
                maximum=1,
            )
            for event_type in EVENT_TYPES
        ),
    ),
)
