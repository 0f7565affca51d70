"""Tuning: prevents a search that has seen the hold-out which grades its outcome, that validates on
labels nobody had yet, or that takes the luck of one month for a better model.
"""

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from churn_assets.cutoffs import Cadence, Calendar
from churn_assets.models import candidates as models
from churn_assets.models import champion, tuning
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.estimators import Estimator, Rows, fit
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.metrics import Economics
from churn_assets.models.training_plan import training_plan
from churn_assets.models.tuning import FEWEST_FOLDS, MOST_FOLDS, Fold, tune
from churn_assets.stores.io_manager import OfflineIOManager
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets_tests.conftest import GROUPS, TABLES, cataloged, model_runs
from churn_assets_tests.models.test_models import (
    CALENDAR,
    COLUMNS,
    EVERY_ESTIMATOR,
    INSTALLED,
    made_up_store,
    rows,
)

LOGISTIC, XGBOOST = ESTIMATORS[0], ESTIMATORS[-1]
SEPTEMBER = training_plan(CALENDAR, dt.date(2025, 9, 1))


def read(cutoffs: tuple[dt.date, ...]) -> Rows:
    """Made-up customers, other ones at every cutoff."""
    return rows(150 * len(cutoffs), seed=cutoffs[-1].month)


# What a fold may see


@pytest.mark.parametrize(
    ("cadence", "horizon_days"),
    [(Cadence.MONTHLY, 28), (Cadence.MONTHLY, 30), (Cadence.WEEKLY, 28), (Cadence.DAILY, 3)],
)
def test_folds_lie_before_the_hold_out_and_keep_the_embargo(cadence: Cadence, horizon_days: int):
    calendar = Calendar(dt.date(2025, 1, 1), cadence=cadence, horizon_days=horizon_days)
    horizon = dt.timedelta(days=horizon_days)
    for number in range(30):
        plan = training_plan(calendar, calendar.shift(calendar.first_scored, number))
        assert len(plan.folds) == max(len(plan.fit) - calendar.lag, 0)
        for fold in plan.folds:
            assert {*fold.fit, fold.validation} <= set(plan.fit)
            assert all(cutoff + horizon <= fold.validation for cutoff in fold.fit)
            assert fold.validation + horizon <= plan.holdout


def test_only_cutoffs_of_the_graded_fit_are_read():
    seen: set[dt.date] = set()

    def recording(cutoffs: tuple[dt.date, ...]) -> Rows:
        seen.update(cutoffs)
        return read(cutoffs)

    assert tune(LOGISTIC, COLUMNS, SEPTEMBER.folds, recording, 2, 7).candidates
    assert seen == set(SEPTEMBER.fit)


# What is chosen


def hopeless(*_: int) -> Any:
    return LogisticRegression(C=1e-9)


def test_what_is_better_on_the_folds_is_chosen():
    estimator = replace(LOGISTIC, build=hopeless, space={"C": (1e-10, 0.003, 1e-8)})
    tried = tune(estimator, COLUMNS, SEPTEMBER.folds, read, 3, 7)
    assert tried.parameters == {"C": 0.003}
    assert "with C=0.003" in tried.summary
    assert "with the defaults" in tried.summary
    chosen = replace(estimator, parameters=tried.parameters)
    assert fit(chosen, COLUMNS, rows(), 7, 0).pipeline["classifier"].C == 0.003


def test_nothing_better_keeps_the_defaults():
    tried = tune(replace(LOGISTIC, space={"C": (1e-9, 1e-8)}), COLUMNS, SEPTEMBER.folds, read, 2, 7)
    assert tried.parameters == {}
    assert "with the defaults" in tried.summary


def test_the_better_half_goes_on_to_the_next_fold():
    folds = [Fold(SEPTEMBER.fit[:n], dt.date(2025, 4 + n, 1)) for n in (1, 2, 3, 4, 4, 4)]
    tried = tune(
        replace(LOGISTIC, space={"C": tuple(np.geomspace(1e-6, 1, 8))}),
        COLUMNS,
        folds,
        read,
        8,
        7,
    )
    judged = [len(candidate.losses) for candidate in tried.candidates]
    # The defaults and one candidate saw all folds.
    assert judged == sorted([MOST_FOLDS] * 2 + [3] * 1 + [2] * 2 + [1] * 4, reverse=True)
    assert {} in [candidate.parameters for candidate in tried.candidates[:2]]
    first = [candidate.losses[0] for candidate in tried.candidates if candidate.parameters]
    assert max(first[:4]) < min(first[4:])


