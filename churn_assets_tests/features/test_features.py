"""Prevents: a window that is off by one day, a feature that sees its own future, a rollup that does
not add up, and a float sum that depends on the number of threads.

The queries run on their own, without Dagster or files, so thousands of histories are cheap.
"""

import datetime as dt
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from churn_assets.cutoffs import day_number
from churn_assets.features.profile import PROFILE
from churn_assets.features.queries import feature_query
from churn_assets.history.known import in_window
from churn_assets.history.rollups import ROLLUPS
from churn_assets.settings import Settings
from churn_assets.training_data.labels import churn_labels_query
from churn_assets_tests import brute_force
from churn_assets_tests.brute_force import DAY, TYPES, Event, instant
from churn_assets_tests.conftest import GROUPS, query, utc_connection

CUTOFFS = [dt.date(2024, 3, 1), dt.date(2024, 4, 1), dt.date(2024, 5, 1)]
HORIZON = 28
# What counts for the labels of a cutoff was known before the next.
MATURE = dict(zip(CUTOFFS, [*CUTOFFS[1:], dt.date(2024, 6, 1)], strict=True))
# Profiles and reviews come from no events: see test_profile and test_reviews.
REVIEW = next(group for group in GROUPS if group.name == "customer_review_features")
EVENT_GROUPS = [group for group in GROUPS if group not in (PROFILE, REVIEW)]
MICROSECOND = dt.timedelta(microseconds=1)

ARROW_EVENTS = pa.schema(
    [
        ("customer_id", pa.string()),
        ("event_timestamp", pa.timestamp("us", tz="UTC")),
        ("event_type", pa.string()),
        ("order_id", pa.string()),
        ("session_id", pa.string()),
        ("product_id", pa.string()),
        ("channel", pa.string()),
        ("quantity", pa.int64()),
        ("amount", pa.decimal128(18, 4)),
        ("known_at", pa.timestamp("us", tz="UTC")),
        ("withdrawn_at", pa.timestamp("us", tz="UTC")),
    ]
)


@pytest.fixture(scope="module")
def connection() -> Iterable[duckdb.DuckDBPyConnection]:
    with utc_connection() as connection:
        yield connection


def roll_up(connection: duckdb.DuckDBPyConnection, events: Sequence[Event]) -> None:
    """Make the three rollups of the events as temporary tables."""
    columns = zip(*(astuple(event) for event in events), strict=True) if events else [[]] * 11
    arrays = [
        pa.array(list(column), field.type)
        for column, field in zip(columns, ARROW_EVENTS, strict=True)
    ]
    connection.register("event_rows", pa.Table.from_arrays(arrays, schema=ARROW_EVENTS))
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE events AS "
        "SELECT * REPLACE (coalesce(known_at, event_timestamp) AS known_at), "
        "CAST(date_trunc('month', event_timestamp) AS DATE) AS slice FROM event_rows"
    )
    for table, rollup, _ in ROLLUPS:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {table.name} AS {table.typed(rollup('events'))}"
        )


def compute(
    connection: duckdb.DuckDBPyConnection,
    events: Sequence[Event],
    cutoffs: Sequence[dt.date] = CUTOFFS,
) -> dict[tuple[str, dt.date], dict[str, Any]]:
    """Every feature by (customer, cutoff), from the real queries."""
    roll_up(connection, events)
    rows: dict[tuple[str, dt.date], dict[str, Any]] = {}
    for at in cutoffs:
        result = connection.sql(feature_query(EVENT_GROUPS, at, 90, lambda rollup, _: rollup))
        names = result.columns[2:]
        for customer_id, cutoff, *values in result.fetchall():
            rows[customer_id, cutoff] = dict(zip(names, values, strict=True))
    return rows


def by_customer(events: Sequence[Event]) -> dict[str, list[Event]]:
    histories: dict[str, list[Event]] = {}
    for event in events:
        histories.setdefault(event.customer_id, []).append(event)
    return histories


def expected(events: Sequence[Event]) -> dict[tuple[str, dt.date], dict[str, Any]]:
    return {
        (customer_id, cutoff): values
        for customer_id, history in by_customer(events).items()
        for cutoff in CUTOFFS
        if (values := brute_force.features(history, cutoff)) is not None
    }


