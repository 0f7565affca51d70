"""Predictions: prevents a model that has seen the future of the customers it scores.

Whole runs of the assets on a small made-up shop, with real files and a real MLflow store.
"""

import datetime as dt
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from churn_assets.cutoffs import parse_key
from churn_assets.definitions import build_definitions
from churn_assets.models import candidates as models
from churn_assets.models import champion as champion_assets
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.candidates import MODELS
from churn_assets.models.champion import (
    CHAMPION_MODEL,
    Champion,
    champion_of,
    choose_champion,
    find_champion,
)
from churn_assets.models.metrics import Economics
from churn_assets.models.runs import CHAMPION
from churn_assets.monitoring.performance import REALISED_PERFORMANCE
from churn_assets.predictions import churn_predictions as predictions
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.predictions.contacts import contacts_query
from churn_assets.stores.artefacts import MANIFEST
from churn_assets.stores.io_manager import OfflineIOManager
from churn_assets.stores.offline import OfflineStore
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets_tests.conftest import (
    GROUPS,
    RANGE_END,
    RANGE_START,
    cataloged,
    evaluate_quickly,
    make_settings,
    model_runs,
    query,
)
from churn_assets_tests.models.test_models import CALENDAR, VERSIONS, made_up_store

FIRST, LAST = "2025-06-01", "2025-08-01"


def run(
    store: OfflineStore,
    first: str,
    last: str,
    *selection: str,
    economics: Economics = Economics(),  # noqa: B008
) -> dg.ExecuteInProcessResult:
    """One Dagster run of the model and prediction assets."""
    tracking = model_runs(store.home)
    known, own = cataloged(
        store,
        CALENDAR,
        lambda known: [
            *models.assets(GROUPS, CALENDAR, known, tracking, economics, 7),
            *champion_assets.assets(GROUPS, CALENDAR, known, tracking),
            *predictions.assets(GROUPS, CALENDAR, known, economics.threshold),
        ],
    )
    upstream = [
        dg.AssetSpec(TRAINING_DATASET, partitions_def=CALENDAR.labeled_cutoffs),
        *(dg.AssetSpec(group.name, partitions_def=CALENDAR.cutoffs) for group in GROUPS),
    ]
    keys = [key for asset in own for key in asset.keys]
    defs = dg.Definitions(
        assets=[*own, *upstream],
        jobs=[dg.define_asset_job("models", dg.AssetSelection.assets(*keys))],
        resources={"io_manager": OfflineIOManager(known)},
        executor=dg.in_process_executor,
    )
    return defs.resolve_job_def("models").execute_in_process(
        tags={RANGE_START: first, RANGE_END: last},
        asset_selection=[dg.AssetKey(name) for name in selection] or None,
    )


def predicted(store: OfflineStore) -> list[dict[str, Any]]:
    files = store.root / CHURN_PREDICTIONS.name / "*" / "part-0.parquet"
    return query(f"FROM read_parquet('{files}', hive_partitioning = false) ORDER BY ALL")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> OfflineStore:
    """A made-up shop after one run for three cutoffs. Tests leave it as it is."""
    store = made_up_store(tmp_path_factory.mktemp("history"))
    with pytest.MonkeyPatch.context() as patch:
        evaluate_quickly(patch)
        run(store, FIRST, LAST)
    return store


def test_everybody_is_predicted_once(history: OfflineStore):
    rows = predicted(history)
    assert len({(r["customer_id"], r["cutoff"]) for r in rows}) == len(rows) == 3 * 400
    assert list(rows[0]) == CHURN_PREDICTIONS.column_names
    for row in rows:
        assert row["churn_probability"] + row["purchase_probability"] == pytest.approx(1)
        assert 0 < row["churn_probability"] < 1
        at_risk = row["churn_probability"] >= row["threshold"]
        assert row["prediction"] == ("CHURN RISK" if at_risk else "RETAIN")


def decision(store: ModelStore, key: str) -> Champion:
    champion = find_champion(store, parse_key(key))
    assert champion is not None
    return champion


