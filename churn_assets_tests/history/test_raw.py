"""Every source row is ingested or quarantined, once, in the slice and for the reason it should be.

Prevents the simplification of validating clean rows in the middle of a slice: here rows lie on
the boundaries to the microsecond, have several defects at once, come without ids, twice, and in
any order, and a range of slices has to give the same files as one slice after the other.
"""

import datetime as dt
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import Cadence, Calendar, midnight
from churn_assets.definitions import build_definitions
from churn_assets.history import quarantine, raw, validation, values
from churn_assets.history.findings import Findings
from churn_assets.history.rollups import ROLLUPS
from churn_assets.operations.backfill import BackfillFailed, run_batch
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START, STAGES
from churn_assets.operations.plans import Batch
from churn_assets.settings import Settings
from churn_assets.sources import tables
from churn_assets.sources.files import Files
from churn_assets.sources.source import SourceTable
from churn_assets.stores.io_manager import OfflineIOManager
from churn_assets_tests.conftest import (
    Row,
    cataloged,
    ingest_run,
    make_settings,
    query,
    stored,
    utc_connection,
)

US = dt.timedelta(microseconds=1)
START = dt.date(2024, 1, 15)
END = dt.datetime(2024, 4, 10, 12, tzinfo=dt.UTC)
CALENDAR = Calendar(START, END)
KEYS = ["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]
PURCHASE: Row = {
    "event_id": "e1",
    "customer_id": "c1",
    "event_timestamp": "2024-02-10 10:00:00",
    "event_type": "purchase",
    "quantity": "1",
    "amount": "9.99",
}
PROFILE: Row = {"customer_id": "c1", "updated_at": "2024-02-10", "birth_date": "1990-01-31"}
SURVEY: Row = {"customer_id": "c1", "surveyed_at": "2024-02-10", "satisfaction_score": "3"}
REVIEW: Row = {"customer_id": "c1", "review_timestamp": "2024-02-10", "rating": "4", "text": "ok"}


def ingested(
    rows: Sequence[Row] | pa.Table,
    table: tables.RawTable = tables.EVENTS,
    calendar: Calendar = CALENDAR,
    keys: Sequence[str] = KEYS,
) -> tuple[list[Row], list[Row]]:
    """The valid and the rejected rows of the slices, each in the order of the source."""
    if not isinstance(rows, pa.Table):
        names = dict.fromkeys(name for row in rows for name in row)
        rows = pa.table({n: pa.array([row.get(n) for row in rows], pa.string()) for n in names})
    ours = {name: f'"{name}"' for name in rows.column_names if name in table.source_columns}
    with utc_connection() as connection:
        connection.register("delivery", rows)
        connection.execute(
            f"CREATE TEMP TABLE rejected_rows AS {quarantine.QUARANTINED_ROWS.empty()}"
        )
        validation.ingest(connection, table, SourceTable("delivery", ours), calendar, keys)
        return (
            query("FROM valid_rows", connection),
            query("FROM rejected_rows ORDER BY file, line", connection),
        )


def findings(rows: Sequence[Row], table: tables.RawTable = tables.EVENTS) -> Findings:
    """What is said of rows."""
    with utc_connection() as connection:
        connection.register("delivery", pa.Table.from_pylist(list(rows)))
        connection.execute(
            f"CREATE TEMP TABLE rejected_rows AS {quarantine.QUARANTINED_ROWS.empty()}"
        )
        ours = {name: name for row in rows for name in row}
        return validation.ingest(connection, table, SourceTable("delivery", ours), CALENDAR, KEYS)


def one(row: Mapping[str, object], table: tables.RawTable = tables.EVENTS) -> Row:
    """What became of a row: its values, or only its slice and the reason.

    It comes with one that has a time, because a source without times is refused.
    """
    usual = {table.timestamp: "2024-02-10", "customer_id": "another", "event_id": "another"}
    valid, rejected = ingested([dict(row), dict(row) | usual], table)
    valid = [found for found in valid if found["customer_id"] != "another"]
    rejected = [found for found in rejected if found["line"] == 1]
    assert len(valid) + len(rejected) == 1
    return {"reason": None} | (valid + rejected)[0]


# Reasons

DEFECTS: dict[str, Row] = {
    "missing_customer_id": {"customer_id": None},
    "missing_timestamp": {"event_timestamp": None},
    "unparseable_timestamp": {"event_timestamp": "soon"},
    "unparseable_number": {"quantity": "many"},
    "negative_amount": {"event_type": "search", "amount": "-0.01"},
    "out_of_range": {"amount": "10000000000.01"},
    "duplicate_id": {"event_id": "first"},
    "before_start": {"event_timestamp": "2024-01-14"},
    "future_timestamp": {"event_timestamp": "2024-04-10 12:00:00"},
}
FIRST = PURCHASE | {"event_id": "first", "event_timestamp": "2024-02-01"}


def test_every_reason_of_a_row_has_a_defect_here() -> None:
    """A line that is no row comes from a file: see test_sources."""
    assert {*DEFECTS, "unreadable_row"} == set(quarantine.REASONS)


@pytest.mark.parametrize("reason", DEFECTS)
def test_every_reason(reason: str) -> None:
    _, rejected = ingested([FIRST, PURCHASE | DEFECTS[reason]])
    assert [(row["line"], row["reason"]) for row in rejected] == [(2, reason)]
    assert json.loads(rejected[0]["row"]) == PURCHASE | DEFECTS[reason]


@pytest.mark.parametrize(
    "pair",
    [p for p in combinations(DEFECTS, 2) if not DEFECTS[p[0]].keys() & DEFECTS[p[1]].keys()],
)
def test_the_first_reason_that_applies_is_given(pair: tuple[str, str]) -> None:
    """Duplicates are judged among otherwise valid rows, so any other reason comes before them."""
    _, rejected = ingested([FIRST, PURCHASE | DEFECTS[pair[0]] | DEFECTS[pair[1]]])
    expected = next(reason for reason in pair if reason != "duplicate_id")
    assert [row["reason"] for row in rejected] == [expected]


@pytest.mark.parametrize("blank", [None, "", "  ", *values.MISSING_WORDS, " NULL "])
def test_blank_is_missing(blank: str | None) -> None:
    assert one(PURCHASE | {"customer_id": blank})["reason"] == "missing_customer_id"
    assert one(PURCHASE | {"event_timestamp": blank})["reason"] == "missing_timestamp"


@pytest.mark.parametrize(
    ("defects", "reason"),
    [
        ({"updated_at": None}, "missing_timestamp"),
        ({"updated_at": "soon"}, "unparseable_timestamp"),
        ({"updated_at": None, "birth_date": "1990-02-30"}, "missing_timestamp"),
    ],
)
def test_reasons_of_profiles(defects: Row, reason: str) -> None:
    assert one(PROFILE | defects, tables.CUSTOMERS)["reason"] == reason


@pytest.mark.parametrize(
    ("table", "row", "column", "bad"),
    [
        (tables.CUSTOMERS, PROFILE, "birth_date", bad)
        for bad in ("1990-02-30", "1990", "0000-00-00", "1899-12-31", "2024-02-11", "unknown")
    ]
    + [
        (tables.CUSTOMERS, PROFILE, "signup_at", "long ago"),
        (tables.CUSTOMERS, PROFILE, "premium", "perhaps"),
    ]
    + [(tables.REVIEWS, REVIEW, "rating", bad) for bad in ("0", "6", "-1", "good", "inf", "1e9")]
    + [(tables.REVIEWS, REVIEW, "helpful_votes", bad) for bad in ("-1", "2.5", "many", "1e12")],
)
def test_a_bad_optional_value_costs_the_value_and_not_the_row(
    table: tables.RawTable, row: Row, column: str, bad: str
) -> None:
    assert one(row | {column: bad}, table) == one(row | {column: None}, table)
    said = findings([row | {column: bad}, row | {"customer_id": "c2"}], table)
    assert any(f"{column} of 1 rows cannot be used" in warning for warning in said.warnings)
    assert f"| {column} | 1 |" in str(said.metadata["2024-02-01"]["values_left_out"])


@pytest.mark.parametrize("day", ["1900-01-01", "2024-02-10"])
def test_a_birth_date_up_to_the_profile_is_kept(day: str) -> None:
    row = one(PROFILE | {"birth_date": day}, tables.CUSTOMERS)
    assert row["birth_date"] == dt.date.fromisoformat(day)


# Time


@pytest.mark.parametrize(
    ("text", "slice_key", "reason"),
    [
        ("2024-01-14 23:59:59.999999", "2024-01-01", "before_start"),
        ("2024-01-15 00:00:00", "2024-01-01", None),
        ("2024-01-15", "2024-01-01", None),
        ("2024-01-31 23:59:59.999999", "2024-01-01", None),
        ("2024-02-01 00:00:00", "2024-02-01", None),
        ("2024-02-29T23:59:59.999999", "2024-02-01", None),
        ("2024-03-01T00:00:00Z", "2024-03-01", None),
        ("2024-04-10 11:59:59.999999", "2024-04-01", None),
        ("2024-04-10 12:00:00", "2024-04-01", "future_timestamp"),
        ("2031-04-10 12:00:00", "2024-04-01", "future_timestamp"),
        # With a zone: the slice is that of the instant in UTC.
        ("2024-02-01T01:59:59.999999+02:00", "2024-01-01", None),
        ("2024-02-01T02:00:00+02:00", "2024-02-01", None),
        ("2024-01-31 23:30:00-01", "2024-02-01", None),
        ("2024-04-10 14:00:00+02:00", "2024-04-01", "future_timestamp"),
        ("2024-01-15 00:59:59+01:00", "2024-01-01", "before_start"),
        ("2024-02-01 01:59:59.999999 +0200", "2024-01-01", None),
        ("2024-01-31 23:30:00 -01:00", "2024-02-01", None),
        ("2024-01-31 23:30:00-0100", "2024-02-01", None),
        ("2024-01-31 23:30:00 UTC", "2024-01-01", None),
        ("2024-01-31 23:30:00 America/New_York", "2024-02-01", None),
        ("2024-01-31T23:59:59.999999999Z", "2024-01-01", None),
        ("2024-01-31 23:30:00 BST", "2024-04-01", "unparseable_timestamp"),
        ("2024-01-31 23:30:00 PST", "2024-04-01", "unparseable_timestamp"),
        ("2024-02-30", "2024-04-01", "unparseable_timestamp"),
        ("infinity", "2024-04-01", "unparseable_timestamp"),
        ("1706745600", "2024-02-01", None),
        ("1706745599.999999", "2024-01-01", None),
    ],
)
def test_rows_lie_in_the_slice_of_their_instant(
    text: str, slice_key: str, reason: str | None
) -> None:
    row = one(PURCHASE | {"event_timestamp": text})
    assert (row["slice"].isoformat(), row["reason"]) == (slice_key, reason)


@pytest.mark.parametrize(
    ("dtype", "instant"),
    [
        (pa.timestamp("us"), "2024-01-31 23:59:59.999999"),
        (pa.timestamp("us", "UTC"), "2024-01-31 23:59:59.999999"),
        (pa.timestamp("us", "Europe/Berlin"), "2024-01-31 23:59:59.999999"),
        (pa.timestamp("ns"), "2024-01-31 23:59:59.999999"),
        (pa.timestamp("ms"), "2024-02-01 00:00:00.001"),
        (pa.timestamp("s", "UTC"), "2024-02-01 00:00:00"),
        (pa.date32(), "2024-02-01 00:00:00"),
    ],
)
def test_typed_timestamps_are_read_as_utc(dtype: pa.DataType, instant: str) -> None:
    expected = dt.datetime.fromisoformat(instant).replace(tzinfo=dt.UTC)
    zoned = getattr(dtype, "tz", None) is not None
    value = expected if zoned else expected.replace(tzinfo=None)
    stamps = pa.array([value.date() if pa.types.is_date(dtype) else value], dtype)
    valid, _ = ingested(
        pa.table({"customer_id": ["c1"], "event_timestamp": stamps, "event_type": ["search"]})
    )
    assert valid[0]["event_timestamp"] == expected
    assert valid[0]["slice"] == expected.date().replace(day=1)


def test_profiles_from_before_the_start_are_in_the_first_slice() -> None:
    versions = ["1999-05-01", "2024-01-14 23:59:59.999999", "2024-01-15", "2024-02-01"]
    rows = [PROFILE | {"updated_at": version} for version in versions]
    valid, rejected = ingested(rows, tables.CUSTOMERS)
    assert [str(row["slice"]) for row in valid] == ["2024-01-01"] * 3 + ["2024-02-01"]
    assert rejected == []


# Numbers


def number(column: str, value: object, dtype: pa.DataType | None = None) -> object:
    """The stored value of a number, or the reason why there is none."""
    table = {name: [text] for name, text in PURCHASE.items() if name not in ("quantity", "amount")}
    valid, rejected = ingested(pa.table(table | {column: pa.array([value], dtype)}))
    return valid[0][column] if valid else rejected[0]["reason"]


@pytest.mark.parametrize("column", ["quantity", "amount"])
@pytest.mark.parametrize(
    "text", ["inf", "-inf", "Infinity", "many", "1,5,", "3 $ 4", "SKU3", "1e400", "12 5"]
)
def test_text_that_is_no_number(column: str, text: str) -> None:
    assert number(column, text) == "unparseable_number"


@pytest.mark.parametrize("column", ["quantity", "amount"])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [pa.float64(), pa.float32()])
def test_floats_that_are_no_numbers(column: str, value: float, dtype: pa.DataType) -> None:
    assert number(column, value, dtype) == "unparseable_number"


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        ("0", Decimal(0)),
        (" 3.5 ", Decimal("3.5")),
        ("1e2", Decimal(100)),
        ("9999999999.9999", Decimal("9999999999.9999")),
        ("10000000000", Decimal("10000000000")),
        ("10000000000.0001", "out_of_range"),
        ("-10000000000.0001", "out_of_range"),
        ("1e30", "out_of_range"),
        ("-0.0001", Decimal("0.0001")),
        (math.nan, Decimal(0)),
        (None, Decimal(0)),
        ("", Decimal(0)),
        (0.1 + 0.2, Decimal("0.3")),
        (1234567.89, Decimal("1234567.89")),
        (7, Decimal(7)),
        (Decimal("9999999999.9999"), Decimal("9999999999.9999")),
        (Decimal("99999999999999.9999"), "out_of_range"),
    ],
)
def test_amounts_are_exact(value: object, amount: object) -> None:
    assert number("amount", value, pa.string() if value is None else None) == amount


