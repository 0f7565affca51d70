"""Realised performance: what became of the predictions, cutoff by cutoff.

Grain: one row per scored cutoff whose own labels are mature. Nothing is estimated here: the
predictions were made by a model that had seen no label of the cutoff, and are held against what
customers did. All cutoffs together are a walk-forward backtest, which `walk_forward_report` writes
as one page to send.

Beside the model stand the recency rule (longest since the last purchase first), which it has to
beat, and on the synthetic shop the true churn probabilities, which nothing can be expected to beat.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.champion import CHAMPION_MODEL, Champion, find_champion
from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.labels import CHURN_LABELS
from churn_assets.metrics import Economics, Interval, grade, intervals
from churn_assets.predictions import CHURN_PREDICTIONS
from churn_assets.stores.models import ModelStore
from churn_assets.stores.offline import OfflineStore, Query
from churn_assets.tables import CUTOFF, Column, Table, markdown
from churn_assets.training import TRAINING_DATASET
from churn_assets.truth import SYNTHETIC_TRUTH

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
        Column("gap_closed", "DOUBLE", "Way from the recency rule to the best, by ROC-AUC"),
    ),
)


def realised(
    champion: Champion, customers: "pd.DataFrame", economics: Economics, seed: int
) -> dict[str, Any]:
    """One row of `REALISED_PERFORMANCE`.

    Args:
        champion: The decision of the cutoff.
        customers: Of the population: churned, churn_probability, the features of the recency rule
            and, where it is known, best_churn_probability.
        economics: Gives the threshold and the profit.
        seed: Of the bootstrap.
    """
    from churn_assets.baselines import NEVER, since_purchase

    churned = customers["churned"].to_numpy()
    said = customers["churn_probability"].to_numpy()
    metrics = grade(churned, said, economics)
    interval = intervals(churned, said, economics, seed).get("roc_auc")
    recency = since_purchase(customers).fillna(NEVER).to_numpy() / NEVER
    rule = grade(churned, recency, economics).get("roc_auc")
    best: Mapping[str, float] = {}
    if "best_churn_probability" in customers:
        best = grade(churned, customers["best_churn_probability"].to_numpy(), economics)
    return {
        "cutoff": champion.cutoff,
        "model": champion.model,
        "model_cutoff": champion.model_cutoff,
        "model_version": champion.model_version,
        "customers": len(customers),
        "churn_rate": float(churned.mean()) if len(churned) else None,
        **{name: metrics.get(name) for name in METRICS},
        "roc_auc_low": interval.low if interval else None,
        "roc_auc_high": interval.high if interval else None,
        "estimated_roc_auc": champion.metrics.get("roc_auc"),
        "recency_roc_auc": rule,
        "best_roc_auc": best.get("roc_auc"),
        "best_log_loss": best.get("log_loss"),
        "gap_closed": gap_closed(metrics.get("roc_auc"), rule, best.get("roc_auc")),
    }


def gap_closed(roc_auc: float | None, rule: float | None, best: float | None) -> float | None:
    """How much of the way from the recency rule to the best possible a model has come."""
    if roc_auc is None or rule is None or best is None or best <= rule:
        return None
    return (roc_auc - rule) / (best - rule)


def predicted_customers(store: OfflineStore, cutoff: str) -> "pd.DataFrame":
    """Predictions of a cutoff beside the labels, the recency features and the truth, if known."""
    truth = store.path(SYNTHETIC_TRUTH, cutoff).exists()
    relations = {
        table: store.scan(table, [cutoff]).sql
        for table in (CHURN_PREDICTIONS, TRAINING_DATASET, CHURN_LABELS)
    }
    best = store.scan(SYNTHETIC_TRUTH, [cutoff]).sql if truth else ""
    with store.connect() as connection:
        return connection.execute(
            f"""SELECT labels.churned, churn_probability, recency_days, overdue_days,
                gap_mean_days, tenure_days {", best_churn_probability" if truth else ""}
            FROM {relations[CHURN_PREDICTIONS]} AS predictions
            JOIN {relations[CHURN_LABELS]} AS labels USING (customer_id)
            JOIN {relations[TRAINING_DATASET]} AS features USING (customer_id)
            {f"JOIN {best} AS truth USING (customer_id)" if truth else ""}
            ORDER BY customer_id"""
        ).df()


@dataclass(frozen=True)
class WalkForwardReport:
    """The backtest over all cutoffs, in two forms of the same content.

    Args:
        markdown: With the plot as an image within.
        html: The same as one file that a browser opens without any other.
        summary: Means over the cutoffs, by name; what nobody knows is left out.
    """

    markdown: str
    html: str
    summary: Mapping[str, float]


COLUMNS = {
    "cutoff": "cutoff",
    "model": "champion",
    "customers": "customers",
    "churn_rate": "churned",
    "estimated_roc_auc": "AUC promised",
    "roc_auc": "AUC realised",
    "recency_roc_auc": "recency rule",
    "best_roc_auc": "best possible",
    "gap_closed": "gap closed",
    "log_loss": "log loss",
    "best_log_loss": "best log loss",
    "calibration_error": "calibration error",
    "lift_at_10_percent": "lift at 10 %",
    "profit_per_customer": "profit per customer",
}


def walk_forward_report(rows: Sequence[Mapping[str, Any]]) -> WalkForwardReport:
    """The report over rows of `REALISED_PERFORMANCE`, oldest first."""
    from churn_assets.plots import WalkForward, markdown_image, png, walk_forward

    plotted = [
        WalkForward(
            cutoff=row["cutoff"],
            champion=row["model"].removesuffix("_model"),
            estimated=row["estimated_roc_auc"],
            realised=row["roc_auc"],
            interval=(
                Interval(row["roc_auc_low"], row["roc_auc_high"])
                if row["roc_auc_low"] is not None
                else None
            ),
            best=row["best_roc_auc"],
            recency=row["recency_roc_auc"],
        )
        for row in rows
    ]
    span = f"{rows[0]['cutoff']} … {rows[-1]['cutoff']}" if rows else "no cutoff yet"
    image = markdown_image(png(walk_forward(plotted, span)), "AUC over cutoffs")
    shown = {
        name: title for name, title in COLUMNS.items() if any(row[name] is not None for row in rows)
    }
    cells = [[_cell(row[name]) for name in shown] for row in rows]
    means = {name: _mean([row[name] for row in rows]) for name in shown}
    summary = {name: value for name, value in means.items() if value is not None}
    cells.append(["mean", *(_cell(summary.get(name)) for name in list(shown)[1:])])
    title = f"Walk-forward backtest, {span}"
    note = (
        "Each cutoff was predicted by a model that had seen no label of it. Promised is the AUC on "
        "the hold-out when the champion was chosen, realised that of its predictions against what "
        "customers did."
    )
    text = f"# {title}\n\n{note}\n\n{image}\n\n{markdown(list(shown.values()), cells)}\n"
    return WalkForwardReport(text, _page(title, note, image, list(shown.values()), cells), summary)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).removesuffix("_model")


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def _page(
    title: str, note: str, image: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    source = image[image.index("(") + 1 : -1]

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    table = line(header, "th") + "".join(line(row, "td") for row in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px system-ui,sans-serif;margin:2em auto;max-width:84em;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.3em .7em;text-align:right;"
        "border-bottom:1px solid #ddd}td{white-space:nowrap}td:first-child,th:first-child,"
        "td:nth-child(2),th:nth-child(2){text-align:left}tr:last-child{font-weight:bold}img{max-width:100%}</style>"
        f'<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p><img alt="{html.escape(title)}" '
        f'src="{source}"><table>{table}</table></html>'
    )


def realised_rows(store: OfflineStore) -> list[dict[str, Any]]:
    """All rows of `REALISED_PERFORMANCE`, oldest first."""
    with store.connect() as connection:
        rows: list[dict[str, Any]] = (
            connection.sql(f"FROM {store.scan(REALISED_PERFORMANCE).sql} ORDER BY cutoff")
            .to_arrow_table()
            .to_pylist()
        )
    return rows


def assets(
    calendar: Calendar, store: OfflineStore, economics: Economics, seed: int, has_truth: bool
) -> list[dg.AssetsDefinition]:
    """The realised performance of each cutoff, and the report over all of them.

    Args:
        calendar: The partitions.
        store: Where tables are.
        economics: Gives the threshold and the profit.
        seed: Of the bootstrap.
        has_truth: Whether the source knows the true churn probabilities.
    """
    model_store = ModelStore(store.home)
    inputs = [CHURN_PREDICTIONS, CHAMPION_MODEL, CHURN_LABELS, TRAINING_DATASET]
    inputs += [SYNTHETIC_TRUTH] if has_truth else []

    # Not the asset's own name, which is also that of the job: a code location refuses two of them.
    @dg.multi_asset(
        name="judge_predictions",
        outs={
            REALISED_PERFORMANCE.name: dg.AssetOut(
                description=__doc__,
                code_version="1",
                kinds={"duckdb", "parquet"},
                metadata={"dagster/column_schema": REALISED_PERFORMANCE.as_dagster()},
                group_name="monitoring",
                owners=["team:ml"],
                tags={"layer": "monitoring"},
                dagster_type=dg.Any,
            )
        },
        deps=[dg.AssetDep(table.name, partition_mapping=calendar.same_cutoff) for table in inputs],
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
            row = realised(champion, predicted_customers(store, key), economics, seed)
            rows.append(row)
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            context.add_asset_metadata(numbers | {"model": row["model"]}, partition_key=key)
        with store.connect() as connection:
            connection.register("realised", pa.Table.from_pylist(rows))
            query = Query(["SELECT * FROM realised"], connection)
            yield dg.Output(query, output_name=REALISED_PERFORMANCE.name)

    @dg.asset(
        name="walk_forward_report",
        description="The walk-forward backtest over all realised cutoffs, as a page to send.",
        deps=[realised_performance],
        kinds={"html"},
        group_name="monitoring",
        owners=["team:ml"],
        tags={"layer": "monitoring"},
    )
    def report(context: dg.AssetExecutionContext) -> None:
        made = walk_forward_report(realised_rows(store))
        for suffix, text in (("html", made.html), ("md", made.markdown)):
            path = store.home / "reports" / f"walk_forward.{suffix}"
            model_store.write_text(path, text)
            context.add_output_metadata({suffix: dg.MetadataValue.path(str(path))})
        context.add_output_metadata(
            {
                **{f"mean_{name}": value for name, value in made.summary.items()},
                "report": dg.MetadataValue.md(made.markdown),
            }
        )

    return [realised_performance, report]
