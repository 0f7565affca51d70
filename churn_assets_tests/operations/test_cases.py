"""Inputs that version 0.1 read wrong, as they were found; what is right is in their expect.txt.

Prevents that one of these kinds comes back. The same kinds with other values are in test_formats,
test_deliveries, test_raw and in the tests of the sources.
"""

import datetime as dt
import re
from pathlib import Path

import pytest

from churn_assets.operations.inspection import InspectedTable, inspected
from churn_assets_tests.conftest import make_settings

CASES = Path(__file__).parents[3] / "shared" / "cases"
NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
WINDOW = ("2025-01-01", "2025-03-01")

# By case: the events that are ingested, and of the others how many for which reason.
READ: dict[str, tuple[int, dict[str, int]]] = {
    "01-hash-first-column": (25, {}),
    "05-late-quotes": (2, {"before_start": 25_000}),
    "06-late-quote-comma": (30_001, {}),
    "07-bracket-file-name": (2, {}),
    "08-star-file-name": (2, {}),
    "09-one-bad-byte": (4, {"unreadable_row": 1}),
    "10-all-timestamps-unreadable": (5, {}),
    "11-shopify-offset": (9, {"unparseable_timestamp": 3, "future_timestamp": 1}),
    "12-uk-dates-online-retail": (28, {}),
    "14-cp1252-euro": (4, {}),
    "15-utf16": (1, {}),
    "16-ragged-row": (1_000, {"unreadable_row": 1}),
    "17-short-row": (1_000, {"unreadable_row": 1}),
    "18-footer-line": (20, {"unreadable_row": 1}),
    "19-mixed-newlines": (6, {}),
    "20-json-array": (2, {}),
    "21-json-300-keys": (3, {}),
    "23-json-empty-key": (1, {}),
    "24-json-bom": (2, {}),
    "26-negative-amount-refund": (5, {}),
    "27-amount-column-missing": (1, {}),
    "28-null-words": (4, {"missing_customer_id": 10}),
    "29-float-text-ids": (2, {}),
    "30-decimal-comma": (6, {}),
    "31-other-suffixes": (4, {}),
    "32-upper-case-name": (3, {}),
    "33-hive-folder": (2, {}),
    "34-spark-folder": (1, {}),
    "35-fraction-quantity": (3, {}),
    "36-negative-quantity": (8, {"out_of_range": 2, "unparseable_number": 2}),
    "37-bad-birth-date": (1, {}),
    "38-line-number-ids": (12, {}),
    "40-binary-ids": (2, {"missing_customer_id": 1}),
    "41-ns-and-9999": (1, {"future_timestamp": 1}),
    "43-ctrl-z": (2, {}),
    "44-prefix-clash": (1, {}),
    "46-all-rows-unreadable-whole-backfill": (685, {}),
    "49-monthly-subscription-28-days": (186, {}),
}
REFUSED = {
    "03-header-appended-midfile": r"events\.csv:7: 5 fields, the header has 3",
    "25-shopify-lines": r"2 of 3 rows have no usable event_timestamp.*events\.csv:3",
}
# What has to be said beside it.
SAID = {
    "27-amount-column-missing": "the source has no column amount",
    "37-bad-birth-date": "birth_date of 4 rows cannot be used",
    "49-monthly-subscription-28-days": "CHURN_HORIZON_DAYS=31 sees them come back",
}
UNREAD = {"44-prefix-clash": ["customers_segments.csv"]}
SETTINGS = {
    "05-late-quotes": ("2025-02-01", "2025-03-01"),
    "12-uk-dates-online-retail": ("2010-01-01", "2011-03-01"),
    "46-all-rows-unreadable-whole-backfill": ("2024-01-01", "2024-06-01"),
    "49-monthly-subscription-28-days": ("2024-01-01", "2024-07-01"),
}


def inspected_case(name: str, home: Path) -> list[InspectedTable]:
    start, end = SETTINGS.get(name, WINDOW)
    settings = make_settings(
        home,
        source="online_retail" if "online-retail" in name else "files",
        input_dir=CASES / name / "input",
        start=start,
        end=end,
    )
    return list(inspected(settings, NOW).tables)


@pytest.mark.skipif(not CASES.exists(), reason="needs the inputs in ../shared/cases")
@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_a_case_gives_what_is_right(name: str, tmp_path: Path) -> None:
    events, *others = inspected_case(name, tmp_path)
    if name in REFUSED:
        assert re.search(REFUSED[name], events.problem or "")
        return
    assert events.problem is None
    ingested, reasons = READ[name]
    assert (events.ingested, {reason: rows for reason, rows, _ in events.reasons}) == (
        ingested,
        reasons,
    )
    said = " ".join(w for table in (events, *others) for w in table.warnings)
    assert SAID.get(name, "") in said
    assert [file for file, _ in events.unread] == UNREAD.get(name, [])


@pytest.mark.skipif(not CASES.exists(), reason="needs the inputs in ../shared/cases")
def test_every_case_is_here() -> None:
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == {*READ, *REFUSED}
