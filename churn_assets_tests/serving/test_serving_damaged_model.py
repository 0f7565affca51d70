"""Prevents: a model file that ends every process that predicts with it."""

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from churn_assets.models.artefacts import ModelStore
from churn_assets.models.formats import read_pipeline, write_pipeline
from churn_assets.serving import trial
from churn_assets.stores.artefacts import DIGESTS
from churn_assets_tests.served_shop import Client, Shop, choose, eventually, running

LATER = dt.date(2025, 7, 1)
OUTSIDE = 50_000_000


def lead_outside_in_xgboost(pipeline: Any) -> None:
    booster = pipeline[-1].get_booster()
    model = json.loads(booster.save_raw("json"))
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        tree["left_children"][0] = tree["right_children"][0] = OUTSIDE
    booster.load_model(bytearray(json.dumps(model).encode()))


def lead_outside_in_forest(pipeline: Any) -> None:
    for tree in pipeline[-1].estimators_:
        state = tree.tree_.__getstate__()
        state["nodes"] = state["nodes"].copy()
        state["nodes"]["left_child"][0] = state["nodes"]["right_child"][0] = OUTSIDE
        tree.tree_.__setstate__(state)


def lead_outside_in_boosting(pipeline: Any) -> None:
    for [predictor] in pipeline[-1]._predictors:
        predictor.nodes["left"][0] = predictor.nodes["right"][0] = OUTSIDE
        predictor.nodes["is_leaf"][0] = False  # in so small a shop every root is one


DAMAGE: dict[str, Callable[[Any], None]] = {
    "xgboost_model": lead_outside_in_xgboost,
    "random_forest_model": lead_outside_in_forest,
    "gradient_boosting_model": lead_outside_in_boosting,
}


def damage(folder: Path, model: str) -> None:
    """Write the model with trees that lead outside, as if version 0.1 had written it."""
    pipeline = read_pipeline(folder)
    DAMAGE[model](pipeline)
    kept = {path.name for path in folder.iterdir() if path.suffix in (".ubj", ".skops")}
    for name in kept:
        (folder / name).unlink()
    write_pipeline(pipeline, folder)
    (folder / DIGESTS).unlink()


def version_in_use(client: Client) -> str:
    return str(client.post("/predict", {"rows": [{}]})[1]["model_version"])


@pytest.mark.parametrize("model", DAMAGE)
def test_a_model_that_ends_a_process_is_not_used(shop: Shop, model: str):
    until = dt.datetime(2025, 7, 10, tzinfo=dt.UTC)
    manifest = choose(shop, model, LATER)
    try:
        with running(shop.settings, end=until) as client:
            assert version_in_use(client) == manifest.version
            damage(ModelStore(shop.settings.home).artefact(manifest), model)
            with running(shop.settings, end=until) as fresh:
                told = fresh.get("/ready")[1]["checks"]["model"]
                assert "a process that tried it died" in told or "a trial of it failed" in told
                assert fresh.post("/predict", {"rows": [{}]})[0] == 503
                assert fresh.get("/features/nobody")[0] == 404
            assert version_in_use(client) == manifest.version
    finally:
        for asset in (model, "champion_model"):
            shutil.rmtree(shop.settings.home / "models" / asset / f"cutoff={LATER}")


def test_the_model_before_stays_in_use(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    until = dt.datetime(2025, 7, 10, tzinfo=dt.UTC)
    with running(shop.settings, end=until) as client:
        before = version_in_use(client)
        tried: list[Path] = []

        def died(folder: Path) -> str:
            tried.append(folder)
            return "a process that tried it died of SIGSEGV"

        monkeypatch.setattr("churn_assets.serving.live_champion.refusal", died)
        try:
            choose(shop, "xgboost_model", LATER)
            eventually(lambda: "SIGSEGV" in client.get("/ready")[1]["checks"]["model"])
            assert client.get("/ready")[0] == 200
            assert version_in_use(client) == before
        finally:
            for asset in ("xgboost_model", "champion_model"):
                shutil.rmtree(shop.settings.home / "models" / asset / f"cutoff={LATER}")


def test_what_does_not_end_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    models = ModelStore(shop.settings.home)
    [cutoff] = models.cutoffs("xgboost_model")
    folder = models.artefact(models.manifest("xgboost_model", cutoff))
    assert trial.refusal(folder) == ""
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 0.01)
    trial._refusal.cache_clear()
    assert "did not end" in trial.refusal(folder)
    trial._refusal.cache_clear()
