"""Each way of writing times and numbers is read as what was written, or refused with both readings.

Prevents the simplification of deciding value by value: whatever a column writes, a value is read as
its writer meant it, is in no case read as another one, and what nobody can tell is refused.
"""

import datetime as dt
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.history.event_names import NAMES, event_type
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.validation import ingest
from churn_assets.history.ways import Refused
from churn_assets.sources.files import Files
from churn_assets.sources.tables import CUSTOMERS, EVENT_TYPES, EVENTS
from churn_assets_tests.conftest import query, utc_connection
from churn_assets_tests.history.test_raw import (
    CALENDAR,
    KEYS,
    PROFILE,
    PURCHASE,
    findings,
    ingested,
)

UTC = dt.UTC
FIRST, LAST = dt.datetime(2024, 1, 15, tzinfo=UTC), dt.datetime(2024, 4, 10, tzinfo=UTC)


def events(column: str, texts: Sequence[object]) -> list[Any]:
    """What purchases become of which one column is written so."""
    plain = {name: text for name, text in PURCHASE.items() if name != column}
    rows = [plain | {"event_id": str(n), column: text} for n, text in enumerate(texts)]
    valid, rejected = ingested(pa.Table.from_pylist(rows))
    found = {row["event_id"]: row[column] for row in valid}
    reasons = {json.loads(row["row"])["event_id"]: row["reason"] for row in rejected}
    return [(found | reasons)[str(n)] for n in range(len(texts))]


# Numbers

CURRENCIES = ("", "€", "$", "£", "kr", "EUR", "US$", "zł")
NUMBER_WRITERS: dict[str, Callable[[Decimal], str]] = {
    "1234.5": str,
    "1,234.5": "{:,}".format,
    "1.234,5": lambda n: f"{n:,}".translate(str.maketrans(",.", ".,")),
    "1234,5": lambda n: str(n).replace(".", ","),
    "1 234,5": lambda n: f"{n:,}".translate(str.maketrans(",.", " ,")),
    "1\u202f234,5": lambda n: f"{n:,}".translate(str.maketrans(",.", "\u202f,")),
    "1'234.5": lambda n: f"{n:,}".replace(",", "'"),
}
amounts = st.lists(
    st.decimals(0, 10**10, places=2)
    | st.decimals(0, 9999, places=3)
    | st.integers(0, 10**6).map(Decimal),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(
    amounts,
    st.sampled_from(sorted(NUMBER_WRITERS)),
    st.sampled_from(CURRENCIES),
    st.sampled_from(["{c}{n}", "{c} {n}", "{n} {c}", "{n}{c}"]),
    st.booleans(),
)
def test_a_column_of_numbers_is_read_as_it_was_written_or_refused(
    numbers: list[Decimal], writer: str, currency: str, place: str, negative: bool
) -> None:
    texts = [place.format(c=currency, n=NUMBER_WRITERS[writer](n)).strip() for n in numbers]
    texts = ["-" + text for text in texts] if negative else texts
    try:
        assert events("amount", texts) == numbers
    except Refused:
        # Only where every sign stands before three digits.
        assert all(n == n.to_integral_value() or -n.as_tuple().exponent == 3 for n in numbers)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1.250", "19.9"], ["1.250", "19.9"]),
        (["1.250", "19,9"], ["1250", "19.9"]),
        (["1,250", "19.9"], ["1250", "19.9"]),
        (["1,250", "19,9"], ["1.250", "19.9"]),
        (["1.250", "0.500"], ["1.250", "0.500"]),
        (["1.250.000", "1.250"], ["1250000", "1250"]),
        (["1,23,456.50", "5"], ["123456.50", "5"]),
        (["(5.25)", "−3.5", "€-1.5", "- 2.5"], ["5.25", "3.5", "1.5", "2.5"]),
        (["1e3", "2.5"], ["1000", "2.5"]),
    ],
)
def test_other_values_of_a_column_show_what_one_means(texts: list[str], values: list[str]) -> None:
    assert events("amount", texts) == [Decimal(value) for value in values]


