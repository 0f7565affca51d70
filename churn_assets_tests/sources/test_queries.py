"""Prevents: a query by which rows are lost on the way, are read by another reader, depend on
threads, or whose secrets come into a message.
"""

import datetime as dt
from pathlib import Path

import duckdb
import pytest

from churn_assets.cutoffs import Calendar, midnight
from churn_assets.history import validation
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.sources import tables as declared
from churn_assets.sources.files import Files
from churn_assets.sources.queries import QueryError
from churn_assets.sources.source import SourceTable
from churn_assets.sources.tables import RawTable
from churn_assets.sources.text import UnreadableInput
from churn_assets_tests.conftest import Row, query, utc_connection

CALENDAR = Calendar(dt.date(2025, 1, 1), midnight(dt.date(2025, 3, 1)))
KEYS = CALENDAR.slices.get_partition_keys()
BEGIN, END = CALENDAR.slice_window(KEYS[0])[0], CALENDAR.slice_window(KEYS[-1])[1]
ORDERS = """Kunde;Datum;Summe
a;15.01.2025 10:00;10,00
b;17.01.2025 11:00;12,50;;7
c;28.02.2025 12:00;8,00
"""
SELECT = """SELECT Kunde AS customer_id, Datum AS event_timestamp, 'purchase' AS event_type,
    Summe AS amount, _file, _line FROM source('orders*.csv')"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "orders (1).csv").write_text(ORDERS)
    return tmp_path


def read(
    folder: Path, sql: str, table: RawTable = declared.EVENTS
) -> tuple[list[Row], list[Row], SourceTable]:
    """The rows of a query, those in quarantine, and what the source says."""
    (folder / f"{table.source_name}.sql").write_text(sql, encoding="utf-8")
    with utc_connection() as connection:
        connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
        source = Files(str(folder)).read(connection, table, BEGIN, END)
        assert source is not None
        validation.ingest(connection, table, source, CALENDAR, KEYS)
        rows = query(f"FROM valid_rows ORDER BY {table.timestamp}, customer_id", connection)
        return rows, query("FROM rejected_rows ORDER BY file, line", connection), source


def test_rows_are_read_as_ours_and_lines_that_are_none_are_kept(folder: Path) -> None:
    rows, rejected, _ = read(folder, SELECT)
    assert [(row["customer_id"], float(row["amount"])) for row in rows] == [("a", 10), ("c", 8)]
    (lost,) = rejected
    assert (lost["reason"], lost["file"], lost["line"]) == ("unreadable_row", "orders (1).csv", 3)
    assert "12,50" in lost["row"]


def test_lines_that_are_no_rows_are_there_once_whatever_the_query_leaves_out(folder: Path) -> None:
    twice = f"{SELECT} WHERE Kunde = 'a' UNION ALL {SELECT} WHERE Kunde = 'c'"
    for sql in (twice, f"{SELECT} WHERE Kunde = 'a'", SELECT.replace(", _file, _line", "")):
        _, rejected, _ = read(folder, sql)
        assert [row["line"] for row in rejected] == [3]


def test_comments_words_in_quotes_and_letters_beyond_ascii(folder: Path) -> None:
    sql = f"""-- é reads source('nothing*')
    /* source('nothing') */ WITH "source" AS ({SELECT})
    SELECT *, 'source(''ö'') ; é' AS channel FROM "source"; -- the end ;
    """
    rows, _, _ = read(folder, sql)
    assert {row["channel"] for row in rows} == {"source('ö') ; é"}


@pytest.mark.parametrize(
    ("pattern", "read_files"),
    [
        ("orders*.csv", {"orders (1).csv", "Orders [2].CSV"}),
        ("orders [2].csv", {"Orders [2].CSV"}),
        ("ORDERS (1).CSV", {"orders (1).csv"}),
        ("*.csv", {"orders (1).csv", "Orders [2].CSV", "old/orders 3.csv"}),
        ("old", {"old/orders 3.csv"}),
        ("*/orders*", {"old/orders 3.csv"}),
    ],
)
def test_only_a_star_means_other_characters(
    pattern: str, read_files: set[str], folder: Path
) -> None:
    (folder / "old").mkdir()
    for name in ("Orders [2].CSV", "old/orders 3.csv"):
        (folder / name).write_text(ORDERS)
    rows, rejected, source = read(folder, SELECT.replace("orders*.csv", pattern))
    assert {row["file"] for row in rejected} == read_files
    assert len(rows) == 2 * len(read_files)
    unread = {"orders (1).csv", "Orders [2].CSV", "old/orders 3.csv"} - read_files
    assert {file.name for file in source.unread} == unread


def test_a_query_stands_for_the_files_that_are_named_after_its_table(folder: Path) -> None:
    (folder / "events.csv").write_text("customer_id\nx\n")
    _, _, source = read(folder, SELECT)
    assert [(f.name, f.reason) for f in source.unread] == [
        ("events.csv", "events.sql does not read it")
    ]


def test_warnings_fill_no_screen(folder: Path) -> None:
    for n in range(1_000):
        (folder / f"note {n}.md").touch()
    _, _, source = read(folder, SELECT)
    assert len(source.unread) == 1_000
    *named, more = source.warnings()
    assert named[0] == f"note 0.md is not read: {source.unread[0].reason}"
    assert (len(named), more) == (10, "990 more files are not read")


def test_a_column_that_files_may_lack(folder: Path) -> None:
    sql = SELECT.replace("_file, _line", "Kanal AS channel, _file, _line")
    with pytest.raises(QueryError, match=r"(?s)Kanal.*Columns of its files: Kunde, Datum, Summe\."):
        read(folder, sql)
    rows, _, _ = read(folder, sql.replace(".csv'", ".csv', 'Kanal', 'datum'"))
    assert [row["channel"] for row in rows] == [None, None]


def test_what_a_query_selects_beside_our_columns_is_said(folder: Path) -> None:
    _, _, source = read(folder, SELECT.replace("Summe AS amount", "Summe AS amuont"))
    assert source.remarks == ("events.sql selects amuont, which events do not have",)
    with pytest.raises(
        ValueError, match=r"events\.sql lacks .* event_type.*Select it in the query"
    ):
        read(folder, SELECT.replace("event_type", "type"))


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM read_csv('orders.csv')", r"read_csv.*source\('orders\*\.csv'\)"),
        ("SELECT 1 FROM", "syntax error"),
        ("SELECT _file, _line FROM source('orders*')", "selects none of our columns"),
        ('SELECT * FROM "orders.csv"', r"read as source\('orders\.csv'\)"),
        ("SELECT * FROM 'orders.csv'", r"read as source\('orders\.csv'\)"),
        ("SELECT * FROM parquet_scan('x')", "parquet_scan"),
        ("SELECT * FROM source(orders)", r"takes text in single quotes"),
        ("SELECT * FROM source()", r"takes text in single quotes"),
        ("SELECT * FROM source('order.csv')", r"means no file\. Files in the folder: orders \(1\)"),
        ("SELECT 'x", "unterminated"),
        ("CREATE TABLE x (a INTEGER)", "last statement has to be a SELECT"),
        ("", "last statement has to be a SELECT"),
        ("SELEC 1", "syntax error"),
        (f"{SELECT} WHERE Datum < $now", r"\$now is not known; there are \$begin and \$end"),
        (f"{SELECT} WHERE Datum < getenv('NO_SUCH_VARIABLE')", "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_a_wrong_query_is_refused_by_its_name(sql: str, message: str, folder: Path) -> None:
    with pytest.raises(QueryError, match=rf"(?s)events\.sql.*{message}"):
        read(folder, sql)


def test_a_database_is_attached_for_the_query_alone(folder: Path) -> None:
    database = folder / "shop.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            """CREATE TABLE orders AS SELECT * FROM (VALUES
            ('a', TIMESTAMPTZ '2025-01-05 00:00:00+00', 1.25), ('b', '2025-02-28 23:00:00+00', 2),
            ('c', '2025-03-01 00:00:00+00', 3)) AS t(customer, ordered, total)"""
        )
    attach = f"ATTACH '{database}' AS shop (READ_ONLY);"
    events = f"""{attach} SELECT customer AS customer_id, ordered AS event_timestamp,
        'purchase' AS event_type, total AS amount
        FROM shop.orders WHERE ordered >= $begin AND ordered < $end"""
    for _ in range(2):
        rows, rejected, source = read(folder, events)
        assert [row["customer_id"] for row in rows] == ["a", "b"]
        assert rejected == []
        assert [file.name for file in source.unread] == ["orders (1).csv", "shop.duckdb"]


def test_what_a_query_sets_is_for_the_query_alone(folder: Path) -> None:
    (folder / "orders (1).csv").write_text(
        "Kunde;Datum\na;2025-01-31 20:00:00\nb;2025-01-31 18:00:00\n"
    )
    sql = """ATTACH ':memory:' AS shop; USE shop; SET TimeZone = 'America/New_York';
        SET default_null_order = 'nulls_first'; SET default_collation = 'NOCASE';
        SELECT Kunde AS customer_id, CAST(Datum AS TIMESTAMPTZ) AS event_timestamp,
            'purchase' AS event_type, _file, _line FROM source('orders*')"""
    rows, rejected, _ = read(folder, sql)
    assert rejected == []
    # Midnight in New York is 5 in the morning: they are of February and January.
    assert [(row["customer_id"], str(row["slice"])) for row in rows] == [
        ("b", "2025-01-01"),
        ("a", "2025-02-01"),
    ]


def test_a_query_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "events.sql").write_bytes("SELECT 'é'".encode("latin-1"))
    with (
        utc_connection() as connection,
        pytest.raises(UnreadableInput, match=r"events\.sql.*UTF-8"),
    ):
        Files(str(folder)).read(connection, declared.EVENTS, BEGIN, END)


def test_a_secret_comes_into_no_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATABASE", "/nowhere/pass'word")
    for sql in (
        "ATTACH getenv('SHOP_DATABASE') AS shop; SELECT 1",
        "SELECT no_such_column FROM (SELECT getenv('SHOP_DATABASE') AS a)",
        "SELECT CAST(getenv('SHOP_DATABASE') AS INTEGER)",
    ):
        with pytest.raises(QueryError) as refused:
            read(folder, sql)
        assert "word" not in str(refused.value)


def test_rows_have_an_order_of_their_own(folder: Path) -> None:
    """Two rows of one identity: which one stays does not depend on threads."""
    sql = """SELECT 'a' AS customer_id, '2025-01-05 10:00' AS event_timestamp, 'o' AS order_id,
        'purchase' AS event_type, 'e' AS event_id, n AS amount FROM range(20000) AS t(n)
        WHERE n > 0 ORDER BY hash(n + {seed})"""
    kept = [read(folder, sql.format(seed=seed))[0][0]["amount"] for seed in range(3)]
    assert kept == [1, 1, 1]


def test_other_tables_have_queries_too(folder: Path) -> None:
    (folder / "events.csv").write_text(
        "customer_id,event_timestamp,event_type\na,2025-01-01,page\n"
    )
    rows, _, source = read(
        folder,
        "SELECT Kunde AS customer_id, Datum AS updated_at, 'gold' AS loyalty_status, _file, _line "
        "FROM source('orders*')",
        declared.CUSTOMERS,
    )
    assert [(row["customer_id"], row["loyalty_status"]) for row in rows] == [
        ("a", "gold"),
        ("c", "gold"),
    ]
    assert source.unread == ()
    with utc_connection() as connection:
        events = Files(str(folder)).read(connection, declared.EVENTS, BEGIN, END)
        assert events is not None
        assert events.unread == ()