@pytest.mark.parametrize(
    ("value", "quantity"),
    [
        ("2", 2),
        ("2.0", 2),
        ("0.75", Decimal("0.75")),
        ("2.0001", Decimal("2.0001")),
        ("1000000", 1_000_000),
        ("1000000.0001", "out_of_range"),
        ("-1000001", "out_of_range"),
        ("1e18", "out_of_range"),
        (None, 1),
        (" ", 1),
        (2.0, 2),
        (0.75, Decimal("0.75")),
        (1e300, "unparseable_number"),
    ],
)
def test_quantities_may_be_parts(value: object, quantity: object) -> None:
    assert number("quantity", value, pa.string() if value is None else None) == quantity


@pytest.mark.parametrize(
    ("score", "expected"),
    [("1", 1), ("5", 5), ("5.0", 5), (None, None), ("NaN", None)]
    + [(bad, "out_of_range") for bad in ("0", "6", "-1")]
    + [(bad, "unparseable_number") for bad in ("3.5", "good")],
)
def test_satisfaction_scores_are_one_to_five(score: str | None, expected: object) -> None:
    row = one(SURVEY | {"satisfaction_score": score}, tables.SATISFACTION)
    assert (row["reason"] or row["satisfaction_score"]) == expected


@pytest.mark.parametrize(
    ("event_type", "quantity", "amount", "kept"),
    [
        ("purchase", "1", "-50", ("refund", 1, 50)),
        ("purchase", "-2", "19.90", ("refund", 2, Decimal("19.90"))),
        ("purchase", "-2", "-19.90", ("refund", 2, Decimal("19.90"))),
        ("purchase", "-2", "0", ("refund", 2, 0)),
        ("purchase", "0", "0", ("purchase", 0, 0)),
        ("Order Completed", "-1", None, ("refund", 1, 0)),
        ("refund", "1", "-5", ("refund", 1, 5)),
        ("refund", "-1", "5", ("refund", 1, 5)),
        ("remove_from_cart", "-1", None, ("remove_from_cart", 1, 0)),
    ],
)
def test_a_negative_line_is_a_refund(
    event_type: str, quantity: str, amount: str | None, kept: tuple[object, ...]
) -> None:
    row = PURCHASE | {"event_type": event_type, "quantity": quantity, "amount": amount}
    found = one(row | {"order_id": "o1"})
    assert (found["event_type"], found["quantity"], found["amount"]) == kept
    assert found["order_id"] == "o1"
    turned = findings([row]).metadata.get("2024-02-01", {}).get("negative_lines_as_refunds", 0)
    assert turned == (event_type not in ("refund", "remove_from_cart") and kept[0] == "refund")


