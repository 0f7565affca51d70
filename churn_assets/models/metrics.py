"""How good probabilities of churn are, and what acting on them is worth.

Nothing here knows models, cutoffs or files: labels and probabilities in, numbers out. The hold-out,
the comparison with the incumbent and the realised outcome are graded by the same functions.

Every metric is computed from a tally: how many churned and how many stayed at each probability. It
makes a resample cost milliseconds, and customers of equal probability are one step in it, so no
metric depends on the order of rows. Sums are numpy's own, never BLAS products, whose last bits
differ with the number of threads.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from churn_assets.settings import Settings

if TYPE_CHECKING:
    import numpy as np

# Groups of the calibration error. Ten of equal size keep about 200 customers in each on the
# smallest real shop at hand (1,800 customers), where a group's churn rate is good to ±3 points.
CALIBRATION_GROUPS = 10

# A campaign reaches about so many: the share of customers that the lift looks at.
LIFT_SHARE = 0.1

# The ends of a 95 % interval from so many resamples vary by an eighth of a standard error with the
# seed; four times as many would halve that.
RESAMPLES = 500


@dataclass(frozen=True)
class Economics:
    """What contacting a customer is worth: `p * save_rate * customer_value - contact_cost`.

    Args:
        customer_value: Margin that a customer who stays brings, in currency.
        contact_cost: Cost of contacting one, in currency.
        save_rate: Share of contacted churners who stay because of it, in (0, 1].

    Raises:
        ValueError: A value with which no threshold makes sense.
    """

    customer_value: float = 60.0
    contact_cost: float = 6.0
    save_rate: float = 0.2

    def __post_init__(self) -> None:
        if self.customer_value <= 0 or self.contact_cost < 0 or not 0 < self.save_rate <= 1:
            raise ValueError(
                "The profit of contacting a customer needs CHURN_CUSTOMER_VALUE > 0, "
                "CHURN_CONTACT_COST >= 0 and 0 < CHURN_SAVE_RATE <= 1; they are "
                f"{self.customer_value}, {self.contact_cost} and {self.save_rate}."
            )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The economics that the settings declare."""
        return cls(settings.customer_value, settings.contact_cost, settings.save_rate)

    @property
    def threshold(self) -> float:
        """The probability of churn from which contacting pays; above 1 it never does."""
        return self.contact_cost / (self.save_rate * self.customer_value)

    def profit(self, contacted: Any, churners: Any) -> Any:
        """Currency that contacting so many customers brings, so many of whom would churn."""
        return churners * self.save_rate * self.customer_value - contacted * self.contact_cost


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
    return next(_tallies(labels, probabilities, [slice(None)]))


def _tallies(
    labels: "np.ndarray", probabilities: "np.ndarray", selections: Iterable[Any]
) -> Iterator[Tally]:
    """A tally of each selection of rows."""
    import numpy as np

    distinct, ranks = np.unique(probabilities, return_inverse=True)
    cells = 2 * ranks + np.asarray(labels, dtype=ranks.dtype)
    for rows in selections:
        counts = np.bincount(cells[rows], minlength=2 * len(distinct))
        yield Tally(distinct, churned=counts[1::2], stayed=counts[::2])


def grade(
    labels: "np.ndarray", probabilities: "np.ndarray", economics: Economics
) -> Mapping[str, float]:
    """Metrics of probabilities of churn against what happened.

    Equal to scikit-learn's of the same name. `lift_at_10_percent` is the share of churners among
    the tenth of customers with the highest probability, over their share among all; at the edge of
    that tenth, customers of equal probability count in proportion.

    A metric that the labels do not define is left out: all of them without rows, the AUCs, the
    lift, the recall and F1 where there is one class only.

    Args:
        labels: 1 where the customer churned, else 0; shape (n,).
        probabilities: P(churn), shape (n,).
        economics: Gives the threshold and the profit.
    """
    return _grade(tally(labels, probabilities), economics)


