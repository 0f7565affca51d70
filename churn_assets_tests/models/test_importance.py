"""Importance: prevents a plot that names what a model has and not what moves it."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from churn_assets.models import importance as module
from churn_assets.models.estimators import Estimator, FittedModel, Rows, fit
from churn_assets.models.importance import importance
from churn_assets.models.kinds import ESTIMATORS
from churn_assets_tests.models.test_models import COLUMNS, EVERY_ESTIMATOR, INSTALLED, rows


@pytest.fixture(scope="module")
def models() -> dict[str, FittedModel]:
    """Every kind of model of the made-up shop, where recency decides and nothing else does."""
    return {e.name: fit(e, COLUMNS, rows(), 7, 30) for e in INSTALLED}


@EVERY_ESTIMATOR
def test_what_decides_comes_first(estimator: Estimator, models: dict[str, FittedModel]):
    found = importance(models[estimator.name], rows(800, seed=1), 7)
    first, second, *_ = found.items()
    assert first[0] == "recency_days"
    assert first[1] > 2 * second[1] > 0
    assert set(found) == {column.name for column in COLUMNS}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_same_whatever_the_threads(models: dict[str, FittedModel]):
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(importance(models["xgboost_model"], rows(200, seed=1), 7))
    assert found[0] == found[1]


def test_of_many_customers_some_are_drawn(
    models: dict[str, FittedModel], monkeypatch: pytest.MonkeyPatch
):
    model, many = models["xgboost_model"], rows(200, seed=1)
    all_of_them = importance(model, many, 7)
    monkeypatch.setattr(module, "MOST_IMPORTANCE_ROWS", 100)
    assert importance(model, many, 7) != all_of_them
    assert importance(model, many, 7) != importance(model, many, 8)


def test_without_customers_nothing_is_said(models: dict[str, FittedModel]):
    assert importance(models["xgboost_model"], rows(0), 7) == {}


def test_nothing_matters_to_the_base_rate():
    one_class = Rows(rows(50).features, np.ones(50, dtype=int))
    model = fit(ESTIMATORS[0], COLUMNS, one_class, 7, 0)
    assert model.fallback
    assert set(importance(model, rows(50), 7).values()) == {0.0}
