"""The last seven days before the cutoff: events, orders, money and its spread."""

from churn_assets.features.group import (
    LOOKBACK,
    Feature,
    FeatureGroup,
    ratio,
    sample_sd,
    whole_days_since,
)


def _recent(
    name: str, sql: str, source: str, dtype: str, unit: str, description: str, default: int | None
) -> Feature:
    return Feature(
        name=name,
        sql=sql,
        source=source,
        window=7,
        dtype=dtype,
        unit=unit,
        description=description,
        default=default,
        minimum=0,
    )


AMOUNTS = "sum(amount_events)"
BROWSE = "sum(page_view_events + product_view_events + search_events)"

RECENT = FeatureGroup(
    name="customer_recent_features",
    description=__doc__,
    owner="team:data",
    module=__name__,
    features=(
        Feature(
            name="days_since_last_event",
            sql=whole_days_since("max(last_event_us)"),
            source="daily_activity",
            window=LOOKBACK,
            dtype="INTEGER",
            unit="days",
            description="Whole days from the last event to the cutoff",
            minimum=0,
        ),
        _recent(
            "purchases_7d",
            "sum(purchase_orders)",
            "daily_orders",
            "BIGINT",
            "orders",
            "Distinct orders with a purchase line",
            0,
        ),
        _recent(
            "refunds_7d",
            "sum(refund_orders)",
            "daily_orders",
            "BIGINT",
            "orders",
            "Distinct orders with a refund line",
            0,
        ),
        _recent(
            "revenue_7d",
            "sum(purchase_amount)",
            "daily_orders",
            "DOUBLE",
            "currency",
            "Total of purchase lines",
            0,
        ),
        _recent(
            "refund_amount_7d",
            "sum(refund_amount)",
            "daily_orders",
            "DOUBLE",
            "currency",
            "Total of refund lines",
            0,
        ),
        _recent(
            "events_7d",
            "sum(events)",
            "daily_activity",
            "BIGINT",
            "events",
            "Events of any type",
            0,
        ),
        _recent(
            "mobile_events_7d",
            "sum(mobile_events)",
            "daily_activity",
            "BIGINT",
            "events",
            "Events on channel mobile",
            0,
        ),
        _recent(
            "web_events_7d",
            "sum(web_events)",
            "daily_activity",
            "BIGINT",
            "events",
            "Events on channel web",
            0,
        ),
        _recent(
            "browse_events_7d",
            BROWSE,
            "daily_activity",
            "BIGINT",
            "events",
            "Page views, product views and searches",
            0,
        ),
        _recent(
            "avg_amount_nonzero_7d",
            ratio("sum(amount_sum)", AMOUNTS),
            "daily_activity",
            "DOUBLE",
            "currency",
            "Mean amount of events with an amount",
            None,
        ),
        _recent(
            "amount_stddev_7d",
            sample_sd(AMOUNTS, "sum(amount_sum)", "sum(amount_sum_squares)"),
            "daily_activity",
            "DOUBLE",
            "currency",
            "Sample standard deviation of amounts of events with an amount",
            None,
        ),
        _recent(
            "max_amount_7d",
            "max(amount_max)",
            "daily_activity",
            "DOUBLE",
            "currency",
            "Largest amount of an event with an amount",
            None,
        ),
        _recent(
            "min_amount_7d",
            "min(amount_min)",
            "daily_activity",
            "DOUBLE",
            "currency",
            "Smallest amount of an event with an amount",
            None,
        ),
    ),
)
