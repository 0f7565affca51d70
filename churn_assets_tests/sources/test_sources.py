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
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import openpyxl  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_assets.cutoffs import Calendar, midnight
from churn_assets.history import quarantine, validation
from churn_assets.sources import tables as declared
from churn_assets.sources.files import Files
from churn_assets.sources.online_retail import OnlineRetail
from churn_assets.sources.source import Source
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
CAFE = str(ROWS[0]["product_id"])


def ingested(source: Source, calendar: Calendar = CALENDAR) -> tuple[list[Row], list[Row]]:
    """The valid and the rejected events of all slices."""
    keys = calendar.slices.get_partition_keys()
    begin, end = calendar.slice_window(keys[0])[0], calendar.slice_window(keys[-1])[1]
    with utc_connection() as connection:
        connection.execute(
            f"CREATE TEMP TABLE rejected_rows AS {quarantine.QUARANTINED_ROWS.empty()}"
        )
        table = source.read(connection, declared.EVENTS, begin, end)
        validation.ingest(connection, declared.EVENTS, table, calendar, keys)
        return (
            query("FROM valid_rows ORDER BY event_timestamp, event_id", connection),
            query("FROM rejected_rows ORDER BY file, line", connection),
        )


# Ways to deliver rows


def typed(rows: Sequence[Row], float_ids: bool = False) -> pa.Table:
    """The rows with proper types, or with ids as pandas has them where one is missing."""
    ids = pa.float64() if float_ids else pa.string()
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
        typed(ROWS, float_ids=True), d / "events.parquet"
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
        pq.write_table(typed(ROWS[:1], float_ids=True), d / "events_1.parquet"),
        (d / "events_2.csv").write_text(csv_text(ROWS[1:])),
    ],
    "parquet, text and numeric ids": lambda d: [
        pq.write_table(typed(ROWS[:1], float_ids=True), d / "events_1.parquet"),
        pq.write_table(typed(ROWS[1:]), d / "events_2.parquet"),
    ],
}
EXPECTED: list[Row] = [
    {
        "event_id": "e1",
        "slice": dt.date(2024, 1, 1),
        "event_timestamp": dt.datetime(2024, 1, 31, 23, 59, 59, 999_999, dt.UTC),
        "customer_id": "17850",
        "event_type": "purchase",
        "product_id": CAFE,
        "quantity": 2,
        "amount": Decimal("0.1"),
    },
    {
        "event_id": "e2",
        "slice": dt.date(2024, 2, 1),
        "event_timestamp": dt.datetime(2024, 2, 1, tzinfo=dt.UTC),
        "customer_id": "17851",
        "event_type": "page_view",
        "product_id": None,
        "quantity": 1,
        "amount": Decimal(0),
    },
    {
        "event_id": "e3",
        "slice": dt.date(2024, 2, 1),
        "event_timestamp": dt.datetime(2024, 2, 29, 12, 0, 0, 500_000, dt.UTC),
        "customer_id": "17850",
        "event_type": "refund",
        "product_id": "p'1",
        "quantity": 1,
        "amount": Decimal("19.99"),
    },
]


