"""MLflow: prevents a history in which a re-run counts twice, an old backfill takes the champion, or
two installations take each other's runs.

Every test uses a real SQLite store.
"""

import datetime as dt
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from churn_assets.definitions import build_definitions
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.candidates import train
from churn_assets.models.estimators import Estimator, inputs
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.runs import CHALLENGER, CHAMPION, ModelRuns
from churn_assets.models.training_plan import training_plan
from churn_assets.stores.identity import FILE as IDENTITY
from churn_assets.stores.identity import AnotherInstallation, adopt
from churn_assets.stores.tracking import ASSET_TAG, INSTALLATION_TAG, PARTITION_TAG, Tracking
from churn_assets_tests.conftest import make_mlflow_database, make_settings, model_runs
from churn_assets_tests.models.test_models import CALENDAR, COLUMNS, VERSIONS, rows

LOGISTIC, _, _, XGBOOST = ESTIMATORS
NEWEST = "2025-12-01"


@pytest.fixture(scope="module", autouse=True)
def as_it_is() -> Iterator[None]:
    """The database of a home is made by MLflow, as for a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracking, "_make_database", make_mlflow_database)
        yield


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRuns]:
    yield model_runs(tmp_path_factory.mktemp("home"))


def made(tracking: ModelRuns, estimator: Estimator, cutoff: str, seed: int = 0) -> Manifest:
    plan = training_plan(CALENDAR, dt.date.fromisoformat(cutoff))
    trained = train(estimator, COLUMNS, VERSIONS, plan, lambda _: rows(seed=seed), 7)
    return ModelStore(tracking.home).write(trained.manifest, trained.model, trained.tried)


def runs(tracking: ModelRuns, manifest: Manifest) -> list:
    return tracking.client.search_runs(
        [tracking.experiment_id],
        f"tags.`{ASSET_TAG}` = '{manifest.model}' AND tags.`{PARTITION_TAG}` = '{manifest.cutoff}'",
    )


def alias(tracking: ModelRuns, name: str) -> tuple[str, str]:
    version = tracking.client.get_model_version_by_alias(tracking.name, name)
    return version.tags[ASSET_TAG], version.tags[PARTITION_TAG]


def test_a_re_run_leaves_one_run_with_the_right_metrics(tracking: ModelRuns):
    manifest = made(tracking, LOGISTIC, "2025-06-01")
    first = tracking.record(manifest, {"C": 1}, "dagster-1")
    other = tracking.record(made(tracking, LOGISTIC, "2025-07-01"), {}, "dagster-2")
    again = tracking.record(made(tracking, LOGISTIC, "2025-06-01"), {"C": 2}, "dagster-3")
    [run] = runs(tracking, manifest)
    assert run.info.run_id == again != first
    assert run.info.status == "FINISHED"
    assert run.data.metrics == manifest.metrics
    assert run.data.params == {"C": "2"}
    assert run.data.tags["dagster.run_id"] == "dagster-3"
    assert tracking.client.get_run(other).info.lifecycle_stage == "active"


def test_no_row_of_a_customer_is_logged(tmp_path: Path):
    """Such as an input example: MLflow shows it to everybody, and no erasure finds it."""
    tracking = model_runs(tmp_path)
    for estimator in ESTIMATORS:
        tracking.record(made(tracking, estimator, "2025-06-01"), {})
    files = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    models = [path for path in files if path.name == "MLmodel"]
    assert len(models) == len(ESTIMATORS)
    assert not any("example" in path.name for path in files)
    said = [yaml.safe_load(path.read_text()) for path in models]
    assert not any(model.get("saved_input_example_info") for model in said)


def test_a_run_that_was_killed_half_way_is_replaced(
    tracking: ModelRuns, monkeypatch: pytest.MonkeyPatch
):
    manifest = made(tracking, LOGISTIC, "2025-08-01")
    with monkeypatch.context() as patch:
        patch.setattr("churn_assets.models.runs._signature", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tracking.record(manifest, {})
    tracking.record(manifest, {})
    [run] = runs(tracking, manifest)
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("estimator", [LOGISTIC, XGBOOST], ids=lambda e: e.name)
def test_the_registry_gives_back_the_model_that_predicts(tracking: ModelRuns, estimator: Estimator):
    import mlflow

    manifest = made(tracking, estimator, "2025-06-01")
    tracking.record(manifest, {})
    assert tracking.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    mlflow.set_tracking_uri(tracking.tracking_uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{tracking.name}@{CHAMPION}")
    features = rows(20, seed=3).features
    typed = features.astype({c.name: "float64" for c in COLUMNS if c.dtype != "VARCHAR"})
    own = ModelStore(tracking.home).load(manifest, manifest.feature_versions)
    assert np.array_equal(loaded.predict(typed), own.probabilities(features))


def test_aliases_follow_the_newest_cutoff_only(tracking: ModelRuns):
    old, kept, new = (
        made(tracking, LOGISTIC, "2025-07-01"),
        made(tracking, XGBOOST, "2025-08-01"),
        made(tracking, LOGISTIC, "2025-09-01"),
    )
    # The champion of September is a model of August that was kept.
    assert tracking.move_aliases("2025-09-01", {CHAMPION: kept, CHALLENGER: new}, NEWEST)
    assert not tracking.move_aliases("2025-08-01", {CHAMPION: kept, CHALLENGER: None}, NEWEST)
    assert not tracking.move_aliases("2025-07-01", {CHAMPION: old, CHALLENGER: None}, NEWEST)
    assert alias(tracking, CHAMPION) == (XGBOOST.name, "2025-08-01")
    assert alias(tracking, CHALLENGER) == (LOGISTIC.name, "2025-09-01")
    # The newest again, as a correction.
    assert tracking.move_aliases("2025-09-01", {CHAMPION: new, CHALLENGER: None}, NEWEST)
    assert alias(tracking, CHAMPION) == (LOGISTIC.name, "2025-09-01")
    assert CHALLENGER not in tracking.client.get_registered_model(tracking.name).aliases


def test_a_clock_that_was_ahead_once_does_not_hold_aliases_for_ever(tmp_path: Path):
    tracking = model_runs(tmp_path)
    ahead, then = made(tracking, LOGISTIC, "2025-12-01"), made(tracking, XGBOOST, "2025-08-01")
    assert tracking.move_aliases("2025-12-01", {CHAMPION: ahead}, "2025-12-01")
    assert not tracking.move_aliases("2025-08-01", {CHAMPION: then}, "2025-12-01")
    assert tracking.move_aliases("2025-08-01", {CHAMPION: then}, "2025-11-01")
    assert alias(tracking, CHAMPION) == (XGBOOST.name, "2025-08-01")


def test_a_process_that_recorded_nothing_moves_aliases(tmp_path: Path):
    # As a run of champion_model alone, with and without the run that its model was logged in.
    for seed, recorded in ((0, True), (1, False)):
        manifest = made(model_runs(tmp_path), LOGISTIC, "2025-06-01", seed)
        if recorded:
            model_runs(tmp_path).record(manifest, {})
        moved = subprocess.run(
            [sys.executable, "-c", MOVE_ALIAS, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert moved.stdout.strip() == "True", moved.stderr
        assert alias(model_runs(tmp_path), CHAMPION) == (LOGISTIC.name, "2025-06-01")


def test_the_champion_can_be_loaded_after_its_run_was_replaced(tracking: ModelRuns):
    import mlflow

    manifest = made(tracking, LOGISTIC, "2025-10-01")
    tracking.record(manifest, {})
    assert tracking.move_aliases("2025-10-01", {CHAMPION: manifest}, NEWEST)
    tracking.record(made(tracking, LOGISTIC, "2025-10-01", seed=4), {})
    mlflow.set_tracking_uri(tracking.tracking_uri)
    mlflow.pyfunc.load_model(f"models:/{tracking.name}@{CHAMPION}")


def test_the_same_model_is_registered_once(tracking: ModelRuns):
    manifest = made(tracking, LOGISTIC, "2025-11-01")
    for _ in range(2):
        tracking.record(manifest, {})
        assert tracking.move_aliases("2025-11-01", {CHAMPION: manifest}, NEWEST)
    versions = tracking.client.search_model_versions(f"name = '{tracking.name}'")
    assert [v.tags[PARTITION_TAG] for v in versions].count("2025-11-01") == 1


OPENED = """
import sys
from functools import partial
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.runs import CHAMPION, ModelRuns
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify
settings = Settings(_env_file=None, home=sys.argv[1], source="files")
tracking = ModelRuns(settings.home, None, partial(identify, settings))
"""
MOVE_ALIAS = f"""{OPENED}
manifest = ModelStore(settings.home).manifest("logistic_regression_model", "2025-06-01")
print(tracking.move_aliases("2025-06-01", {{CHAMPION: manifest}}, "2025-12-01"))
"""
OPEN_THE_STORE = f"""{OPENED}
assert "mlflow" not in sys.modules
print(tracking.experiment_id)
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
"""


def test_processes_may_open_a_new_store_at_once_and_send_no_telemetry(tmp_path: Path):
    # Without these MLflow believes that it runs in a test, and sends nothing for that reason.
    command = [sys.executable, "-c", OPEN_THE_STORE, str(tmp_path)]
    started = [
        subprocess.Popen(command, env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1


def test_a_schema_that_is_half_made_is_never_used(tmp_path: Path):
    model_runs(tmp_path).identity()
    command = [sys.executable, "-c", OPEN_THE_STORE, str(tmp_path)]
    maker = subprocess.Popen(command, env={}, stdout=subprocess.DEVNULL)
    while {path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size} <= {
        IDENTITY
    }:
        assert maker.poll() is None
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert model_runs(tmp_path).experiment_id


RECORD = f"""{OPENED}
manifest = ModelStore(settings.home).manifest("logistic_regression_model", "2025-06-01")
tracking.record(manifest, {{}})
print(flush=True)
sys.stdin.readline()
for _ in range(3):
    tracking.record(manifest, {{}})
