"""Models: several kinds per cutoff, each trained on the cutoffs whose labels were mature by then.

Grain: one model per kind and scored cutoff `C`. The hold-out `H` is the newest mature cutoff. A
model is fitted on the cutoffs that were mature at `H` (the embargo: their labels end before the
features of `H` begin to be judged), graded on `H`, and then refitted on the cutoffs that are mature
at `C`, `H` included; the refit is what is kept. The grade is therefore that of an earlier fit, and
for boosting slightly flattering, because the number of rounds was chosen on `H` too.

Models read the training dataset and no feature, label or prediction of `C` or later. Files are in
`churn_assets.stores.models`, runs in `churn_assets.tracking`.
"""

import datetime as dt
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets import estimators, tuning
from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.estimators import ESTIMATORS, Estimator, FittedModel, Rows, Trial, fit, trial
from churn_assets.evaluation import Evaluation, evaluate
from churn_assets.features import GROUPS, feature_columns
from churn_assets.metrics import Economics, grade
from churn_assets.reasons import typical_values
from churn_assets.stores.models import Manifest, ModelStore
from churn_assets.stores.offline import OfflineStore, Scan, provenances
from churn_assets.tables import Column, markdown, sql_version
from churn_assets.tracking import Tracking
from churn_assets.training import TRAINING_DATASET
from churn_assets.tuning import Fold, Tuning, describe, tune

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MODELS = tuple(estimator.name for estimator in ESTIMATORS)
TARGET = "churned"
EXAMPLE = 5  # rows that are logged as an example of the input

# More rows are drawn down to so many, in proportion to which time and memory grow. On the synthetic
# shop with 100,000 customers, 75,000 instead of 100,000 rows cost .0008 AUC (XGBoost .8280, .8288).
MOST_TRAINING_ROWS = 75_000


@dataclass(frozen=True)
class TrainingPlan:
    """Which cutoffs a model learns from.

    Args:
        cutoff: The scored cutoff.
        fit: The cutoffs of the fit that is graded.
        holdout: The cutoff it is graded on.
        refit: The cutoffs of the fit that is kept, the hold-out included.
        folds: For tuning: each of `fit`, with those of them that were mature there.
    """

    cutoff: dt.date
    fit: tuple[dt.date, ...]
    holdout: dt.date
    refit: tuple[dt.date, ...]
    folds: tuple[Fold, ...] = ()

    @property
    def needed(self) -> list[str]:
        """The partitions of the training dataset that it reads."""
        return [day.isoformat() for day in sorted({*self.fit, *self.refit})]


def mature_at(calendar: Calendar, cutoff: dt.date) -> tuple[dt.date, ...]:
    """The newest `training_cutoffs` whose labels are mature at `cutoff`, oldest first."""
    last = calendar.shift(cutoff, -calendar.lag)
    first = calendar.shift(last, 1 - calendar.training_cutoffs)
    return tuple(calendar.between(max(first, calendar.first_cutoff), last))


def training_plan(calendar: Calendar, cutoff: dt.date) -> TrainingPlan:
    """The cutoffs for fitting, grading and refitting a model at `cutoff`.

    Raises:
        ValueError: There is no mature hold-out, or no cutoff that was mature at the hold-out.
    """
    refit = mature_at(calendar, cutoff)
    fitted = mature_at(calendar, refit[-1]) if refit else ()
    if not fitted:
        lacking = "training cutoff before the hold-out" if refit else "mature hold-out"
        raise ValueError(
            f"No model can be trained for {cutoff}: there is no {lacking}. Labels mature after "
            f"{calendar.lag} periods and the first cutoff is {calendar.first_cutoff}, so the first "
            f"cutoff with a model is {calendar.first_scored}. Ask for that one or a later one, or "
            "set CHURN_START earlier."
        )
    known = {day: [c for c in mature_at(calendar, day) if c in fitted] for day in fitted}
    folds = tuple(Fold(tuple(before), day) for day, before in known.items() if before)
    return TrainingPlan(cutoff, fitted, refit[-1], refit, folds)


def require_mature(calendar: Calendar, manifest: Manifest, cutoff: dt.date) -> None:
    """Refuse to use a model at a cutoff at which some of its training labels were not known.

    Raises:
        ValueError: Its newest training cutoff was not mature at `cutoff`.
    """
    newest = calendar.shift(cutoff, -calendar.lag)
    if manifest.newest_training_cutoff > newest:
        raise ValueError(
            f"{manifest.model} of {manifest.cutoff} cannot be used at {cutoff}: it has learned "
            f"from the labels of {manifest.newest_training_cutoff}, and at {cutoff} only those up "
            f"to {newest} were mature. Use a model of {cutoff} or earlier."
        )