def _grade(counts: Tally, economics: Economics) -> dict[str, float]:
    import numpy as np

    p, churned, stayed = counts.probabilities, counts.churned, counts.stayed
    customers, churners = counts.below[-1], counts.churned_below[-1]
    if not customers:
        return {}
    first = np.searchsorted(p, economics.threshold)
    hits = churners - counts.churned_below[first]
    contacted = customers - counts.below[first]
    tiny = np.finfo("float64").eps
    surprise = -(churned * np.log(p.clip(tiny, 1)) + stayed * np.log((1 - p).clip(tiny, 1)))
    result = {
        "brier": (churned * (1 - p) ** 2 + stayed * p**2).sum() / customers,
        "log_loss": surprise.sum() / customers,
        "calibration_error": _calibration_error(counts),
        "accuracy": 1 - (churners + contacted - 2 * hits) / customers,
        "precision": hits / max(contacted, 1),
        "profit_per_customer": economics.profit(contacted, hits) / customers,
    }
    if counts.both_classes:
        # Among the customers at or above each probability; a resample may have none at the top.
        precision = (churners - counts.churned_below[:-1]) / (customers - counts.below[:-1]).clip(1)
        lower = counts.churned_among_lowest(1 - LIFT_SHARE)
        result |= {
            "roc_auc": _roc_auc(counts),
            "pr_auc": (churned * precision).sum() / churners,
            "recall": hits / churners,
            "f1": 2 * hits / (churners + contacted),
            "lift_at_10_percent": (churners - lower) / churners / LIFT_SHARE,
        }
    return {name: float(value) for name, value in result.items()}


def _roc_auc(counts: Tally) -> float:
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


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


def intervals(
    labels: "np.ndarray", probabilities: "np.ndarray", economics: Economics, seed: int
) -> Mapping[str, Interval]:
    """A 95 % percentile bootstrap interval of every metric of `grade` (Efron 1979).

    Customers are drawn with replacement and not by class: the share of churners is itself a matter
    of chance, and with it held fixed, the intervals of all metrics but the ROC-AUC would be too
    narrow. A resample that does not define a metric is left out of its interval. What the intervals
    cover is the chance of which customers there are; neither a refit nor another month. The
    calibration error is a sum of distances, which chance can only lengthen: its interval lies
    rather high.

    Args:
        labels: See `grade`.
        probabilities: See `grade`.
        economics: See `grade`.
        seed: The same seed and number of customers give the same resamples.
    """
    samples = _tallies(labels, probabilities, _resamples(len(labels), seed))
    drawn = [_grade(sample, economics) for sample in samples]
    return {
        name: _interval([metrics[name] for metrics in drawn if name in metrics])
        for name in grade(labels, probabilities, economics)
    }


def paired_interval(
    labels: "np.ndarray", a: "np.ndarray", b: "np.ndarray", seed: int
) -> Interval | None:
    """A 95 % percentile bootstrap interval of ROC-AUC(a) - ROC-AUC(b) on the same customers.

    Both are graded on each resample, so what they have in common cancels out: the interval is much
    narrower than those of the two AUCs. See `intervals`.

    Returns:
        None where the labels have one class only.
    """
    if not has_both_classes(labels):
        return None
    of_a, of_b = (_tallies(labels, p, _resamples(len(labels), seed)) for p in (a, b))
    pairs = zip(of_a, of_b, strict=True)
    return _interval([_roc_auc(x) - _roc_auc(y) for x, y in pairs if x.both_classes])


def _resamples(customers: int, seed: int) -> "Iterator[np.ndarray]":
    """As many row numbers as there are customers, with replacement, `RESAMPLES` times."""
    import numpy as np

    draw = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield draw.integers(0, customers, customers)


def _interval(values: list[float]) -> Interval:
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def has_both_classes(labels: Any) -> bool:
    """Whether there are both customers who churned and customers who did not."""
    return len(set(labels)) == 2
