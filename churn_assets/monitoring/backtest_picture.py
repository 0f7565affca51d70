"""The picture of the backtest: AUC promised and realised, cutoff by cutoff."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.models.bootstrap import Interval
from churn_assets.stores.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    legend_below,
    sentence,
    titled_figure,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    Curves = Mapping[str, np.ndarray]

MOST_TICKS = 24


@dataclass(frozen=True)
class WalkForward:
    """How a cutoff's champion was expected to do and did.

    Args:
        cutoff: The cutoff it predicted at.
        champion: Its kind.
        estimated: ROC-AUC on the hold-out when it was chosen; None where there was none.
        realised: ROC-AUC of its predictions; None while the labels are not mature.
        interval: Of `realised`.
        best: ROC-AUC of the true probabilities, where somebody knows them.
        recency: ROC-AUC of the recency rule.
    """

    cutoff: dt.date
    champion: str
    estimated: float | None = None
    realised: float | None = None
    interval: Interval | None = None
    best: float | None = None
    recency: float | None = None


def walk_forward(rows: Sequence[WalkForward], subject: str) -> "Figure":
    """ROC-AUC over cutoffs, as estimated on the hold-out and as realised."""
    if not rows:
        return sentence("Walk-forward backtest", subject, "There are no predictions yet.")
    figure, axes = titled_figure("Walk-forward backtest", subject, height=6)
    rows = sorted(rows, key=lambda row: row.cutoff)
    days = [row.cutoff for row in rows]
    for name, values, marker, color, line in (
        ("best possible", [row.best for row in rows], "x", BLACK, ":"),
        ("realised", [row.realised for row in rows], "o", VERMILLION, "-"),
        ("estimated on the hold-out", [row.estimated for row in rows], "s", BLUE, "--"),
        ("recency rule", [row.recency for row in rows], "^", GREEN, "-."),
    ):
        known = [value for value in values if value is not None]
        if known:
            axes.plot(
                days,
                [float("nan") if value is None else value for value in values],
                color=color,
                linestyle=line,
                marker=marker,
                markersize=5,
                label=f"{name}: mean {sum(known) / len(known):.3f}",
            )
    lows, highs = zip(*(row.interval or (float("nan"),) * 2 for row in rows), strict=True)
    if any(row.interval for row in rows):
        label = "95 % interval of the realised"
        axes.fill_between(days, lows, highs, color=VERMILLION, alpha=0.15, lw=0, label=label)
    champions = ["", *(row.champion for row in rows)]
    for day, before, now in zip(days, champions, champions[1:], strict=False):
        if now != before:
            axes.axvline(day, color=GREY, linewidth=1, linestyle=(0, (2, 4)))
            axes.annotate(now, (day, 1.01), xycoords=("data", "axes fraction"), rotation=20)
    axes.set(xlabel="cutoff", ylabel="ROC-AUC")
    shown = days[:: -(-len(days) // MOST_TICKS)]
    axes.set_xticks(shown, [str(day) for day in shown], rotation=45, ha="right", fontsize=9)
    legend_below(figure, axes)
    return figure
