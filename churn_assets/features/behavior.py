"""How customers buy in the lookback: order value, basket, variety, returns and rhythm."""

from churn_assets.features.group import LOOKBACK, Feature, FeatureGroup, ratio

ORDERS = "sum(purchase_orders)"
REFUNDS = "sum(refund_orders)"
PURCHASE_DAYS = "count(*) FILTER (WHERE purchase_orders > 0)"
FIRST_TO_LAST = "(max(last_purchase_us) - min(first_purchase_us))"


def _behavior(
    name: str, sql: str, unit: str, description: str, source: str = "daily_orders"
) -> Feature:
    return Feature(
        name=name,
        sql=sql,
        source=source,
        window=LOOKBACK,
        dtype="DOUBLE",
        unit=unit,
        description=description,
        minimum=0,
    )


BEHAVIOR = FeatureGroup(
    name="customer_behavior_features",
    description=__doc__,
    owner="team:data",
    module=__name__,
    features=(
        _behavior(
            "avg_order_value",
            ratio("sum(purchase_amount)", ORDERS),
            "currency per order",
            "Purchase amount per purchase order",
        ),
        _behavior(
            "avg_basket_size",
            ratio("sum(purchase_quantity)", ORDERS),
            "pieces per order",
            "Purchased pieces per purchase order",
        ),
        Feature(
            name="n_unique_products",
            sql="count(DISTINCT CASE WHEN {window} THEN product_id END)",
            source="daily_products",
            window=LOOKBACK,
            dtype="BIGINT",
            unit="products",
            description="Distinct purchased products",
            default=0,
            minimum=0,
        ),
        _behavior(
            "return_rate",
            ratio(REFUNDS, f"{ORDERS} + {REFUNDS}"),
            "share",
            "Refunded orders among purchase and refunded orders",
        ),
        _behavior(
            "avg_days_between_purchases",
            f"CASE WHEN {PURCHASE_DAYS} > 1 THEN CAST({FIRST_TO_LAST} AS DOUBLE) / 8.64e10 "
            f"/ CAST({PURCHASE_DAYS} - 1 AS DOUBLE) END",
            "days",
            "First to last purchase instant, per distinct purchase day after the first",
        ),
    ),
)
