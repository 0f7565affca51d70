"""Models: prevents a grade on rows that were trained on, and a fit that nobody can repeat.

A small made-up shop stands in for history: what churns is a matter of recency and chance.
"""

import datetime as dt
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from churn_assets.cutoffs import Cadence, Calendar, parse_key
from churn_assets.definitions import build_definitions
from churn_assets.features import feature_columns, feature_versions
from churn_assets.models import candidates as models
from churn_assets.models import estimators
from churn_assets.models.artefacts import FeatureMismatch, Manifest, ModelStore
from churn_assets.models.candidates import MODELS, Trained, train
from churn_assets.models.estimators import Estimator, Rows, fit, trial
from churn_assets.models.formats import PIPELINE
from churn_assets.models.grades import grade
from churn_assets.models.kinds import ESTIMATORS, EXTRA_ESTIMATORS
from churn_assets.models.metrics import Economics
from churn_assets.models.training_plan import training_plan
from churn_assets.models.training_rows import training_rows
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.settings import Settings, SettingsError
from churn_assets.stores.artefacts import DIGESTS, DamagedArtefact
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.stores.tables import Column
from churn_assets.training_data.dataset import LABEL_COLUMNS, TRAINING_DATASET
from churn_assets_tests.conftest import GROUPS, TABLES, make_settings, model_runs

CALENDAR = Calendar(start=dt.date(2025, 1, 1), end=dt.datetime(2025, 12, 10, tzinfo=dt.UTC))
COLUMNS = feature_columns(GROUPS)
VERSIONS = feature_versions(GROUPS)
INSTALLED = (*ESTIMATORS, *(e for name, e in EXTRA_ESTIMATORS.items() if find_spec(name)))


def each(*choice: Estimator) -> pytest.MarkDecorator:
    """A test per estimator; one of an extra that is not installed is skipped, and says so."""
    return pytest.mark.parametrize(
        "estimator",
        [
            pytest.param(
                e,
                id=e.name,
                marks=pytest.mark.skipif(
                    e not in INSTALLED, reason=f"needs churn-assets[{e.library}]"
                ),
            )
            for e in choice
        ],
    )


EVERY = (*ESTIMATORS, *EXTRA_ESTIMATORS.values())
EVERY_ESTIMATOR = each(*EVERY)
EVERY_BOOSTING = each(*(e for e in EVERY if e.early_stopping))


def made_up(columns: list[Column], customers: int, seed: int) -> pd.DataFrame:
    """Feature values of every type, a fifth of them missing, and churn by recency and chance."""
    draw = np.random.default_rng(seed)

    def values(column: Column) -> Any:
        match column.dtype:
            case "VARCHAR":
                return draw.choice(np.array(["north", "south", None]), customers)
            case "BOOLEAN":
                return draw.choice(np.array([True, False, None]), customers)
            case "BIGINT":
                return draw.poisson(3, customers)
            case _:
                return np.where(draw.random(customers) < 0.2, np.nan, draw.gamma(1, 20, customers))

    frame = pd.DataFrame({column.name: values(column) for column in columns})
    frame["recency_days"] = draw.integers(0, 90, customers)
    chance = 1 / (1 + np.exp((45 - frame["recency_days"]) / 15))
    frame["churned"] = (draw.random(customers) < chance).astype("int32")
    return frame


def rows(customers: int = 600, seed: int = 0) -> Rows:
    frame = made_up(COLUMNS, customers, seed)
    return Rows(frame.drop(columns="churned"), frame["churned"].to_numpy())


def write(store: ModelStore, trained: Trained) -> Manifest:
    return store.write(trained.manifest, trained.model, trained.tried)


def made_up_store(
    folder: Path, calendar: Calendar = CALENDAR, customers: int = 400
) -> OfflineStore:
    """An offline store with the training dataset and the feature groups of a made-up shop."""
    settings = make_settings(folder)
    tables = TABLES | {CHURN_PREDICTIONS.name: CHURN_PREDICTIONS}
    store = OfflineStore(settings.home, tables, settings.duckdb_config())
    labeled = calendar.labeled_cutoffs.get_partition_keys()
    for number, key in enumerate(calendar.cutoffs.get_partition_keys()):
        frame = made_up(COLUMNS, customers, seed=number)
        frame["customer_id"] = [f"c{i:04}" for i in range(customers)]
        frame["cutoff"] = key
        for label in LABEL_COLUMNS:
            if label.name != "churned":
                # As good as the target: a model that is given a label column ranks perfectly.
                frame[label.name] = 1 - frame["churned"]
        with store.connect() as connection:
            connection.register("made_up", frame)
            written = [group.table for group in GROUPS]
            for table in [*written, TABLES[TRAINING_DATASET]] if key in labeled else written:
                store.publish(connection, table, Query("FROM made_up"), [key], lambda _: {})
    return store


