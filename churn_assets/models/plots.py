"""Plots of how good a model is, as figures that need no display.

Each is a pure function of numbers. What cannot be drawn, because there are no rows or one class
only, is said in the plot instead. Their style is that of `stores.figures`.

`subject` names the model and the rows, for example "xgboost_model of 2026-10-01, hold-out
2026-09-01". `curves` are P(churn) of the same customers by one or more models, each of shape (n,),
the one that matters first. `labels` are 1 where the customer churned, else 0, shape (n,).
"""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

from churn_assets.models.grades import calibration_groups, has_both_classes, tally
from churn_assets.models.metrics import Economics
from churn_assets.stores.figures import (
    BLACK,
    BLUE,
    GREY,
    LINES,
    VERMILLION,
    as_percent,
    legend_below,
    sentence,
    titled_figure,
    write_sentence,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    Curves = Mapping[str, np.ndarray]

NOBODY = "There are no customers."

BINS = 40
MOST_BARS = 20
# What the customers with the very highest probabilities do is chance: curves begin at this share.
SEEN_FROM = 0.01


def roc(labels: "np.ndarray", curves: "Curves", subject: str) -> "Figure":
    """The share of churners found against that of stayers bothered, over all thresholds."""
    from sklearn.metrics import auc, roc_curve

    if why := _one_class(labels):
        return sentence("ROC curve", subject, why)
    figure, axes = titled_figure(_of("ROC curve", labels), subject, height=6)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance: AUC 0.500")
    for (name, probabilities), line in _styled(curves):
        bothered, found, _ = roc_curve(labels, probabilities)
        axes.plot(bothered, found, label=f"{name}: AUC {auc(bothered, found):.3f}", **line)
    axes.set(xlabel="stayed, but at or above the threshold", ylabel="churners found (recall)")
    as_percent(axes.xaxis, axes.yaxis)
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    return figure


def precision_recall(labels: "np.ndarray", curves: "Curves", subject: str) -> "Figure":
    """The share of churners among those contacted against the share of churners found."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    if why := _one_class(labels):
        return sentence("Precision and recall", subject, why)
    figure, axes = titled_figure(_of("Precision and recall", labels), subject)
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
    as_percent(axes.xaxis, axes.yaxis)
    axes.legend(loc="lower left", frameon=False)
    return figure


def confusion_matrix(
    labels: "np.ndarray", probabilities: "np.ndarray", threshold: float, subject: str
) -> "Figure":
    """Customers by what was predicted at the threshold and by what they did."""
    import numpy as np
    from sklearn import metrics

    if not len(labels):
        return sentence("Confusion matrix", subject, NOBODY)
    figure, axes = titled_figure(_of("Confusion matrix", labels), subject)
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
        return sentence("Feature importance", subject, why)
    figure, axes = titled_figure("Feature importance", subject, height=6)
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
        return sentence("Calibration", subject, NOBODY)
    figure, (axes, below) = titled_figure(
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
    as_percent(below.xaxis, axes.yaxis)
    legend_below(figure, axes)
    return figure


def score_distribution(
    labels: "np.ndarray", probabilities: "np.ndarray", threshold: float, subject: str
) -> "Figure":
    """Customers by P(churn), those who stayed and those who churned."""
    if not len(labels):
        return sentence("Predicted probabilities", subject, NOBODY)
    figure, axes = titled_figure(_of("Predicted probabilities", labels), subject)
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
    as_percent(axes.xaxis)
    axes.legend(frameon=False)
    return figure


def lift_and_profit(
    labels: "np.ndarray", curves: "Curves", economics: Economics, subject: str
) -> "Figure":
    """What contacting the customers with the highest P(churn) gives, by how many are contacted."""
    import numpy as np

    if not len(labels):
        return sentence("Lift and profit", subject, NOBODY)
    figure, (lift, profit) = titled_figure(_of("Lift and profit", labels), subject, ncols=2)
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
    as_percent(lift.xaxis, profit.xaxis)
    if not base:
        write_sentence(lift, "Nobody churned:\nthere is no lift.")
    title = f"profit per customer at the threshold of {economics.threshold:.3g}, the dot"
    legend_below(figure, profit, title)
    return figure


def _of(name: str, labels: "np.ndarray") -> str:
    return f"{name}: {len(labels):,} customers, {labels.mean():.1%} churned"


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
