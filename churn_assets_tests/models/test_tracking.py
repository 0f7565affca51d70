"""MLflow: prevents a history in which a re-run counts twice, or an old backfill takes the champion.

Every test uses a real SQLite store.
"""

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.candidates import train
from churn_assets.models.estimators import Estimator
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.runs import CHALLENGER, CHAMPION, REGISTERED_MODEL, ModelRuns
from churn_assets.models.training_plan import training_plan
from churn_assets.stores.tracking import ASSET_TAG, PARTITION_TAG
from churn_assets_tests.models.test_models import CALENDAR, COLUMNS, VERSIONS, rows

LOGISTIC, _, _, XGBOOST = ESTIMATORS


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRuns]:
    yield ModelRuns(tmp_path_factory.mktemp("home"))


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
    version = tracking.client.get_model_version_by_alias(REGISTERED_MODEL, name)
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
    assert tracking.move_aliases("2025-06-01", {CHAMPION: manifest})
    mlflow.set_tracking_uri(tracking.tracking_uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{REGISTERED_MODEL}@{CHAMPION}")
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
    assert tracking.move_aliases("2025-09-01", {CHAMPION: kept, CHALLENGER: new})
    assert not tracking.move_aliases("2025-08-01", {CHAMPION: kept, CHALLENGER: None})
    assert not tracking.move_aliases("2025-07-01", {CHAMPION: old, CHALLENGER: None})
    assert alias(tracking, CHAMPION) == (XGBOOST.name, "2025-08-01")
    assert alias(tracking, CHALLENGER) == (LOGISTIC.name, "2025-09-01")
    # The newest again, as a correction.
    assert tracking.move_aliases("2025-09-01", {CHAMPION: new, CHALLENGER: None})
    assert alias(tracking, CHAMPION) == (LOGISTIC.name, "2025-09-01")
    assert CHALLENGER not in tracking.client.get_registered_model(REGISTERED_MODEL).aliases


def test_a_process_that_recorded_nothing_moves_aliases(tmp_path: Path):
    # As a run of champion_model alone, with and without the run that its model was logged in.
    for seed, recorded in ((0, True), (1, False)):
        manifest = made(ModelRuns(tmp_path), LOGISTIC, "2025-06-01", seed)
        if recorded:
            ModelRuns(tmp_path).record(manifest, {})
        moved = subprocess.run(
            [sys.executable, "-c", MOVE_ALIAS, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert moved.stdout.strip() == "True", moved.stderr
        assert alias(ModelRuns(tmp_path), CHAMPION) == (LOGISTIC.name, "2025-06-01")


def test_the_champion_can_be_loaded_after_its_run_was_replaced(tracking: ModelRuns):
    import mlflow

    manifest = made(tracking, LOGISTIC, "2025-10-01")
    tracking.record(manifest, {})
    assert tracking.move_aliases("2025-10-01", {CHAMPION: manifest})
    tracking.record(made(tracking, LOGISTIC, "2025-10-01", seed=4), {})
    mlflow.set_tracking_uri(tracking.tracking_uri)
    mlflow.pyfunc.load_model(f"models:/{REGISTERED_MODEL}@{CHAMPION}")


def test_the_same_model_is_registered_once(tracking: ModelRuns):
    manifest = made(tracking, LOGISTIC, "2025-11-01")
    for _ in range(2):
        tracking.record(manifest, {})
        assert tracking.move_aliases("2025-11-01", {CHAMPION: manifest})
    versions = tracking.client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    assert [v.tags[PARTITION_TAG] for v in versions].count("2025-11-01") == 1


MOVE_ALIAS = """
import sys; from pathlib import Path
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.runs import CHAMPION, ModelRuns
home = Path(sys.argv[1])
manifest = ModelStore(home).manifest("logistic_regression_model", "2025-06-01")
print(ModelRuns(home).move_aliases("2025-06-01", {CHAMPION: manifest}))
"""
OPEN_THE_STORE = """
import sys; from pathlib import Path
from churn_assets.models.runs import ModelRuns
assert "mlflow" not in sys.modules
print(ModelRuns(Path(sys.argv[1])).experiment_id)
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
    command = [sys.executable, "-c", OPEN_THE_STORE, str(tmp_path)]
    maker = subprocess.Popen(command, env={}, stdout=subprocess.DEVNULL)
    while not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]:
        assert maker.poll() is None
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert ModelRuns(tmp_path).experiment_id


RECORD = """
import sys; from pathlib import Path
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.runs import ModelRuns
tracking = ModelRuns(Path(sys.argv[1]))
manifest = ModelStore(tracking.home).manifest("logistic_regression_model", "2025-06-01")
tracking.record(manifest, {})
print(flush=True)
sys.stdin.readline()
for _ in range(3):
    tracking.record(manifest, {})
"""


def test_processes_that_record_a_partition_at_once_leave_one_run(tmp_path: Path):
    tracking = ModelRuns(tmp_path)
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
