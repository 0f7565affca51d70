"""The features and labels of `churn_assets`, as a good Polars user would write them by hand.

    python polars_features.py INPUT OUTPUT --features CUTOFF... --labels CUTOFF...

Reads `INPUT/events*.parquet` and writes `OUTPUT/features/<cutoff>.parquet` with the event groups
(activity, recent, rfm, behavior, trend) and `OUTPUT/labels/<cutoff>.parquet` with the churn labels.
`benchmarks.offline` runs it in an environment of its own and compares its files with ours.

Raw events are read once, by the streaming engine, into a row per customer and day and into the
order lines. Every cutoff is then computed from these two, which are kept in memory.

It has what such a script has: no validation, no quarantine, no contracts, no lineage, and no state
between two runs, so one more cutoff reads all of history again. It trusts its input: types are as
expected, files end at midnight, no row is there twice, every order line has its order, and amounts
are whole cents.

The script is frozen: it changes only where a feature's definition does.
"""

# /// script
# dependencies = ["polars==2.1.0"]
# ///

import argparse
import datetime as dt
from pathlib import Path

import polars as pl

LOOKBACK, RECENT, MONTH, HORIZON = 90, 7, 30, 28
DAY_US = 86_400_000_000
COUNTED = ("page_view", "product_view", "search", "add_to_cart", "remove_from_cart")
TYPES = (*COUNTED, "purchase", "refund")
DAY, GAP = pl.col("day"), pl.col("gap")


