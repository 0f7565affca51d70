"""Prevents: a line that vanishes, a value that is silently another, a file that stops all others,
and a name that is taken for a pattern.

Files are written by writers that are not ours: Python's csv and json, pandas and pyarrow.
"""

import bz2
import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.sources import blocks
from churn_assets.sources.csv_rows import Dialect, find_dialect
from churn_assets.sources.input_files import InputFile, Unread, input_files, named_after
from churn_assets.sources.reading import columns_of, read_files
from churn_assets.sources.rows import OURS
from churn_assets.sources.text import UnreadableInput
from churn_assets_tests.conftest import Row, query

Rows = list[Row]


def read(folder: Path) -> Rows:
    """All rows of all files of a folder, with what was found about them."""
    files, _ = input_files(folder)
    with duckdb.connect() as connection:
        relation = read_files(connection, files, "rows_text").sql
        return query(f"FROM {relation} ORDER BY _file, _line", connection)


def values(rows: Rows) -> list[list[object]]:
    """What the rows of one file hold, without what was found about them."""
    return [
        [v for k, v in row.items() if k not in OURS] for row in rows if row["_unreadable"] is None
    ]


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".zip": lambda data: zipped(data),
}


def zipped(data: bytes, name: str = "events.csv") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, data)
    return packed.getvalue()


# What trips readers, in letters that every encoding has. A value does not begin with a quote: which
# one a file of three rows means, nobody can tell then.
CELLS = st.one_of(
    st.sampled_from(
        ["", "0", "17850", "19.90", "o'x", "#1000", "é", '5" pipe', "a,b", "x;y", "z|w"]
    ),
    st.text("ab1 ,;|\t\"'#éü\n\\", max_size=6).map(lambda text: text.lstrip("\"'")),
)
DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "quotechar": st.sampled_from(['"', "'"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
    }
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
    DIALECTS,
    st.sampled_from(ENCODINGS),
    st.sampled_from(list(PACKED)),
)
def test_rows_of_csv_come_back_or_are_told(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    dialect: dict[str, object],
    encoding: str,
    packed: str,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **dialect)  # type: ignore[arg-type]
    header = ["customer_id", "event_timestamp", "event_type"]
    if dialect["quoting"] != csv.QUOTE_ALL:
        text.write(str(dialect["delimiter"]).join(header) + str(dialect["lineterminator"]))
    else:
        writer.writerow(header)
    writer.writerows(rows)
    folder = tmp_path_factory.mktemp("csv")
    data = text.getvalue().encode(encoding)
    (folder / f"events.csv{packed}").write_bytes(PACKED[packed](data))
    try:
        found = read(folder)
    except UnreadableInput:
        return
    told = [row for row in found if row["_unreadable"] is not None]
    expected = [[cell or None for cell in row] for row in rows]
    if told:
        assert all(row in expected for row in values(found)), (data, told, values(found))
    else:
        assert values(found) == expected, (data, values(found))


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


HEADER = "customer_id,event_timestamp,event_type"
LINE = "c1,2025-01-03,purchase"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("c2,2025-01-03,purchase,o3,mug, blue,1", "7 fields, the header has 4"),
        ("c2,2025-01-03,page_view", "3 fields, the header has 4"),
        ("Generated 2025-02-01", "1 fields, the header has 4"),
        ('"c2,2025-01-03,purchase,o3', "unexpected end of data"),
        ('"c2"x,2025-01-03,purchase,o3', "',' expected after '\"'"),
        ("c2,2025-01-03,caf\xe9,o3", "bad bytes"),
    ],
)
@pytest.mark.parametrize("place", [1, 30, 60])
def test_a_bad_line_is_one_bad_row(bad: str, why: str, place: int, tmp_path: Path) -> None:
    lines = [f"ë{n},2025-01-03,purchase,o{n}".encode() for n in range(60)]
    lines.insert(place - 1, bad.encode("latin-1"))
    content = b"\n".join([f"{HEADER},order_id".encode(), *lines])
    found = read(write(tmp_path, {"events.csv": content}))
    assert [row["customer_id"] for row in found if not row["_unreadable"]] == [
        f"ë{n}" for n in range(60)
    ]
    (told,) = [row for row in found if row["_unreadable"]]
    assert told["_line"] == place + 1
    assert str(told["_unreadable"]).startswith(why)
    assert [row["_line"] for row in found] == list(range(2, 63))


