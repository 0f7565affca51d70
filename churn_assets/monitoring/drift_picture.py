"""The picture of a drift report: PSI over the last cutoffs, and the worst columns' distributions.

Numbers in, one figure out; nothing here reads files or knows partitions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of the heat map that can still be read, and distributions that fit beside it.
HEAT_MAP_COLUMNS = 16
HISTOGRAMS = 4

# Groups of a histogram; its ends hold what lies beyond the 1st and 99th percentile.
BINS = 24
TAIL = 0.01

# Categories shown, the most frequent ones.
CATEGORIES = 8

Values = Mapping[str, "np.ndarray"]


def drift_figure(history: Sequence[Mapping[str, Any]], values: Mapping[str, Values]) -> "Figure":
    """A heat map of PSI, worst column first, and reference and current values of the worst.

    Args:
        history: Rows of `DRIFT_REPORT` of one or more cutoffs; the newest decides which are worst.
        values: For each column to draw, its number, category, reference and current counts.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    heat, distributions = figure.subfigures(1, 2, width_ratios=(1.1, 1), squeeze=False)[0]
    _heat_map(heat.subplots(), history)
    for axes, (column, counts) in zip(
        distributions.subplots(HISTOGRAMS // 2, 2).flat, values.items(), strict=False
    ):
        _distribution(axes, column, counts)
    return figure


def _heat_map(axes: "Axes", history: Sequence[Mapping[str, Any]]) -> None:
    import numpy as np

    cutoffs = sorted({row["cutoff"] for row in history})
    newest = [row for row in history if row["cutoff"] == cutoffs[-1]]
    columns = [row["feature"] for row in worst(newest)[:HEAT_MAP_COLUMNS]]
    psi, heat = np.full((2, len(columns), len(cutoffs)), np.nan)
    for row in history:
        if row["feature"] in columns and row["psi"] is not None:
            place = columns.index(row["feature"]), cutoffs.index(row["cutoff"])
            psi[place], heat[place] = row["psi"], row["psi"] / row["psi_error"]
    image = axes.imshow(heat, cmap="YlOrRd", vmin=0, vmax=1.5, aspect="auto")
    for (line, place), value in np.ndenumerate(psi):
        if not np.isnan(value):
            ink = "white" if heat[line, place] > 1 else "black"
            text = f"{value:.2f}".removeprefix("0")
            axes.text(place, line, text, ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(len(columns)), columns, fontsize=8)
    axes.set_xticks(range(len(cutoffs)), [f"{c:%Y-%m-%d}" for c in cutoffs], rotation=90)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(f"PSI, worst at {cutoffs[-1]}", fontsize=10)
    bar = axes.figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1, 1.5], shrink=0.6)
    bar.set_label("PSI / the column's limit for error", fontsize=8)


def worst(report: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The columns that were compared, the nearest to or farthest beyond its limit first."""
    compared = [row for row in report if row["psi"] is not None]
    return sorted(compared, key=lambda row: (-row["psi"] / row["psi_error"], row["feature"]))


def _distribution(axes: "Axes", column: str, values: Values) -> None:
    import numpy as np

    sides = {side: values[side] / max(values[side].sum(), 1) for side in ("reference", "current")}
    numbers = values["number"]
    if not np.isfinite(numbers).any():
        labels = np.array([str(category) for category in values["category"]])
        order = np.argsort(-sum(sides.values()))[:CATEGORIES]
        for offset, (side, shares) in zip((-0.2, 0.2), sides.items(), strict=True):
            axes.bar(np.arange(len(order)) + offset, shares[order], 0.4, label=side)
        axes.set_xticks(range(len(order)), labels[order], rotation=90)
    else:
        known = np.isfinite(numbers)
        order = np.argsort(numbers[known])
        numbers = numbers[known][order]
        cumulated = np.cumsum(sum(sides.values())[known][order])
        low, high = numbers[np.searchsorted(cumulated, np.array([TAIL, 1 - TAIL]) * cumulated[-1])]
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        for (side, shares), fill in zip(sides.items(), (True, False), strict=True):
            weights = shares[known][order]
            heights, _ = np.histogram(np.clip(numbers, low, high), edges, weights=weights)
            missing = 1 - weights.sum()
            label = f"{side}, {missing:.0%} NULL" if missing > 0.005 else side
            axes.stairs(heights, edges, fill=fill, alpha=0.5 if fill else 1, label=label)
    axes.set_title(column, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
