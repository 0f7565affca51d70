"""Plots: prevents a page that fails to load because a hold-out had no churner, or that is empty.

Every figure is really drawn. Whether it is readable takes a look.
"""

import base64
import datetime as dt
import io
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from churn_assets.history.sentiment_picture import sentiment_histogram
from churn_assets.models import plots
from churn_assets.models.bootstrap import Interval
from churn_assets.models.metrics import Economics, assess
from churn_assets.monitoring import backtest_picture
from churn_assets.monitoring.backtest_picture import WalkForward
from churn_assets.stores.figures import png
from churn_assets.stores.pages import markdown_image

# A layout that does not fit, or a legend without entries, only warns. Other kinds of warning may
# come from garbage that another test left.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")

SUBJECT = "logistic_regression_model of 2026-10-01, hold-out 2026-09-01"
ECONOMICS = Economics()
Draw = Callable[[np.ndarray, dict[str, np.ndarray]], Figure]
BY_CUSTOMER: dict[str, Draw] = {
    "roc": lambda y, c: plots.roc(y, c, SUBJECT),
    "precision_recall": lambda y, c: plots.precision_recall(y, c, SUBJECT),
    "confusion_matrix": lambda y, c: plots.confusion_matrix(y, c["first"], 0.5, SUBJECT),
    "calibration": lambda y, c: plots.calibration(y, c, SUBJECT),
    "score_distribution": lambda y, c: plots.score_distribution(y, c["first"], 0.5, SUBJECT),
    "lift_and_profit": lambda y, c: plots.lift_and_profit(y, c, ECONOMICS, SUBJECT),
}
EVERY_PLOT = pytest.mark.parametrize("name", BY_CUSTOMER)