# Which cutoffs a model learns from


@pytest.mark.parametrize(
    ("cadence", "horizon_days"),
    [(Cadence.MONTHLY, 28), (Cadence.MONTHLY, 30), (Cadence.WEEKLY, 28), (Cadence.DAILY, 3)],
)
def test_no_label_of_the_fit_was_unknown_at_the_hold_out(cadence: Cadence, horizon_days: int):
    calendar = Calendar(dt.date(2025, 1, 1), cadence=cadence, horizon_days=horizon_days)
    cutoffs = calendar.between(calendar.first_scored, calendar.shift(calendar.first_scored, 30))
    for cutoff in cutoffs:
        plan = training_plan(calendar, cutoff)
        horizon = dt.timedelta(days=horizon_days)
        assert all(c + horizon <= plan.holdout for c in plan.fit)
        assert all(c + horizon <= cutoff for c in plan.refit)
        assert plan.holdout == plan.refit[-1] == calendar.shift(cutoff, -calendar.lag)
        assert 1 <= len(plan.fit) <= calendar.training_cutoffs
        window = calendar.mature_cutoffs
        first = calendar.shift(cutoff, window.start_offset)
        assert parse_key(plan.needed[0]) == max(first, calendar.first_cutoff)
        assert parse_key(plan.needed[-1]) == calendar.shift(cutoff, window.end_offset)


def test_the_oldest_cutoffs_leave_when_there_are_enough():
    plan = training_plan(replace(CALENDAR, training_cutoffs=2), dt.date(2025, 12, 1))
    assert plan.fit == (dt.date(2025, 9, 1), dt.date(2025, 10, 1))
    assert plan.refit == (dt.date(2025, 10, 1), dt.date(2025, 11, 1))


@pytest.mark.parametrize(
    ("cutoff", "lacking"),
    [(CALENDAR.first_cutoff, "mature hold-out"), (dt.date(2025, 5, 1), "training cutoff")],
)
def test_a_cutoff_without_history_is_refused(cutoff: dt.date, lacking: str):
    with pytest.raises(ValueError, match=f"no {lacking}.*first cutoff with a model is 2025-06-01"):
        training_plan(CALENDAR, cutoff)


def test_the_hold_out_is_not_among_the_rows_of_the_graded_fit():
    read: list[list[dt.date]] = []

    def reading(cutoffs: Any) -> Rows:
        read.append(list(cutoffs))
        return rows(200, seed=len(read))

    plan = training_plan(CALENDAR, dt.date(2025, 8, 1))
    train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, reading, 7)
    assert read == [list(plan.fit), [plan.holdout], list(plan.refit)]
    assert plan.holdout not in plan.fit


def test_labels_are_no_features(tmp_path: Path):
    store = made_up_store(tmp_path)
    plan = training_plan(CALENDAR, dt.date(2025, 6, 1))
    manifest = train(
        ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda c: training_rows(store, c), 7
    ).manifest
    assert not {c.name for c in manifest.columns} & {c.name for c in LABEL_COLUMNS}
    assert 0.6 < manifest.metrics["roc_auc"] < 0.95


# Fits are repeatable


@EVERY_ESTIMATOR
def test_results_do_not_depend_on_threads(estimator: Estimator):
    # With fewer rows BLAS does not share its work, and a regression is the same by chance.
    training, results = rows(20_000 if estimator.scaled else 600), []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            tried = trial(estimator, COLUMNS, training, rows(seed=1), seed=7)
            model = fit(estimator, COLUMNS, training, seed=7, rounds=tried.rounds)
            results.append((tried, model.probabilities(rows(seed=2).features)))
    (first, p), (second, q) = results
    assert first.rounds == second.rounds
    assert np.array_equal(first.probabilities, second.probabilities)
    assert np.array_equal(p, q)


