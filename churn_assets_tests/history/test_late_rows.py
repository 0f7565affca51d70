"""Prevents: a late row in a cutoff that could not have known it, a row of the past that disappears,
and a reading again that makes late what was not.

Files are delivered and read without CHURN_END, at moments that the test says.
"""

import datetime as dt
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from churn_assets.cutoffs import Calendar, epoch_us
from churn_assets.history import validation
from churn_assets.history.deliveries import Delivery, EarlierReading
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.sources.files import Files
from churn_assets.sources.manifest import look, record
from churn_assets.sources.tables import EVENTS
from churn_assets_tests.conftest import Row, query, utc_connection

CALENDAR = Calendar(dt.date(2025, 1, 1))
KEYS = ["2025-01-01", "2025-02-01"]
NAMES = "event_id,customer_id,event_timestamp,event_type,order_id,amount"


def at(day: str, hour: int = 0) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2025-{day}T{hour:02}:00:00+00:00")


@dataclass
class Shop:
    """A folder of deliveries, and the slices as they were read."""

    home: Path
    connection: duckdb.DuckDBPyConnection = field(default_factory=utc_connection)
    read_before: dict[str, int] = field(default_factory=dict)

    @property
    def input(self) -> Path:
        return self.home / "input"

    def deliver(self, name: str, rows: Sequence[str]) -> None:
        self.input.mkdir(parents=True, exist_ok=True)
        (self.input / name).write_text("\n".join([NAMES, *rows]) + "\n")

    def read(self, now: dt.datetime, keys: Sequence[str] = KEYS, alike: bool = True) -> list[Row]:
        """Read slices; `alike` says that rows are read as before."""
        source, connection = Files(str(self.input)), self.connection
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}"
        )
        seen = look(self.home, "events", source.input_files(EVENTS), now)
        begin, end = CALENDAR.slice_window(keys[0])[0], CALENDAR.slice_window(keys[-1])[1]
        table = source.read(connection, EVENTS, begin, end)
        earlier = {
            key: EarlierReading(f"slice_{key[5:7]}", self.read_before[key], alike)
            for key in keys
            if key in self.read_before
        }
        delivery = Delivery(now, seen, earlier)
        validation.ingest(connection, EVENTS, table, CALENDAR, keys, delivery)
        record(self.home, "events", seen)
        for key in keys:
            self.read_before.setdefault(key, epoch_us(now))
            connection.execute(
                f"CREATE OR REPLACE TABLE slice_{key[5:7]} AS SELECT * FROM valid_rows "
                f"WHERE slice = DATE '{key}'"
            )
        return self.rows(keys)

    def rows(self, keys: Sequence[str] = KEYS) -> list[Row]:
        parts = " UNION ALL ".join(f"FROM slice_{key[5:7]}" for key in keys)
        return query(
            f"FROM ({parts}) ORDER BY event_timestamp, event_id, known_at", self.connection
        )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.connection.close()


def event(name: str, day: str, amount: str = "1") -> str:
    return f"{name},c,2025-{day}T12:00:00Z,purchase,o{name},{amount}"


def times(rows: Sequence[Row]) -> dict[str, list[tuple[Any, Any]]]:
    """By event, when it became known and when it was withdrawn."""
    found: dict[str, list[tuple[Any, Any]]] = {}
    for row in rows:
        found.setdefault(row["event_id"], []).append((row["known_at"], row["withdrawn_at"]))
    return found


FIRST, SECOND, THIRD = at("03-01", 1), at("03-05", 1), at("03-09", 1)


def test_what_is_read_first_was_known_when_it_happened(shop: Shop) -> None:
    shop.deliver("events.csv", [event("a", "01-05"), event("b", "02-05")])
    assert times(shop.read(FIRST)) == {
        "a": [(at("01-05", 12), None)], "b": [(at("02-05", 12), None)]
    }  # fmt: skip
    before = shop.rows()
    assert shop.read(SECOND) == before


def test_rows_of_a_file_that_came_later_are_known_from_when_it_was_seen(shop: Shop) -> None:
    shop.deliver("events-1.csv", [event("a", "01-05")])
    shop.read(FIRST)
    shop.deliver("events-0.csv", [event("b", "01-04"), event("a", "01-05", "9")])
    found = times(shop.read(SECOND))
    assert found == {"a": [(at("01-05", 12), None)], "b": [(SECOND, None)]}
    [rejected] = query("FROM rejected_rows", shop.connection)
    assert (rejected["reason"], rejected["file"]) == ("duplicate_id", "events-0.csv")
    assert times(shop.read(THIRD)) == found


