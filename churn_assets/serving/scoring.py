"""Native scoring: one row in a fraction of a millisecond.

Fitted pipelines take a data frame and 10 ms per call, whatever the number of rows, nearly all of it
in pandas and in checks of the input. `Scorer` takes the fitted parts out of a pipeline and applies
them to arrays: the same numbers, for one row or many.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from churn_assets.models.estimators import LARGEST, MISSING, FittedModel

if TYPE_CHECKING:
    import numpy as np


class Scorer:
    """P(churn) of rows of features, as `FittedModel.probabilities` gives it.

    Equal to the last bit for tree models and the base rate; for logistic regression to within
    rounding, because sums over columns may be made in another order.
    """

    def __init__(self, model: FittedModel) -> None:
        from threadpoolctl import ThreadpoolController

        # Of OpenMP, each thread has its own; with more than one, a row of gradient boosting waits
        # for cores: 80 ms instead of 0.5 on a busy machine.
        self._threads = ThreadpoolController()
        self._base_rate: float | None = None
        if model.is_base_rate:
            self._base_rate = float(model.pipeline.predict_proba([[0]])[0, 1])
            return
        self._classify = _classify(model.pipeline["classifier"])
        self._parts = [
            _OneHot(part, names) if name == "categories" else _Numbers(part, names)
            for name, part, names in model.pipeline["inputs"].transformers_
            if names and part != "drop"  # what no training row had
        ]

    def probabilities(self, rows: Sequence[Mapping[str, Any]]) -> "np.ndarray":
        """P(churn) of every row, shape (n,). Features are found by name; absent ones are NULL."""
        import numpy as np

        if not rows or self._base_rate is not None:
            return np.full(len(rows), self._base_rate or 0.0)
        with self._threads.limit(limits=1):
            return self._classify(np.hstack([part(rows) for part in self._parts]))


def _classify(classifier: Any) -> "Callable[[np.ndarray], np.ndarray]":
    """P(churn) from an array of inputs, without what the classifier's own method does besides.

    For one row: the forest starts a thread pool for its trees (10 ms), gradient boosting calls into
    each tree (0.4 ms) and XGBoost's wrapper takes as long as its trees.
    """
    import numpy as np

    if hasattr(classifier, "get_booster"):
        booster = classifier.get_booster()
        return lambda table: booster.inplace_predict(table, validate_features=False).astype("f8")
    if hasattr(classifier, "estimators_"):
        trees = [tree.tree_ for tree in classifier.estimators_]

        def forest(table: "np.ndarray") -> "np.ndarray":
            narrow = table.astype("float32")
            total = sum(tree.predict(narrow)[:, 1] for tree in trees)
            return np.asarray(total / len(trees))

        return forest
    if hasattr(classifier, "_predictors"):
        return _Boosting(classifier)
    return lambda table: np.asarray(classifier.predict_proba(table)[:, 1])


class _Boosting:
    """The trees of scikit-learn's gradient boosting in one array, walked down side by side."""

    def __init__(self, classifier: Any) -> None:
        import numpy as np

        trees = [predictor.nodes for (predictor,) in classifier._predictors]
        sizes = [len(nodes) for nodes in trees]
        self._roots = np.cumsum([0, *sizes[:-1]])
        self._nodes = np.concatenate(trees)
        self._depth = int(self._nodes["depth"].max())
        own = np.arange(len(self._nodes))
        shift = np.repeat(self._roots, sizes)
        leaf = self._nodes["is_leaf"].astype(bool)
        # A leaf leads to itself.
        self._left = np.where(leaf, own, self._nodes["left"] + shift)
        self._right = np.where(leaf, own, self._nodes["right"] + shift)
        self._feature = np.where(leaf, 0, self._nodes["feature_idx"])
        self._threshold = self._nodes["num_threshold"]
        self._missing_left = self._nodes["missing_go_to_left"].astype(bool)
        self._value = self._nodes["value"]
        self._baseline = float(classifier._baseline_prediction[0, 0])

    def __call__(self, table: "np.ndarray") -> "np.ndarray":
        import numpy as np
        from scipy.special import expit

        at = np.tile(self._roots, (len(table), 1))
        for _ in range(self._depth):
            value = np.take_along_axis(table, self._feature[at], axis=1)
            left = (value <= self._threshold[at]) | (np.isnan(value) & self._missing_left[at])
            at = np.where(left, self._left[at], self._right[at])
        # One after the other, as the fitted model adds: another order rounds differently.
        raw = np.cumsum(np.insert(self._value[at], 0, self._baseline, axis=1), axis=1)[:, -1]
        return np.asarray(expit(raw))


class _OneHot:
    """Categories as columns: what the fitted encoder gives for each of its categories, looked up.

    The encoder treats columns independently, so a row's encoding is that of a row of unknown
    values plus what each known value changes in it.
    """

    def __init__(self, encoder: Any, names: Sequence[str]) -> None:
        import pandas as pd

        def encode(values: Sequence[str]) -> "np.ndarray":
            encoded: np.ndarray = encoder.transform(pd.DataFrame([[*values]], columns=[*names]))[0]
            return encoded

        # For a linear model, a scaler that centres follows the encoder.
        categories = (encoder[0] if hasattr(encoder, "steps") else encoder).categories_
        unknown = [chr(0)] * len(names)
        self._names = names
        self._unknown = encode(unknown)
        self._changes = [
            {
                value: encode([*unknown[:i], value, *unknown[i + 1 :]]) - self._unknown
                for value in categories[i]
            }
            for i in range(len(names))
        ]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "np.ndarray":
        import numpy as np

        encoded = np.tile(self._unknown, (len(rows), 1))
        for i, row in enumerate(rows):
            for name, changes in zip(self._names, self._changes, strict=True):
                value = row.get(name)
                change = changes.get(MISSING if value is None else value)
                if change is not None:
                    encoded[i] += change
        return encoded


class _Numbers:
    """Numbers as columns: as they are, or through the fitted steps for a linear model."""

    def __init__(self, steps: Any, names: Sequence[str]) -> None:
        import numpy as np

        self._names = names
        self._scaled = hasattr(steps, "named_steps") and "standardscaler" in steps.named_steps
        if self._scaled:
            *logs, imputer, scaler = (step for _, step in steps.steps)
            self._log = logs[0].func if logs else np.asarray
            self._fill, self._indicated = imputer.statistics_, imputer.indicator_.features_
            self._mean, self._scale = scaler.mean_, scaler.scale_

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "np.ndarray":
        import numpy as np

        values = np.array([[row.get(name) for name in self._names] for row in rows], "float64")
        values = np.where(np.abs(values) < LARGEST, values, np.nan)
        if not self._scaled:
            return values
        missing = np.isnan(values)
        filled = np.where(missing, self._fill, self._log(values))
        inputs = np.hstack([filled, missing[:, self._indicated]])
        return np.asarray((inputs - self._mean) / self._scale)
