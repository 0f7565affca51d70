"""Prevents: a backtest that grades an estimate by itself, a report that hides what went wrong."""

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from churn_assets.models.champion import Champion
from churn_assets.models.metrics import Economics
from churn_assets.monitoring.backtest_report import walk_forward_report
from churn_assets.monitoring.performance import REALISED_PERFORMANCE, gap_closed, realised

CHAMPION = Champion(
    cutoff="2025-06-01",
    model="xgboost_model",
    model_cutoff="2025-06-01",
    model_version="v1",
    promoted=True,
    reason="",
    challenger=None,
    holdout="2025-05-01",
    candidates={"xgboost_model": {"roc_auc": 0.75}},
    incumbent={"roc_auc": 0.7},
)


def customers(number: int = 500) -> pd.DataFrame:
    """Customers who churn by their true probability; the prediction knows it with noise."""
    draw = np.random.default_rng(0)
    best = draw.beta(2, 2, number)
    recency = np.clip(90 * best + draw.normal(0, 40, number), 0, None).round()
    return pd.DataFrame(
        {
            "churned": (draw.random(number) < best).astype(int),
            "churn_probability": np.clip(best + draw.normal(0, 0.15, number), 0.01, 0.99),
            "recency_days": np.where(recency < 90, recency, np.nan),
            "overdue_days": np.nan,
            "gap_mean_days": np.nan,
            "tenure_days": np.nan,
            "best_churn_probability": best,
        }
    )


def test_a_row_says_what_was_promised_and_what_came():
    frame = customers()
    row = realised(CHAMPION, frame, Economics(), 7, 0)
    assert set(row) == set(REALISED_PERFORMANCE.column_names)
    assert row["roc_auc"] == pytest.approx(
        roc_auc_score(frame["churned"], frame["churn_probability"])
    )
    assert row["roc_auc_low"] < row["roc_auc"] < row["roc_auc_high"]
    assert row["estimated_roc_auc"] == 0.75
    assert row["best_log_loss"] == pytest.approx(
        log_loss(frame["churned"], frame["best_churn_probability"])
    )
    # Who never bought within reach ranks last.
    rank = frame["recency_days"].fillna(1e6)
    assert row["recency_roc_auc"] == pytest.approx(roc_auc_score(frame["churned"], rank))
    share = (row["roc_auc"] - row["recency_roc_auc"]) / (
        row["best_roc_auc"] - row["recency_roc_auc"]
    )
    assert 0 < row["gap_closed"] == pytest.approx(share)


def test_a_kept_champion_was_promised_its_grade_as_incumbent():
    kept = Champion(**{**vars(CHAMPION), "model_cutoff": "2025-05-01"})
    assert realised(kept, customers(), Economics(), 7, 0)["estimated_roc_auc"] == 0.7


def test_without_the_truth_nothing_is_compared_with_it():
    row = realised(CHAMPION, customers().drop(columns="best_churn_probability"), Economics(), 7, 0)
    assert row["best_roc_auc"] is row["gap_closed"] is None


@pytest.mark.parametrize("number", [0, 5])
def test_customers_who_all_churned_have_no_auc(number: int):
    frame = customers(number).assign(churned=1)
    row = realised(CHAMPION, frame, Economics(), 7, 0)
    assert row["customers"] == number
    assert row["roc_auc"] is row["recency_roc_auc"] is row["gap_closed"] is None


@pytest.mark.parametrize(
    ("auc", "rule", "best", "share"),
    [
        (0.76, 0.7, 0.8, 0.6),
        (0.65, 0.7, 0.8, -0.5),
        (0.76, 0.8, 0.8, None),
        (None, 0.7, 0.8, None),
        (0.76, 0.7, None, None),
    ],
)
def test_the_gap_is_measured_from_the_rule_to_the_best(
    auc: float, rule: float, best: float, share: float
):
    assert gap_closed(auc, rule, best) == pytest.approx(share)


def rows(*cutoffs: str, **others: Any) -> list[dict[str, Any]]:
    row = realised(CHAMPION, customers(), Economics(), 7, 0)
    return [row | {"cutoff": dt.date.fromisoformat(cutoff)} | others for cutoff in cutoffs]


def test_the_report_has_every_cutoff_in_both_forms():
    report = walk_forward_report(rows("2025-06-01", "2025-07-01"))
    for text in (report.markdown, report.html):
        assert text.count("2025-06-01") >= 2
        assert "2025-07-01" in text
        assert "data:image/png;base64," in text
        assert "xgboost" in text
        assert f"{report.summary['roc_auc']:.3f}" in text
    assert report.html.count("<tr>") == 1 + 2 + 1


def test_the_report_of_what_nobody_knows_has_no_empty_columns():
    unknown = {"best_roc_auc": None, "best_log_loss": None, "gap_closed": None}
    report = walk_forward_report(rows("2025-06-01", **unknown))
    assert "best possible" not in report.html
    report = walk_forward_report(rows("2025-06-01", roc_auc=None, roc_auc_low=None))
    assert "roc_auc" not in report.summary


def test_before_the_first_cutoff_the_report_says_so():
    report = walk_forward_report([])
    assert "no cutoff yet" in report.html
    assert not report.summary


def test_the_page_cannot_be_scripted_by_a_name():
    report = walk_forward_report(rows("2025-06-01", model="<script>alert(1)</script>"))
    assert "<script>" not in report.html