def test_fields_may_be_left_out_where_that_is_a_habit(tmp_path: Path) -> None:
    lines = ["#1,c1,2025-01-03", "#2,c2,2025-01-03", "#3,c3,2025-01-03,late", "#4,c4,2025-01-03"]
    found = read(write(tmp_path, {"events.csv": "\n".join(["o,c,t,reason", *lines])}))
    assert [row["o"] for row in found] == ["#1", "#2", "#3", "#4"]
    assert [row["reason"] for row in found] == [None, None, "late", None]


def test_quotes_and_delimiters_that_come_late_are_those_of_the_first_line(tmp_path: Path) -> None:
    lines = [f"c{n},2025-01-03,purchase,mug" for n in range(120_000)]
    late = ['"zed",2025-01-03,purchase,"mug, ""blue"""', '"ann","2025-01-03",purchase,"two\nlines"']
    text = "\n".join([f"{HEADER},product_id", *lines, *late, *lines[:3]])
    found = read(write(tmp_path, {"events.csv": text}))
    assert len(found) == 120_005
    assert values(found[120_000:120_002]) == [
        ["zed", "2025-01-03", "purchase", 'mug, "blue"'],
        ["ann", "2025-01-03", "purchase", "two\nlines"],
    ]
    assert [row["_line"] for row in found[120_000:]] == [
        120_002,
        120_003,
        120_005,
        120_006,
        120_007,
    ]


def test_lines_of_all_sorts(tmp_path: Path) -> None:
    text = f"\ufeffsep=;\r\n{HEADER.replace(',', ';')};Email;email;\r\n\r\n"
    text += f"{LINE.replace(',', ';')};a;b;\n\r\n{LINE.replace(',', ';')};a;b;;\r\n\x1a"
    found = read(write(tmp_path, {"events.csv": text}))
    assert [row["_line"] for row in found] == [4, 6]
    assert (found[0]["Email"], found[0]["email_2"], found[0]["column_6"]) == ("a", "b", None)


def test_a_line_of_50_mb(tmp_path: Path) -> None:
    text = f'{HEADER},text\n{LINE},"{"long " * 10_000_000}"\n{LINE},short\n'
    found = read(write(tmp_path, {"events.csv": text}))
    assert [len(str(row["text"])) for row in found] == [50_000_000, 5]


def test_a_second_header_with_more_columns_stops_the_file(tmp_path: Path) -> None:
    text = "\n".join([HEADER, LINE, f"{HEADER},amount", *[f"{LINE},5"] * 9])
    with pytest.raises(UnreadableInput, match=r"events.csv:3: 4 fields, the header has 3"):
        read(write(tmp_path, {"events.csv": text}))


OBJECTS = st.dictionaries(
    st.sampled_from(["customer_id", "amount", "", "ID", "id", "x y", "k'"]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.text(max_size=5),
        st.integers(-(10**30), 10**30),
        st.decimals(-(10**12), 10**12, places=4, allow_nan=False),
        st.lists(st.text(max_size=2), max_size=2),
    ),
    min_size=1,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=5), st.sampled_from(["lines", "array", "indented"]))
def test_rows_of_json_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], shape: str
) -> None:
    told = partial(json.dumps, default=lambda v: f"<decimal {v}>", ensure_ascii=False)
    lines = [told(row) for row in rows]
    lines = [re.sub(r'"<decimal (.*?)>"', r"\1", line) for line in lines]
    text = "\n".join(lines)
    if shape != "lines":
        text = f"[{', '.join(lines)}]"
    if shape == "indented":
        text = "[\n" + ",\n".join(lines) + "\n]\n"
    folder = tmp_path_factory.mktemp("json")
    found = read(write(folder, {"events.json": text}))
    assert [row["_unreadable"] for row in found] == [None] * len(rows)
    expected = [sorted(filter(None, map(as_text, row.values()))) for row in rows]
    assert [sorted(filter(None, map(str, kept))) for kept in map(present, found)] == expected


