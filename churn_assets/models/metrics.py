"""Metrics: the grade of probabilities, and what contacting from a threshold on brings.

What contacting is worth (`Economics`) decides the threshold and whatever is counted there. It is
shown beside a model and is no part of it: with other economics the models are the same. What
probabilities alone are graded by is in `models.grades`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from churn_assets.models.bootstrap import Interval, percentiles, resamples
from churn_assets.models.grades import Tally, grade_of, tallies, tally
from churn_assets.settings import Settings

if TYPE_CHECKING:
    import numpy as np


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


def intervals(
    labels: "np.ndarray", probabilities: "np.ndarray", economics: Economics, seed: int
) -> Mapping[str, Interval]:
    """A 95 % interval of every metric of `assess`, by `models.bootstrap`.

    The calibration error is a sum of distances, which chance can only lengthen: its interval lies
    rather high.

    Args:
        labels: See `assess`.
        probabilities: See `assess`.
        economics: See `assess`.
        seed: The same seed and number of customers give the same resamples.
    """
    samples = tallies(labels, probabilities, resamples(len(labels), seed))
    drawn = [_assess(sample, economics) for sample in samples]
    return {
        name: percentiles([metrics[name] for metrics in drawn if name in metrics])
        for name in assess(labels, probabilities, economics)
    }
