"""Prevents: an inspection that says other than what an ingestion does, that leaves a trace, or that
takes a shop for sound which is not.
"""

import csv
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from churn_assets import cli
from churn_assets.cutoffs import midnight
from churn_assets.operations.inspection import InspectedTable, Inspection, inspected
from churn_assets.settings import Settings
from churn_assets_tests.conftest import ingest_run, make_settings, query

NOW = dt.datetime(2025, 8, 20, 12, tzinfo=dt.UTC)
COLUMNS = ["customer_id", "event_timestamp", "event_type", "order_id", "amount", "note"]


def write(folder: Path, name: str, rows: list[list[Any]], columns: list[str] = COLUMNS) -> None:
    (folder / "input").mkdir(exist_ok=True)
    with (folder / "input" / name).open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def purchases(customer: str, *days: str) -> list[list[Any]]:
    return [[customer, f"{day}T10:00:00Z", "purchase", f"{customer}-{day}", 9.5] for day in days]


def events(found: Inspection) -> InspectedTable:
    return next(table for table in found.tables if table.name == "events")


def test_it_says_what_an_ingestion_does_and_leaves_no_trace(tmp_path: Path) -> None:
    rows = [
        *purchases("a", "2025-01-10", "2025-02-20", "2025-07-30"),
        *purchases("b", "2025-03-01"),
        ["", "2025-03-02T00:00:00Z", "page_view"],
        ["c", "yesterday", "page_view"],
        ["c", "2025-03-02T00:00:00Z", "purchase", "o", "dear"],
        ["c", "2025-03-02T00:00:00Z", "drag", "", "", "unknown"],
        ["c", "2025-03-03T00:00:00Z", "page_view", "", "", "", "one field too many"],
    ]
    write(tmp_path, "events.csv", rows)
    (tmp_path / "input" / "notes.md").write_text("")
    (tmp_path / "input" / "reviews.jsonl").write_text(
        json.dumps({"customer_id": "a", "review_timestamp": "2025-03-01", "rating": 11})
    )
    before = sorted(tmp_path.rglob("*"))
    found = inspected(make_settings(tmp_path), NOW)
    assert sorted(tmp_path.rglob("*")) == before

    table = events(found)
    assert (table.rows, table.ingested, table.others) == (9, 5, ["note"])
    assert table.unread == [("notes.md", table.unread[0][1])]
    assert table.reasons == [
        ("missing_customer_id", 1, "events.csv:6"),
        ("unparseable_number", 1, "events.csv:8"),
        ("unparseable_timestamp", 1, "events.csv:7"),
        ("unreadable_row", 1, "events.csv:10"),
    ]
    of_times = next(c for c in table.columns if c.name == "event_timestamp")
    assert (of_times.given, of_times.usable) == (8, 7)
    assert of_times.first_unusable == "yesterday (events.csv:7)"
    assert table.facts["event types"] == "purchase 4, other 1"
    assert table.facts["event types kept as other"] == "drag 1"
    assert table.facts["rows by file"] == "events.csv 9"
    assert table.facts["time"] == "2025-01-10 10:00 to 2025-07-30 10:00 UTC"
    rating = next(c for t in found.tables if t.name == "reviews" for c in t.columns
                  if c.name == "rating")  # fmt: skip
    assert (rating.given, rating.usable) == (1, 0)
    # Customers and satisfaction are not there.
    assert [t.name for t in found.tables] == ["events", "reviews"]

    assert found.settings == {"CHURN_START": "2025-01-10", "CHURN_END": "2025-07-31"}
    settings = make_settings(
        tmp_path, start=dt.date(2025, 1, 10), end=midnight(dt.date(2025, 7, 31))
    )
    ingest_run(settings, "2025-01-01", "2025-07-01")
    stored = settings.home / "offline_store"
    for name, count in [("raw_events", table.ingested), ("quarantined_rows", 4)]:
        counted = query(f"SELECT count(*) AS n FROM read_parquet('{stored}/{name}/*/*.parquet')")
        assert counted[0]["n"] == count


