"""Prevents: a pass over all rules that finds less than each rule would, a file that is trusted to
be sorted, and a moment that is remembered of rows which are no longer there.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import DAY_US, midnight, parse_key
from churn_assets.features.group import Feature, FeatureGroup
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.operations import extents
from churn_assets.operations.contracts import no_future, rules_of
from churn_assets.operations.gate import _unclear
from churn_assets.operations.subjects import asked
from churn_assets.stores.parquet import copy_to
from churn_assets.stores.partitions import Scan
from churn_assets.stores.tables import CUSTOMER_ID, SLICE, Column, Table
from churn_assets_tests.conftest import Row
from churn_assets_tests.contract_oracle import (
    CALENDAR,
    CUTOFFS,
    SLICES,
    Store,
    alone,
    connection,
    found,
    later,
    store_of,
    subject,
    write,
)

VISITS = Table(
    "visits",
    key=("customer_id", "day", "order_id"),
    columns=(
        CUSTOMER_ID,
        SLICE,
        Column("day", "INTEGER", "A day"),
        Column("order_id", "VARCHAR", "An order, if any"),
        Column("moment_us", "BIGINT", "A moment"),
        Column("share", "DOUBLE", "A share", minimum=0, maximum=1),
        Column("factor", "DOUBLE", "Any finite number"),
        Column("pieces", "DECIMAL(38, 4)", "Pieces", minimum=0),
    ),
    partitioned_by="slice",
    optional_key="order_id",
    moment="moment_us",
)
# One pass over all rules


def moments(key: str) -> st.SearchStrategy[int | None]:
    """In a slice, at its ends, and beside it."""
    begin, end = (int(i.timestamp()) * 1_000_000 for i in CALENDAR.slice_window(key))
    inside = st.sampled_from([begin, begin + 1, end - 1])
    return st.one_of(inside, inside, st.sampled_from([begin - 1, end, None]))


def visits(key: str, spoilt: str | None) -> st.SearchStrategy[list[Row]]:
    """Rows of a slice; one column may have anything that a file may hold."""
    begin, end = (int(i.timestamp()) * 1_000_000 for i in CALENDAR.slice_window(key))
    good: dict[str, st.SearchStrategy[Any]] = {
        "customer_id": st.sampled_from(["", "a", "A", "b", "ä", "ab"]),
        "slice": st.just(key),
        "day": st.integers(-2, 2),
        "order_id": st.sampled_from([None, "", "x", "y"]),
        "moment_us": st.sampled_from([begin, end - 1, None]),
        "share": st.sampled_from([0.0, -0.0, 0.5, 1.0, None]),
        "factor": st.sampled_from([-1e300, 0.0, 7.5, None]),
        "pieces": st.sampled_from(["0", "0.0001", None]),
    }
    bad: dict[str, st.SearchStrategy[Any]] = {
        "customer_id": st.none(),
        "day": st.none(),
        "slice": st.sampled_from([None, *SLICES]),
        "moment_us": moments(key),
        "share": st.sampled_from(["inf", "-inf", "nan", -0.001, 1.001]),
        "factor": st.sampled_from(["inf", "-inf", "nan"]),
        "pieces": st.sampled_from(["-0.0001", "1"]),
    }
    if spoilt:
        good[spoilt] = st.one_of(good[spoilt], bad.get(spoilt, good[spoilt]))
    return st.lists(st.fixed_dictionaries(good), max_size=6)


def in_order(rows: list[Row]) -> list[Row]:
    """As the store writes them: sorted by key, what is missing last."""

    def place(value: Any) -> Any:
        return (value is None, value.encode() if isinstance(value, str) else value or 0)

    return sorted(rows, key=lambda row: [place(row[column]) for column in VISITS.key])


@st.composite
def partitions(draw: st.DrawFn) -> dict[str, list[Row]]:
    """Rows of every slice; some sorted, some with several rows of a key."""
    drawn = {}
    for key in SLICES:
        rows = draw(visits(key, draw(st.sampled_from([None, *VISITS.column_names]))))
        if draw(st.booleans()):
            rows = list({tuple(row[c] for c in VISITS.key): row for row in rows}.values())
        drawn[key] = in_order(rows) if draw(st.booleans()) else rows
    return drawn


@given(partitions())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_pass_finds_what_every_rule_finds_alone(
    tmp_path: Path, rows: Mapping[str, list[Row]]
) -> None:
    store = store_of(tmp_path, VISITS)
    for key in SLICES:
        write(store, VISITS, key, rows[key])
    oracle = alone(store, VISITS, SLICES)
    assert found(store, VISITS, SLICES) == oracle

    # The conditions tell as much as the queries, but of unsorted files, which are asked.
    with subject(store, VISITS, SLICES) as asking:
        unclear = {rule.name: told.keys for rule, told in _unclear(asking, rules_of(VISITS))}
    for key in SLICES:
        for rule in ("values", "no_future_data"):
            assert (key in unclear.get(rule, ())) == (rule in oracle[key])
        is_good = rows[key] == in_order(rows[key]) and "primary_key" not in oracle[key]
        assert (key in unclear.get("primary_key", ())) == (not is_good)


def big(store: Store, order_by: str, extra: str = "") -> None:
    """A partition of several row groups."""
    select = VISITS.typed(
        f"SELECT lpad(CAST(i // 3 AS VARCHAR), 8, '0') AS customer_id, DATE '{SLICES[0]}' AS slice,"
        " i % 3 AS day, NULL AS order_id, NULL AS moment_us, 0.5 AS share, i AS factor, i AS pieces"
        f" FROM (SELECT unnest(range(300_000)) AS i {extra}) ORDER BY {order_by}"
    )
    path = store.path(VISITS, SLICES[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    small_groups = copy_to(path, select, {}).replace("(FORMAT", "(ROW_GROUP_SIZE 20480, FORMAT")
    connection().execute(small_groups)
    os.utime(path, (next(later), next(later)))


def test_a_file_of_many_row_groups_is_known_to_be_sorted(tmp_path: Path) -> None:
    store = store_of(tmp_path, VISITS)
    for order_by, extra, is_sorted, words in (
        ("i", "", True, {}),
        ("i = 20480, i", "", False, {}),
        ("i", "UNION ALL SELECT 122_879", False, {"primary_key": "keys of several rows: 1"}),
        ("i = 7, i", "UNION ALL SELECT 7", False, {"primary_key": "keys of several rows: 1"}),
    ):
        big(store, order_by, extra)
        with subject(store, VISITS, SLICES[:1]) as asking:
            unclear = {rule.name for rule, _ in _unclear(asking, rules_of(VISITS))}
        assert ("primary_key" in unclear) == (not is_sorted)
        assert found(store, VISITS, SLICES[:1]) == {SLICES[0]: words}


def test_whole_numbers_of_one_file_do_not_round_the_fractions_of_another(tmp_path: Path) -> None:
    store = store_of(tmp_path, VISITS)
    row: Row = {"customer_id": "a", "slice": SLICES[0], "day": 1, "pieces": 1}
    write(store, VISITS, SLICES[0], [row], pieces="BIGINT")
    write(store, VISITS, SLICES[1], [row | {"slice": SLICES[1], "pieces": "-0.4"}])
    assert found(store, VISITS, SLICES[:2]) == {SLICES[0]: {}, SLICES[1]: {"values": "pieces: 1"}}


# Moments of sources

GROUP = FeatureGroup(
    name="a_group", description="A group", owner="a@example.com", module="a", features=(
        Feature(name="days", sql="count(*)", source="daily_activity", window="ever",
                dtype="BIGINT", unit="days", description="Days"),
    ),
)  # fmt: skip


def too_new(store: Store) -> dict[str | None, str]:
    with subject(store, GROUP.table, CUTOFFS) as asking:
        return dict(asked(no_future(GROUP))(asking))


def test_moments_of_after_a_cutoff_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    reads = extents._read

    def counted(connection: Any, scan: Scan, expression: str) -> Any:
        read.append(len(scan.files))
        return reads(connection, scan, expression)

    monkeypatch.setattr(extents, "_read", counted)
    monkeypatch.setattr(extents, "_seen", {})
    store = store_of(tmp_path, DAILY_ACTIVITY)
    assert too_new(store) == {}
    cutoff_us = int(midnight(parse_key(CUTOFFS[0])).timestamp()) * 1_000_000
    row = {"customer_id": "a", "slice": SLICES[0], "day": 1, "last_event_us": cutoff_us - 1}
    write(store, DAILY_ACTIVITY, SLICES[0], [row])
    write(store, DAILY_ACTIVITY, SLICES[1], [])
    assert too_new(store) == too_new(store) == {}
    assert read == [2]  # once

    words = "slices that tell of moments after the cutoff: 1"
    at_cutoff = [row | {"last_event_us": cutoff_us}, row | {"last_event_us": None}]
    write(store, DAILY_ACTIVITY, SLICES[0], at_cutoff)
    assert too_new(store) == {CUTOFFS[0]: words}
    write(store, DAILY_ACTIVITY, SLICES[1], [row | {"last_event_us": cutoff_us + 90 * DAY_US}])
    # A slice that begins at the cutoff is none of its sources.
    assert too_new(store) == {CUTOFFS[0]: words, CUTOFFS[1]: words}
    assert read == [2, 1, 1]


def test_a_smaller_type_of_one_source_file_is_no_limit_of_another(tmp_path: Path) -> None:
    store = store_of(tmp_path, DAILY_ACTIVITY)
    row = {"customer_id": "a", "day": 1, "last_event_us": 5}
    write(store, DAILY_ACTIVITY, SLICES[0], [row], last_event_us="INTEGER")
    write(store, DAILY_ACTIVITY, SLICES[1], [row | {"last_event_us": 10**18}])
    assert list(too_new(store)) == [CUTOFFS[1]]
