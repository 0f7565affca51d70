"""Contributions: prevents numbers that look like an explanation and do not add up to what the model
says, that depend on who else is explained, or that credit a feature with another one's category.
"""

import itertools
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from churn_assets.cutoffs import parse_key
from churn_assets.features import feature_versions
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.candidates import train
from churn_assets.models.contributions import Contributions, Tree, _boosted_trees
from churn_assets.models.estimators import FittedModel, Rows, fit, inputs
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.training_plan import training_plan
from churn_assets.stores.tables import Column
from churn_assets_tests.conftest import GROUPS
from churn_assets_tests.models.test_models import CALENDAR, COLUMNS, INSTALLED, rows

KINDS = {estimator.name.removesuffix("_model"): estimator for estimator in INSTALLED}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)

# One feature's name continues in the other's categories, and a category is rare.
COLOURS = [Column("colour", "VARCHAR", "Colour"), Column("colour_of", "VARCHAR", "Whose")]


def coloured(customers: int = 600, seed: int = 0) -> Rows:
    made_up = rows(customers, seed)
    draw = np.random.default_rng(seed)
    features = made_up.features.assign(
        colour=draw.choice(
            np.array(["of_car", "red", "rare", None]), customers, p=[0.3, 0.4, 0.02, 0.28]
        ),
        colour_of=np.where(made_up.churned == draw.integers(0, 3, customers), "car", "house"),
        # Thresholds between values that single precision cannot tell apart.
        monetary=1e7 + draw.random(customers) + made_up.churned,
    )
    return Rows(features, made_up.churned)


@cache
def model(kind: str) -> FittedModel:
    return fit(KINDS[kind], [*COLUMNS, *COLOURS], coloured(), seed=7, rounds=30)


def new_customers() -> pd.DataFrame:
    """Some with values that training has not seen."""
    features = coloured(200, seed=1).features
    features.loc[:50, "colour"] = "never seen"
    features.loc[40:80, "avg_session_length"] = np.inf
    features.loc[60:90, "monetary"] = np.nan
    # A threshold in double precision, which single precision rounds up.
    features.loc[90:120, "monetary"] = 1e7 + 1.5
    return features


def contributed(fitted: FittedModel, features: pd.DataFrame) -> np.ndarray:
    return Contributions(fitted).of(inputs(features, fitted.columns))


def said(kind: str, fitted: FittedModel, features: pd.DataFrame) -> np.ndarray:
    """The model's output, in the unit of its contributions."""
    churn = fitted.probabilities(features)
    return churn if kind == "random_forest" else np.log(churn / (1 - churn))


@EVERY_KIND
def test_contributions_add_up_to_what_the_model_says(kind: str):
    fitted, features = model(kind), new_customers()
    contributions = contributed(fitted, features)
    assert contributions.shape == (200, len(fitted.columns))
    total = contributions.sum(axis=1) + Contributions(fitted).expected
    assert total == pytest.approx(said(kind, fitted, features), abs=1e-5)
    assert np.ptp(total) > 0.2


@EVERY_KIND
def test_they_do_not_depend_on_other_customers(kind: str):
    features = new_customers()
    together = contributed(model(kind), features)
    alone = [contributed(model(kind), features.iloc[[row]]) for row in range(0, 200, 15)]
    assert np.array_equal(np.vstack(alone), together[::15])
    assert contributed(model(kind), features.head(0)).shape == (0, together.shape[1])


def test_a_model_that_is_read_back_is_explained_the_same(tmp_path: Path):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, parse_key("2025-06-01"))
    manifest = train(
        ESTIMATORS[0], COLUMNS, feature_versions(GROUPS), plan, lambda _: rows(), 7
    ).manifest
    features = new_customers()
    for kind in KINDS:
        fitted = model(kind)
        written = store.write(replace(manifest, model=kind, columns=fitted.columns), fitted)
        loaded = store.load(written, feature_versions(GROUPS))
        assert np.array_equal(contributed(loaded, features), contributed(fitted, features))


