"""Drift: prevents an index that is blind to NULLs, ties, new categories or rare values, one that
changes with threads or ranges, and a report whose reference is not what the champion has seen.

Numbers are held against independent ones from SciPy; runs are real, on a small made-up shop.
"""

import base64
import datetime as dt
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pandas as pd
import pytest
from pandas.api.types import is_numeric_dtype
from PIL import Image
from scipy.stats import ks_2samp

from churn_assets.cutoffs import parse_key
from churn_assets.features.group import Tolerance
from churn_assets.features.registry import registry
from churn_assets.models import training_rows as training
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.champion import CHAMPION_MODEL, Champion
from churn_assets.models.training_plan import mature_at
from churn_assets.models.training_rows import training_rows
from churn_assets.monitoring import drift
from churn_assets.monitoring.drift import (
    DRIFT_REPORT,
    WITHIN_LIMITS,
    compared_columns,
    drift_query,
    value_counts_query,
)
from churn_assets.monitoring.drift_picture import drift_figure
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.predictions.reasons import REASON_COLUMNS
from churn_assets.stores.artefacts import MANIFEST
from churn_assets.stores.figures import png
from churn_assets.stores.io_manager import OfflineIOManager
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.pages import markdown_image
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import current_provenance
from churn_assets.stores.staging import write_text
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets_tests.conftest import GROUPS, RANGE_END, RANGE_START, Row, cataloged, query
from churn_assets_tests.models.test_models import CALENDAR, COLUMNS, made_up, made_up_store

FIRST, MIDDLE, LAST = "2025-06-01", "2025-07-01", "2025-08-01"
CUTOFF = dt.date(2025, 8, 1)


def predicted(customers: int, seed: int, mean: float = 0.7) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame({"churn_probability": draw.beta(8 * mean, 8 * (1 - mean), customers)})


def compare(
    training: pd.DataFrame,
    population: pd.DataFrame,
    previous: pd.DataFrame | None = None,
    predictions: pd.DataFrame | None = None,
    threads: int = 2,
) -> dict[str, Row]:
    """The report of frames, by column."""
    frames = {
        "training": training,
        "population": population,
        "previous": predicted(300, 1) if previous is None else previous,
        "predictions": predicted(200, 2) if predictions is None else predictions,
    }
    with duckdb.connect(config={"threads": threads}) as connection:
        for name, frame in frames.items():
            connection.register(f"{name}_frame", frame)
            # A column of pandas without a value has no type.
            types = {c.name: c.dtype for c in COLUMNS if c.dtype in ("VARCHAR", "BOOLEAN")}
            columns = ", ".join(
                f"CAST({c} AS {types.get(c, 'DOUBLE')}) AS {c}" for c in map(str, frame)
            )
            connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM {name}_frame")
        counts = value_counts_query(GROUPS, *frames)
        connection.execute(f"CREATE TABLE counts AS {counts}")
        report = DRIFT_REPORT.typed(drift_query(GROUPS, CUTOFF, "training", "previous", "counts"))
        return {row["feature"]: row for row in query(report, connection)}


