"""Where a customer's features come from: each value with its window and the rows behind it."""

import datetime as dt
import math
from dataclasses import dataclass

from churn_assets.cutoffs import Calendar, from_day_number
from churn_assets.features import Groups
from churn_assets.features.group import window_days
from churn_assets.features.queries import source_rows
from churn_assets.stores.offline import OfflineStore


@dataclass(frozen=True)
class Span:
    """A window that a feature looks at, and what lies in it of the customer.

    Args:
        window: `[begin, cutoff)`.
        rows: The customer's rows of the rollup within it.
        first_day: Day of the oldest of those rows, None where there are none.
        last_day: Day of the newest.
    """

    window: str
    rows: int
    first_day: dt.date | None
    last_day: dt.date | None


@dataclass(frozen=True)
class Explanation:
    """One feature of one customer at one cutoff.

    Args:
        group: The feature group.
        feature: Its name.
        value: What is stored, None for NULL.
        unit: Its unit.
        source: The rollup that it is computed from.
        spans: Its window; of a share of the lookback, the lookback follows.
    """

    group: str
    feature: str
    value: object
    unit: str
    source: str
    spans: tuple[Span, ...]


def explain(
    groups: Groups, store: OfflineStore, calendar: Calendar, customer_id: str, cutoff: dt.date
) -> list[Explanation]:
    """Every stored feature of a customer at a cutoff.

    Raises:
        LookupError: The customer is not in the population of that cutoff.
        FileNotFoundError: The cutoff is not materialized.
    """
    explanations = []
    with store.connect() as connection:
        for group in groups:
            relation = store.unchecked(group.table, [cutoff.isoformat()]).sql
            names = ", ".join(f'"{feature.name}"' for feature in group.features)
            row = connection.execute(
                f"SELECT {names} FROM {relation} WHERE customer_id = ?", [customer_id]
            ).fetchone()
            if row is None:
                raise LookupError(
                    f"{customer_id!r} is not in the population of {cutoff}: it has no event in the "
                    f"{calendar.lookback_days} days before. `churn sql` finds customers that are."
                )
            for feature, value in zip(group.features, row, strict=True):
                rollup = group.rollup(feature.source)
                windows = [w for w in (feature.window, feature.against) if w is not None]
                spans = []
                for window in windows:
                    days = window_days(window, calendar.lookback_days)
                    rows = source_rows(
                        feature.source,
                        group.derived.get(feature.source),
                        lambda name, _: store.unchecked(store.tables[name]).sql,
                        cutoff,
                        days,
                    )
                    count, first, last = connection.execute(
                        f"SELECT count(*), min(day), max(day) FROM {rows} AS source_rows "
                        "WHERE customer_id = ?",
                        [customer_id],
                    ).fetchall()[0]
                    spans.append(
                        Span(
                            _shown(cutoff, days),
                            count,
                            from_day_number(first),
                            from_day_number(last),
                        )
                    )
                explanations.append(
                    Explanation(group.name, feature.name, value, feature.unit, rollup, tuple(spans))
                )
    return explanations


def _shown(cutoff: dt.date, days: float) -> str:
    """A window for people, such as `[2025-01-01, 2025-04-01)`."""
    begin = "…" if math.isinf(days) else str(cutoff - dt.timedelta(days=days))
    return f"[{begin}, {cutoff})"
