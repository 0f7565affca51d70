"""Prevents: an incumbent that is graded by a fit that has learned how the hold-out ended.

Its refit may know labels whose windows overlap those of the hold-out, wherever labels need more
than one period to mature.
"""

import datetime as dt
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from churn_assets.cutoffs import Cadence, Calendar, midnight, parse_key
from churn_assets.models.artefacts import GRADED, Manifest, ModelStore
from churn_assets.models.candidates import train
from churn_assets.models.champion import (
    CHAMPION_MODEL,
    Champion,
    champion_of,
    choose_champion,
    find_champion,
    incumbent_of,
    newest_champion,
)
from churn_assets.models.estimators import Estimator
from churn_assets.models.formats import PIPELINE
from churn_assets.models.grades import grade
from churn_assets.models.incumbent import ModelIdentity
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.training_plan import mature_at, needs_graded_fit, training_plan
from churn_assets.models.training_rows import training_rows
from churn_assets.stores.artefacts import DamagedArtefact
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.stores.staging import write_text
from churn_assets.training_data.dataset import LABEL_COLUMNS, TRAINING_DATASET
from churn_assets_tests.conftest import TABLES, make_settings
from churn_assets_tests.models.test_models import (
    COLUMNS,
    EVERY_ESTIMATOR,
    VERSIONS,
    made_up,
    rows,
)

LOGISTIC = ESTIMATORS[0]


def made(calendar: Calendar, cutoff: dt.date) -> Manifest:
    """The manifest of a model of a cutoff, as far as its dates go."""
    plan = training_plan(calendar, cutoff)
    return Manifest(
        model=LOGISTIC.name,
        cutoff=cutoff.isoformat(),
        columns=(),
        feature_versions={},
        training_cutoffs=tuple(map(str, plan.refit)),
        graded_cutoffs=tuple(map(str, plan.fit)),
        horizon_days=plan.horizon_days,
        holdout=plan.holdout.isoformat(),
        metrics={},
        rounds=0,
        rows=0,
        seed=0,
        fallback="",
    )


CADENCES = st.sampled_from(Cadence)
HORIZONS = st.integers(1, 100)


@given(CADENCES, HORIZONS, st.integers(1, 14), st.integers(1, 20), st.integers(0, 40))
def test_whatever_the_age_the_fit_saw_nothing_of_the_hold_out(
    cadence: Cadence, horizon_days: int, training_cutoffs: int, age: int, later: int
) -> None:
    calendar = Calendar(
        dt.date(2023, 1, 1),
        cadence=cadence,
        horizon_days=horizon_days,
        training_cutoffs=training_cutoffs,
    )
    cutoff = calendar.shift(calendar.first_scored, age + later)
    incumbent, holdout = (
        made(calendar, calendar.shift(cutoff, -age)),
        mature_at(calendar, cutoff)[-1],
    )
    graded = needs_graded_fit(calendar, incumbent, holdout)
    learned = incumbent.graded_cutoffs if graded else incumbent.training_cutoffs
    horizon = dt.timedelta(days=horizon_days)
    assert all(parse_key(day) + horizon <= holdout for day in learned)
    # And no cutoff was given away: the refit is used as soon as it is as old as a candidate's fit.
    assert graded is (age < calendar.lag)


@given(CADENCES, HORIZONS, HORIZONS, st.integers(1, 20), st.integers(0, 40), st.booleans())
def test_a_changed_horizon_or_a_fit_that_is_gone_is_noticed(
    cadence: Cadence, before: int, after: int, age: int, later: int, kept: bool
) -> None:
    old, new = (
        Calendar(dt.date(2023, 1, 1), cadence=cadence, horizon_days=days)
        for days in (before, after)
    )
    first = max(old.first_scored, new.first_scored)
    cutoff = old.shift(first, age + later)
    incumbent, holdout = made(old, old.shift(cutoff, -age)), mature_at(new, cutoff)[-1]
    incumbent = incumbent if kept else replace(incumbent, graded_cutoffs=())
    try:
        graded = needs_graded_fit(new, incumbent, holdout)
    except ValueError as error:
        assert ("not kept" in str(error)) is not kept
        known = incumbent.graded_cutoffs or incumbent.training_cutoffs
        horizon = dt.timedelta(days=before)
        overlaps = parse_key(known[-1]) + horizon > holdout
        assert overlaps or parse_key(known[-1]) > new.shift(holdout, -new.lag)
        return
    learned = incumbent.graded_cutoffs if graded else incumbent.training_cutoffs
    assert all(parse_key(day) + dt.timedelta(days=before) <= holdout for day in learned)


@given(CADENCES, HORIZONS, st.integers(1, 20))
def test_a_model_of_version_0_1_is_graded_where_its_refit_is_old_enough(
    cadence: Cadence, horizon_days: int, age: int
) -> None:
    calendar = Calendar(dt.date(2023, 1, 1), cadence=cadence, horizon_days=horizon_days)
    assume(age >= calendar.lag)
    cutoff = calendar.shift(calendar.first_scored, age)
    old = replace(made(calendar, calendar.first_scored), graded_cutoffs=(), horizon_days=0)
    assert not needs_graded_fit(calendar, old, mature_at(calendar, cutoff)[-1])


