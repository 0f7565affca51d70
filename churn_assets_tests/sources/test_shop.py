"""Prevents a synthetic shop that looks alive but is wrong: rows that depend on how history is cut
into slices, a "best possible" prediction that is not calibrated, features without signal."""

import random
import warnings
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.sources.shop import RETURN_DAYS, Shop
from churn_assets.sources.true_churn import churn_probability

START = date(2025, 1, 1)
RAMP_END = START + timedelta(days=540)
HORIZON = timedelta(days=28)
CUTOFFS = [pd.Timestamp(START + timedelta(days=n), tz="UTC") for n in (180, 360, 512)]
TABLES = ("events", "customer_versions", "reviews", "satisfaction")

SMALL = Shop(customers=1_000, seed=3, start=START)
LARGE = Shop(customers=20_000, seed=7, start=START)

INSTANT, MONEY = pa.timestamp("us", tz="UTC"), pa.decimal128(18, 4)
TEXT, WHOLE, REAL = pa.string(), pa.int64(), pa.float64()
SCHEMAS = {
    "events": {
        **dict.fromkeys(("event_id", "customer_id"), TEXT),
        "event_timestamp": INSTANT,
        **dict.fromkeys(("event_type", "channel", "session_id", "order_id", "product_id"), TEXT),
        "quantity": WHOLE,
        "amount": MONEY,
    },
    "customer_versions": {
        "customer_id": TEXT,
        **dict.fromkeys(("updated_at", "signup_at"), INSTANT),
        "birth_date": pa.date32(),
        **dict.fromkeys(("gender", "location", "income", "education", "loyalty_status"), TEXT),
        "premium": pa.bool_(),
        "device": TEXT,
    },
    "reviews": {
        **dict.fromkeys(("review_id", "customer_id", "product_id"), TEXT),
        "review_timestamp": INSTANT,
        "rating": WHOLE,
        "text": TEXT,
        **dict.fromkeys(("helpful_votes", "total_votes"), WHOLE),
    },
    "satisfaction": {"customer_id": TEXT, "surveyed_at": INSTANT, "satisfaction_score": WHOLE},
}
TRUTH = {
    "customer_id": TEXT,
    **dict.fromkeys(("born_at", "died_at"), INSTANT),
    **dict.fromkeys(("purchase_rate", "dropout_rate", "activity_rate"), REAL),
}


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return LARGE.events(START, RAMP_END).to_pandas()


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    return LARGE.truth(RAMP_END).to_pandas().set_index("customer_id")


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    return LARGE.reviews(START, RAMP_END).to_pandas()


@pytest.fixture(scope="module")
def scored(events: pd.DataFrame, truth: pd.DataFrame) -> dict[pd.Timestamp, pd.DataFrame]:
    """The population of each cutoff: days since the last event, best prediction, outcome."""
    return {cutoff: score(events, truth, cutoff) for cutoff in CUTOFFS}


def in_days(durations: pd.Series) -> pd.Series:
    return durations.dt.total_seconds() / 86_400


def score(events: pd.DataFrame, truth: pd.DataFrame, cutoff: pd.Timestamp) -> pd.DataFrame:
    at = events.event_timestamp
    seen = events[(at >= cutoff - pd.Timedelta(days=90)) & (at < cutoff)]
    later = events[(at >= cutoff) & (at < cutoff + HORIZON) & (events.event_type == "purchase")]
    days = in_days(cutoff - seen.groupby("customer_id").event_timestamp.max())
    bought = seen[seen.event_type == "purchase"].groupby("customer_id").event_timestamp.max()
    rates = truth.loc[days.index]
    return pd.DataFrame(
        {
            "days": days,
            "days_since_purchase": in_days(cutoff - bought),
            "predicted": churn_probability(
                rates.purchase_rate, rates.dropout_rate, rates.activity_rate, days, HORIZON.days
            ),
            "churned": ~days.index.isin(later.customer_id),
        }
    ).fillna({"days_since_purchase": 90})


