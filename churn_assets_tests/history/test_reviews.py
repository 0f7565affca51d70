"""Prevents: topics that are fitted anew at every cutoff or see reviews from after the first one, a
text that is scored again and again, and a mean that counts a review without its value as 0.
"""

import datetime as dt
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_assets.cutoffs import day_number
from churn_assets.definitions import build_definitions
from churn_assets.features.queries import feature_query
from churn_assets.features.review import review_group
from churn_assets.history import sentiment, topics
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.history.scored_reviews import SCORED_REVIEWS
from churn_assets.history.text_scores import TOPIC_COLUMNS
from churn_assets.history.topic_model import find_topics
from churn_assets.models.artefacts import ModelStore
from churn_assets.monitoring.inventory import inventory
from churn_assets.operations.installation import offline_store
from churn_assets.settings import Settings
from churn_assets.sources.review_texts import review_text
from churn_assets_tests.conftest import (
    TABLES,
    Row,
    make_settings,
    materialize,
    stored,
    utc_connection,
)

SCORED = TABLES[SCORED_REVIEWS]
NOW = dt.datetime(2025, 7, 1, tzinfo=dt.UTC)
ODD_TEXTS = [
    None,
    "",
    "😀😀",
    "<p>Not <b>GREAT</b>!!!</p>",
    "これは良い",
    "tab\tand \x07 bell",
    "good " * 20_000,
]


# Scoring


def write_reviews(settings: Settings, texts: list[tuple[str, str | None]], name: str) -> None:
    """A file of reviews, given as (day, text), and one event per day for their customers."""
    folder = Path(settings.input_folder)
    folder.mkdir(parents=True, exist_ok=True)
    instants = [dt.datetime.fromisoformat(f"{day}T12:00:00+00:00") for day, _ in texts]
    rows = {
        "review_id": [f"{name}{i:05}" for i in range(len(texts))],
        "customer_id": [f"c{i % 7}" for i in range(len(texts))],
        "review_timestamp": instants,
        "rating": [float(1 + i % 5) for i in range(len(texts))],
        "text": pa.array([text for _, text in texts], pa.string()),
        "helpful_votes": [i % 3 for i in range(len(texts))],
        "total_votes": [i % 4 for i in range(len(texts))],
    }
    pq.write_table(pa.table(rows), folder / f"reviews_{name}.parquet")
    events = {
        "customer_id": rows["customer_id"],
        "event_timestamp": instants,
        "event_type": ["page_view"] * len(texts),
    }
    pq.write_table(pa.table(events), folder / f"events_{name}.parquet")


def texts_of(seed: int, number: int) -> list[str]:
    import random

    rng = random.Random(seed)
    return [review_text(rng, rng.randrange(400), rng.gauss(0, 1)) for _ in range(number)]


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    """Half a year from 2025-01-01 with 400 reviews before the first cutoff, 2025-04-01."""
    settings = make_settings(
        tmp_path, start=dt.date(2025, 1, 1), end=dt.datetime(2025, 7, 1, tzinfo=dt.UTC)
    )
    early = texts_of(1, 400)
    dated: list[tuple[str, str | None]] = [
        (f"2025-0{1 + i % 3}-{1 + i % 28:02}", text) for i, text in enumerate(early)
    ]
    dated += [("2025-02-03", text) for text in ODD_TEXTS]
    # The same words again, and some new ones, after the first cutoff.
    dated += [("2025-04-05", text) for text in [*early[:30], *texts_of(2, 20), *ODD_TEXTS]]
    write_reviews(settings, dated, "a")
    return settings


def scored(settings: Settings) -> dict[str, Row]:
    return {row["review_id"]: row for row in stored(settings, SCORED_REVIEWS)}


def raw(settings: Settings) -> dict[str, Row]:
    return {row["review_id"]: row for row in stored(settings, "raw_reviews")}


def test_every_review_keeps_its_row_and_texts_are_scored_as_they_are(shop: Settings) -> None:
    materialize(shop, "ingest", "2025-01-01", "2025-06-01")
    rows, texts = scored(shop), raw(shop)
    assert rows.keys() == texts.keys()
    for review_id, row in rows.items():
        text = texts[review_id]["text"]
        vector = [row[column.name] for column in TOPIC_COLUMNS]
        if text is None:
            assert row["sentiment_score"] is None
            assert row["text_length"] is None
            assert vector == [None] * topics.TOPICS
            continue
        assert float(row["sentiment_score"]) == sentiment.score(text)
        assert row["text_length"] == len(text)
        assert abs(float(sum(vector)) - 1) < 1e-5
    empty = next(rows[i] for i, row in texts.items() if row["text"] == "")
    assert (float(empty["sentiment_score"]), empty["text_length"]) == (0.0, 0)