@EVERY_ESTIMATOR
def test_no_classifier_shares_float_sums_between_threads(estimator: Estimator):
    parameters = fit(estimator, COLUMNS, rows(), 7, 20).pipeline["classifier"].get_params()
    threads = parameters.get("thread_count", parameters.get("n_jobs", 1))
    assert threads in (1, None)


@each(*EVERY[1:])
def test_the_seed_is_used(estimator: Estimator):
    p, q = (
        fit(estimator, COLUMNS, rows(), seed, 30).probabilities(rows(seed=1).features)
        for seed in (7, 8)
    )
    assert not np.array_equal(p, q)


VERSIONS_OF_ALL_MODELS = """
import sys; from pathlib import Path
from churn_assets_tests.models.test_models import versions_of_all_models
print(*versions_of_all_models(Path(sys.argv[1])))
"""


def versions_of_all_models(home: Path) -> list[str]:
    plan = training_plan(CALENDAR, dt.date(2025, 6, 1))
    read = itertools.cycle([rows(), rows(seed=1), rows(seed=2)])
    return [
        write(
            ModelStore(home),
            train(estimator, COLUMNS, VERSIONS, plan, lambda _: next(read), 7),
        ).version
        for estimator in INSTALLED
    ]


def test_another_process_makes_the_same_versions(tmp_path: Path):
    other = subprocess.run(
        [sys.executable, "-c", VERSIONS_OF_ALL_MODELS, str(tmp_path / "other")],
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == versions_of_all_models(tmp_path / "own")


# Odd data has a clear outcome


@EVERY_BOOSTING
def test_early_stopping_stops_where_the_hold_out_is_best(estimator: Estimator):
    training, holdout = rows(), rows(seed=1)
    tried = trial(estimator, COLUMNS, training, holdout, 7)
    assert 1 < tried.rounds < estimators.MAX_ROUNDS

    def said(rounds: int) -> np.ndarray:
        return fit(estimator, COLUMNS, training, 7, rounds).probabilities(holdout.features)

    losses = {n: log_loss(holdout.churned, said(tried.rounds + n)) for n in (-1, 0, 1)}
    assert min(losses, key=lambda n: losses[n]) == 0
    assert said(tried.rounds) == pytest.approx(tried.probabilities, abs=1e-6)


@EVERY_ESTIMATOR
@pytest.mark.parametrize("churned", [0, 1])
def test_one_class_gives_the_base_rate(estimator: Estimator, churned: int):
    one_class = replace(rows(98), churned=np.full(98, churned))
    tried = trial(estimator, COLUMNS, one_class, rows(50, seed=1), 7)
    model = fit(estimator, COLUMNS, one_class, 7, tried.rounds)
    assert "0 of the rarer class" in tried.model.fallback
    assert model.probabilities(rows(3).features) == pytest.approx([0.99 if churned else 0.01] * 3)


@EVERY_ESTIMATOR
def test_a_hold_out_of_one_class_still_gives_a_model(estimator: Estimator):
    holdout = replace(rows(50, seed=1), churned=np.ones(50, dtype=int))
    tried = trial(estimator, COLUMNS, rows(), holdout, 7)
    assert not tried.model.fallback
    assert "roc_auc" not in grade(holdout.churned, tried.probabilities)


@EVERY_ESTIMATOR
def test_nobody_to_learn_from_is_an_error(estimator: Estimator) -> None:
    plan = training_plan(CALENDAR, dt.date(2025, 6, 1))
    with pytest.raises(ValueError, match=r"nobody to learn from.*set CHURN_START"):
        train(estimator, COLUMNS, VERSIONS, plan, lambda _: rows(0), 7)


@EVERY_ESTIMATOR
@pytest.mark.parametrize("customers", [1, 5])
def test_a_handful_of_customers_gives_the_base_rate(
    estimator: Estimator, customers: int, tmp_path: Path
):
    plan = training_plan(CALENDAR, dt.date(2025, 6, 1))
    trained = train(estimator, COLUMNS, VERSIONS, plan, lambda _: rows(customers), 7)
    assert f"{customers} training rows" in trained.manifest.fallback
    store = ModelStore(tmp_path)
    model = trained.model
    loaded = store.load(write(store, trained), feature_versions(GROUPS))
    assert np.array_equal(
        loaded.probabilities(rows(9).features), model.probabilities(rows(9).features)
    )


@EVERY_ESTIMATOR
def test_odd_values_are_survived(estimator: Estimator):
    odd = rows()
    # Nothing is known of it in training, as of reviews in a shop without reviews.
    odd.features["avg_session_length"] = np.nan
    odd.features["monetary"] = np.where(odd.churned == 1, np.inf, 1e300)
    model = fit(estimator, COLUMNS, odd, 7, 20)
    new = rows(50, seed=1).features
    new["avg_session_length"] = 5.0
    new["monetary"] = -np.inf
    for column in COLUMNS:
        if column.dtype == "VARCHAR":
            new[column.name] = "never seen"
    probabilities = model.probabilities(new)
    assert np.isfinite(probabilities).all()
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert model.probabilities(new.head(0)).shape == (0,)


def test_a_category_counts():
    columns = [*COLUMNS, Column("colour", "VARCHAR", "")]
    given = rows()
    given.features["colour"] = np.where(given.churned == 1, "red", "blue")
    model = fit(ESTIMATORS[0], columns, given, 7, 0)
    red, blue, unseen = (
        model.probabilities(given.features.assign(colour=c)).mean() for c in ("red", "blue", "x")
    )
    assert red > unseen > blue


# Artefacts


@EVERY_ESTIMATOR
def test_what_is_read_back_predicts_the_same(estimator: Estimator, tmp_path: Path):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, dt.date(2025, 6, 1))
    trained = train(estimator, COLUMNS, VERSIONS, plan, lambda _: rows(), 7)
    model, written = trained.model, write(store, trained)
    assert written == store.manifest(estimator.name, "2025-06-01")
    assert written.libraries[estimator.library] == version(estimator.library)
    loaded = store.load(written, feature_versions(GROUPS))
    new = rows(seed=1).features
    assert np.array_equal(loaded.probabilities(new), model.probabilities(new))