def expected_psi(reference: pd.Series, current: pd.Series) -> float:
    """PSI over deciles of percentile ranks, or categories, and NULLs; one row added to each."""
    groups: list[Any] = []
    if not is_numeric_dtype(reference):
        groups = [side.fillna("NULL").tolist() for side in (reference, current)]
    else:
        known = np.sort(reference.dropna())
        for side in (reference, current):
            # Twice the rank, ties in the middle: integers, so that no edge depends on rounding.
            ranks = sum(np.searchsorted(known, side, which) for which in ("left", "right"))
            deciles = np.minimum(9, 10 * ranks // (2 * len(known)))
            groups.append(np.where(side.isna(), -1, deciles))
    counts = [pd.Series(side).value_counts() for side in groups]
    names = set(counts[0].index) | set(counts[1].index)
    p, q = (
        np.array([(count.get(name, 0) + 1) / (count.sum() + len(names)) for name in names])
        for count in counts
    )
    return float(((q - p) * np.log(q / p)).sum())


def test_every_type_of_column_agrees_with_independent_figures():
    training, population = made_up(COLUMNS, 500, seed=1), made_up(COLUMNS, 300, seed=2)
    population["monetary"] *= 1.3
    population.loc[:40, "tenure_days"] = np.nan
    report = compare(training, population)
    assert set(report) == {c.column for c in compared_columns(GROUPS)}
    for column in COLUMNS:
        row, reference = report[column.name], training[column.name]
        current = population[column.name]
        if column.dtype == "BOOLEAN":
            reference, current = reference.astype(float), current.astype(float)
        assert row["psi"] == pytest.approx(expected_psi(reference, current), abs=1e-12), column
        assert (row["reference_rows"], row["current_rows"]) == (500, 300)
        assert row["reference_null_share"] == pytest.approx(reference.isna().mean())
        assert row["current_null_share"] == pytest.approx(current.isna().mean())
        if column.dtype == "VARCHAR":
            assert row["ks"] is row["reference_mean"] is row["current_mean"] is None
            continue
        statistic = ks_2samp(reference.dropna(), current.dropna()).statistic
        assert row["ks"] == pytest.approx(statistic, abs=1e-12), column
        assert row["reference_mean"] == pytest.approx(reference.mean(), abs=1e-5)
        assert row["current_mean"] == pytest.approx(current.mean(), abs=1e-5)


def test_predictions_are_compared_with_earlier_ones_and_the_base_rate_with_their_mean():
    training, population = made_up(COLUMNS, 500, seed=1), made_up(COLUMNS, 300, seed=2)
    previous, now = predicted(400, 3, mean=0.6), predicted(300, 4, mean=0.8)
    report = compare(training, population, previous, now)
    row = report["churn_probability"]
    before, after = previous["churn_probability"], now["churn_probability"]
    assert row["psi"] == pytest.approx(expected_psi(before, after), abs=1e-12)
    assert (row["reference"], row["feature_group"]) == ("previous", "churn_predictions")
    assert row["level"] == "error"

    row = report["churned"]
    assert row["reference"] == "training"
    assert row["reference_mean"] == pytest.approx(training["churned"].mean(), abs=1e-6)
    assert row["current_mean"] == pytest.approx(after.mean(), abs=0.5 / 300 + 1e-6)
    # Of two values, the distance of the distributions is that of the rates.
    assert row["ks"] == pytest.approx(abs(row["current_mean"] - row["reference_mean"]), abs=1e-5)
    assert report["age"]["reference"] == "training"


def test_the_number_of_threads_changes_nothing():
    training, population = made_up(COLUMNS, 5_000, seed=1), made_up(COLUMNS, 3_000, seed=2)
    one = compare(training, population, threads=1)
    assert compare(training, population, threads=4) == one
    # Nor does the order of the rows.
    assert compare(training.sample(frac=1, random_state=5), population, threads=4) == one


@pytest.mark.parametrize("value", [3, 7])
def test_a_value_on_either_side_of_a_constant_is_seen(value: int):
    training, population = made_up(COLUMNS, 200, seed=1), made_up(COLUMNS, 200, seed=2)
    training["monetary"], population["monetary"] = 5.0, float(value)
    row = compare(training, population)["monetary"]
    assert (row["level"], row["ks"]) == ("error", 1)


def test_what_the_reference_has_never_seen_is_finite_and_an_error():
    training, population = made_up(COLUMNS, 200, seed=1), made_up(COLUMNS, 200, seed=2)
    population["gender"] = "new"
    population["monetary"] = np.nan
    population["avg_order_value"] = np.inf
    training["age"] = np.nan
    report = compare(training, population)
    for name in ("gender", "monetary", "avg_order_value", "age"):
        assert report[name]["level"] == "error"
        assert np.isfinite(report[name]["psi"])
    assert report["monetary"]["ks"] is None
    assert report["age"]["reference_mean"] is None


def test_an_undefined_column_has_not_drifted():
    training, population = made_up(COLUMNS, 200, seed=1), made_up(COLUMNS, 200, seed=2)
    training["age"] = population["age"] = np.nan
    row = compare(training, population)["age"]
    assert (row["level"], row["psi"], row["ks"]) == ("ok", 0, None)


def test_with_nothing_to_compare_there_is_no_level():
    training, population = made_up(COLUMNS, 200, seed=1), made_up(COLUMNS, 200, seed=2)
    none = population.iloc[:0]
    for report in (
        compare(training, none, predictions=predicted(0, 1)),
        compare(training.iloc[:0], population, previous=predicted(0, 1)),
        compare(training.iloc[:0], none, predicted(0, 1), predicted(0, 1)),
    ):
        assert set(report) == {c.column for c in compared_columns(GROUPS)}
        assert {(row["psi"], row["level"]) for row in report.values()} == {(None, None)}


def test_a_wide_tolerance_still_sees_a_change_of_unit():
    training, population = made_up(COLUMNS, 400, seed=1), made_up(COLUMNS, 400, seed=2)
    population["lifetime_revenue"] *= 100
    report = compare(training, population)
    assert report["lifetime_revenue"]["level"] == "error"
    assert {r["level"] for name, r in report.items() if name == "monetary"} == {"ok"}


# Declarations


def test_a_tolerance_is_declared_with_the_feature_and_shown_in_the_registry():
    shown = {
        feature["name"]: (feature["psi_warn"], feature["psi_error"])
        for view in registry(GROUPS, 90)["feature_views"]
        for feature in view["features"]
    }
    assert shown["monetary"] == (0.1, 0.25)
    assert shown["tenure_days"] == (1.0, 2.0)
    row = compare(made_up(COLUMNS, 50, seed=1), made_up(COLUMNS, 50, seed=2))["tenure_days"]
    assert (row["psi_warn"], row["psi_error"]) == (1.0, 2.0)


def test_another_tolerance_is_no_other_feature():
    group = next(group for group in GROUPS if group.name == "customer_rfm_features")
    feature = group.features[0]
    assert group.version(replace(feature, tolerance=Tolerance(warn=1, error=2))) == group.version(
        feature
    )


@pytest.mark.parametrize("limits", [(0, 1), (-1, 1), (2, 1), (float("nan"), 1)])
def test_limits_that_make_no_sense_are_refused(limits: tuple[float, float]):
    with pytest.raises(ValueError, match="0 < warn <= error"):
        Tolerance(warn=limits[0], error=limits[1])


# Runs


def decide(store: OfflineStore, cutoff: str, model_cutoff: str) -> None:
    """Write a champion decision for a cutoff, and the manifest of its model."""
    trained = mature_at(CALENDAR, parse_key(model_cutoff))
    manifest = Manifest(
        model="logistic_regression_model",
        cutoff=model_cutoff,
        columns=tuple(COLUMNS),
        feature_versions={},
        training_cutoffs=tuple(day.isoformat() for day in trained),
        holdout=trained[-1].isoformat(),
        metrics={},
        rounds=0,
        rows=0,
        seed=0,
        fallback="",
        version="v",
    )
    champion = Champion(
        cutoff=cutoff,
        model=manifest.model,
        model_cutoff=model_cutoff,
        model_version=manifest.version,
        promoted=True,
        reason="",
        challenger=None,
        holdout=manifest.holdout,
        candidates={},
        incumbent={},
    )
    kept = ModelStore(store.home)
    for folder, content in (
        (kept.folder(manifest.model, model_cutoff), manifest),
        (kept.folder(CHAMPION_MODEL.name, cutoff), champion),
    ):
        write_text(kept.home, folder / MANIFEST, json.dumps(asdict(content)))


def publish_predictions(store: OfflineStore, key: str, mean: float) -> None:
    frame = predicted(400, seed=5, mean=mean).assign(
        customer_id=[f"c{i:04}" for i in range(400)],
        cutoff=key,
        purchase_probability=0.5,
        prediction="RETAIN",
        threshold=0.5,
        model_version="v",
        **{column.name: None for column in REASON_COLUMNS},
    )
    with store.connect() as connection:
        connection.register("made_up", frame)
        store.publish(connection, CHURN_PREDICTIONS, Query("FROM made_up"), [key], lambda _: {})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> OfflineStore:
    """A made-up shop with predictions and champions; that of the last cutoff is an older model."""
    store = made_up_store(tmp_path_factory.mktemp("shop"))
    for key, model_cutoff, mean in (
        (FIRST, FIRST, 0.6),
        (MIDDLE, MIDDLE, 0.6),
        (LAST, FIRST, 0.9),
    ):
        decide(store, key, model_cutoff)
        publish_predictions(store, key, mean)
    return store


@pytest.fixture
def own_shop(shop: OfflineStore, tmp_path: Path) -> OfflineStore:
    """A copy of the shop that a test may change."""
    home = tmp_path / "state"
    shutil.copytree(shop.home, home)
    return replace(shop, home=home)


@contextmanager
def running(store: OfflineStore) -> Iterator[Any]:
    """A function that runs the report for a range, and the instance that it runs on."""
    upstream = [
        dg.AssetSpec(TRAINING_DATASET, partitions_def=CALENDAR.labeled_cutoffs),
        *(dg.AssetSpec(group.name, partitions_def=CALENDAR.cutoffs) for group in GROUPS),
        *(
            dg.AssetSpec(name, partitions_def=CALENDAR.scored_cutoffs)
            for name in (CHAMPION_MODEL.name, CHURN_PREDICTIONS.name)
        ),
    ]
    known, own = cataloged(store, CALENDAR, lambda known: drift.assets(GROUPS, CALENDAR, known))
    defs = dg.Definitions(
        assets=[*own, *upstream],
        jobs=[dg.define_asset_job("drift", dg.AssetSelection.assets(DRIFT_REPORT.name))],
        resources={"io_manager": OfflineIOManager(known)},
        executor=dg.in_process_executor,
    )
    with dg.DagsterInstance.ephemeral() as instance:

        def run(first: str, last: str) -> dg.ExecuteInProcessResult:
            return defs.resolve_job_def("drift").execute_in_process(
                instance=instance, tags={RANGE_START: first, RANGE_END: last}
            )

        yield run, instance


def reported(store: OfflineStore, key: str) -> dict[str, Row]:
    rows = query(f"FROM {store.scan(DRIFT_REPORT, [key]).sql}")
    assert [row["feature"] for row in rows] == sorted(c.column for c in compared_columns(GROUPS))
    return {row["feature"]: row for row in rows}


@pytest.fixture(scope="module")
def history(
    shop: OfflineStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OfflineStore, Any, Any]]:
    """A shop after one run for three cutoffs, its result and its instance."""
    store = replace(shop, home=tmp_path_factory.mktemp("history") / "state")
    shutil.copytree(shop.home, store.home)
    with running(store) as (run, instance):
        yield store, run(FIRST, LAST), instance