def test_the_champion_of_a_cutoff_is_the_incumbent_of_the_next(history: OfflineStore):
    store = ModelStore(history.home)
    chain = [decision(store, k) for k in ("2025-06-01", "2025-07-01", LAST)]
    assert not chain[0].incumbent
    for before, after in itertools.pairwise(chain):
        assert after.incumbent
        assert f"{before.model} of {before.model_cutoff}" in after.reason
        assert after.holdout == CALENDAR.shift(parse_key(after.cutoff), -1).isoformat()
    assert set(chain[0].candidates) == set(MODELS)


def test_the_incumbent_was_never_trained_on_its_hold_out(history: OfflineStore):
    store = ModelStore(history.home)
    for key in ("2025-07-01", LAST):
        champion = find_champion(store, parse_key(key))
        before = champion_of(CALENDAR, store, CALENDAR.shift(parse_key(key), -1))
        assert champion
        assert before.newest_training_cutoff < parse_key(champion.holdout)


@pytest.mark.usefixtures("quick_evaluation")
def test_the_graph_shows_grades_per_cutoff(tmp_path: Path):
    store = made_up_store(tmp_path)
    result = run(store, FIRST, FIRST)
    for name in (*MODELS, CHAMPION_MODEL.name, CHURN_PREDICTIONS.name):
        [event] = result.asset_materializations_for_node(name)
        assert event.partition == FIRST
    [event] = result.asset_materializations_for_node(MODELS[0])
    assert isinstance(event.metadata["roc_auc"].value, float)
    assert event.metadata["training_cutoffs"].value == "2025-04-01, 2025-05-01"

    # A re-run, one partition at a time or not, gives equal rows and equal versions.
    before = predicted(store)
    run(store, FIRST, FIRST)
    assert predicted(store) == before


def test_an_old_backfill_meets_no_model_of_its_future(history: OfflineStore):
    tracking, store = model_runs(history.home), ModelStore(history.home)
    before = predicted(history)

    def champion() -> str | None:
        registry = tracking.client
        return registry.get_model_version_by_alias(tracking.name, CHAMPION).run_id

    newest = champion()
    run(history, FIRST, FIRST, CHAMPION_MODEL.name, CHURN_PREDICTIONS.name)
    assert champion() == newest
    assert predicted(history) == before
    assert decision(store, FIRST).incumbent == {}


@pytest.mark.usefixtures("quick_evaluation")
def test_economics_decide_the_threshold_and_nothing_of_a_model(
    history: OfflineStore, tmp_path: Path
):
    other = OfflineStore(tmp_path / "other", history.tables, history.duckdb)
    for name in (TRAINING_DATASET, *(group.name for group in GROUPS)):
        shutil.copytree(history.root / name, other.root / name)
    economics = Economics(customer_value=45, contact_cost=3, save_rate=0.1)
    run(other, FIRST, FIRST, economics=economics)

    def kept(store: OfflineStore) -> dict[str, str]:
        manifests = (store.home / "models").glob(f"*/cutoff={FIRST}/{MANIFEST}")
        return {path.parents[1].name: path.read_text() for path in manifests}

    def decided(store: OfflineStore) -> list[dict[str, Any]]:
        return query(f"FROM {store.scan(CHAMPION_MODEL, [FIRST]).sql} ORDER BY ALL")

    assert set(kept(other)) == {*MODELS, CHAMPION_MODEL.name}
    assert kept(other) == kept(history)
    assert decided(other) == decided(history)
    before, after = (
        [row for row in predicted(store) if str(row["cutoff"]) == FIRST]
        for store in (history, other)
    )
    assert {row["threshold"] for row in after} == {economics.threshold}
    assert {row["threshold"] for row in before} == {Economics().threshold}
    for one, two in zip(before, after, strict=True):
        at_risk = two["churn_probability"] >= economics.threshold
        assert two["prediction"] == ("CHURN RISK" if at_risk else "RETAIN")
        for name in ("customer_id", "churn_probability", "model_version"):
            assert one[name] == two[name]


