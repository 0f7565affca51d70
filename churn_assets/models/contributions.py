"""Contributions: what each feature adds to what a model says of a customer.

With the expected value, which is the same for everybody, they add up to the model's output: the log
odds of churn, for the forest the probability. One-hot columns and indicators of missing values
count for the feature that they stand for. No contribution depends on the other customers of a call
or on the number of threads.

- Logistic regression: coefficient times distance from the training mean, in the space of its
  prepared inputs. These are the SHAP values of a linear model with independent features (Lundberg &
  Lee 2017, corollary 1).
- Boosting: path-dependent SHAP values (Lundberg et al. 2020, TreeSHAP). XGBoost, LightGBM and
  CatBoost compute their own.
- Random forest: path attributions (Saabas 2014), which are not SHAP values. Each split on a
  customer's path credits its feature with the change of the node's mean, so splits further down
  count for more than they should. SHAP values of trees that deep take 8 ms per customer instead of
  0.02; the strongest reason is the same for 4 of 5 customers, and for 98 % among the first three.
- The base rate is the same for everybody: nothing contributes.

XGBoost computes both kinds for the trees of scikit-learn, which it is handed as a booster.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from churn_assets.models.estimators import FittedModel
from churn_assets.models.formats import package_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from xgboost import Booster


class Contributions:
    """The contributions of one model. Made once per model, which takes up to 0.3 s.

    Args:
        model: The model.

    Attributes:
        expected: The expected value, in the unit of the contributions.
    """

    expected: float

    def __init__(self, model: FittedModel) -> None:
        self._width = len(model.columns)
        self._transform: Any = None
        if model.is_base_rate:
            self.expected = float(model.pipeline.class_prior_[1])
            return
        transformer, classifier = model.pipeline["inputs"], model.pipeline["classifier"]
        self._transform = transformer.transform
        positions = {column.name: number for number, column in enumerate(model.columns)}
        self._positions = [positions[name] for name in origins(transformer)]
        self._parts, self.expected = _additive(classifier)

    def of(self, table: "pd.DataFrame") -> "np.ndarray":
        """Contributions towards churn, shape (customers, features of the model), float64.

        Args:
            table: One row per customer, from `models.estimators.inputs`.
        """
        import numpy as np

        contributions = np.zeros((len(table), self._width))
        if self._transform and len(table):
            parts = self._parts(self._transform(table))
            # One by one: a matrix product adds in an order that depends on the number of rows.
            for part, position in zip(parts.T, self._positions, strict=True):
                contributions[:, position] += part
        return contributions


def origins(transformer: Any) -> list[str]:
    """The feature behind each column that the fitted inputs of a pipeline give."""
    names: list[str] = []
    for step, fitted, features in transformer.transformers_:
        if not features or step == "remainder":
            continue
        if step == "categories":
            encoder = fitted[0] if hasattr(fitted, "steps") else fitted
            known, rare = encoder.categories_, encoder.infrequent_categories_
            for feature, values, shared in zip(features, known, rare, strict=True):
                columns = len(values) if shared is None else len(values) - len(shared) + 1
                names += [feature] * columns
        else:
            given = fitted.get_feature_names_out(features)
            names += [name.removeprefix("missingindicator_") for name in given]
    return names


def _additive(classifier: Any) -> "tuple[Callable[[np.ndarray], np.ndarray], float]":
    """What turns prepared inputs into the contributions of their columns; the expected value."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    if isinstance(classifier, LogisticRegression):
        # Prepared inputs are centred: their training means are 0.
        return lambda prepared: prepared * classifier.coef_[0], float(classifier.intercept_[0])
    if isinstance(classifier, RandomForestClassifier):
        booster, ranks = _as_booster(_forest_trees(classifier), classifier.n_features_in_, 0.0)
        # The forest compares in single precision.
        return _by_xgboost(booster, lambda prepared: ranks(prepared.astype("float32")), True)
    if isinstance(classifier, HistGradientBoostingClassifier):
        baseline = classifier._baseline_prediction.item()
        booster, ranks = _as_booster(
            _boosted_trees(classifier), classifier.n_features_in_, baseline
        )
        return _by_xgboost(booster, ranks)
    match package_of(classifier):
        case "lightgbm":
            columns = classifier.n_features_in_
            return _apart(lambda rows: classifier.predict_proba(rows, pred_contrib=True), columns)
        case "catboost":
            columns = len(classifier.feature_names_)
            return _apart(lambda rows: _by_catboost(classifier, rows), columns)
    return _by_xgboost(classifier.get_booster(), lambda prepared: prepared)


def _apart(
    with_expected: "Callable[[np.ndarray], np.ndarray]", columns: int
) -> "tuple[Callable[[np.ndarray], np.ndarray], float]":
    """As `_additive`, of a function whose last column is the expected value."""
    import numpy as np

    anybody = np.zeros((1, columns))
    return lambda prepared: with_expected(prepared)[:, :-1], float(with_expected(anybody)[0, -1])


def _by_catboost(classifier: Any, prepared: "np.ndarray") -> "np.ndarray":
    from catboost import EFstrType, Pool

    pool = Pool(prepared, thread_count=1)
    found: np.ndarray = classifier.get_feature_importance(
        pool, EFstrType.ShapValues, thread_count=1
    )
    return found


