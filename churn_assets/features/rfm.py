"""Recency, frequency and money of purchases in the lookback, and tenure since the first ever."""

from churn_assets.features.group import (
    EVER,
    LOOKBACK,
    Feature,
    FeatureGroup,
    Tolerance,
    total,
    whole_days_since,
)

RFM = FeatureGroup(
    name="customer_rfm_features",
    description=__doc__,
    owner="team:data",
    features=(
        Feature(
            "recency_days",
            whole_days_since("max(last_purchase_us) FILTER (WHERE {window})"),
            "daily_orders",
            LOOKBACK,
            "INTEGER",
            "days",
            "Whole days since the last purchase",
            minimum=0,
        ),
        Feature(
            "frequency",
            total("purchase_orders"),
            "daily_orders",
            LOOKBACK,
            "BIGINT",
            "orders",
            "Distinct purchase orders",
            default=0,
            minimum=0,
        ),
        Feature(
            "monetary",
            total("purchase_amount"),
            "daily_orders",
            LOOKBACK,
            "DOUBLE",
            "currency",
            "Purchase amount",
            default=0,
            minimum=0,
        ),
        Feature(
            "tenure_days",
            whole_days_since("min(first_purchase_us) FILTER (WHERE {window})"),
            "daily_orders",
            EVER,
            "INTEGER",
            "days",
            "Whole days since the first purchase ever",
            minimum=0,
            # While history is short, its oldest customers get older by a period with every cutoff:
            # PSI came to 0.82 on the UCI data and 0.24 on the synthetic shop.
            tolerance=Tolerance(1.0, 2.0),
        ),
    ),
)