@dataclass(frozen=True)
class Trained:
    """A model and what it was made with.

    Args:
        manifest: What it is.
        model: The model that is kept.
        holdout: P(churn) of the hold-out's customers by that fit.
        example: A few of the rows it was trained on.
    """

    manifest: Manifest
    model: FittedModel
    holdout: "np.ndarray"
    example: "pd.DataFrame"


def feature_versions() -> dict[str, str]:
    """The version of every feature as it is defined now."""
    return {f.name: group.version(f) for group in GROUPS for f in group.features}


def train(
    estimator: Estimator,
    columns: Sequence[Column],
    plan: TrainingPlan,
    read: Callable[[tuple[dt.date, ...]], Rows],
    economics: Economics,
    seed: int,
) -> Trained:
    """Fit, grade on the hold-out and refit one kind of model.

    Args:
        estimator: The kind.
        columns: The features.
        plan: The cutoffs.
        read: Gives the training rows of cutoffs.
        economics: Decides the threshold.
        seed: Of everything drawn at random.
    """
    training, holdout = read(plan.fit), read((plan.holdout,))
    tried = trial(estimator, columns, training, holdout, seed)
    rows = read(plan.refit)
    model = fit(estimator, columns, rows, seed, tried.rounds)
    said = model.probabilities(holdout.features)
    versions = feature_versions()
    manifest = Manifest(
        model=estimator.name,
        cutoff=plan.cutoff.isoformat(),
        columns=tuple(columns),
        feature_versions={column.name: versions[column.name] for column in columns},
        training_cutoffs=tuple(day.isoformat() for day in plan.refit),
        holdout=plan.holdout.isoformat(),
        metrics=grade(holdout.churned, tried.probabilities, economics),
        threshold=economics.threshold,
        rounds=tried.rounds,
        tuned=estimator.parameters,
        rows=len(rows),
        rows_digest=rows_digest(rows),
        typical=typical_values(rows.features, columns),
        seed=seed,
        # The grade is the base rate's where the first fit fell back.
        fallback=model.fallback or tried.fallback,
        # By what it says: the bytes of a fitted object differ with the process that made it.
        state=hashlib.sha256(said.tobytes()).hexdigest(),
    )
    return Trained(manifest, model, tried.probabilities, rows.features.head(EXAMPLE))


def rows_digest(rows: Rows) -> str:
    """SHA-256 of features and labels, row by row."""
    import pandas as pd

    hashes = pd.util.hash_pandas_object(rows.features, index=False).to_numpy()
    digest = hashlib.sha256(hashes.tobytes())
    digest.update(rows.churned.tobytes())
    return digest.hexdigest()


def train_all(
    estimator: Estimator,
    columns: Sequence[Column],
    plans: Sequence[TrainingPlan],
    store: OfflineStore,
    economics: Economics,
    horizon_days: int,
    seed: int,
    candidates: int = 0,
) -> Iterator[tuple[Trained, Evaluation, Tuning]]:
    """Tune, train and evaluate one kind of model for several cutoffs, in order and on all cores.

    A fit uses one thread, so that its sums do not depend on their number; cutoffs are independent
    of each other, so they share the cores instead.
    """
    from joblib import Parallel, cpu_count, delayed

    def train_cutoff(plan: TrainingPlan) -> tuple[Trained, Evaluation, Tuning]:
        @cache
        def read(cutoffs: tuple[dt.date, ...]) -> Rows:
            return training_rows(store, cutoffs)

        tuned = tune(
            estimator, columns, plan.folds, partial(training_rows, store), candidates, seed
        )
        chosen = replace(estimator, parameters=tuned.parameters)
        trained = train(chosen, columns, plan, read, economics, seed)
        evaluation = evaluate(
            chosen,
            trained.model,
            read(plan.fit),
            read((plan.holdout,)),
            Trial(trained.holdout, trained.manifest.rounds),
            economics,
            horizon_days,
            seed,
            subject=f"{estimator.name} of {plan.cutoff}, hold-out {plan.holdout}",
        )
        return trained, evaluation, tuned

    workers = Parallel(n_jobs=min(len(plans), cpu_count()), return_as="generator")
    trained: Iterator[tuple[Trained, Evaluation, Tuning]] = workers(
        delayed(train_cutoff)(plan) for plan in plans
    )
    return trained


def drawn(scan: Scan) -> str:
    """The rows that a model learns from, as a relation: all, or those of customers drawn at random.

    By a digest of the customer: the same customers in every run and at every cutoff.
    """
    if scan.rows <= MOST_TRAINING_ROWS:
        return scan.sql
    bound = 2**32 * MOST_TRAINING_ROWS // scan.rows
    return f"(FROM {scan.sql} WHERE CAST('0x' || md5(customer_id)[:8] AS BIGINT) < {bound})"


