"""One customer's features, computed anew from the rollups as the feature assets do.

The same declarations, the same query and the same files; only the rows are those of one customer.
"""

import datetime as dt
from typing import Any

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups
from churn_assets.features.queries import feature_query
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

    def rows(name: str, days: float) -> str:
        scan = store.scan(store.tables[name]).before(cutoff, days)
        return f"(SELECT * FROM {scan.sql} WHERE customer_id = $customer_id)"

    query = feature_query(groups, cutoff, calendar.lookback_days, rows)
    with store.connect() as connection:
        found = connection.execute(query, {"customer_id": customer_id})
        names = [column[0] for column in found.description]
        row = found.fetchone()
    return None if row is None else dict(zip(names, row, strict=True))