@pytest.mark.parametrize("texts", [["1.5", "12,34,5"], ["1.5", "1.2.3"]])
def test_what_is_no_number_in_the_way_of_its_column_is_none(texts: list[str]) -> None:
    assert events("amount", texts) == [Decimal("1.5"), "unparseable_number"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["5", "1.250"], r"amount may have a decimal sign or thousands: 1\.250 \(row 2\)"),
        (["1,250"], r"1,250 \(row 1\) is 1\.250 or 1250"),
        (["1.250", "1,250"], "may have a decimal sign or thousands"),
        (["1.5", "1,5"], r"written in two ways: 1\.5 \(row 1\) has a decimal point, 1,5 \(row 2\)"),
        (["€5", "$5"], "several currencies"),
        (["5 EUR", "5 USD"], "several currencies"),
    ],
)
def test_numbers_of_which_nobody_can_tell_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        events("amount", texts)


def test_numbers_of_json_have_a_decimal_point(tmp_path: Path) -> None:
    line = '{"customer_id": "c1", "event_timestamp": "2024-02-10", "event_type": "purchase", '
    (tmp_path / "events.jsonl").write_text(line + '"amount": 1.250}\n')
    with utc_connection() as connection:
        source = Files(str(tmp_path)).read(connection, EVENTS, FIRST, LAST)
        connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
        ingest(connection, EVENTS, source, CALENDAR, KEYS)
        assert query("SELECT amount FROM valid_rows", connection) == [{"amount": Decimal("1.25")}]


# Times


def excel_serial(instant: dt.datetime) -> str:
    return repr((instant - dt.datetime(1899, 12, 30, tzinfo=UTC)) / dt.timedelta(days=1))


def of_epoch(units: int) -> Callable[[dt.datetime], str]:
    epoch = dt.datetime(1970, 1, 1, tzinfo=UTC)
    return lambda t: str((t - epoch) // dt.timedelta(microseconds=1) * units // 10**6)


def at_offset(t: dt.datetime, hours: float, form: str) -> str:
    there = t.astimezone(dt.timezone(dt.timedelta(hours=hours)))
    return there.strftime(form)


# Each writes whole seconds.
TIME_WRITERS: dict[str, Callable[[dt.datetime], str]] = {
    "iso": lambda t: t.strftime("%Y-%m-%d %H:%M:%S"),
    "iso Z": lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "iso offset": lambda t: at_offset(t, 5.5, "%Y-%m-%d %H:%M:%S %z"),
    "iso, twelve hours": lambda t: t.strftime("%Y-%m-%d %I:%M:%S p.m.").replace(
        "p.m.", "p.m." if t.hour >= 12 else "a.m."
    ),
    "iso slashes": lambda t: t.strftime("%Y/%m/%d %H:%M:%S"),
    "iso dots": lambda t: t.strftime("%Y.%m.%d %H:%M:%S"),
    "day first": lambda t: t.strftime("%d/%m/%Y %H:%M:%S"),
    "day first, dots": lambda t: t.strftime("%d.%m.%Y, %H:%M:%S"),
    "day first, short": lambda t: f"{t.day}-{t.month}-{t:%y %H:%M:%S}",
    "month first": lambda t: f"{t.month}/{t.day}/{t:%Y %I:%M:%S %p}",
    "month first, short": lambda t: t.strftime("%m/%d/%y %H:%M:%S"),
    "month first, offset": lambda t: at_offset(t, -3, "%m/%d/%Y %H:%M:%S%z"),
    "year first, short": lambda t: t.strftime("%y/%m/%d %H:%M:%S"),
    "words": lambda t: t.strftime("%d %b %Y %H:%M:%S"),
    "words, American": lambda t: f"{t:%B} {t.day}, {t:%Y, %I:%M:%S %p}",
    "words, British": lambda t: t.strftime("%A, %dth %B %Y %H:%M:%S"),
    "words, Oracle": lambda t: t.strftime("%d-%b-%y %H:%M:%S").upper(),
    "mail": format_datetime,
    "JavaScript": lambda t: at_offset(t, 1, "%a %b %d %Y %H:%M:%S GMT%z (CET)"),
    "compact": lambda t: t.strftime("%Y%m%d%H%M%S"),
    "seconds": of_epoch(1),
    "milliseconds": of_epoch(10**3),
    "microseconds": of_epoch(10**6),
    "nanoseconds": of_epoch(10**9),
    "spreadsheet": excel_serial,
}
DECIDED_BY_THEIR_COLUMN = {"day first", "month first", "year first"}
instants = st.lists(
    st.datetimes(FIRST.replace(tzinfo=None), LAST.replace(tzinfo=None) - dt.timedelta(days=1)).map(
        lambda t: t.replace(microsecond=0, tzinfo=UTC)
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(instants, st.sampled_from(sorted(TIME_WRITERS)))
def test_a_column_of_times_is_read_as_it_was_written_or_refused(
    times: list[dt.datetime], writer: str
) -> None:
    try:
        assert events("event_timestamp", [TIME_WRITERS[writer](t) for t in times]) == times
    except Refused:
        assert writer.split(",")[0] in DECIDED_BY_THEIR_COLUMN
        if "short" not in writer:
            assert all(t.day <= 12 and t.month <= 12 for t in times)


@settings(max_examples=15, deadline=None)
@given(instants, st.sampled_from(["seconds", "milliseconds", "microseconds", "nanoseconds"]))
def test_numbers_of_parquet_are_read_as_text_is(times: list[dt.datetime], writer: str) -> None:
    assert events("event_timestamp", [int(TIME_WRITERS[writer](t)) for t in times]) == times


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["01/02/2024"], r"day first or month first: no value shows which, as in 01/02/2024"),
        (["13/02/2024", "02/13/2024"], r"13/02/2024 \(row 1\) cannot be month first"),
        (["1706745600", "1706745600000"], "counts in several ways"),
        (["20240201", "45323"], "counts in several ways"),
        (["01/02/03"], "day first or month first or year first"),
        # Each is a date of 2025 and of 2001 to 2031: years come first, for they are few.
        (["25/01/03", "25/01/04", "25/02/05"], "day first or year first"),
    ],
)
def test_times_of_which_nobody_can_tell_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        events("event_timestamp", texts)


