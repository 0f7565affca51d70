"""The incumbent: the champion of the cutoff before, by a fit that had not seen the hold-out.

Which fit that is follows from dates (`training_plan.needs_graded_fit`). An incumbent that cannot be
graded fairly, or that could not stay, is none, with the reason in words.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.estimators import Rows
from churn_assets.models.training_plan import needs_graded_fit, require_mature

if TYPE_CHECKING:
    import numpy as np


class ChampionReplaced(ValueError):
    """The model that a decision chose was trained anew since."""


@dataclass(frozen=True)
class ModelIdentity:
    """Exactly one model.

    Args:
        model: The kind: the model asset's name.
        model_cutoff: The cutoff that it was trained for.
        model_version: Digest of what it is.
    """

    model: str
    model_cutoff: str
    model_version: str


@dataclass(frozen=True)
class Incumbent:
    """The champion of the cutoff before on this cutoff's hold-out.

    Args:
        manifest: Which model it is; None where there is none that can be graded.
        probabilities: P(churn) of the hold-out's customers.
        remark: Why there is none; empty where there is one.
    """

    manifest: Manifest | None
    probabilities: "np.ndarray | None" = None
    remark: str = ""


def chosen_manifest(model_store: ModelStore, chosen: ModelIdentity, decided: str) -> Manifest:
    """The manifest of the model that the decision of cutoff `decided` chose.

    Raises:
        FileNotFoundError: There is no such model.
        ChampionReplaced: It was trained anew since.
    """
    manifest = model_store.manifest(chosen.model, chosen.model_cutoff)
    if manifest.version != chosen.model_version:
        raise ChampionReplaced(
            f"The champion of {decided} is {chosen.model} of {chosen.model_cutoff} in version "
            f"{chosen.model_version}, which was since trained anew as {manifest.version}. "
            f"Materialize champion_model {decided} again."
        )
    return manifest


def find_incumbent(
    calendar: Calendar,
    model_store: ModelStore,
    versions: Mapping[str, str],
    chosen: ModelIdentity | None,
    cutoff: dt.date,
    holdout: dt.date,
    rows: Rows,
    is_redefined: bool = False,
) -> Incumbent:
    """The incumbent of a cutoff, and what its fit that had not seen the hold-out says of it.

    Args:
        calendar: The cutoffs.
        model_store: Has the models.
        versions: The version of every feature as it is defined now.
        chosen: The champion of the cutoff before, or None where there is none.
        cutoff: At which it is to stay or be replaced.
        holdout: The cutoff on which it is graded.
        rows: The hold-out's rows.
        is_redefined: Whether it was made under other definitions, such as another horizon.
    """
    previous = calendar.shift(cutoff, -1)
    if chosen is None:
        return Incumbent(None, remark=f"There is no champion of {previous}.")
    if is_redefined:
        remark = (
            f"The champion of {previous} was made under other definitions, so it is no incumbent; "
            "`churn backfill --stale` makes it again."
        )
        return Incumbent(None, remark=remark)
    try:
        manifest = chosen_manifest(model_store, chosen, previous.isoformat())
        require_mature(calendar, manifest, cutoff)
        graded = needs_graded_fit(calendar, manifest, holdout)
        model = model_store.load(manifest, versions, graded)
    except (
        ValueError,  # it was replaced or damaged, its features changed, or it has seen too much
        FileNotFoundError,
        ModuleNotFoundError,  # a kind whose package is gone
    ) as error:
        return Incumbent(None, remark=f"The champion of {previous} cannot be used: {error}")
    return Incumbent(manifest, model.probabilities(rows.features))
