"""How good probabilities of churn are, and what acting on them is worth.

Nothing here knows models, cutoffs or files: labels and probabilities in, numbers out. The hold-out,
the comparison with the incumbent and the realised outcome are graded by the same functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Groups of the calibration error. Ten of equal size keep about 200 customers in each on the
# smallest real shop at hand (1,800 customers), where a group's churn rate is good to ±3 points.
CALIBRATION_GROUPS = 10


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

    @property
    def threshold(self) -> float:
        """The probability of churn from which contacting pays; above 1 it never does."""
        return self.contact_cost / (self.save_rate * self.customer_value)

    def profit(self, labels: "np.ndarray", contacted: "np.ndarray") -> float:
        """Profit per customer, in currency, of contacting those that `contacted` marks."""
        worth = labels * self.save_rate * self.customer_value - self.contact_cost
        return float((worth * contacted).mean())


def grade(
    labels: "np.ndarray", probabilities: "np.ndarray", economics: Economics
) -> Mapping[str, float]:
    """Metrics of probabilities of churn against what happened.

    A metric that the labels do not define is left out: all of them without rows, the AUCs and the
    recall where there is one class only.

    Args:
        labels: 1 where the customer churned, else 0; shape (n,).
        probabilities: P(churn), shape (n,).
        economics: Gives the threshold and the profit.
    """
    from sklearn import metrics

    if not len(labels):
        return {}
    contacted = probabilities >= economics.threshold
    result = {
        "brier": metrics.brier_score_loss(labels, probabilities, labels=[0, 1]),
        "log_loss": metrics.log_loss(labels, probabilities, labels=[0, 1]),
        "calibration_error": calibration_error(labels, probabilities),
        "accuracy": metrics.accuracy_score(labels, contacted),
        "precision": metrics.precision_score(labels, contacted, zero_division=0),
        "profit_per_customer": economics.profit(labels, contacted),
    }
    if has_both_classes(labels):
        result |= {
            "roc_auc": metrics.roc_auc_score(labels, probabilities),
            "pr_auc": metrics.average_precision_score(labels, probabilities),
            "recall": metrics.recall_score(labels, contacted),
            "f1": metrics.f1_score(labels, contacted),
        }
    return {name: float(value) for name, value in result.items()}


def calibration_error(labels: "np.ndarray", probabilities: "np.ndarray") -> float:
    """Mean distance of predicted from observed churn, over groups of equal size by probability."""
    import numpy as np

    order = np.argsort(probabilities, kind="stable")
    groups = [g for g in np.array_split(order, CALIBRATION_GROUPS) if len(g)]
    distances = [abs(probabilities[g].mean() - labels[g].mean()) * len(g) for g in groups]
    return float(sum(distances) / len(labels))


def has_both_classes(labels: Any) -> bool:
    """Whether there are both customers who churned and customers who did not."""
    return len(set(labels)) == 2
