"""What a feature group adds: hold-out AUC with and without it, on the state of this installation.

Run after `make demo`: `.venv/bin/python -m benchmarks.ablation customer_review_features`. For every
scored cutoff that has training data, XGBoost and the logistic regression are trained with all
features and without the group's, and graded on the same hold-out. The interval of the difference is
over the customers of all hold-outs together (paired bootstrap).
"""

import argparse
import datetime as dt
from functools import cache

import numpy as np

from churn_assets.cutoffs import parse_key, utc_now
from churn_assets.features import feature_columns, feature_groups, feature_versions
from churn_assets.models.bootstrap import paired_interval
from churn_assets.models.candidates import train
from churn_assets.models.estimators import Rows
from churn_assets.models.grades import grade
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.training_plan import TrainingPlan, training_plan
from churn_assets.models.training_rows import training_rows
from churn_assets.operations.installation import offline_store
from churn_assets.settings import Settings
from churn_assets.training_data.dataset import TRAINING_DATASET

KINDS = ("logistic_regression_model", "xgboost_model")


GROUPS = feature_groups()


def plans(settings: Settings, present: set[str]) -> list[TrainingPlan]:
    """The training plans of the scored cutoffs whose training data is there."""
    calendar = settings.calendar()
    keys = calendar.keys(calendar.scored_cutoffs, utc_now())
    found = [training_plan(calendar, parse_key(key)) for key in keys]
    return [plan for plan in found if set(plan.needed) <= present]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=[group.name for group in GROUPS])
    without = parser.parse_args().group
    settings = Settings.read()
    store = offline_store(settings)
    all_columns = feature_columns(GROUPS)
    left_out = {f.name for group in GROUPS if group.name == without for f in group.features}
    fewer = [column for column in all_columns if column.name not in left_out]

    @cache
    def read(cutoffs: tuple[dt.date, ...]) -> Rows:
        return training_rows(store, cutoffs)

    chosen = plans(settings, set(store.keys(store.tables[TRAINING_DATASET])))
    for estimator in (e for e in ESTIMATORS if e.name in KINDS):
        labels: list[np.ndarray] = []
        said: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for plan in chosen:
            read.cache_clear()
            for complete, columns in ((True, all_columns), (False, fewer)):
                trained = train(
                    estimator,
                    columns,
                    feature_versions(GROUPS),
                    plan,
                    read,
                    settings.seed,
                )
                said[complete].append(trained.tried.probabilities)
            labels.append(read((plan.holdout,)).churned)
        aucs = {
            complete: np.mean(
                [grade(y, p)["roc_auc"] for y, p in zip(labels, said[complete], strict=True)]
            )
            for complete in said
        }
        pooled = np.concatenate(labels)
        low, high = paired_interval(
            pooled, np.concatenate(said[True]), np.concatenate(said[False]), settings.seed
        ) or (np.nan, np.nan)
        print(
            f"{estimator.name}: mean AUC of {len(chosen)} hold-outs {aucs[True]:.4f}, without "
            f"{without} {aucs[False]:.4f}; difference over all {len(pooled):,} customers "
            f"{low:+.4f} to {high:+.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
