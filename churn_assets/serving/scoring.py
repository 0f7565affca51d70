"""The champion, loaded natively: one row in a fraction of a millisecond.

The registry's champion is the newest decision on disk (MLflow's alias is an output of the same
decision). It is loaded in the background and swapped in one step, so that a request uses one model
from beginning to end and none waits for a load. A champion that cannot be loaded, or with which
another process came to grief (`serving.trial`), leaves the one before in place.

Fitted pipelines take a data frame and 10 ms per call, whatever the number of rows, nearly all of it
in pandas and in checks of the input. `Scorer` takes the fitted parts out of a pipeline and applies
them to arrays: the same numbers, for one row or many.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups, feature_versions
from churn_assets.models.artefacts import (
    FeatureMismatch,
    Manifest,
    ModelStore,
    read_artefact,
    refuse_other_features,
)
from churn_assets.models.champion import CHAMPION_MODEL, Champion, newest_champion
from churn_assets.models.estimators import LARGEST, MISSING, FittedModel
from churn_assets.predictions.churn_predictions import AT_RISK, RETAINED, explainer
from churn_assets.predictions.reasons import Explainer
from churn_assets.serving.trial import refusal
from churn_assets.stores.artefacts import MANIFEST, DamagedArtefact, is_pruned, require_whole

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveModel:
    """The champion as it is in use."""

    decision: Champion
    manifest: Manifest
    scorer: "Scorer"
    explains: Explainer
    threshold: float

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Probabilities and prediction of each row of features."""
        return [
            {
                "churn_probability": churn,
                "purchase_probability": 1 - churn,
                "prediction": AT_RISK if churn >= self.threshold else RETAINED,
            }
            for churn in self.scorer.probabilities(rows).tolist()
        ]

    def reasons(self, row: Mapping[str, Any]) -> list[str]:
        """What speaks for the prediction of a row, the strongest first; none of it sensitive."""
        import numpy as np
        import pandas as pd

        names = [column.name for column in self.manifest.columns]
        features = pd.DataFrame([{name: row.get(name) for name in names}])
        at_risk = self.scorer.probabilities([row]) >= self.threshold
        [told] = self.explains.reasons(features, np.asarray(at_risk))
        return [reason for reason in told if reason]

    @property
    def description(self) -> dict[str, Any]:
        return {
            "model": self.manifest.model,
            "model_cutoff": self.manifest.cutoff,
            "model_version": self.manifest.version,
            "threshold": self.threshold,
        }


class LiveChampion:
    """Holds the champion. `watch` is called now and then by a thread, `model` read by any.

    Args:
        store: Has the decisions and models.
        calendar: Says which cutoffs there are; its lookback is for reasons.
        groups: The features as they are defined now.
        threshold: Probability from which contacting a customer pays.
    """

    def __init__(
        self, store: ModelStore, calendar: Calendar, groups: Groups, threshold: float
    ) -> None:
        self._store = store
        self._calendar = calendar
        self._groups = groups
        self._threshold = threshold
        self.model: LiveModel | None = None
        self.problem = "no champion was chosen yet; `churn backfill --stage models` does"

    def watch(self) -> None:
        """Load the champion of the newest decision, if it is not the one in use."""
        try:
            decision = newest_champion(self._calendar, self._store)
            if decision and (self.model is None or self.model.decision != decision):
                self.model = self._load(decision)
                log.info("The champion is %s of %s.", decision.model, decision.model_cutoff)
            if decision:
                self.problem = ""
        except (LookupError, FeatureMismatch, DamagedArtefact) as error:
            self._keep(str(error))
        except Exception as error:  # whatever is wrong with a model, the one before still works
            log.debug("The champion cannot be loaded.", exc_info=True)
            self._keep(f"it cannot be loaded: {type(error).__name__}")

    def _load(self, decision: Champion) -> LiveModel:
        """The model that a decision names, in exactly that version.

        Raises:
            LookupError: That version is gone.
            PrunedArtefact: Its files were pruned.
            DamagedArtefact: It is not as it was written.
            FeatureMismatch: A feature was changed since it was trained.
        """
        folder = self._store.folder(decision.model, decision.model_cutoff) / decision.model_version
        if not folder.exists() and not is_pruned(folder):
            raise LookupError(
                f"{decision.model} of {decision.model_cutoff} has no version "
                f"{decision.model_version} any more: it was trained anew. Materialize "
                f"{CHAMPION_MODEL.name} again."
            )
        require_whole(folder)
        manifest = Manifest.from_json((folder / MANIFEST).read_text())
        refuse_other_features(manifest, feature_versions(self._groups))
        if why := refusal(folder):
            raise DamagedArtefact(folder, why, f"rm -r {quote(str(folder))}; churn backfill")
        model = read_artefact(folder)
        explains = explainer(self._groups, manifest, model, self._calendar.lookback_days)
        return LiveModel(decision, manifest, Scorer(model), explains, self._threshold)

    def _keep(self, problem: str) -> None:
        if self.problem != problem:
            log.error("The newest champion cannot be used: %s", problem)
        self.problem = problem


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
