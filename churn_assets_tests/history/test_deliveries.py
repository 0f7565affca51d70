"""Prevents: a value that an ingestion takes for another one, whoever wrote it and how.

Events go through writers that are not ours, in every way to write times and numbers, encoding,
compression and format, and come back exactly, or in quarantine with a reason, or the whole delivery
is refused because nobody can tell. TEST_DELIVERIES=2000 tries so many.
"""

import csv
import datetime as dt
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from churn_assets.cutoffs import Calendar, midnight
from churn_assets.history.ways import Refused
from churn_assets.sources.files import Files
from churn_assets.sources.text import UnreadableInput
from churn_assets_tests.conftest import Row
from churn_assets_tests.sources.test_reading import PACKED
from churn_assets_tests.sources.test_sources import ingested

CALENDAR = Calendar(dt.date(2024, 1, 1), midnight(dt.date(2024, 4, 1)))
SECOND = dt.timedelta(seconds=1)
NEW_YORK = dt.timezone(-5 * dt.timedelta(hours=1))
KOLKATA = dt.timezone(5.5 * dt.timedelta(hours=1))
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Event:
    """An event as it happened."""

    customer_id: str | None
    at: dt.datetime
    event_type: str
    product_id: str | None
    quantity: Decimal | None
    amount: Decimal | None


def micros(at: dt.datetime) -> int:
    return (at - EPOCH) // dt.timedelta(microseconds=1)