# On real files

LONG_LABELS = [
    pytest.param(Cadence.WEEKLY, 28, id="weekly"),
    pytest.param(Cadence.DAILY, 3, id="daily"),
    pytest.param(Cadence.MONTHLY, 30, id="30 days monthly"),
]


def shop(folder: Path, calendar: Calendar, cutoffs: list[dt.date]) -> OfflineStore:
    """The training dataset of cutoffs; churn is made up anew at each."""
    settings = make_settings(folder)
    store = OfflineStore(settings.home, TABLES, settings.duckdb_config())
    needed = {key for cutoff in cutoffs for key in training_plan(calendar, cutoff).needed}
    for number, key in enumerate(sorted(needed)):
        frame = made_up(COLUMNS, 150, seed=number).assign(
            customer_id=[f"c{i:04}" for i in range(150)], cutoff=key
        )
        for label in LABEL_COLUMNS:
            if label.name != "churned":
                frame[label.name] = 1 - frame["churned"]
        with store.connect() as connection:
            connection.register("made_up", frame)
            store.publish(
                connection, TABLES[TRAINING_DATASET], Query("FROM made_up"), [key], lambda _: {}
            )
    return store


def keep(store: OfflineStore, champion: Champion) -> None:
    path = ModelStore(store.home).manifest_path(CHAMPION_MODEL.name, champion.cutoff)
    write_text(store.home, path, json.dumps(asdict(champion)))


def trained(store: OfflineStore, calendar: Calendar, cutoff: dt.date) -> Manifest:
    made = train(
        LOGISTIC,
        COLUMNS,
        VERSIONS,
        training_plan(calendar, cutoff),
        lambda days: training_rows(store, days),
        7,
    )
    return ModelStore(store.home).write(made.manifest, made.model, made.tried)


def decide(store: OfflineStore, calendar: Calendar, cutoff: dt.date) -> Champion:
    champion, _ = choose_champion(
        calendar, store, ModelStore(store.home), VERSIONS, cutoff, [LOGISTIC.name]
    )
    keep(store, champion)
    return champion


@pytest.mark.parametrize(("cadence", "horizon_days"), LONG_LABELS)
def test_the_incumbent_is_graded_by_the_fit_that_had_not_seen(
    cadence: Cadence, horizon_days: int, tmp_path: Path
) -> None:
    calendar = Calendar(
        dt.date(2025, 1, 1), cadence=cadence, horizon_days=horizon_days, training_cutoffs=2
    )
    first = calendar.first_scored
    second = calendar.shift(first, 1)
    store = shop(tmp_path, calendar, [first, second])
    models = ModelStore(store.home)
    before = trained(store, calendar, first)
    trained(store, calendar, second)
    assert decide(store, calendar, first).incumbent == {}
    decided = decide(store, calendar, second)

    holdout = training_rows(store, [parse_key(decided.holdout)])
    of_graded, of_refit = (
        grade(
            holdout.churned,
            models.load(before, VERSIONS, graded).probabilities(holdout.features),
        )
        for graded in (True, False)
    )
    assert decided.incumbent == of_graded != of_refit

    # Of a model of version 0.1, whose graded fit was not kept, nothing can be said.
    old = replace(before, graded_cutoffs=(), horizon_days=0)
    changed = models.write(old, models.load(before, VERSIONS))
    keep(store, replace(decide(store, calendar, first), model_version=changed.version))
    decided = decide(store, calendar, second)
    assert decided.incumbent == {}
    assert "its graded fit was not kept" in decided.reason


def test_with_labels_of_one_period_the_refit_is_as_old_as_the_candidates(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), training_cutoffs=2)
    first = calendar.first_scored
    second = calendar.shift(first, 1)
    store = shop(tmp_path, calendar, [first, second])
    before, newer = (trained(store, calendar, cutoff) for cutoff in (first, second))
    assert before.training_cutoffs == newer.graded_cutoffs
    decide(store, calendar, first)
    decided = decide(store, calendar, second)
    # The same kind, fitted on the same rows, graded on the same.
    assert decided.incumbent == decided.candidates[LOGISTIC.name]


def test_an_incumbent_of_a_longer_horizon_is_none_and_the_reason_says_so(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), cadence=Cadence.WEEKLY, training_cutoffs=2)
    cutoff = calendar.shift(calendar.first_scored, 1)
    shorter = replace(calendar, horizon_days=14)
    store = shop(tmp_path, shorter, [cutoff, calendar.shift(cutoff, -1)])
    # Of the shorter horizon, and then that is longer again.
    trained(store, shorter, calendar.shift(cutoff, -1))
    decide(store, shorter, calendar.shift(cutoff, -1))
    longer = shop(tmp_path, calendar, [cutoff])
    trained(longer, calendar, cutoff)
    decided = decide(longer, calendar, cutoff)
    assert decided.incumbent == {}
    assert "has learned from the labels of" in decided.reason
    assert decided.model_cutoff == cutoff.isoformat()


