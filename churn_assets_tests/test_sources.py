"""The same data in every format gives the same rows.

Prevents the simplification of testing each reader with the file that suits it: one CSV of clean
UTF-8, one Parquet file with perfect types. Here typed and untyped, whole and split, compressed,
mixed and badly encoded deliveries of the same events have to be ingested as equal rows.
"""

import csv
import datetime as dt
import gzip
import io
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_assets import raw
from churn_assets.cutoffs import Calendar, midnight
from churn_assets.sources import Source
from churn_assets.sources.files import Files
from churn_assets.sources.online_retail import OnlineRetail
from churn_assets_tests.conftest import Row, query, utc_connection

CALENDAR = Calendar(dt.date(2024, 1, 1), midnight(dt.date(2024, 3, 1)))
ROWS: list[Row] = [
    {
        "event_id": "e1",
        "customer_id": "17850",
        "event_timestamp": "2024-01-31T23:59:59.999999",
        "event_type": "purchase",
        "product_id": 'café, "crème"\nbrûlée',
        "quantity": "2",
        "amount": "0.1",
        "color": "blue",
    },
    {
        "event_id": "e2",
        "customer_id": "17851",
        "event_timestamp": "2024-02-01T00:00:00",
        "event_type": " Browse ",
        "product_id": None,
        "quantity": None,
        "amount": None,
        "color": None,
    },
    {
        "event_id": "e3",
        "customer_id": "17850",
        "event_timestamp": "2024-02-29T12:00:00.5",
        "event_type": "refund",
        "product_id": "p'1",
        "quantity": "1",
        "amount": "19.99",
        "color": "grün",
    },
    {
        "event_id": "e4",
        "customer_id": None,
        "event_timestamp": "2024-02-10T00:00:00",
        "event_type": "purchase",
        "product_id": None,
        "quantity": "1",
        "amount": "5",
        "color": "red",
    },
]
PRODUCTS = {row["event_id"]: row["product_id"] for row in ROWS}


def ingested(source: Source, calendar: Calendar = CALENDAR) -> tuple[list[Row], list[Row]]:
    """The valid and the rejected events of all slices."""
    keys = calendar.slices.get_partition_keys()
    begin, end = calendar.slice_window(keys[0])[0], calendar.slice_window(keys[-1])[1]
    with utc_connection() as connection:
        connection.execute(f"CREATE TEMP TABLE rejected_rows AS {raw.QUARANTINED_ROWS.empty()}")
        table = source.read(connection, raw.EVENTS, begin, end)
        raw.ingest(connection, raw.EVENTS, table, calendar, keys)
        return (
            query("FROM valid_rows ORDER BY event_timestamp, event_id", connection),
            query("FROM rejected_rows ORDER BY row_number", connection),
        )


# Ways to deliver rows


def typed(rows: Sequence[Row], ids: pa.DataType = pa.string()) -> pa.Table:
    """The rows as a careful data engineer writes them, or with ids as pandas does."""
    return pa.table(
        {
            "event_id": pa.array([r["event_id"] for r in rows], pa.string()),
            "customer_id": pa.array([r["customer_id"] for r in rows], pa.string()).cast(ids),
            "event_timestamp": pa.array(
                [
                    dt.datetime.fromisoformat(r["event_timestamp"]).replace(tzinfo=dt.UTC)
                    for r in rows
                ],
                pa.timestamp("us", "UTC"),
            ),
            "event_type": [r["event_type"] for r in rows],
            "product_id": pa.array([r["product_id"] for r in rows], pa.string()),
            "quantity": pa.array([r["quantity"] for r in rows], pa.string()).cast(pa.int32()),
            "amount": pa.array([r["amount"] for r in rows], pa.string()).cast(pa.float64()),
            "color": pa.array([r["color"] for r in rows], pa.string()),
        }
    )