"""


def test_processes_that_record_a_partition_at_once_leave_one_run(tmp_path: Path):
    tracking = model_runs(tmp_path)
    manifest = made(tracking, LOGISTIC, "2025-06-01")
    command = [sys.executable, "-c", RECORD, str(tmp_path)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in both:  # each is ready
        assert process.stdout
        process.stdout.readline()
    for process in both:
        assert process.stdin
        process.stdin.close()
    assert [process.wait() for process in both] == [0, 0]
    assert len(runs(tracking, manifest)) == 1


# Installations


def test_a_code_location_that_only_loads_writes_nothing(tmp_path: Path):
    build_definitions(make_settings(tmp_path))
    assert not list(tmp_path.iterdir())


def test_two_installations_on_one_server_see_nothing_of_each_other(tmp_path: Path):
    server = f"sqlite:///{tmp_path}/server.db"
    both = [model_runs(tmp_path / name / "state", server) for name in ("a", "b")]
    for tracking in both:
        manifest = made(tracking, LOGISTIC, "2025-06-01")
        for _ in range(2):
            tracking.record(manifest, {})
        assert tracking.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    a, b = both
    later = made(b, LOGISTIC, "2025-07-01")
    b.record(later, {})
    assert b.move_aliases("2025-07-01", {CHAMPION: later}, NEWEST)
    assert alias(a, CHAMPION) == (LOGISTIC.name, "2025-06-01")
    assert alias(b, CHAMPION) == (LOGISTIC.name, "2025-07-01")
    for tracking, count in ((a, 1), (b, 2)):
        found = tracking.client.search_runs([tracking.experiment_id])
        assert len(found) == count
        assert {run.data.tags[INSTALLATION_TAG] for run in found} == {tracking.identity().name}


def test_a_copy_reads_from_a_server_and_writes_once_it_is_adopted(tmp_path: Path):
    server = f"sqlite:///{tmp_path}/server.db"
    original = model_runs(tmp_path / "a" / "state", server)
    manifest = made(original, LOGISTIC, "2025-06-01")
    run = original.record(manifest, {})
    assert original.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    copy = model_runs(tmp_path / "b" / "state", server)
    assert copy.runs(manifest.model, manifest.cutoff) == [run]
    with pytest.raises(AnotherInstallation, match="adopt --copied"):
        copy.record(manifest, {})
    with pytest.raises(AnotherInstallation, match="adopt --copied"):
        copy.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    adopt(make_settings(tmp_path / "b"), copied=True)
    copy = model_runs(tmp_path / "b" / "state", server)
    copy.record(manifest, {})
    assert copy.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    assert original.runs(manifest.model, manifest.cutoff) == [run]
    assert copy.name != original.name


def test_a_copy_with_its_own_database_takes_its_runs_along_under_its_new_name(tmp_path: Path):
    tracking = model_runs(tmp_path / "state")
    manifest = made(tracking, LOGISTIC, "2025-06-01")
    run = tracking.record(manifest, {})
    assert tracking.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    before = tracking.name
    adopt(make_settings(tmp_path), copied=True)
    copy = model_runs(tmp_path / "state")
    assert copy.name != before
    assert copy.runs(manifest.model, manifest.cutoff) == [run]
    assert alias(copy, CHAMPION) == (LOGISTIC.name, "2025-06-01")
    assert len(copy.client.search_experiments()) == 2, "MLflow's own and this"


# Places


def cells(database: Path) -> Iterator[tuple[str, str]]:
    """Every text in MLflow's tables, and where it is."""
    with closing(sqlite3.connect(database)) as opened:
        names = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            cursor = opened.execute(f"SELECT * FROM {name}")
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                yield from (
                    (f"{name}.{column}", value)
                    for column, value in zip(columns, row, strict=True)
                    if isinstance(value, str)
                )


