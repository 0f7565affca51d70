"""Plots of how good a model is and of how data moves, as figures that need no display.

Each is a pure function of numbers. What cannot be drawn, because there are no rows or one class
only, is said in the plot instead. Figures are made without pyplot, which keeps every figure alive
and is not safe in threads. They are made for a column of 800 pixels.

`subject` names the model and the rows, for example "xgboost_model of 2026-10-01, hold-out
2026-09-01". `curves` are P(churn) of the same customers by one or more models, each of shape (n,),
the one that matters first. `labels` are 1 where the customer churned, else 0, shape (n,).
"""

import base64
import datetime as dt
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from churn_assets.metrics import (
    Economics,
    Interval,
    calibration_groups,
    has_both_classes,
    tally,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Curves = Mapping[str, np.ndarray]

NOBODY = "There are no customers."

# Okabe & Ito (2008): told apart with every kind of colour blindness. Lines differ in style too.
BLUE, VERMILLION, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
GREY = "#767676"
LINES = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, "-"), (BLACK, ":"))

WIDTH_INCHES = 8.0
PIXELS_PER_INCH = 100
BINS = 40
MOST_BARS = 20
# What the customers with the very highest probabilities do is chance: curves begin at this share.
SEEN_FROM = 0.01
MOST_TICKS = 24


def png(figure: "Figure") -> bytes:
    """The figure as an image that is small enough to stand in an event log.

    A palette makes four curves 28 kB instead of 120 kB; no colour is visibly off.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    small = io.BytesIO()
    image = drawn.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def markdown_image(image: bytes, description: str) -> str:
    """Markdown that carries a PNG within itself, for `dg.MetadataValue.md`."""
    return f"![{description}](data:image/png;base64,{base64.b64encode(image).decode()})"


def roc(labels: "np.ndarray", curves: "Curves", subject: str) -> "Figure":
    """The share of churners found against that of stayers bothered, over all thresholds."""
    from sklearn.metrics import auc, roc_curve

    if why := _one_class(labels):
        return _sentence("ROC curve", subject, why)
    figure, axes = _figure(_of("ROC curve", labels), subject, height=6)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance: AUC 0.500")
    for (name, probabilities), line in _styled(curves):
        bothered, found, _ = roc_curve(labels, probabilities)
        axes.plot(bothered, found, label=f"{name}: AUC {auc(bothered, found):.3f}", **line)
    axes.set(xlabel="stayed, but at or above the threshold", ylabel="churners found (recall)")
    _percent(axes.xaxis, axes.yaxis)
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    return figure


def precision_recall(labels: "np.ndarray", curves: "Curves", subject: str) -> "Figure":
    """The share of churners among those contacted against the share of churners found."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    if why := _one_class(labels):
        return _sentence("Precision and recall", subject, why)
    figure, axes = _figure(_of("Precision and recall", labels), subject)
    base = labels.mean()
    axes.axhline(base, color=GREY, linestyle=":", label=f"base rate: {base:.3f}")
    for (name, probabilities), line in _styled(curves):
        precision, recall, _ = precision_recall_curve(labels, probabilities)
        area = average_precision_score(labels, probabilities)
        seen = recall >= SEEN_FROM
        # A step is the precision at a threshold; a straight line between two would promise more.
        axes.step(
            recall[seen], precision[seen], where="post", label=f"{name}: PR-AUC {area:.3f}", **line
        )
    axes.set(xlabel="churners found (recall)", ylabel="churners among contacted (precision)")
    axes.set_ylim(0, 1.02)
    _percent(axes.xaxis, axes.yaxis)
    axes.legend(loc="lower left", frameon=False)
    return figure


