"""Prevents: a store that is right only while nothing goes wrong.

Every fault is a real one: processes are killed, a file system is full, a server is gone, SQLite is
locked, files are damaged, clocks jump. Most tests go on from a copy of one undisturbed backfill,
and end where it did.
"""

import datetime as dt
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import dagster as dg
import pytest
import sqlalchemy

from churn_assets.definitions import build_definitions
from churn_assets.features.rfm import RFM
from churn_assets.models.artefacts import ModelStore
from churn_assets.monitoring.refresh_log import refresh_log
from churn_assets.online.server import open_client, server_binary, stop
from churn_assets.online.store import OnlineStore
from churn_assets.operations.backfill import BackfillFailed
from churn_assets.stores import retries
from churn_assets.stores.parquet import UnreadableFile
from churn_assets_tests.conftest import KEPT_ENGINES, evaluate_quickly, online
from churn_assets_tests.faults import Shop, churn
from churn_assets_tests.operations.test_automation import Clock
from churn_assets_tests.test_journey import free_port, server

pytestmark = pytest.mark.usefixtures("quick_evaluation")

MODELS = ("logistic_regression", "xgboost")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("undisturbed") / "state"
    try:
        with pytest.MonkeyPatch.context() as patch:
            evaluate_quickly(patch)
            shop = Shop(home)
            shop.complete()
        yield shop
    finally:
        stop(home)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A state folder that does not exist yet."""
    yield tmp_path / "state"
    stop(tmp_path / "state")


@pytest.fixture
def shop(undisturbed: Shop, home: Path) -> Shop:
    """A copy of the undisturbed shop."""
    return undisturbed.copy(home)


def test_a_backfill_that_is_killed_again_and_again_ends_where_it_should(
    undisturbed: Shop, home: Path
) -> None:
    delays = random.Random(3)
    killed = 0
    for _ in range(3):
        process = churn(home, "backfill").process
        with suppress(subprocess.TimeoutExpired):
            process.wait(delays.uniform(2, 6))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed
    shop = Shop(home)
    shop.complete()
    assert shop.published() == undisturbed.published()
    assert shop.online().equals(undisturbed.online())
    assert shop.mlflow_runs() == undisturbed.mlflow_runs()
    for row in shop.inventory().values():
        assert not (row.missing or row.failed or row.stale), row
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    assert shop.instance.get_runs_count(running) == 0


def test_a_topic_model_that_a_killed_run_did_not_tell_of_is_recorded_later(shop: Shop) -> None:
    untold = [dg.AssetKey(name) for name in ("review_topic_model", "scored_reviews")]
    shop.instance.wipe_assets(untold)
    before = shop.published()
    shop.complete()
    assert shop.inventory()["review_topic_model"].missing == []
    assert shop.published() == before
    assert set(shop.mlflow_runs().values()) == {1}


def test_backfills_that_overlap_leave_what_one_leaves(undisturbed: Shop, shop: Shop) -> None:
    again = ("backfill", "--from=2025-06-01", "--stage=features", "--stage=models")
    for process in [churn(shop.home, *again) for _ in range(2)]:
        process.result()
    assert shop.published() == undisturbed.published()
    assert shop.online().equals(undisturbed.online())
    assert shop.mlflow_runs() == undisturbed.mlflow_runs()
    assert set(shop.mlflow_runs().values()) == {1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system to fill cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    stop(folder / "state")
    KEPT_ENGINES.close()
    subprocess.run(["umount", folder], check=True)


BALLAST = "ballast"


def fill(folder: Path) -> None:
    (folder / BALLAST).write_bytes(bytes(100_000_000))


def test_a_full_disk_changes_nothing_and_says_so(
    undisturbed: Shop, small_disk: Path, tmp_path: Path
) -> None:
    shop = undisturbed.copy(small_disk / "state")
    shop.instance.wipe_assets([dg.AssetKey(RFM.name)])
    with pytest.raises(OSError, match="No space left"):
        fill(small_disk)

    said = churn(shop.home, "backfill").result(1)
    assert "Dagster's storage, as " in said
    assert "disk has space left" in said
    # Where there is room for Dagster's own records, it is the assets that say so.
    copytree(undisturbed.home / "dagster", tmp_path / "dagster")
    said = churn(
        shop.home, "backfill", "--from=2025-05-01", DAGSTER_HOME=str(tmp_path / "dagster")
    ).result(1)
    assert "lifetime_features [2025-05-01 … 2025-06-01]: OSError: No space left" in said
    with pytest.raises(OSError, match="No space left"):
        ModelStore(shop.home).publish(shop.home / "models" / "m", "1", "{}", fill)
    assert list((shop.home / "staging").iterdir()) == []
    assert shop.published() == undisturbed.published()

    (small_disk / BALLAST).unlink()
    assert f"features 2025-04-01 … 2025-06-01: {RFM.name}" in shop.complete()
    assert shop.published() == undisturbed.published()


def retried(instance: dg.DagsterInstance) -> list[str]:
    """What attempts of the newest run failed by, and were followed by another."""
    run_id = instance.get_run_records(limit=1)[0].dagster_run.run_id
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    found = [entry.dagster_event.step_retry_data.error for entry in entries if entry.dagster_event]
    return [str(error) for error in found]


def test_a_server_that_goes_away_costs_the_sync_alone(
    undisturbed: Shop, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "SECONDS_BETWEEN", 0.2)  # it comes back when the test says so
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(home.parent), "--appendonly", "yes", "--save", ""]
    shop = undisturbed.copy(home, url)
    shop.instance.wipe_assets([dg.AssetKey("churn_predictions"), dg.AssetKey("online_features")])

    def kill_once_it_is_written_to() -> None:
        with open_client(url) as client:
            client.client_pause(60_000, all=False)
            while not client.info("clients")["blocked_clients"]:
                time.sleep(0.02)
            os.kill(client.info("server")["process_id"], signal.SIGKILL)

    with server(command, port):
        killer = threading.Thread(target=kill_once_it_is_written_to)
        killer.start()
        with pytest.raises(BackfillFailed, match=r"online_features .* server that REDIS_URL names"):
            shop.complete()
        killer.join()
    first, *_ = retried(shop.instance)
    assert "sync of 2025-06-01 broke off" in first
    with pytest.raises(BackfillFailed, match=r"online_features .* server that REDIS_URL names"):
        shop.complete()
    with server(command, port):
        assert shop.complete() == ["models 2025-06-01: online_features"]
        assert shop.online().equals(undisturbed.online())
    assert shop.published() == undisturbed.published()


@contextmanager
def locked(database: Path) -> Iterator[Callable[[], None]]:
    """Another process is in the middle of a write, until the function is called that is given."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE')"
    writer = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); input()", str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        yield lambda: writer.kill()
    finally:
        writer.kill()
        writer.communicate()