def assert_same(
    actual: dict[tuple[str, dt.date], dict[str, Any]],
    wanted: dict[tuple[str, dt.date], dict[str, Any]],
) -> None:
    assert actual.keys() == wanted.keys()
    for row, values in wanted.items():
        for name, value in values.items():
            found = actual[row][name]
            if value is None or found is None:
                assert found is value, (row, name)
            else:
                assert math.isclose(found, value, rel_tol=1e-12, abs_tol=1e-12), (row, name)


# Instants on and around every boundary, and anywhere.
BOUNDARIES = [
    instant(cutoff) + days * DAY for cutoff in CUTOFFS for days in (-90, -30, -7, 0, HORIZON)
]
INSTANTS = st.one_of(
    st.sampled_from(BOUNDARIES),
    st.sampled_from([b - MICROSECOND for b in BOUNDARIES]),
    st.integers(0, 258 * 86_400 * 10**6).map(
        lambda us: instant(dt.date(2023, 10, 1)) + dt.timedelta(microseconds=us)
    ),
)
EVENTS = st.lists(
    st.builds(
        Event,
        customer_id=st.sampled_from(["a", "b", "c"]),
        at=INSTANTS,
        event_type=st.sampled_from([*TYPES, "purchase", "purchase", "refund"]),
        order_id=st.sampled_from(["o1", "o2", "o3"]),
        session_id=st.sampled_from([None, "s1", "s2"]),
        product_id=st.sampled_from([None, "p1", "p2", "p3"]),
        channel=st.sampled_from([None, "web", "mobile"]),
        quantity=st.integers(0, 5),
        amount=st.sampled_from(["0", "0.01", "19.99", "19.99", "0.3333", "100000.0001"]).map(
            Decimal
        ),
    ),
    max_size=30,
)


@st.composite
def two_times(draw: st.DrawFn) -> list[Event]:
    """Events that became known when they happened or later, and some that were withdrawn."""
    late = st.none() | INSTANTS
    return [
        replace(
            event,
            known_at=max(event.at, draw(late) or event.at),
            withdrawn_at=draw(late),
        )
        for event in draw(EVENTS)
    ]


def random_events(customers: int, seed: int) -> list[Event]:
    """A plausible history for many customers: thousands of examples in one query."""
    rng = random.Random(seed)
    events = []
    for number in range(customers):
        for _ in range(rng.randint(1, 25)):
            at = instant(dt.date(2023, 11, 1)) + dt.timedelta(
                seconds=rng.randrange(220 * 86_400), microseconds=rng.randrange(10**6)
            )
            events.append(
                Event(
                    f"c{number}",
                    rng.choice([at, rng.choice(BOUNDARIES), rng.choice(BOUNDARIES) - MICROSECOND]),
                    rng.choice([*TYPES, "purchase", "purchase", "refund"]),
                    f"o{rng.randrange(6)}",
                    rng.choice([None, "s1", "s2"]),
                    rng.choice([None, "p1", "p2", "p3", "p4"]),
                    rng.choice([None, "web", "mobile", "app"]),
                    rng.randrange(6),
                    Decimal(rng.randrange(50_000_000)) / 10_000,
                )
            )
    return events


def come_late(events: Sequence[Event], seed: int) -> list[Event]:
    """A third of the events becomes known later than it happened, a sixth is withdrawn."""
    rng = random.Random(seed)

    def later(than: dt.datetime) -> dt.datetime:
        boundary = rng.choice(BOUNDARIES) - rng.choice([0, 1]) * MICROSECOND
        any_time = than + dt.timedelta(seconds=rng.randrange(70 * 86_400))
        return max(than, rng.choice([any_time, boundary]))

    changed = list[Event]()
    for event in events:
        known_at = later(event.at) if rng.random() < 1 / 3 else None
        withdrawn_at = later(known_at or event.at) if rng.random() < 1 / 6 else None
        changed.append(replace(event, known_at=known_at, withdrawn_at=withdrawn_at))
    return changed


@settings(max_examples=60, deadline=None)
@given(events=EVENTS)
def test_features_equal_brute_force(
    connection: duckdb.DuckDBPyConnection, events: list[Event]
) -> None:
    assert_same(compute(connection, events), expected(events))