def test_the_reference_is_what_the_champion_has_learned_from(history: Any):
    store, _, _ = history
    trained = {key: reported(store, key)["monetary"] for key in (FIRST, MIDDLE, LAST)}
    assert trained[FIRST]["reference"] == "training_dataset 2025-04-01 … 2025-05-01"
    assert trained[MIDDLE]["reference"] == "training_dataset 2025-04-01 … 2025-06-01"
    # The champion of the last cutoff is that of the first.
    assert trained[LAST]["reference"] == trained[FIRST]["reference"]
    assert [row["reference_rows"] for row in trained.values()] == [800, 1200, 800]


def test_the_reference_is_the_draw_that_the_model_saw(
    own_shop: OfflineStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "MOST_TRAINING_ROWS", 300)
    with running(own_shop) as (run, _):
        run(FIRST, FIRST)
    seen = training_rows(own_shop, [dt.date(2025, 4, 1), dt.date(2025, 5, 1)])
    row = reported(own_shop, FIRST)["monetary"]
    assert row["reference_rows"] == len(seen) < 400
    assert row["reference_mean"] == pytest.approx(seen.features["monetary"].mean(), abs=1e-5)


def test_predictions_have_a_reference_from_the_second_cutoff_on(history: Any):
    store, _, _ = history
    first, middle, last = (
        reported(store, key)["churn_probability"] for key in (FIRST, MIDDLE, LAST)
    )
    assert (first["psi"], first["level"], first["reference_rows"]) == (None, None, 0)
    assert (middle["level"], middle["reference"]) == ("ok", f"churn_predictions {FIRST}")
    assert last["level"] == "error"