def test_settings_that_are_set_are_kept(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", purchases("a", "2025-01-10", "2025-02-20", "2025-07-30"))
    settings = make_settings(tmp_path, start=dt.date(2025, 2, 1), end=midnight(dt.date(2025, 7, 1)))
    found = inspected(settings, NOW)
    assert found.settings == {}
    assert events(found).ingested == 1
    assert {reason for reason, *_ in events(found).reasons} == {"before_start", "future_timestamp"}


def test_a_start_behind_all_rows_is_no_crash(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", purchases("a", "2025-01-10", "2025-01-11"))
    found = inspected(make_settings(tmp_path, start=dt.date(2025, 3, 1)), NOW)
    assert found.settings == {}
    assert events(found).reasons == [("before_start", 2, "events.csv:2")]


def test_rows_of_the_future_alone_are_no_history(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", purchases("a", "2031-01-10", "2031-01-11"))
    found = inspected(make_settings(tmp_path), NOW)
    assert found.settings == {}
    assert events(found).reasons == [("future_timestamp", 2, "events.csv:2")]


def test_a_shop_that_goes_on_has_no_end(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", purchases("a", "2025-01-10", "2025-08-19"))
    assert inspected(make_settings(tmp_path), NOW).settings == {"CHURN_START": "2025-01-10"}


def test_a_few_rows_far_off_are_no_history(tmp_path: Path) -> None:
    days = [f"2025-0{1 + n // 28}-{1 + n % 28:02}" for n in range(200)]
    rows = [row for n in range(20) for row in purchases(f"c{n}", *days)]
    write(tmp_path, "events.csv", [*purchases("a", "1970-01-01", "2038-01-01"), *rows])
    found = inspected(make_settings(tmp_path), NOW)
    assert found.settings["CHURN_START"] == "2025-01-01"
    assert found.settings["CHURN_END"] == "2025-08-05"
    assert {reason: n for reason, n, _ in events(found).reasons} == {
        "before_start": 1,
        "future_timestamp": 1,
    }


def test_history_that_is_too_short_says_from_when_on_there_is_what(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", purchases("a", "2025-01-10", "2025-05-20"))
    features, labels, models = inspected(make_settings(tmp_path), NOW).outlook
    assert features == "features: 1 cutoffs, 2025-05-01 to 2025-05-01"
    assert "labels: none, history is too short. They exist from 2025-05-29 on" in labels
    assert "models: none, history is too short. They exist from 2025-07-01 on" in models
    assert "CHURN_END is 2025-05-21" in models


def test_monthly_payers_ask_for_a_longer_horizon(tmp_path: Path) -> None:
    rows = [
        row
        for day in range(1, 32)
        for row in purchases(
            f"s{day}",
            *(f"2025-{month:02}-{min(day, 28 if month == 2 else 30):02}" for month in range(1, 8)),
        )
    ]
    write(tmp_path, "events.csv", rows)
    found = inspected(make_settings(tmp_path), NOW)
    assert found.settings["CHURN_HORIZON_DAYS"] == "31"
    assert any("CHURN_HORIZON_DAYS=31 sees them come back" in w for w in events(found).warnings)
    kept = inspected(make_settings(tmp_path, horizon_days=31), NOW)
    assert "CHURN_HORIZON_DAYS" not in kept.settings
    assert events(kept).warnings == []


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (
            [row for n in range(9) for row in purchases("till", f"2025-05-{n + 1:02}")]
            + [row for n in range(9) for row in purchases(f"c{n}", "2025-05-01")],
            "customer till has 9 of 18 rows",
        ),
        (
            purchases("anna", "2025-05-01") + purchases("Anna", "2025-05-02"),
            "differ from others by case or leading zeros alone, such as Anna and anna",
        ),
        (
            purchases("0017", "2025-05-01") + purchases("17", "2025-05-02"),
            "such as 0017 and 17",
        ),
        (
            [*purchases("a", "2025-05-01"),
             ["a", "2025-05-01T10:00:00Z", "purchase", "a-2025-05-01", "-2"]],
            "1 refunds are lines of an order at the very moment of its purchases",
        ),
        (
            [[*row[:4], 0] for row in purchases("a", "2025-05-01", "2025-05-02")],
            "all 2 purchases have amount 0",
        ),
        (
            [["a", "2025-05-01T10:00:00Z", "kauf", "", "", ""]],
            "the type of none of the 1 rows is known",
        ),
    ],
)  # fmt: skip
def test_what_looks_wrong_is_said(rows: list[list[Any]], word: str, tmp_path: Path) -> None:
    write(tmp_path, "events.csv", rows)
    (warning,) = events(inspected(make_settings(tmp_path), NOW)).warnings
    assert word in warning


def test_reviews_of_another_language_are_told(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", purchases("a", "2025-05-01"))
    texts = ["Sehr gut, gerne wieder", "Das war nichts", "This is good"]
    rows = [["a", "2025-05-01", text] for text in texts]
    write(tmp_path, "reviews.csv", rows, ["customer_id", "review_timestamp", "text"])
    _, reviews = inspected(make_settings(tmp_path), NOW).tables
    (warning,) = reviews.warnings
    assert warning.startswith("2 of 3 texts do not look English")


def test_what_stops_an_ingestion_is_told_of_each_table(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", [["a", "01/02/2025", "purchase", "", "", ""]])
    write(tmp_path, "customers.csv", [["a"]], ["customer_id"])
    found = inspected(make_settings(tmp_path), NOW)
    problems = {table.name: table.problem for table in found.tables}
    assert "may be day first or month first" in str(problems["events"])
    assert "lacks the required column updated_at" in str(problems["customers"])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHURN_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CHURN_INPUT_DIR", str(tmp_path / "input"))

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.churn, arguments)
        return result.exit_code, " ".join(result.output.split())

    assert run("init", "online_retail")[0] == 0
    code, said = run("inspect")
    assert code == 1
    assert "source('*online*retail*') means no file" in said
    lines = ["InvoiceNo,StockCode,Quantity,InvoiceDate,UnitPrice,CustomerID"]
    lines += [f"5363{n},A{n},2,2025-0{n}-15 08:26:00,1.25,17850" for n in range(1, 8)]
    lines += ["53638,A8,2,2025-05-15 08:26:00,cheap,17850"]
    (tmp_path / "input" / "online_retail.csv").write_text("\n".join(lines))
    (tmp_path / "input" / "[draft].txt.bak").write_text("")
    code, said = run("inspect")
    assert code == 0
    assert "7 of 8 rows would be ingested" in said
    assert "1 unparseable_number, the first is online_retail.csv:9" in said
    assert "[draft].txt.bak is not read" in said
    assert "lines of the files: 8, of which the query leaves out 0" in said
    assert "export CHURN_SOURCE=files CHURN_START=2025-01-15" in said
    assert not (tmp_path / "state").exists()

    result = CliRunner().invoke(cli.churn, ["init", "online_retail"])
    assert isinstance(result.exception, FileExistsError)
    assert Settings.model_fields["source"].default == "synthetic"
