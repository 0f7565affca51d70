"""How a model did on its hold-out, beside what it has to beat, in numbers and pictures.

What counts is the temporal hold-out: a later cutoff than any the graded fit has seen. The scores of
a random split stand beside it only to show how much they flatter: there, other cutoffs of the same
customers are on both sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.models.baselines import baselines
from churn_assets.models.bootstrap import Interval
from churn_assets.models.estimators import Estimator, FittedModel, Rows, Trial, fit
from churn_assets.models.importance import importance
from churn_assets.models.metrics import Economics, assess, intervals
from churn_assets.stores.figures import png
from churn_assets.stores.tables import Column

if TYPE_CHECKING:
    import numpy as np

FOLDS = 5
# Enough to see the flattery, which is a matter of .01 and more; all rows would cost five more fits.
MOST_RANDOM_SPLIT_ROWS = 1_000


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model when it is made.

    Args:
        metrics: See `metrics.assess`; on the hold-out, by the fit that had not seen it.
        intervals: 95 % intervals of them.
        baselines: The same metrics of the base rate, the recency rule and BG/NBD.
        random_split: Mean metrics of a stratified 5-fold split of the training rows.
        report: Precision, recall and F1 of both classes at the threshold, as text.
        importance: Mean size of each feature's contribution, of the kept model.
        plots: PNG images by name.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    baselines: Mapping[str, Mapping[str, float]]
    random_split: Mapping[str, float]
    report: str
    importance: Mapping[str, float]
    plots: Mapping[str, bytes]


def evaluate(
    estimator: Estimator,
    model: FittedModel,
    training: Rows,
    holdout: Rows,
    tried: Trial,
    economics: Economics,
    horizon_days: int,
    seed: int,
    subject: str,
) -> Evaluation:
    """Grade a trial on the hold-out.

    Args:
        estimator: The kind of model.
        model: The model that is kept.
        training: The rows that the trial was fitted on.
        holdout: The rows that it is graded on.
        tried: What it said of them.
        economics: Gives the threshold and the profit.
        horizon_days: Length of the labels' horizon.
        seed: Of everything drawn at random.
        subject: Names model and hold-out in the plots.
    """
    said = baselines(training, holdout.features, horizon_days)
    important = importance(model, holdout, seed)
    curves = {estimator.name.removesuffix("_model"): tried.probabilities, **said}
    return Evaluation(
        metrics=assess(holdout.churned, tried.probabilities, economics),
        intervals=intervals(holdout.churned, tried.probabilities, economics, seed),
        baselines={name: assess(holdout.churned, p, economics) for name, p in said.items()},
        random_split=random_split(
            estimator, model.columns, training, tried.rounds, economics, seed
        ),
        report=classification_report(holdout.churned, tried.probabilities, economics),
        importance=important,
        plots=pictures(holdout.churned, curves, important, economics, subject),
    )


def random_split(
    estimator: Estimator,
    columns: Sequence[Column],
    rows: Rows,
    rounds: int,
    economics: Economics,
    seed: int,
) -> Mapping[str, float]:
    """Mean metrics over the folds of a random split; nothing where a class has too few rows."""
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    drawn = np.random.default_rng(seed).permutation(len(rows))[:MOST_RANDOM_SPLIT_ROWS]
    few = rows.select(np.sort(drawn))
    if min(few.churned.sum(), (1 - few.churned).sum()) < FOLDS:
        return {}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    grades = []
    for train, test in folds.split(few.churned, few.churned):
        model = fit(estimator, columns, few.select(train), seed, rounds)
        held = few.select(test)
        grades.append(assess(held.churned, model.probabilities(held.features), economics))
    return {name: float(np.mean([g[name] for g in grades])) for name in grades[0]}


def classification_report(
    churned: "np.ndarray", probabilities: "np.ndarray", economics: Economics
) -> str:
    """scikit-learn's report at the threshold; empty without rows."""
    from sklearn import metrics

    if not len(churned):
        return ""
    return str(
        metrics.classification_report(
            churned,
            probabilities >= economics.threshold,
            labels=[0, 1],
            target_names=["RETAIN", "CHURN RISK"],
            zero_division=0,
        )
    )


def pictures(
    churned: "np.ndarray",
    curves: "Mapping[str, np.ndarray]",
    important: Mapping[str, float],
    economics: Economics,
    subject: str,
) -> dict[str, bytes]:
    """The seven plots, by name; the first of the curves is the model's."""
    from churn_assets.models import plots

    model = next(iter(curves.values()))
    figures = {
        "roc": plots.roc(churned, curves, subject),
        "precision_recall": plots.precision_recall(churned, curves, subject),
        "confusion_matrix": plots.confusion_matrix(churned, model, economics.threshold, subject),
        "feature_importance": plots.feature_importance(important, subject),
        "calibration": plots.calibration(churned, curves, subject),
        "score_distribution": plots.score_distribution(
            churned, model, economics.threshold, subject
        ),
        "lift_and_profit": plots.lift_and_profit(churned, curves, economics, subject),
    }
    return {name: png(figure) for name, figure in figures.items()}
