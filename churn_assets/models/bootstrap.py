"""The bootstrap: how much of a metric is chance (Efron 1979).

Customers are drawn with replacement and not by class: the share of churners is itself a matter of
chance, and with it held fixed, the intervals of all metrics but the ROC-AUC would be too narrow. A
resample that does not define a metric is left out of its interval. What the intervals cover is the
chance of which customers there are; neither a refit nor another month.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from churn_assets.models.grades import has_both_classes, roc_auc, tallies

if TYPE_CHECKING:
    import numpy as np

# The ends of a 95 % interval from so many resamples vary by an eighth of a standard error with the
# seed; four times as many would halve that.
RESAMPLES = 500


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


def paired_interval(
    labels: "np.ndarray", a: "np.ndarray", b: "np.ndarray", seed: int
) -> Interval | None:
    """A 95 % percentile bootstrap interval of ROC-AUC(a) - ROC-AUC(b) on the same customers.

    Both are graded on each resample, so what they have in common cancels out: the interval is much
    narrower than those of the two AUCs.

    Returns:
        None where the labels have one class only.
    """
    if not has_both_classes(labels):
        return None
    of_a, of_b = (tallies(labels, p, resamples(len(labels), seed)) for p in (a, b))
    pairs = zip(of_a, of_b, strict=True)
    return percentiles([roc_auc(x) - roc_auc(y) for x, y in pairs if x.both_classes])


def resamples(customers: int, seed: int) -> "Iterator[np.ndarray]":
    """As many row numbers as there are customers, with replacement, `RESAMPLES` times."""
    import numpy as np

    draw = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield draw.integers(0, customers, customers)


def percentiles(values: list[float]) -> Interval:
    """The middle 95 % of what the resamples gave."""
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))
