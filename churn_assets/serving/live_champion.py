"""The champion of the newest decision on disk, as a service uses it.

MLflow's alias is an output of the same decision. It is loaded in the background and swapped in one
step, so that a request uses one model from beginning to end and none waits for a load. A champion
that cannot be loaded, or with which another process came to grief (`trial`), leaves the one before
in place.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups, feature_versions
from churn_assets.models.artefacts import (
    FeatureMismatch,
    Manifest,
    ModelStore,
    read_artefact,
    refuse_other_features,
    unusable,
)
from churn_assets.models.champion import CHAMPION_MODEL, Champion, newest_champion
from churn_assets.predictions.churn_predictions import AT_RISK, RETAINED, explainer
from churn_assets.predictions.reasons import Explainer
from churn_assets.serving.scoring import Scorer
from churn_assets.serving.trial import refusal
from churn_assets.stores.artefacts import MANIFEST, DamagedArtefact, is_pruned, require_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveModel:
    """The champion as it is in use."""

    decision: Champion
    manifest: Manifest
    scorer: Scorer
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
            raise unusable(folder, why)
        model = read_artefact(folder)
        explains = explainer(self._groups, manifest, model, self._calendar.lookback_days)
        return LiveModel(decision, manifest, Scorer(model), explains, self._threshold)

    def _keep(self, problem: str) -> None:
        if self.problem != problem:
            log.error("The newest champion cannot be used: %s", problem)
        self.problem = problem