PATIENCE = 2  # seconds that MLflow waits for SQLite here; else it is 20


@pytest.fixture
def impatient() -> Iterator[None]:
    def shorten(conn, cursor, statement, parameters, context, executemany):
        shorter = statement.replace("busy_timeout = 20000", f"busy_timeout = {PATIENCE}000")
        return shorter, parameters

    target = (sqlalchemy.Engine, "before_cursor_execute", shorten)
    sqlalchemy.event.listen(*target, retval=True)
    yield
    sqlalchemy.event.remove(*target)


@pytest.mark.usefixtures("impatient")
def test_mlflow_waits_for_a_lock_that_ends_and_says_so_where_it_stays(shop: Shop) -> None:
    tracking, asset = shop.tracking, dg.AssetKey("logistic_regression_model")
    manifest = ModelStore(shop.home).manifest(asset.path[-1], "2025-06-01")
    with locked(shop.home / "mlflow.db") as release:
        threading.Timer(PATIENCE / 2, release).start()
        tracking.record(manifest, {})
    assert set(shop.mlflow_runs().values()) == {1}

    shop.instance.wipe_assets([asset])
    with (
        locked(shop.home / "mlflow.db"),
        pytest.raises(BackfillFailed, match=r"mlflow.db is locked by another process"),
    ):
        shop.complete()
    assert shop.complete() == ["models 2025-06-01: logistic_regression_model"]
    assert set(shop.mlflow_runs().values()) == {1}


