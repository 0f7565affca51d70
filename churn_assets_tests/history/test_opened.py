"""A slice that reads only its own files and row groups has the rows that a whole reading gives it.

Prevents: a file that is left out though it has rows of the slice, a way of writing that is decided
from some of the files, a row without a time that is in no quarantine or in two, a file that is as
before and is read again.
"""

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import Calendar
from churn_assets.history import opened as opening
from churn_assets.history import validation
from churn_assets.history.deliveries import Delivery
from churn_assets.history.opened import open_table
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.ways import Refused
from churn_assets.sources import csv_rows, input_files, json_rows
from churn_assets.sources.files import Files
from churn_assets.sources.input_files import InputFile
from churn_assets.sources.manifest import look, read_manifest, record
from churn_assets.sources.reading import FileRows, read_files
from churn_assets.sources.tables import EVENTS
from churn_assets_tests.conftest import Row, query, utc_connection

START = dt.date(2024, 1, 10)
END = dt.datetime(2024, 4, 20, 12, tzinfo=dt.UTC)
DUMP = Calendar(START, END)
KEYS = ["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]
NOW = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)


def just_before(instant: dt.datetime) -> dt.datetime:
    return instant - dt.timedelta(milliseconds=1)


# As files have them: without a zone.
INSTANTS = st.integers(0, 120 * 86_400_000).map(
    lambda ms: dt.datetime.fromisoformat("2024-01-01") + dt.timedelta(milliseconds=ms)
)
EDGES = st.sampled_from(["2024-02-01", "2024-03-01", "2024-04-01"]).map(dt.datetime.fromisoformat)
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
        unit: Any = "datetime64[us, UTC]" if form == "utc" else f"datetime64[{form}]"
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
        files = source.input_files(EVENTS)
        seen = look(home, "events", files, now)
        opened = open_table(connection, source, EVENTS, files, seen, calendar, keys)
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
        if row.get("row", "").startswith("{"):
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


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
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
        expected = at_once(folder)
        found: dict[str, list[Row]] = {}
        for key in order:
            found |= of_slices(home, folder, [key])
        assert {key: found[key] for key in KEYS} == expected
        assert of_slices(home, folder, KEYS) == expected


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files, and parts of files, that are read, as they are."""
    names: list[str] = []

    def spy(connection: Any, files: Sequence[InputFile], name: str) -> FileRows:
        names.extend(file.key for file in files)
        return read_files(connection, files, name)

    monkeypatch.setattr("churn_assets.sources.files.read_files", spy)
    return names


def deliver(folder: Path, name: str, times: Sequence[str], amount: str = "1") -> None:
    lines = [f"e{time},c1,{time},purchase,{amount}" for time in times]
    header = "event_id,customer_id,event_timestamp,event_type,amount"
    (folder / name).write_text("\n".join([header, *lines]) + "\n")


def test_a_slice_reads_its_own_files_alone(tmp_path: Path, opened_files: list[str]) -> None:
    for month in (1, 2, 3):
        deliver(tmp_path, f"events-{month}.csv", [f"2024-0{month}-15 10:00:00"])
    home = tmp_path / "home"
    of_slices(home, tmp_path, [KEYS[0]])
    assert opened_files == ["events-1.csv", "events-2.csv", "events-3.csv"]  # once, to know them
    opened_files.clear()
    (row,) = of_slices(home, tmp_path, [KEYS[1]])[KEYS[1]]
    assert row["event_timestamp"].month == 2
    # What is later is looked at too, where a slice may be the newest: rows may be pending.
    assert opened_files == ["events-2.csv", "events-3.csv"]
    opened_files.clear()
    deliver(tmp_path, "events-2.csv", ["2024-02-15 10:00:00", "2024-02-16 10:00:00"])
    assert len(of_slices(home, tmp_path, [KEYS[1]])[KEYS[1]]) == 2
    assert "events-1.csv" not in opened_files


def test_a_file_that_is_not_read_still_says_how_columns_are_written(tmp_path: Path) -> None:
    """Only January tells that days are first: without it March is read as another day."""
    deliver(tmp_path, "events-1.csv", ["25/01/2024 10:00"])
    deliver(tmp_path, "events-3.csv", ["03/04/2024 10:00"])
    home = tmp_path / "home"
    of_slices(home, tmp_path, KEYS)
    (row,) = of_slices(home, tmp_path, [KEYS[3]])[KEYS[3]]
    assert (row["event_timestamp"].month, row["event_timestamp"].day) == (4, 3)
    # And a new file that contradicts it is refused, though the others are not read for its slice.
    deliver(tmp_path, "events-4.csv", ["04/13/2024 10:00"])
    with pytest.raises(Refused, match="written in two ways"):
        of_slices(home, tmp_path, [KEYS[3]])


def test_a_file_that_tells_more_than_before_has_all_files_read_again(
    tmp_path: Path, opened_files: list[str]
) -> None:
    """Days were first while nothing told another order."""
    deliver(tmp_path, "events-1.csv", ["03/03/2024 10:00"])
    home = tmp_path / "home"
    of_slices(home, tmp_path, KEYS)
    opened_files.clear()
    deliver(tmp_path, "events-4.csv", ["04/15/2024 10:00"])
    assert len(of_slices(home, tmp_path, [KEYS[3]])[KEYS[3]]) == 1
    assert opened_files == ["events-4.csv", "events-1.csv", "events-4.csv"]


def test_columns_of_two_types_are_read_together(tmp_path: Path, opened_files: list[str]) -> None:
    deliver(tmp_path, "events-1.csv", ["2024-01-15 10:00:00"])
    rows = [{"event_id": "a", "customer_id": "c1", "event_type": "purchase", "amount": "2"}]
    write(tmp_path / "events-2", [row | {"event_timestamp": "2024-02-15"} for row in rows], "us")
    home = tmp_path / "home"
    found = of_slices(home, tmp_path, KEYS)
    opened_files.clear()
    assert of_slices(home, tmp_path, [KEYS[1]])[KEYS[1]] == found[KEYS[1]]
    assert {"events-1.csv", "events-2.parquet"} <= set(opened_files)


def test_rows_without_a_time_stay_with_the_run_that_first_read_them(tmp_path: Path) -> None:
    """The newest slice of the run, without CHURN_END; whatever is read later, and again."""
    open_ended = Calendar(START, None)
    home = tmp_path / "home"
    deliver(tmp_path, "events-1.csv", ["2024-01-15 10:00:00", "2024-02-15 10:00:00", "never"])

    def untimed(*keys: str) -> dict[str, int]:
        found = of_slices(home, tmp_path, keys, open_ended)
        return {key: sum("reason" in row for row in rows) for key, rows in found.items()}

    assert untimed(*KEYS[:2]) == {KEYS[0]: 0, KEYS[1]: 1}
    assert untimed(KEYS[2]) == {KEYS[2]: 0}
    assert untimed(KEYS[1]) == {KEYS[1]: 1}
    assert untimed(KEYS[0]) == {KEYS[0]: 0}
    deliver(tmp_path, "events-2.csv", ["2024-01-15 11:00:00", "never"])
    assert untimed(KEYS[0]) == {KEYS[0]: 1}
    assert untimed(*KEYS) == {KEYS[0]: 1, KEYS[1]: 1, KEYS[2]: 0, KEYS[3]: 0}


def test_a_manifest_that_is_lost_is_made_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    deliver(tmp_path, "events-1.csv", ["2024-01-15 10:00:00", "2024-02-15 10:00:00"])
    before = of_slices(home, tmp_path, KEYS)
    kept = read_manifest(home)
    (home / "input_manifest.json").write_text("{")
    assert of_slices(home, tmp_path, KEYS) == before
    assert read_manifest(home) == kept


# Files that grow

HEADER = {"csv": "event_id,customer_id,event_timestamp,event_type,amount,note\n", "jsonl": ""}


NOTES = st.sampled_from(["", "ä", "two\nlines"])


def line_of(form: str, number: int, day: int, note: str) -> str:
    """A row of a log, as the tenth of it is written: the note may be on several lines."""
    time = f"{dt.date(2024, 1, 10) + dt.timedelta(days=day)} 10:00:00.{number:06}"
    row = {"event_id": f"e{number}", "customer_id": f"c{number % 3}", "event_timestamp": time}
    row |= {"event_type": "purchase", "amount": str(number), "note": note}
    if form == "jsonl":
        return json.dumps(row) + "\n"
    return ",".join([*list(row.values())[:-1], f'"{note}"' if "\n" in note else note]) + "\n"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(NOTES, max_size=12), min_size=2, max_size=6).filter(any),
    st.sampled_from(["csv", "jsonl"]),
    st.sampled_from(["utf-8", "utf-8-sig", "cp1252"]),
    st.integers(100, 2_000),
    st.booleans(),
)
def test_a_file_that_grows_is_as_if_it_had_always_been_so(
    tmp_path_factory: pytest.TempPathFactory,
    deliveries: Sequence[Sequence[str]],
    form: str,
    encoding: str,
    part_bytes: int,
    cut_off: bool,
) -> None:
    """Read after each delivery, some of which end within a row; its parts are all of its bytes."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("input")
    path = folder / f"events.{form}"
    number, text = 0, HEADER[form]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_files, "PART_BYTES", part_bytes)
        patch.setattr(csv_rows, "LINES_PER_BLOCK", 3)
        patch.setattr(json_rows, "ROWS_PER_BLOCK", 3)
        patch.setattr(opening.OpenedTable, "require_times", lambda self: None)
        for notes in deliveries:
            for note in notes:
                text += line_of(form, number, 2 * number, note)
                number += 1
            path.write_bytes(text.encode(encoding)[: -5 if cut_off and number else None])
            with suppress(ValueError):  # it has no row yet
                of_slices(home, folder, KEYS)
        path.write_bytes(text.encode(encoding))
        found: dict[str, list[Row]] = {}
        for key in KEYS:
            found |= of_slices(home, folder, [key])
        assert found == at_once(folder)
    parts = sorted(read_manifest(home)["events"].values(), key=lambda file: file.begin)
    ends = [file.begin + (file.part.size if file.part else 0) for file in parts]
    assert [file.begin for file in parts] == [0, *ends[:-1]]
    assert ends[-1] == path.stat().st_size


