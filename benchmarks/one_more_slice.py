"""One more slice, after a short history and after one ten times as long, whatever files it lies in.

    python -m benchmarks.one_more_slice [--customers 100000] [--times 10] [--work FOLDER]
        [--layout monthly …] [--runs 3]

The slice that arrives has the same rows both times, so its cost should not depend on the history.
Stage `ingest` reads it as Dagster runs it, with validation, quarantine, rollups and contracts, in a
process that has its imports behind it. The state knows the files of the history from the slice
before. Seconds are medians, the ratio is theirs. What the slice gives is compared first: the same
rows after both histories and in all layouts that have the same rows.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow.parquet as pq

from benchmarks.history import END, START, run
from churn_assets.cutoffs import midnight
from churn_assets.definitions import build_definitions
from churn_assets.settings import Settings
from churn_assets.sources.presets import write_preset
from churn_assets.sources.shop import Shop

BEFORE, SLICE = "2026-05-01", "2026-06-01"
MANY = 10_000
AS_INVOICES = """SELECT customer_id AS "CustomerID", event_timestamp AS "InvoiceDate",
    coalesce(order_id, event_id) AS "InvoiceNo", product_id AS "StockCode",
    coalesce(quantity, 1) AS "Quantity", coalesce(amount, 0) AS "UnitPrice" FROM """


def copy(rows: str, path: Path, options: str = "FORMAT parquet") -> None:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"COPY ({rows}) TO '{path}' ({options})")


def by_month(rows: str, folder: Path, name: str) -> None:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        months = f"SELECT DISTINCT strftime(event_timestamp, '%Y-%m') FROM '{rows}' ORDER BY 1"
        for (month,) in connection.execute(months).fetchall():
            of_month = f"'{rows}' WHERE strftime(event_timestamp, '%Y-%m') = '{month}'"
            select = f"{AS_INVOICES}{of_month}" if name == "online_retail" else f"FROM {of_month}"
            connection.execute(
                f"COPY ({select}) TO '{folder / name}-{month}.parquet' (FORMAT parquet)"
            )


def many(rows: str, folder: Path) -> None:
    table = pq.read_table(rows)
    size = -(-len(table) // MANY)
    for number in range(MANY):
        pq.write_table(table.slice(number * size, size), folder / f"events-{number:05}.parquet")


def grow(rows: str, folder: Path) -> None:
    added = folder.parent / "added.csv"
    copy(f"FROM '{rows}'", added, "FORMAT csv, HEADER false")
    with (folder / "events.csv").open("ab") as file, added.open("rb") as more:
        shutil.copyfileobj(more, file)


def as_invoices(history: str, folder: Path) -> None:
    by_month(history, folder, "online_retail")
    write_preset("online_retail", str(folder))


# Of each layout, how the history is written and how the slice arrives.
LAYOUTS: dict[str, tuple[Callable[[str, Path], None], Callable[[str, str, Path], None]]] = {
    "monthly": (
        lambda history, folder: by_month(history, folder, "events"),
        lambda _, rows, folder: copy(f"FROM '{rows}'", folder / "events-2026-06.parquet"),
    ),
    "one Parquet": (
        lambda history, folder: copy(f"FROM '{history}'", folder / "events.parquet"),
        lambda history, rows, folder: copy(
            f"FROM '{history}' UNION ALL FROM '{rows}'", folder / "events.parquet"
        ),
    ),
    "growing CSV": (
        lambda history, folder: copy(
            f"FROM '{history}'", folder / "events.csv", "FORMAT csv, HEADER"
        ),
        lambda _, rows, folder: grow(rows, folder),
    ),
    "10,000 files": (
        many,
        lambda _, rows, folder: copy(f"FROM '{rows}'", folder / "events-99999.parquet"),
    ),
    "preset": (
        as_invoices,
        lambda _, rows, folder: copy(
            f"{AS_INVOICES}'{rows}'", folder / "online_retail-2026-06.parquet"
        ),
    ),
}


def write_rows(work: Path, customers: int) -> Path:
    """The shop's history before the slice, as one file."""
    path = work / f"history-{customers}.parquet"
    if not path.exists():
        pq.write_table(Shop(customers, seed=7, start=START).events(START, END), path)
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            kept = f"FROM '{path}' WHERE event_timestamp < TIMESTAMPTZ '{SLICE} 00:00:00+00'"
            connection.execute(f"COPY ({kept}) TO '{path}.kept' (FORMAT parquet)")
        Path(f"{path}.kept").replace(path)
    return path


def measure(layout: str, history: Path, rows: Path, folder: Path) -> float:
    """Seconds of the slice after a history; what it gives is left in `folder`."""
    written, arrives = LAYOUTS[layout]
    settings = Settings(
        home=folder / "state",
        input_dir=folder / "input",
        source="files",
        start=START,
        end=midnight(END),
    )
    Path(settings.input_folder).mkdir(parents=True)
    written(str(history), Path(settings.input_folder))
    defs = build_definitions(settings)
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        run(defs, instance, "ingest", BEFORE, BEFORE)
        arrives(str(history), str(rows), Path(settings.input_folder))
        seconds, _ = run(defs, instance, "ingest", SLICE, SLICE)
    return seconds


def made(folder: Path, layout: str) -> tuple[int, str]:
    """How many rows the slice has, and a digest of them."""
    path = folder / f"state/offline_store/raw_events/slice={SLICE}/part-0.parquet"
    columns = "customer_id, event_timestamp" if layout == "preset" else "*"
    text = "CAST(rows AS VARCHAR)"
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT count(*), md5(string_agg({text}, '|' ORDER BY {text})) "
            f"FROM (SELECT {columns} FROM '{path}') AS rows"
        ).fetchall()
    rows, digest = found[0]
    return int(rows), str(digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=10, help="how much longer the long history is")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "one_more_slice")
    parser.add_argument("--layout", nargs="*", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        history, rows, folder = map(Path, arguments.measure)
        print(f"seconds {measure(arguments.layout[0], history, rows, folder):.3f}")
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = arguments.work / "slice.parquet"
    whole = Shop(arguments.customers, seed=7, start=START).events(START, END)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("whole", whole)
        kept = f"FROM whole WHERE event_timestamp >= TIMESTAMPTZ '{SLICE} 00:00:00+00'"
        connection.execute(f"COPY ({kept}) TO '{rows}' (FORMAT parquet)")
    del whole
    sizes = (arguments.customers, arguments.customers * arguments.times)
    histories = [write_rows(arguments.work, customers) for customers in sizes]
    counts = [pq.read_metadata(path).num_rows for path in (*histories, rows)]
    print(f"{counts[2]:,} rows after {counts[0]:,} and after {counts[1]:,} rows of history")
    for layout in arguments.layout:
        seconds: list[list[float]] = [[], []]
        for _ in range(arguments.runs):
            results = []
            for which, history in enumerate(histories):
                folder = arguments.work / "run"
                shutil.rmtree(folder, ignore_errors=True)
                command = [sys.executable, "-m", __spec__.name, "--layout", layout]
                ended = subprocess.run(
                    [*command, "--measure", str(history), str(rows), str(folder)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if ended.returncode:
                    sys.exit(ended.stderr)
                seconds[which].append(float(ended.stdout.split()[-1]))
                results.append(made(folder, layout))
            assert results[0] == results[1], "the slice has other rows after the longer history"
        short, long = map(statistics.median, seconds)
        print(f"{layout:14} {short:5.2f} s   {long:5.2f} s   ratio {long / short:.2f}", flush=True)


if __name__ == "__main__":
    main()
