"""Baselines: prevents a model that looks good because nobody asked what a simple rule would say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from churn_assets.models import baselines
from churn_assets.models.baselines import (
    BgNbd,
    PurchaseDays,
    base_rate,
    bg_nbd,
    fit_bg_nbd,
    recency_rule,
    since_purchase,
)
from churn_assets.models.estimators import Rows

TRUE = BgNbd(r=1.2, alpha=40.0, a=0.8, b=2.5)


def buyers(customers: int, seed: int = 0, horizon: int = 28) -> tuple[PurchaseDays, np.ndarray]:
    """Customers that live as BG/NBD assumes, and 1 for those who do not buy in the horizon."""
    draw = np.random.default_rng(seed)
    age = draw.uniform(50, 600, customers)
    rates = draw.gamma(TRUE.r, 1 / TRUE.alpha, customers)
    dropouts = draw.beta(TRUE.a, TRUE.b, customers)
    repeats, last, churned = np.zeros(customers), np.zeros(customers), np.ones(customers, int)
    for i in range(customers):
        day = draw.exponential(1 / rates[i])
        while day < age[i]:
            repeats[i], last[i] = repeats[i] + 1, day
            day += np.inf if draw.random() < dropouts[i] else draw.exponential(1 / rates[i])
        churned[i] = day >= age[i] + horizon
    return PurchaseDays(repeats, last, age), churned


def features(*histories: list[int], cutoff: int = 1000, lookback: int = 90) -> pd.DataFrame:
    """The features of customers with these purchase days."""
    rows = []
    for days in histories:
        since = cutoff - days[-1] if days else np.nan
        gap = np.diff(days).mean() if len(days) > 1 else np.nan
        rows.append(
            {
                "recency_days": since if since <= lookback else np.nan,
                "tenure_days": cutoff - days[0] if days else np.nan,
                "gap_mean_days": gap,
                "overdue_days": since - gap,
            }
        )
    return pd.DataFrame(rows, dtype="float64")


HISTORIES: tuple[list[int], ...] = ([], [990], [600], [500, 600, 633], [910, 950, 995])


def test_purchase_days_are_found_in_the_features():
    table = features(*HISTORIES)
    assert since_purchase(table).tolist() == pytest.approx([np.nan, 10, 400, 367, 5], nan_ok=True)
    known = baselines._purchase_days(table)
    assert known.repeats.tolist() == [0, 0, 0, 2, 2]
    assert known.last.tolist() == [0, 0, 0, 133, 85]
    assert known.age.tolist() == pytest.approx([np.nan, 10, 400, 500, 90], nan_ok=True)


def test_many_purchase_days_are_counted_exactly():
    days = np.unique(np.random.default_rng(0).integers(0, 1000, 400)).tolist()
    assert baselines._purchase_days(features(days)).repeats.tolist() == [len(days) - 1]


def test_the_base_rate_is_that_of_the_training_rows():
    training = Rows(features(*HISTORIES), np.array([1, 0, 0, 1, 1]))
    assert base_rate(training, features([1], [2])).tolist() == [0.6, 0.6]


def test_recency_makes_risky_and_never_having_bought_most_of_all():
    draw = np.random.default_rng(0)
    days = draw.integers(1, 300, 3000)
    known = features(*([1000 - int(d)] for d in days), *([[]] * 200))
    chance = np.append(days / 400, np.full(200, 0.9))
    training = Rows(known, (draw.random(3200) < chance).astype(int))
    told = recency_rule(training, features([999], [950], [850], [760], [100], []))
    assert (np.diff(told) >= 0).all()
    assert told[[0, 1, 2, 3, 5]] == pytest.approx([0, 0.125, 0.375, 0.6, 0.9], abs=0.08)


def test_bg_nbd_finds_its_own_parameters():
    known, _ = buyers(8_000)
    found = fit_bg_nbd(known)
    assert found.r / found.alpha == pytest.approx(TRUE.r / TRUE.alpha, rel=0.1)
    assert found.a / (found.a + found.b) == pytest.approx(TRUE.a / (TRUE.a + TRUE.b), rel=0.15)
    fitted, true = (model.log_likelihood(known).sum() for model in (found, TRUE))
    assert true <= fitted < true + 10


def test_closed_forms_are_the_integrals_of_the_model():
    known = PurchaseDays(np.array([0, 1, 3, 9]), np.array([0, 20, 90, 300]), np.full(4, 310.0))
    steps = (np.arange(2000) + 0.5) / 2000
    rate = stats.gamma.ppf(steps, TRUE.r, scale=1 / TRUE.alpha)[:, None]
    dropout = stats.beta.ppf(steps, TRUE.a, TRUE.b)[None, :]
    closed = np.exp(TRUE.log_likelihood(known)), TRUE.no_purchase(known, 28)
    for i, (x, last, age) in enumerate(zip(known.repeats, known.last, known.age, strict=True)):
        alive = (1 - dropout) ** x * rate**x * np.exp(-rate * age)
        gone = (x > 0) * dropout * (1 - dropout) ** max(x - 1, 0) * rate**x * np.exp(-rate * last)
        likelihood = (alive + gone).mean()
        quiet = (alive * np.exp(-rate * 28) + gone).mean() / likelihood
        assert closed[0][i] == pytest.approx(likelihood, rel=0.01)
        assert closed[1][i] == pytest.approx(quiet, abs=0.001)


def test_bg_nbd_is_calibrated_where_its_assumptions_hold():
    known, churned = buyers(8_000, seed=1)
    told = TRUE.no_purchase(known, 28)
    for group in np.array_split(np.argsort(told), 8):
        assert told[group].mean() == pytest.approx(churned[group].mean(), abs=0.04)
    assert roc_auc_score(churned, told) > 0.7


def test_who_never_bought_churns_as_such_customers_do():
    training = Rows(features(*[[]] * 8, [900, 950], [800, 990]), np.array([1] * 6 + [0] * 4))
    told = bg_nbd(training, features([], [900, 950]), 28)
    assert told[0] == pytest.approx(0.7)
    assert 0 < told[1] < 1


def test_a_sample_of_many_training_rows_is_fitted(monkeypatch: pytest.MonkeyPatch):
    histories = [[900, 950], [400], [940, 950, 990], [800]]
    some, all_of_them = (
        Rows(features(*h), np.ones(len(h), int)) for h in (histories[::2], histories)
    )
    new = features([700, 930], [990])
    monkeypatch.setattr(baselines, "MOST_BG_NBD_ROWS", 2)
    assert bg_nbd(all_of_them, new, 28).tolist() == bg_nbd(some, new, 28).tolist()


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
@pytest.mark.parametrize("histories", [[[]], [[990]], [[999]], [[900, 950]], HISTORIES])
def test_a_handful_of_training_rows_is_enough(histories: list[list[int]]):
    training = Rows(features(*histories), np.ones(len(histories), int))
    for told in baselines.baselines(training, features(*HISTORIES), 28).values():
        assert told.shape == (5,)
        assert ((told >= 0) & (told <= 1)).all()


def test_without_rows_there_is_nothing():
    some, none = Rows(features(*HISTORIES), np.ones(5, int)), features([]).head(0)
    assert baselines.baselines(Rows(none, np.empty(0, int)), some.features, 28) == {}
    found = baselines.baselines(some, none, 28)
    assert {name: len(told) for name, told in found.items()} == {
        "base_rate": 0,
        "recency_rule": 0,
        "bg_nbd": 0,
    }


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_long_histories_neither_overflow_nor_mislead():
    known = PurchaseDays(np.array([3000.0, 3000.0]), np.array([3000.0, 9000]), np.full(2, 9001.0))
    gone, active = TRUE.no_purchase(known, 28)
    assert gone == pytest.approx(1)
    assert active < 0.01
