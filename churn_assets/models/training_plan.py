"""The training plan: which cutoffs a model at a cutoff is fitted, graded and refitted on.

The hold-out `H` of a cutoff `C` is the newest cutoff whose labels are mature at `C`. The graded fit
uses cutoffs that were mature at `H` (the embargo), the refit those that are mature at `C`. Dates
only: no rows are read here.
"""

import datetime as dt
from dataclasses import dataclass

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.models.artefacts import Manifest
from churn_assets.models.tuning import Fold


@dataclass(frozen=True)
class TrainingPlan:
    """Which cutoffs a model learns from.

    Args:
        cutoff: The scored cutoff.
        fit: The cutoffs of the fit that is graded.
        holdout: The cutoff it is graded on.
        refit: The cutoffs of the fit that is used, the hold-out included.
        horizon_days: The horizon of their labels.
        folds: For tuning: each of `fit`, with those of them that were mature there.
    """

    cutoff: dt.date
    fit: tuple[dt.date, ...]
    holdout: dt.date
    refit: tuple[dt.date, ...]
    horizon_days: int
    folds: tuple[Fold, ...] = ()

    @property
    def needed(self) -> list[str]:
        """The partitions of the training dataset that it reads."""
        return [day.isoformat() for day in sorted({*self.fit, *self.refit})]


def mature_at(calendar: Calendar, cutoff: dt.date) -> tuple[dt.date, ...]:
    """The newest `training_cutoffs` whose labels are mature at `cutoff`, oldest first."""
    last = calendar.shift(cutoff, -calendar.lag)
    first = calendar.shift(last, 1 - calendar.training_cutoffs)
    return tuple(calendar.between(max(first, calendar.first_cutoff), last))


def training_plan(calendar: Calendar, cutoff: dt.date) -> TrainingPlan:
    """The cutoffs for fitting, grading and refitting a model at `cutoff`.

    Raises:
        ValueError: There is no mature hold-out, or no cutoff that was mature at the hold-out.
    """
    refit = mature_at(calendar, cutoff)
    fitted = mature_at(calendar, refit[-1]) if refit else ()
    if not fitted:
        lacking = "training cutoff before the hold-out" if refit else "mature hold-out"
        raise ValueError(
            f"No model can be trained for {cutoff}: there is no {lacking}. Labels mature after "
            f"{calendar.lag} periods and the first cutoff is {calendar.first_cutoff}, so the first "
            f"cutoff with a model is {calendar.first_scored}. Ask for that one or a later one, or "
            "set CHURN_START earlier."
        )
    known = {day: [c for c in mature_at(calendar, day) if c in fitted] for day in fitted}
    folds = tuple(Fold(tuple(before), day) for day, before in known.items() if before)
    return TrainingPlan(cutoff, fitted, refit[-1], refit, calendar.horizon_days, folds)


def require_mature(calendar: Calendar, manifest: Manifest, cutoff: dt.date) -> None:
    """Refuse to use a model at a cutoff at which some of its training labels were not known.

    Raises:
        ValueError: Its newest training cutoff was not mature at `cutoff`.
    """
    newest = calendar.shift(cutoff, -calendar.lag)
    if manifest.newest_training_cutoff > newest:
        raise ValueError(
            f"{manifest.model} of {manifest.cutoff} cannot be used at {cutoff}: it has learned "
            f"from the labels of {manifest.newest_training_cutoff}, and at {cutoff} only those up "
            f"to {newest} were mature. Use a model of {cutoff} or earlier."
        )


def needs_graded_fit(calendar: Calendar, manifest: Manifest, holdout: dt.date) -> bool:
    """Whether the refit of a model has seen outcomes of a hold-out, and its graded fit has not.

    A fit has seen none where all of its training labels were mature at the hold-out: their windows
    end where that of the hold-out begins. The refit is preferred, because it has learned from more.

    Raises:
        ValueError: Both have seen outcomes, or the graded fit was not kept.
    """
    mature = calendar.shift(holdout, -calendar.lag)
    newest = min(mature, holdout - dt.timedelta(days=manifest.horizon_days))
    for graded, cutoffs in ((False, manifest.training_cutoffs), (True, manifest.graded_cutoffs)):
        if cutoffs and parse_key(max(cutoffs)) <= newest:
            return graded
    kept = manifest.graded_cutoffs
    earlier = f"so has its graded fit, up to {max(kept)}" if kept else "its graded fit was not kept"
    raise ValueError(
        f"{manifest.model} of {manifest.cutoff} cannot be graded on {holdout}: it has learned from "
        f"the labels of {manifest.newest_training_cutoff}, and at {holdout} only those up to "
        f"{newest} were mature; {earlier}."
    )
