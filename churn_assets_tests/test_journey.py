"""Prevents: parts that work alone and not together, an online row that differs from the offline
one, a set-up that a newcomer has to do, and servers that are named in settings but not used.
"""

import contextlib
import datetime as dt
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import find_champion
from churn_assets.monitoring.report import cutoff_reports
from churn_assets.online.publishing import roll_back
from churn_assets.online.server import server_binary, stop
from churn_assets.online.store import read_version
from churn_assets.online.sync import online_query
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets_tests.conftest import GROUPS, make_settings, materialize, online, stored

CUTOFFS = ("2025-05-01", "2025-08-01")
LABELED = ("2025-05-01", "2025-07-01")
SCORED = ("2025-07-01", "2025-08-01")


def shop(folder: Path, **overrides: object) -> Settings:
    values: dict[str, object] = {
        "source": "synthetic",
        "synthetic_customers": 300,
        "start": dt.date(2025, 1, 15),
        "end": dt.datetime(2025, 8, 1, tzinfo=dt.UTC),
    }
    return make_settings(folder, **(values | overrides))


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(command: list[str], ready: str | int) -> Iterator[None]:
    """A server process, from when it answers on a URL or a port until the test is over."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if isinstance(ready, int):
                    socket.create_connection(("127.0.0.1", ready), 1).close()
                else:
                    urllib.request.urlopen(ready, timeout=1).close()
                break
            time.sleep(0.1)
        else:
            raise TimeoutError(command)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The whole graph of a small shop, with a Redis and an MLflow server of the tests' own."""
    folder = tmp_path_factory.mktemp("journey")
    redis_port, mlflow_port = free_port(), free_port()
    redis_command = [server_binary(), "--port", str(redis_port), "--bind", "127.0.0.1"]
    mlflow_command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
        *("--port", str(mlflow_port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    settings = shop(
        folder,
        installation="journey",
        redis_url=f"redis://127.0.0.1:{redis_port}",
        mlflow_tracking_uri=f"http://127.0.0.1:{mlflow_port}",
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        server([*redis_command, "--dir", str(folder), "--save", ""], redis_port),
        server(mlflow_command, f"http://127.0.0.1:{mlflow_port}/health"),
    ):
        # As a machine does that has another core: the two cutoffs are trained side by side.
        patch.setenv("LOKY_MAX_CPU_COUNT", "2")
        materialize(settings, "ingest", "2025-01-01", "2025-07-01")
        materialize(settings, "features", *CUTOFFS)
        materialize(settings, "training_data", *LABELED)
        materialize(settings, "models", *SCORED)
        patch.undo()
        yield settings


def test_every_scored_cutoff_has_a_champion_and_predictions(journey: Settings) -> None:
    predictions = stored(journey, "churn_predictions")
    cutoffs = {str(row["cutoff"]) for row in predictions}
    assert sorted(cutoffs) == ["2025-07-01", "2025-08-01"]
    for row in predictions:
        assert 0 <= row["churn_probability"] <= 1
        assert row["purchase_probability"] == 1 - row["churn_probability"]
        risk = row["churn_probability"] >= row["threshold"]
        assert row["prediction"] == ("CHURN RISK" if risk else "RETAIN")
    rfm = {(r["customer_id"], r["cutoff"]) for r in stored(journey, "customer_rfm_features")}
    assert {(r["customer_id"], r["cutoff"]) for r in predictions} <= rfm

    reports = cutoff_reports(offline_store(journey), journey.calendar())
    assert [str(report.cutoff) for report in reports] == sorted(cutoffs)
    for report in reports:
        assert report.auc is not None
        assert report.best_auc is not None
        assert report.best_auc > 0.6
        assert report.reason


def test_online_rows_equal_the_newest_offline_partition(journey: Settings) -> None:
    store = offline_store(journey)
    relations = {
        name: store.scan(store.tables[name], ["2025-08-01"]).sql
        for name in store.tables
        if name == "churn_predictions" or name.startswith("customer_")
    }
    with store.connect() as connection:
        offline = (
            connection.sql(online_query(GROUPS, relations)).to_arrow_table().sort_by("customer_id")
        )
    served = read_version(online(journey))
    assert served.column_names == offline.column_names
    assert served.cast(offline.schema).equals(offline)


def test_an_older_backfill_publishes_nothing(journey: Settings) -> None:
    before = read_version(online(journey))
    models = build_definitions(journey).resolve_job_def("models")
    result = models.execute_in_process(
        asset_selection=[dg.AssetKey("online_features")],
        tags={RANGE_START: "2025-07-01", RANGE_END: "2025-07-01"},
    )
    (event,) = result.asset_materializations_for_node("online_features")
    assert event.metadata["published"].value is False
    assert read_version(online(journey)).equals(before)


def test_a_re_run_gives_equal_predictions_and_is_no_new_version(journey: Settings) -> None:
    before = stored(journey, "churn_predictions")
    champion = find_champion(ModelStore(journey.home), dt.date(2025, 8, 1))
    result = materialize(journey, "models", "2025-08-01", "2025-08-01")
    assert stored(journey, "churn_predictions") == before
    assert find_champion(ModelStore(journey.home), dt.date(2025, 8, 1)) == champion
    (event,) = result.asset_materializations_for_node("online_features")
    assert event.metadata["published"].value is True
    with pytest.raises(Exception, match="no version to roll back to"):
        roll_back(online(journey))


def test_the_mlflow_server_has_one_run_per_model_and_partition(journey: Settings) -> None:
    import mlflow

    client = mlflow.MlflowClient(journey.mlflow_tracking_uri)
    experiment = client.get_experiment_by_name("churn-journey")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    targets = {(run.data.tags["churn.asset"], run.data.tags["churn.partition"]) for run in runs}
    assert len(runs) == len(targets) == 4 * 2
    champion = client.get_model_version_by_alias("churn-journey", "champion")
    assert champion.tags["churn.partition"] <= "2025-08-01"


@pytest.mark.usefixtures("quick_evaluation")
def test_without_servers_nothing_has_to_be_set_up(tmp_path: Path) -> None:
    settings = shop(tmp_path, synthetic_customers=200)
    try:
        materialize(settings, "ingest", "2025-01-01", "2025-07-01")
        materialize(settings, "features", *CUTOFFS)
        materialize(settings, "training_data", *LABELED)
        materialize(settings, "models", "2025-08-01", "2025-08-01")
        assert read_version(online(settings)).num_rows > 0
        assert (settings.home / "mlflow.db").exists()
        assert not Path("mlruns").exists()
    finally:
        stop(settings.home)


def test_nothing_that_is_learned_or_served_can_read_the_truth(tmp_path: Path) -> None:
    graph = build_definitions(shop(tmp_path)).resolve_asset_graph()
    truth = dg.AssetKey("synthetic_truth")
    readers = {
        key.to_user_string()
        for key in graph.materializable_asset_keys
        if truth in graph.get_ancestor_asset_keys(key)
    }
    assert readers == {"realised_performance", "walk_forward_report"}
    files = make_settings(tmp_path, source="files")
    assert truth not in build_definitions(files).resolve_asset_graph().get_all_asset_keys()
