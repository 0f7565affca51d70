"""Which features a model ranks customers by: the loss of AUC when one is shuffled.

It asks the model only for probabilities, so it means the same for every kind. Features that tell
much the same share their importance: shuffling one leaves the others to say it.
"""

from churn_assets.contributions import origins
from churn_assets.estimators import FittedModel, Rows, inputs
from churn_assets.metrics import has_both_classes

# Another shuffle of 2,000 customers changes a loss of .01 by .003 (UCI data). The forest, which is
# the slowest, takes 2 s for 62 features.
MOST_IMPORTANCE_ROWS = 2_000


def importance(model: FittedModel, rows: Rows, seed: int) -> dict[str, float]:
    """ROC-AUC minus that after shuffling a feature among the rows (Breiman 2001), largest first.

    Args:
        model: Any kind of model.
        rows: Customers that it was not fitted on, such as those of the hold-out; of many, 2,000
            are drawn.
        seed: Of the draw and of the shuffles.

    Returns:
        By feature, below 0 where the shuffle happened to help; nothing where the rows have one
        class only.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    draw = np.random.default_rng(seed)
    drawn = np.sort(draw.permutation(len(rows))[:MOST_IMPORTANCE_ROWS])
    churned = rows.churned[drawn]
    if not has_both_classes(churned):
        return {}
    lost = {column.name: 0.0 for column in model.columns}
    if model.is_base_rate:
        return lost
    transformer, classifier = model.pipeline["inputs"], model.pipeline["classifier"]
    with threadpool_limits(limits=1):
        # Inputs are prepared column by column, so shuffling what became of a feature is the same as
        # shuffling the feature, and much faster.
        prepared = transformer.transform(inputs(rows.features.iloc[drawn], model.columns))
        before = roc_auc_score(churned, classifier.predict_proba(prepared)[:, 1])
        behind = np.array(origins(transformer))
        for feature in dict.fromkeys(behind):
            columns = np.flatnonzero(behind == feature)
            shuffled = prepared.copy()
            shuffled[:, columns] = prepared[draw.permutation(len(drawn))][:, columns]
            after = roc_auc_score(churned, classifier.predict_proba(shuffled)[:, 1])
            lost[str(feature)] = float(before - after)
    return dict(sorted(lost.items(), key=lambda item: -item[1]))