def test_the_base_rate_has_no_contributions():
    fitted = fit(ESTIMATORS[0], COLUMNS, rows(5), 7, 0)
    assert not contributed(fitted, rows(3).features).any()
    [probability] = fitted.probabilities(rows(1).features)
    assert Contributions(fitted).expected == probability


# Which feature is credited


def test_a_feature_moves_its_own_contribution_only():
    fitted, features = model("logistic_regression"), new_customers().iloc[100:120]
    before = contributed(fitted, features)
    for position, column in enumerate(fitted.columns):
        other = "red" if column.dtype == "VARCHAR" else np.nan
        changed = contributed(fitted, features.assign(**{column.name: other})) != before
        assert not np.delete(changed, position, axis=1).any(), column.name
        if column.name in ("colour", "colour_of", "recency_days", "avg_session_length"):
            assert changed[:, position].any()


def test_a_linear_contribution_is_the_distance_from_the_training_mean():
    contributions = contributed(model("logistic_regression"), coloured().features)
    assert contributions.mean(axis=0) == pytest.approx(np.zeros(contributions.shape[1]), abs=1e-6)


def test_the_forest_credits_each_split_with_the_change_of_the_mean():
    fitted = model("random_forest")
    prepared = fitted.pipeline["inputs"].transform(inputs(new_customers(), fitted.columns))
    forest = fitted.pipeline["classifier"]
    expected = np.zeros(prepared.shape)
    for tree in forest.estimators_:
        paths, nodes = tree.decision_path(prepared.astype("float32")), tree.tree_
        for node in np.flatnonzero(nodes.children_left >= 0):
            for child in (nodes.children_left[node], nodes.children_right[node]):
                change = nodes.value[child, 0, 1] - nodes.value[node, 0, 1]
                expected[paths[:, [child]].toarray()[:, 0] == 1, nodes.feature[node]] += change
    explained = Contributions(fitted)._parts(prepared)
    assert explained == pytest.approx(expected / len(forest.estimators_), abs=1e-6)


# SHAP values by their definition


def expectation(tree: Tree, row: np.ndarray, known: tuple[int, ...], node: int = 0) -> float:
    """A tree's output where only some columns are known: by cover past splits on the others."""
    if tree.left[node] < 0:
        return float(tree.value[node])
    left, right, value = tree.left[node], tree.right[node], row[tree.feature[node]]
    if tree.feature[node] in known:
        to_left = tree.missing_left[node] if math.isnan(value) else value <= tree.threshold[node]
        return expectation(tree, row, known, left if to_left else right)
    outputs = [expectation(tree, row, known, child) for child in (left, right)]
    return float(np.average(outputs, weights=[tree.cover[left], tree.cover[right]]))


def shapley_values(trees: list[Tree], row: np.ndarray) -> list[float]:
    """The mean change by knowing a column, over all orders of getting to know them."""
    columns = range(len(row))
    game = {
        known: sum(expectation(tree, row, known) for tree in trees)
        for size in range(len(row) + 1)
        for known in itertools.combinations(columns, size)
    }

    def value(column: int) -> float:
        others = [known for known in game if column not in known]
        return sum(
            (game[tuple(sorted((*known, column)))] - game[known])
            / (len(row) * math.comb(len(row) - 1, len(known)))
            for known in others
        )

    return [value(column) for column in columns]


def test_boosting_is_explained_by_shap_values():
    columns = [c for c in COLUMNS if c.name in ("recency_days", "gap_mean_days", "monetary")]
    fitted = fit(KINDS["gradient_boosting"], [*columns, COLOURS[1]], coloured(), 7, 15)
    prepared: Any = fitted.pipeline["inputs"].transform(inputs(new_customers(), fitted.columns))
    assert prepared.shape[1] == 5
    trees = _boosted_trees(fitted.pipeline["classifier"])
    expected = [shapley_values(trees, row) for row in prepared[55:75]]
    explained = Contributions(fitted)._parts(prepared[55:75])
    assert explained == pytest.approx(np.array(expected), abs=1e-5)