def auc(churned: pd.Series, score: pd.Series) -> float:
    ranks, positives = score.rank(), churned.sum()
    above = ranks[churned].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(churned) - positives)))


# Equal rows, however history is cut


@settings(max_examples=25, deadline=None)
@given(
    first=st.integers(0, 120),
    lengths=st.lists(st.integers(0, 40), min_size=2, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_windows_generated_in_any_order_join_to_the_whole(
    first: int, lengths: list[int], order: random.Random
) -> None:
    days = START + timedelta(days=first)
    bounds = [days + timedelta(days=int(n)) for n in np.cumsum([0, *lengths])]
    windows = list(pairwise(bounds))
    shuffled = windows[:]
    order.shuffle(shuffled)
    for name in TABLES:
        generate = getattr(SMALL, name)
        parts = {window: generate(*window) for window in shuffled}
        whole = generate(bounds[0], bounds[-1])
        assert pa.concat_tables([parts[w] for w in windows]).equals(whole), name


def test_daily_windows_join_to_the_month() -> None:
    shop = Shop(customers=20_000, seed=3, start=START)
    days = [START + timedelta(days=n) for n in range(60, 91)]
    month = shop.events(days[0], days[-1])
    assert pa.concat_tables([shop.events(*window) for window in pairwise(days)]).equals(month)
    sessions = month.to_pandas().groupby("session_id").event_timestamp
    crossing = sessions.min().dt.floor("D") < sessions.max().dt.floor("D")
    assert crossing.any(), "no visit crosses midnight, so the boundary is not tested"


@pytest.mark.parametrize(
    ("name", "column"), [("reviews", "review_timestamp"), ("satisfaction", "surveyed_at")]
)
def test_opinions_just_after_midnight_are_found_from_their_day(name: str, column: str) -> None:
    at = getattr(LARGE, name)(START, RAMP_END)[column].to_pandas()
    early = at[at - at.dt.floor("D") < pd.Timedelta(seconds=90)].dt.date.unique()
    assert len(early) > 3
    for day in early[:12]:
        alone = getattr(LARGE, name)(day, day + timedelta(days=1))
        assert alone.num_rows == (at.dt.date == day).sum()


def test_rows_lie_within_their_window_in_order_of_time() -> None:
    begin, end = date(2025, 4, 1), date(2025, 5, 1)
    times = ("event_timestamp", "updated_at", "review_timestamp", "surveyed_at")
    for name, column in zip(TABLES, times, strict=True):
        at = getattr(SMALL, name)(begin, end)[column].to_pandas()
        assert at.is_monotonic_increasing
        assert at.iloc[0] >= pd.Timestamp(begin, tz="UTC")
        assert at.iloc[-1] < pd.Timestamp(end, tz="UTC")


def test_customers_do_not_depend_on_how_many_follow() -> None:
    early = SMALL.truth(START + timedelta(days=30))
    assert early.equals(SMALL.truth(RAMP_END).slice(0, early.num_rows))
    more = Shop(customers=3_000, seed=3, start=START).truth(RAMP_END)
    for rate in ("purchase_rate", "dropout_rate", "activity_rate"):
        assert more[rate].slice(0, early.num_rows).equals(early[rate])


def test_another_seed_is_another_shop() -> None:
    other = Shop(customers=1_000, seed=4, start=START)
    end = START + timedelta(days=20)
    assert not other.events(START, end).equals(SMALL.events(START, end))


# Tables


@pytest.mark.parametrize("name", TABLES)
def test_schema_is_exact_and_stays_without_rows(name: str) -> None:
    generate = getattr(SMALL, name)
    for end in (START + timedelta(days=90), START):
        assert generate(START, end).schema.equals(pa.schema(SCHEMAS[name]))
    assert generate(START, START).num_rows == 0
    assert generate(START - timedelta(days=40), START).num_rows == 0
    assert SMALL.truth(START).schema.equals(pa.schema(TRUTH))


def test_volume(events: pd.DataFrame, truth: pd.DataFrame, reviews: pd.DataFrame) -> None:
    assert len(truth) == LARGE.customers
    assert 22 < len(events) / LARGE.customers < 26
    share = events.event_type.value_counts(normalize=True)
    assert set(share.index) == {
        *("page_view", "product_view", "search", "add_to_cart", "remove_from_cart"),
        *("purchase", "refund"),
    }
    assert share["product_view"] > share["add_to_cart"] > share["purchase"] > share["refund"] > 0
    assert 0.25 < len(reviews) / LARGE.customers < 0.75


def test_ids_are_unique_and_belong_to_one_customer(
    events: pd.DataFrame, reviews: pd.DataFrame
) -> None:
    assert events.event_id.is_unique
    assert reviews.review_id.is_unique
    assert (events.groupby("session_id").customer_id.nunique() == 1).all()
    assert (events.groupby("order_id").customer_id.nunique() == 1).all()


def test_amounts_are_exact_cents_of_order_lines() -> None:
    events = SMALL.events(START, START + timedelta(days=200))
    order_line = pc.is_in(events["event_type"], pa.array(["purchase", "refund"]))
    for column in ("amount", "quantity", "order_id"):
        assert pc.is_valid(events[column]).equals(order_line)
    amounts = [amount for amount in events["amount"].to_pylist() if amount is not None]
    assert min(amounts) > 0
    assert all(amount == amount.quantize(Decimal("0.01")) for amount in amounts)


def test_refunds_send_back_lines_of_an_earlier_order(events: pd.DataFrame) -> None:
    lines = ["order_id", "customer_id", "product_id", "quantity", "amount"]
    refunds = events[events.event_type == "refund"]
    purchases = events[events.event_type == "purchase"]
    pairs = refunds.merge(purchases, on=lines, suffixes=("", "_bought"))
    assert set(pairs.event_id) == set(refunds.event_id)
    later = in_days(pairs.event_timestamp - pairs.event_timestamp_bought)
    assert later.min() > 0
    assert later.max() < RETURN_DAYS + 1 / 24
    counts = refunds.groupby("order_id").size()
    assert (counts <= purchases.groupby("order_id").size()[counts.index]).all()


def test_profile_versions_change_over_time() -> None:
    versions = SMALL.customer_versions(START, RAMP_END).to_pandas()
    assert not versions.duplicated(["customer_id", "updated_at"]).any()
    assert (versions.signup_at <= versions.updated_at).all()
    assert versions.customer_id.nunique() == SMALL.customers
    varying = versions.groupby("customer_id")[["location", "device", "loyalty_status"]].nunique()
    assert (varying.max() > 1).all()
    constant = versions.groupby("customer_id")[["gender", "birth_date", "income"]].nunique()
    assert (constant.max() == 1).all()
    assert versions[["gender", "birth_date", "income", "education"]].isna().any().all()


def test_reviews_are_short_texts_with_consistent_votes(reviews: pd.DataFrame) -> None:
    assert (reviews.helpful_votes <= reviews.total_votes).all()
    assert reviews.helpful_votes.min() == 0
    assert set(reviews.rating) == {1, 2, 3, 4, 5}
    assert 0.01 < reviews.text.isna().mean() < 0.06
    texts = reviews.text.dropna()
    assert texts.str.count(r"\S+").between(8, 60).all()
    assert texts.nunique() > 0.9 * len(texts)


def test_opinions_tell_of_the_rates(reviews: pd.DataFrame, truth: pd.DataFrame) -> None:
    surveys = LARGE.satisfaction(START, RAMP_END).to_pandas()
    for opinions, column in ((reviews, "rating"), (surveys, "satisfaction_score")):
        assert opinions[column].between(1, 5).all()
        rates = truth.loc[opinions.customer_id]
        opinion = opinions[column].rank().to_numpy()
        assert np.corrcoef(opinion, rates.purchase_rate.rank())[0, 1] > 0.3
        assert np.corrcoef(opinion, rates.dropout_rate.rank())[0, 1] < -0.3
    praise = reviews.text.str.contains("love|Happy|gladly|Thanks", na=False)
    assert reviews.rating[praise].mean() > reviews.rating[~praise].mean() + 0.3


# The process


def test_the_dead_are_silent(events: pd.DataFrame, truth: pd.DataFrame) -> None:
    last = events.groupby("customer_id").event_timestamp.max()
    assert (last - truth.died_at[last.index]).max() < pd.Timedelta(hours=1)


def test_the_first_event_of_a_new_customer_is_the_arrival(
    events: pd.DataFrame, truth: pd.DataFrame
) -> None:
    new = truth[truth.born_at >= pd.Timestamp(START, tz="UTC")]
    first = events.drop_duplicates("customer_id").set_index("customer_id").loc[new.index]
    assert (first.event_timestamp == new.born_at).all()
    assert first.event_type.isin(["page_view", "search", "product_view"]).all()


def test_visits_and_purchases_are_poisson_while_alive(
    events: pd.DataFrame, truth: pd.DataFrame
) -> None:
    start, end = (pd.Timestamp(day, tz="UTC") for day in (START, RAMP_END))
    days = in_days(
        truth.died_at.where(truth.died_at < end, end)
        - truth.born_at.where(truth.born_at > start, start)
    )
    arrivals = truth.born_at >= start
    purchases = events[events.event_type == "purchase"]
    counts = {
        "purchase_rate": purchases.groupby("customer_id").order_id.nunique(),
        "activity_rate": events.groupby("customer_id").session_id.nunique(),
    }
    for rate, count in counts.items():
        count = count.reindex(truth.index, fill_value=0)
        if rate == "activity_rate":
            count = count - arrivals
        expected = truth[rate] * days
        assert abs(count.sum() - expected.sum()) < 4 * expected.sum() ** 0.5
        often = expected > 1  # mean and variance of a Poisson count agree
        dispersion = ((count - expected) ** 2 / expected)[often]
        assert abs(dispersion.mean() - 1) < 4 * dispersion.std() / often.sum() ** 0.5


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_closed_form_is_calibrated(
    scored: dict[pd.Timestamp, pd.DataFrame], cutoff: pd.Timestamp
) -> None:
    population = scored[cutoff]
    decile = pd.qcut(population.predicted, 10, labels=False)
    for _, group in population.groupby(decile):
        error = (group.predicted * (1 - group.predicted)).sum() ** 0.5 / len(group)
        assert abs(group.churned.mean() - group.predicted.mean()) < 4 * error


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_churn_is_neither_extreme_nor_told_by_recency(
    scored: dict[pd.Timestamp, pd.DataFrame], cutoff: pd.Timestamp
) -> None:
    population = scored[cutoff]
    assert 0.55 < population.churned.mean() < 0.80
    best = auc(population.churned, population.predicted)
    assert 0.80 < best < 0.87
    for rule in ("days", "days_since_purchase"):
        assert auc(population.churned, population[rule]) < best - 0.05


def test_closed_form_at_its_limits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        gone, loyal, today = churn_probability(
            [0.1, 0.1, 0.1], [0.01, 1e-300, 0.01], [0.2, 0.2, 0.2], [1e9, 30.0, 0.0], 28
        )
    assert gone == 1
    assert loyal == pytest.approx(np.exp(-0.1 * 28))  # never leaves: plain Poisson
    survives = 0.01 / 0.11 + 0.1 / 0.11 * np.exp(-0.11 * 28)
    assert today == pytest.approx(survives)
    assert churn_probability(0.1, 0.01, 0.2, 3.0, 0) == 1


def test_closed_form_is_the_integral_over_the_time_of_dropout() -> None:
    buying, leaving, active, quiet, horizon = 0.05, 0.04, 0.09, 12.0, 28.0
    middle = (np.arange(100_000) + 0.5) / 100_000
    left = leaving * np.exp(-(leaving + active) * quiet * middle).mean() * quiet
    stayed = np.exp(-(leaving + active) * quiet)
    first_purchase = buying * np.exp(-(buying + leaving) * horizon * middle).mean() * horizon
    expected = 1 - stayed / (stayed + left) * first_purchase
    assert churn_probability(buying, leaving, active, quiet, horizon) == pytest.approx(expected)