def test_sums_of_lines_at_the_bounds_fit() -> None:
    """No value that is let in can hold back the features of everybody."""
    lines = [
        PURCHASE | {"event_id": str(n), "quantity": "1000000", "amount": "10000000000"}
        for n in range(10_000)
    ]
    valid, rejected = ingested(pa.Table.from_pylist(lines))
    assert (len(valid), rejected) == (10_000, [])
    with utc_connection() as connection:
        connection.register("rows", pa.Table.from_pylist(valid))
        typed = tables.EVENTS.table.typed("FROM rows")
        connection.execute(f"CREATE TEMP TABLE events AS {typed}")
        activity, orders, products = (
            query(select("events"), connection) for _, select, _ in ROLLUPS
        )
    assert activity[0]["amount_sum_squares"] == 10**24
    assert orders[0]["purchase_quantity"] == 10**10
    assert products == []


# What is missing or spelled otherwise


def test_defaults_of_an_event() -> None:
    row = one(PURCHASE | {"quantity": None, "amount": None, "order_id": None})
    assert (row["quantity"], row["amount"], row["order_id"]) == (1, Decimal(0), "e1")
    assert one(PURCHASE | {"order_id": "o1"})["order_id"] == "o1"
    only_required = {n: PURCHASE[n] for n in ("customer_id", "event_timestamp", "event_type")}
    row = one(only_required)
    assert row["event_id"] == row["order_id"]
    assert list(row)[1:] == tables.EVENTS.table.column_names


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" Purchase  ", "purchase"),
        ("purchase\t", "purchase"),
        ("BROWSE", "page_view"),
        ("remove_from_cart", "remove_from_cart"),
        ("Order Completed", "purchase"),
        ("order-completed", "purchase"),
        ("view_item", "product_view"),
        ("Product Added", "add_to_cart"),
        ("Order Refunded", "refund"),
        ("checkout", "other"),
        ("wishlist", "other"),
        ("other", "other"),
        (None, "other"),
        ("", "other"),
    ],
)
def test_event_types(given: str | None, kept: str) -> None:
    assert one(PURCHASE | {"event_type": given})["event_type"] == kept


