"""Prevents: a release that cannot read, serve or continue what the one before has made.

`fixtures/state-0.1.tar.xz` is the state that version 0.1 made with `churn backfill` for 120
customers of the synthetic shop until 2025-07-01, without the pictures of MLflow's runs.
"""

import datetime as dt
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from churn_assets.cutoffs import utc_now
from churn_assets.definitions import build_definitions
from churn_assets.features import feature_versions
from churn_assets.models.artefacts import FeatureMismatch, ModelStore, read_artefact
from churn_assets.models.champion import find_champion
from churn_assets.models.estimators import inputs
from churn_assets.models.runs import CHAMPION, ModelRuns
from churn_assets.monitoring.inventory import inventory
from churn_assets.online.server import stop
from churn_assets.operations.backfill import run_batch
from churn_assets.operations.installation import offline_store
from churn_assets.operations.plans import backfill_batches, stages
from churn_assets.serving.access import new_key
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify
from churn_assets_tests.conftest import GROUPS, make_settings, stored
from churn_assets_tests.served_shop import running

STATE = Path(__file__).parent / "fixtures" / "state-0.1.tar.xz"
END = dt.datetime(2025, 7, 1, tzinfo=dt.UTC)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Settings]:
    """An installation of version 0.1 that was made elsewhere, in a folder that is gone."""
    settings = make_settings(tmp_path, source="synthetic", synthetic_customers=120, end=END)
    with tarfile.open(STATE) as archive:
        archive.extractall(settings.home, filter="data")
    yield settings
    stop(settings.home)


def test_everything_that_was_made_is_there_and_can_be_read(old: Settings) -> None:
    store = offline_store(old)
    with dg.DagsterInstance.from_config(str(old.dagster_home)) as instance:
        rows = inventory(build_definitions(old), store, old.calendar(), instance, utc_now())
    assert {row.asset.path[-1]: row.missing for row in rows if row.missing} == {}
    assert {row.asset.path[-1]: row.failed for row in rows if row.failed} == {}
    assert all(store.scan(table).files for table in store.tables.values() if store.keys(table))
    # It does not say under which definitions it was made, and of raw slices what was read.
    stale = {row.asset.path[-1]: row.stale for row in rows}
    assert not any(stale[row.asset.path[-1]] for row in rows if row.group == "raw")
    assert len(stale["daily_activity"]) == len(stale["raw_events"]) + 6


def test_its_rows_are_served_and_its_champion_waits(old: Settings) -> None:
    """Features count what was known at a cutoff now, which its models have not learned from."""
    expected = [
        r["customer_id"] for r in stored(old, "churn_predictions") if r["cutoff"] == END.date()
    ]
    identify(old)  # as `churn serve` does
    key, entry = new_key("ann", ["features", "predict", "sensitive"])
    with running(old, api_keys=SecretStr(entry)) as client:
        for customer in expected[:5]:
            status, answer = client.get(f"/features/{customer}", token=key)
            assert (status, answer["cutoff"]) == (200, "2025-07-01")
            status, answer = client.post(f"/predict/{customer}", token=key)
            assert status == 503
            assert "churn backfill" in str(answer)


def test_its_models_in_mlflow_still_predict(old: Settings) -> None:
    import mlflow

    runs, store = ModelRuns(old.home, None, partial(identify, old)), ModelStore(old.home)
    champion = find_champion(store, END.date())
    assert champion is not None
    manifest = store.manifest(champion.model, champion.model_cutoff)
    with pytest.raises(FeatureMismatch):
        store.load(manifest, feature_versions(GROUPS))
    own = read_artefact(store.artefact(manifest))
    assert runs.experiment_id, "the store is opened, which names what version 0.1 made"
    mlflow.set_tracking_uri(runs.tracking_uri)
    logged = mlflow.pyfunc.load_model(f"models:/{runs.name}@{CHAMPION}")
    dataset = offline_store(old).scan(offline_store(old).tables["training_dataset"]).sql
    with offline_store(old).connect() as connection:
        example = connection.sql(f"FROM {dataset} ORDER BY customer_id, cutoff LIMIT 20").df()
    given = inputs(example, manifest.columns)
    assert logged.predict(given) == pytest.approx(own.probabilities(example))


@pytest.mark.usefixtures("quick_evaluation")
def test_the_next_cutoff_is_made_upon_it(old: Settings) -> None:
    later = old.model_copy(update={"end": dt.datetime(2025, 8, 1, tzinfo=dt.UTC)})
    files = {path: path.read_bytes() for path in old.home.glob("offline_store/**/*.parquet")}
    store, defs = offline_store(later), build_definitions(later)
    with dg.DagsterInstance.from_config(str(old.dagster_home)) as instance:
        for batch in backfill_batches(
            stages(()), defs, store, later.calendar(), instance, utc_now()
        ):
            run_batch(batch, defs, instance, lambda step, what: None)
    champion = find_champion(ModelStore(old.home), dt.date(2025, 8, 1))
    assert champion is not None
    # Its champion was made again first: version 0.1 does not say under which definitions it was.
    assert champion.incumbent
    rewritten = {path for path, content in files.items() if path.read_bytes() != content}
    tables = {path.relative_to(old.home).parts[1] for path in rewritten}
    assert "training_dataset" in tables
    assert not {table for table in tables if table.startswith(("raw_", "quarantined"))}
    assert len(stored(old, "churn_predictions")) > 0
