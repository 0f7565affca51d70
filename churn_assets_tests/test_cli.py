"""Prevents: a command that works only where it was written, an error that is a traceback, and a
backfill that needs more than its command.
"""

import datetime as dt
import getpass
import os
import pwd
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import click
import duckdb
import pytest
from click.testing import CliRunner

from churn_assets import cli
from churn_assets.cli.recorded import MOST_CHARACTERS, record_read
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.serving.audit import audit_query
from churn_assets.stores.identity import FILE, AnotherInstallation, find_identity, identify
from churn_assets_tests.conftest import make_settings, query
from churn_assets_tests.served_shop import eventually
from churn_assets_tests.stores.test_private import open_to_others

UCI = Path(__file__).parents[2] / "shared" / "data"


Ended = subprocess.CompletedProcess[str]


def environment(home: Path, settings: dict[str, str]) -> dict[str, str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "DAGSTER"))}
    return others | {"CHURN_HOME": str(home / "state"), "NO_COLOR": "1"} | settings


def churn_process(home: Path, *arguments: str, **settings: str) -> Ended:
    """The command, as a user runs it, in a folder without `.env`."""
    home.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [Path(sys.executable).parent / "churn", *arguments],
        env=environment(home, settings),
        cwd=home,
        umask=0o022,  # as most machines have it
        capture_output=True,
        text=True,
        check=False,
    )


def churn(home: Path, *arguments: str, typed: str = "", **settings: str) -> Ended:
    """The same in this process, without the seconds that a start takes."""
    home.mkdir(parents=True, exist_ok=True)
    code: str | int | None = 0
    umask = os.umask(0o022)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            CliRunner().isolation(input=typed) as (printed, complained, _),
        ):
            # Put back with the rest: a command that uses Dagster sets it.
            patch.setenv("DAGSTER_HOME", "")
            patch.delenv("DAGSTER_HOME")
            for name, value in environment(home, settings).items():
                patch.setenv(name, value)
            patch.chdir(home)
            patch.setattr(sys, "argv", ["churn", *arguments])
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code
            except Exception:
                code = 1
                traceback.print_exc()
            sys.stdout.flush()
            texts = [stream.getvalue().decode() for stream in (printed, complained)]
    finally:
        os.umask(umask)
    return Ended(["churn", *arguments], code if isinstance(code, int) else 1, *texts)