def test_features_of_many_customers_equal_brute_force(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    events = random_events(2_000, seed=1)
    assert_same(compute(connection, events), expected(events))


@settings(max_examples=60, deadline=None)
@given(events=two_times())
def test_features_and_labels_of_what_was_known_equal_brute_force(
    connection: duckdb.DuckDBPyConnection, events: list[Event]
) -> None:
    assert_same(compute(connection, events), expected(events))
    assert labels(connection, events) == expected_labels(events)


def test_many_histories_with_both_times_equal_brute_force(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    events = come_late(random_events(2_000, seed=5), seed=6)
    assert_same(compute(connection, events), expected(events))
    assert labels(connection, events) == expected_labels(events)


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_what_becomes_known_at_or_after_the_cutoff_changes_no_feature(
    connection: duckdb.DuckDBPyConnection, cutoff: dt.date
) -> None:
    """Also not what happened long before it, nor what is withdrawn from then on."""
    moment = instant(cutoff)
    events = come_late(random_events(1_000, seed=7), seed=8)
    before = [event for event in events if (event.known_at or event.at) < moment]
    forgotten = [
        replace(e, withdrawn_at=None) if e.withdrawn_at and e.withdrawn_at >= moment else e
        for e in before
    ]
    assert compute(connection, events, [cutoff]) == compute(connection, forgotten, [cutoff])


def test_a_cutoff_sees_one_version_of_a_key(connection: duckdb.DuckDBPyConnection) -> None:
    roll_up(connection, come_late(random_events(500, seed=9), seed=10))
    days = [day_number(cutoff) + offset for cutoff in CUTOFFS for offset in range(-3, 4)]
    for table, _, _ in ROLLUPS:
        key = ", ".join(name for name in table.key if name != "known_day")
        for day in days:
            seen = f"FROM {table.name} WHERE {in_window(math.inf, day)}"
            assert query(f"SELECT {key} {seen} GROUP BY ALL HAVING count(*) > 1", connection) == []


@settings(max_examples=60, deadline=None)
@given(past=EVENTS, future=EVENTS, other_future=EVENTS, cutoff=st.sampled_from(CUTOFFS))
def test_nothing_at_or_after_the_cutoff_changes_a_feature(
    connection: duckdb.DuckDBPyConnection,
    past: list[Event],
    future: list[Event],
    other_future: list[Event],
    cutoff: dt.date,
) -> None:
    before = [event for event in past if event.at < instant(cutoff)]
    worlds = [
        compute(connection, before + [e for e in after if e.at >= instant(cutoff)], [cutoff])
        for after in (future, other_future)
    ]
    assert worlds[0] == worlds[1]


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_thousands_of_customers_with_another_future_have_the_same_features(
    connection: duckdb.DuckDBPyConnection, cutoff: dt.date
) -> None:
    events = random_events(3_000, seed=2)
    changed = [
        event
        if event.at < instant(cutoff)
        else replace(event, event_type="purchase", amount=event.amount + 1, at=event.at + DAY)
        for event in events
    ]
    assert compute(connection, events, [cutoff]) == compute(connection, changed, [cutoff])


@pytest.mark.parametrize(
    ("offset", "in_lookback", "in_week"),
    [
        (dt.timedelta(0), False, False),
        (-MICROSECOND, True, True),
        (-7 * DAY, True, True),
        (-7 * DAY - MICROSECOND, True, False),
        (-90 * DAY, True, False),
        (-90 * DAY - MICROSECOND, False, False),
    ],
)
def test_windows_are_half_open(
    connection: duckdb.DuckDBPyConnection,
    offset: dt.timedelta,
    in_lookback: bool,
    in_week: bool,
) -> None:
    cutoff = CUTOFFS[1]
    events = [
        Event("a", instant(cutoff) - 20 * DAY),
        Event("a", instant(cutoff) + offset, "purchase", "o1", amount=Decimal(5)),
    ]
    row = compute(connection, events, [cutoff])["a", cutoff]
    assert row["frequency"] == int(in_lookback)
    assert row["purchases_7d"] == int(in_week)
    assert row["total_events"] == 1 + in_lookback


@pytest.mark.parametrize(
    ("offset", "churned"),
    [
        (-MICROSECOND, 1),
        (dt.timedelta(0), 0),
        (HORIZON * DAY - MICROSECOND, 0),
        (HORIZON * DAY, 1),
    ],
)
def test_labels_look_at_the_cutoff_and_before_the_horizon(
    connection: duckdb.DuckDBPyConnection, offset: dt.timedelta, churned: int
) -> None:
    cutoff = CUTOFFS[0]
    history = [
        Event("a", instant(cutoff) - DAY),
        Event("a", instant(cutoff) + offset, "purchase", "o1", amount=Decimal(5)),
    ]
    assert labels(connection, history)["a", cutoff]["churned"] == churned


def labels(
    connection: duckdb.DuckDBPyConnection, events: Sequence[Event]
) -> dict[tuple[str, dt.date], dict[str, Any]]:
    roll_up(connection, events)
    found: dict[tuple[str, dt.date], dict[str, Any]] = {}
    for at, mature in MATURE.items():
        result = connection.sql(
            churn_labels_query(at, mature, 90, HORIZON, "daily_activity", "daily_orders")
        )
        names = result.columns[2:]
        for customer_id, cutoff, *values in result.fetchall():
            found[customer_id, cutoff] = dict(zip(names, values, strict=True))
    return found


def expected_labels(events: Sequence[Event]) -> dict[tuple[str, dt.date], dict[str, Any]]:
    return {
        (customer_id, cutoff): values
        for customer_id, history in by_customer(events).items()
        for cutoff, mature in MATURE.items()
        if (values := brute_force.labels(history, cutoff, mature, HORIZON)) is not None
    }


@settings(max_examples=60, deadline=None)
@given(events=EVENTS)
def test_labels_equal_brute_force(
    connection: duckdb.DuckDBPyConnection, events: list[Event]
) -> None:
    assert labels(connection, events) == expected_labels(events)


def test_results_do_not_depend_on_threads(connection: duckdb.DuckDBPyConnection) -> None:
    events = random_events(1_000, seed=3)
    worlds = []
    for threads in (1, 2, 4):
        connection.execute(f"SET threads = {threads}")
        worlds.append(compute(connection, events))
    connection.execute("RESET threads")
    assert worlds[0] == worlds[1] == worlds[2]


def test_a_customer_is_computed_alike_in_any_company(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    events = random_events(50, seed=4)
    together = compute(connection, events)
    for customer_id, history in list(by_customer(events).items())[:10]:
        alone = compute(connection, history)
        assert alone == {row: v for row, v in together.items() if row[0] == customer_id}


# The subset of SQL in which features may be written: DuckDB and Spark run it verbatim.
FUNCTIONS = {"sum", "min", "max", "count", "max_by", "cast", "nullif", "floor", "sqrt", "coalesce"}
KEYWORDS = {
    *("as", "bigint", "double", "filter", "where", "and", "case", "when", "then", "else", "end"),
    *("distinct", "or", "not"),
}
PLACEHOLDERS = re.compile(r"\{(window|cutoff_day|cutoff_ymd)\}")


@pytest.mark.parametrize("group", EVENT_GROUPS, ids=lambda group: group.name)
def test_feature_expressions_keep_to_the_portable_subset(group) -> None:  # type: ignore[no-untyped-def]
    tables = {table.name: set(table.column_names) for table, _, _ in ROLLUPS}
    for feature in group.features:
        sql = PLACEHOLDERS.sub("day", feature.sql.lower())
        functions = set(re.findall(r"([a-z_]+)\s*\(", sql)) - KEYWORDS
        assert functions <= FUNCTIONS, feature.name
        columns = tables.get(feature.source, {"gap", *tables["daily_orders"]})
        words = set(re.findall(r"(?<![\w.])[a-z_]\w*", sql)) - FUNCTIONS - KEYWORDS
        assert words <= columns, feature.name


def test_feature_names_are_unique_and_described() -> None:
    names = [feature.name for group in GROUPS for feature in group.features]
    assert len(names) == len(set(names))
    assert all(feature.description for group in GROUPS for feature in group.features)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"name": "Total Events"}, "a name in lower case"),
        ({"description": " "}, "a description"),
        ({"window": 0}, "a window of at least a day"),
        ({"minimum": 1, "maximum": 0}, "minimum <= maximum"),
    ],
)
def test_a_declaration_that_cannot_be_right_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(GROUPS[1].features[0], **wrong)


def test_no_window_is_longer_than_the_shortest_lookback() -> None:
    """A share of the last 30 days within fewer days would be above 1."""
    windows = [f.window for group in GROUPS for f in group.features if isinstance(f.window, int)]
    assert Settings(_env_file=None, lookback_days=max(windows)).lookback_days == max(windows)
    with pytest.raises(ValidationError, match="greater than or equal to 30"):
        Settings(_env_file=None, lookback_days=max(windows) - 1)
