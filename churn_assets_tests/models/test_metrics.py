"""Metrics: prevents a grade that depends on the order of rows, and a difference that is chance.

Scikit-learn is the reference: what is computed from tallies here equals what it says of the rows.
"""

import numpy as np
import pytest
from sklearn import metrics as reference

from churn_assets.models import bootstrap
from churn_assets.models.bootstrap import paired_interval
from churn_assets.models.grades import calibration_error, calibration_groups, grade, tally
from churn_assets.models.metrics import Economics, assess, intervals


def scored(
    customers: int, seed: int = 0, distinct: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn by their probabilities, of which there are only a few distinct where asked."""
    draw = np.random.default_rng(seed)
    probabilities = draw.beta(4, 2, customers)
    if distinct:
        probabilities = np.round(probabilities * distinct) / distinct
    return (draw.random(customers) < probabilities).astype("int32"), probabilities


def by_scikit_learn(
    labels: np.ndarray, probabilities: np.ndarray, economics: Economics, weights: np.ndarray
) -> dict[str, float]:
    contacted = probabilities >= economics.threshold
    of_rows = {
        "brier": reference.brier_score_loss,
        "log_loss": reference.log_loss,
        "roc_auc": reference.roc_auc_score,
        "pr_auc": reference.average_precision_score,
    }
    of_decisions = {
        "accuracy": reference.accuracy_score,
        "precision": reference.precision_score,
        "recall": reference.recall_score,
        "f1": reference.f1_score,
    }
    return {
        **{k: f(labels, probabilities, sample_weight=weights) for k, f in of_rows.items()},
        **{k: f(labels, contacted, sample_weight=weights) for k, f in of_decisions.items()},
    }


# Grades


@pytest.mark.parametrize("distinct", [None, 7])
def test_metrics_are_those_of_scikit_learn(distinct: int | None):
    labels, probabilities = scored(500, distinct=distinct)
    # Churners whom the model was certain to keep: the log loss is large and finite.
    labels[:9], probabilities[:9] = 1, 0.0
    drawn = np.random.default_rng(1).integers(0, 500, 500)
    weights = np.bincount(drawn, minlength=500)
    graded = assess(labels[drawn], probabilities[drawn], Economics())
    expected = by_scikit_learn(labels, probabilities, Economics(), weights)
    assert {k: graded[k] for k in expected} == pytest.approx(expected, abs=1e-12)
    others = {"calibration_error", "profit_per_customer", "lift_at_10_percent"}
    assert set(graded) == set(expected) | others


@pytest.mark.parametrize("customers", [0, 1, 300])
def test_a_grade_is_what_economics_have_no_part_in(customers: int):
    labels, probabilities = scored(customers)
    economics = [Economics(), Economics(customer_value=30), Economics(contact_cost=0)]
    of_all = [assess(labels, probabilities, each) for each in economics]
    graded = grade(labels, probabilities)
    assert all(graded.items() <= found.items() for found in of_all)
    at_the_threshold = {"accuracy", "precision", "recall", "f1", "profit_per_customer"}
    assert not at_the_threshold & set(graded)
    if customers > 1:
        assert set(of_all[0]) - set(graded) == at_the_threshold


def test_the_order_of_rows_does_not_matter():
    labels, probabilities = scored(1000, distinct=5)
    order = np.argsort(labels, kind="stable")
    same = assess(labels[order], probabilities[order], Economics())
    assert same == assess(labels, probabilities, Economics())


def test_lift_counts_ties_in_proportion():
    # Of 20 customers two are looked at: the first, and one of four of whom two churned.
    probabilities = np.repeat([0.9, 0.8, 0.1], [1, 4, 15])
    labels = np.array([1, 1, 1, 0, 0, 1, 1, *[0] * 13])
    lift = assess(labels, probabilities, Economics())["lift_at_10_percent"]
    assert lift == pytest.approx((1.5 / 2) / (5 / 20))


def test_lift_is_one_without_a_ranking_and_greatest_with_a_perfect_one():
    labels, _ = scored(1000)
    for probabilities, lift in ((np.full(1000, 0.4), 1), (labels * 0.5, 1 / labels.mean())):
        graded = assess(labels, probabilities, Economics())
        assert graded["lift_at_10_percent"] == pytest.approx(lift)


@pytest.mark.parametrize("churned", [0, 1])
def test_one_class_leaves_out_what_it_does_not_define(churned: int):
    labels, probabilities = np.full(5, churned), np.linspace(0, 1, 5)
    graded = assess(labels, probabilities, Economics())
    undefined = {"roc_auc", "pr_auc", "recall", "f1", "lift_at_10_percent"}
    assert not undefined & set(graded)
    assert set(intervals(labels, probabilities, Economics(), 7)) == set(graded)
    assert paired_interval(labels, probabilities, probabilities, 7) is None


def test_nobody_gets_no_grade():
    nobody = np.empty(0)
    assert assess(nobody, nobody, Economics()) == {}
    assert intervals(nobody, nobody, Economics(), 7) == {}
    assert paired_interval(nobody, nobody, nobody, 7) is None


def test_a_customer_exactly_at_the_threshold_is_contacted():
    economics = Economics(customer_value=100, contact_cost=5, save_rate=0.2)
    assert economics.threshold == 0.25
    metrics = assess(np.array([1, 0, 0]), np.array([0.25, 0.25, 0.2]), economics)
    assert metrics["recall"] == 1
    assert metrics["precision"] == 0.5
    # Two are contacted, and a fifth of the one who would have left stays.
    assert metrics["profit_per_customer"] == pytest.approx((0.2 * 100 - 2 * 5) / 3)


def test_the_threshold_is_the_most_profitable_one_of_a_calibrated_model():
    draw = np.random.default_rng(0)
    probabilities = draw.random(200_000)
    labels = (draw.random(200_000) < probabilities).astype(int)
    economics = Economics()
    profit = {
        t: economics.profit((probabilities >= t).sum(), labels[probabilities >= t].sum())
        for t in (0.3, 0.4, 0.5, 0.6, 0.7)
    }
    assert max(profit, key=lambda t: profit[t]) == economics.threshold


def test_calibration_error_sees_a_shift():
    draw = np.random.default_rng(0)
    probabilities = draw.random(50_000) * 0.8
    labels = (draw.random(50_000) < probabilities).astype(int)
    assert calibration_error(labels, probabilities) < 0.01
    assert calibration_error(labels, probabilities + 0.1) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("wrong", [{"customer_value": 0}, {"contact_cost": -1}, {"save_rate": 2}])
def test_impossible_economics_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="CHURN_SAVE_RATE"):
        Economics(**wrong)


def test_calibration_groups_are_of_equal_size():
    labels, probabilities = scored(1000)
    predicted, observed = calibration_groups(tally(labels, probabilities))
    groups = np.argsort(probabilities).reshape(10, 100)
    assert predicted == pytest.approx(probabilities[groups].mean(axis=1))
    assert observed == pytest.approx(labels[groups].mean(axis=1))


def test_one_probability_for_all_is_one_group():
    labels, _ = scored(1000)
    shuffled_or_not = (labels, np.sort(labels))
    for ordered in shuffled_or_not:
        error = calibration_error(ordered, np.full(1000, 0.5))
        assert error == pytest.approx(abs(labels.mean() - 0.5))


# Intervals


def test_intervals_are_percentiles_over_resampled_customers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 30)
    labels, probabilities = scored(300, distinct=20)
    found = intervals(labels, probabilities, Economics(), seed=7)
    draw, samples = np.random.default_rng(7), []
    for _ in range(30):
        weights = np.bincount(draw.integers(0, 300, 300), minlength=300)
        samples.append(by_scikit_learn(labels, probabilities, Economics(), weights))
    for name in samples[0]:
        ends = np.percentile([sample[name] for sample in samples], [2.5, 97.5])
        assert found[name] == pytest.approx(tuple(ends), abs=1e-12), name


def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)
    truth = assess(*scored(500_000, seed=99), Economics())
    names = ("roc_auc", "brier", "profit_per_customer", "lift_at_10_percent")
    covered = dict.fromkeys(names, 0)
    for seed in range(80):
        found = intervals(*scored(400, seed=seed), Economics(), seed)
        for name in names:
            covered[name] += found[name].low <= truth[name] <= found[name].high
    # 95 % of 80 is 76; 70 or fewer come about once in 100 tries.
    assert min(covered.values()) > 70, covered


def test_the_share_of_churners_is_a_matter_of_chance():
    # Contacting everybody at no cost earns in proportion to it.
    free = Economics(contact_cost=0)
    labels, probabilities = scored(2000)
    low, high = intervals(labels, probabilities, free, 7)["profit_per_customer"]
    sampling = np.sqrt(labels.mean() * (1 - labels.mean()) / 2000)
    worth = free.save_rate * free.customer_value
    assert high - low == pytest.approx(2 * 1.96 * sampling * worth, rel=0.1)


def test_a_seed_repeats_and_another_one_differs():
    labels, probabilities = scored(200)
    first, again, other = (intervals(labels, probabilities, Economics(), s) for s in (7, 7, 8))
    assert first == again != other


def test_five_customers_get_wide_intervals():
    labels, probabilities = np.array([1, 0, 1, 1, 0]), np.linspace(0.1, 0.9, 5)
    found = intervals(labels, probabilities, Economics(), 7)
    assert set(found) == set(assess(labels, probabilities, Economics()))
    assert found["roc_auc"] == (0, 1)
    assert paired_interval(labels, probabilities, np.full(5, 0.5), 7) == (-0.5, 0.5)


def test_a_comparison_of_two_models_is_sharper_than_two_grades():
    labels, better = scored(2000)
    worse = np.clip(better + np.random.default_rng(3).normal(0, 0.1, 2000), 0, 1)
    difference = paired_interval(labels, better, worse, 7)
    of_better, of_worse = (intervals(labels, p, Economics(), 7)["roc_auc"] for p in (better, worse))
    assert difference is not None
    assert of_better.low < of_worse.high
    assert 0 < difference.low < difference.high < of_better.high - of_worse.low
    turned = paired_interval(labels, worse, better, 7)
    assert turned == pytest.approx((-difference.high, -difference.low))
    assert paired_interval(labels, better, better, 7) == (0, 0)