SMALL_SHOP = {
    "CHURN_SOURCE": "synthetic",
    "CHURN_SYNTHETIC_CUSTOMERS": "100",
    "CHURN_START": "2025-01-01",
    "CHURN_END": "2025-05-10",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shop")
    run = churn_process(home, "backfill", **SMALL_SHOP)
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


def test_sql_reads_the_runs_only_for_a_statement_that_names_the_log(shop: Path) -> None:
    runs = shop / "state" / "dagster" / "history" / "runs.db"
    runs.rename(runs.with_suffix(".away"))
    runs.mkdir()  # so that whoever reads it fails
    try:
        run = churn(shop, "sql", "SELECT count(*) AS n FROM raw_events", **SMALL_SHOP)
        assert run.returncode == 0, run.stderr
        assert "refresh_log" in churn(shop, "sql", "SHOW TABLES", **SMALL_SHOP).stdout
        assert churn(shop, "sql", "FROM Refresh_LOG", **SMALL_SHOP).returncode == 1
    finally:
        runs.rmdir()
        runs.with_suffix(".away").rename(runs)
    typed = "SELECT 1;\nSELECT count(*) > 0 AS there FROM refresh_log;\n"
    run = churn(shop, "sql", typed=typed, **SMALL_SHOP)
    assert "true" in run.stdout, run.stderr


def audit(home: Path) -> list[dict[str, object]]:
    """What the audit log says of commands."""
    wanted = "caller, action, source, cutoff, customer_id, found, query"
    return query(f"SELECT {wanted} FROM ({audit_query(home / 'state')}) ORDER BY read_at")


def test_a_read_by_a_command_is_recorded_or_refused(shop: Path) -> None:
    folder = shop / "state" / "serving" / "audit"
    shutil.rmtree(folder, ignore_errors=True)
    churn(shop, "sql", "FROM audit_log -- [é]", **SMALL_SHOP)
    churn(shop, "sql", typed="SELECT 1;\nSELECT nonsense;\nSELECT 2;\n", **SMALL_SHOP)
    churn(shop, "explain", "nobody", "2025-05-01", **SMALL_SHOP)
    found = audit(shop)
    assert {row["caller"] for row in found} == {f"cli:{pwd.getpwuid(os.getuid()).pw_name}"}
    assert [row["query"] for row in found if row["action"] == "sql"] == [
        *("FROM audit_log -- [é]", "SELECT 1;", "SELECT nonsense;"),
    ]
    assert {row["source"] for row in found} == {"offline"}
    asked = found[-1]
    assert (asked["action"], asked["customer_id"], asked["found"]) == ("explain", "nobody", False)
    assert asked["cutoff"] == dt.date(2025, 5, 1)

    shutil.rmtree(folder)
    folder.touch()
    for arguments in (["sql", "SELECT 4711"], ["explain", "nobody", "2025-05-01"]):
        run = churn(shop, *arguments, **SMALL_SHOP)
        assert run.returncode == 1
        assert "Nothing is shown, because the audit log" in run.stderr
        assert "Traceback" not in run.stderr and "4711" not in run.stdout
    folder.unlink()


def test_very_many_customers_and_strange_texts_are_recorded(tmp_path: Path) -> None:
    """DuckDB reads no line of more than 16 MB, and one that it cannot read hides the table."""
    settings = make_settings(tmp_path)
    many = [(f"customer {number}", True) for number in range(2_500)]
    record_read(settings, "contacts", customers=many)
    record_read(settings, "explain", customers=[("\udcff\0\n", False)])
    record_read(settings, "sql", query="\0" * MOST_CHARACTERS)
    with pytest.raises(click.ClickException, match="more than 1,000,000 characters"):
        record_read(settings, "sql", query="x" * (MOST_CHARACTERS + 1))
    found = query(f"SELECT action, request_id, customer_id FROM ({audit_query(settings.home)})")
    contacts = [row for row in found if row["action"] == "contacts"]
    assert {row["customer_id"] for row in contacts} == {customer for customer, _ in many}
    assert len({row["request_id"] for row in contacts}) == 1
    assert len(found) == len(many) + 2


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
    lines = run.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if " revenue_30d_share " in line)
    assert "[2025-04-01, 2025-05-01)" in lines[at]
    assert lines[at + 1].split()[1] == "of"
    assert "[2025-01-31, 2025-05-01)" in lines[at + 1]
    assert sum("   of  " in line for line in lines) == 4
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


def test_cutoffs_before_the_first_customer_have_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("churn_assets.definitions.ESTIMATORS", ESTIMATORS[:1])
    monkeypatch.setattr("joblib.cpu_count", lambda **_: 1)  # workers would load it all again
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
    reads_are_recorded(tmp_path, early)
    a_service_takes_a_snapshot(tmp_path, early)
    assert churn(tmp_path, "report", **early).returncode == 0
    made_by = ("mlflow.db", "mlartifacts", "dagster", "online_store", "offline_store.duckdb")
    assert all((tmp_path / "state" / name).exists() for name in made_by)
    assert not open_to_others(tmp_path / "state")
    champions = tmp_path / "state" / "offline_store" / "champion_model"
    assert sorted(path.name for path in champions.iterdir()) == [
        "cutoff=2025-03-01",
        "cutoff=2025-04-01",
    ]


def reads_are_recorded(home: Path, settings: dict[str, str]) -> None:
    """Contacts that are shown or written, and the row that is served."""
    free = settings | {"CHURN_CONTACT_COST": "0"}
    assert churn(home, "contacts", "--limit", "2", **free).returncode == 0
    run = churn(home, "contacts", "--out", str(home / "all.csv"), **free)
    assert run.returncode == 0, run.stderr
    written = query(f"SELECT customer_id FROM '{home}/all.csv'")
    assert len(written) > 2
    assert f"{len(written)} customers to contact at 2025-04-01" in run.stdout
    assert churn(home, "online", "get", "c1", **settings).returncode == 0
    assert churn(home, "online", "get", "nobody", **settings).returncode == 1
    found = audit(home)
    shown = [row["customer_id"] for row in found if row["action"] == "contacts"]
    every = [row["customer_id"] for row in written]
    assert Counter(shown) == Counter([*every[:2], *every])
    got = [row for row in found if row["action"] == "online get"]
    assert [(row["customer_id"], row["found"]) for row in got] == [("c1", True), ("nobody", False)]
    assert {row["source"] for row in got} == {"redis"}
    assert {row["cutoff"] for row in found} == {dt.date(2025, 4, 1), None}


