"""Prevents: a random split that is taken for the truth, and a grade without what it has to beat."""

import numpy as np

from churn_assets.models import evaluation as module
from churn_assets.models.estimators import Rows, Trial, fit
from churn_assets.models.evaluation import evaluate, random_split
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.metrics import Economics, assess
from churn_assets.models.model_page import grades_table
from churn_assets_tests.models.test_models import COLUMNS, rows

ECONOMICS = Economics()


def test_everything_is_graded_on_the_hold_out():
    training, holdout = rows(), rows(400, seed=1)
    model = fit(ESTIMATORS[0], COLUMNS, training, 7, 0)
    tried = Trial(model, model.probabilities(holdout.features), 0)
    found = evaluate(ESTIMATORS[0], model, training, holdout, tried, ECONOMICS, 28, 7, "a shop")
    assert found.metrics == assess(holdout.churned, tried.probabilities, ECONOMICS)
    assert found.intervals.keys() == found.metrics.keys()
    assert set(found.baselines) == {"base_rate", "recency_rule", "bg_nbd"}
    assert found.baselines["base_rate"]["roc_auc"] == 0.5
    assert "CHURN RISK" in found.report
    assert next(iter(found.importance)) == "recency_days"
    assert len(found.plots) == 7
    assert all(image.startswith(b"\x89PNG") for image in found.plots.values())
    table = grades_table(found)
    assert "| roc_auc |" in table
    assert "random split" in table


def test_a_hold_out_without_customers_or_classes_is_said():
    training = rows()
    model = fit(ESTIMATORS[0], COLUMNS, training, 7, 0)
    for holdout in (rows(0), Rows(rows(5).features, np.ones(5, dtype=int))):
        tried = Trial(model, model.probabilities(holdout.features), 0)
        found = evaluate(ESTIMATORS[0], model, training, holdout, tried, ECONOMICS, 28, 7, "x")
        assert "roc_auc" not in found.metrics
        assert len(found.plots) == 7
        grades_table(found)


def test_a_random_split_flatters_where_customers_return():
    """The same customers again, with labels of chance that a model can learn by heart."""
    once = rows(800)
    churned = np.random.default_rng(0).integers(0, 2, 800)
    twice = Rows(
        once.features.iloc[np.repeat(np.arange(800), 3)].reset_index(drop=True),
        np.repeat(churned, 3),
    )
    boosting = ESTIMATORS[3]
    flattering = random_split(boosting, COLUMNS, twice, 300, ECONOMICS, 7)["roc_auc"]
    honest = random_split(boosting, COLUMNS, Rows(once.features, churned), 300, ECONOMICS, 7)
    assert flattering > honest["roc_auc"] + 0.1


def test_a_class_with_less_than_a_customer_per_fold_has_no_split(monkeypatch):
    few = Rows(rows(50).features, np.array([1] * 4 + [0] * 46))
    assert random_split(ESTIMATORS[0], COLUMNS, few, 0, ECONOMICS, 7) == {}
    monkeypatch.setattr(module, "MOST_RANDOM_SPLIT_ROWS", 200)
    drawn = random_split(ESTIMATORS[0], COLUMNS, rows(), 0, ECONOMICS, 7)
    assert drawn == random_split(ESTIMATORS[0], COLUMNS, rows(), 0, ECONOMICS, 7)
