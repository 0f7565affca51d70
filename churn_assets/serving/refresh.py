"""One customer's features, computed anew from the rollups as the feature assets do.

The same declarations, the same query and the same files; only the rows are those of one customer.
"""

import datetime as dt
from typing import Any

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups
from churn_assets.features.group import group_query
from churn_assets.stores.offline import OfflineStore


def recompute(
    groups: Groups,
    store: OfflineStore,
    calendar: Calendar,
    customer_id: str,
    cutoff: dt.date,
) -> dict[str, Any] | None:
    """Every feature of a customer at a cutoff; None where the customer is not in its population.

    What the rollups know by now counts: a slice that came late is a difference to the online row.
    """
    features: dict[str, Any] = {}
    with store.connect() as connection:
        for group in groups:
            relations = {
                name: f"(SELECT * FROM {store.scan(store.tables[name]).sql} "
                "WHERE customer_id = $customer_id)"
                for name in group.rollup_days(calendar.lookback_days)
            }
            query = group_query(group, [cutoff], calendar.lookback_days, relations)
            found = connection.execute(query, {"customer_id": customer_id})
            names = [column[0] for column in found.description]
            row = found.fetchone()
            if row is None:
                return None
            features |= dict(zip(names, row, strict=True))
    return features