def test_types_that_nobody_knows_are_listed() -> None:
    types = ["wishlist", "Wishlist", None, "purchase"]
    rows = [PURCHASE | {"event_id": str(n), "event_type": t} for n, t in enumerate(types)]
    listed = findings(rows).metadata["2024-02-01"]["other_types"]
    assert isinstance(listed, dg.MarkdownMetadataValue)
    assert listed.value.splitlines()[2:] == ["| wishlist | 2 |", "|  | 1 |"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([PURCHASE | {"amount": "0"}], "all 1 purchases have amount 0"),
        ([PURCHASE | {"event_type": "kauf"}], "all are kept as other: kauf"),
        ([PURCHASE | {"customer_id": None}], "1 of 1 rows are in quarantine: 1 missing_customer"),
        ([PURCHASE | {"event_timestamp": "2023-01-01"}], "1 of 1 rows are in quarantine"),
    ],
)
def test_what_is_green_and_wrong_is_said(rows: list[Row], said: str) -> None:
    assert any(said in warning for warning in findings(rows).warnings)
    assert findings([PURCHASE]).warnings == ()


@pytest.mark.parametrize(("bad", "refused"), [(2, False), (3, True)])
def test_a_source_of_which_most_rows_have_no_time_is_refused(bad: int, refused: bool) -> None:
    rows = [PURCHASE | {"event_id": str(n)} for n in range(4)]
    rows = [row | {"event_timestamp": "soon"} if n < bad else row for n, row in enumerate(rows)]
    if not refused:
        assert len(ingested(rows)[0]) == 2
        return
    with pytest.raises(ValueError, match=r"3 of 4 rows have no usable event_timestamp.*soon"):
        ingested(rows)


