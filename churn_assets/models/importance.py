"""Which features move what a model says: the mean size of their contributions.

Contributions are those of `models.contributions`, SHAP values but for the forest, so a
feature's importance is in log odds of churn, for the forest in probability: a ranking within one
model, not a measure across kinds. Features that tell much the same share their importance.
"""

from churn_assets.models.contributions import Contributions
from churn_assets.models.estimators import FittedModel, Rows, inputs

# The mean over so many customers is good to a few percent.
MOST_IMPORTANCE_ROWS = 1_000


def importance(model: FittedModel, rows: Rows, seed: int) -> dict[str, float]:
    """Mean absolute contribution of each feature (Lundberg & Lee 2017), largest first.

    Args:
        model: Any kind of model.
        rows: Customers, such as those of the hold-out; of many, 1,000 are drawn.
        seed: Of the draw.

    Returns:
        By feature; nothing without customers.
    """
    import numpy as np

    if not len(rows):
        return {}
    drawn = np.random.default_rng(seed).permutation(len(rows))[:MOST_IMPORTANCE_ROWS]
    few = rows.select(np.sort(drawn))
    sizes = np.abs(Contributions(model).of(inputs(few.features, model.columns))).mean(axis=0)
    found = {column.name: float(size) for column, size in zip(model.columns, sizes, strict=True)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
