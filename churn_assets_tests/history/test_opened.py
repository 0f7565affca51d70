"""A slice that reads only its own files and row groups has the rows that a whole reading gives it.

Prevents: a file that is left out though it has rows of the slice, a way of writing that is decided
from some of the files, a row without a time that is in no quarantine or in two, a file that is as
before and is read again.
"""

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import Cadence, Calendar
from churn_assets.history import opened as opening
from churn_assets.history import validation
from churn_assets.history.deliveries import Delivery
from churn_assets.history.opened import open_table
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.ways import Refused
from churn_assets.sources import files as files_of_source
from churn_assets.sources.files import Files
from churn_assets.sources.manifest import look, read_manifest, record
from churn_assets.sources.tables import EVENTS
from churn_assets_tests.conftest import Row, query, utc_connection

START = dt.date(2024, 1, 10)
END = dt.datetime(2024, 4, 20, 12, tzinfo=dt.UTC)
DUMP = Calendar(START, END)
KEYS = ["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]
NOW = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)


def just_before(instant: dt.datetime) -> dt.datetime:
    return instant - dt.timedelta(milliseconds=1)


INSTANTS = st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2024, 5, 1)).map(
    lambda instant: instant.replace(microsecond=instant.microsecond // 1000 * 1000)
)
EDGES = st.sampled_from([dt.datetime(2024, month, 1) for month in (2, 3, 4)])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": st.integers(0, 9).map(str),
            "customer_id": st.sampled_from(["c1", "c2", None]),
            "event_timestamp": st.one_of(INSTANTS, EDGES, EDGES.map(just_before), st.none()),
            "event_type": st.sampled_from(["purchase", "search"]),
            "amount": st.sampled_from(["1.25", "2", "-1"]),
        }
    ),
    min_size=1,
    max_size=6,
)
FORMATS = st.sampled_from(["csv", "jsonl", "us", "ns", "utc", "text"])


def write(path: Path, rows: Sequence[Row], form: str) -> None:
    """Rows as a file; of Parquet with row groups of two, so that some can be skipped."""
    table = pd.DataFrame(rows)
    times = pd.to_datetime(table["event_timestamp"])
    if form in ("us", "ns", "utc"):
        unit = {"us": "datetime64[us]", "ns": "datetime64[ns]", "utc": "datetime64[us, UTC]"}[form]
        table["event_timestamp"] = (
            times.dt.tz_localize("UTC").astype(unit) if form == "utc" else times.astype(unit)
        )
    else:
        table["event_timestamp"] = times.dt.strftime("%Y-%m-%d %H:%M:%S.%f")
    match form:
        case "csv":
            table.to_csv(path.with_suffix(".csv"), index=False)
        case "jsonl":
            table.to_json(path.with_suffix(".jsonl"), orient="records", lines=True)
        case _:
            pq.write_table(
                pa.Table.from_pandas(table, preserve_index=False),
                path.with_suffix(".parquet"),
                row_group_size=2,
            )


def of_slices(
    home: Path, folder: Path, keys: Sequence[str], calendar: Calendar = DUMP, now: dt.datetime = NOW
) -> dict[str, list[Row]]:
    """What one run makes of slices: their rows, and those in quarantine."""
    source = Files(str(folder))
    with utc_connection() as connection:
        connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
        seen = look(home, "events", source.input_files(EVENTS), now)
        opened = open_table(connection, source, EVENTS, seen, calendar, keys)
        assert opened is not None
        opened = opened.with_untimed(calendar, keys[-1])
        delivery = Delivery(now, record(home, "events", opened.seen))
        found: dict[str, list[Row]] = {key: [] for key in keys}
        for some, rows in opened.read(connection, calendar, keys):
            validation.read_slices(connection, opened, rows, calendar, some, delivery=delivery)
            collect(found, query("FROM valid_rows ORDER BY ALL", connection))
        collect(found, query("FROM rejected_rows ORDER BY ALL", connection))
    return found


def collect(found: dict[str, list[Row]], rows: Iterable[Row]) -> None:
    """Add rows to those of their slices; columns that only other files have are left out."""
    for row in rows:
        if "row" in row:
            row["row"] = {k: v for k, v in json.loads(row["row"]).items() if v is not None}
        found[str(row["slice"])].append(row)


def at_once(folder: Path) -> dict[str, list[Row]]:
    """What a reading of all files and slices makes of them."""
    with utc_connection() as connection:
        connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
        table = Files(str(folder)).read(connection, EVENTS, END, END)
        validation.ingest(connection, EVENTS, table, DUMP, KEYS)
        found: dict[str, list[Row]] = {key: [] for key in KEYS}
        for rows in ("valid_rows", "rejected_rows"):
            collect(found, query(f"FROM {rows} ORDER BY ALL", connection))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(ROWS, FORMATS), min_size=1, max_size=5),
    st.permutations(KEYS),
    st.sampled_from([1, 3, 1000]),
)
def test_slices_read_by_themselves_equal_a_reading_of_all(
    tmp_path_factory: pytest.TempPathFactory,
    files: Sequence[tuple[list[Row], str]],
    order: Sequence[str],
    rows_at_once: int,
) -> None:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("input")
    for number, (rows, form) in enumerate(files):
        write(folder / f"events-{number}", rows, form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "ROWS_AT_ONCE", rows_at_once)
        patch.setattr(opening.OpenedTable, "require_times", lambda self: None)
        patch.setattr(validation.OpenedTable, "require_times", lambda self: None)
        expected = at_once(folder)
        found: dict[str, list[Row]] = {}
        for key in order:
            found |= of_slices(home, folder, [key])
        assert {key: found[key] for key in KEYS} == expected
        assert of_slices(home, folder, KEYS) == expected