def training_rows(store: OfflineStore, cutoffs: Sequence[dt.date]) -> Rows:
    """Features and labels of cutoffs, in the order of cutoff and customer: fits depend on it.

    Raises:
        FileNotFoundError: A partition of the training dataset is not there.
    """
    rows = drawn(store.scan(TRAINING_DATASET, [day.isoformat() for day in cutoffs]))
    names = ", ".join([column.name for column in feature_columns()])
    with store.connect() as connection:
        frame = connection.execute(
            f"SELECT {names}, {TARGET} FROM {rows} ORDER BY cutoff, customer_id"
        ).df()
    return Rows(frame.drop(columns=TARGET), frame[TARGET].to_numpy())


def assets(
    calendar: Calendar,
    store: OfflineStore,
    tracking: Tracking,
    economics: Economics,
    seed: int,
    kinds: Sequence[Estimator] = ESTIMATORS,
    candidates: int = 0,
) -> list[dg.AssetsDefinition]:
    """One asset per kind of model; see `tuning.tune` for the candidates."""
    model_store = ModelStore(store.home)
    columns = feature_columns()

    def model_asset(estimator: Estimator) -> dg.AssetsDefinition:
        @dg.asset(
            name=estimator.name,
            description=f"{estimator.description}\n\n{__doc__}",
            deps=[dg.AssetDep(TRAINING_DATASET.name, partition_mapping=calendar.mature_cutoffs)],
            partitions_def=calendar.scored_cutoffs,
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=sql_version(
                inspect.getsource(estimators),
                f"{economics} {seed} {calendar.training_cutoffs} {MOST_TRAINING_ROWS}",
                *(f"{name} {version}" for name, version in feature_versions().items()),
                *([inspect.getsource(tuning), str(candidates)] if candidates else []),
            ),
            group_name="models",
            kinds={estimator.library.replace("-", ""), "mlflow"},
            owners=["team:ml"],
            tags={"layer": "models"},
        )
        def model(context: dg.AssetExecutionContext) -> None:
            plans = [training_plan(calendar, parse_key(key)) for key in context.partition_keys]
            made_from = provenances(store, calendar, context)
            began = time.monotonic()
            trained = train_all(
                estimator, columns, plans, store, economics, calendar.horizon_days, seed, candidates
            )
            for key, (made, evaluation, tuned) in zip(context.partition_keys, trained, strict=True):
                manifest = replace(made.manifest, provenance=made_from(key))
                manifest = model_store.write(manifest, made.model, made.holdout)
                run_id = tracking.record(
                    manifest,
                    parameters(manifest, made.model),
                    context.run.run_id,
                    evaluation=evaluation,
                    example=made.example,
                )
                seconds, began = time.monotonic() - began, time.monotonic()
                metadata = model_metadata(manifest, evaluation, tracking, run_id)
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


def parameters(manifest: Manifest, model: FittedModel) -> dict[str, object]:
    """What MLflow shows as parameters: how the model was fitted."""
    classifier = model.pipeline if model.is_base_rate else model.pipeline["classifier"]
    chosen = {k: v for k, v in classifier.get_params().items() if v is not None}
    return chosen | {
        "rounds": manifest.rounds,
        "rows": manifest.rows,
        "seed": manifest.seed,
        "threshold": manifest.threshold,
        "tuned": describe(manifest.tuned),
    }


def model_metadata(
    manifest: Manifest, evaluation: Evaluation, tracking: Tracking, run_id: str
) -> dict[str, Any]:
    """What Dagster shows of a model; floats are plotted over cutoffs."""
    from churn_assets.plots import markdown_image

    pictures = {
        f"plot/{name}": dg.MetadataValue.md(markdown_image(image, name))
        for name, image in evaluation.plots.items()
    }
    return {
        **manifest.metrics,
        "grades": dg.MetadataValue.md(grades_table(evaluation)),
        "report": dg.MetadataValue.md(f"```\n{evaluation.report}\n```"),
        **pictures,
        "threshold": manifest.threshold,
        "training_rows": manifest.rows,
        "rounds": manifest.rounds,
        "hyperparameters": describe(manifest.tuned),
        "training_cutoffs": ", ".join(manifest.training_cutoffs),
        "holdout": manifest.holdout,
        "model_version": manifest.version,
        "fallback": manifest.fallback or "no",
        "mlflow_run": dg.MetadataValue.url(tracking.run_url(run_id)),
    }


def grades_table(evaluation: Evaluation) -> str:
    """Metrics on the hold-out with their intervals, beside the baselines and a random split."""
    others = {**evaluation.baselines, "random split": evaluation.random_split}
    rows = []
    for name, value in evaluation.metrics.items():
        low, high = evaluation.intervals[name]
        cells = [f"{other[name]:.4f}" if name in other else "" for other in others.values()]
        rows.append([name, f"{value:.4f}", f"{low:.4f} to {high:.4f}", *cells])
    return markdown(["metric", "hold-out", "95 % interval", *others], rows)