def test_only_what_a_file_has_grown_by_is_read(
    tmp_path: Path, opened_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_files, "PART_BYTES", 1_000)
    monkeypatch.setattr(csv_rows, "LINES_PER_BLOCK", 5)
    home, path = tmp_path / "home", tmp_path / "events.csv"
    lines = [HEADER["csv"], *(line_of("csv", n, n, "") for n in range(80))]
    path.write_text("".join(lines[:40]))
    of_slices(home, tmp_path, KEYS)
    opened_files.clear()
    path.write_text("".join(lines))
    (march,) = of_slices(home, tmp_path, [KEYS[2]]).values()
    begins = [int(key.partition("//")[2] or 0) for key in opened_files]
    assert begins
    assert min(begins) > 0
    assert len(march) == 29


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "PART_BYTES", 100)
    monkeypatch.setattr(csv_rows, "LINES_PER_BLOCK", 2)


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_is_not_written_as_the_rest_has_the_file_read_as_a_whole(
    tmp_path: Path, opened_files: list[str]
) -> None:
    """Another encoding, which shows only in what came later."""
    home, path = tmp_path / "home", tmp_path / "events.csv"
    old = [HEADER["csv"], *(line_of("csv", n, n, "") for n in range(20))]
    path.write_text("".join(old))
    of_slices(home, tmp_path, KEYS)
    opened_files.clear()
    new = [line_of("csv", n, n, "größer") for n in range(20, 60)]
    path.write_bytes("".join([*old, *new]).encode("cp1252"))
    assert of_slices(home, tmp_path, KEYS) == at_once(tmp_path)
    assert "events.csv" in opened_files


@pytest.mark.usefixtures("small_parts")
def test_a_row_that_is_changed_in_the_middle_is_seen(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "events.csv"
    text = "".join([HEADER["csv"], *(line_of("csv", n, n, "") for n in range(60))])
    path.write_text(text)
    of_slices(home, tmp_path, KEYS)
    path.write_text(text.replace("purchase,30,", "purchase,31,"))
    assert of_slices(home, tmp_path, KEYS) == at_once(tmp_path)
