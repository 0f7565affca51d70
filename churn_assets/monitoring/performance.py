"""Realised performance: what became of the predictions, cutoff by cutoff.

Grain: one row per scored cutoff whose own labels are mature. Nothing is estimated here: the
predictions were made by a model that had seen no label of the cutoff, and are held against what
customers did. All cutoffs together are a walk-forward backtest (`monitoring.backtest_report`).

Beside the model stand the recency rule (longest since the last purchase first), which it has to
beat, and on the synthetic shop the true churn probabilities, which nothing can be expected to beat.

Labels say what was known when they matured. `outcomes_changed` counts what late rows have made of
them since: where it grows, the horizon or the deliveries are worth a look.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.features.queries import ANY_CUTOFF
from churn_assets.history.rollups import DAILY_ORDERS
from churn_assets.models import bootstrap, grades, metrics
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.baselines import NEVER, since_purchase
from churn_assets.models.champion import CHAMPION_MODEL, Champion, find_champion
from churn_assets.models.grades import grade
from churn_assets.models.metrics import Economics, assess, intervals
from churn_assets.monitoring.ground_truth import SYNTHETIC_TRUTH
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import code_digest
from churn_assets.stores.tables import CUTOFF, Column, Table, sql_version
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets.training_data.labels import CHURN_LABELS, in_horizon

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "roc_auc": "ROC-AUC of the predictions",
    "pr_auc": "Average precision",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "lift_at_10_percent": "Share of churners among the riskiest tenth, over the base rate",
    "calibration_error": "Mean distance of predicted from observed churn",
    "profit_per_customer": "Profit of contacting those at risk",
}
REALISED_PERFORMANCE = Table(
    "realised_performance",
    key=("model_version",),
    columns=(
        CUTOFF,
        Column("model", "VARCHAR", "The kind of model that predicted"),
        Column("model_cutoff", "DATE", "The cutoff that it was trained for"),
        Column("model_version", "VARCHAR", "Digest of the model"),
        Column("customers", "BIGINT", "Customers who were predicted", "customers"),
        Column("churn_rate", "DOUBLE", "Share of them who churned", "share"),
        *(
            Column(name, "DOUBLE", f"{description}; NULL where it is undefined")
            for name, description in METRICS.items()
        ),
        Column("roc_auc_low", "DOUBLE", "Lower end of the 95 % interval of roc_auc"),
        Column("roc_auc_high", "DOUBLE", "Upper end of it"),
        Column("estimated_roc_auc", "DOUBLE", "What the hold-out had promised"),
        Column("recency_roc_auc", "DOUBLE", "ROC-AUC of the recency rule"),
        Column("best_roc_auc", "DOUBLE", "ROC-AUC of the true probabilities, where known"),
        Column("best_log_loss", "DOUBLE", "Log loss of the true probabilities, where known"),
        Column(
            "outcomes_changed",
            "BIGINT",
            "Customers whose label would be another by what became known since",
            "customers",
        ),
        Column("gap_closed", "DOUBLE", "Way from the recency rule to the best, by ROC-AUC"),
    ),
)


def realised(
    champion: Champion,
    customers: "pd.DataFrame",
    economics: Economics,
    seed: int,
    changed: int,
) -> dict[str, Any]:
    """One row of `REALISED_PERFORMANCE`.

    Args:
        champion: The decision of the cutoff.
        customers: Of the population: churned, churn_probability, the features of the recency rule
            and, where it is known, best_churn_probability.
        economics: Gives the threshold and the profit.
        seed: Of the bootstrap.
        changed: How many of the customers have another outcome by now.
    """
    churned = customers["churned"].to_numpy()
    said = customers["churn_probability"].to_numpy()
    found = assess(churned, said, economics)
    interval = intervals(churned, said, economics, seed).get("roc_auc")
    recency = since_purchase(customers).fillna(NEVER).to_numpy() / NEVER
    rule = grade(churned, recency).get("roc_auc")
    best: Mapping[str, float] = {}
    if "best_churn_probability" in customers:
        best = grade(churned, customers["best_churn_probability"].to_numpy())
    return {
        "cutoff": champion.cutoff,
        "model": champion.model,
        "model_cutoff": champion.model_cutoff,
        "model_version": champion.model_version,
        "customers": len(customers),
        "churn_rate": float(churned.mean()) if len(churned) else None,
        **{name: found.get(name) for name in METRICS},
        "roc_auc_low": interval.low if interval else None,
        "roc_auc_high": interval.high if interval else None,
        "estimated_roc_auc": champion.metrics.get("roc_auc"),
        "recency_roc_auc": rule,
        "best_roc_auc": best.get("roc_auc"),
        "best_log_loss": best.get("log_loss"),
        "outcomes_changed": changed,
        "gap_closed": gap_closed(found.get("roc_auc"), rule, best.get("roc_auc")),
    }


def gap_closed(roc_auc: float | None, rule: float | None, best: float | None) -> float | None:
    """How much of the way from the recency rule to the best possible a model has come."""
    if roc_auc is None or rule is None or best is None or best <= rule:
        return None
    return (roc_auc - rule) / (best - rule)


def predicted_customers(store: OfflineStore, cutoff: str) -> "pd.DataFrame":
    """Predictions of a cutoff beside the labels, the recency features and the truth, if known."""
    truth = store.path(SYNTHETIC_TRUTH, cutoff).exists()
    predictions, dataset, labels = (
        store.scan(store.tables[name], [cutoff]).sql
        for name in (CHURN_PREDICTIONS.name, TRAINING_DATASET, CHURN_LABELS.name)
    )
    best = store.scan(SYNTHETIC_TRUTH, [cutoff]).sql if truth else ""
    with store.connect() as connection:
        return connection.execute(
            f"""SELECT labels.churned, churn_probability, recency_days, overdue_days,
                gap_mean_days, tenure_days {", best_churn_probability" if truth else ""}
            FROM {predictions} AS predictions
            JOIN {labels} AS labels USING (customer_id)
            JOIN {dataset} AS features USING (customer_id)
            {f"JOIN {best} AS truth USING (customer_id)" if truth else ""}
            ORDER BY customer_id"""
        ).df()


def outcomes_changed(store: OfflineStore, calendar: Calendar, cutoff: str) -> int:
    """Customers who purchased within the horizon by what is known now, against their label."""
    labels = store.scan(CHURN_LABELS, [cutoff]).sql
    day = parse_key(cutoff)
    orders = store.scan(DAILY_ORDERS).after(day, calendar.horizon_days).sql
    with store.connect() as connection:
        rows = connection.execute(
            f"""SELECT count(*) FROM {labels} AS labels LEFT JOIN (
                SELECT customer_id, sum(purchase_orders) AS orders FROM {orders} AS orders
                WHERE {in_horizon(day, None, calendar.horizon_days)} GROUP BY customer_id
            ) AS known USING (customer_id)
            WHERE (coalesce(orders, 0) > 0) <> (purchased = 1)"""
        ).fetchall()
    return int(rows[0][0])


# What decides a row, besides the economics and constants in the code version.
CODE = (
    *(realised, gap_closed, predicted_customers, outcomes_changed),
    *(since_purchase, grades, metrics, bootstrap),
)


def assets(
    calendar: Calendar, store: OfflineStore, economics: Economics, seed: int, has_truth: bool
) -> list[dg.AssetsDefinition]:
    """The realised performance of each cutoff.

    Args:
        calendar: The partitions.
        store: Where tables are.
        economics: Gives the threshold and the profit.
        seed: Of the bootstrap.
        has_truth: Whether the source knows the true churn probabilities.
    """
    model_store = ModelStore(store.home)
    inputs = [CHURN_PREDICTIONS.name, CHAMPION_MODEL.name, CHURN_LABELS.name, TRAINING_DATASET]
    inputs += [SYNTHETIC_TRUTH.name] if has_truth else []

    # Not the asset's own name, which is also that of the job: a code location refuses two of them.
    @dg.multi_asset(
        name="judge_predictions",
        outs={
            REALISED_PERFORMANCE.name: dg.AssetOut(
                description=__doc__,
                code_version=sql_version(
                    code_digest(*CODE),
                    f"{economics} {seed} {has_truth} {NEVER} {' '.join(METRICS)}",
                    in_horizon(ANY_CUTOFF, None, calendar.horizon_days),
                ),
                kinds={"duckdb", "parquet"},
                metadata={"dagster/column_schema": REALISED_PERFORMANCE.as_dagster()},
                group_name="performance",
                owners=["team:ml"],
                tags={"layer": "monitoring"},
                dagster_type=dg.Any,
            )
        },
        deps=[
            *(dg.AssetDep(name, partition_mapping=calendar.same_cutoff) for name in inputs),
            dg.AssetDep(DAILY_ORDERS.name, partition_mapping=calendar.horizon_slices),
        ],
        partitions_def=calendar.realised_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def realised_performance(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        import pyarrow as pa

        rows = []
        for key in context.partition_keys:
            champion = find_champion(model_store, parse_key(key))
            if champion is None:
                raise FileNotFoundError(
                    f"There is no champion_model for cutoff {key}. Materialize it and "
                    "churn_predictions first, for example with `churn backfill --stage models`."
                )
            changed = outcomes_changed(store, calendar, key)
            customers = predicted_customers(store, key)
            row = realised(champion, customers, economics, seed, changed)
            rows.append(row)
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            shown = {"model": row["model"], "outcomes_changed": changed}
            context.add_asset_metadata(numbers | shown, partition_key=key)
        with store.connect() as connection:
            connection.register("realised", pa.Table.from_pylist(rows))
            query = Query("SELECT * FROM realised", connection)
            yield dg.Output(query, output_name=REALISED_PERFORMANCE.name)

    return [realised_performance]
