"""Reasons: prevents what a marketer cannot read or must not read: column names, nan, the same fact
three times, what speaks against the prediction, and what was to be withheld.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from churn_assets.features import feature_columns, feature_groups
from churn_assets.features.group import LOOKBACK, Feature, FeatureGroup
from churn_assets.models.contributions import Contributions, origins
from churn_assets.models.estimators import MISSING, fit, inputs
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.training_rows import typical_values
from churn_assets.predictions.reasons import (
    ADDITIONS,
    LABELS,
    NOTHING,
    SENTENCES,
    TOLD_BY,
    WORTH_NAMING,
    Explainer,
    spoken,
)
from churn_assets.stores.tables import Column
from churn_assets_tests.conftest import GROUPS
from churn_assets_tests.models.test_contributions import EVERY_KIND, KINDS, model, new_customers
from churn_assets_tests.models.test_models import COLUMNS, rows

TYPICAL = typical_values(rows().features, COLUMNS)
USUAL = round(TYPICAL["recency_days"])


def told(
    contributions: Mapping[str, float],
    values: Mapping[str, Any],
    withheld: tuple[str, ...] = (),
    typical: Mapping[str, float] = TYPICAL,
    lookback_days: int = 90,
) -> list[str]:
    """The reasons for churn of a customer with these contributions and feature values."""
    columns = [column for column in COLUMNS if column.name in contributions]
    fitted = fit(ESTIMATORS[0], columns, rows(), 7, 0)
    customer = rows(1).features.assign(**values)
    # Shared by the value and the indicator that it is missing.
    names = origins(fitted.pipeline["inputs"])
    wanted = [contributions[name] / names.count(name) for name in names]
    prepared = fitted.pipeline["inputs"].transform(inputs(customer, columns))
    fitted.pipeline["classifier"].coef_ = wanted / prepared
    explainer = Explainer(fitted, GROUPS, lookback_days, typical, withheld)
    [found] = explainer.reasons(customer, np.array([True]))
    return [reason for reason in found if reason]


# Which reasons


@EVERY_KIND
def test_the_strongest_contribution_in_the_direction_of_the_prediction_comes_first(kind: str):
    fitted, features = model(kind), new_customers()
    names = [column.name for column in fitted.columns]
    alone = [names.index(name) for name in ("monetary", "avg_order_value", "tenure_days")]
    others = [name for i, name in enumerate(names) if i not in alone]
    contributions = Contributions(fitted).of(inputs(features, fitted.columns))[:, alone]
    explainer = Explainer(fitted, GROUPS, 90, TYPICAL, withheld=others)
    for at_risk, sign in ((True, 1), (False, -1)):
        towards = sign * contributions
        for row, found in enumerate(explainer.reasons(features, np.full(200, at_risk))):
            strong = towards[row] >= WORTH_NAMING * np.maximum(towards[row], 0).sum()
            expected = [i for i in np.argsort(-towards[row]) if towards[row, i] > 0 and strong[i]]
            words = ("Spending", "Average order value|No purchase in", "First purchase|No purchase")
            assert len(expected) == 3 - found.count(None)
            for i, reason in zip(expected, found, strict=False):
                assert re.match(words[i], reason or "")


@EVERY_KIND
def test_reasons_do_not_depend_on_other_customers(kind: str):
    features = new_customers().iloc[:100:5]
    at_risk = np.arange(20) % 2 == 0
    explainer = Explainer(model(kind), GROUPS, 90, TYPICAL)
    together = explainer.reasons(features, at_risk)
    alone = [explainer.reasons(features.iloc[[i]], at_risk[[i]])[0] for i in range(20)]
    assert alone == together
    assert explainer.reasons(features.head(0), at_risk[:0]) == []


def test_features_that_tell_the_same_are_one_reason():
    late = {"recency_days": 0.4, "overdue_days": 0.4, "recency_over_gap": 0.4}
    assert told(late | {"monetary": 0.8}, {"recency_days": 60.0, "monetary": 0.0}) == [
        f"Last purchase 60 days ago (typical {USUAL} days)",
        f"Spending in the last 90 days: 0.00 (typical {TYPICAL['monetary']:.2f})",
    ]


def test_a_fact_is_told_once():
    nothing = {"recency_days": None, "frequency": 0, "avg_order_value": None}
    contributions = dict.fromkeys(nothing, 1.0) | {"search_count": 0.8}
    assert told(contributions, nothing | {"search_count": 1}) == [
        "No purchase in the last 90 days",
        "Searches in the last 90 days: 1 (typical 3)",
    ]


def test_what_hardly_weighs_is_not_named():
    contributions = {"search_count": 1.0, "age": WORTH_NAMING * 1.1, "tenure_days": 0.01}
    first, second = told(contributions, {"search_count": 1, "age": 40.0})
    assert first.startswith("Searches")
    assert second.startswith("Age: 40 years")


def test_the_base_rate_gives_no_reasons():
    fitted = fit(ESTIMATORS[0], COLUMNS, rows(5), 7, 0)
    found = Explainer(fitted, GROUPS, 90, TYPICAL).reasons(
        rows(2).features, np.array([True, False])
    )
    assert found == [(None, None, None)] * 2


def test_what_is_withheld_is_never_named():
    contributions = {"recency_days": 1.0, "gap_mean_days": -1.0, "age": 1.0}
    values = {"recency_days": 41.0, "gap_mean_days": 12.0, "age": 50.0}
    assert set(told(contributions, values)) == {
        "Last purchase 41 days ago; usual gap 12 days",
        f"Age: 50 years (typical {TYPICAL['age']:.0f} years)",
    }
    [alone] = told(contributions, values, ("age", "gap_mean_days"))
    assert alone == f"Last purchase 41 days ago (typical {USUAL} days)"
    assert told(contributions, values, tuple(contributions)) == []
    # Another feature does not bring it back.
    [other] = told(
        {"recency_days": 1, "overdue_days": 1}, values | {"overdue_days": 29.0}, ("recency_days",)
    )
    assert other.startswith("Days beyond the usual gap: 29 days")


# In which words


@EVERY_KIND
def test_reasons_are_plain_words(kind: str):
    features = new_customers()
    explainer = Explainer(model(kind), GROUPS, 90, TYPICAL)
    everything = [
        reason
        for at_risk in (True, False)
        for found in explainer.reasons(features, np.full(200, at_risk))
        for reason in found
        if reason
    ]
    assert len(set(everything)) > 50
    for reason in everything:
        assert not re.search(r"nan|None|missing|_(?!car)|[{}]|inf\b|lookback|e\+", reason), reason
        assert reason[0].isupper()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("recency_days", 1.0, "Last purchase 1 day ago; usual gap 12 days"),
        ("recency_days", None, "No purchase in the last 90 days; usual gap 12 days"),
        ("search_count", 0, "Searches in the last 90 days: 0 (typical 3)"),
        ("search_count", 3, "Searches in the last 90 days: 3"),
        ("purchases_7d", 0, "No purchase in the last 7 days"),
        ("lifetime_orders", 1234, "Orders so far: 1,234 (typical 3)"),
        ("purchases_30d_share", 0.124, "Share of recent orders placed in the last 30 days: 12 %"),
        ("purchases_30d_share", None, "No purchase in the last 90 days"),
        ("monetary", 1234.5, "Spending in the last 90 days: 1,234.50"),
        ("avg_session_length", None, "Average length of a visit in the last 90 days: unknown"),
        ("avg_session_length", 12.4, "Average length of a visit in the last 90 days: 12 minutes"),
        ("avg_basket_size", 3.46, "Average order size in the last 90 days: 3.5 pieces per order"),
        ("premium", True, "Paid membership: yes"),
        ("premium", None, "Paid membership: unknown"),
        ("location", "north", "Country or region: north"),
        ("location", None, "Country or region: unknown"),
        ("account_age_days", 640.0, "Account opened 640 days ago (typical 1 day)"),
        ("n_unique_products", 0, "Different products bought in the last 90 days: 0"),
    ],
)
def test_words(name: str, value: Any, expected: str):
    typical = {"search_count": 3.0, "lifetime_orders": 3.0, "account_age_days": 1.0}
    values = {"gap_mean_days": 12.0, name: value}
    assert told({name: 1.0, "gap_mean_days": -1.0}, values, typical=typical) == [expected]


def test_values_of_any_unit():
    def say(value: float | str, dtype: str, unit: str) -> str:
        return spoken(value, Column("any", dtype, "", unit))

    assert say(0.3, "DOUBLE", "-1 to 1") == "0.3"
    assert say(-0.2, "DOUBLE", "days") == "0 days"
    assert say(4.0, "DOUBLE", "stars") == "4 stars"
    assert say(0.0344, "DOUBLE", "") == "0.034"
    assert say(12.5, "DOUBLE", "currency per order") == "12.50"
    assert say(MISSING, "VARCHAR", "") == say(float("nan"), "DOUBLE", "days") == ""


def test_the_lookback_is_the_setting():
    values = {"frequency": 0, "search_count": 0}
    assert told({"frequency": 2.0, "search_count": 1.0}, values, typical={}, lookback_days=30) == [
        "No purchase in the last 30 days",
        "Searches in the last 30 days: 0",
    ]


def test_a_declaration_alone_reads_well():
    new = Feature(
        name="parcel_kg_14d",
        sql="sum(kg)",
        source="daily_orders",
        window=14,
        dtype="DOUBLE",
        unit="kg",
        description="Weight of parcels",
    )
    usual = replace(new, name="coupon_count", window=LOOKBACK, dtype="BIGINT", unit="coupons")
    usual = replace(usual, description="Coupons used")
    group = FeatureGroup(
        name="customer_parcel_features",
        description="",
        owner="team:data",
        module=__name__,
        features=(new, usual),
    )
    groups = (*GROUPS, group)
    columns = [new.column, usual.column]
    given = rows()
    draw = np.random.default_rng(0)
    given.features["parcel_kg_14d"] = given.churned + draw.random(len(given))
    given.features["coupon_count"] = given.churned * 4 + draw.integers(0, 4, len(given))
    typical = {"parcel_kg_14d": 2.1, "coupon_count": 3.0}
    explainer = Explainer(
        fit(KINDS["logistic_regression"], columns, given, 7, 0), groups, 90, typical
    )
    [found] = explainer.reasons(
        pd.DataFrame({"parcel_kg_14d": [9.5], "coupon_count": [12]}), np.array([True])
    )
    assert set(found) == {
        "Weight of parcels in the last 14 days: 9.5 kg (typical 2.1 kg)",
        "Coupons used in the last 90 days: 12 (typical 3)",
        None,
    }


def test_words_belong_to_features_that_exist():
    declared = {column.name for column in feature_columns(feature_groups("lsa"))}
    additions = {name for name, _ in ADDITIONS.values()}
    nothing = {name for names in NOTHING.values() for name in names}
    named = {*LABELS, *SENTENCES, *ADDITIONS, *additions, *TOLD_BY, *TOLD_BY.values(), *nothing}
    assert named <= declared


def test_typical_values_are_medians_of_numbers():
    features = rows(101).features.assign(avg_session_length=np.nan)
    features["tenure_days"] = [*np.arange(99.0), np.nan, np.inf]
    typical = typical_values(features, COLUMNS)
    assert typical["tenure_days"] == 49
    assert json.loads(json.dumps(typical, allow_nan=False)) == typical
    assert not {"avg_session_length", "gender", "premium"} & set(typical)