def test_other_economics_are_other_code_of_what_depends_on_them_alone(tmp_path: Path):
    def versions(**economics: float) -> dict[str, str | None]:
        defs = build_definitions(make_settings(tmp_path, source="synthetic", **economics))
        return {s.key.path[-1]: s.code_version for s in defs.resolve_all_asset_specs()}

    before = versions()
    for other in ({"customer_value": 45}, {"contact_cost": 7}, {"save_rate": 0.1}):
        after = versions(**other)
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {CHURN_PREDICTIONS.name, REALISED_PERFORMANCE.name}


def with_champion(history: OfflineStore, folder: Path, cutoff: str, **changes: Any) -> ModelStore:
    """A copy of the decisions and models in which one decision is another."""
    shutil.copytree(history.home / "models", folder / "models")
    path = folder / "models" / CHAMPION_MODEL.name / f"cutoff={cutoff}" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return ModelStore(folder)


def test_a_model_that_knows_later_labels_is_refused(history: OfflineStore, tmp_path: Path):
    later = ModelStore(history.home).manifest(MODELS[0], LAST)
    store = with_champion(
        history,
        tmp_path,
        FIRST,
        model=later.model,
        model_cutoff=later.cutoff,
        model_version=later.version,
    )
    with pytest.raises(ValueError, match="has learned from the labels of 2025-07-01"):
        champion_of(CALENDAR, store, parse_key(FIRST))


def test_a_champion_that_was_trained_anew_is_refused(history: OfflineStore, tmp_path: Path):
    store = with_champion(history, tmp_path, FIRST, model_version="another")
    with pytest.raises(ValueError, match=f"Materialize champion_model {FIRST} again"):
        champion_of(CALENDAR, store, parse_key(FIRST))
    # As an incumbent it is out, and the reason says so.
    champion, _ = choose_champion(CALENDAR, history, store, VERSIONS, dt.date(2025, 7, 1))
    assert champion.incumbent == {}
    assert "trained anew" in champion.reason


def test_an_incumbent_with_changed_features_is_out(history: OfflineStore):
    versions = VERSIONS | {"monetary": "another"}
    champion, _ = choose_champion(
        CALENDAR, history, ModelStore(history.home), versions, parse_key(LAST)
    )
    assert champion.incumbent == {}
    assert "monetary" in champion.reason


def test_no_champion_says_how_to_make_it(history: OfflineStore):
    with pytest.raises(FileNotFoundError, match="churn backfill --stage models"):
        champion_of(CALENDAR, ModelStore(history.home), dt.date(2025, 12, 1))


def test_decisions_are_kept_in_a_table(history: OfflineStore):
    files = history.root / CHAMPION_MODEL.name / "*" / "part-0.parquet"
    rows = query(f"FROM read_parquet('{files}', hive_partitioning = false) ORDER BY ALL")
    store = ModelStore(history.home)
    for key in ("2025-06-01", "2025-07-01", LAST):
        kept = decision(store, key)
        decided = [row for row in rows if str(row["cutoff"]) == key]
        [chosen] = [row for row in decided if row["role"] == "champion"]
        assert (chosen["model"], str(chosen["model_cutoff"])) == (kept.model, kept.model_cutoff)
        assert chosen["reason"] == kept.reason
        assert len(decided) == len(MODELS) + bool(kept.incumbent)
        for row in decided:
            newer = str(row["model_cutoff"]) == key
            assert (row["lead_low"] is not None) == (newer and bool(kept.incumbent))
            if row["lead_low"] is not None:
                assert row["lead_low"] <= row["lead"] <= row["lead_high"]


def test_contacts_are_those_who_are_worth_it(history: OfflineStore):
    economics = Economics()
    scan = history.scan(CHURN_PREDICTIONS, [LAST])
    contacts = query(contacts_query(scan.sql, economics))
    at_risk = {
        row["customer_id"]
        for row in predicted(history)
        if str(row["cutoff"]) == LAST and row["prediction"] == "CHURN RISK"
    }
    assert {row["customer_id"] for row in contacts} == at_risk
    values = [row["expected_value"] for row in contacts]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(
        contacts[0]["churn_probability"] * economics.save_rate * economics.customer_value
        - economics.contact_cost
    )