def test_a_row_that_changed_is_withdrawn_and_comes_late(shop: Shop) -> None:
    shop.deliver("events.csv", [event("a", "01-05"), event("b", "01-06")])
    shop.read(FIRST)
    shop.deliver("events.csv", [event("a", "01-05", "7"), event("b", "01-06")])
    assert times(shop.read(SECOND)) == {
        "a": [(at("01-05", 12), SECOND), (SECOND, None)],
        "b": [(at("01-06", 12), None)],
    }
    shop.deliver("events.csv", [event("b", "01-06")])
    found = times(shop.read(THIRD))
    assert found["a"] == [(at("01-05", 12), SECOND), (SECOND, THIRD)]
    shop.deliver("events.csv", [event("a", "01-05", "7"), event("b", "01-06")])
    again = times(shop.read(at("03-10")))
    assert again["a"] == [*found["a"], (at("03-10"), None)]


def test_equal_lines_without_an_id_are_counted_in_the_order_in_which_they_came(shop: Shop) -> None:
    line = ",c,2025-01-05T12:00:00Z,page_view,,"
    shop.deliver("events-1.csv", [line])
    shop.read(FIRST)
    shop.deliver("events-0.csv", [line])
    assert sorted(known for known, _ in itertools.chain(*times(shop.read(SECOND)).values())) == [
        at("01-05", 12), SECOND
    ]  # fmt: skip


@pytest.mark.parametrize("rewritten", [False, True])
def test_reading_otherwise_makes_nothing_late(shop: Shop, rewritten: bool) -> None:
    shop.deliver("events-1.csv", [event("a", "01-05")])
    shop.read(FIRST)
    shop.deliver("events-2.csv", [event("b", "01-06")])
    if rewritten:
        shop.deliver("events-1.csv", [event("a", "01-05"), event("c", "01-07")])
    before = shop.read(SECOND)
    late = {name for name, [(known, _)] in times(before).items() if known == SECOND}
    assert late == ({"b", "c"} if rewritten else {"b"})
    assert shop.read(THIRD, alike=False) == before


def test_a_source_may_say_when_rows_became_known(shop: Shop) -> None:
    shop.input.mkdir(parents=True)
    names = f"{NAMES},known_at"
    rows = [
        f"{event('a', '01-05')},2025-01-20T00:00:00Z",
        f"{event('b', '01-06')},2025-01-01",
        f"{event('c', '01-07')},2025-09-01",
        f"{event('d', '01-08')},",
    ]
    (shop.input / "events.csv").write_text("\n".join([names, *rows]))
    assert times(shop.read(FIRST)) == {
        "a": [(at("01-20"), None)],
        "b": [(at("01-06", 12), None)],
        "c": [(FIRST, None)],
        "d": [(at("01-08", 12), None)],
    }


def random_deliveries(rng: random.Random) -> list[tuple[dt.datetime, dict[str, list[str]]]]:
    """What the folder holds at each of some moments: rows come late, change, go and come again."""
    folder: dict[str, list[str]] = {}
    found = []
    for number in range(rng.randint(2, 5)):
        for name in rng.sample(["events-1.csv", "events-2.csv", "events-3.csv"], rng.randint(1, 2)):
            rows = dict.fromkeys(folder.get(name, []))
            for row in list(rows):
                if rng.random() < 0.2:
                    rows.pop(row)
            for _ in range(rng.randint(0, 3)):
                own = f"{name[7]}{rng.randrange(4)}"
                rows = {r: None for r in rows if not r.startswith(f"{own},")}
                rows[
                    event(own, f"0{rng.randint(1, 2)}-1{rng.randrange(3)}", str(rng.randrange(3)))
                ] = None
            folder[name] = list(rows)
        found.append((at(f"03-{2 + number:02}", 1), {n: list(r) for n, r in folder.items()}))
    return found


def test_any_deliveries_equal_one_reading_that_says_both_times(tmp_path: Path) -> None:
    """The states of the folder, one after the other, tell when each row was known and withdrawn."""
    for seed in range(60):
        rng = random.Random(seed)
        home = tmp_path / str(seed)
        shop, wanted = Shop(home), list[tuple[str, Any, Any]]()
        live: dict[str, Any] = {}
        for number, (moment, files) in enumerate(random_deliveries(rng)):
            for name, rows in files.items():
                shop.deliver(name, rows)
            now = {row for rows in files.values() for row in rows}
            for row in sorted(set(live) - now):
                wanted.append((row, live.pop(row), moment))
            for row in sorted(now - set(live)):
                happened = dt.datetime.fromisoformat(row.split(",")[2])
                live[row] = happened if number == 0 else moment
            shop.read(moment)
            if rng.random() < 0.3:
                shop.read(moment + dt.timedelta(hours=1), alike=False)
            if rng.random() < 0.3:
                shop.read(moment + dt.timedelta(hours=2))
        wanted += [(row, known, None) for row, known in live.items()]
        found = [
            (row["event_id"], row["event_timestamp"], int(row["amount"]), row["known_at"],
             row["withdrawn_at"])
            for row in shop.rows()
        ]  # fmt: skip
        expected = [
            (row.split(",")[0], dt.datetime.fromisoformat(row.split(",")[2]),
             int(Decimal(row.split(",")[5])), known, withdrawn)
            for row, known, withdrawn in wanted
        ]  # fmt: skip
        assert sorted(found, key=repr) == sorted(expected, key=repr), seed
        shop.connection.close()