def test_channels_are_trimmed_and_lower_cased() -> None:
    assert one(PURCHASE | {"channel": "  Mobile App "})["channel"] == "mobile app"


def test_the_text_of_a_review_is_kept_verbatim() -> None:
    rows = [REVIEW | {"text": text} for text in ("  Great!\n", "", None)]
    assert [row["text"] for row in ingested(rows, tables.REVIEWS)[0]] == ["  Great!\n", "", None]


# Ids


@pytest.mark.parametrize("given", ["17850", " 17850\t", "17850.0", "17850.00"])
def test_an_id_is_the_same_however_a_tool_has_stored_it(given: str) -> None:
    row = one(PURCHASE | {"customer_id": given, "product_id": "1.50"})
    assert (row["customer_id"], row["product_id"]) == ("17850", "1.50")


@pytest.mark.parametrize("kept", ["guest", "NA", "none", "1.0.0", "-", "0"])
def test_words_that_may_be_a_name_are_kept(kept: str) -> None:
    assert one(PURCHASE | {"customer_id": kept})["customer_id"] == kept


@pytest.mark.parametrize(
    ("other", "repeated"),
    [
        ({}, True),
        ({"customer_id": "c2"}, False),
        ({"order_id": "o2"}, False),
        ({"event_id": "e2"}, False),
        ({"order_id": None}, False),
        ({"quantity": "7", "event_timestamp": "2024-02-11"}, True),
    ],
)
def test_an_event_is_its_customer_order_and_id(other: Row, repeated: bool) -> None:
    rows = [row := PURCHASE | {"order_id": "o1"}, row | other]
    assert len(ingested(rows)[0]) == 2 - repeated


@pytest.mark.parametrize(
    ("first", "second", "repeated"), [(None, None, True), (None, "e1", True), (None, "o1", False)]
)
def test_a_missing_order_is_the_event(
    first: str | None, second: str | None, repeated: bool
) -> None:
    rows = [PURCHASE | {"order_id": first}, PURCHASE | {"order_id": second}]
    assert len(ingested(rows)[0]) == 2 - repeated


def test_of_duplicates_the_first_by_time_and_then_by_file_order_stays() -> None:
    rows = [
        PURCHASE | {"event_timestamp": "2024-02-10 10:00:00.000001", "product_id": "later"},
        PURCHASE | {"product_id": "stays"},
        PURCHASE | {"product_id": "same time"},
        PURCHASE | {"event_timestamp": "2024-02-01", "amount": "x", "product_id": "invalid"},
        PURCHASE | {"event_timestamp": "2024-03-11", "product_id": "again"},
        PURCHASE | {"event_timestamp": "2024-03-10", "product_id": "next slice"},
    ]
    valid, rejected = ingested(rows)
    assert [row["product_id"] for row in valid] == ["stays", "next slice"]
    assert [(row["line"], row["reason"]) for row in rejected] == [
        (1, "duplicate_id"),
        (3, "duplicate_id"),
        (4, "unparseable_number"),
        (5, "duplicate_id"),
    ]


@pytest.mark.parametrize(
    ("table", "row"), [(tables.CUSTOMERS, PROFILE), (tables.SATISFACTION, SURVEY)], ids=lambda x: ""
)
def test_rows_without_an_id_of_their_own_are_one_per_customer_and_moment(
    table: tables.RawTable, row: Row
) -> None:
    rows = [row, row | {"customer_id": "c2"}, row, row | {table.timestamp: "2024-02-11"}]
    valid, rejected = ingested(rows, table)
    assert len(valid) == 3
    assert [(r["line"], r["reason"]) for r in rejected] == [(3, "duplicate_id")]


@pytest.mark.parametrize(
    ("table", "row"), [(tables.EVENTS, PURCHASE | {"event_id": None}), (tables.REVIEWS, REVIEW)]
)
def test_repeated_rows_without_ids_all_stay(table: tables.RawTable, row: Row) -> None:
    assert table.generated_id is not None
    rows = [row, row, row | {"product_id": "p2"}, row | {table.timestamp: "2024-03-10"}, row]
    valid, rejected = ingested(rows, table)
    ids = [r[table.generated_id] for r in valid]
    assert (len(set(ids)), rejected) == (5, [])
    # A hash of the row, and its occurrence.
    stems = [i.rsplit("-", 1) for i in ids]
    assert [number for _, number in stems] == ["1", "2", "1", "1", "3"]
    assert len({stem for stem, _ in stems}) == 3
    # The same whatever else is delivered, and whichever slices are asked for.
    shuffled, _ = ingested([rows[3], PURCHASE | rows[2], *rows[:2], rows[4]], table)
    assert {*ids} == {r[table.generated_id] for r in shuffled}
    apart = [r for key in KEYS for r in ingested(rows, table, keys=[key])[0]]
    assert {*ids} == {r[table.generated_id] for r in apart}