def present(row: dict[str, object]) -> list[object]:
    return [v for k, v in row.items() if k[:1] != "_" and v is not None]


def as_text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def test_what_is_no_json_is_told(tmp_path: Path) -> None:
    text = '{"a": 1}\n[1]\n{"a": \n\n{"a": 2.5000}\n{"a": 4}\n{"a": 3, "b": {"c": 1'
    found = read(write(tmp_path, {"events.jsonl": text}))
    assert [(row["_line"], row["a"]) for row in found] == [
        (1, "1"), (2, None), (3, None), (5, "2.5000"), (6, "4"), (7, None)
    ]  # fmt: skip
    assert [row["_unreadable"] is None for row in found] == [True, False, False, True, True, False]


def test_many_and_sparse_keys(tmp_path: Path) -> None:
    rows = [{f"k{n}": n, "id": n} for n in range(1_000)]
    found = read(write(tmp_path, {"events.jsonl": "\n".join(map(json.dumps, rows))}))
    assert [row["id"] for row in found] == [str(n) for n in range(1_000)]
    assert found[7]["k7"] == "7"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("events.csv", True),
        ("EVENTS3.CSV.GZ", True),
        ("events (2).jsonl", True),
        ("events-2025-01-03.parquet", True),
        ("events_*.csv", True),
        ("events/dt=2025-02-03/part-0.csv", True),
        ("Events.parquet/part-00000-abc.snappy.parquet", True),
        ("events_jan.csv", None),
        ("eventslog.csv", None),
        ("events.txt", None),
        ("old/events.csv", False),
        ("orders.csv", False),
    ],
)
def test_which_table_a_name_means(name: str, named: bool | None, tmp_path: Path) -> None:
    (files, unread) = input_files(write(tmp_path, {name: ""}))
    assert unread == []
    assert [named_after(file, "events") for file in files] == [named]


def test_every_file_is_read_or_told(tmp_path: Path) -> None:
    names = {"events [1].csv": "a\n1", "events 1.csv": "a\n2", "events-*.csv": "a\n3"}
    names |= {"events.parquet/_SUCCESS": "", ".DS_Store": "", "notes.doc": ""}
    packed = {"events-2.zip": zipped(b"a\n4"), "events-3.xlsx.gz": b""}
    files, unread = input_files(write(tmp_path, {**names, **packed}))
    assert [file.name for file in files] == [
        "events 1.csv", "events [1].csv", "events-*.csv", "events-2.zip"
    ]  # fmt: skip
    assert [file.name for file in unread] == ["events-3.xlsx.gz", "notes.doc"]
    assert [row["a"] for row in read(tmp_path)] == ["2", "1", "3", "4"]


def test_parquet_of_many_types(tmp_path: Path) -> None:
    nanos = pa.array([1_738_367_999_999_999_999], pa.timestamp("ns"))
    far = pa.array([253_402_300_799_000_000], pa.timestamp("us"))
    pq.write_table(pa.table({"t": nanos, "a_id": [17850.0]}), tmp_path / "events [1].parquet")
    pq.write_table(pa.table({"t": far, "a_id": [b"o'x"]}), tmp_path / "events-2.parquet")
    found = read(tmp_path)
    assert [str(row["t"]) for row in found] == ["2025-01-31 23:59:59.999999", "9999-12-31 23:59:59"]
    assert [(row["a_id"], row["_file"], row["_line"]) for row in found] == [
        ("17850", "events [1].parquet", 1),
        ("o'x", "events-2.parquet", 1),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("events.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("events.xlsx", b"no", "cannot be read as a workbook"),
        ("events.csv.gz", gzip.compress(b"a,b\n1,2\n")[:-6], "cannot be unpacked"),
        ("events.csv.zst", b"no", "cannot be unpacked"),
        ("events.zip", b"no", "cannot be unpacked"),
        ("events.zip", zipped(b"", "notes.doc"), "holds notes.doc, which is no CSV or JSON file"),
    ],
    # Archives hold the time at which they are packed, which differs between workers.
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_a_damaged_file_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=f"{name} .*{said}|{name} {said}"):
        read(write(tmp_path, {name: content}))