# A way to write an instant, and the steps in which it counts.
TIMES: dict[str, tuple[Callable[[dt.datetime], str], dt.timedelta]] = {
    "iso": (lambda at: at.isoformat(), SECOND / 10**6),
    "zulu": (lambda at: f"{at:%Y-%m-%dT%H:%M:%S}Z", SECOND),
    "without zone": (lambda at: f"{at:%Y-%m-%d %H:%M:%S.%f}", SECOND / 10**6),
    "shopify": (lambda at: f"{at.astimezone(NEW_YORK):%Y-%m-%d %H:%M:%S %z}", SECOND),
    "offset": (lambda at: at.astimezone(KOLKATA).isoformat(), SECOND / 10**6),
    "day first": (lambda at: f"{at:%d/%m/%Y %H:%M}", SECOND * 60),
    "dots": (lambda at: f"{at:%d.%m.%Y %H:%M:%S}", SECOND),
    "month first": (lambda at: f"{at:%m/%d/%Y %I:%M %p}", SECOND * 60),
    "words": (lambda at: f"{at:%b %d, %Y %H:%M:%S}", SECOND),
    "days": (lambda at: f"{at:%Y%m%d}", SECOND * 86_400),
    "seconds": (lambda at: str(micros(at) // 10**6), SECOND),
    "milliseconds": (lambda at: str(micros(at) // 1000), SECOND / 1000),
    "microseconds": (lambda at: str(micros(at)), SECOND / 10**6),
}


def grouped(number: Decimal, thousands: str, point: str) -> str:
    text = f"{number:,}" if thousands else f"{number}"
    return text.translate({ord(","): thousands, ord("."): point})


NUMBERS: dict[str, Callable[[Decimal], str]] = {
    "plain": str,
    "comma": lambda number: grouped(number, "", ","),
    "thousands": lambda number: grouped(number, ",", "."),
    "dots": lambda number: grouped(number, ".", ","),
    "blanks": lambda number: grouped(number, "\u202f", ","),
    "dollars": lambda number: f"${grouped(number, ',', '.')}",
    "euros": lambda number: f"{grouped(number, '.', ',')} €",
}
COLUMNS = ["event_id", "customer_id", "event_timestamp", "event_type", "product_id", "quantity"]
COLUMNS += ["amount"]
Cells = list[dict[str, str | None]]


def written(events: Sequence[Event], time: str, number: str) -> Cells:
    write_time, write_number = TIMES[time][0], NUMBERS[number]
    return [
        {
            "event_id": f"e{n}",
            "customer_id": event.customer_id,
            "event_timestamp": write_time(event.at),
            "event_type": event.event_type,
            "product_id": event.product_id,
            "quantity": None if event.quantity is None else write_number(event.quantity),
            "amount": None if event.amount is None else write_number(event.amount),
        }
        for n, event in enumerate(events)
    ]


# Writers: files of a delivery from cells, in an encoding, packed or not


def by_csv(delimiter: str, quoting: int) -> Callable[[Cells, str], tuple[str, bytes]]:
    def write(cells: Cells, encoding: str) -> tuple[str, bytes]:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(cells)
        return ".csv", text.getvalue().encode(encoding)

    return write


def by_pandas(cells: Cells, encoding: str) -> tuple[str, bytes]:
    return ".csv", pd.DataFrame(cells, columns=COLUMNS).to_csv(index=False).encode(encoding)


def by_pandas_json(cells: Cells, encoding: str) -> tuple[str, bytes]:
    text = pd.DataFrame(cells, columns=COLUMNS).to_json(orient="records", lines=True)
    return ".jsonl", str(text).encode(encoding)


def by_json(cells: Cells, encoding: str) -> tuple[str, bytes]:
    return ".json", json.dumps(cells, ensure_ascii=False, indent=1).encode(encoding)


def by_polars(cells: Cells, encoding: str) -> tuple[str, bytes]:
    frame = pl.DataFrame(cells, schema=dict.fromkeys(COLUMNS, pl.String))
    return ".tsv", frame.write_csv(separator="\t").encode(encoding)


def by_polars_json(cells: Cells, encoding: str) -> tuple[str, bytes]:
    frame = pl.DataFrame(cells, schema=dict.fromkeys(COLUMNS, pl.String))
    return ".ndjson", frame.write_ndjson().encode(encoding)


def by_arrow(cells: Cells, encoding: str) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    arrow_csv.write_csv(table(cells), buffer)
    return ".csv", buffer.getvalue().decode().encode(encoding)


def table(cells: Cells) -> pa.Table:
    return pa.table({name: pa.array([c[name] for c in cells], pa.string()) for name in COLUMNS})


def by_arrow_parquet(cells: Cells, encoding: str) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    pq.write_table(table(cells), buffer, compression="snappy")
    return ".parquet", buffer.getvalue()


def by_polars_parquet(cells: Cells, encoding: str) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    pl.DataFrame(cells, schema=dict.fromkeys(COLUMNS, pl.String)).write_parquet(buffer)
    return ".parquet", buffer.getvalue()


WRITERS: dict[str, Callable[[Cells, str], tuple[str, bytes]]] = {
    "csv": by_csv(",", csv.QUOTE_MINIMAL),
    "excel": by_csv(";", csv.QUOTE_MINIMAL),
    "quoted": by_csv("|", csv.QUOTE_ALL),
    "pandas": by_pandas,
    "pandas json": by_pandas_json,
    "json": by_json,
    "polars": by_polars,
    "polars json": by_polars_json,
    "arrow": by_arrow,
    "parquet": by_arrow_parquet,
    "polars parquet": by_polars_parquet,
}

INSTANTS = st.integers(0, 91 * 86_400 * 10**6 - 1).map(
    lambda passed: midnight(CALENDAR.start) + dt.timedelta(microseconds=passed)
)
AMOUNTS = st.decimals(0, 10**7, places=2) | st.decimals(0, 99, places=4) | st.just(Decimal(0))
EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from(["17850", "0017", "café-1", "O'Neil", "c,1", "x;y", None]),
        INSTANTS,
        st.sampled_from(["purchase", "page_view", "refund"]),
        st.sampled_from([None, 'mug, "blue"', "p1", "Müsli", "a|b", "NA"]),
        st.none() | st.integers(1, 5000).map(Decimal) | st.just(Decimal("0.75")),
        st.none() | AMOUNTS,
    ),
    min_size=1,
    max_size=6,
)


THOUSANDS = re.compile(r"\d{1,3}[.]\d{3}( €)?")


def numbers_of(cells: Cells) -> list[str | None]:
    return [cell[name] for cell in cells for name in ("quantity", "amount")]


def is_as_it_happened(row: Row, event: Event, step: dt.timedelta) -> bool:
    at = EPOCH + (event.at - EPOCH) // step * step
    return row == {
        **row,
        "customer_id": event.customer_id,
        "event_timestamp": at,
        "event_type": event.event_type,
        "product_id": event.product_id,
        "quantity": Decimal(1) if event.quantity is None else event.quantity,
        "amount": event.amount or Decimal(0),
    }


@settings(
    max_examples=int(os.environ.get("TEST_DELIVERIES", 60)),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    EVENTS,
    st.sampled_from(list(TIMES)),
    st.sampled_from(list(NUMBERS)),
    st.sampled_from(list(WRITERS)),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.sampled_from(list(PACKED)),
)
def test_a_delivery_comes_back_or_is_told(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[Event],
    time: str,
    number: str,
    writer: str,
    encoding: str,
    packed: str,
) -> None:
    folder = tmp_path_factory.mktemp("delivery")
    cells = written(events, time, number)
    try:
        ending, data = WRITERS[writer](cells, encoding)
    except UnicodeEncodeError:
        event("cannot be written")
        return  # nobody can write this in that encoding
    if "json" in writer and all(map(THOUSANDS.fullmatch, filter(None, numbers_of(cells)))):
        event("nobody can tell: JSON has a decimal point, and 1.000 may be one")
        return
    if ending == ".parquet":
        packed = ""
    (folder / f"events{ending}{packed}").write_bytes(PACKED[packed](data))
    try:
        valid, rejected = ingested(Files(str(folder)), CALENDAR)
    except (Refused, UnreadableInput) as refused:
        event(f"refused: {type(refused).__name__} {str(refused)[8:60]}")
        return
    event("read")
    for row in valid:
        happened = events[int(str(row["event_id"])[1:])]
        assert is_as_it_happened(row, happened, TIMES[time][1]), (row, happened, data)
    assert len(valid) + len(rejected) == len(events)
    unexpected = {row["reason"] for row in rejected} - {"missing_customer_id"}
    assert not unexpected, (rejected, data)


def test_almost_every_way_is_understood_where_the_values_prove_it(tmp_path: Path) -> None:
    """Prevents that everything is refused, which the test above would not see."""
    events = [
        Event("a", dt.datetime(2024, 2, 25, 13, 30, tzinfo=dt.UTC), "purchase", "p1", Decimal(2),
              Decimal("1234567.89")),
        Event("b", dt.datetime(2024, 1, 13, tzinfo=dt.UTC), "purchase", "p2", Decimal("0.75"),
              Decimal("0.5")),
    ]  # fmt: skip
    for time in TIMES:
        for number in NUMBERS:
            folder = tmp_path / time / number
            folder.mkdir(parents=True)
            ending, data = WRITERS["excel"](written(events, time, number), "utf-8")
            (folder / f"events{ending}").write_bytes(data)
            valid, _ = ingested(Files(str(folder)), CALENDAR)
            assert len(valid) == 2, (time, number)
