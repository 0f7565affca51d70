"""Where customers are heading: the last 30 days within the lookback, and the rhythm they keep.

Gaps are the days between successive purchase days, over all purchase days before the cutoff; gaps
of activity those between successive days with an event of any type.
"""

from churn_assets.features.group import (
    EVER,
    GROWING,
    LOOKBACK,
    Derived,
    Feature,
    FeatureGroup,
    ratio,
    sample_sd,
    whole_days_since,
)

PURCHASE_DAYS = Derived(
    rollup="daily_orders",
    sql="""
        SELECT customer_id, day, purchase_orders, purchase_amount, last_purchase_us,
            day - lag(day) OVER (PARTITION BY customer_id ORDER BY day) AS gap
        FROM {rollup} AS orders
        WHERE purchase_orders > 0
    """,
)

GAPS = "count(gap)"
GAP_MEAN = ratio("sum(gap)", GAPS)
ACTIVE_DAYS = "count(*)"
ACTIVITY_GAP = ratio("max(day) - min(day)", f"{ACTIVE_DAYS} - 1")
SINCE_EVENT = whole_days_since("max(last_event_us)")
SINCE_PURCHASE = whole_days_since("max(last_purchase_us)")


def _share(name: str, value: str, source: str, of: str) -> Feature:
    return Feature(
        name=name,
        sql=ratio(f"coalesce({value} FILTER (WHERE {{window}}), 0)", value),
        source=source,
        window=30,
        against=LOOKBACK,
        dtype="DOUBLE",
        unit="share",
        description=f"{of} of the last 30 days among those of the lookback",
        minimum=0,
        maximum=1,
    )


def _rhythm(
    name: str, sql: str, unit: str, description: str, source: str = "purchase_days"
) -> Feature:
    return Feature(
        name=name,
        sql=sql,
        source=source,
        window=EVER,
        dtype="DOUBLE",
        unit=unit,
        description=description,
        tolerance=GROWING,
    )


TREND = FeatureGroup(
    name="customer_trend_features",
    description=__doc__,
    owner="team:data",
    module=__name__,
    derived={"purchase_days": PURCHASE_DAYS},
    features=(
        _share("purchases_30d_share", "sum(purchase_orders)", "daily_orders", "Purchase orders"),
        _share("revenue_30d_share", "sum(purchase_amount)", "daily_orders", "Purchase amount"),
        _share("events_30d_share", "sum(events)", "daily_activity", "Events"),
        _share("active_days_30d_share", ACTIVE_DAYS, "daily_activity", "Active days"),
        Feature(
            name="lifetime_orders",
            sql="sum(purchase_orders)",
            source="purchase_days",
            window=EVER,
            dtype="BIGINT",
            unit="orders",
            description="Distinct purchase orders ever",
            default=0,
            minimum=0,
            tolerance=GROWING,
        ),
        Feature(
            name="lifetime_revenue",
            sql="sum(purchase_amount)",
            source="purchase_days",
            window=EVER,
            dtype="DOUBLE",
            unit="currency",
            description="Purchase amount ever",
            default=0,
            minimum=0,
            tolerance=GROWING,
        ),
        _rhythm("gap_mean_days", GAP_MEAN, "days", "Mean gap between purchase days"),
        _rhythm(
            "gap_sd_days",
            sample_sd(GAPS, "sum(gap)", "sum(gap * gap)"),
            "days",
            "Sample standard deviation of the gaps",
        ),
        _rhythm(
            "gap_last_days",
            "max_by(gap, day)",
            "days",
            "Gap before the last purchase day",
        ),
        _rhythm(
            "recency_over_gap",
            f"{SINCE_PURCHASE} / ({GAP_MEAN})",
            "",
            "Whole days since the last purchase per mean gap",
        ),
        _rhythm(
            "overdue_days",
            f"{SINCE_PURCHASE} - ({GAP_MEAN})",
            "days",
            "Whole days since the last purchase beyond the mean gap",
        ),
        Feature(
            name="lifetime_active_days",
            sql=ACTIVE_DAYS,
            source="daily_activity",
            window=EVER,
            dtype="BIGINT",
            unit="days",
            description="Distinct UTC days with an event ever",
            default=0,
            minimum=0,
            tolerance=GROWING,
        ),
        _rhythm(
            "days_since_first_event",
            whole_days_since("min(first_event_us)"),
            "days",
            "Whole days from the first event ever to the cutoff",
            "daily_activity",
        ),
        _rhythm(
            "activity_gap_mean_days",
            ACTIVITY_GAP,
            "days",
            "Mean gap between active days",
            "daily_activity",
        ),
        _rhythm(
            "quiet_over_gap",
            f"{SINCE_EVENT} / ({ACTIVITY_GAP})",
            "",
            "Whole days since the last event per mean gap of activity",
            "daily_activity",
        ),
    ),
)
