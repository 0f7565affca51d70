"""Importance: prevents an explanation of a model by what one kind of model says of itself."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from churn_assets import importance as module
from churn_assets.estimators import ESTIMATORS, Estimator, FittedModel, fit
from churn_assets.importance import importance
from churn_assets_tests.test_models import COLUMNS, EVERY_ESTIMATOR, INSTALLED, rows


@pytest.fixture(scope="module")
def models() -> dict[str, FittedModel]:
    """Every kind of model of the made-up shop, where recency decides and nothing else does."""
    return {e.name: fit(e, COLUMNS, rows(), 7, 30) for e in INSTALLED}


@EVERY_ESTIMATOR
def test_what_decides_comes_first(estimator: Estimator, models: dict[str, FittedModel]):
    found = importance(models[estimator.name], rows(800, seed=1), 7)
    first, second, *_ = found.items()
    assert first[0] == "recency_days"
    assert first[1] > 0.1 > 4 * second[1]
    assert set(found) == {column.name for column in COLUMNS}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_seed_repeats_whatever_the_threads(models: dict[str, FittedModel]):
    model, holdout, found = models["xgboost_model"], rows(200, seed=1), []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(importance(model, holdout, 7))
    assert found[0] == found[1] != importance(model, holdout, 8)


def test_of_many_customers_some_are_drawn(
    models: dict[str, FittedModel], monkeypatch: pytest.MonkeyPatch
):
    model, many = models["xgboost_model"], rows(200, seed=1)
    all_of_them = importance(model, many, 7)
    monkeypatch.setattr(module, "MOST_IMPORTANCE_ROWS", 100)
    assert importance(model, many, 7) != all_of_them


@pytest.mark.parametrize("customers", [0, 5])
def test_one_class_tells_nothing(customers: int, models: dict[str, FittedModel]):
    holdout = replace(rows(customers), churned=np.zeros(customers, dtype=int))
    assert importance(models["xgboost_model"], holdout, 7) == {}


def test_nothing_matters_to_the_base_rate():
    one_class = replace(rows(50), churned=np.ones(50, dtype=int))
    model = fit(ESTIMATORS[0], COLUMNS, one_class, 7, 0)
    assert model.fallback
    assert set(importance(model, rows(50), 7).values()) == {0.0}