def test_a_manifest_of_version_0_1_can_be_read():
    """It has a threshold, and says nothing of the graded fit and the horizon."""
    plan = training_plan(CALENDAR, dt.date(2025, 6, 1))
    manifest = train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda _: rows(), 7).manifest
    content = json.loads(json.dumps(asdict(manifest)))
    del content["graded_cutoffs"], content["horizon_days"]
    read = Manifest.from_json(json.dumps(content | {"threshold": 0.5}))
    assert read == replace(manifest, graded_cutoffs=(), horizon_days=0)


def test_a_model_refuses_features_of_another_version(tmp_path: Path):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, dt.date(2025, 6, 1))
    written = write(store, train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda _: rows(), 7))
    changed = feature_versions(GROUPS) | {"monetary": "another"}
    with pytest.raises(FeatureMismatch, match=r"other versions of 1 features.*monetary"):
        store.load(written, changed)
    del changed["monetary"]
    with pytest.raises(FeatureMismatch, match="monetary"):
        store.load(written, changed)


def test_a_killed_write_leaves_the_previous_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, dt.date(2025, 6, 1))
    first = write(store, train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda _: rows(), 7))
    other = train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda _: rows(seed=5), 7)
    for step in ("models.artefacts.write_pipeline", "stores.artefacts._move"):
        with monkeypatch.context() as patch:
            patch.setattr(f"churn_assets.{step}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                write(store, other)
        assert store.manifest(first.model, first.cutoff) == first
        store.load(first, feature_versions(GROUPS))
    second = write(store, other)
    assert second.version != first.version
    store.load(first, feature_versions(GROUPS))
    third = write(store, train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda _: rows(seed=6), 7))
    folders = {p.name for p in store.folder(first.model, first.cutoff).iterdir() if p.is_dir()}
    assert folders == {second.version, third.version}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half of the pipeline": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "nothing of the pipeline": lambda f: f.write_bytes(b""),
    "a flipped byte": lambda f: f.write_bytes(f.read_bytes()[:-99] + b"!" + f.read_bytes()[-98:]),
    "no pipeline": lambda f: f.rename(f.with_name("elsewhere")),
    "no version": lambda f: shutil.rmtree(f.parent),
    "no digests": lambda f: (
        f.write_bytes(b"PK"),
        (f.parent / DIGESTS).rename(f.parent / "digests"),
    ),
}


