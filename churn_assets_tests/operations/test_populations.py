"""Prevents: a population that is remembered of activity or of a table which has been replaced, and
customers that are compared by anything but their ids.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import Calendar, day_number, parse_key
from churn_assets.features.queries import population
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.operations import populations
from churn_assets.operations.gate import audit
from churn_assets.operations.subjects import Subject
from churn_assets.training_data.labels import CHURN_LABELS
from churn_assets_tests.conftest import query
from churn_assets_tests.contract_oracle import (
    CALENDAR,
    CUTOFFS,
    SLICES,
    Store,
    alone,
    connection,
    found,
    store_of,
    write,
)

EVENTS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(-40, 31)), max_size=6, unique=True
)  # fmt: skip


def activity(store: Store, key: str, events: Sequence[tuple[str | None, int]]) -> None:
    """A slice of activity: customers, and days from the slice's begin on."""
    first = day_number(parse_key(key))
    rows = [
        {"customer_id": c, "slice": key, "day": first + day, "known_day": first + day}
        for c, day in sorted(events)
    ]
    write(store, DAILY_ACTIVITY, key, rows)


def labels(store: Store, key: str, customers: Sequence[str | None]) -> None:
    write(
        store, CHURN_LABELS, key,
        [
            {"customer_id": c, "cutoff": key, "churned": i % 2, "purchased": 1, "future_revenue": 1}
            for i, c in enumerate(customers)
        ],
    )  # fmt: skip


def of_labels(home: Path) -> Store:
    return store_of(home, CHURN_LABELS, DAILY_ACTIVITY)


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int, list[Any]]]:
    """Files that are replaced, one by one: activity of a slice, or the labels of a store."""
    customers = st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=4)
    tidy = customers.map(lambda found: sorted({c for c in found if c}))
    made = [("activity", i, draw(EVENTS)) for i in range(2)]
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.integers(0, 3)) == 0:
            made.append(("activity", draw(st.integers(0, 1)), draw(EVENTS)))
        else:
            made.append(
                (
                    draw(st.sampled_from("xy")),
                    draw(st.integers(0, 1)),
                    draw(st.one_of(st.just(["right"]), customers, tidy)),
                )
            )
    return made


@given(changes())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_population_that_is_remembered_is_the_present_one(
    tmp_path: Path, made: list[tuple[str, int, list[Any]]]
) -> None:
    """Two stores with the same activity take the place of two tables: either may be remembered."""
    stores = {name: of_labels(tmp_path / name) for name in "xy"}
    for store in stores.values():
        for key in CUTOFFS:
            labels(store, key, [])
        for key in SLICES[:2]:
            activity(store, key, [])
    for what, number, rows in made:
        if what == "activity":
            for store in stores.values():
                activity(store, SLICES[number], rows)
        else:
            store, key = stores[what], CUTOFFS[number]
            labels(store, key, right(store, key) if rows == ["right"] else rows)
            assert found(store, CHURN_LABELS, CUTOFFS) == alone(store, CHURN_LABELS, CUTOFFS)
    for store in stores.values():
        assert found(store, CHURN_LABELS, CUTOFFS) == alone(store, CHURN_LABELS, CUTOFFS)


def right(store: Store, key: str) -> list[str]:
    """The customers of a population."""
    scan = store.unchecked(DAILY_ACTIVITY, store.earlier(DAILY_ACTIVITY, max(CUTOFFS)))
    rows = query(
        f"SELECT customer_id FROM ({population(scan.sql, parse_key(key), CALENDAR.lookback_days)}) "
        "ORDER BY ALL",
        connection(),
    )
    return [row["customer_id"] for row in rows]


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cutoffs whose population has been made, each time that it was."""
    made: list[str] = []
    compare = populations._differences

    def counted(subject: Subject, files: tuple[Path, ...]) -> Any:
        made.extend(subject.cutoffs)
        return compare(subject, files)

    monkeypatch.setattr(populations, "_differences", counted)
    monkeypatch.setattr(populations, "_known", {})
    return made


def test_a_population_is_made_once_for_all_tables(tmp_path: Path, differences: list[str]) -> None:
    x, y = (of_labels(tmp_path / name) for name in "xy")
    for store in (x, y):
        activity(store, SLICES[0], [("a", 0), ("b", 9)])
        activity(store, SLICES[1], [("a", 3), ("c", 27)])
        labels(store, CUTOFFS[0], ["a", "b"])
        labels(store, CUTOFFS[1], ["a", "c"])
    right: dict[str, dict[str, str]] = {CUTOFFS[0]: {}, CUTOFFS[1]: {}}
    assert found(x, CHURN_LABELS, CUTOFFS) == right
    assert differences == CUTOFFS
    for store in (x, y):
        assert found(store, CHURN_LABELS, CUTOFFS) == right
    assert differences == CUTOFFS

    # Other activity of one slice is another population where the lookback reaches it.
    activity(y, SLICES[1], [("a", 3), ("c", 27), ("d", 27)])
    wrong = {"rows_equal_population": "customers without a row: 1"}
    assert found(y, CHURN_LABELS, CUTOFFS) == right | {CUTOFFS[1]: wrong}
    assert differences == [*CUTOFFS, CUTOFFS[1]]


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_is_no_measure_once_it_was_replaced(
    gone: bool, tmp_path: Path, differences: list[str]
) -> None:
    x, y = (of_labels(tmp_path / name) for name in "xy")
    for store in (x, y):
        for key in SLICES[:2]:
            activity(store, key, [("a", 0), ("b", 9)])
    labels(x, CUTOFFS[0], ["a", "b"])
    assert found(x, CHURN_LABELS, CUTOFFS[:1]) == {CUTOFFS[0]: {}}
    for store in (x, y):
        labels(store, CUTOFFS[0], ["a", "nobody"])
    if gone:
        x.path(CHURN_LABELS, CUTOFFS[0]).unlink()
    words = "customers without a row: 1, customers too many: 1"
    assert found(y, CHURN_LABELS, CUTOFFS[:1])[CUTOFFS[0]] == {"rows_equal_population": words}


def test_another_lookback_is_another_population(tmp_path: Path, differences: list[str]) -> None:
    store = of_labels(tmp_path)
    activity(store, SLICES[0], [("a", 0), ("b", 30)])
    labels(store, CUTOFFS[0], ["a", "b"])
    assert found(store, CHURN_LABELS, CUTOFFS[:1]) == {CUTOFFS[0]: {}}
    short = Calendar(CALENDAR.start, CALENDAR.end, lookback_days=1)
    verdict = audit(store, short, CHURN_LABELS, CUTOFFS[:1])[CUTOFFS[0]]
    assert verdict.failures == {"rows_equal_population": "customers too many: 1"}


@pytest.mark.parametrize("day", [-1, 0, 30, 31])
def test_activity_is_read_wherever_it_is_of_the_lookback(day: int, tmp_path: Path) -> None:
    """The first and last day of a lookback, and the days beside them, as all that a file has."""
    store = of_labels(tmp_path)
    activity(store, SLICES[0], [("a", day), ("b", day)])
    labels(store, CUTOFFS[0], ["a", "b"] if 0 <= day < 31 else [])
    assert found(store, CHURN_LABELS, CUTOFFS[:1]) == {CUTOFFS[0]: {}}