@pytest.mark.parametrize("way", WRITERS)
def test_every_format_gives_the_same_rows(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    WRITERS[way](folder)
    valid, rejected = ingested(Files(str(folder)))
    facts = [{name: row[name] for name in EXPECTED[0]} for row in valid]
    assert facts == EXPECTED
    assert [row["reason"] for row in rejected] == ["missing_customer_id"]


def folder_with(folder: Path, files: Mapping[str, str]) -> Files:
    """A source over text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return Files(str(folder))


HEADER = "customer_id,event_timestamp,event_type"
LINE = "c1,2024-01-05,purchase"


def test_every_csv_file_has_its_own_encoding(tmp_path: Path) -> None:
    source = folder_with(tmp_path, {"events_1.csv": csv_text(ROWS[:1])})
    again = csv_text([ROWS[0] | {"event_id": "e5"}])
    (tmp_path / "events_2.csv").write_bytes(again.encode("latin-1"))
    assert [row["product_id"] for row in ingested(source)[0]] == [CAFE, CAFE]


def test_an_exported_file_is_decoded_as_latin_1_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(
        f"{HEADER},channel\n{LINE},\xdcber\xa0\xe9\n".encode("latin-1")
    )
    assert ingested(Files(str(tmp_path)))[0][0]["channel"] == "über\xa0é"


def test_unknown_columns_are_kept_in_the_quarantined_row(tmp_path: Path) -> None:
    """Under their own names, even names that the validation uses for itself."""
    rows = f"{HEADER},slice,reason,Row_Number\n,2024-01-05,purchase,6,ours,9\n{LINE},6,ours,9\n"
    valid, rejected = ingested(folder_with(tmp_path, {"events.csv": rows}))
    assert list(valid[0]) == declared.EVENTS.table.column_names
    assert [(row["reason"], row["line"], json.loads(row["row"])) for row in rejected] == [
        (
            "missing_customer_id",
            2,
            {
                "customer_id": None,
                "event_timestamp": "2024-01-05",
                "event_type": "purchase",
                "slice": "6",
                "reason": "ours",
                "Row_Number": "9",
            },
        )
    ]


def test_a_line_that_is_no_row_is_quarantined_with_its_place(tmp_path: Path) -> None:
    files = {"events.csv": f"{HEADER}\n{LINE}\nGenerated 2024-02-01\n{LINE}\n{LINE}\n"}
    valid, rejected = ingested(folder_with(tmp_path, files))
    assert len(valid) == 3
    assert [(row["file"], row["line"], row["reason"]) for row in rejected] == [
        ("events.csv", 3, "unreadable_row")
    ]
    assert json.loads(rejected[0]["row"]) == ("1 fields, the header has 3: Generated 2024-02-01")


ENDINGS = (
    "its ending is none of .parquet .pq .csv .tsv .txt .json .jsonl .ndjson .xlsx .xls .xlsb .ods, "
    "alone or with .gz .zst .bz2 .zip"
)


def test_a_file_that_only_looks_like_a_table_is_told(tmp_path: Path) -> None:
    files = {"events.csv": f"{HEADER}\n{LINE}\n", "events_codes.csv": "code,text\n1,a\n"}
    files |= {"orders.csv": "a\n", "read me.doc": "", "reviews.csv": ""}
    source = folder_with(tmp_path, files)
    with utc_connection() as connection:
        now = midnight(dt.date(2024, 3, 1))
        table = source.read(connection, declared.EVENTS, now, now)
    assert table is not None
    assert [(file.name, file.reason) for file in table.unread] == [
        ("events_codes.csv", "it has no column customer_id, event_timestamp, event_type"),
        ("orders.csv", "it is named after none of events, customers, reviews, satisfaction"),
        ("read me.doc", ENDINGS),
    ]


def test_a_json_key_with_a_quote_is_only_an_unknown_column(tmp_path: Path) -> None:
    line = {"customer_id": "c1", "event_timestamp": "2024-01-05", "event_type": "x", '5" pipe': 1}
    source = folder_with(tmp_path, {"events.jsonl": json.dumps(line)})
    assert len(ingested(source)[0]) == 1


@pytest.mark.parametrize("number", ["0.1", "1234567890.2345", "1e2", '"9999999999.9999"'])
def test_json_amounts_are_exact(number: str, tmp_path: Path) -> None:
    assert json_amount(number, tmp_path) == Decimal(number.strip('"'))


def json_amount(number: str, folder: Path) -> Decimal:
    line = '{"customer_id":"c","event_timestamp":"2024-01-05","event_type":"purchase","amount":%s}'
    source = folder_with(folder, {"events.jsonl": line % number})
    return Decimal(ingested(source)[0][0]["amount"])


@pytest.mark.parametrize(
    "folder",
    [
        "plain",
        "region=north",
        "event_type=refund",
        "[new]",
    ],
)
def test_the_name_of_the_folder_says_nothing(folder: str, tmp_path: Path) -> None:
    source = folder_with(tmp_path / folder, {"events[1].csv": f"{HEADER}\n{LINE}\n"})
    assert [row["event_type"] for row in ingested(source)[0]] == ["purchase"]


@pytest.mark.parametrize("suffix", ["", "2024", "-part-00000-of-1"])
def test_files_belong_to_the_table_they_are_named_after(suffix: str, tmp_path: Path) -> None:
    files = {f"events{suffix}.csv": f"{HEADER}\n{LINE}\n", "notes.csv": "a\n1\n", "events.txt": "?"}
    assert len(ingested(folder_with(tmp_path, files))[0]) == 1


def test_rows_keep_their_numbers_in_a_large_file(tmp_path: Path) -> None:
    """DuckDB reads it with several threads; the line and the row have to belong together."""
    lines = [f"{'' if n % 9 else n},2024-01-05,purchase,{n}" for n in range(1, 200_001)]
    source = folder_with(tmp_path, {"events.csv": "\n".join([f"{HEADER},number", *lines])})
    valid, rejected = ingested(source)
    assert (len(valid), len(rejected)) == (200_000 // 9, 200_000 - 200_000 // 9)
    assert all(row["row"].endswith(f'"{row["line"] - 1}"}}') for row in rejected)


@pytest.mark.parametrize("files", [{}, {"customers.csv": "customer_id\n1\n"}, {"events.doc": ""}])
def test_a_source_without_events_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        ingested(folder_with(tmp_path, files))
    for part in (f"no events files in {tmp_path}", "events*.parquet", "CHURN_INPUT_DIR"):
        assert part in str(refused.value)


def test_only_events_are_required(tmp_path: Path) -> None:
    source = folder_with(tmp_path, {"events.csv": HEADER})
    with utc_connection() as connection:
        now = midnight(dt.date(2024, 3, 1))
        tables = [source.read(connection, table, now, now) for table in declared.RAW_TABLES]
    assert [table is not None for table in tables] == [True, False, False, False]


def test_a_missing_column_is_named_with_the_columns_found(tmp_path: Path) -> None:
    source = folder_with(tmp_path, {"events.csv": "Customer_ID,when,what\nc1,2024-01-05,x\n"})
    with pytest.raises(ValueError) as refused:
        ingested(source)
    for part in (
        f"{tmp_path}/events*",
        "lacks the required columns event_timestamp, event_type.",
        "Customer_ID, when, what",
    ):
        assert part in str(refused.value)


# Online Retail, as published

Line = tuple[str, str, str | None, int, str, float, int | None, str]
LINES: list[Line] = [
    ("536365", "85123A", "CREAM HANGING HEART", 6, "2010-12-01 08:26", 2.55, 17850, "UK"),
    ("536365", "22752", "CAFÉ SIGN £1", 2, "2010-12-01 08:26", 7.65, 17850, "UK"),
    ("536365", "22752", "CAFÉ SIGN £1", 2, "2010-12-01 08:26", 7.65, 17850, "UK"),
    ("C536379", "D", "Discount", -1, "2010-12-11 09:41", 27.5, 14527, "UK"),
    ("536414", "22139", None, 56, "2010-12-31 23:59", 0.0, None, "UK"),
    ("536544", "DOT", "DOTCOM POSTAGE", 1, "2011-01-01 00:00", 569.77, 12347, "UK"),
    ("A563185", "B", "Adjust bad debt", 1, "2011-01-12 14:50", -11062.06, 12346, "UK"),
]
LINE_COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
RETAIL = Calendar(dt.date(2010, 12, 1), midnight(dt.date(2011, 2, 1)))


def write_workbook(folder: Path) -> None:
    """With numbers where they are numbers: most invoices, and customers as floats."""
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    assert sheet is not None
    sheet.append(LINE_COLUMNS)
    for invoice, stock, text, quantity, when, price, customer, country in LINES:
        sheet.append(
            (
                int(invoice) if invoice.isdigit() else invoice,
                int(stock) if stock.isdigit() else stock,
                text,
                quantity,
                dt.datetime.fromisoformat(when),
                price,
                customer and float(customer),
                country,
            )
        )
    workbook.save(folder / "Online Retail.xlsx")


def write_csv(folder: Path) -> None:
    """In Latin-1, with American dates without leading zeros."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(LINE_COLUMNS)
    for line in LINES:
        when = dt.datetime.fromisoformat(line[4])
        american = f"{when.month}/{when.day}/{when.year} {when.hour}:{when.minute:02}"
        writer.writerow([*line[:4], american, *line[5:]])
    (folder / "OnlineRetail.csv").write_text(text.getvalue(), "latin-1")


def write_parquet(folder: Path) -> None:
    columns = dict(zip(LINE_COLUMNS, map(list, zip(*LINES, strict=True)), strict=True))
    columns["InvoiceDate"] = [dt.datetime.fromisoformat(str(w)) for w in columns["InvoiceDate"]]
    table = pa.table(columns)
    floats = table["CustomerID"].cast(pa.float64())
    pq.write_table(table.set_column(6, "CustomerID", floats), folder / "online_retail.parquet")


RETAIL_WRITERS = [write_workbook, write_csv, write_parquet]


@pytest.mark.parametrize("write", RETAIL_WRITERS)
def test_online_retail_as_published(write: Writer, tmp_path: Path) -> None:
    write(tmp_path)
    valid, rejected = ingested(OnlineRetail(str(tmp_path)), RETAIL)
    names = ["slice", "customer_id", "event_type", "order_id", "product_id", "quantity", "amount"]
    assert sorted(tuple(str(row[name]) for name in names) for row in valid) == [
        ("2010-12-01", "14527", "refund", "C536379", "D", "1.0000", "27.5000"),
        ("2010-12-01", "17850", "purchase", "536365", "22752", "2.0000", "15.3000"),
        ("2010-12-01", "17850", "purchase", "536365", "22752", "2.0000", "15.3000"),
        ("2010-12-01", "17850", "purchase", "536365", "85123A", "6.0000", "15.3000"),
        ("2011-01-01", "12346", "refund", "A563185", "B", "1.0000", "11062.0600"),
        ("2011-01-01", "12347", "purchase", "536544", "DOT", "1.0000", "569.7700"),
    ]
    assert {row["event_timestamp"].isoformat() for row in valid} == {
        "2010-12-01T08:26:00+00:00",
        "2010-12-11T09:41:00+00:00",
        "2011-01-01T00:00:00+00:00",
        "2011-01-12T14:50:00+00:00",
    }
    above = 0 if write is write_parquet else 1  # the header
    assert [(r["line"] - above, str(r["slice"]), r["reason"]) for r in rejected] == [
        (5, "2010-12-01", "missing_customer_id"),
    ]


def test_online_retail_has_the_same_ids_in_every_format(tmp_path: Path) -> None:
    ids = []
    for write in RETAIL_WRITERS:
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        ids.append([row["event_id"] for row in ingested(OnlineRetail(str(folder)), RETAIL)[0]])
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == len(ids[0])


def test_online_retail_reads_every_sheet_of_a_workbook(tmp_path: Path) -> None:
    """The second edition has one sheet per year."""
    workbook = openpyxl.Workbook()
    for sheet, line in zip([workbook.active, workbook.create_sheet()], LINES[:2], strict=True):
        assert sheet is not None
        sheet.append(LINE_COLUMNS)
        sheet.append(line)
    workbook.save(tmp_path / "online_retail_II.xlsx")
    assert len(ingested(OnlineRetail(str(tmp_path)), RETAIL)[0]) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,a,x,some,12/1/2010 8:26,2,7,UK", "unparseable_number"),
        ("1,a,x,1,12/1/2010 8:26,much,7,UK", "unparseable_number"),
        ("1,a,x,1,12/32/2010 8:26,2,7,UK", "unparseable_timestamp"),
        ("1,a,x,1,,2,7,UK", "missing_timestamp"),
    ],
)
def test_online_retail_values_that_cannot_be_read(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "OnlineRetail.csv").write_text(
        f"{','.join(LINE_COLUMNS)}\n{line}\n2,a,x,1,12/31/2010 8:26,2,7,UK\n"
    )
    valid, rejected = ingested(OnlineRetail(str(tmp_path)), RETAIL)
    assert (len(valid), [row["reason"] for row in rejected]) == (1, [reason])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "found: none"),
        (["OnlineRetail.csv", "Online Retail.xlsx"], "Online Retail.xlsx, OnlineRetail.csv"),
    ],
)
def test_online_retail_needs_exactly_one_file(names: list[str], found: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=f"exactly one.*{found}.*CHURN_INPUT_DIR"):
        ingested(OnlineRetail(str(tmp_path)), RETAIL)


def test_online_retail_names_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "OnlineRetail.csv").write_text("InvoiceNo,StockCode,Price\n1,a,2\n")
    found = r"(?s)CustomerID.*not found.*InvoiceNo, StockCode, Price"
    with pytest.raises(ValueError, match=found):
        ingested(OnlineRetail(str(tmp_path)), RETAIL)
