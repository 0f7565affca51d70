"""Cutoffs, slices, windows and mappings against a brute-force reading of the design.

Prevents the simplification of testing the calendar with its own arithmetic, on settings whose
start, end and horizon fall on comfortable days: here every boundary is found by looking at each
day, months are short, 2100 has no leap day, and `now` stands on a midnight and just before it.
"""

import datetime as dt
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import Cadence, Calendar, midnight
from churn_assets.stores.catalog import upstream_keys
from churn_assets_tests.conftest import utc_connection

US = dt.timedelta(microseconds=1)
DAY = dt.timedelta(days=1)
# 2100 is no leap year, so 2097 to 2103 is the longest stretch with short Februaries only.
ERAS = (dt.date(2023, 1, 1), dt.date(2096, 1, 1))
ERA_DAYS = 3 * 365
DEFINITIONS = ("slices", "cutoffs", "labeled_cutoffs", "scored_cutoffs", "realised_cutoffs")

IS_BOUNDARY: dict[Cadence, Callable[[dt.date], bool]] = {
    Cadence.MONTHLY: lambda day: day.day == 1,
    Cadence.WEEKLY: lambda day: day.strftime("%A") == "Monday",
    Cadence.DAILY: lambda day: True,
}


@lru_cache
def boundaries(cadence: Cadence, era: dt.date) -> list[dt.date]:
    """Every boundary from before the era until after anything that happens in it."""
    days = (era + n * DAY for n in range(-40, 9 * 365))
    return [day for day in days if IS_BOUNDARY[cadence](day)]


@lru_cache(maxsize=1000)
def smallest_lag(cadence: Cadence, horizon: int) -> int:
    """The smallest k with `C + horizon` at or before the k-th next cutoff, for every C."""
    every = boundaries(cadence, dt.date(2096, 1, 1))
    lag = 1
    while any(c + horizon * DAY > k for c, k in zip(every, every[lag:], strict=False)):
        lag += 1
    return lag


def expected_keys(c: Calendar, era: dt.date, now: dt.datetime) -> dict[str, list[str]]:
    """Section 2 of the design, boundary by boundary."""
    every = boundaries(c.cadence, era)
    after = dict(pairwise(every))
    lag = smallest_lag(c.cadence, c.horizon_days)
    stop = c.end or now

    def is_mature(cutoff: dt.date) -> bool:
        if c.end:
            return midnight(cutoff + c.horizon_days * DAY) <= c.end
        return midnight(every[every.index(cutoff) + lag]) <= now

    slices = [
        k
        for k in every[:-1]
        if after[k] > c.start and (midnight(k) < stop if c.end else midnight(after[k]) <= stop)
    ]
    cutoffs = [b for b in every if b >= c.start + c.lookback_days * DAY and midnight(b) <= stop]
    # A hold-out `lag` before the cutoff, and a training cutoff `lag` before the hold-out.
    scored = cutoffs[2 * lag :]
    found = {
        "slices": slices,
        "cutoffs": cutoffs,
        "labeled_cutoffs": [b for b in cutoffs if is_mature(b)],
        "scored_cutoffs": scored,
        "realised_cutoffs": [b for b in scored if is_mature(b)],
    }
    return {name: [day.isoformat() for day in days] for name, days in found.items()}


def actual_keys(calendar: Calendar, now: dt.datetime) -> dict[str, list[str]]:
    return {name: calendar.keys(getattr(calendar, name), now) for name in DEFINITIONS}


@dataclass(frozen=True)
class Case:
    """A calendar, the era it lies in, and a moment of interest in it."""

    calendar: Calendar
    era: dt.date
    moment: dt.datetime


@st.composite
def cases(draw: st.DrawFn, closed: bool) -> Case:
    """Calendars with or without an end; the end or else `now` often is at or beside a boundary."""
    era = draw(st.sampled_from(ERAS))
    cadence = draw(st.sampled_from(Cadence))
    start = era + draw(st.integers(0, ERA_DAYS)) * DAY
    day = start + draw(st.integers(1, 700)) * DAY
    if draw(st.booleans()):
        day = next(b for b in boundaries(cadence, era) if b >= day)
    offset = draw(st.sampled_from([-US, 0 * US, US]) | st.timedeltas(0 * DAY, DAY))
    calendar = Calendar(
        start=start,
        end=midnight(day) + offset if closed else None,
        cadence=cadence,
        lookback_days=draw(st.integers(1, 120)),
        horizon_days=draw(st.integers(1, 120)),
        training_cutoffs=draw(st.integers(1, 12)),
    )
    return Case(calendar, era, midnight(day) + offset)


@settings(max_examples=100, deadline=None)
@given(cases(closed=True), st.sampled_from([0 * DAY, US, 40 * 365 * DAY]))
def test_with_an_end_partitions_follow_from_it(case: Case, later: dt.timedelta) -> None:
    now = case.moment + later
    assert actual_keys(case.calendar, now) == expected_keys(case.calendar, case.era, now)


