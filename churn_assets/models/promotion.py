"""Which model becomes the champion of a cutoff: one pure function, and the reason in words.

Everything is graded on the same hold-out `H`, the newest cutoff whose labels are mature, by a fit
that had seen none of its outcomes: labels that were mature at `H`, of cutoffs up to `H - lag`. For
a candidate that is the graded fit. The model that is then put to use is refitted with `H` and is,
if anything, better. The incumbent of `C - 1` has a refit on cutoffs up to `H - 1`. With a lag of
one period that refit had seen nothing of `H`: it is graded, and has learned from exactly the
cutoffs that the candidates have. With a longer lag, the labels of its last cutoffs overlap those of
`H`, so its own graded fit stands for it, which ends one period before those of the candidates. What
is compared is the kind of model, and the newer fit of the same kind is preferred unless it has
become worse. An incumbent without such a fit is none (`training_plan.needs_graded_fit`).
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from churn_assets.models.bootstrap import Interval

# Another kind of model replaces the incumbent only when it ranks clearly better: by this margin and
# by more than chance explains, which the paired interval says. On 2,000 customers the AUCs of two
# good models differ by 0.004 by chance (bootstrap on the UCI hold-outs 2011-03-01 and 2011-04-01),
# and every change of kind changes the explanations people are used to.
SWITCH_MARGIN = 0.005

# A newer fit of the incumbent's kind has learned from newer customers. It is preferred unless it
# ranks worse than chance explains: two and a half of the standard errors above.
REFRESH_TOLERANCE = 0.01

# Each refresh may lose a little against the one before, and many littles add up: below this AUC
# nothing is promoted. With 2,000 customers it is 3.5 standard errors above a coin.
MINIMUM_AUC = 0.55


@dataclass(frozen=True)
class Graded:
    """A model with its grade.

    Args:
        model: The kind: the model asset's name.
        cutoff: The cutoff that it was trained for.
        roc_auc: On the common hold-out; None where that cannot grade (one class only).
        lead: 95 % interval of its ROC-AUC minus the incumbent's, on the same customers; None where
            there is no incumbent, or it is the incumbent.
    """

    model: str
    cutoff: dt.date
    roc_auc: float | None
    lead: Interval | None = None

    def __str__(self) -> str:
        grade = "not graded" if self.roc_auc is None else f"AUC {self.roc_auc:.4f}"
        return f"{self.model} of {self.cutoff} ({grade})"


@dataclass(frozen=True)
class Decision:
    """The champion and why.

    Args:
        chosen: The model to use.
        promoted: Whether that is a new model; False where the incumbent stays, and where a first
            model is used although it is not good enough to be promoted.
        reason: For people.
        challenger: The best candidate that was not chosen.
        graded: Everything that was graded: the candidates, best first, then the incumbent.
    """

    chosen: Graded
    promoted: bool
    reason: str
    challenger: Graded | None
    graded: Sequence[Graded] = ()


def decide_promotion(candidates: Sequence[Graded], incumbent: Graded | None) -> Decision:
    """Choose among the candidates of a cutoff and the champion of the previous one.

    Args:
        candidates: Graded on the common hold-out; earlier ones win ties.
        incumbent: Graded on the same hold-out, or None where there is none that can score.

    Raises:
        ValueError: There is nothing to choose from.
    """
    newer = [c for c in candidates if incumbent is None or c.cutoff > incumbent.cutoff]
    ranked = sorted(newer, key=_auc, reverse=True)
    graded = [*sorted(candidates, key=_auc, reverse=True), *([incumbent] if incumbent else [])]

    def use(chosen: Graded, reason: str, promoted: bool) -> Decision:
        challenger = next((c for c in ranked if c is not chosen), None)
        return Decision(chosen, promoted, f"{chosen} {reason}.", challenger, graded)

    if not ranked:
        if incumbent is None:
            raise ValueError(
                "There is no champion to choose: neither a candidate nor an incumbent was given. "
                "Materialize the model assets of this cutoff first."
            )
        return use(incumbent, "stays: no candidate is newer", promoted=False)

    best = ranked[0]
    good = _auc(best) >= MINIMUM_AUC
    if incumbent is None:
        if good:
            return use(best, "is the best candidate and there is no incumbent", promoted=True)
        return use(
            best, f"is below the floor of {MINIMUM_AUC}, but there is no other", promoted=False
        )
    if not good:
        return use(incumbent, f"stays: {best} is below the floor of {MINIMUM_AUC}", promoted=False)
    by_chance = best.lead is not None and best.lead.low <= 0
    if _auc(best) >= _auc(incumbent) + SWITCH_MARGIN and not by_chance:
        return use(best, f"beats {incumbent} by {SWITCH_MARGIN} or more{_lead(best)}", True)
    renewed = next((c for c in ranked if c.model == incumbent.model), None)
    if renewed and _auc(renewed) >= max(_auc(incumbent) - REFRESH_TOLERANCE, MINIMUM_AUC):
        return use(
            renewed,
            f"renews {incumbent}; no other kind beats that by {SWITCH_MARGIN} and more than chance "
            f"explains{_lead(best) if best is not renewed else ''}",
            True,
        )
    return use(
        incumbent,
        f"stays: {best} does not beat it by {SWITCH_MARGIN} and more than chance explains"
        f"{_lead(best)}, and a newer fit of its own kind is missing or worse by more than "
        f"{REFRESH_TOLERANCE}",
        promoted=False,
    )


def _lead(graded: Graded) -> str:
    if graded.lead is None:
        return ""
    return f" (95 % interval {graded.lead.low:+.4f} to {graded.lead.high:+.4f})"


def _auc(graded: Graded) -> float:
    """The grade; below every other where the hold-out gave none."""
    return -1.0 if graded.roc_auc is None else graded.roc_auc
