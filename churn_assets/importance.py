"""Which features a model ranks customers by: the loss of AUC when one is shuffled.

It asks the model only for probabilities, so it means the same for every kind. Features that tell
much the same share their importance: shuffling one leaves the others to say it.
"""

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
    from sklearn.inspection import permutation_importance
    from threadpoolctl import threadpool_limits

    # Before rather than by its `max_samples`, which would compare with the AUC of all rows.
    draw = np.random.default_rng(seed)
    drawn = np.sort(draw.permutation(len(rows))[:MOST_IMPORTANCE_ROWS])
    table, churned = inputs(rows.features.iloc[drawn], model.columns), rows.churned[drawn]
    if not has_both_classes(churned):
        return {}
    with threadpool_limits(limits=1):
        lost = permutation_importance(
            model.pipeline, table, churned, scoring="roc_auc", n_repeats=1, random_state=seed
        ).importances_mean
    found = dict(zip(table.columns, lost.tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