def test_a_range_records_a_check_for_each_of_its_cutoffs(history: Any):
    _, _, instance = history
    check = dg.AssetCheckKey(dg.AssetKey(DRIFT_REPORT.name), WITHIN_LIMITS)
    found = {
        record.partition: record.event.asset_check_evaluation
        for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=9)
    }
    assert set(found) == {FIRST, MIDDLE, LAST}
    assert found[FIRST].passed
    assert not found[LAST].passed
    assert "error: churn_probability" in found[LAST].description
    assert found[LAST].severity == dg.AssetCheckSeverity.WARN
    assert not found[LAST].blocking
    # About what was just written: an evaluation from before it would count as out of date.
    for info in instance.event_log_storage.get_asset_check_partition_info([check]):
        assert info.latest_check_event_storage_id > info.latest_materialization_storage_id


def test_the_page_of_a_partition_shows_numbers_and_a_picture(history: Any):
    _, result, _ = history
    events = result.asset_materializations_for_node(DRIFT_REPORT.name)
    assert [event.partition for event in events] == [FIRST, MIDDLE, LAST]
    for event in events:
        assert isinstance(event.metadata["max_psi"].value, float)
        assert event.metadata["features_error"].value == 0
        assert event.metadata["worst"].value.count("\n") == 1 + drift.WORST
        markdown = event.metadata["drift"].value
        assert len(markdown) < 80_000
        [packed] = re.findall(r"^!\[.*\]\(data:image/png;base64,(.*)\)$", markdown)
        assert Image.open(io.BytesIO(base64.b64decode(packed))).width > 800
    assert "churn_probability | error" in events[-1].metadata["worst"].value