def test_a_text_is_scored_once(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def count(texts: list[str]) -> list[float | None]:
        seen.extend(texts)
        return [sentiment.score(text) for text in texts]

    monkeypatch.setattr(sentiment, "score_all", count)
    materialize(shop, "ingest", "2025-01-01", "2025-03-01")
    assert len(seen) == len(set(seen)) == 400 + len(ODD_TEXTS) - 1
    before = len(seen)
    result = materialize(shop, "ingest", "2025-04-01", "2025-04-01")
    assert len(seen) - before == 20
    events = result.asset_materializations_for_node("scored_reviews")
    [event] = [e for e in events if e.asset_key == dg.AssetKey("scored_reviews")]
    assert event.metadata["reused_share"].value == pytest.approx(1 - 20 / 56)

    first = offline_store(shop).path(SCORED, "2025-04-01").read_bytes()
    materialize(shop, "ingest", "2025-04-01", "2025-04-01")
    assert len(seen) - before == 20
    assert offline_store(shop).path(SCORED, "2025-04-01").read_bytes() == first

    # What is kept can be had again, so damage to it stops nothing.
    for kept in shop.home.glob("text_scores/*/*.parquet"):
        kept.write_bytes(kept.read_bytes()[:-20])
    materialize(shop, "ingest", "2025-04-01", "2025-04-01")
    assert len(seen) - before == 20 + 56
    assert offline_store(shop).path(SCORED, "2025-04-01").read_bytes() == first


def test_reviews_wait_for_the_slices_of_the_topic_model(shop: Settings) -> None:
    materialize(shop, "ingest", "2025-01-01", "2025-02-01")
    assert find_topics(ModelStore(shop.home)) is None
    assert offline_store(shop).keys(SCORED) == []
    materialize(shop, "ingest", "2025-03-01", "2025-03-01")
    assert offline_store(shop).keys(SCORED) == ["2025-03-01"]
    materialize(shop, "ingest", "2025-01-01", "2025-02-01")
    assert len(offline_store(shop).keys(SCORED)) == 3


def test_topics_know_nothing_from_after_the_first_cutoff(shop: Settings, tmp_path: Path) -> None:
    materialize(shop, "ingest", "2025-01-01", "2025-06-01")
    other = make_settings(tmp_path / "other", start=shop.start, end=shop.end)
    Path(other.input_folder).mkdir(parents=True)
    for file in Path(shop.input_folder).iterdir():
        (Path(other.input_folder) / file.name).write_bytes(file.read_bytes())
    write_reviews(other, [("2025-05-05", text) for text in texts_of(3, 300)], "late")
    materialize(other, "ingest", "2025-01-01", "2025-06-01")
    assert find_topics(ModelStore(shop.home)) == find_topics(ModelStore(other.home))
    again = scored(other)
    assert all(again[review_id] == row for review_id, row in scored(shop).items())


def test_only_job_topics_fits_anew_and_what_depends_on_it_is_stale(shop: Settings) -> None:
    folder = str(shop.home.parent / "dagster")
    Path(folder).mkdir()
    with dg.DagsterInstance.local_temp(folder) as instance:
        materialize(shop, "ingest", "2025-01-01", "2025-06-01", instance)
        before = find_topics(ModelStore(shop.home))
        assert before is not None

        def stale() -> set[str]:
            defs, store = build_definitions(shop), offline_store(shop)
            rows = inventory(defs, store, shop.calendar(), instance, NOW)
            return {f"{row.asset.path[-1]} {key}" for row in rows for key in row.stale}

        assert not stale()
        write_reviews(shop, [("2025-01-05", text) for text in texts_of(4, 200)], "more")
        materialize(shop, "ingest", "2025-01-01", "2025-01-01", instance)
        assert find_topics(ModelStore(shop.home)) == before
        assert "review_topic_model " in stale()

        job = build_definitions(shop).resolve_job_def("topics")
        result = job.execute_in_process(instance=instance)
        after = find_topics(ModelStore(shop.home))
        assert after is not None
        assert after.version != before.version
        [event] = result.asset_materializations_for_node("review_topic_model")
        assert "matches" in event.metadata
        assert stale() >= {f"scored_reviews 2025-0{month}-01" for month in range(1, 7)}
        materialize(shop, "ingest", "2025-01-01", "2025-06-01", instance)
        assert not stale()


def test_the_page_of_a_cutoff_shows_sentiment_topics_and_a_sample(shop: Settings) -> None:
    materialize(shop, "ingest", "2025-01-01", "2025-06-01")
    result = materialize(shop, "features", "2025-05-01", "2025-05-01")
    made = result.asset_materializations_for_node("lifetime_features")
    [event] = [e for e in made if e.asset_key == dg.AssetKey("customer_review_features")]
    assert event.metadata["customers_with_reviews"].value == 7
    assert "data:image/png" in str(event.metadata["sentiment"].value)
    assert "| 9 |" in str(event.metadata["topics"].value)
    assert "| total_reviews |" in str(event.metadata["sample"].value)
    assert "| c0 |" not in str(event.metadata["sample"].value), "what Dagster keeps names nobody"


def test_too_few_reviews_have_no_topics(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path, start=dt.date(2025, 1, 1), end=dt.datetime(2025, 5, 1, tzinfo=dt.UTC)
    )
    write_reviews(settings, [("2025-01-05", text) for text in texts_of(1, 50)], "a")
    materialize(settings, "ingest", "2025-01-01", "2025-04-01")
    manifest = find_topics(ModelStore(settings.home))
    assert manifest is not None
    assert "50 distinct texts before 2025-04-01, 200 are needed" in manifest.reason
    for row in scored(settings).values():
        assert row["topic_vector_0"] is None
        assert row["sentiment_score"] is not None


# Features

CUTOFF = dt.date(2025, 4, 1)
MIDNIGHT = dt.datetime(2025, 4, 1, tzinfo=dt.UTC)
REVIEWED = st.fixed_dictionaries(
    {
        "customer_id": st.sampled_from(["a", "b"]),
        "seconds": st.integers(-400 * 86_400, 3 * 86_400) | st.sampled_from([-1, 0, -86_400]),
        "rating": st.none() | st.sampled_from([1.0, 2.5, 5.0]),
        "helpful_votes": st.none() | st.integers(0, 3),
        "total_votes": st.none() | st.integers(0, 7),
        "text_length": st.none() | st.integers(0, 500),
        "sentiment_score": st.none() | st.decimals(-1, 1, places=4),
        "topic_vector_3": st.none() | st.decimals(0, 1, places=6),
    }
)


def mean(values: list[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    connection = utc_connection()
    connection.execute(f"CREATE TEMP TABLE scored_reviews AS {SCORED.empty()}")
    connection.execute(f"CREATE TEMP TABLE daily_activity AS {DAILY_ACTIVITY.empty()}")
    connection.execute(
        "INSERT INTO daily_activity (customer_id, day, known_day) "
        f"SELECT c, {day_number(CUTOFF) - 1}, {day_number(CUTOFF) - 1} "
        "FROM (VALUES ('a'), ('b')) AS customers(c)"
    )
    return connection


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(REVIEWED, max_size=8))
def test_features_are_those_of_the_reviews_before_the_cutoff(
    connection: duckdb.DuckDBPyConnection, drawn: list[Row]
) -> None:
    connection.execute("DELETE FROM scored_reviews")
    for number, review in enumerate(drawn):
        row = {"review_id": str(number), **review}
        row["review_timestamp"] = MIDNIGHT + dt.timedelta(seconds=row.pop("seconds"))
        row["known_at"] = row["review_timestamp"]
        connection.execute(
            f"INSERT INTO scored_reviews ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
            list(row.values()),
        )
    group = review_group("none")
    result = connection.sql(feature_query([group], CUTOFF, 90, lambda rollup, _: rollup))
    found = {row[0]: dict(zip(result.columns, row, strict=True)) for row in result.fetchall()}
    assert found.keys() == {"a", "b"}
    for customer_id, row in found.items():
        own = [r for r in drawn if r["customer_id"] == customer_id and r["seconds"] < 0]
        ratios = [
            r["helpful_votes"] / r["total_votes"]
            for r in own
            if r["total_votes"] and r["helpful_votes"] is not None
        ]
        wanted = {
            "total_reviews": len(own),
            "avg_rating": mean([r["rating"] for r in own]),
            "avg_helpful_ratio": mean(ratios),
            "avg_text_length": mean([r["text_length"] for r in own]),
            "avg_sentiment_score": mean([r["sentiment_score"] for r in own]),
            "topic_vector_3": mean([r["topic_vector_3"] for r in own]),
            "topic_vector_0": None,
            "last_review_days": min((-r["seconds"] // 86_400 for r in own), default=None),
        }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-11)
