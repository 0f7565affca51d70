"""Tuning: the hyperparameters of a kind of model, chosen on cutoffs before its hold-out.

Off unless `CHURN_TUNING` asks for candidates. They are judged on temporal folds: each trains on the
cutoffs whose labels were mature at a later one, and validates on that one. All lie among the
cutoffs of the fit that is graded, so the hold-out still grades what has never seen it.

Candidates are drawn from the space beside each estimator and thinned out by successive halving
(Jamieson & Talwalkar 2016) with folds as the budget: after each, newest first, the better half goes
on, so N candidates take about 2 N fits. scikit-learn's halving spends rows instead, and the fewer
the rows, the stronger the regularisation that suits them. The defaults are tried on every fold and
replaced only by a candidate that was tried on as many and has the smaller mean log loss.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from churn_assets.models.estimators import Estimator, Rows, inputs, reason_for_base_rate, trial
from churn_assets.models.grades import has_both_classes
from churn_assets.stores.pages import markdown
from churn_assets.stores.tables import Column

# One fold is one month's chance: with it alone, tuning would be fitted to that month.
FEWEST_FOLDS = 2
# Of the newest: older ones train on fewer rows.
MOST_FOLDS = 4


class Fold(NamedTuple):
    """Cutoffs to train on, and a later one, at which their labels were mature, to validate on."""

    fit: tuple[dt.date, ...]
    validation: dt.date


@dataclass(frozen=True)
class Candidate:
    """Hyperparameters that were tried.

    Args:
        parameters: Those that differ from what the estimator has; none for the defaults.
        losses: Log loss on each fold, newest first, until it was left out.
    """

    parameters: Mapping[str, Any]
    losses: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """The mean over its folds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Tuning:
    """What was tried.

    Args:
        candidates: Those that were tried on all folds, best first, then the others; none without
            tuning.
        summary: What happened, for people; empty where tuning is off.
    """

    candidates: tuple[Candidate, ...] = ()
    summary: str = ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The hyperparameters that were chosen; none where the defaults are kept."""
        return self.candidates[0].parameters if self.candidates else {}


def tune(
    estimator: Estimator,
    columns: Sequence[Column],
    folds: Sequence[Fold],
    read: Callable[[tuple[dt.date, ...]], Rows],
    candidates: int,
    seed: int,
) -> Tuning:
    """Try hyperparameters of one kind of model.

    Args:
        estimator: The kind.
        columns: The features.
        folds: Oldest first.
        read: Gives the rows of cutoffs.
        candidates: How many to draw; 0 for no tuning.
        seed: Of the draw and of the fits.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    if not candidates:
        return Tuning()
    size = min(candidates, len(ParameterGrid(estimator.space)))
    drawn = ParameterSampler(estimator.space, size, random_state=seed)
    default, running = Candidate({}), [Candidate(parameters) for parameters in drawn]
    left_out: list[Candidate] = []
    validated: list[dt.date] = []
    for fold in reversed(folds):
        training, later = read(fold.fit), read((fold.validation,))
        table = inputs(training.features, columns)
        if reason_for_base_rate(training, table) or not has_both_classes(later.churned):
            continue
        judged = []
        for candidate in (default, *running):
            chosen = replace(estimator, parameters=candidate.parameters)
            said = trial(chosen, columns, training, later, seed).probabilities
            loss = float(log_loss(later.churned, said))
            judged.append(replace(candidate, losses=(*candidate.losses, loss)))
        default, *running = judged
        running.sort(key=lambda candidate: candidate.loss)
        validated.append(fold.validation)
        if len(validated) == MOST_FOLDS:
            break
        half = (len(running) + 1) // 2
        running, left_out = running[:half], running[half:] + left_out
    if len(validated) < FEWEST_FOLDS:
        return Tuning(
            summary=f"no tuning: {len(validated)} temporal folds before the hold-out can be "
            f"judged, {FEWEST_FOLDS} are needed"
        )
    tried = (*sorted([default, *running], key=lambda candidate: candidate.loss), *left_out)
    better = tried[0].parameters
    return Tuning(
        tried,
        f"tuning tried {size} candidates in {sum(len(c.losses) for c in tried)} fits validated on "
        + ", ".join(str(day) for day in sorted(validated))
        + f": log loss {tried[0].loss:.4f} with {describe(better)}"
        + (f", {default.loss:.4f} with the defaults" if better else ""),
    )


def describe(parameters: Mapping[str, Any]) -> str:
    """Hyperparameters as text."""
    return ", ".join(f"{name}={value}" for name, value in parameters.items()) or "the defaults"


def table(tuning: Tuning) -> str:
    """Every candidate and its log loss on each fold, newest first, in Markdown."""
    folds = max((len(candidate.losses) for candidate in tuning.candidates), default=0)
    rows = [
        [describe(c.parameters), *(f"{loss:.4f}" for loss in c.losses)] for c in tuning.candidates
    ]
    header = ["hyperparameters", *(f"fold {number + 1}" for number in range(folds))]
    return markdown(header, [row + [""] * (1 + folds - len(row)) for row in rows])