def a_service_takes_a_snapshot(home: Path, settings: dict[str, str]) -> None:
    churn = str(Path(sys.executable).parent / "churn")
    command = [churn, "serve", "--port", "0", "--workers", "1"]
    environment = os.environ | {"CHURN_HOME": str(home / "state")} | settings
    process = subprocess.Popen(command, env=environment, umask=0o022, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: list((home / "state" / "serving").glob("*.arrow")))
    finally:
        process.terminate()
        process.wait()


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


def test_commands_are_where_they_were_and_load_when_they_are_needed() -> None:
    code = "import churn_assets.cli, sys; print(sorted({'dagster', 'pydantic'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout == "[]\n"
    assert {
        *("init", "inspect", "backfill", "status", "report", "sql", "explain", "contacts"),
        *("accept", "online", "serve", "api-key"),
    } <= set(cli.churn.list_commands(click.Context(cli.churn)))


# Commands that store nothing, or that are the way out of a refusal.
FREE = {"init", "inspect", "api-key", "reset", "adopt"}
GIVEN = {
    "accept": ["raw_events", "--reason=r"],
    "erase": ["c", "--yes"],
    "explain": ["c", "2025-05-01"],
    "sql": ["SELECT 1"],
    "online get": ["c"],
}


def commands(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all commands, those of groups with their group's."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))
        else:
            yield " ".join((*names, name))


@pytest.mark.parametrize("name", sorted(set(commands(cli.churn)) - FREE))
def test_a_command_refuses_the_state_of_other_settings_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify(make_settings(tmp_path, source="synthetic"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHURN_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CHURN_CADENCE", "weekly")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    result = CliRunner().invoke(cli.churn, [*name.split(), *GIVEN.get(name, [])])
    assert isinstance(result.exception, AnotherInstallation), result.output
    assert "CHURN_CADENCE=monthly and not weekly" in str(result.exception)
    assert "churn reset --yes" in str(result.exception)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_code_location_refuses_the_state_of_other_settings(tmp_path: Path) -> None:
    identify(make_settings(tmp_path, source="synthetic"))
    environment = os.environ | {"CHURN_HOME": str(tmp_path / "state")}
    load = [sys.executable, "-c", "import churn_assets.definitions"]
    ran = subprocess.run(load, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    environment |= {"CHURN_SEED": "8"}
    ran = subprocess.run(load, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "CHURN_SEED=7 and not 8" in ran.stderr


def test_a_wrong_command_gives_a_new_folder_no_identity(tmp_path: Path) -> None:
    assert churn(tmp_path, "backfill", "--stage", "nonsense", **SMALL_SHOP).returncode == 1
    assert not (tmp_path / "state" / FILE).exists()


def test_a_copy_and_a_moved_state_are_adopted(tmp_path: Path) -> None:
    made = identify(make_settings(tmp_path, source="synthetic"))
    copytree(tmp_path / "state", tmp_path / "copy" / "state")
    (tmp_path / "state").rename(tmp_path / "moved")
    moved = {"CHURN_HOME": str(tmp_path / "moved")}

    for wrong in ([], ["--moved", "--copied"]):
        run = churn(tmp_path, "adopt", *wrong, **moved)
        assert run.returncode == 2
        assert "either --moved or --copied" in run.stderr
    said = churn(tmp_path, "adopt", "--moved", **moved)
    assert f"{made.name} is at home in {tmp_path / 'moved'}" in said.stdout, said.stderr
    said = churn(tmp_path / "copy", "adopt", "--copied")
    copy = find_identity(tmp_path / "copy" / "state")
    assert copy is not None and copy.name != made.name
    assert f"{copy.name} is at home in {tmp_path / 'copy' / 'state'}" in said.stdout
    assert "`churn backfill`" in said.stdout
    said = churn(tmp_path / "copy", "adopt", "--copied", CHURN_INSTALLATION=copy.name)
    assert said.returncode == 1
    assert "name of the original" in said.stderr