def test_a_database_as_server_puts_artifacts_into_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracking = model_runs(tmp_path / "state", f"sqlite:///{tmp_path}/server.db")
    run = tracking.record(made(tracking, LOGISTIC, "2025-06-01"), {})
    place = tracking.client.get_run(run).info.artifact_uri
    assert place is not None
    assert place.startswith((tmp_path / "state" / "mlartifacts").as_uri())
    assert not list(Path().iterdir())


@pytest.mark.parametrize("external", [False, True], ids=["own", "external"])
def test_artifacts_are_found_after_the_folder_was_moved(tmp_path: Path, external: bool):
    import mlflow

    server = f"sqlite:///{tmp_path}/server.db" if external else None
    # With a blank and a quote, and below a folder whose name goes on in that of the new one.
    old, new = tmp_path / "a b'c" / "state", tmp_path / "a b'c d" / "state"
    tracking = model_runs(old, server)
    manifest = made(tracking, LOGISTIC, "2025-06-01")
    tracking.record(manifest, {})
    assert tracking.move_aliases("2025-06-01", {CHAMPION: manifest}, NEWEST)
    other = model_runs(tmp_path / "other", server)
    other.record(made(other, LOGISTIC, "2025-06-01"), {})
    database = tmp_path / "server.db" if external else new / "mlflow.db"
    new.parent.mkdir()
    old.rename(new)
    old.parent.rmdir()

    if external:
        before = sorted(cells(database))
        moved = model_runs(new, server)
        assert moved.runs(manifest.model, manifest.cutoff)
        assert sorted(cells(database)) == before, "a copy could be reading"
        adopt(make_settings(new.parent), copied=False)
    for _ in range(2):  # and once more, where nothing is left to do
        moved = model_runs(new, server)
        later = made(moved, LOGISTIC, "2025-07-01")
        moved.record(later, {})
        mlflow.set_tracking_uri(moved.tracking_uri)
        loaded = mlflow.pyfunc.load_model(f"models:/{moved.name}@{CHAMPION}")
        assert len(loaded.predict(inputs(rows(20, seed=3).features, manifest.columns))) == 20
    assert [cell for cell in cells(database) if old.parent.as_uri() + "/" in cell[1]] == []
    assert not old.parent.exists()
    assert moved.move_aliases("2025-07-01", {CHAMPION: later}, NEWEST)
    places = {value for _, value in cells(database) if "mlartifacts" in value}
    assert any(place.startswith(new.as_uri()) for place in places)
    if external:
        assert any(place.startswith((tmp_path / "other").as_uri()) for place in places)


def test_a_copy_leaves_the_artifacts_of_the_original_alone(tmp_path: Path):
    original = model_runs(tmp_path / "a" / "state")
    manifest = made(original, LOGISTIC, "2025-06-01")
    original.record(manifest, {})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    files = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    copy = model_runs(tmp_path / "b" / "state")
    copy.record(manifest, {})
    assert files == {
        path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()
    }


def test_a_place_that_somebody_has_chosen_for_artifacts_stays(tmp_path: Path):
    tracking = model_runs(tmp_path / "state")
    chosen = (tmp_path / "chosen").as_uri()
    MlflowClient = pytest.importorskip("mlflow").MlflowClient
    MlflowClient(tracking.tracking_uri).create_experiment(tracking.name, chosen)
    run = tracking.record(made(tracking, LOGISTIC, "2025-06-01"), {})
    place = tracking.client.get_run(run).info.artifact_uri
    assert place is not None and place.startswith(chosen)
