"""Recency, frequency and money of purchases in the lookback, and tenure since the first ever."""

from churn_assets.features.group import (
    EVER,
    LOOKBACK,
    Feature,
    FeatureGroup,
    Tolerance,
    whole_days_since,
)

RFM = FeatureGroup(
    name="customer_rfm_features",
    description=__doc__,
    owner="team:data",
    module=__name__,
    features=(
        Feature(
            name="recency_days",
            sql=whole_days_since("max(last_purchase_us)"),
            source="daily_orders",
            window=LOOKBACK,
            dtype="INTEGER",
            unit="days",
            description="Whole days since the last purchase",
            minimum=0,
        ),
        Feature(
            name="frequency",
            sql="sum(purchase_orders)",
            source="daily_orders",
            window=LOOKBACK,
            dtype="BIGINT",
            unit="orders",
            description="Distinct purchase orders",
            default=0,
            minimum=0,
        ),
        Feature(
            name="monetary",
            sql="sum(purchase_amount)",
            source="daily_orders",
            window=LOOKBACK,
            dtype="DOUBLE",
            unit="currency",
            description="Purchase amount",
            default=0,
            minimum=0,
        ),
        Feature(
            name="tenure_days",
            sql=whole_days_since("min(first_purchase_us)"),
            source="daily_orders",
            window=EVER,
            dtype="INTEGER",
            unit="days",
            description="Whole days since the first purchase ever",
            minimum=0,
            # While history is short, its oldest customers get older by a period with every cutoff:
            # PSI came to 0.82 on the UCI data and 0.24 on the synthetic shop.
            tolerance=Tolerance(warn=1.0, error=2.0),
        ),
    ),
)