def test_an_end_in_the_future_is_refused() -> None:
    """Dagster counts `end_offset` from now: before such an end, partitions follow the clock."""
    calendar = Calendar(dt.date(2025, 1, 1), midnight(dt.date(2025, 10, 1)))
    calendar.require_past_end(midnight(dt.date(2025, 10, 1)))
    with pytest.raises(ValueError, match="lies in the future"):
        calendar.require_past_end(midnight(dt.date(2025, 10, 1)) - US)


@settings(max_examples=150, deadline=None)
@given(cases(closed=False))
def test_without_an_end_partitions_follow_the_clock(case: Case) -> None:
    expected = expected_keys(case.calendar, case.era, case.moment)
    assert actual_keys(case.calendar, case.moment) == expected


@pytest.mark.parametrize("cadence", Cadence)
@pytest.mark.parametrize("name", ["cutoffs", "scored_cutoffs"])
def test_the_first_cutoff_does_not_exist_before_its_midnight(cadence: Cadence, name: str) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), cadence=cadence)
    first = calendar.first_cutoff if name == "cutoffs" else calendar.first_scored
    assert actual_keys(calendar, midnight(first) - US)[name] == []


@pytest.mark.parametrize("cadence", Cadence)
def test_a_cutoff_exists_from_its_own_midnight_on(cadence: Cadence) -> None:
    calendar = Calendar(dt.date(2024, 1, 1), cadence=cadence, horizon_days=28, lookback_days=14)
    boundary = dt.date(2024, 7, 1)
    lag = {Cadence.MONTHLY: 1, Cadence.WEEKLY: 4, Cadence.DAILY: 28}[cadence]
    newest = {
        "slices": calendar.shift(boundary, -1),
        "cutoffs": boundary,
        "labeled_cutoffs": calendar.shift(boundary, -lag),
        "scored_cutoffs": boundary,
        "realised_cutoffs": calendar.shift(boundary, -lag),
    }
    at, before = (
        actual_keys(calendar, midnight(boundary)),
        actual_keys(calendar, midnight(boundary) - US),
    )
    for name, day in newest.items():
        assert at[name][-1] == day.isoformat()
        assert before[name] == at[name][:-1]


def test_before_history_there_are_no_partitions() -> None:
    calendar = Calendar(dt.date(2025, 1, 1))
    assert not any(actual_keys(calendar, midnight(dt.date(2024, 6, 1))).values())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Cadence), st.integers(1, 120))
def test_lag_holds_for_every_cutoff_and_is_the_smallest(cadence: Cadence, horizon: int) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), cadence=cadence, horizon_days=horizon)
    assert calendar.lag == smallest_lag(cadence, horizon)


@pytest.mark.parametrize(
    ("cadence", "horizon", "lag"),
    [
        ("monthly", 28, 1),
        ("weekly", 28, 4),
        ("daily", 28, 28),
        ("monthly", 29, 2),  # a February has 28 days
        ("monthly", 30, 2),
        ("monthly", 59, 2),  # February and March
        ("monthly", 60, 3),
        ("weekly", 29, 5),
        ("daily", 1, 1),
    ],
)
def test_lag_of_known_horizons(cadence: str, horizon: int, lag: int) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), cadence=Cadence(cadence), horizon_days=horizon)
    assert calendar.lag == lag


def test_the_partitions_of_the_uci_data() -> None:
    calendar = Calendar(dt.date(2010, 12, 1), midnight(dt.date(2011, 12, 10)))
    keys = actual_keys(calendar, dt.datetime(2030, 1, 1, tzinfo=dt.UTC))
    assert {name: (k[0], k[-1], len(k)) for name, k in keys.items()} == {
        "slices": ("2010-12-01", "2011-12-01", 13),
        "cutoffs": ("2011-03-01", "2011-12-01", 10),
        "labeled_cutoffs": ("2011-03-01", "2011-11-01", 9),
        "scored_cutoffs": ("2011-05-01", "2011-12-01", 8),
        "realised_cutoffs": ("2011-05-01", "2011-11-01", 7),
    }


@pytest.mark.parametrize("end", ["2024-12-31T23:59:59", "2025-01-01"])
def test_an_end_that_is_not_after_the_start_is_refused(end: str) -> None:
    with pytest.raises(ValueError, match=r"CHURN_END .* is not after CHURN_START"):
        Calendar(dt.date(2025, 1, 1), dt.datetime.fromisoformat(end).replace(tzinfo=dt.UTC))


# Partition mappings