@pytest.mark.parametrize("cutoff", [dt.date(2025, 6, 1), dt.date(2025, 7, 1)])
def test_fewer_than_two_folds_are_no_tuning(cutoff: dt.date):
    plan = training_plan(CALENDAR, cutoff)
    assert len(plan.folds) < FEWEST_FOLDS
    tried = tune(LOGISTIC, COLUMNS, plan.folds, read, 4, 7)
    assert tried.parameters == {}
    assert f"no tuning: {len(plan.folds)} temporal folds" in tried.summary


@pytest.mark.parametrize("lacking", [0, 1], ids=["training", "validation"])
def test_folds_that_cannot_judge_do_not_count(lacking: int):
    days = SEPTEMBER.fit
    folds = [Fold(days[:1], days[1]), Fold(days[2:3], days[3])]

    def reading(cutoffs: tuple[dt.date, ...]) -> Rows:
        found = read(cutoffs)
        one_class = cutoffs == (days[lacking],)
        return replace(found, churned=np.ones(len(found))) if one_class else found

    assert "no tuning: 1 temporal folds" in tune(LOGISTIC, COLUMNS, folds, reading, 2, 7).summary


def test_without_candidates_nothing_is_read():
    def refuse(cutoffs: tuple[dt.date, ...]) -> Rows:
        raise AssertionError(cutoffs)

    assert tune(LOGISTIC, COLUMNS, SEPTEMBER.folds, refuse, 0, 7) == tuning.Tuning()


def test_results_do_not_depend_on_threads():
    results = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            results.append(tune(XGBOOST, COLUMNS, SEPTEMBER.folds[-2:], read, 3, 7))
    assert results[0] == results[1]
    assert results[0].candidates


@EVERY_ESTIMATOR
def test_the_space_lies_around_the_defaults(estimator: Estimator):
    defaults = estimator.build(7, 30, 1000).get_params()
    for name, values in estimator.space.items():
        assert defaults[name] in values, name
    # Both ends can be fitted.
    for end in (0, -1):
        parameters = {name: values[end] for name, values in estimator.space.items()}
        fit(replace(estimator, parameters=parameters), COLUMNS, rows(), 7, 5)


# What is shown


def against_the_hold_out(folder: Path) -> OfflineStore:
    """A shop in which from the hold-out on those churn who stayed before."""
    store = made_up_store(folder, customers=200)
    for key in SEPTEMBER.needed:
        scan = store.scan(TABLES[TRAINING_DATASET], [key])
        turned = "1 - churned" if key >= SEPTEMBER.holdout.isoformat() else "churned"
        # Without a first purchase the baseline BG/NBD has nothing to fit, which takes long.
        changed = f"SELECT * REPLACE ({turned} AS churned, NULL AS tenure_days) FROM {scan.sql}"
        with store.connect() as connection:
            store.publish(connection, TABLES[TRAINING_DATASET], Query(changed), [key], lambda _: {})
    return store


def test_the_choice_is_shown_and_owes_nothing_to_the_hold_out(tmp_path: Path):
    store = against_the_hold_out(tmp_path)
    tracking, model_store = model_runs(store.home), ModelStore(store.home)
    kinds = (replace(LOGISTIC, build=hopeless, space={"C": (0.003,)}), INSTALLED[-1])
    names = [kind.name for kind in kinds]
    known, own = cataloged(
        store,
        CALENDAR,
        lambda known: [
            *models.assets(GROUPS, CALENDAR, known, tracking, Economics(), 7, kinds, candidates=1),
            *champion.assets(GROUPS, CALENDAR, known, tracking, names),
        ],
    )
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
        *own,
        dg.AssetSpec(TRAINING_DATASET, partitions_def=CALENDAR.labeled_cutoffs),
    ]
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        result = dg.materialize(
            assets,
            partition_key="2025-09-01",
            instance=instance,
            resources={"io_manager": OfflineIOManager(known)},
        )
        records = instance.get_records_for_run(result.run_id).records
    [event] = result.asset_materializations_for_node(names[0])
    shown: dict[str, Any] = {key: value.value for key, value in event.metadata.items()}
    assert shown["hyperparameters"] == "C=0.003"
    assert "| C=0.003 |" in str(shown["tuning/candidates"])
    assert shown["roc_auc"] < 0.4
    logged = [record.event_log_entry.user_message for record in records]
    assert f"{names[0]} 2025-09-01: {shown['tuning']}" in logged

    assert model_store.manifest(names[0], "2025-09-01").tuned == {"C": 0.003}
    [run] = tracking.client.search_runs(
        [tracking.experiment_id], f"tags.`churn.asset` = '{names[0]}'"
    )
    assert (run.data.params["C"], run.data.params["tuned"]) == ("0.003", "C=0.003")
    decided = champion.find_champion(model_store, SEPTEMBER.cutoff)
    assert decided
    assert set(decided.candidates) == set(names)
