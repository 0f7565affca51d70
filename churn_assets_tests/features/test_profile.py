"""Prevents: a profile of the future, an old value that stands in for one that was withdrawn, an age
that is off by a year around the birthday, and a survey label that another machine would draw anew.
"""

import datetime as dt
import hashlib
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import day_number
from churn_assets.features.profile import PROFILE
from churn_assets.features.queries import feature_query
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.sources.tables import CUSTOMERS, SATISFACTION
from churn_assets.training_data.labels import CHURN_PROBABILITY, satisfaction_churn_labels_query
from churn_assets_tests.conftest import utc_connection

CUTOFF = dt.date(2025, 3, 1)
MATURE = dt.date(2025, 4, 1)
MIDNIGHT = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
DAY, MICROSECOND = dt.timedelta(days=1), dt.timedelta(microseconds=1)
Version = dict[str, Any]


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    connection = utc_connection()
    connection.execute(f"CREATE TEMP TABLE raw_customers AS {CUSTOMERS.table.empty()}")
    connection.execute(f"CREATE TEMP TABLE raw_satisfaction AS {SATISFACTION.table.empty()}")
    connection.execute(f"CREATE TEMP TABLE daily_activity AS {DAILY_ACTIVITY.empty()}")
    connection.execute(
        "INSERT INTO daily_activity (customer_id, day, known_day) "
        f"SELECT c, {day_number(CUTOFF) - 1}, {day_number(CUTOFF) - 1} "
        "FROM (VALUES ('a'), ('b')) AS customers(c)"
    )
    return connection


def profile(connection: duckdb.DuckDBPyConnection, versions: list[Version]) -> dict[str, Any]:
    """The profile features of customer a."""
    connection.execute("DELETE FROM raw_customers")
    for version in versions:
        row = {"customer_id": "a", "known_at": version["updated_at"], **version}
        marks = ", ".join("?" for _ in row)
        connection.execute(
            f"INSERT INTO raw_customers ({', '.join(row)}) VALUES ({marks})", list(row.values())
        )
    query = feature_query([PROFILE], CUTOFF, 90, lambda rollup, _: rollup)
    result = connection.sql(query)
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    assert {row["customer_id"] for row in rows} == {"a", "b"}
    assert all(v is None for k, v in rows[rows[0]["customer_id"] == "a"].items() if k not in KEYS)
    return next(row for row in rows if row["customer_id"] == "a")


KEYS = ("customer_id", "cutoff")


def test_the_version_at_the_cutoff_is_not_known_yet(connection: duckdb.DuckDBPyConnection) -> None:
    versions = [
        {"updated_at": MIDNIGHT - MICROSECOND, "location": "north", "premium": True},
        {"updated_at": MIDNIGHT, "location": "south", "premium": False},
    ]
    row = profile(connection, versions)
    assert (row["location"], row["premium"]) == ("north", True)


def test_a_value_that_was_withdrawn_is_unknown(connection: duckdb.DuckDBPyConnection) -> None:
    known = {"gender": "f", "premium": True, "birth_date": dt.date(1990, 1, 1)}
    versions: list[Version] = [
        {"updated_at": MIDNIGHT - 9 * DAY, **known, "signup_at": MIDNIGHT - 400 * DAY},
        {"updated_at": MIDNIGHT - 2 * DAY},
    ]
    row = profile(connection, versions)
    for name in ("gender", "premium", "age", "account_age_days"):
        assert row[name] is None


@pytest.mark.parametrize(
    ("birth_date", "age"),
    [
        (dt.date(2000, 3, 1), 25),
        (dt.date(2000, 3, 2), 24),
        (dt.date(2000, 2, 29), 25),
        (dt.date(1950, 12, 31), 74),
    ],
)
def test_age_counts_birthdays(
    connection: duckdb.DuckDBPyConnection, birth_date: dt.date, age: int
) -> None:
    versions = [{"updated_at": MIDNIGHT - DAY, "birth_date": birth_date}]
    assert profile(connection, versions)["age"] == age


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-5 * 86_400, 5 * 86_400),
            st.sampled_from([None, "x", "y"]),
            st.sampled_from([None, True, False]),
        ),
        max_size=6,
        unique_by=lambda version: version[0],
    )
)
def test_the_newest_version_before_the_cutoff_counts(
    connection: duckdb.DuckDBPyConnection, drawn: list[tuple[int, str | None, bool | None]]
) -> None:
    versions: list[Version] = [
        {
            "updated_at": MIDNIGHT + dt.timedelta(seconds=seconds),
            "signup_at": MIDNIGHT + dt.timedelta(seconds=seconds) - 10 * DAY,
            "device": device,
            "premium": premium,
        }
        for seconds, device, premium in drawn
    ]
    row = profile(connection, versions)
    known = [version for version in versions if version["updated_at"] < MIDNIGHT]
    newest: Version = max(known, key=lambda version: version["updated_at"], default={})
    assert row["device"] == newest.get("device")
    assert row["premium"] == newest.get("premium")
    age = (MIDNIGHT - newest["signup_at"]) // DAY if newest else None
    assert row["account_age_days"] == age


@pytest.mark.parametrize(
    ("offset", "counted"),
    [
        (-MICROSECOND, False),
        (dt.timedelta(0), True),
        (28 * DAY - MICROSECOND, True),
        (28 * DAY, False),
    ],
)
def test_surveys_count_within_the_horizon(
    connection: duckdb.DuckDBPyConnection, offset: dt.timedelta, counted: bool
) -> None:
    rows = surveys(connection, [("a", MIDNIGHT + offset, 1)])
    assert rows["a"][0] == (1 if counted else None)
    assert rows["b"] == (None, None, None)


def test_the_latest_survey_counts_and_the_draw_is_the_published_one(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for score, probability in CHURN_PROBABILITY.items():
        answers = [("a", MIDNIGHT + DAY, score % 5 + 1), ("a", MIDNIGHT + 2 * DAY, score)]
        digest = hashlib.md5(f"7|a|{CUTOFF}".encode()).hexdigest()
        drawn = int(digest[:13], 16) / 2**52
        expected = (score, probability, int(drawn < probability))
        assert surveys(connection, answers)["a"] == expected


def surveys(
    connection: duckdb.DuckDBPyConnection, answers: list[tuple[str, dt.datetime, int]]
) -> dict[str, tuple[Any, ...]]:
    connection.execute("DELETE FROM raw_satisfaction")
    for answer in answers:
        connection.execute(
            "INSERT INTO raw_satisfaction (customer_id, surveyed_at, satisfaction_score, known_at) "
            "VALUES (?, ?, ?, ?)",
            [*answer, answer[1]],
        )
    query = satisfaction_churn_labels_query(
        CUTOFF, MATURE, 90, 28, 7, "daily_activity", "raw_satisfaction"
    )
    return {row[0]: tuple(row[2:]) for row in connection.sql(query).fetchall()}