def test_nanoseconds_are_cut_and_not_rounded_over_a_cutoff() -> None:
    last = dt.datetime(2024, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert events("event_timestamp", ["1706745599999999999"]) == [last]
    assert events("event_timestamp", [1706745599999999999]) == [last]
    assert events("event_timestamp", ["1706745599.9999999"]) == [last]


@pytest.mark.parametrize(
    "bad", ["0", "1", "2024", "99999999", "-5", "1e9", "123456789012345678901"]
)
def test_numbers_that_count_nothing_are_no_times(bad: str) -> None:
    found = events("event_timestamp", ["1706745600", "1706745600", bad])
    assert found[2] == "unparseable_timestamp"


@pytest.mark.parametrize(
    "bad", ["30/02/2024", "13/13/2024", "2024-13-01", "Foo 3, 2024", "Mary 3, 2024", "13:00"]
)
def test_what_is_no_date_in_any_order_is_none(bad: str) -> None:
    found = events("event_timestamp", ["13/02/2024", "14/02/2024", bad])
    assert found[2] == "unparseable_timestamp"


def test_an_optional_column_of_which_nobody_can_tell_is_missing_and_that_is_said() -> None:
    rows = [PROFILE | {"birth_date": "01/02/1990"}, PROFILE | {"customer_id": "c2"}]
    valid, _ = ingested(rows, CUSTOMERS)
    assert [row["birth_date"] for row in valid] == [None, dt.date(1990, 1, 31)]
    said = findings(rows, CUSTOMERS).warnings
    assert "birth_date may be day first or month first" in said[0]
    assert "birth_date of 1 rows cannot be used" in said[1]


@pytest.mark.parametrize(
    ("text", "day"),
    [("31/01/1990", (1990, 1, 31)), ("Jan 31, 1990", (1990, 1, 31)), ("19900131", (1990, 1, 31)),
     ("1990-01-31T00:00:00+02:00", (1990, 1, 31)), ("1990-01-31 23:59:59", (1990, 1, 31))],
)  # fmt: skip
def test_a_birth_date_is_the_day_that_is_written(text: str, day: tuple[int, int, int]) -> None:
    valid, _ = ingested([PROFILE | {"birth_date": text}], CUSTOMERS)
    assert valid[0]["birth_date"] == dt.date(*day)


# Event names


def test_names_of_trackers_stand_for_one_type_each() -> None:
    names = [name for known in NAMES.values() for name in known]
    assert len(names) == len(set(names))
    assert set(NAMES) == set(EVENT_TYPES) - {"other"}
    with utc_connection() as connection:
        for ours, known in NAMES.items():
            for name in known:
                spelled = f"'{name.replace('_', ' ')}'"
                assert query(f"SELECT {event_type(spelled)} AS t", connection) == [{"t": ours}]