@pytest.mark.parametrize("table", ["_delta_log/0.json", "metadata/v1.metadata.json"])
def test_a_table_with_a_log_of_its_own_is_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Export it as Parquet"):
        input_files(write(tmp_path, {f"events/{table}": "{}"}))


def test_a_value_of_a_folder_is_a_column(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"a": [1]}), write(tmp_path, {"events/x=b/c": ""}) / "events/x=b/0.parquet"
    )
    (file,) = [file for file in input_files(tmp_path)[0] if file.format == "parquet"]
    assert columns_of(file) == ["a", "x"]


def test_pandas_writes_what_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"id": [1, None], "text": ['a "b"', "ü,\n"], "t": pd.Timestamp("2025-01-03")}
    )
    frame.to_csv(tmp_path / "events.csv", index=False, encoding="utf-16")
    frame.to_json(tmp_path / "events.json", orient="records", lines=True, date_format="iso")
    frame.to_excel(tmp_path / "events.xlsx", index=False)
    texts = [row["text"] for row in read(tmp_path)]
    assert texts == ['a "b"', "ü,\n"] * 3


def test_a_name_without_an_ending_is_told(tmp_path: Path) -> None:
    files, unread = input_files(write(tmp_path, {"events": ""}))
    assert files == []
    assert isinstance(unread[0], Unread)
    assert not isinstance(unread[0], InputFile)


def test_half_a_letter_is_told(tmp_path: Path) -> None:
    text = '{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}\n{"a": "\\u00fc"}'
    found = read(write(tmp_path, {"events.jsonl": text}))
    assert [row["a"] for row in found] == [None, "😀", "ü"]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, {"events/1.csv": "a\n1"})
    (tmp_path / "events" / "again").symlink_to(tmp_path)
    files, _ = input_files(tmp_path)
    assert [file.name for file in files] == ["events/1.csv"]


def test_many_columns_and_many_files(tmp_path: Path) -> None:
    columns = [f"note {n}" for n in range(2_000)]
    wide = "\n".join([",".join([HEADER, *columns]), ",".join([LINE, *["x"] * 2_000]), LINE])
    found = read(write(tmp_path / "wide", {"events.csv": wide}))
    assert found[0]["note 1999"] == "x"
    assert "3 fields, the header has 2003" in str(found[1]["_unreadable"])
    many: dict[str, str | bytes]
    many = {f"events/{n // 100}/part-{n:05}.csv": f"{HEADER}\n{LINE}\n" for n in range(2_000)}
    found = read(write(tmp_path / "many", many))
    assert len(found) == len({row["_file"] for row in found}) == 2_000


def test_a_file_that_grows_while_it_is_read_ends_with_a_whole_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer has written one line and a half more when the dialect is found."""
    path = write(tmp_path, {"events.csv": f"{HEADER}\n" + f"{LINE}\n" * 100}) / "events.csv"

    def meanwhile(text: IO[str]) -> Dialect | None:
        found = find_dialect(text)
        with path.open("a") as file:
            file.write(f"{LINE}\nc1,2025-")
        return found

    monkeypatch.setattr(blocks, "find_dialect", meanwhile)
    *rows, last = read(tmp_path)
    assert len(rows) == 101
    assert all(row["customer_id"] == "c1" and row["_unreadable"] is None for row in rows)
    assert str(last["_unreadable"]) == "2 fields, the header has 3: c1,2025-"
