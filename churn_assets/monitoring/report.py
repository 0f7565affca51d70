"""What there is and how good it is: rows per asset, champion and hold-out AUC per cutoff.

On the synthetic shop the AUC of the true churn probabilities on the same hold-out stands beside it:
no model can be expected to do better.
"""

import datetime as dt
from dataclasses import dataclass

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import CHAMPION_MODEL, find_champion
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import row_count


@dataclass(frozen=True)
class CutoffReport:
    """The champion of one cutoff.

    Args:
        cutoff: The scored cutoff.
        champion: The kind of model, and the cutoff it was trained for where that is another one.
        reason: Why it was chosen.
        holdout: The cutoff it was graded on.
        auc: ROC-AUC there, None where it could not be graded.
        best_auc: That of the true churn probabilities, None where nobody knows them.
    """

    cutoff: dt.date
    champion: str
    reason: str
    holdout: str
    auc: float | None
    best_auc: float | None


def cutoff_reports(store: OfflineStore, calendar: Calendar) -> list[CutoffReport]:
    """A report for each cutoff that has a champion, oldest first."""
    model_store = ModelStore(store.home)
    reports = []
    for cutoff in map(parse_key, store.keys(store.tables[CHAMPION_MODEL.name])):
        champion = find_champion(model_store, cutoff)
        if champion is None:
            continue
        kept = champion.model_cutoff != champion.cutoff
        name = champion.model.removesuffix("_model")
        reports.append(
            CutoffReport(
                cutoff,
                f"{name} of {champion.model_cutoff}" if kept else name,
                champion.reason,
                champion.holdout,
                champion.metrics.get("roc_auc"),
                best_auc(store, champion.holdout),
            )
        )
    return reports


def best_auc(store: OfflineStore, cutoff: str) -> float | None:
    """ROC-AUC of the true churn probabilities at a cutoff.

    None where they or its labels are not there, or were made under other definitions.
    """
    from sklearn.metrics import roc_auc_score

    truth, labels = store.tables["synthetic_truth"], store.tables["churn_labels"]
    for table in (truth, labels):
        if not store.path(table, cutoff).exists() or store.is_redefined(table.name, cutoff):
            return None
    with store.connect() as connection:
        rows = connection.execute(
            f"SELECT churned, best_churn_probability "
            f"FROM {store.scan(truth, [cutoff]).sql} AS truth "
            f"JOIN {store.scan(labels, [cutoff]).sql} AS labels USING (customer_id)"
        ).fetchnumpy()
    if len(set(rows["churned"])) < 2:
        return None
    return float(roc_auc_score(rows["churned"], rows["best_churn_probability"]))


def rows_per_table(store: OfflineStore) -> dict[str, tuple[int, int]]:
    """Partitions and rows of each table that has any."""
    counts = {}
    for table in store.tables.values():
        files = [store.path(table, key) for key in store.present(table.name)]
        if files:
            counts[table.name] = (len(files), sum(row_count(file) for file in files))
    return counts