def test_one_cutoff_at_a_time_gives_equal_rows(history: Any, own_shop: OfflineStore):
    store, _, _ = history
    with running(own_shop) as (run, _):
        for key in (LAST, FIRST):
            run(key, key)
            assert reported(own_shop, key) == reported(store, key)


def test_a_cutoff_without_customers_has_a_report(own_shop: OfflineStore):
    store = own_shop
    with store.connect() as connection:
        for table in (CHURN_PREDICTIONS, *(group.table for group in GROUPS)):
            store.publish(connection, table, Query(table.empty()), [LAST], lambda _: {})
    with running(store) as (run, _):
        result = run(LAST, LAST)
    [event] = result.asset_materializations_for_node(DRIFT_REPORT.name)
    assert "drift" not in event.metadata
    assert {row["level"] for row in reported(store, LAST).values()} == {None}


def test_other_predictions_of_the_cutoff_before_make_it_stale(own_shop: OfflineStore):
    known, _ = cataloged(own_shop, CALENDAR, lambda known: drift.assets(GROUPS, CALENDAR, known))

    def fresh() -> dict[str, str]:
        return current_provenance(known, DRIFT_REPORT.name, MIDDLE)

    with running(own_shop) as (run, _):
        run(MIDDLE, MIDDLE)
    assert known.made_from(DRIFT_REPORT.name, MIDDLE) == fresh()
    publish_predictions(own_shop, FIRST, mean=0.5)
    assert known.made_from(DRIFT_REPORT.name, MIDDLE) != fresh()


def test_the_heat_map_has_the_newest_cutoffs(history: Any, monkeypatch: pytest.MonkeyPatch):
    store, _, _ = history
    monkeypatch.setattr(drift, "HEAT_MAP_CUTOFFS", 2)
    earlier, last = (store.scan(DRIFT_REPORT, keys) for keys in ([FIRST, MIDDLE], [LAST]))
    with store.connect() as connection:
        connection.execute(f"CREATE TABLE drift AS FROM {last.sql}")
        rows = drift.recent_rows(connection, earlier)
    assert {str(row["cutoff"]) for row in rows} == {MIDDLE, LAST}


def test_without_a_champion_it_says_how_to_make_one(shop: OfflineStore):
    with (
        running(shop) as (run, _),
        pytest.raises(FileNotFoundError, match="churn backfill --stage models"),
    ):
        run("2025-09-01", "2025-09-01")


def test_the_picture_takes_categories_gaps_and_infinities():
    history = [
        {"cutoff": CUTOFF, "feature": name, "psi": psi, "psi_error": 0.25}
        for name, psi in (("gender", 0.5), ("monetary", 0.2), ("age", 0.1), ("income", None))
    ]
    nothing = np.array([None, None])
    counts = {"reference": np.array([3, 5]), "current": np.array([0, 7])}
    values = {
        "gender": {"number": np.array([np.nan] * 2), "category": np.array(["f", None])},
        "monetary": {"number": np.array([np.inf, 5.0]), "category": nothing},
        "age": {"number": np.array([np.nan, np.nan]), "category": nothing},
    }
    figure = drift_figure(history, {name: v | counts for name, v in values.items()})
    titles = [axes.get_title() for axes in figure.get_axes()]
    assert {"gender", "monetary", "age"} <= set(titles)
    figure.canvas.draw()


def test_a_full_picture_fits_into_the_event_log():
    draw = np.random.default_rng(1)
    names = [column.name for column in COLUMNS]
    history = [
        {"cutoff": day, "feature": name, "psi": draw.gamma(1, 0.1), "psi_error": 0.25}
        for day in CALENDAR.between(dt.date(2025, 1, 1), dt.date(2025, 12, 1))
        for name in names
    ]
    counts = draw.integers(0, 9, (2, 5_000))
    column = {"number": draw.gamma(2, 9, 5_000), "category": np.full(5_000, None)}
    drawn = column | {"reference": counts[0], "current": counts[1]}
    figure = drift_figure(history, dict.fromkeys(names[:4], drawn))
    assert len(markdown_image(png(figure), "Drift")) < 80_000