def test_clocks_that_jump_make_nothing_twice_and_miss_nothing(shop: Shop) -> None:
    settings = shop.settings.model_copy(update={"end": None})
    clock = Clock(settings, shop.home / "dagster")

    def at(month: int, day: int) -> dt.datetime:
        return dt.datetime(2025, month, day, 2, 30, tzinfo=dt.UTC)

    def live() -> str:
        store = OnlineStore(online(settings)).live()
        return str(store and store.cutoff)

    def by_hand() -> int:
        log = refresh_log(clock.instance).to_pylist()
        return sum(row["started_by"].startswith("churn backfill") for row in log)

    clock.advance(at(6, 30))
    before = by_hand()
    clock.run([dg.AssetKey("online_features")], ["2025-06-01"])
    made = []
    for now, newest in (
        (at(4, 20), "2025-06-01"),
        (at(7, 2), "2025-07-01"),
        (at(6, 10), "2025-07-01"),
        (at(7, 3), "2025-07-01"),
    ):
        clock.requested = []
        clock.advance(now)
        clock.backfill(settings, now)
        assert by_hand() == before, "the automation missed nothing"
        present = clock.present(now)
        assert all(existing <= made for existing, made in present.values()), now
        assert all(key in present[asset][0] for asset, key in clock.requested), now
        assert live() == newest, now
        made += clock.requested
    assert len(made) == len(set(made)) > 0
    clock.run([dg.AssetKey("online_features")], ["2025-06-01"])
    assert live() == "2025-07-01"


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scrambled(content: bytes) -> bytes:
    return random.Random(0).randbytes(len(content))


def emptied(content: bytes) -> bytes:
    return b""


def test_a_damaged_file_is_named_and_made_again_alone(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    before = shop.published()
    for damage, name, key, made in (
        (emptied, "raw_events", "2025-03-01", "ingest 2025-03-01: raw_events"),
        (truncated, "customer_rfm_features", "2025-05-01", "features 2025-05-01: customer_rfm_"),
        (scrambled, "training_dataset", "2025-05-01", "training_data 2025-05-01: training_dataset"),
    ):
        path = shop.store.path(shop.store.tables[name], key)
        path.write_bytes(damage(path.read_bytes()))
        modified = {p: (shop.home / p).stat().st_mtime_ns for p in before}
        with pytest.raises(UnreadableFile, match=rf"{path} .* `churn backfill`, .* {name} {key}"):
            shop.store.scan(shop.store.tables[name], [key])
        assert shop.inventory()[name].missing == [key]
        assert str(path) in caplog.text
        ran, *others = shop.complete()
        assert ran.startswith(made)
        assert shop.published() == before
        touched = {p for p, then in modified.items() if (shop.home / p).stat().st_mtime_ns != then}
        # A raw table brings its quarantine; the registry, without partitions, goes with features.
        together = (name, "quarantined_rows") if name == "raw_events" else (name,)
        wanted = {Path("offline_store", t, path.parent.name, path.name) for t in together}
        if others == ["features: feature_registry"]:
            wanted.add(Path("offline_store", "feature_registry", path.name))
        assert touched == wanted


def test_a_damaged_page_is_named_by_whoever_reads_it(shop: Shop) -> None:
    path = shop.store.path(shop.store.tables["daily_activity"], "2025-05-01")
    content = path.read_bytes()
    middle = len(content) // 4
    path.write_bytes(content[:100] + scrambled(content[100:middle]) + content[middle:])
    shop.instance.wipe_assets([dg.AssetKey("customer_rfm_features")])
    with pytest.raises(BackfillFailed, match=rf"{path} cannot be read: .* daily_activity 2025-05"):
        shop.complete()
    path.unlink()
    shop.complete()
    assert path.read_bytes() == content


def test_a_changed_feature_makes_what_depends_on_it_stale_and_nothing_else(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(row.stale for row in shop.inventory().values())
    first, *others = RFM.features
    changed = (replace(first, sql=f"{first.sql} + 1"), *others)
    monkeypatch.setitem(vars(RFM), "features", changed)
    stale = {
        name: row.stale
        for name, row in shop.inventory(build_definitions(shop.settings)).items()
        if row.stale
    }
    every = {name: set(row.existing) for name, row in shop.inventory().items()}
    assert stale == {
        name: every[name]
        for name in (
            RFM.name,
            "feature_registry",
            "training_dataset",
            *(f"{model}_model" for model in MODELS),
            "champion_model",
            "churn_predictions",
            "drift_report",
            "realised_performance",
            "walk_forward_report",
        )
    }
    assert shop.inventory()["online_features"].missing, "a copy has nothing online"