def test_generated_ids_do_not_confuse_columns() -> None:
    row = PURCHASE | {"event_id": None}
    rows = [row | {"channel": "a, b"}, row | {"channel": "a", "session_id": "b"}]
    rows += [row | {"session_id": "NULL"}, row]
    assert len({r["event_id"] for r in ingested(rows)[0]}) == 4


# Conservation

INSTANTS = [
    edge + offset
    for edge in (*(midnight(dt.date.fromisoformat(key)) for key in KEYS), midnight(START), END)
    for offset in (-US, 0 * US, US)
]
NEW_YEAR = midnight(dt.date(2024, 1, 1))


def has_time(row: Row) -> bool:
    return bool(row["event_timestamp"]) and row["event_timestamp"] != "soon"


messy_rows = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": st.sampled_from([None, "", "a", "b", "c"]),
            "customer_id": st.sampled_from([None, "c1", "c2"]) | st.just("c3"),
            "event_timestamp": st.sampled_from([None, "", "soon", *map(str, INSTANTS)])
            | st.timedeltas(0 * US, dt.timedelta(days=120)).map(lambda t: str(NEW_YEAR + t)),
            "event_type": st.sampled_from([None, "purchase", "browse", "?"]),
            "quantity": st.sampled_from([None, "1", "x", "2.5"]),
            "amount": st.sampled_from([None, "1", "-1", "nan"]),
        }
    ),
    max_size=25,
).filter(lambda rows: 2 * sum(has_time(row) for row in rows) >= len(rows) > 0)


