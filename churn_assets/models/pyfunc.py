"""MLflow's entry point to a model: the `loader_module` that every logged model names.

Moving this module would make logged models unreadable.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_assets.models.artefacts import read_artefact

if TYPE_CHECKING:
    import pandas as pd


class ScoringModel:
    """A model as MLflow uses it: features in, P(churn) out."""

    def __init__(self, folder: Path) -> None:
        self.model = read_artefact(folder)

    def predict(self, features: "pd.DataFrame", params: object = None) -> Any:
        return self.model.probabilities(features)


def _load_pyfunc(path: str) -> ScoringModel:
    """The model in an artefact folder; MLflow calls it by this name."""
    return ScoringModel(Path(path))
