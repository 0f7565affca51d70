"""The true churn probability of the synthetic shop's customers, in closed form.

From the process of `sources.shop` (Schmittlein, Morrison & Colombo 1987): all activity is Poisson
while a customer is alive and stops at dropout. It serves evaluation only.
"""

import numpy as np
import numpy.typing as npt

from churn_assets.sources.arrays import Array


def churn_probability(
    purchase_rate: npt.ArrayLike,
    dropout_rate: npt.ArrayLike,
    activity_rate: npt.ArrayLike,
    days_since_last_activity: npt.ArrayLike,
    horizon_days: float,
) -> Array:
    """P(no purchase in the next `horizon_days`), given the true rates per day.

    Activity is any visit, purchases included, counted from the instant it begins; the last event
    comes minutes later and serves as well. Without a visit, count from max(born_at, start).
    """
    buying, leaving, active, quiet = (
        np.asarray(value, dtype=np.float64)
        for value in (purchase_rate, dropout_rate, activity_rate, days_since_last_activity)
    )
    # exp overflows beyond 709; at 600 nobody is alive to 15 digits
    silence = np.expm1(np.minimum((active + leaving) * quiet, 600.0))
    alive = 1 / (1 + leaving / (active + leaving) * silence)
    either = buying + leaving
    buys_before_leaving = buying / either * -np.expm1(-either * horizon_days)
    return np.asarray(1 - alive * buys_before_leaving)
