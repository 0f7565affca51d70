"""Prevents: a command that works only where it was written, an error that is a traceback, and a
backfill that needs more than its command.
"""

import datetime as dt
import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from churn_assets_tests.conftest import query

UCI = Path(__file__).parents[2] / "shared" / "data"


def churn(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it, in a folder without `.env`."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "DAGSTER"))}
    return subprocess.run(
        [Path(sys.executable).parent / "churn", *arguments],
        env=environment | {"CHURN_HOME": str(home / "state"), "NO_COLOR": "1"} | settings,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


SMALL_SHOP = {
    "CHURN_SOURCE": "synthetic",
    "CHURN_SYNTHETIC_CUSTOMERS": "300",
    "CHURN_START": "2025-01-01",
    "CHURN_END": "2025-05-10",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shop")
    run = churn(home, "backfill", **SMALL_SHOP)
    assert run.returncode == 0, run.stderr
    assert "✓ ingest 2025-01-01 … 2025-05-01" in run.stdout
    assert "models: none, history is too short. They exist from 2025-06-01 on" in run.stdout
    return home


def test_a_second_backfill_has_nothing_to_do(shop: Path) -> None:
    views = shop / "state" / "offline_store.duckdb"
    views.unlink()  # as after a kill between the last run and this
    assert "Nothing is missing." in churn(shop, "backfill", **SMALL_SHOP).stdout
    assert views.exists()


def test_status_counts_partitions(shop: Path) -> None:
    lines = churn(shop, "status", **SMALL_SHOP).stdout.splitlines()
    row = next(line for line in lines if "customer_rfm_features" in line)
    assert "2/2" in row


def test_sql_reads_every_table_and_the_log(shop: Path) -> None:
    run = churn(shop, "sql", "SELECT count(*) AS n FROM training_dataset", **SMALL_SHOP)
    assert run.returncode == 0, run.stderr
    run = churn(shop, "sql", "SELECT DISTINCT status, started_by FROM refresh_log", **SMALL_SHOP)
    assert "SUCCESS" in run.stdout
    assert f"churn backfill by {getpass.getuser()}" in run.stdout
    run = churn(shop, "sql", "SELECT nonsense", **SMALL_SHOP)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


def test_the_database_for_people_has_a_view_per_table(shop: Path) -> None:
    with duckdb.connect(str(shop / "state" / "offline_store.duckdb"), read_only=True) as connection:
        views = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
        assert {"raw_events", "daily_orders", "customer_rfm_features", "churn_labels"} <= views
        rows = connection.execute("SELECT count(*) FROM customer_rfm_features").fetchall()
        assert rows[0][0] > 0


def test_sql_writes_the_database_of_a_copied_folder_anew(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "state", tmp_path / "state")
    run = churn(tmp_path, "sql", "SELECT count(*) FROM daily_orders", **SMALL_SHOP)
    assert run.returncode == 0, run.stderr
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{tmp_path}/state/offline_store.duckdb' AS copy (READ_ONLY)")
        rows = connection.execute("SELECT count(*) FROM copy.daily_orders").fetchall()
    assert rows[0][0] > 0


def test_explain_shows_values_windows_and_rows(shop: Path) -> None:
    pattern = shop / "state/offline_store/customer_rfm_features/cutoff=2025-05-01/part-0.parquet"
    customer = query(f"SELECT customer_id FROM '{pattern}' WHERE frequency > 1 LIMIT 1")[0]
    run = churn(shop, "explain", customer["customer_id"], "2025-05-01", **SMALL_SHOP)
    row = next(line for line in run.stdout.splitlines() if " monetary " in line)
    assert "[2025-01-31, 2025-05-01)" in row
    assert "daily_orders" in row
    run = churn(shop, "explain", "nobody", "2025-05-01", **SMALL_SHOP)
    assert run.returncode == 1
    assert "not in the population" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["backfill"], {"CHURN_SOURCE": "files"}, "events*.parquet"),
        (["backfill"], {"CHURN_SOURCE": "nonsense"}, "CHURN_SOURCE"),
        (["backfill"], {"CHURN_END": "2024-01-01"}, "CHURN_END"),
        (["backfill"], {"CHURN_HOME": "/proc/no"}, "CHURN_HOME"),
        (["backfill", "--stage", "nonsense"], {}, "ingest, topics, features"),
        (["backfill", "--from", "2025-04-15"], {}, "2025-04-01 and 2025-05-01"),
        (["backfill", "--from", "2031-04-01"], {}, "outside history"),
        (["backfill", "--last", "1", "--to", "2025-04-01"], {}, "not both"),
        (["explain", "c1", "2025-04-02"], {}, "no partition 2025-04-02"),
        (["online", "get", "c1"], {"REDIS_URL": "redis://127.0.0.1:1"}, "127.0.0.1:1"),
    ],
)
def test_errors_say_what_to_do(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], message: str
) -> None:
    run = churn(tmp_path, *arguments, **(SMALL_SHOP | settings))
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_cutoffs_before_the_first_customer_have_no_model(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    lines = ["customer_id,event_timestamp,event_type,amount"]
    for customer in range(40):
        for day in range(customer % 13, 120, 7 + customer % 13):
            at = dt.date(2025, 1, 2) + dt.timedelta(days=day)
            lines.append(f"c{customer},{at}T10:00:00Z,purchase,{customer}.5")
    (tmp_path / "input" / "events.csv").write_text("\n".join(lines))
    early = {
        "CHURN_SOURCE": "files",
        "CHURN_INPUT_DIR": str(tmp_path / "input"),
        "CHURN_START": "2024-11-01",
        "CHURN_END": "2025-04-05",
        "CHURN_LOOKBACK_DAYS": "30",
        "CHURN_HORIZON_DAYS": "14",
    }
    made = churn(tmp_path, "backfill", **early)
    assert made.returncode == 0, made.stderr
    left_out = "models of 2025-02-01 to 2025-02-01: none, nobody was active"
    assert left_out in " ".join(made.stdout.split())
    again = churn(tmp_path, "backfill", **early)
    assert "Nothing is missing." in again.stdout
    assert left_out in " ".join(again.stdout.split())
    champions = tmp_path / "state" / "offline_store" / "champion_model"
    assert sorted(path.name for path in champions.iterdir()) == [
        "cutoff=2025-03-01",
        "cutoff=2025-04-01",
    ]


@pytest.mark.skipif(not UCI.exists(), reason="needs the UCI data in ../shared/data")
def test_the_uci_data_gives_the_published_populations(tmp_path: Path) -> None:
    settings = {
        "CHURN_SOURCE": "online_retail",
        "CHURN_INPUT_DIR": str(UCI),
        "CHURN_START": "2010-12-01",
        "CHURN_END": "2011-12-10",
    }
    stages = [f"--stage={stage}" for stage in ("ingest", "features", "training_data")]
    run = churn(tmp_path, "backfill", *stages, **settings)
    assert run.returncode == 0, run.stderr
    store = tmp_path / "state" / "offline_store"

    def rows(table: str, sql: str) -> list[dict[str, object]]:
        return query(f"SELECT {sql} FROM read_parquet('{store}/{table}/*/*.parquet')")

    quarantined = rows("quarantined_rows", "count(*) AS n, count(DISTINCT reason) AS reasons")[0]
    assert quarantined == {"n": 135_080, "reasons": 1}
    assert rows("raw_events", "count(*) AS n")[0]["n"] == 541_909 - 135_080
    labels = query(
        "SELECT cutoff, count(*) AS n, round(avg(churned), 3) AS churned "
        f"FROM read_parquet('{store}/churn_labels/*/*.parquet', hive_partitioning = false) "
        "GROUP BY 1 ORDER BY 1"
    )
    assert [row["n"] for row in labels] == [1749, 1812, 1925, 1993, 2001, 2060, 1958, 2189, 2494]
    assert labels[0]["cutoff"] == dt.date(2011, 3, 1)
    assert [row["churned"] for row in labels] == [
        *(0.727, 0.725, 0.654, 0.693, 0.699, 0.689, 0.649, 0.667, 0.595),
    ]