# With its pipeline in one file and in two.
@each(ESTIMATORS[0], ESTIMATORS[3])
def test_a_damaged_model_says_which_it_is_and_how_to_make_it_again(
    estimator: Estimator, tmp_path: Path
):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, dt.date(2025, 6, 1))
    trained = train(estimator, COLUMNS, VERSIONS, plan, lambda _: rows(), 7)
    written = write(store, trained)
    for damage in DAMAGES.values():
        assert store.is_whole(estimator.name, "2025-06-01")
        damage(store.artefact(written) / PIPELINE)
        with pytest.raises(DamagedArtefact, match=f"{estimator.name} 2025-06-01 .*churn backfill`"):
            store.load(written, VERSIONS)
        if (store.artefact(written) / DIGESTS).exists() or damage is DAMAGES["no version"]:
            assert not store.is_whole(estimator.name, "2025-06-01")
        else:  # as version 0.1 wrote it, and the command begins with the removal
            shutil.rmtree(store.artefact(written))
        assert write(store, trained) == written
        store.load(written, VERSIONS)


def test_a_model_without_a_folder_is_not_there(tmp_path: Path):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, dt.date(2025, 6, 1))
    written = write(store, train(ESTIMATORS[0], COLUMNS, VERSIONS, plan, lambda _: rows(), 7))
    shutil.rmtree(store.folder(written.model, written.cutoff))
    assert not store.is_whole(written.model, written.cutoff)
    assert store.find(written.model, written.cutoff) is None
    assert store.cutoffs(written.model) == []


@each(*EXTRA_ESTIMATORS.values())
def test_a_model_whose_library_is_gone_says_how_to_get_it(
    estimator: Estimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, plan = ModelStore(tmp_path), training_plan(CALENDAR, dt.date(2025, 6, 1))
    written = write(store, train(estimator, COLUMNS, VERSIONS, plan, lambda _: rows(), 7))
    # As Python has it for a module that cannot be found.
    monkeypatch.setitem(sys.modules, estimator.library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"churn-assets\[{estimator.library}\]"):
        store.load(written, feature_versions(GROUPS))


def test_a_missing_model_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="churn backfill --stage models"):
        ModelStore(tmp_path).manifest(MODELS[0], "2025-06-01")


# The assets


def test_models_depend_on_mature_training_data_only(tmp_path: Path):
    store = make_settings(tmp_path)
    offline = OfflineStore(store.home, TABLES, store.duckdb_config())
    defined = models.assets(GROUPS, CALENDAR, offline, model_runs(store.home), Economics(), 7)
    assert [asset.key.path[-1] for asset in defined] == list(MODELS)
    upstream = dg.AssetKey(TRAINING_DATASET)
    for asset in defined:
        mapping = asset.get_partition_mapping(upstream)
        assert isinstance(mapping, dg.TimeWindowPartitionMapping)
        assert mapping.end_offset == -CALENDAR.lag
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()


# Extra kinds


def test_an_extra_that_is_not_installed_stops_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHURN_EXTRA_MODELS", "catboost,lightgbm")
    for name in EXTRA_ESTIMATORS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        SettingsError, match=r"EXTRA_MODELS.*pip install 'churn-assets\[catboost,lightgbm\]'"
    ):
        Settings.read()


@pytest.mark.parametrize("wrong", ["lightgbm;catboost", "xgboost"])
def test_an_unknown_kind_stops_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHURN_EXTRA_MODELS", wrong)
    with pytest.raises(SettingsError, match=r"EXTRA_MODELS.*'lightgbm' or 'catboost'"):
        Settings.read()


@each(*EXTRA_ESTIMATORS.values())
def test_an_extra_kind_races_with_the_others(
    estimator: Estimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CHURN_EXTRA_MODELS", f"{estimator.library}, {estimator.library},")
    names = Settings.read().extra_models
    assert names == (estimator.library,)
    defs = build_definitions(make_settings(tmp_path, extra_models=names))
    graph = defs.resolve_asset_graph()
    key = dg.AssetKey(estimator.name)
    assert {dg.AssetKey(m) for m in (*MODELS, estimator.name)} == graph.get(
        dg.AssetKey("champion_model")
    ).parent_keys
    assert key in defs.resolve_job_def("models").asset_layer.selected_asset_keys
    assert graph.get(key).kinds == {estimator.library, "mlflow"}