def scored(customers: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    first = draw.beta(4, 2, customers)
    others = {
        name: np.clip(first + draw.normal(0, noise, customers), 0, 1)
        for name, noise in {"second_model": 0.1, "recency_rule": 0.3, "bg_nbd": 0.4}.items()
    }
    return (draw.random(customers) < first).astype("int32"), {"first": first, **others}


def drawn(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(png(figure)))


def said(figure: Figure) -> str:
    """All text of a figure."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    texts = [t for axes in figure.axes for t in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]
    texts += [t for legend in legends if legend for t in (*legend.get_texts(), legend.get_title())]
    title = figure.get_suptitle()
    return "\n".join([title, *(text.get_text() for text in texts)])


def month(number: int) -> dt.date:
    return dt.date(2025 + number // 12, number % 12 + 1, 1)


@EVERY_PLOT
def test_plots_say_what_they_show_and_are_small(name: str):
    labels, curves = scored(20_000)
    figure = BY_CUSTOMER[name](labels, curves)
    image = png(figure)
    assert Image.open(io.BytesIO(image)).width == 800
    assert SUBJECT in said(figure)
    assert f"20,000 customers, {labels.mean():.1%} churned" in said(figure)
    markdown = markdown_image(image, "a plot")
    assert len(markdown) < 60_000
    encoded = re.fullmatch(r"!\[a plot\]\(data:image/png;base64,([\w+/=]+)\)", markdown)
    assert encoded
    assert base64.b64decode(encoded[1]) == image
    assert figure._suptitle is not None  # type: ignore[attr-defined]
    extent = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    assert extent.x0 > 0
    assert extent.x1 < 800


@EVERY_PLOT
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_same_probability_for_all_is_drawn(name: str, probability: float):
    labels, _ = scored(100)
    drawn(BY_CUSTOMER[name](labels, {"first": np.full(100, probability)}))


@EVERY_PLOT
@pytest.mark.parametrize("churned", [0, 1])
@pytest.mark.parametrize("customers", [5])
def test_one_class_is_said(name: str, churned: int, customers: int):
    labels, (_, curves) = np.full(customers, churned), scored(customers)
    figure = BY_CUSTOMER[name](labels, curves)
    words = said(figure)
    drawn(figure)
    if name in ("roc", "precision_recall"):
        assert f"All {customers} customers {('stayed', 'churned')[churned]}" in words
    else:
        assert f"{customers} customers, {churned:.1%} churned" in words
    if name == "lift_and_profit" and not churned:
        assert "there is no lift" in words


@EVERY_PLOT
def test_nobody_is_said(name: str):
    figure = BY_CUSTOMER[name](np.empty(0, int), {"first": np.empty(0)})
    words = said(figure)
    drawn(figure)
    assert "There are no customers" in words
    assert SUBJECT in words


@EVERY_PLOT
def test_five_customers_are_drawn(name: str):
    _, curves = scored(5)
    drawn(BY_CUSTOMER[name](np.array([0, 1, 1, 0, 1]), curves))


def test_legends_have_the_grades():
    labels, curves = scored(500)
    graded = assess(labels, curves["first"], ECONOMICS)
    assert f"first: AUC {graded['roc_auc']:.3f}" in said(BY_CUSTOMER["roc"](labels, curves))
    words = said(BY_CUSTOMER["precision_recall"](labels, curves))
    assert f"first: PR-AUC {graded['pr_auc']:.3f}" in words
    assert f"base rate: {labels.mean():.3f}" in words
    words = said(BY_CUSTOMER["calibration"](labels, curves))
    assert f"first: mean error {graded['calibration_error']:.3f}" in words
    words = said(BY_CUSTOMER["lift_and_profit"](labels, curves))
    assert f"first: {graded['profit_per_customer']:.2f}" in words


def test_the_threshold_is_marked_on_the_profit_curve():
    labels, curves = scored(500)
    figure = plots.lift_and_profit(labels, {"first": curves["first"]}, ECONOMICS, SUBJECT)
    for axes in figure.axes:
        (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
        contacted = (curves["first"] >= ECONOMICS.threshold).mean()
        assert dot.get_xdata()[0] == pytest.approx(contacted)  # type: ignore[index]
    best = np.max(figure.axes[1].lines[1].get_ydata())
    earned = assess(labels, curves["first"], ECONOMICS)["profit_per_customer"]
    assert dot.get_ydata()[0] == pytest.approx(earned)  # type: ignore[index]
    assert earned <= best


def test_a_threshold_that_nobody_reaches_is_said():
    labels, curves = scored(500)
    never = Economics(contact_cost=60)
    words = said(plots.score_distribution(labels, curves["first"], never.threshold, SUBJECT))
    assert "threshold 5: 0% contacted" in words
    drawn(plots.lift_and_profit(labels, curves, never, SUBJECT))


def test_the_confusion_matrix_counts():
    labels, probabilities = np.array([1, 1, 1, 0, 0]), np.array([0.5, 0.9, 0.1, 0.7, 0.2])
    words = said(plots.confusion_matrix(labels, probabilities, 0.5, SUBJECT))
    counts = re.findall(r"^(\d+)$", words, re.MULTILINE)
    assert counts == ["1", "1", "1", "2"]  # stayed: retain, risk; churned: retain, risk


def test_the_most_important_features_are_shown():
    values = {f"a_feature_with_a_long_name_{i}": 0.05 - i / 1000 for i in range(70)}
    figure = plots.feature_importance(values, SUBJECT)
    assert "50 more features matter less" in said(figure)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[::-1] == list(values)[:20]
    for nothing in ({}, dict.fromkeys(values, 0.0)):
        assert "No feature matters" in said(plots.feature_importance(nothing, SUBJECT))


def test_walk_forward_marks_where_the_champion_changes():
    kinds = ["xgboost", "xgboost", "random_forest", "xgboost", "xgboost"]
    rows = [
        WalkForward(month(i), kind, 0.74, None if i == 4 else 0.7 + i / 100, Interval(0.68, 0.78))
        for i, kind in enumerate(kinds)
    ]
    figure = backtest_picture.walk_forward(rows[::-1], "a shop")
    marks = [text.get_text() for text in figure.axes[0].texts]
    assert marks == ["xgboost", "random_forest", "xgboost"]
    words = said(figure)
    assert "realised: mean 0.715" in words
    assert "estimated on the hold-out: mean 0.740" in words
    assert "best possible" not in words
    with_references = [WalkForward(month(0), "xgboost", 0.7, 0.7, best=0.8, recency=0.6)]
    assert "recency rule: mean 0.600" in said(
        backtest_picture.walk_forward(with_references, "a shop")
    )


@pytest.mark.parametrize("cutoffs", [0, 1, 2, 60])
def test_walk_forward_of_any_length_is_drawn(cutoffs: int):
    rows = [WalkForward(month(i), "xgboost", None, 0.7) for i in range(cutoffs)]
    figure = backtest_picture.walk_forward(rows, "a shop")
    assert drawn(figure).width == 800
    assert len(figure.axes[0].get_xticks()) <= backtest_picture.MOST_TICKS + 6
    if not rows:
        assert "no predictions yet" in said(figure)
    assert drawn(backtest_picture.walk_forward([WalkForward(month(0), "xgboost")], "a shop"))


def test_sentiment_leaves_out_the_unknown():
    words = said(sentiment_histogram(np.array([-1, 0.5, np.nan, 1.0]), "reviews"))
    assert "mean 0.167" in words
    assert "number of 3" in words
    for nothing in (np.empty(0), np.full(3, np.nan)):
        assert "no reviews" in said(sentiment_histogram(nothing, "reviews"))


def test_the_same_numbers_give_the_same_bytes():
    labels, curves = scored(300)
    first, again = (png(plots.lift_and_profit(labels, curves, ECONOMICS, SUBJECT)) for _ in "ab")
    assert first == again


WITHOUT_PYPLOT = """
import sys
from churn_assets.models import baselines, importance, metrics, plots
from churn_assets.stores.figures import png
heavy = {"matplotlib", "numpy", "scipy", "sklearn", "PIL"} & set(sys.modules)
assert not heavy, heavy
png(plots.feature_importance({"a": 1.0}, "b"))
assert "matplotlib.pyplot" not in sys.modules
"""


def test_neither_a_heavy_import_nor_pyplot():
    subprocess.run([sys.executable, "-c", WITHOUT_PYPLOT], check=True)
