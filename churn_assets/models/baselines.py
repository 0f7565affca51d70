"""What a model has to beat: rules that need no machine learning.

Each is fitted on training rows and gives P(churn) of other rows, from features that everybody has:
the base rate; a rule that knows only the days since the last purchase; and the BG/NBD model of
buying "until you die" (Fader, Hardie & Lee 2005), the customary answer to churn without a contract.
Nothing here knows cutoffs or files.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.models.estimators import Rows

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# Stands for the days since the last purchase of somebody who never bought: longer than all others.
NEVER = 100_000.0

# The four parameters of BG/NBD are good to two digits with so many customers, and the fit takes
# well under a second.
MOST_BG_NBD_ROWS = 10_000
# Real and simulated buying takes a hundred; a shop without any rhythm wanders on without gain.
MOST_EVALUATIONS = 300


def baselines(
    training: Rows, features: "pd.DataFrame", horizon_days: int
) -> "dict[str, np.ndarray]":
    """P(churn) of every row of `features` by each baseline that the training rows can carry.

    Args:
        training: Rows of mature cutoffs; without any there is no baseline.
        features: The rows to predict, with the columns of a training dataset.
        horizon_days: Length of the period without a purchase that counts as churn.

    Returns:
        By name, arrays of shape (n,).
    """
    if not len(training):
        return {}
    return {
        "base_rate": base_rate(training, features),
        "recency_rule": recency_rule(training, features),
        "bg_nbd": bg_nbd(training, features, horizon_days),
    }


def base_rate(training: Rows, features: "pd.DataFrame") -> "np.ndarray":
    """The training rows' share of churners, for everybody."""
    import numpy as np

    return np.full(len(features), training.churned.mean())


def recency_rule(training: Rows, features: "pd.DataFrame") -> "np.ndarray":
    """P(churn) never falls with the days since the last purchase, by isotonic regression."""
    import numpy as np
    from sklearn.isotonic import IsotonicRegression

    days, known = (
        since_purchase(frame).fillna(NEVER).to_numpy() for frame in (features, training.features)
    )
    rule = IsotonicRegression().fit(known, training.churned)
    return np.asarray(np.interp(days, rule.X_thresholds_, rule.y_thresholds_))


def since_purchase(features: "pd.DataFrame") -> "pd.Series":
    """Whole days since the last purchase ever, NaN without one.

    `recency_days` ends with the lookback. Beyond it, repeat buyers have it in their rhythm, and for
    those with one purchase day it is the tenure.
    """
    recency, overdue, gap, tenure = (
        features[name].astype("float64")
        for name in ("recency_days", "overdue_days", "gap_mean_days", "tenure_days")
    )
    return recency.fillna((overdue + gap).round()).fillna(tenure)