@EVERY_ESTIMATOR
def test_the_graded_fit_is_read_back_as_it_was_graded(estimator: Estimator, tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1))
    plan = training_plan(calendar, calendar.first_scored)
    holdout = rows(seed=1)
    read = {plan.fit: rows(), (plan.holdout,): holdout, plan.refit: rows(seed=2)}
    made = train(estimator, COLUMNS, VERSIONS, plan, lambda days: read[days], 7)
    store = ModelStore(tmp_path)
    written = store.write(made.manifest, made.model, made.tried)
    assert (store.artefact(written) / GRADED).is_dir()
    graded = store.load(written, VERSIONS, graded=True).probabilities(holdout.features)
    assert np.array_equal(graded, made.tried.probabilities)
    assert np.array_equal(graded, store.holdout_probabilities(written))
    assert grade(holdout.churned, graded) == written.metrics
    assert not np.array_equal(graded, store.load(written, VERSIONS).probabilities(holdout.features))


# Which model it is


def test_a_decision_knows_its_incumbent(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), training_cutoffs=2)
    first = calendar.first_scored
    second = calendar.shift(first, 1)
    store = shop(tmp_path, calendar, [first, second])
    models = ModelStore(store.home)
    before, _ = (trained(store, calendar, cutoff) for cutoff in (first, second))
    assert decide(store, calendar, first).incumbent_identity is None
    decided = decide(store, calendar, second)
    assert decided.incumbent_identity == ModelIdentity(before.model, before.cutoff, before.version)
    assert decided.incumbent_identity == incumbent_of(calendar, store, models, second)
    assert find_champion(models, second) == decided
    text = models.manifest_path(CHAMPION_MODEL.name, decided.cutoff).read_text()
    assert json.loads(text)["incumbent_identity"] == {
        "model": before.model,
        "model_cutoff": before.cutoff,
        "model_version": before.version,
    }

    # One that is there and cannot be graded is known too: the decision rests on it.
    changed = VERSIONS | {"monetary": "another"}
    ungraded, _ = choose_champion(calendar, store, models, changed, second, [LOGISTIC.name])
    assert ungraded.incumbent == {}
    assert ungraded.incumbent_identity == decided.incumbent_identity

    # One that is damaged is not there, and back once it was written again.
    made = (models.artefact(before) / PIPELINE, models.artefact(before) / GRADED / PIPELINE)
    for path in made:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        without = decide(store, calendar, second)
        assert without.incumbent_identity is None is incumbent_of(calendar, store, models, second)
        assert without.incumbent == {}
        assert f"{before.model} {before.cutoff} is damaged" in without.reason
        path.write_bytes(whole)
        assert decide(store, calendar, second) == decided


def test_a_decision_of_version_0_1_says_nothing_of_its_incumbent(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), training_cutoffs=2)
    store = shop(tmp_path, calendar, [calendar.first_scored])
    trained(store, calendar, calendar.first_scored)
    decided = decide(store, calendar, calendar.first_scored)
    models = ModelStore(store.home)
    path = models.manifest_path(CHAMPION_MODEL.name, decided.cutoff)
    content = json.loads(path.read_text())
    del content["incumbent_identity"]
    path.write_text(json.dumps(content))
    assert find_champion(models, calendar.first_scored) == decided


def test_a_decision_outside_history_is_not_the_newest(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), training_cutoffs=2)
    first = calendar.first_scored
    second = calendar.shift(first, 1)
    store = shop(tmp_path, calendar, [first, second])
    models = ModelStore(store.home)
    for cutoff in (first, second):
        trained(store, calendar, cutoff)
        decide(store, calendar, cutoff)
    ends = Calendar(calendar.start, training_cutoffs=2, end=midnight(second) - dt.timedelta(days=1))
    for history, newest in ((calendar, second), (ends, first)):
        found = newest_champion(history, models)
        assert found and found.cutoff == newest.isoformat()


def test_a_decision_that_cannot_be_read_counts_as_not_made(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), training_cutoffs=2)
    first = calendar.first_scored
    second = calendar.shift(first, 1)
    store = shop(tmp_path, calendar, [first, second])
    models = ModelStore(store.home)
    for cutoff in (first, second):
        trained(store, calendar, cutoff)
        decide(store, calendar, cutoff)
    path = models.manifest_path(CHAMPION_MODEL.name, second.isoformat())
    path.write_text(path.read_text()[:-1])
    assert find_champion(models, second) is None
    newest = newest_champion(calendar, models)
    assert newest
    assert newest.cutoff == first.isoformat()
    with pytest.raises(FileNotFoundError, match="no champion_model for cutoff"):
        champion_of(calendar, models, second)


def test_a_candidate_that_is_damaged_decides_nothing(tmp_path: Path) -> None:
    calendar = Calendar(dt.date(2025, 1, 1), training_cutoffs=2)
    cutoff = calendar.first_scored
    store = shop(tmp_path, calendar, [cutoff])
    manifest = trained(store, calendar, cutoff)
    (ModelStore(store.home).artefact(manifest) / PIPELINE).unlink()
    with pytest.raises(DamagedArtefact, match=f"{manifest.model} {cutoff} .*`churn backfill`"):
        decide(store, calendar, cutoff)
