"""Grades: how good probabilities of churn are, whatever is done about them.

All of it is counted from a tally: how many customers churned and stayed at each distinct
probability. A bootstrap therefore sorts the customers once instead of once per resample. Sums run
in one order, by cumulation and not by matrix products, whose last bits differ with the number of
threads.

A grade decides which model is used and is part of what a model is. What contacting customers is
worth decides neither: it is in `models.metrics`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Groups of the calibration error. Ten of equal size keep about 200 customers in each on the
# smallest real shop at hand (1,800 customers), where a group's churn rate is good to ±3 points.
CALIBRATION_GROUPS = 10

# A campaign reaches about so many: the share of customers that the lift looks at.
LIFT_SHARE = 0.1


@dataclass(frozen=True)
class Tally:
    """How many customers churned and stayed at each probability.

    Args:
        probabilities: Distinct ones, ascending; shape (k,).
        churned: Customers who churned, shape (k,).
        stayed: Customers who did not, shape (k,).
    """

    probabilities: "np.ndarray"
    churned: "np.ndarray"
    stayed: "np.ndarray"

    @property
    def both_classes(self) -> bool:
        """Whether there are both customers who churned and customers who stayed."""
        return bool(self.churned.any() and self.stayed.any())

    @cached_property
    def below(self) -> "np.ndarray":
        """Customers below each probability and, last, all of them; shape (k + 1,)."""
        return _sums(self.churned + self.stayed)

    @cached_property
    def churned_below(self) -> "np.ndarray":
        """Those of them who churned, shape (k + 1,)."""
        return _sums(self.churned)

    def churned_among_lowest(self, share: Any) -> Any:
        """Churners among the `share` (0 to 1, any shape) with the lowest probabilities.

        Where that ends within customers of equal probability, they count in proportion.
        """
        return self._among_lowest(share, self.churned_below)

    def predicted_among_lowest(self, share: Any) -> Any:
        """The sum of their probabilities."""
        return self._among_lowest(share, _sums((self.churned + self.stayed) * self.probabilities))

    def _among_lowest(self, share: Any, sums: "np.ndarray") -> Any:
        import numpy as np

        return np.interp(share * self.below[-1], self.below, sums)


def _sums(amounts: "np.ndarray") -> "np.ndarray":
    """The sum of all amounts before each and, last, of all; shape (k + 1,)."""
    import numpy as np

    return np.concatenate([[0], amounts.cumsum()])


def tally(labels: "np.ndarray", probabilities: "np.ndarray") -> Tally:
    """The tally of all customers; see `grade` for the arguments."""
    return next(tallies(labels, probabilities, [slice(None)]))


def tallies(
    labels: "np.ndarray", probabilities: "np.ndarray", selections: Iterable[Any]
) -> Iterator[Tally]:
    """A tally of each selection of rows."""
    import numpy as np

    distinct, ranks = np.unique(probabilities, return_inverse=True)
    cells = 2 * ranks + np.asarray(labels, dtype=ranks.dtype)
    for rows in selections:
        counts = np.bincount(cells[rows], minlength=2 * len(distinct))
        yield Tally(distinct, churned=counts[1::2], stayed=counts[::2])


def grade(labels: "np.ndarray", probabilities: "np.ndarray") -> Mapping[str, float]:
    """The grade of probabilities of churn against what happened.

    Equal to scikit-learn's metrics of the same name. `lift_at_10_percent` is the share of churners
    among the tenth of customers with the highest probability, over their share among all; at the
    edge of that tenth, customers of equal probability count in proportion.

    A metric that the labels do not define is left out: all of them without rows, the AUCs and the
    lift where there is one class only.

    Args:
        labels: 1 where the customer churned, else 0; shape (n,).
        probabilities: P(churn), shape (n,).
    """
    return grade_of(tally(labels, probabilities))


def grade_of(counts: Tally) -> dict[str, float]:
    """As `grade`, from a tally."""
    import numpy as np

    p, churned, stayed = counts.probabilities, counts.churned, counts.stayed
    customers, churners = counts.below[-1], counts.churned_below[-1]
    if not customers:
        return {}
    tiny = np.finfo("float64").eps
    surprise = -(churned * np.log(p.clip(tiny, 1)) + stayed * np.log((1 - p).clip(tiny, 1)))
    result = {
        "brier": (churned * (1 - p) ** 2 + stayed * p**2).sum() / customers,
        "log_loss": surprise.sum() / customers,
        "calibration_error": _calibration_error(counts),
    }
    if counts.both_classes:
        # Among the customers at or above each probability; a resample may have none at the top.
        precision = (churners - counts.churned_below[:-1]) / (customers - counts.below[:-1]).clip(1)
        lower = counts.churned_among_lowest(1 - LIFT_SHARE)
        result |= {
            "roc_auc": roc_auc(counts),
            "pr_auc": (churned * precision).sum() / churners,
            "lift_at_10_percent": (churners - lower) / churners / LIFT_SHARE,
        }
    return {name: float(value) for name, value in result.items()}


def roc_auc(counts: Tally) -> float:
    """The share of pairs of a churner and a stayer that are in order, ties counted as half."""
    below = counts.below - counts.churned_below
    ordered = (counts.churned * (below[:-1] + below[1:])).sum() / 2
    return float(ordered / (counts.churned_below[-1] * below[-1]))


def calibration_groups(counts: Tally) -> "tuple[np.ndarray, np.ndarray]":
    """Predicted and observed share of churners, each of shape (CALIBRATION_GROUPS,).

    The groups have equally many customers, ordered by probability; one that lies in two groups
    counts in both in proportion.
    """
    import numpy as np

    ends = np.linspace(0, 1, CALIBRATION_GROUPS + 1)
    predicted, observed = (
        np.diff(sums) * CALIBRATION_GROUPS / counts.below[-1]
        for sums in (counts.predicted_among_lowest(ends), counts.churned_among_lowest(ends))
    )
    return predicted, observed


def calibration_error(labels: "np.ndarray", probabilities: "np.ndarray") -> float:
    """Mean distance of predicted from observed churn, over groups of equal size by probability."""
    return _calibration_error(tally(labels, probabilities))


def _calibration_error(counts: Tally) -> float:
    predicted, observed = calibration_groups(counts)
    return float(abs(predicted - observed).mean())


def has_both_classes(labels: Any) -> bool:
    """Whether there are both customers who churned and customers who did not."""
    return len(set(labels)) == 2