def upstream(
    mapping: dg.TimeWindowPartitionMapping,
    downstream_def: dg.TimeWindowPartitionsDefinition,
    upstream_def: dg.TimeWindowPartitionsDefinition,
    key: str,
    case: Case,
) -> list[str]:
    """What Dagster maps `key` to, which has to be what the offline store's lineage says."""
    with dg.partition_loading_context(effective_dt=case.moment):
        result = mapping.get_upstream_mapped_partitions_result_for_partitions(
            downstream_partitions_subset=downstream_def.subset_with_partition_keys([key]),
            downstream_partitions_def=downstream_def,
            upstream_partitions_def=upstream_def,
            current_time=case.moment,
        )
        keys = sorted(result.partitions_subset.get_partition_keys())
    existing = upstream_def.get_partition_keys(current_time=case.moment)
    assert keys == upstream_keys(case.calendar, mapping, key, existing)
    return keys


def some(data: st.DataObject, keys: list[str]) -> list[str]:
    """The first and the last key and one between."""
    return sorted({keys[0], keys[-1], data.draw(st.sampled_from(keys))}) if keys else []


any_case = st.booleans().flatmap(lambda closed: cases(closed=closed))


@settings(max_examples=80, deadline=None)
@given(any_case, st.integers(1, 120), st.data())
def test_slices_before_cover_the_window_and_nothing_after(
    case: Case, days: int, data: st.DataObject
) -> None:
    calendar, keys = case.calendar, expected_keys(case.calendar, case.era, case.moment)
    ends = dict(pairwise([*keys["slices"], "9999-12-31"]))
    for key in some(data, keys["cutoffs"]):
        mapping = calendar.slices_before(days)
        mapped = upstream(mapping, calendar.cutoffs, calendar.slices, key, case)
        reach = (dt.date.fromisoformat(key) - days * DAY).isoformat()
        assert set(mapped) >= {k for k in keys["slices"] if ends[k] > reach and k < key}
        assert max(mapped) < key


@pytest.mark.parametrize("cadence", Cadence)
def test_all_time_groups_need_every_earlier_slice(cadence: Cadence) -> None:
    era = dt.date(2023, 1, 1)
    case = Case(Calendar(era, cadence=cadence), era, midnight(dt.date(2025, 2, 10)))
    keys = expected_keys(case.calendar, era, case.moment)
    newest = keys["cutoffs"][-1]
    mapping = case.calendar.slices_before(math.inf)
    mapped = upstream(mapping, case.calendar.cutoffs, case.calendar.slices, newest, case)
    assert mapped == [k for k in keys["slices"] if k < newest]


@settings(max_examples=80, deadline=None)
@given(any_case, st.data())
def test_horizon_slices_cover_what_labels_look_at(case: Case, data: st.DataObject) -> None:
    calendar, keys = case.calendar, expected_keys(case.calendar, case.era, case.moment)
    for key in some(data, keys["labeled_cutoffs"]):
        mapped = upstream(
            calendar.horizon_slices, calendar.labeled_cutoffs, calendar.slices, key, case
        )
        horizon = (dt.date.fromisoformat(key) + calendar.horizon_days * DAY).isoformat()
        every = [b.isoformat() for b in boundaries(calendar.cadence, case.era)]
        assert set(mapped) >= {b for b in every if key <= b < horizon}
        assert min(mapped) == key


@settings(max_examples=80, deadline=None)
@given(any_case, st.data())
def test_mature_cutoffs_are_never_nearer_than_the_lag(case: Case, data: st.DataObject) -> None:
    calendar, keys = case.calendar, expected_keys(case.calendar, case.era, case.moment)
    lag = smallest_lag(calendar.cadence, calendar.horizon_days)
    for key in some(data, keys["scored_cutoffs"]):
        mapped = upstream(
            calendar.mature_cutoffs, calendar.scored_cutoffs, calendar.labeled_cutoffs, key, case
        )
        position = keys["cutoffs"].index(key)
        oldest = max(0, position - (2 * lag + calendar.training_cutoffs - 1))
        assert mapped == keys["cutoffs"][oldest : position - lag + 1]
        newest = dt.date.fromisoformat(mapped[-1]) + calendar.horizon_days * DAY
        assert newest.isoformat() <= key
        # A hold-out and, the embargo before it, a cutoff to train on.
        assert {keys["cutoffs"][position - lag], keys["cutoffs"][position - 2 * lag]} <= {*mapped}


# Questions

