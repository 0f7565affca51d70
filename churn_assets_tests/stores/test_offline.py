"""Prevents: a partition written in place, a re-run that gives other bytes, a reader that sees half
a file, a run that disturbs another, and a stale file that looks fresh.
"""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.monitoring.inventory import inventory
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import footer
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.tables import CUSTOMER_ID, CUTOFF, Column, cutoff_table
from churn_assets.stores.views import create_views
from churn_assets_tests.conftest import GROUPS, make_settings, materialize, query

CUTOFFS = ["2025-01-01", "2025-02-01"]
NUMBERS = cutoff_table("numbers", [Column("number", "BIGINT", "A number")])


def numbers_store(folder: Path, **settings: object) -> OfflineStore:
    store = offline_store(make_settings(folder, **settings))
    return OfflineStore(store.home, {"numbers": NUMBERS}, store.duckdb)


def numbers(rows: int, cutoffs: list[str], factor: int = 1) -> str:
    """A table of `rows` customers per cutoff, in no order."""
    return " UNION ALL ".join(
        f"SELECT 'c' || i AS customer_id, DATE '{cutoff}' AS cutoff, i * {factor} AS number "
        f"FROM range({rows}) AS r(i)"
        for cutoff in cutoffs
    )


def publish(store: OfflineStore, select: str, keys: list[str]) -> None:
    with store.connect() as connection:
        store.publish(connection, NUMBERS, Query(select), keys, lambda key: {"inputs": "x"})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_one_file_per_partition_sorted_and_self_contained(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    publish(store, numbers(1_000, CUTOFFS), CUTOFFS)
    assert sorted(contents(store.root)) == [
        f"numbers/cutoff={cutoff}/part-0.parquet" for cutoff in CUTOFFS
    ]
    path = store.path(NUMBERS, CUTOFFS[0])
    table = pq.read_table(path, partitioning=None)
    assert table.column_names == ["customer_id", "cutoff", "number"]
    ids = table["customer_id"].to_pylist()
    assert ids == sorted(ids)
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    # Other engines find the partitions by the names of the folders.
    by_cutoff = query(
        f"SELECT cutoff, count(*) AS n FROM read_parquet('{store.root}/numbers/*/*.parquet', "
        "hive_partitioning = true) GROUP BY 1 ORDER BY 1"
    )
    assert [row["n"] for row in by_cutoff] == [1_000, 1_000]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bytes_depend_on_the_rows_alone(tmp_path: Path, threads: int) -> None:
    reference = numbers_store(tmp_path / "reference")
    publish(reference, numbers(300_000, CUTOFFS), CUTOFFS)
    other = numbers_store(tmp_path / "other", duckdb_threads=threads)
    for cutoff in reversed(CUTOFFS):
        publish(other, f"SELECT * FROM ({numbers(300_000, [cutoff])}) ORDER BY random()", [cutoff])
    assert contents(other.root) == contents(reference.root)


def test_rows_of_other_partitions_are_refused(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    with pytest.raises(ValueError, match="10 rows of partition 2025-02-01"):
        publish(store, numbers(10, CUTOFFS), CUTOFFS[:1])
    assert not contents(store.root)


def test_an_empty_partition_has_the_full_schema(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    publish(store, numbers(0, CUTOFFS), CUTOFFS)
    table = pq.read_table(store.path(NUMBERS, CUTOFFS[0]), partitioning=None)
    assert table.num_rows == 0
    assert table.column_names == ["customer_id", "cutoff", "number"]


@pytest.mark.parametrize("older_first", [True, False])
def test_fractions_beside_whole_numbers_of_an_older_version_are_kept(
    older_first: bool, tmp_path: Path
) -> None:
    table = cutoff_table("numbers", [Column("number", "DECIMAL(38, 4)", "A number")])
    paths = [tmp_path / "older.parquet", tmp_path / "newer.parquet"]
    for path, number in zip(
        paths, ["CAST(2 AS BIGINT)", "CAST(0.75 AS DECIMAL(38, 4))"], strict=True
    ):
        select = f"SELECT 'c' AS customer_id, DATE '2025-01-01' AS cutoff, {number} AS number"
        duckdb.execute(f"COPY ({select}) TO '{path}'")
    scan = Scan(table, tuple(paths if older_first else paths[::-1]))
    assert query(f"SELECT sum(number) AS total FROM {scan.sql}") == [{"total": Decimal("2.75")}]


def test_a_missing_partition_is_named(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    publish(store, numbers(10, CUTOFFS[:1]), CUTOFFS[:1])
    with pytest.raises(FileNotFoundError, match=r"numbers lacks 1 of 2 .* 2025-02-01"):
        store.scan(NUMBERS, CUTOFFS)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A shop after ingestion. Tests go on from a copy."""
    settings = shop_settings(tmp_path_factory.mktemp("ingested"))
    materialize(settings, "ingest", "2025-01-01", "2025-05-01")
    return settings


def copy_of(ingested: Settings, folder: Path) -> Settings:
    shutil.copytree(ingested.home, folder / "state")
    return shop_settings(folder)


def test_bytes_depend_neither_on_threads_nor_on_what_is_made_together(
    ingested: Settings, tmp_path: Path
) -> None:
    settings = copy_of(ingested, tmp_path / "whole")
    materialize(settings, "features", "2025-04-01", "2025-06-01")
    other = shop_settings(tmp_path / "one_by_one").model_copy(update={"duckdb_threads": 1})
    materialize(other, "ingest", "2025-01-01", "2025-05-01")
    job = build_definitions(other).resolve_job_def("features")
    for group in reversed(GROUPS):
        for cutoff in ("2025-06-01", "2025-04-01"):
            asset = dg.AssetKey(group.name)
            tags = {RANGE_START: cutoff, RANGE_END: cutoff}
            job.execute_in_process(asset_selection=[asset], tags=tags)
    made = contents(other.home)
    wanted = contents(settings.home)
    assert made.items() <= wanted.items()
    assert sum("features/cutoff=" in name for name in made) == 2 * len(GROUPS)


def shop_settings(folder: Path) -> Settings:
    return make_settings(
        folder,
        source="synthetic",
        synthetic_customers=300,
        start=dt.date(2025, 1, 1),
        end=dt.datetime(2025, 6, 1, tzinfo=dt.UTC),
    )


WRITER = """
import sys
from pathlib import Path
from churn_assets_tests.stores.test_offline import CUTOFFS, numbers, numbers_store, publish
factor = 0
while True:
    factor += 1
    publish(numbers_store(Path(sys.argv[1])), numbers(200_000, CUTOFFS, factor), CUTOFFS)
    print(factor, flush=True)
"""


def test_a_killed_writer_leaves_whole_partitions(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    for kill in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + 0.11 * kill)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        for cutoff in CUTOFFS:
            partition = query(
                "SELECT count(*) AS n, sum(number) // 19999900000 AS factor, "
                "sum(number) % 19999900000 AS rest "
                f"FROM '{store.path(NUMBERS, cutoff)}'"
            )[0]
            assert partition["n"] == 200_000
            assert partition["factor"] >= 1
            assert partition["rest"] == 0
    assert [folder.name for folder in store.root.iterdir()] == ["numbers"]


def test_leftovers_of_killed_runs_are_removed_after_a_day(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    publish(store, numbers(1, CUTOFFS), CUTOFFS)
    old, new = store.home / "staging" / "old.parquet", store.home / "staging" / "new.parquet"
    for leftover in (old, new):
        leftover.touch()
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    publish(store, numbers(1, CUTOFFS), CUTOFFS)
    assert not old.exists()
    assert new.exists()


BACKFILL = """
import sys
from pathlib import Path
from churn_assets_tests.conftest import materialize
from churn_assets_tests.stores.test_offline import shop_settings
for _ in range(3):
    materialize(shop_settings(Path(sys.argv[1])), "features", sys.argv[2], sys.argv[2])
"""


def test_concurrent_backfills_of_other_cutoffs_lose_nothing(
    ingested: Settings, tmp_path: Path
) -> None:
    alone, shared = (copy_of(ingested, tmp_path / name) for name in ("alone", "shared"))
    materialize(alone, "features", "2025-04-01", "2025-05-01")
    runs = [
        subprocess.Popen([sys.executable, "-c", BACKFILL, str(tmp_path / "shared"), cutoff])
        for cutoff in ("2025-04-01", "2025-05-01")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert contents(shared.home) == contents(alone.home)


def test_running_again_gives_equal_bytes(ingested: Settings, tmp_path: Path) -> None:
    settings = copy_of(ingested, tmp_path)
    before = None
    for run in range(2):
        if run:
            materialize(settings, "ingest", "2025-01-01", "2025-05-01")
        materialize(settings, "features", "2025-04-01", "2025-06-01")
        materialize(settings, "training_data", "2025-04-01", "2025-05-01")
        after = contents(settings.home)
        assert before is None or after == before
        before = after
    # One cutoff at a time writes what the range wrote.
    for cutoff in ("2025-05-01", "2025-04-01", "2025-06-01"):
        materialize(settings, "features", cutoff, cutoff)
    assert contents(settings.home) == before


def test_a_replaced_slice_makes_exactly_its_dependants_stale(tmp_path: Path) -> None:
    settings = shop_settings(tmp_path)
    store, instance = offline_store(settings), dg.DagsterInstance.ephemeral()
    materialize(settings, "ingest", "2025-01-01", "2025-05-01", instance)
    materialize(settings, "features", "2025-04-01", "2025-06-01", instance)

    def stale() -> dict[str, list[str]]:
        rows = inventory(
            build_definitions(settings),
            store,
            settings.calendar(),
            instance,
            dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        )
        return {row.asset.path[-1]: sorted(row.stale) for row in rows if row.stale}

    assert stale() == {}
    january = store.path(store.tables["raw_events"], "2025-01-01")
    said = ", ".join(f"{name}: '{value}'" for name, value in footer(january).provenance.items())
    with store.connect() as connection:
        connection.execute(
            f"COPY (SELECT * REPLACE (amount + 1 AS amount) FROM '{january}') "
            f"TO '{january}.new' (FORMAT parquet, KV_METADATA {{{said}}})"
        )
    Path(f"{january}.new").replace(january)
    now_stale = stale()
    assert now_stale["daily_activity"] == ["2025-01-01"]
    # The lookback of May and June begins after January; all-time groups reach back for ever.
    assert now_stale["customer_activity_features"] == ["2025-04-01", "2025-05-01"]
    assert now_stale["customer_rfm_features"] == ["2025-04-01", "2025-05-01", "2025-06-01"]
    materialize(settings, "ingest", "2025-01-01", "2025-01-01", instance)
    assert stale() == {}


def test_partition_column_and_key_are_declared() -> None:
    assert NUMBERS.columns[:2] == (CUSTOMER_ID, CUTOFF)
    assert NUMBERS.primary_key == ("customer_id", "cutoff")


def test_a_view_reads_partitions_from_before_a_column_was_declared(tmp_path: Path) -> None:
    store = numbers_store(tmp_path)
    publish(store, numbers(2, CUTOFFS), CUTOFFS)
    later = replace(NUMBERS, columns=(*NUMBERS.columns, Column("added", "DOUBLE", "A new one")))
    with store.connect() as connection:
        create_views(connection, replace(store, tables={"numbers": later}))
        rows = connection.sql("SELECT number, added FROM numbers ORDER BY ALL").fetchall()
    assert rows == [(0, None), (0, None), (1, None), (1, None)]


def test_duckdb_spills_into_a_folder_whose_parent_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "scratch" / "of" / "duckdb"
    store = OfflineStore(
        tmp_path, {}, {"temp_directory": str(folder), "memory_limit": "60MB", "threads": 1}
    )
    with store.connect() as connection:
        rows = connection.execute(
            "SELECT count(DISTINCT md5(CAST(i AS VARCHAR))) FROM range(2000000) AS t(i)"
        ).fetchall()
    assert rows == [(2_000_000,)]