def confusion_matrix(
    labels: "np.ndarray", probabilities: "np.ndarray", threshold: float, subject: str
) -> "Figure":
    """Customers by what was predicted at the threshold and by what they did."""
    import numpy as np
    from sklearn import metrics

    if not len(labels):
        return _sentence("Confusion matrix", subject, NOBODY)
    figure, axes = _figure(_of("Confusion matrix", labels), subject)
    counts = metrics.confusion_matrix(labels, probabilities >= threshold, labels=[0, 1])
    of_actual = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(of_actual, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (actual, predicted), count in np.ndenumerate(counts):
        share = of_actual[actual, predicted]
        axes.text(
            predicted,
            actual,
            f"{count:,}\n{share:.0%} of the row",
            ha="center",
            va="center",
            fontsize=13,
            color="white" if share > 0.65 else "black",
        )
    axes.set_xticks([0, 1], [f"RETAIN\nbelow {threshold:.3g}", f"CHURN RISK\n{threshold:.3g} up"])
    axes.set_yticks([0, 1], [f"stayed\n{(labels == 0).sum():,}", f"churned\n{labels.sum():,}"])
    axes.set(xlabel="predicted", ylabel="happened")
    axes.grid(visible=False)
    return figure


def feature_importance(values: Mapping[str, float], subject: str) -> "Figure":
    """The largest of `importance.importance`, as bars."""
    if not any(values.values()):
        why = "No feature matters to this model on these customers."
        return _sentence("Feature importance", subject, why)
    figure, axes = _figure("Feature importance", subject, height=6)
    largest = sorted(values.items(), key=lambda item: -item[1])[:MOST_BARS]
    names, sizes = zip(*reversed(largest), strict=True)
    axes.barh(names, sizes, color=BLUE)
    axes.axvline(0, color=GREY, linewidth=1)
    rest = len(values) - len(largest)
    axes.set(
        xlabel="mean size of its contribution to what the model says of a customer"
        + (f"\n{rest} more features matter less" if rest else "")
    )
    axes.grid(visible=False, axis="y")
    return figure


def calibration(labels: "np.ndarray", curves: "Curves", subject: str) -> "Figure":
    """Predicted against observed churn in ten groups of equal size, and customers by P(churn)."""
    if not len(labels):
        return _sentence("Calibration", subject, NOBODY)
    figure, (axes, below) = _figure(
        _of("Calibration", labels),
        subject,
        height=7,
        nrows=2,
        sharex=True,
        height_ratios=[3, 1],
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.axhline(labels.mean(), color=GREY, linewidth=1, label=f"base rate: {labels.mean():.3f}")
    for number, ((name, probabilities), line) in enumerate(_styled(curves)):
        predicted, observed = calibration_groups(tally(labels, probabilities))
        error = abs(predicted - observed).mean()
        label = f"{name}: mean error {error:.3f}"
        if number == 0:
            size = len(labels) / len(observed)
            axes.vlines(predicted, *_wilson(observed, size), color=line["color"])
            label += f", bars: 95 % for {size:,.3g} customers"
        axes.plot(predicted, observed, marker="o", label=label, **line)
        below.hist(probabilities, BINS, range=(0, 1), histtype="step", **line)
    axes.set(ylabel="churned", xlim=(0, 1), ylim=(-0.02, 1.02))
    below.set(xlabel="predicted probability of churn", ylabel="customers")
    _percent(below.xaxis, axes.yaxis)
    _legend_below(figure, axes)
    return figure


def score_distribution(
    labels: "np.ndarray", probabilities: "np.ndarray", threshold: float, subject: str
) -> "Figure":
    """Customers by P(churn), those who stayed and those who churned."""
    if not len(labels):
        return _sentence("Predicted probabilities", subject, NOBODY)
    figure, axes = _figure(_of("Predicted probabilities", labels), subject)
    for label, name, color, hatch in ((0, "stayed", BLUE, ""), (1, "churned", VERMILLION, "//")):
        chosen = probabilities[labels == label]
        mean = f", mean {chosen.mean():.3f}" if len(chosen) else ""
        axes.hist(
            chosen,
            BINS,
            range=(0, 1),
            histtype="stepfilled",
            alpha=0.55,
            color=color,
            edgecolor=color,
            hatch=hatch,
            label=f"{name}: {len(chosen):,}{mean}",
        )
    contacted = f"threshold {threshold:.3g}: {(probabilities >= threshold).mean():.0%} contacted"
    axes.axvline(min(threshold, 1), color=BLACK, linestyle="--", label=contacted)
    axes.set(xlabel="predicted probability of churn", ylabel="customers", xlim=(0, 1))
    _percent(axes.xaxis)
    axes.legend(frameon=False)
    return figure


def lift_and_profit(
    labels: "np.ndarray", curves: "Curves", economics: Economics, subject: str
) -> "Figure":
    """What contacting the customers with the highest P(churn) gives, by how many are contacted."""
    import numpy as np

    if not len(labels):
        return _sentence("Lift and profit", subject, NOBODY)
    figure, (lift, profit) = _figure(_of("Lift and profit", labels), subject, ncols=2)
    shares = np.linspace(0, 1, 201)
    seen = shares >= SEEN_FROM
    base = labels.mean()
    lift.axhline(1, color=GREY, linestyle=":")
    profit.plot([0, 1], [0, economics.profit(1, base)], color=GREY, linestyle=":", label="chance")
    for (name, probabilities), line in _styled(curves):
        counts = tally(labels, probabilities)
        contacted = (probabilities >= economics.threshold).mean()
        # The last is the chosen threshold, drawn as a dot.
        of_all = np.append(shares, contacted)
        churned = base - counts.churned_among_lowest(1 - of_all) / len(labels)
        earned = economics.profit(of_all, churned)
        profit.plot(shares, earned[:-1], label=f"{name}: {earned[-1]:.2f}", **line)
        profit.plot(contacted, earned[-1], "o", color=line["color"])
        if base:
            lifted = churned / of_all.clip(SEEN_FROM) / base
            lift.plot(shares[seen], lifted[:-1][seen], **line)
            if contacted >= SEEN_FROM:
                lift.plot(contacted, lifted[-1], "o", color=line["color"])
    lift.set(xlabel="customers contacted", ylabel=f"lift over the base rate of {base:.1%}")
    profit.set(xlabel="customers contacted", ylabel="profit per customer")
    _percent(lift.xaxis, profit.xaxis)
    if not base:
        _write(lift, "Nobody churned:\nthere is no lift.")
    title = f"profit per customer at the threshold of {economics.threshold:.3g}, the dot"
    _legend_below(figure, profit, title)
    return figure


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
        return _sentence("Walk-forward backtest", subject, "There are no predictions yet.")
    figure, axes = _figure("Walk-forward backtest", subject, height=6)
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
    _legend_below(figure, axes)
    return figure


def sentiment_histogram(values: "np.ndarray", subject: str) -> "Figure":
    """Sentiment scores from -1 to 1, NaN left out."""
    import numpy as np

    known = values[~np.isnan(values)]
    if not len(known):
        return _sentence("Sentiment", subject, "There are no reviews with a sentiment.")
    figure, axes = _figure("Sentiment", subject, height=4)
    axes.hist(known, BINS, range=(-1, 1), color=BLUE)
    axes.axvline(0, color=GREY, linestyle=":", label="neutral")
    axes.axvline(known.mean(), color=VERMILLION, linestyle="--", label=f"mean {known.mean():.3f}")
    axes.set(xlabel="sentiment", ylabel=f"number of {len(known):,}", xlim=(-1, 1))
    axes.legend(frameon=False)
    return figure


def _figure(name: str, subject: str, height: float = 5, **grid: Any) -> "tuple[Figure, Any]":
    """A titled figure with its axes."""
    from matplotlib.figure import Figure

    size = (WIDTH_INCHES, height)
    figure = Figure(figsize=size, dpi=PIXELS_PER_INCH, layout="constrained")
    figure.suptitle(f"{name}\n{subject}", fontsize=12)
    axes = figure.subplots(**grid)
    for one in figure.axes:
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _of(name: str, labels: "np.ndarray") -> str:
    return f"{name}: {len(labels):,} customers, {labels.mean():.1%} churned"


def _sentence(name: str, subject: str, why: str) -> "Figure":
    """What stands in place of a plot that cannot be drawn."""
    figure, axes = _figure(name, subject, height=2)
    _write(axes, why)
    return figure


def _write(axes: "Axes", why: str) -> None:
    axes.clear()
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=13)


def _one_class(labels: "np.ndarray") -> str:
    """Why there is nothing to tell apart; empty where there is."""
    if not len(labels):
        return NOBODY
    if has_both_classes(labels):
        return ""
    did = "churned" if labels[0] else "stayed"
    return f"All {len(labels):,} customers {did}: there is nothing to tell apart."


def _styled(curves: "Curves") -> Any:
    """Each curve with its name and a line style of its own."""
    styles = cycle({"color": color, "linestyle": style} for color, style in LINES)
    return zip(curves.items(), styles, strict=False)


def _wilson(share: "np.ndarray", size: float) -> "tuple[np.ndarray, np.ndarray]":
    """The 95 % interval of a share among `size` customers (Wilson 1927)."""
    import numpy as np

    z = 1.96
    middle = share + z**2 / (2 * size)
    reach = z * np.sqrt((share * (1 - share)).clip(0) / size + z**2 / (4 * size**2))
    return (middle - reach) / (1 + z**2 / size), (middle + reach) / (1 + z**2 / size)


def _legend_below(figure: "Figure", axes: "Axes", title: str = "") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, title=title)


def _percent(*axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    for one in axis:
        one.set_major_formatter(PercentFormatter(1))