def read(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A row per customer and day, and the order lines. Days and instants are since 1970."""
    events = pl.scan_parquet(path).with_columns(
        day=pl.col("event_timestamp").dt.epoch("d"),
        at=pl.col("event_timestamp").dt.epoch("us"),
    )
    # A session ends at midnight, so what it adds up to is a matter of one day.
    sessions = events.group_by("customer_id", "day", "session_id").agg(
        pl.len().alias("events"),
        *((pl.col("event_type") == name).sum().alias(name) for name in TYPES),
        (pl.col("channel") == "mobile").sum().alias("mobile"),
        (pl.col("channel") == "web").sum().alias("web"),
        pl.col("at").min().alias("first"),
        pl.col("at").max().alias("last"),
    )
    has_session = pl.col("session_id").is_not_null()
    days = sessions.group_by("customer_id", "day").agg(
        pl.col("events", *TYPES, "mobile", "web").sum(),
        has_session.sum().alias("sessions"),
        (pl.col("last") - pl.col("first")).filter(has_session).sum().alias("session_us"),
        pl.col("first").min(),
        pl.col("last").max(),
    )
    lines = events.filter(pl.col("event_type").is_in(["purchase", "refund"])).select(
        "customer_id",
        "day",
        "at",
        "order_id",
        "product_id",
        "quantity",
        (pl.col("event_type") == "purchase").alias("purchase"),
        (pl.col("amount") * 100).cast(pl.Int64).alias("cents"),
    )
    days_read, lines_read = pl.collect_all([days, lines], engine="streaming")
    return days_read, lines_read


def order_days(lines: pl.DataFrame) -> pl.DataFrame:
    """A row per customer and day with an order line."""
    bought = pl.col("purchase")
    orders = (
        lines.lazy()
        .group_by("customer_id", "day", "purchase", "order_id")
        .agg(
            pl.col("cents", "quantity").sum(),
            pl.col("at").min().alias("first"),
            pl.col("at").max().alias("last"),
        )
    )
    return (
        orders.group_by("customer_id", "day")
        .agg(
            bought.sum().alias("purchases"),
            bought.not_().sum().alias("refunds"),
            pl.col("quantity").filter(bought).sum(),
            pl.col("cents").filter(bought).sum().alias("revenue"),
            pl.col("cents").filter(~bought).sum().alias("refunded"),
            pl.col("first").filter(bought).min(),
            pl.col("last").filter(bought).max(),
        )
        .collect(engine="streaming")
    )


def purchase_days(orders: pl.DataFrame) -> pl.DataFrame:
    """The days with a purchase, and how long before it the last one was."""
    return (
        orders.lazy()
        .filter(pl.col("purchases") > 0)
        .select("customer_id", "day", "purchases", "revenue", "first", "last")
        .sort("customer_id", "day")
        .with_columns(gap=DAY.diff().over("customer_id"))
        .collect()
    )


def share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """A quotient, NULL where there is nothing to divide by."""
    return pl.when(whole != 0).then(part / whole)


def day_number(day: dt.date) -> int:
    return (day - dt.date(1970, 1, 1)).days


def features(
    cutoff: int,
    days: pl.LazyFrame,
    lines: pl.LazyFrame,
    orders: pl.LazyFrame,
    purchases: pl.LazyFrame,
) -> pl.LazyFrame:
    def since(column: str) -> pl.Expr:
        return (cutoff * DAY_US - pl.col(column)) // DAY_US

    def window(length: int) -> pl.Expr:
        return DAY.is_between(cutoff - length, cutoff, closed="left")

    recent, month, lookback, before = window(RECENT), window(MONTH), window(LOOKBACK), cutoff > DAY
    browsed = pl.sum_horizontal("page_view", "product_view", "search")
    activity = (
        days.filter(lookback)
        .group_by("customer_id")
        .agg(
            pl.col("events").sum().alias("total_events"),
            *(pl.col(name).sum().alias(f"{name}_count") for name in COUNTED),
            pl.col("purchase").sum().alias("purchase_lines"),
            pl.col("refund").sum().alias("refund_lines"),
            pl.col("sessions").sum().alias("session_count"),
            pl.col("session_us").sum(),
            pl.len().alias("active_days"),
            pl.col("last").max(),
            pl.col("events").filter(recent).sum().alias("events_7d"),
            pl.col("mobile").filter(recent).sum().alias("mobile_events_7d"),
            pl.col("web").filter(recent).sum().alias("web_events_7d"),
            browsed.filter(recent).sum().alias("browse_events_7d"),
            pl.col("events").filter(month).sum().alias("events_30d"),
            month.sum().alias("active_days_30d"),
        )
    )
    ever = (
        days.filter(before)
        .group_by("customer_id")
        .agg(
            pl.len().alias("lifetime_active_days"),
            pl.col("first").min().alias("first_ever"),
            (DAY.max() - DAY.min()).alias("active_span"),
        )
    )
    ordered = (
        orders.filter(lookback)
        .group_by("customer_id")
        .agg(
            pl.col("purchases").sum(),
            pl.col("refunds").sum(),
            pl.col("revenue").sum(),
            pl.col("quantity").sum(),
            (pl.col("purchases") > 0).sum().alias("purchase_days"),
            pl.col("first").min().alias("first_purchase"),
            pl.col("last").max().alias("last_purchase"),
            pl.col("purchases").filter(recent).sum().alias("purchases_7d"),
            pl.col("refunds").filter(recent).sum().alias("refunds_7d"),
            pl.col("revenue").filter(recent).sum().alias("revenue_7d"),
            pl.col("refunded").filter(recent).sum().alias("refunded_7d"),
            pl.col("purchases").filter(month).sum().alias("purchases_30d"),
            pl.col("revenue").filter(month).sum().alias("revenue_30d"),
        )
    )
    rhythm = (
        purchases.filter(before)
        .group_by("customer_id")
        .agg(
            pl.col("purchases").sum().alias("lifetime_orders"),
            pl.col("revenue").sum().alias("lifetime_cents"),
            pl.col("first").min().alias("first_purchase_ever"),
            pl.col("last").max().alias("last_purchase_ever"),
            GAP.mean().alias("gap_mean_days"),
            GAP.std().alias("gap_sd_days"),
            GAP.max_by("day").alias("gap_last_days"),
        )
    )
    products = (
        lines.filter(lookback & pl.col("purchase"))
        .group_by("customer_id")
        .agg(pl.col("product_id").drop_nulls().n_unique().alias("n_unique_products"))
    )
    amounts = (
        lines.filter(recent & (pl.col("cents") != 0))
        .group_by("customer_id")
        .agg(
            (pl.col("cents").mean() / 100).alias("avg_amount_nonzero_7d"),
            (pl.col("cents").std() / 100).alias("amount_stddev_7d"),
            (pl.col("cents").max() / 100).alias("max_amount_7d"),
            (pl.col("cents").min() / 100).alias("min_amount_7d"),
        )
    )
    total, orders_90d = pl.col("total_events"), pl.col("purchases").fill_null(0)
    revenue, refunds = pl.col("revenue").fill_null(0), pl.col("refunds").fill_null(0)
    counted = [pl.col(f"{name}_count") for name in COUNTED]
    other = total - pl.sum_horizontal(*counted, "purchase_lines", "refund_lines")
    gap, quiet_gap = (
        pl.col("gap_mean_days"),
        share(pl.col("active_span"), pl.col("lifetime_active_days").cast(pl.Int64) - 1),
    )
    parts = (ever, ordered, rhythm, products, amounts)
    joined = activity
    for part in parts:
        joined = joined.join(part, on="customer_id", how="left")
    return joined.select(
        "customer_id",
        (pl.lit(cutoff).cast(pl.Int32).cast(pl.Date)).alias("cutoff"),
        # activity
        "total_events",
        orders_90d.alias("purchase_count"),
        *counted,
        refunds.alias("refund_count"),
        "session_count",
        (share(pl.col("session_us"), pl.col("session_count")) / 6e7).alias("avg_session_length"),
        "active_days",
        since("last").alias("last_active_days"),
        *((pl.col(f"{name}_count") / total).alias(f"event_vector_{name}") for name in COUNTED),
        (pl.col("purchase_lines") / total).alias("event_vector_purchase"),
        (pl.col("refund_lines") / total).alias("event_vector_refund"),
        (other / total).alias("event_vector_other"),
        # recent
        since("last").alias("days_since_last_event"),
        pl.col("purchases_7d", "refunds_7d").fill_null(0),
        (pl.col("revenue_7d").fill_null(0) / 100).alias("revenue_7d"),
        (pl.col("refunded_7d").fill_null(0) / 100).alias("refund_amount_7d"),
        "events_7d",
        "mobile_events_7d",
        "web_events_7d",
        "browse_events_7d",
        "avg_amount_nonzero_7d",
        "amount_stddev_7d",
        "max_amount_7d",
        "min_amount_7d",
        # rfm
        since("last_purchase").alias("recency_days"),
        orders_90d.alias("frequency"),
        (revenue / 100).alias("monetary"),
        since("first_purchase_ever").alias("tenure_days"),
        # behavior
        (share(revenue, orders_90d) / 100).alias("avg_order_value"),
        share(pl.col("quantity"), orders_90d).alias("avg_basket_size"),
        pl.col("n_unique_products").fill_null(0),
        share(refunds, orders_90d + refunds).alias("return_rate"),
        share(
            (pl.col("last_purchase") - pl.col("first_purchase")) / DAY_US,
            pl.col("purchase_days").cast(pl.Int64) - 1,
        ).alias("avg_days_between_purchases"),
        # trend
        share(pl.col("purchases_30d"), orders_90d).alias("purchases_30d_share"),
        share(pl.col("revenue_30d"), revenue).alias("revenue_30d_share"),
        (pl.col("events_30d") / total).alias("events_30d_share"),
        (pl.col("active_days_30d") / pl.col("active_days")).alias("active_days_30d_share"),
        pl.col("lifetime_orders").fill_null(0),
        (pl.col("lifetime_cents").fill_null(0) / 100).alias("lifetime_revenue"),
        gap,
        "gap_sd_days",
        "gap_last_days",
        (since("last_purchase_ever") / gap).alias("recency_over_gap"),
        (since("last_purchase_ever") - gap).alias("overdue_days"),
        "lifetime_active_days",
        since("first_ever").alias("days_since_first_event"),
        quiet_gap.alias("activity_gap_mean_days"),
        (since("last") / quiet_gap).alias("quiet_over_gap"),
    )


def labels(cutoff: int, days: pl.LazyFrame, orders: pl.LazyFrame) -> pl.LazyFrame:
    population = (
        days.filter(DAY.is_between(cutoff - LOOKBACK, cutoff, closed="left"))
        .select("customer_id")
        .unique()
    )
    future = (
        orders.filter(DAY.is_between(cutoff, cutoff + HORIZON, closed="left"))
        .group_by("customer_id")
        .agg(pl.col("purchases").sum(), pl.col("revenue").sum())
    )
    purchased = (pl.col("purchases").fill_null(0) > 0).cast(pl.Int32)
    return population.join(future, on="customer_id", how="left").select(
        "customer_id",
        (pl.lit(cutoff).cast(pl.Int32).cast(pl.Date)).alias("cutoff"),
        (1 - purchased).alias("churned"),
        purchased.alias("purchased"),
        (pl.col("revenue").fill_null(0).cast(pl.Decimal(38, 4)) / 100).alias("future_revenue"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--features", type=dt.date.fromisoformat, nargs="*", default=[])
    parser.add_argument("--labels", type=dt.date.fromisoformat, nargs="*", default=[])
    arguments = parser.parse_args()
    # A file ends at a midnight, so no session is in two. All files at once take twice the time and
    # the memory.
    parts = [read(path) for path in sorted(arguments.input.glob("events*.parquet"))]
    days_read, lines_read = (pl.concat(frames) for frames in zip(*parts, strict=True))
    orders_read = order_days(lines_read)
    days, lines, orders = days_read.lazy(), lines_read.lazy(), orders_read.lazy()
    purchases = purchase_days(orders_read).lazy()
    for cutoff in arguments.features:
        rows = features(day_number(cutoff), days, lines, orders, purchases)
        rows.sink_parquet(arguments.output / "features" / f"{cutoff}.parquet", mkdir=True)
    for cutoff in arguments.labels:
        rows = labels(day_number(cutoff), days, orders)
        rows.sink_parquet(arguments.output / "labels" / f"{cutoff}.parquet", mkdir=True)


if __name__ == "__main__":
    main()