def bg_nbd(training: Rows, features: "pd.DataFrame", horizon_days: int) -> "np.ndarray":
    """P(no purchase within the horizon) by BG/NBD, fitted on the training rows' purchase days.

    Customers who never bought are outside the model; they get the share of churners (by Laplace's
    rule of succession) among such training rows. The same customer at several cutoffs counts as
    several, and customers without an event in the lookback are missing from both sides, so the
    parameters describe the rows at hand rather than everybody who ever bought.
    """
    import numpy as np

    known, new = _purchase_days(training.features), _purchase_days(features)
    never = training.churned[np.isnan(known.age)]
    result = np.full(len(features), (never.sum() + 1) / (len(never) + 2))
    buyers, bought = known.select(~np.isnan(known.age)), ~np.isnan(new.age)
    if len(buyers.age) and bought.any():
        step = -(-len(buyers.age) // MOST_BG_NBD_ROWS)
        model = fit_bg_nbd(buyers.select(slice(None, None, step)))
        result[bought] = model.no_purchase(new.select(bought), horizon_days)
    return result


@dataclass(frozen=True)
class PurchaseDays:
    """What BG/NBD knows of customers, arrays of shape (n,).

    Args:
        repeats: Purchase days after the first.
        last: Days from the first purchase day to the last; 0 without repeats.
        age: Days from the first purchase to now; NaN for those who never bought.
    """

    repeats: "np.ndarray"
    last: "np.ndarray"
    age: "np.ndarray"

    def select(self, rows: "np.ndarray | slice") -> "PurchaseDays":
        return PurchaseDays(self.repeats[rows], self.last[rows], self.age[rows])


def _purchase_days(features: "pd.DataFrame") -> PurchaseDays:
    """Days rather than orders, because two orders within hours say little about the rhythm.

    Their number follows from the mean gap between them, which is NULL for a single one.
    """
    gap = features["gap_mean_days"].astype("float64")
    age = features["tenure_days"].astype("float64")
    # Data that contradict themselves, a last purchase before the first, count as the first day.
    last = (age - since_purchase(features)).where(gap.notna(), 0.0).clip(lower=0)
    return PurchaseDays(
        (last / gap).round().fillna(0.0).to_numpy(), last.to_numpy(), age.to_numpy()
    )


@dataclass(frozen=True)
class BgNbd:
    """The beta-geometric/NBD model of Fader, Hardie & Lee (2005), Marketing Science 24(2).

    While alive, a customer buys as a Poisson process whose rate per day is gamma distributed; after
    each purchase the customer drops out with a probability that is beta distributed.

    Args:
        r: Shape of the purchase rate.
        alpha: Scale of the purchase rate, in days (its mean is r / alpha per day).
        a: First parameter of the dropout probability (its mean is a / (a + b)).
        b: Second parameter of the dropout probability.
    """

    r: float
    alpha: float
    a: float
    b: float

    def log_likelihood(self, known: PurchaseDays) -> "np.ndarray":
        """Of each customer, shape (n,): equation 6 of the paper."""
        import numpy as np
        from scipy.special import betaln, gammaln

        r, alpha, x = self.r, self.alpha, known.repeats
        alive = (
            gammaln(r + x)
            - gammaln(r)
            + r * np.log(alpha)
            - (r + x) * np.log(alpha + known.age)
            + betaln(self.a, self.b + x)
            - betaln(self.a, self.b)
        )
        result: np.ndarray = alive + np.log1p(self._dropped_out(known))
        return result

    def alive(self, known: PurchaseDays) -> "np.ndarray":
        """P(alive) of each customer, shape (n,); 1 without repeats, by the model's assumption."""
        return 1 / (1 + self._dropped_out(known))

    def no_purchase(self, known: PurchaseDays, days: float) -> "np.ndarray":
        """P(no purchase within the next `days`) of each customer, shape (n,).

        A customer who is alive stays so until the next purchase, and has a purchase rate that is
        gamma distributed with shape r + x and scale alpha + age.
        """
        quiet = (1 + days / (self.alpha + known.age)) ** -(self.r + known.repeats)
        return 1 - self.alive(known) * (1 - quiet)

    def _dropped_out(self, known: PurchaseDays) -> "np.ndarray":
        """The odds of having dropped out after the last purchase, shape (n,)."""
        import numpy as np

        x = known.repeats
        longer = (self.alpha + known.age) / (self.alpha + known.last)
        # Above every sum of weights that a float can tell from certainty, below its overflow.
        rate = np.exp(np.minimum((self.r + x) * np.log(longer), 700))
        return np.where(x > 0, self.a / (self.b + np.maximum(x, 1) - 1) * rate, 0.0)


def fit_bg_nbd(known: PurchaseDays) -> BgNbd:
    """The parameters of greatest likelihood, within bounds that keep a tiny sample finite."""
    import numpy as np
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    def cost(logs: "np.ndarray") -> float:
        return -float(BgNbd(*np.exp(logs)).log_likelihood(known).mean())

    with threadpool_limits(limits=1):
        found = minimize(
            cost,
            np.log([1, 30, 1, 3]),
            method="L-BFGS-B",
            bounds=[(-7, 7)] * 4,
            options={"maxfun": MOST_EVALUATIONS},
        )
    return BgNbd(*(float(x) for x in np.exp(found.x)))