def _by_xgboost(
    booster: "Booster", prepare: "Callable[[np.ndarray], np.ndarray]", approximate: bool = False
) -> "tuple[Callable[[np.ndarray], np.ndarray], float]":
    """As `_additive`. XGBoost calls path attributions approximate."""
    from xgboost import DMatrix

    def with_expected(prepared: "np.ndarray") -> "np.ndarray":
        matrix = DMatrix(prepare(prepared), nthread=1)
        found: np.ndarray = booster.predict(matrix, pred_contribs=True, approx_contribs=approximate)
        return found

    return _apart(with_expected, booster.num_features())


@dataclass(frozen=True)
class Tree:
    """A tree as arrays over its nodes, the root first.

    Args:
        left: The child of values up to the threshold, -1 for a leaf.
        right: The other child.
        feature: The column that is compared; any for a leaf.
        threshold: What it is compared with; any for a leaf.
        missing_left: Whether missing values go left.
        value: What a leaf adds to the model's output; any for another node.
        cover: The training rows of the node, weighted.
    """

    left: "np.ndarray"
    right: "np.ndarray"
    feature: "np.ndarray"
    threshold: "np.ndarray"
    missing_left: "np.ndarray"
    value: "np.ndarray"
    cover: "np.ndarray"


def _forest_trees(forest: Any) -> list[Tree]:
    trees = [estimator.tree_ for estimator in forest.estimators_]
    return [
        Tree(
            tree.children_left,
            tree.children_right,
            tree.feature,
            tree.threshold,
            tree.missing_go_to_left,
            tree.value[:, 0, 1] / len(trees),
            tree.weighted_n_node_samples,
        )
        for tree in trees
    ]


def _boosted_trees(boosting: Any) -> list[Tree]:
    import numpy as np

    nodes = [predictor.nodes for (predictor,) in boosting._predictors]
    return [
        Tree(
            np.where(node["is_leaf"], -1, node["left"].astype(int)),
            np.where(node["is_leaf"], -1, node["right"].astype(int)),
            node["feature_idx"],
            node["num_threshold"],
            node["missing_go_to_left"],
            node["value"],
            node["count"],
        )
        for node in nodes
    ]


def _as_booster(
    trees: list[Tree], columns: int, baseline: float
) -> "tuple[Booster, Callable[[np.ndarray], np.ndarray]]":
    """A booster that says the baseline plus the trees' sum, and what makes its inputs.

    XGBoost compares in single precision, which would send values close to a threshold to the other
    side. Its inputs are therefore ranks among the thresholds, which are exact.
    """
    import numpy as np
    import xgboost

    thresholds = [
        np.unique(np.concatenate([t.threshold[(t.left >= 0) & (t.feature == c)] for t in trees]))
        for c in range(columns)
    ]

    def ranks(prepared: np.ndarray) -> np.ndarray:
        ranked = np.column_stack(
            [np.searchsorted(thresholds[c], prepared[:, c]) for c in range(columns)]
        )
        return np.where(np.isnan(prepared), np.nan, ranked)

    # Any fit gives the format of this version of XGBoost.
    stump = xgboost.train(
        {"base_score": baseline, "objective": "reg:squarederror", "nthread": 1},
        xgboost.DMatrix(np.zeros((1, columns)), label=[0.0], nthread=1),
        num_boost_round=1,
    )
    saved = json.loads(stump.save_raw("json"))
    model = saved["learner"]["gradient_booster"]["model"]
    (template,) = model["trees"]
    model["trees"] = [_saved(t, template, thresholds, i) for i, t in enumerate(trees)]
    model["tree_info"] = [0] * len(trees)
    model["iteration_indptr"] = list(range(len(trees) + 1))
    model["gbtree_model_param"]["num_trees"] = str(len(trees))
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(json.dumps(saved).encode()))
    return booster, ranks


def _saved(
    tree: Tree, template: dict[str, Any], thresholds: "list[np.ndarray]", number: int
) -> dict[str, Any]:
    """A tree in XGBoost's format, in which siblings are neighbours."""
    import numpy as np

    size = len(tree.left)
    inner = np.flatnonzero(tree.left >= 0)
    node = np.zeros(size, dtype=int)
    node[1::2], node[2::2] = tree.left[inner], tree.right[inner]
    place = np.empty(size, dtype=int)
    place[node] = np.arange(size)

    left, parents = np.full(size, -1), np.full(size, 2**31 - 1)
    left[place[inner]] = place[tree.left[inner]]
    parents[place[tree.left[inner]]] = parents[place[tree.right[inner]]] = place[inner]
    conditions = tree.value.copy()
    for i in inner:
        # Up to the threshold means a rank of at most its own, and XGBoost wants less.
        conditions[i] = 0.5 + np.searchsorted(thresholds[tree.feature[i]], tree.threshold[i])
    return template | {
        "id": number,
        "left_children": left.tolist(),
        "right_children": np.where(left < 0, -1, left + 1).tolist(),
        "parents": parents.tolist(),
        "split_indices": np.where(tree.left < 0, 0, tree.feature)[node].tolist(),
        "split_conditions": conditions[node].tolist(),
        "split_type": [0] * size,
        "default_left": tree.missing_left[node].astype(int).tolist(),
        "sum_hessian": tree.cover[node].astype(float).tolist(),
        "base_weights": [0.0] * size,
        "loss_changes": [0.0] * size,
        "tree_param": template["tree_param"] | {"num_nodes": str(size)},
    }