def fates(rows: list[Row], calendar: Calendar, keys: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often each source row arrived, by its number, with the slice and reason it got."""
    marked = [row | {"product_id": str(number)} for number, row in enumerate(rows)]
    valid, rejected = ingested(marked, tables.EVENTS, calendar, keys)
    return Counter(
        [(row["product_id"], f"{row['slice']} {row['event_id']}") for row in valid]
        + [(json.loads(r["row"])["product_id"], f"{r['slice']} {r['reason']}") for r in rejected]
    )


@settings(max_examples=25, deadline=None)
@given(messy_rows, st.sampled_from(Cadence))
def test_every_row_is_ingested_or_quarantined_exactly_once(
    rows: list[Row], cadence: Cadence
) -> None:
    calendar = Calendar(START, END, cadence)
    keys = calendar.slices.get_partition_keys()
    whole = fates(rows, calendar, keys)
    assert sorted(number for number, _ in whole.elements()) == sorted(map(str, range(len(rows))))
    middle = len(keys) // 2
    parts = [fates(rows, calendar, part) for part in (keys[:middle], keys[middle:])]
    assert parts[0] + parts[1] == whole


@settings(max_examples=25, deadline=None)
@given(messy_rows)
def test_without_an_end_later_rows_wait(rows: list[Row]) -> None:
    arrived = {int(number) for number, _ in fates(rows, Calendar(START), KEYS[:3])}
    assert arrived == {n for n, row in enumerate(rows) if not is_after(row, "2024-04-01")}


def is_after(row: Row, day: str) -> bool:
    """Whether a row's time is known and at or after a day."""
    return has_time(row) and row["event_timestamp"] >= day


# Through Dagster

HEADER = "event_id,customer_id,event_timestamp,event_type,amount"
EVENTS_CSV = [
    HEADER,
    "e1,c1,2024-01-15 00:00:00,purchase,1",
    "e2,c1,2024-01-31 23:59:59.999999,purchase,2",
    "e3,,2024-01-20,purchase,2",
    ",c2,2024-02-01,search,",
    ",c2,2024-02-01,search,",
    "e5,c2,2024-02-02,search,-1",
    "e6,c2,2023-12-31,purchase,1",
    "e7,c2,,purchase,1",
    "e8,,soon,purchase,1",
    "e9,c3,2024-04-10 12:00:00,purchase,1",
    "e10,c3,2024-04-10 11:59:59.999999,purchase,1",
    "e11,c3,2025-04-10,purchase,1",
]
OTHER_CSVS = {
    "customers": [
        "customer_id,updated_at,birth_date",
        "c1,2019-01-01,1990-01-31",
        "c1,2024-04-01,",
    ],
    "reviews": ["customer_id,review_timestamp,text", "c1,2024-02-29 23:59:59,Nice", "c1,,Nice"],
    "satisfaction": [
        "customer_id,surveyed_at,satisfaction_score",
        "c1,2024-01-31,6",
        "c1,2024-01-30,5",
    ],
}


def write_input(folder: Path, **tables: Iterable[str]) -> None:
    (folder / "input").mkdir(parents=True, exist_ok=True)
    for table, lines in tables.items():
        (folder / "input" / f"{table}.csv").write_text("\n".join(lines) + "\n")


def installation(folder: Path, **overrides: Any) -> Settings:
    """Settings over a delivery of all four tables."""
    write_input(folder, events=EVENTS_CSV, **OTHER_CSVS)
    return make_settings(folder, **({"start": START, "end": END} | overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dg.ExecuteInProcessResult]:
    """One run over all slices."""
    installed = installation(tmp_path_factory.mktemp("run"))
    return installed, ingest_run(installed, KEYS[0], KEYS[-1])


Run = tuple[Settings, dg.ExecuteInProcessResult]


def test_a_run_conserves_every_source_row(run: Run) -> None:
    tables = {"events": EVENTS_CSV, **OTHER_CSVS}
    kept = {name: len(stored(run[0], f"raw_{name}")) for name in tables}
    rejected = Counter(row["source"] for row in stored(run[0], "quarantined_rows"))
    assert kept == {"events": 5, "customers": 2, "reviews": 1, "satisfaction": 1}
    assert {name: kept[name] + rejected[name] for name in tables} == {
        name: len(lines) - 1 for name, lines in tables.items()
    }
    assert [
        (str(row["slice"]), row["source"], row["line"], row["reason"], row["in_period"])
        for row in stored(run[0], "quarantined_rows")
    ] == [
        ("2024-01-01", "events", 4, "missing_customer_id", True),
        ("2024-01-01", "events", 8, "before_start", False),
        ("2024-01-01", "satisfaction", 2, "out_of_range", True),
        ("2024-02-01", "events", 7, "negative_amount", True),
        ("2024-04-01", "events", 9, "missing_timestamp", False),
        ("2024-04-01", "events", 10, "missing_customer_id", False),
        ("2024-04-01", "events", 11, "future_timestamp", False),
        ("2024-04-01", "events", 13, "future_timestamp", False),
        ("2024-04-01", "reviews", 3, "missing_timestamp", False),
    ]


def metadata(result: dg.ExecuteInProcessResult, table: str, key: str) -> Mapping[str, Any]:
    """The metadata of a materialized partition."""
    event = next(
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(table) and event.partition == key
    )
    return {name: value.value for name, value in event.metadata.items()}


def test_the_quarantine_rate_is_over_the_rows_of_the_period(run: Run) -> None:
    rates = [metadata(run[1], "quarantined_rows", key)["quarantine_rate"] for key in KEYS]
    # January: 2 events, the old profile and a survey kept, one event and one survey rejected.
    assert rates == [pytest.approx(2 / 6), pytest.approx(1 / 4), 0, 0]
    by_reason = metadata(run[1], "quarantined_rows", KEYS[0])["by_reason"]
    assert "| events | before_start | 1 | events.csv:8 |" in by_reason


def test_an_empty_slice_has_a_file_with_the_full_schema(run: Run) -> None:
    for table in tables.RAW_TABLES:
        folder = run[0].home / "offline_store" / table.table.name
        schemas = [pq.read_schema(folder / f"slice={k}" / "part-0.parquet") for k in KEYS]
        types = [dict(zip(schema.names, schema.types, strict=True)) for schema in schemas]
        assert all(each == types[0] for each in types)
        assert list(types[0]) == table.table.column_names
    march = run[0].home / "offline_store/raw_events/slice=2024-03-01/part-0.parquet"
    assert pq.read_metadata(march).num_rows == 0


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The same delivery, slice by slice in another order, and one slice twice."""
    installed = installation(tmp_path_factory.mktemp("sliced"))
    for key in [KEYS[2], KEYS[0], KEYS[3], KEYS[1], KEYS[0]]:
        ingest_run(installed, key)
    return installed


RAW_TABLES = [*(table.table.name for table in tables.RAW_TABLES), quarantine.QUARANTINED_ROWS.name]


@pytest.mark.parametrize("table", RAW_TABLES)
def test_slice_by_slice_gives_the_same_rows_in_the_same_order(
    run: Run, sliced: Settings, table: str
) -> None:
    assert stored(sliced, table) == stored(run[0], table)


def files(installed: Settings) -> dict[str, bytes]:
    root = installed.home / "offline_store"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}


def test_a_second_run_gives_byte_equal_files(run: Run) -> None:
    before = files(run[0])
    ingest_run(run[0], KEYS[0], KEYS[-1])
    assert files(run[0]) == before


def test_slice_by_slice_gives_byte_equal_files(run: Run, sliced: Settings) -> None:
    """Else the digests that show stale partitions change although the data did not."""
    found, wanted = files(sliced), files(run[0])
    # Reviews wait unscored until there are the slices of their topic model.
    assert all(name.startswith("scored_reviews/") for name in set(wanted) - set(found))
    assert found == {name: content for name, content in wanted.items() if name in found}


def test_pending_rows_are_counted_in_the_newest_slice(tmp_path: Path) -> None:
    """A row waits whatever else is wrong with it; it is judged with its own slice."""
    later = ["p1,c1,2024-03-01,search,", "p2,,2024-03-05,search,", "p3,c1,2024-02-29,search,"]
    write_input(tmp_path, events=[*EVENTS_CSV[:9], *later])
    installed = make_settings(tmp_path, start=START)
    calendar, store = installed.calendar(), offline_store(installed)
    now = dt.datetime(2024, 3, 10, tzinfo=dt.UTC)
    known, assets = cataloged(
        store,
        calendar,
        lambda known: raw.assets(calendar, Files(installed.input_folder), known, lambda: now),
    )
    result = dg.materialize(
        assets,
        tags={RANGE_START: KEYS[0], RANGE_END: KEYS[1]},
        resources={"io_manager": OfflineIOManager(known)},
    )
    events = {
        e.partition: e.materialization.metadata
        for e in result.get_asset_materialization_events()
        if e.asset_key == dg.AssetKey("raw_events")
    }
    assert events[KEYS[1]]["pending_rows"].value == 2
    assert "pending_rows" not in events[KEYS[0]]
    total = len(stored(installed, "raw_events")) + len(stored(installed, "quarantined_rows"))
    assert total == 8 + 1


def errors_of(result: dg.ExecuteInProcessResult) -> str:
    """The messages of the first failed step, from the outermost error to its cause."""
    step = next(e for e in result.all_events if e.event_type_value == "STEP_FAILURE")
    error, messages = step.step_failure_data.error, []
    while error is not None:
        messages.append(error.message)
        error = error.cause
    return "\n".join(messages)


def test_a_delivery_that_shrank_is_refused_unless_asked_for(tmp_path: Path) -> None:
    installed = installation(tmp_path)
    ingest_run(installed, KEYS[0])
    before = stored(installed, "raw_events")
    write_input(tmp_path, events=EVENTS_CSV[:2])
    refused = ingest_run(installed, KEYS[0], raise_on_error=False)
    assert not refused.success
    for part in ("raw_events 2024-01-01 has 2 rows", "replaced by 1", "CHURN_ALLOW_SHRINK=1"):
        assert part in errors_of(refused)
    assert stored(installed, "raw_events") == before
    ingest_run(installed.model_copy(update={"allow_shrink": True}), KEYS[0])
    assert [row["event_id"] for row in stored(installed, "raw_events")] == ["e1"]


def test_a_corrected_delivery_replaces_its_slice(tmp_path: Path) -> None:
    installed = installation(tmp_path)
    ingest_run(installed, KEYS[0])
    write_input(tmp_path, events=[*EVENTS_CSV, "e99,c9,2024-01-16,search,"])
    ingest_run(installed, KEYS[0])
    assert len(stored(installed, "raw_events")) == 3


@pytest.mark.parametrize("home", ["/proc/churn", "/sys/churn"])
def test_a_state_folder_that_cannot_be_written_is_named(home: str, tmp_path: Path) -> None:
    installed = installation(tmp_path, home=Path(home))
    refused = ingest_run(installed, KEYS[0], raise_on_error=False)
    assert not refused.success
    assert f"CHURN_HOME ({home}) cannot be written" in errors_of(refused)


def test_a_backfill_names_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    defs = build_definitions(installation(tmp_path, home=Path("/proc/churn")))
    raw_assets = tuple(dg.AssetKey(name) for name in RAW_TABLES)
    batch = Batch(STAGES[0], raw_assets, (KEYS[0],))
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(BackfillFailed, match="CHURN_HOME"),
    ):
        run_batch(batch, defs, instance, lambda step, state: None)


TYPED = [
    ("event_type", pa.array([3, 4], pa.int32())),
    ("event_type", pa.array([True, False])),
    ("event_type", pa.array(["purchase", "Page View"]).dictionary_encode()),
    ("event_id", pa.array([17850.0, 2.5])),
    ("customer_id", pa.array([7, 2**40], pa.int64())),
    ("order_id", pa.array([Decimal("17850.00"), Decimal("2.50")], pa.decimal128(10, 2))),
    ("session_id", pa.array([7, None], pa.uint16())),
    ("channel", pa.array([1, 0], pa.int8())),
    *(
        (name, pa.array(values, dtype))
        for name in ("quantity", "amount")
        for values, dtype in (
            ([1, 200], pa.uint8()),
            ([-1, 2**40], pa.int64()),
            ([2**31 - 1, -5], pa.int32()),
            ([1.25, math.nan], pa.float64()),
            ([math.inf, 1e300], pa.float64()),
            ([Decimal("1.2345"), Decimal("-0.0001")], pa.decimal128(18, 4)),
            ([Decimal("1.23456"), Decimal("9.99995")], pa.decimal128(38, 5)),
            ([Decimal(10) ** 20, None], pa.decimal128(38, 0)),
        )
    ),
]


@pytest.mark.parametrize(("name", "typed"), TYPED)
def test_a_typed_column_is_read_as_its_text(name: str, typed: pa.Array) -> None:
    rows = [PURCHASE | {"event_id": f"e{n}", "order_id": "o"} for n in range(2)]
    table = pa.table({n: pa.array([row[n] for row in rows]) for n in rows[0]})

    def with_column(values: pa.Array) -> pa.Table:
        others = [n for n in table.column_names if n != name]
        return table.select(others).append_column(name, values)

    with utc_connection() as connection:
        connection.register("typed", pa.table({"value": typed}))
        texts = query("SELECT CAST(value AS VARCHAR) AS text FROM typed", connection)
    text = pa.array([row["text"] for row in texts], pa.string())
    (valid, rejected), (of_text, rejected_text) = map(ingested, map(with_column, (typed, text)))
    assert valid == of_text
    assert [row["reason"] for row in rejected] == [row["reason"] for row in rejected_text]
