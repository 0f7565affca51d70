"""Features and labels as the design words them, one customer at a time over raw events in Python.

Slow, and independent of the queries: it knows neither rollups nor SQL.
"""

import datetime as dt
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

DAY = dt.timedelta(days=1)
TYPES = (
    "page_view",
    "product_view",
    "search",
    "add_to_cart",
    "remove_from_cart",
    "purchase",
    "refund",
    "other",
)


@dataclass(frozen=True)
class Event:
    """A valid raw event.

    Args:
        known_at: When it became known; as it happened where nothing is given.
        withdrawn_at: When a later delivery no longer had it.
    """

    customer_id: str
    at: dt.datetime
    event_type: str = "page_view"
    order_id: str | None = None
    session_id: str | None = None
    product_id: str | None = None
    channel: str | None = None
    quantity: int = 1
    amount: Decimal = Decimal(0)
    known_at: dt.datetime | None = None
    withdrawn_at: dt.datetime | None = None


def known(history: Sequence[Event], moment: dt.datetime) -> list[Event]:
    """What was known before a midnight, and not withdrawn by then."""
    return [
        event
        for event in history
        if (event.known_at or event.at) < moment
        and (event.withdrawn_at is None or event.withdrawn_at >= moment)
    ]


def instant(cutoff: dt.date) -> dt.datetime:
    return dt.datetime(cutoff.year, cutoff.month, cutoff.day, tzinfo=dt.UTC)


def whole_days(delta: dt.timedelta) -> int:
    return delta // DAY


def within(events: Sequence[Event], begin: dt.datetime, end: dt.datetime) -> list[Event]:
    return [event for event in events if begin <= event.at < end]


def orders(events: Sequence[Event], event_type: str) -> set[tuple[str | None, dt.date]]:
    return {(e.order_id, e.at.date()) for e in events if e.event_type == event_type}


def of_type(events: Sequence[Event], *types: str) -> list[Event]:
    return [event for event in events if event.event_type in types]


def total(events: Sequence[Event]) -> Decimal:
    return sum((event.amount for event in events), Decimal(0))


def share(part: float | Decimal, whole: float | Decimal) -> float | None:
    return float(part) / float(whole) if whole else None


def sample_sd(values: Sequence[Decimal | int]) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(statistics.variance([Decimal(value) for value in values]))


def features(
    history: Sequence[Event], cutoff: dt.date, lookback_days: int = 90
) -> dict[str, object] | None:
    """All features of one customer at a cutoff, or None outside the population."""
    end = instant(cutoff)
    past = [event for event in known(history, end) if event.at < end]
    window = within(past, end - lookback_days * DAY, end)
    if not window:
        return None
    month, week = within(past, end - 30 * DAY, end), within(past, end - 7 * DAY, end)

    sessions: dict[tuple[str, dt.date], list[dt.datetime]] = {}
    for event in window:
        if event.session_id is not None:
            sessions.setdefault((event.session_id, event.at.date()), []).append(event.at)
    lengths = [(max(times) - min(times)) / dt.timedelta(minutes=1) for times in sessions.values()]
    purchases = of_type(window, "purchase")
    purchase_orders, refund_orders = orders(window, "purchase"), orders(window, "refund")
    bought_ever = of_type(past, "purchase")
    amounts = [event.amount for event in week if event.amount != 0]
    purchase_days = sorted({event.at.date() for event in purchases})
    days_ever = sorted({event.at.date() for event in bought_ever})
    gaps = [(b - a).days for a, b in itertools.pairwise(days_ever)]
    gap_mean = sum(gaps) / len(gaps) if gaps else None
    since_purchase = whole_days(end - max(e.at for e in bought_ever)) if bought_ever else 0
    revenue = total(purchases)
    last_event = whole_days(end - max(event.at for event in window))
    active, active_month = {e.at.date() for e in window}, {e.at.date() for e in month}

    return {
        "total_events": len(window),
        "purchase_count": len(purchase_orders),
        **{f"{t}_count": len(of_type(window, t)) for t in TYPES[:5]},
        "refund_count": len(refund_orders),
        "session_count": len(sessions),
        "avg_session_length": sum(lengths) / len(lengths) if lengths else None,
        "active_days": len(active),
        "last_active_days": last_event,
        **{f"event_vector_{t}": len(of_type(window, t)) / len(window) for t in TYPES},
        "days_since_last_event": last_event,
        "purchases_7d": len(orders(week, "purchase")),
        "refunds_7d": len(orders(week, "refund")),
        "revenue_7d": float(total(of_type(week, "purchase"))),
        "refund_amount_7d": float(total(of_type(week, "refund"))),
        "events_7d": len(week),
        "mobile_events_7d": sum(event.channel == "mobile" for event in week),
        "web_events_7d": sum(event.channel == "web" for event in week),
        "browse_events_7d": len(of_type(week, "page_view", "product_view", "search")),
        "avg_amount_nonzero_7d": share(sum(amounts, Decimal(0)), len(amounts)),
        "amount_stddev_7d": sample_sd(amounts),
        "max_amount_7d": float(max(amounts)) if amounts else None,
        "min_amount_7d": float(min(amounts)) if amounts else None,
        "recency_days": whole_days(end - max(e.at for e in purchases)) if purchases else None,
        "frequency": len(purchase_orders),
        "monetary": float(revenue),
        "tenure_days": whole_days(end - min(e.at for e in bought_ever)) if bought_ever else None,
        "avg_order_value": share(revenue, len(purchase_orders)),
        "avg_basket_size": share(sum(e.quantity for e in purchases), len(purchase_orders)),
        "n_unique_products": len({e.product_id for e in purchases} - {None}),
        "return_rate": share(len(refund_orders), len(purchase_orders) + len(refund_orders)),
        "avg_days_between_purchases": (
            (max(e.at for e in purchases) - min(e.at for e in purchases))
            / DAY
            / (len(purchase_days) - 1)
            if len(purchase_days) > 1
            else None
        ),
        "purchases_30d_share": share(len(orders(month, "purchase")), len(purchase_orders)),
        "revenue_30d_share": share(total(of_type(month, "purchase")), revenue),
        "events_30d_share": share(len(month), len(window)),
        "active_days_30d_share": share(len(active_month), len(active)),
        "lifetime_orders": len(orders(past, "purchase")),
        "lifetime_revenue": float(total(bought_ever)),
        "gap_mean_days": gap_mean,
        "gap_sd_days": sample_sd(gaps),
        "gap_last_days": float(gaps[-1]) if gaps else None,
        "recency_over_gap": since_purchase / gap_mean if gap_mean else None,
        "overdue_days": since_purchase - gap_mean if gap_mean else None,
    }


def labels(
    history: Sequence[Event],
    cutoff: dt.date,
    matures_on: dt.date,
    horizon_days: int,
    lookback_days: int = 90,
) -> dict[str, object] | None:
    """The labels of one customer at a cutoff, or None outside the population."""
    begin = instant(cutoff)
    if not within(known(history, begin), begin - lookback_days * DAY, begin):
        return None
    then = known(history, instant(matures_on))
    future = of_type(within(then, begin, begin + horizon_days * DAY), "purchase")
    return {
        "churned": int(not future),
        "purchased": int(bool(future)),
        "future_revenue": total(future),
    }
