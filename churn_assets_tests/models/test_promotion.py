"""Promotion: prevents a champion that is chosen by noise, by age, or by being the only one left."""

import datetime as dt

import pytest

from churn_assets.models.bootstrap import Interval
from churn_assets.models.promotion import (
    MINIMUM_AUC,
    REFRESH_TOLERANCE,
    SWITCH_MARGIN,
    Graded,
    decide_promotion,
)

NOW, BEFORE = dt.date(2011, 6, 1), dt.date(2011, 5, 1)
FOREST, BOOSTING = "random_forest_model", "xgboost_model"


def candidate(model: str, roc_auc: float | None, cutoff: dt.date = NOW) -> Graded:
    return Graded(model, cutoff, roc_auc)


def incumbent(model: str, roc_auc: float | None) -> Graded:
    return Graded(model, BEFORE, roc_auc)


def test_the_best_candidate_is_the_first_champion():
    decision = decide_promotion([candidate(FOREST, 0.70), candidate(BOOSTING, 0.71)], None)
    assert decision.chosen.model == BOOSTING
    assert decision.promoted
    assert decision.challenger == candidate(FOREST, 0.70)


def test_of_equal_candidates_the_earlier_one_wins():
    decision = decide_promotion([candidate(FOREST, 0.70), candidate(BOOSTING, 0.70)], None)
    assert decision.chosen.model == FOREST


@pytest.mark.parametrize(("lead", "switches"), [(SWITCH_MARGIN, True), (SWITCH_MARGIN / 2, False)])
def test_another_kind_needs_the_margin(lead: float, switches: bool):
    old = incumbent(FOREST, 0.75)
    decision = decide_promotion([candidate(FOREST, 0.70), candidate(BOOSTING, 0.75 + lead)], old)
    assert (decision.chosen.model == BOOSTING) is switches
    assert decision.promoted is switches
    assert "0.7500" in decision.reason


def test_a_lead_that_chance_explains_is_none():
    old = incumbent(FOREST, 0.75)
    same = candidate(FOREST, 0.75)
    for low, switches in ((0.001, True), (-0.001, False)):
        other = Graded(BOOSTING, NOW, 0.75 + 2 * SWITCH_MARGIN, Interval(low, 0.02))
        decision = decide_promotion([same, other], old)
        assert decision.chosen == (other if switches else same)
        assert f"{low:+.4f}" in decision.reason


@pytest.mark.parametrize(
    ("loss", "renews"), [(0.0, True), (REFRESH_TOLERANCE / 2, True), (REFRESH_TOLERANCE * 2, False)]
)
def test_a_newer_fit_of_the_same_kind_is_preferred_unless_worse(loss: float, renews: bool):
    old = incumbent(FOREST, 0.75)
    decision = decide_promotion([candidate(FOREST, 0.75 - loss), candidate(BOOSTING, 0.7)], old)
    assert decision.chosen == (candidate(FOREST, 0.75 - loss) if renews else old)
    assert decision.promoted is renews


def test_quality_cannot_ratchet_down_below_the_floor():
    auc, champion = 0.60, incumbent(FOREST, 0.60)
    while auc > 0.5:
        # Every refresh is within the tolerance of the one before.
        auc -= REFRESH_TOLERANCE * 0.9
        decision = decide_promotion([candidate(FOREST, auc)], champion)
        champion = incumbent(FOREST, decision.chosen.roc_auc)
    assert champion.roc_auc is not None
    assert champion.roc_auc >= MINIMUM_AUC


@pytest.mark.parametrize(("above", "renews"), [(0.0, True), (-0.001, False)])
def test_a_newer_fit_of_the_same_kind_is_not_below_the_floor(above: float, renews: bool):
    # Within the tolerance, beside a better kind that is above the floor but no clear winner.
    old, same = incumbent(FOREST, MINIMUM_AUC + 0.004), candidate(FOREST, MINIMUM_AUC + above)
    decision = decide_promotion([same, candidate(BOOSTING, MINIMUM_AUC + 0.006)], old)
    assert decision.chosen == (same if renews else old)
    assert decision.promoted is renews


def test_a_candidate_that_is_not_newer_never_replaces_the_incumbent():
    old = incumbent(FOREST, 0.6)
    decision = decide_promotion([candidate(BOOSTING, 0.9, cutoff=BEFORE)], old)
    assert decision.chosen == old
    assert not decision.promoted


def test_a_first_model_below_the_floor_is_used_but_not_promoted():
    decision = decide_promotion([candidate(FOREST, 0.5)], None)
    assert decision.chosen.model == FOREST
    assert not decision.promoted
    assert str(MINIMUM_AUC) in decision.reason


def test_a_hold_out_that_cannot_grade_keeps_the_incumbent():
    old = incumbent(BOOSTING, None)
    decision = decide_promotion([candidate(FOREST, None)], old)
    assert decision.chosen == old
    assert decide_promotion([candidate(FOREST, None)], None).chosen.model == FOREST


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(ValueError, match="Materialize the model assets"):
        decide_promotion([], None)