NOW = dt.datetime(2026, 10, 14, 9, 30, tzinfo=dt.UTC)
ENDED = dt.datetime(2026, 10, 14, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("end", "definition", "key", "parts"),
    [
        # What, why and from when: with the lag of the clock, or to the day with an end.
        (None, "labeled_cutoffs", "2026-10-01", ["mature on 2026-11-01; today is 2026-10-14"]),
        (ENDED, "labeled_cutoffs", "2026-10-01", ["mature on 2026-10-29; CHURN_END is 2026-10-14"]),
        (None, "realised_cutoffs", "2026-10-01", ["2026-05-01 … 2026-09-01", "mature on"]),
        (None, "labeled_cutoffs", "2026-10-01", ["2026-10-01", "2026-03-01 … 2026-09-01"]),
        (None, "labeled_cutoffs", "2026-09-15", ["monthly cutoffs", "2026-09-01 and 2026-10-01"]),
        (None, "slices", "2026-09-15", ["2026-09-01 and 2026-10-01", "2025-12-01 … 2026-09-01"]),
        (None, "slices", "2026-10-01", ["outside history", "today is 2026-10-14"]),
        (None, "cutoffs", "2026-11-01", ["outside history", "today is 2026-10-14"]),
        (ENDED, "cutoffs", "2026-11-01", ["outside history", "CHURN_END is 2026-10-14"]),
        (None, "labeled_cutoffs", "2026-02-01", ["outside history", "CHURN_START is 2025-12-01"]),
        (None, "scored_cutoffs", "2026-04-01", ["outside history", "2026-05-01 … 2026-10-01"]),
    ],
)
def test_a_partition_that_does_not_exist_is_refused_with_the_reason(
    end: dt.datetime | None, definition: str, key: str, parts: list[str]
) -> None:
    calendar = Calendar(dt.date(2025, 12, 1), end)
    with pytest.raises(ValueError) as refused:
        calendar.require(getattr(calendar, definition), ["2026-09-01", key], NOW)
    for part in [f"no partition {key}", *parts]:
        assert part in str(refused.value)


def test_a_cutoff_after_the_end_is_not_called_immature() -> None:
    """Where all cutoffs are mature the two definitions are equal, but the question is not."""
    calendar = Calendar(dt.date(2025, 12, 1), dt.datetime(2026, 10, 29, tzinfo=dt.UTC))
    with pytest.raises(ValueError, match="outside history"):
        calendar.require(calendar.cutoffs, ["2026-11-01"], NOW)


def test_partitions_that_exist_are_not_refused() -> None:
    calendar = Calendar(dt.date(2025, 12, 1))
    calendar.require(calendar.labeled_cutoffs, ["2026-03-01", "2026-09-01"], NOW)
    with pytest.raises(ValueError, match="Existing partitions: none"):
        calendar.require(calendar.cutoffs, ["2026-03-01"], dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


@pytest.mark.parametrize("cadence", Cadence)
def test_slices_in_sql_are_the_boundaries_at_or_before(cadence: Cadence) -> None:
    calendar = Calendar(dt.date(2023, 1, 1), cadence=cadence)
    days = [era + n * DAY for era in ERAS for n in range(8 * 365)]
    instants = [midnight(day) + offset for day in days for offset in (-US, 0 * US, US)]
    with utc_connection() as connection:
        rows = connection.execute(
            f"SELECT instant, {calendar.slice_of('instant')} FROM ("
            "SELECT make_timestamptz(unnest(?)) AS instant)",
            [[(i - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // US for i in instants]],
        ).fetchall()
    assert len(rows) == len(instants)
    assert [s for _, s in rows] == [calendar.floor(i.astimezone(dt.UTC).date()) for i, _ in rows]
    assert {s for _, s in rows} <= {*boundaries(cadence, ERAS[0]), *boundaries(cadence, ERAS[1])}


@pytest.mark.parametrize(
    ("end", "window"),
    [
        (None, ("2024-02-01T00:00", "2024-03-01T00:00")),
        ("2024-02-10T12:00", ("2024-02-01T00:00", "2024-02-10T12:00")),
        ("2024-03-01T00:00", ("2024-02-01T00:00", "2024-03-01T00:00")),
    ],
)
def test_the_window_of_the_last_slice_ends_with_history(
    end: str | None, window: tuple[str, str]
) -> None:
    instant = dt.datetime.fromisoformat(end).replace(tzinfo=dt.UTC) if end else None
    begin, stop = Calendar(dt.date(2024, 1, 1), instant).slice_window("2024-02-01")
    assert (begin.strftime("%Y-%m-%dT%H:%M"), stop.strftime("%Y-%m-%dT%H:%M")) == window


CLOCK_WATCH = """
import importlib, pkgutil, sys
seen = []

def watch(frame, event, function):
    if event == "c_call" and function.__name__ in ("now", "utcnow", "today", "time", "time_ns"):
        module = frame.f_globals.get("__name__", "")
        if module.startswith("churn_assets"):
            seen.append(f"{module}:{frame.f_lineno} calls {function.__name__}()")

sys.setprofile(watch)
import churn_assets
for module in pkgutil.walk_packages(churn_assets.__path__, "churn_assets."):
    importlib.import_module(module.name)
sys.setprofile(None)
print("\\n".join(seen))
"""


def test_no_module_reads_the_clock_when_it_is_imported(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLOCK_WATCH],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""