def csv_text(rows: Sequence[Row], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_lines(rows: Sequence[Row]) -> str:
    """JSON with numbers as numbers and without the keys of missing values."""
    numbers = {"customer_id": int, "quantity": int, "amount": float}
    return "".join(
        json.dumps({k: numbers.get(k, str)(v) for k, v in row.items() if v is not None}) + "\n"
        for row in rows
    )


Writer = Callable[[Path], object]
WRITERS: dict[str, Writer] = {
    "parquet": lambda d: pq.write_table(typed(ROWS), d / "events.parquet"),
    "parquet, numeric ids": lambda d: pq.write_table(
        typed(ROWS, pa.float64()), d / "events.parquet"
    ),
    "parquet, several": lambda d: [
        pq.write_table(typed(ROWS[:2]), d / "events_1.parquet"),
        pq.write_table(typed(ROWS[2:]).drop(["color"]), d / "events_2.PARQUET"),
    ],
    "csv": lambda d: (d / "events.csv").write_text(csv_text(ROWS)),
    "csv, upper-case header": lambda d: (d / "events.csv").write_text(
        csv_text([{k.upper(): v for k, v in row.items()} for row in ROWS])
    ),
    "csv, byte-order mark": lambda d: (d / "events.csv").write_text(csv_text(ROWS), "utf-8-sig"),
    "csv, gzip": lambda d: (d / "events.csv.gz").write_bytes(
        gzip.compress(csv_text(ROWS).encode())
    ),
    "csv, semicolons": lambda d: (d / "events.csv").write_text(csv_text(ROWS, ";")),
    "csv, several": lambda d: [
        (d / f"events-2024-0{n}.csv").write_text(csv_text([row])) for n, row in enumerate(ROWS)
    ],
    "tsv": lambda d: (d / "events.tsv").write_text(csv_text(ROWS, "\t")),
    "csv, latin-1": lambda d: (d / "events.csv").write_text(csv_text(ROWS), "latin-1"),
    "json lines": lambda d: (d / "events.jsonl").write_text(json_lines(ROWS)),
    "json lines, gzip": lambda d: (d / "events.jsonl.gz").write_bytes(
        gzip.compress(json_lines(ROWS).encode())
    ),
    "mixed": lambda d: [
        pq.write_table(typed(ROWS[:1]), d / "events_1.parquet"),
        (d / "events_2.csv").write_text(csv_text(ROWS[1:2])),
        (d / "events_3.json").write_text(json_lines(ROWS[2:])),
    ],
    "mixed, numeric ids": lambda d: [
        pq.write_table(typed(ROWS[:1], pa.float64()), d / "events_1.parquet"),
        (d / "events_2.csv").write_text(csv_text(ROWS[1:])),
    ],
    "parquet, text and numeric ids": lambda d: [
        pq.write_table(typed(ROWS[:1], pa.float64()), d / "events_1.parquet"),
        pq.write_table(typed(ROWS[1:]), d / "events_2.parquet"),
    ],
    "csv, mixed encodings": lambda d: [
        (d / "events_1.csv").write_text(csv_text(ROWS[:1]), "latin-1"),
        (d / "events_2.csv").write_text(csv_text(ROWS[1:]), "utf-8"),
        (d / "events_3.csv").write_text(csv_text([ROWS[0] | {"event_id": "e5"}]), "utf-8"),
    ],
}


@pytest.mark.parametrize("way", WRITERS)
def test_every_format_gives_the_same_rows(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    WRITERS[way](folder)
    valid, rejected = ingested(Files(str(folder)))
    assert {row["event_id"]: row["product_id"] for row in valid if row["event_id"] == "e5"} in (
        {},
        {"e5": PRODUCTS["e1"]},
    )
    facts = [
        (
            row["event_id"],
            row["slice"].isoformat(),
            row["event_timestamp"].isoformat(),
            row["customer_id"],
            row["event_type"],
            row["product_id"],
            row["quantity"],
            row["amount"],
        )
        for row in valid
        if row["event_id"] != "e5"
    ]
    assert facts == [
        ("e1", "2024-01-01", "2024-01-31T23:59:59.999999+00:00", "17850", "purchase")
        + (PRODUCTS["e1"], 2, Decimal("0.1000")),
        ("e2", "2024-02-01", "2024-02-01T00:00:00+00:00", "17851", "page_view")
        + (None, 1, Decimal("0.0000")),
        ("e3", "2024-02-01", "2024-02-29T12:00:00.500000+00:00", "17850", "refund")
        + ("p'1", 1, Decimal("19.9900")),
    ]
    assert [(row["reason"], json.loads(row["row"]).get("event_id")) for row in rejected] in (
        [("missing_customer_id", "e4")],
        [("missing_customer_id", None)],  # upper-case header
    )
