"""Training rows: features and labels of cutoffs as a model learns from them.

Grain: one row per customer and cutoff of the training dataset, in that order; of very many, those
of a fixed random sample of customers.
"""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.models.estimators import Rows, inputs
from churn_assets.models.training_plan import mature_at
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import damage, row_count
from churn_assets.stores.partitions import Scan
from churn_assets.stores.tables import Column
from churn_assets.training_data.dataset import LABEL_COLUMNS, TRAINING_DATASET

if TYPE_CHECKING:
    import pandas as pd

TARGET = "churned"

# More rows are drawn down to so many, in proportion to which time and memory grow. On the synthetic
# shop with 100,000 customers, 75,000 instead of 100,000 rows cost .0008 AUC (XGBoost .8280, .8288).
MOST_TRAINING_ROWS = 75_000


def rows_digest(rows: Rows) -> str:
    """SHA-256 of features and labels, row by row."""
    import pandas as pd

    hashes = pd.util.hash_pandas_object(rows.features, index=False).to_numpy()
    digest = hashlib.sha256(hashes.tobytes())
    digest.update(rows.churned.tobytes())
    return digest.hexdigest()


def drawn(scan: Scan) -> str:
    """The rows that a model learns from, as a relation: all, or those of customers drawn at random.

    By a digest of the customer: the same customers in every run and at every cutoff.
    """
    if scan.rows <= MOST_TRAINING_ROWS:
        return scan.sql
    bound = 2**32 * MOST_TRAINING_ROWS // scan.rows
    return f"(FROM {scan.sql} WHERE CAST('0x' || md5(customer_id)[:8] AS BIGINT) < {bound})"


def training_rows(store: OfflineStore, cutoffs: Sequence[dt.date]) -> Rows:
    """Features and labels of cutoffs, in the order of cutoff and customer: fits depend on it.

    Raises:
        FileNotFoundError: A partition of the training dataset is not there.
    """
    table = store.tables[TRAINING_DATASET]
    labels = {column.name for column in LABEL_COLUMNS}
    rows = drawn(store.scan(table, [day.isoformat() for day in cutoffs]))
    names = ", ".join(name for name in table.column_names[2:] if name not in labels)
    with store.connect() as connection:
        frame = connection.execute(
            f"SELECT {names}, {TARGET} FROM {rows} ORDER BY cutoff, customer_id"
        ).df()
    return Rows(frame.drop(columns=TARGET), frame[TARGET].to_numpy())


def nobody_to_learn_from(store: OfflineStore, calendar: Calendar, keys: Sequence[str]) -> set[str]:
    """The scored cutoffs whose training cutoffs are all there and have no customers."""
    table = store.tables[TRAINING_DATASET]
    paths = {key: store.path(table, key) for key in store.keys(table)}
    rows = {key: row_count(path) for key, path in paths.items() if not damage(path)}
    found = set[str]()
    for key in keys:
        needed = [day.isoformat() for day in mature_at(calendar, parse_key(key))]
        if all(rows.get(day) == 0 for day in needed):
            found.add(key)
    return found


def typical_values(features: "pd.DataFrame", columns: Sequence[Column]) -> dict[str, float]:
    """The median of every number that has a value, in its unit; from training rows."""
    numbers = [column for column in columns if column.dtype not in ("VARCHAR", "BOOLEAN")]
    medians = inputs(features, numbers).median().dropna()
    return {str(name): float(median) for name, median in medians.items()}
