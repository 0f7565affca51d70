"""Metrics: the grade of probabilities, what contacting from a threshold on brings, and by chance.

What contacting is worth (`Economics`) decides the threshold and whatever is counted there. It is
shown beside a model and is no part of it: with other economics the models are the same. Intervals
are bootstrapped over customers. What probabilities alone are graded by is in `models.grades`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from churn_assets.models.grades import Tally, grade_of, has_both_classes, roc_auc, tallies, tally
from churn_assets.settings import Settings

if TYPE_CHECKING:
    import numpy as np

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


def assess(
    labels: "np.ndarray", probabilities: "np.ndarray", economics: Economics
) -> Mapping[str, float]:
    """The grade of probabilities of churn, and how contacting from the threshold on would do.

    Equal to scikit-learn's metrics of the same name. A metric that the labels do not define is left
    out: besides those of `models.grades.grade` the recall and F1 where there is one class only.

    Args:
        labels: 1 where the customer churned, else 0; shape (n,).
        probabilities: P(churn), shape (n,).
        economics: Gives the threshold and the profit.
    """
    return _assess(tally(labels, probabilities), economics)


def _assess(counts: Tally, economics: Economics) -> dict[str, float]:
    import numpy as np

    customers, churners = counts.below[-1], counts.churned_below[-1]
    if not customers:
        return {}
    first = np.searchsorted(counts.probabilities, economics.threshold)
    hits = churners - counts.churned_below[first]
    contacted = customers - counts.below[first]
    result = {
        "accuracy": 1 - (churners + contacted - 2 * hits) / customers,
        "precision": hits / max(contacted, 1),
        "profit_per_customer": economics.profit(contacted, hits) / customers,
    }
    if counts.both_classes:
        result |= {"recall": hits / churners, "f1": 2 * hits / (churners + contacted)}
    return grade_of(counts) | {name: float(value) for name, value in result.items()}


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


def intervals(
    labels: "np.ndarray", probabilities: "np.ndarray", economics: Economics, seed: int
) -> Mapping[str, Interval]:
    """A 95 % percentile bootstrap interval of every metric of `assess` (Efron 1979).

    Customers are drawn with replacement and not by class: the share of churners is itself a matter
    of chance, and with it held fixed, the intervals of all metrics but the ROC-AUC would be too
    narrow. A resample that does not define a metric is left out of its interval. What the intervals
    cover is the chance of which customers there are; neither a refit nor another month. The
    calibration error is a sum of distances, which chance can only lengthen: its interval lies
    rather high.

    Args:
        labels: See `assess`.
        probabilities: See `assess`.
        economics: See `assess`.
        seed: The same seed and number of customers give the same resamples.
    """
    samples = tallies(labels, probabilities, _resamples(len(labels), seed))
    drawn = [_assess(sample, economics) for sample in samples]
    return {
        name: _interval([metrics[name] for metrics in drawn if name in metrics])
        for name in assess(labels, probabilities, economics)
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
    of_a, of_b = (tallies(labels, p, _resamples(len(labels), seed)) for p in (a, b))
    pairs = zip(of_a, of_b, strict=True)
    return _interval([roc_auc(x) - roc_auc(y) for x, y in pairs if x.both_classes])


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
