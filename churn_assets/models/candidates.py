"""Models: several kinds per cutoff, each trained on the cutoffs whose labels were mature by then.

Grain: one model per kind and scored cutoff `C`. The hold-out `H` is the newest mature cutoff. A
model is fitted on the cutoffs that were mature at `H` (the embargo: their labels end before the
features of `H` begin to be judged), graded on `H`, and then refitted on the cutoffs that are mature
at `C`, `H` included; the refit is what is used. The grade is therefore that of an earlier fit, and
for boosting slightly flattering, because the number of rounds was chosen on `H` too. The graded fit
is kept beside the refit: as an incumbent the model is graded on a later hold-out, whose outcomes
the refit may have seen.

Models read the training dataset and no feature, label or prediction of `C` or later. Files are in
`models.artefacts`, runs in `models.runs`.
"""

import datetime as dt
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.features import Groups, feature_versions, learned_columns
from churn_assets.models import estimators, grades, tuning
from churn_assets.models import kinds as kinds_of_model
from churn_assets.models.artefacts import Manifest, ModelStore, versioned
from churn_assets.models.estimators import Estimator, FittedModel, Rows, Trial, fit, trial
from churn_assets.models.evaluation import Evaluation, evaluate
from churn_assets.models.grades import grade
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.metrics import Economics
from churn_assets.models.model_page import model_metadata, parameters
from churn_assets.models.runs import ModelRuns
from churn_assets.models.training_plan import TrainingPlan, mature_at, training_plan
from churn_assets.models.training_rows import (
    MOST_TRAINING_ROWS,
    TARGET,
    drawn,
    rows_digest,
    training_rows,
    typical_values,
)
from churn_assets.models.tuning import Tuning, tune
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.provenance import code_digest, provenances
from churn_assets.stores.retries import connections_are_retried
from churn_assets.stores.tables import Column, sql_version
from churn_assets.training_data.dataset import TRAINING_DATASET

MODELS = tuple(estimator.name for estimator in ESTIMATORS)


@dataclass(frozen=True)
class Trained:
    """A model and what it was made with.

    Args:
        manifest: What it is.
        model: The fit that is used.
        tried: The earlier fit, which was graded.
    """

    manifest: Manifest
    model: FittedModel
    tried: Trial


def train(
    estimator: Estimator,
    columns: Sequence[Column],
    versions: Mapping[str, str],
    plan: TrainingPlan,
    read: Callable[[tuple[dt.date, ...]], Rows],
    seed: int,
) -> Trained:
    """Fit, grade on the hold-out and refit one kind of model.

    Args:
        estimator: The kind.
        columns: The features.
        versions: The version of each feature's definition.
        plan: The cutoffs.
        read: Gives the training rows of cutoffs.
        seed: Of everything drawn at random.

    Raises:
        ValueError: There is nobody to learn from.
    """
    training, holdout = read(plan.fit), read((plan.holdout,))
    tried = trial(estimator, columns, training, holdout, seed)
    rows = read(plan.refit)
    if not len(rows):
        raise ValueError(
            f"{estimator.name} of {plan.cutoff} has nobody to learn from: nobody was active in the "
            f"lookback before any cutoff from {plan.refit[0]} to {plan.refit[-1]}. If data begins "
            "later, set CHURN_START to its first day; `churn inspect` shows it."
        )
    model = fit(estimator, columns, rows, seed, tried.rounds)
    said = (model.probabilities(holdout.features), tried.probabilities)
    manifest = Manifest(
        model=estimator.name,
        cutoff=plan.cutoff.isoformat(),
        columns=tuple(columns),
        feature_versions={column.name: versions[column.name] for column in columns},
        training_cutoffs=tuple(day.isoformat() for day in plan.refit),
        graded_cutoffs=tuple(day.isoformat() for day in plan.fit),
        horizon_days=plan.horizon_days,
        holdout=plan.holdout.isoformat(),
        metrics=grade(holdout.churned, tried.probabilities),
        rounds=tried.rounds,
        tuned=estimator.parameters,
        rows=len(rows),
        rows_digest=rows_digest(rows),
        typical=typical_values(rows.features, columns),
        seed=seed,
        # The grade is the base rate's where the first fit fell back.
        fallback=model.fallback or tried.model.fallback,
        # By what they say: the bytes of a fitted object differ with the process that made it.
        state=hashlib.sha256(b"".join(p.tobytes() for p in said)).hexdigest(),
    )
    return Trained(manifest, model, tried)


def train_all(
    estimator: Estimator,
    columns: Sequence[Column],
    versions: Mapping[str, str],
    plans: Sequence[TrainingPlan],
    store: OfflineStore,
    economics: Economics,
    seed: int,
    candidates: int = 0,
) -> Iterator[tuple[Trained, Evaluation, Tuning]]:
    """Tune, train and evaluate one kind of model for several cutoffs, in order and on all cores.

    A fit uses one thread, so that its sums do not depend on their number; cutoffs are independent
    of each other, so they share the cores instead.
    """
    from joblib import Parallel, cpu_count, delayed

    # Here, because other processes cannot be sent the catalog, which says what is of other
    # definitions.
    for plan in plans:
        store.scan(store.tables[TRAINING_DATASET], plan.needed)
    sent = replace(store, catalog=None)

    def train_cutoff(plan: TrainingPlan) -> tuple[Trained, Evaluation, Tuning]:
        @cache
        def read(cutoffs: tuple[dt.date, ...]) -> Rows:
            return training_rows(sent, cutoffs)

        tuned = tune(estimator, columns, plan.folds, partial(training_rows, sent), candidates, seed)
        chosen = replace(estimator, parameters=tuned.parameters)
        trained = train(chosen, columns, versions, plan, read, seed)
        evaluation = evaluate(
            chosen,
            trained.model,
            read(plan.fit),
            read((plan.holdout,)),
            trained.tried,
            economics,
            plan.horizon_days,
            seed,
            subject=f"{estimator.name} of {plan.cutoff}, hold-out {plan.holdout}",
        )
        return trained, evaluation, tuned

    workers = Parallel(n_jobs=min(len(plans), cpu_count()), return_as="generator")
    trained: Iterator[tuple[Trained, Evaluation, Tuning]] = workers(
        delayed(train_cutoff)(plan) for plan in plans
    )
    return trained


# What decides which model a cutoff gets: which rows, how split, fitted and graded, under what name.
# Constants that functions refer to are beside it in the code version.
CODE = (
    *(estimators, kinds_of_model, grades),
    *(TrainingPlan, training_plan, mature_at),
    *(training_rows, drawn, rows_digest, typical_values),
    *(train, versioned),
)


def assets(
    groups: Groups,
    calendar: Calendar,
    store: OfflineStore,
    tracking: ModelRuns,
    economics: Economics,
    seed: int,
    kinds: Sequence[Estimator] = ESTIMATORS,
    candidates: int = 0,
) -> list[dg.AssetsDefinition]:
    """One asset per kind of model; see `tuning.tune` for the candidates.

    Economics decide what is shown of a model, not what it is.
    """
    model_store = ModelStore(store.home)
    columns, versions = learned_columns(groups), feature_versions(groups)
    code_version = sql_version(
        code_digest(*CODE),
        f"{seed} {calendar.training_cutoffs} {MOST_TRAINING_ROWS} {TARGET}",
        *(f"{column.name} {versions[column.name]}" for column in columns),
        *([code_digest(tuning, train_all), str(candidates)] if candidates else []),
    )

    def model_asset(estimator: Estimator) -> dg.AssetsDefinition:
        @dg.asset(
            name=estimator.name,
            description=f"{estimator.description}\n\n{__doc__}",
            deps=[dg.AssetDep(TRAINING_DATASET, partition_mapping=calendar.mature_cutoffs)],
            partitions_def=calendar.scored_cutoffs,
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=code_version,
            group_name="models",
            kinds={estimator.library.replace("-", ""), "mlflow"},
            owners=["team:ml"],
            tags={"layer": "models"},
        )
        def model(context: dg.AssetExecutionContext) -> None:
            plans = [training_plan(calendar, parse_key(key)) for key in context.partition_keys]
            made_from = provenances(store, estimator.name)
            began = time.monotonic()
            trained = train_all(
                estimator,
                columns,
                versions,
                plans,
                store,
                economics,
                seed,
                candidates,
            )
            for key, (made, evaluation, tuned) in zip(context.partition_keys, trained, strict=True):
                manifest = replace(made.manifest, provenance=made_from(key))
                manifest = model_store.write(manifest, made.model, made.tried)
                with connections_are_retried():
                    run_id = tracking.record(
                        manifest,
                        parameters(manifest, made.model, economics.threshold),
                        context.run.run_id,
                        evaluation=evaluation,
                    )
                seconds, began = time.monotonic() - began, time.monotonic()
                metadata = model_metadata(manifest, evaluation, economics, tracking, run_id)
                metadata |= {"seconds": seconds}
                if tuned.summary:
                    context.log.info(f"{estimator.name} {key}: {tuned.summary}")
                    metadata |= {
                        "tuning": tuned.summary,
                        "tuning/candidates": dg.MetadataValue.md(tuning.table(tuned)),
                    }
                context.add_asset_metadata(metadata, partition_key=key)
                auc = manifest.metrics.get("roc_auc")
                context.log.info(
                    f"{estimator.name} {key}: AUC {auc and round(auc, 4)} on {manifest.holdout}, "
                    f"{manifest.rows:,} rows, {seconds:.1f} s"
                )

        return model

    return [model_asset(estimator) for estimator in kinds]
