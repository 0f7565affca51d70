"""Drift: how far the customers of a cutoff are from those that the champion has learned from.

Grain: one row per scored cutoff `C` and compared column. Features of the population at `C` are
compared with the training rows of the champion of `C`, the same draw that the model saw. Two more
rows say what the model makes of them:

- `churn_probability`: the predictions of `C` against those of the previous scored cutoff, which may
  be another model's. What a model says of its own training rows is no measure: it has seen their
  labels.
- `churned`: as many churners as the predictions of `C` add up to, against the training rows' rate.

PSI is `sum((q - p) * ln(q / p))` over the shares p of the reference and q of the current rows
(Siddiqi 2006, Credit Risk Scorecards). The groups are the deciles of the reference, a value being
in that of its percentile rank with ties in the middle; a category is a group, and so are NULLs. One
row is added to each group on both sides (Laplace), so that PSI is finite. Without drift it is about
`(groups - 1) * (1 / n + 1 / m)` for n and m rows (Yurdakul 2018, Statistical Properties of
Population Stability Index): 0.005 for 2,000 customers, but 0.2 for fifty.

KS is the two-sample Kolmogorov-Smirnov statistic over the values that are not NULL, the greatest
distance between the two distribution functions, and undefined for categories.

Neither reads a label of `C` or later. A drift says that customers differ, not that the model errs.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.features import Groups, feature_columns
from churn_assets.features.group import Tolerance
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import CHAMPION_MODEL, champion_of
from churn_assets.models.training_rows import TARGET, drawn
from churn_assets.monitoring.drift_picture import HISTOGRAMS, drift_figure, worst
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS, population_query
from churn_assets.stores.figures import png
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.pages import markdown, markdown_image
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.tables import CUTOFF, Column, Table, sql_version
from churn_assets.training_data.dataset import TRAINING_DATASET

if TYPE_CHECKING:
    import numpy as np
    from duckdb import DuckDBPyConnection

DRIFT_REPORT = Table(
    "drift_report",
    key=("feature",),
    columns=(
        CUTOFF,
        Column("feature", "VARCHAR", "The column that is compared"),
        Column("feature_group", "VARCHAR", "The table that it belongs to"),
        Column("reference", "VARCHAR", "The partitions that it is compared with, if any"),
        Column("psi", "DOUBLE", "Population stability index; NULL where a side has no rows"),
        Column("ks", "DOUBLE", "Kolmogorov-Smirnov statistic; NULL for categories", "share"),
        Column("level", "VARCHAR", "`ok`, or `warn` or `error` where PSI has reached that limit"),
        Column("psi_warn", "DOUBLE", "The feature's limit for `warn`"),
        Column("psi_error", "DOUBLE", "The feature's limit for `error`"),
        Column("reference_rows", "BIGINT", "Rows of the reference", "rows"),
        Column("current_rows", "BIGINT", "Rows of the cutoff", "rows"),
        Column("reference_null_share", "DOUBLE", "Of them, those without a value", "share"),
        Column("current_null_share", "DOUBLE", "Of them, those without a value", "share"),
        Column("reference_mean", "DOUBLE", "Mean of the reference; NULL for categories"),
        Column("current_mean", "DOUBLE", "Mean of the cutoff; NULL for categories"),
    ),
)

PREDICTED = "churn_probability"
WITHIN_LIMITS = "drift_within_limits"

# A year of monthly cutoffs: a season shows beside a trend.
HEAT_MAP_CUTOFFS = 12

# Lines of the table of the worst columns.
WORST = 10


@dataclass(frozen=True)
class Compared:
    """A column whose values are compared."""

    column: str
    group: str
    dtype: str
    tolerance: Tolerance


def compared_columns(groups: Groups) -> list[Compared]:
    """Every feature, the predictions and the target."""
    return [
        *(Compared(f.name, g.name, f.dtype, f.tolerance) for g in groups for f in g.features),
        Compared(PREDICTED, CHURN_PREDICTIONS.name, "DOUBLE", Tolerance()),
        Compared(TARGET, TRAINING_DATASET, "INTEGER", Tolerance()),
    ]


def value_counts_query(
    groups: Groups, training: str, population: str, previous: str, predictions: str
) -> str:
    """How often each value occurs: feature, number or category, reference, current.

    Everything else follows from it: quantiles, PSI, KS, means and pictures.

    Args:
        groups: The feature groups.
        training: A relation with the training rows of the champion.
        population: One with every feature of the customers of the cutoff.
        previous: Predictions of the previous scored cutoff, without rows where there is none.
        predictions: Predictions of the cutoff.
    """
    # Exact sums do not depend on the order of the rows.
    churners = f"round(sum(CAST({PREDICTED} AS DECIMAL(18, 12))) OVER ())"
    expected = (
        f"(SELECT CAST(row_number() OVER () <= {churners} AS INTEGER) AS {TARGET} "
        f"FROM {predictions} AS predictions)"
    )
    names = [column.name for column in feature_columns(groups)]
    sides = {
        "features": _both(names, training, population),
        PREDICTED: _both([PREDICTED], previous, predictions),
        TARGET: _both([TARGET], training, expected),
    }
    ctes = ", ".join(f"compared_{name} AS MATERIALIZED ({sql})" for name, sql in sides.items())
    counts = " UNION ALL ".join(
        _counts(column, f"compared_{column.column if column.column in sides else 'features'}")
        for column in compared_columns(groups)
    )
    return f"WITH {ctes} {counts}"


def _both(names: Sequence[str], reference: str, current: str) -> str:
    columns = ", ".join(names)
    return (
        f"SELECT true AS is_reference, {columns} FROM {reference} AS reference_rows "
        f"UNION ALL SELECT false, {columns} FROM {current} AS current_rows"
    )


def _counts(compared: Compared, relation: str) -> str:
    name = compared.column
    is_category = compared.dtype == "VARCHAR"
    return (
        f"SELECT '{name}' AS feature, "
        f"CAST({'NULL' if is_category else name} AS DOUBLE) AS number, "
        f"CAST({name if is_category else 'NULL'} AS VARCHAR) AS category, "
        "count(*) FILTER (WHERE is_reference) AS reference, "
        "count(*) FILTER (WHERE NOT is_reference) AS current "
        f"FROM {relation} GROUP BY {name}"
    )


def drift_query(groups: Groups, cutoff: dt.date, training: str, previous: str, counts: str) -> str:
    """The rows of `DRIFT_REPORT` of one cutoff.

    Args:
        groups: The feature groups.
        cutoff: The cutoff.
        training: What features and churn are compared with, for people.
        previous: What predictions are compared with, for people.
        counts: A relation as `value_counts_query` gives it.
    """
    declared = ", ".join(
        f"('{c.column}', '{c.group}', '{previous if c.column == PREDICTED else training}', "
        f"{c.tolerance.warn}, {c.tolerance.error})"
        for c in compared_columns(groups)
    )

    def mean(side: str) -> str:
        # In whole millionths: sums of doubles depend on the order of the rows.
        total = f"sum(TRY_CAST(number * 1e6 AS HUGEINT) * {side})"
        return f"{total} / 1e6 / NULLIF(sum({side}) FILTER (WHERE isfinite(number)), 0)"

    return f"""
        WITH ranked AS (
            SELECT *,
                sum(reference) OVER up_to AS reference_up_to,
                sum(current) OVER up_to AS current_up_to,
                NULLIF(sum(reference) OVER whole, 0) AS reference_total,
                NULLIF(sum(current) OVER whole, 0) AS current_total,
                CASE
                    WHEN number IS NULL THEN category
                    ELSE CAST(least(9, coalesce(
                        10 * (2 * reference_up_to - reference) // (2 * reference_total), 0
                    )) AS VARCHAR)
                END AS bucket
            FROM {counts} AS value_counts
            WINDOW whole AS (PARTITION BY feature, number IS NULL),
                up_to AS (PARTITION BY feature, number IS NULL ORDER BY number)
        ),
        statistics AS (
            SELECT feature,
                max(abs(reference_up_to / reference_total - current_up_to / current_total))
                    FILTER (WHERE number IS NOT NULL) AS ks,
                {mean("reference")} AS reference_mean,
                {mean("current")} AS current_mean
            FROM ranked GROUP BY feature
        ),
        buckets AS (
            SELECT feature, bucket,
                CAST(sum(reference) AS BIGINT) AS reference, CAST(sum(current) AS BIGINT) AS current
            FROM ranked GROUP BY feature, bucket
        ),
        shares AS (
            SELECT *,
                (reference + 1) / (sum(reference) OVER whole + count(*) OVER whole) AS p,
                (current + 1) / (sum(current) OVER whole + count(*) OVER whole) AS q
            FROM buckets
            WINDOW whole AS (PARTITION BY feature)
        ),
        totals AS (
            SELECT feature,
                sum(reference) AS reference_rows,
                sum(current) AS current_rows,
                coalesce(sum(reference) FILTER (WHERE bucket IS NULL), 0)
                    / NULLIF(reference_rows, 0) AS reference_null_share,
                coalesce(sum(current) FILTER (WHERE bucket IS NULL), 0)
                    / NULLIF(current_rows, 0) AS current_null_share,
                CASE WHEN reference_rows > 0 AND current_rows > 0
                    THEN sum((q - p) * ln(q / p) ORDER BY bucket) END AS psi
            FROM shares GROUP BY feature
        )
        SELECT DATE '{cutoff}' AS cutoff, *,
            CASE WHEN psi >= psi_error THEN 'error' WHEN psi >= psi_warn THEN 'warn'
                WHEN psi IS NOT NULL THEN 'ok' END AS level
        FROM (VALUES {declared}) AS declared (
            feature, feature_group, reference, psi_warn, psi_error
        )
        LEFT JOIN totals USING (feature) LEFT JOIN statistics USING (feature)
    """


def measure(
    connection: "DuckDBPyConnection",
    groups: Groups,
    calendar: Calendar,
    store: OfflineStore,
    cutoff: dt.date,
) -> None:
    """Append the rows of a cutoff to table `drift` and leave what they follow from in `counts`.

    Raises:
        FileNotFoundError: There is no champion of the cutoff, or a partition is missing.
    """
    key, previous = cutoff.isoformat(), calendar.shift(cutoff, -1).isoformat()
    trained = champion_of(calendar, ModelStore(store.home), cutoff).training_cutoffs
    before = [previous] if previous in store.keys(CHURN_PREDICTIONS) else []
    counts = value_counts_query(
        groups,
        drawn(store.scan(store.tables[TRAINING_DATASET], trained)),
        f"({population_query(groups, store, cutoff)})",
        store.scan(CHURN_PREDICTIONS, before).sql,
        store.scan(CHURN_PREDICTIONS, [key]).sql,
    )
    report = drift_query(
        groups,
        cutoff,
        f"{TRAINING_DATASET} {trained[0]} … {trained[-1]}",
        f"{CHURN_PREDICTIONS.name} {previous}" if before else "",
        "counts",
    )
    connection.execute(f"CREATE OR REPLACE TEMP TABLE counts AS {counts}")
    connection.execute(f"INSERT INTO drift {DRIFT_REPORT.typed(report)}")


def assets(groups: Groups, calendar: Calendar, store: OfflineStore) -> list[dg.AssetsDefinition]:
    """The drift report, and its check."""
    check = dg.AssetCheckSpec(
        WITHIN_LIMITS,
        asset=DRIFT_REPORT.name,
        description="Whether every column drifts less than its limits. It never blocks.",
        partitions_def=calendar.scored_cutoffs,
    )
    # A champion that was kept for long has learned from older cutoffs too; they are read as well.
    mappings = {
        CHAMPION_MODEL.name: calendar.same_cutoff,
        CHURN_PREDICTIONS.name: calendar.same_and_previous_cutoff,
        TRAINING_DATASET: calendar.mature_cutoffs,
        **{group.name: calendar.same_cutoff for group in groups},
    }

    @dg.asset(
        description=__doc__,
        deps=[dg.AssetDep(name, partition_mapping=mapping) for name, mapping in mappings.items()],
        check_specs=[check],
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(
            value_counts_query(groups, "training", "population", "previous", "predictions"),
            drift_query(groups, dt.date(2000, 1, 1), "", "", "counts"),
        ),
        group_name="drift",
        kinds={"duckdb", "parquet"},
        owners=["team:ml"],
        tags={"layer": "monitoring"},
        metadata={"dagster/column_schema": DRIFT_REPORT.as_dagster()},
    )
    def drift_report(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query | None]]:
        keys = sorted(context.partition_keys)
        earlier = store.earlier(DRIFT_REPORT, keys[0])
        reports = {}
        with store.connect() as connection:
            connection.execute(f"CREATE TEMP TABLE drift AS {DRIFT_REPORT.empty()}")
            for key in keys:
                measure(connection, groups, calendar, store, parse_key(key))
                history = recent_rows(connection, store.scan(DRIFT_REPORT, earlier))
                reports[key] = worst([row for row in history if row["cutoff"] == parse_key(key)])
                metadata = drift_metadata(reports[key])
                if reports[key]:
                    shown = [row["feature"] for row in reports[key][:HISTOGRAMS]]
                    values = {column: _values(connection, column) for column in shown}
                    picture = markdown_image(png(drift_figure(history, values)), f"Drift at {key}")
                    metadata["drift"] = dg.MetadataValue.md(picture)
                context.add_asset_metadata(metadata, partition_key=key)
            yield dg.Output(Query("FROM drift", connection))
        # A check result of a range belongs to no partition; these do, and what they are about has
        # just been written.
        for key, report in reports.items():
            context.log_event(evaluation(key, report))
        yield dg.Output(None, output_name=check.get_python_identifier())

    return [drift_report]


def recent_rows(connection: "DuckDBPyConnection", earlier: Scan) -> list[dict[str, Any]]:
    """The rows of the newest cutoffs: those of table `drift`, and of earlier partitions."""
    rows: list[dict[str, Any]] = (
        connection.sql(
            f"FROM (FROM {earlier.sql} UNION ALL BY NAME FROM drift) "
            f"QUALIFY dense_rank() OVER (ORDER BY cutoff DESC) <= {HEAT_MAP_CUTOFFS}"
        )
        .to_arrow_table()
        .to_pylist()
    )
    return rows


def _values(connection: "DuckDBPyConnection", column: str) -> "dict[str, np.ndarray]":
    """The value counts of a column."""
    query = "SELECT number, category, reference, current FROM counts WHERE feature = ?"
    values = connection.execute(query, [column]).df()
    return {str(name): values[name].to_numpy() for name in values}


def drift_metadata(report: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What Dagster shows of a cutoff's rows, worst first; numbers are plotted over cutoffs."""
    by_name = {row["feature"]: row for row in report}
    features = [row for name, row in by_name.items() if name not in (PREDICTED, TARGET)]
    numbers = {
        "features_warn": sum(row["level"] == "warn" for row in features),
        "features_error": sum(row["level"] == "error" for row in features),
        "max_psi": max((row["psi"] for row in features), default=None),
        "prediction_psi": by_name.get(PREDICTED, {}).get("psi"),
        "training_churn_rate": by_name.get(TARGET, {}).get("reference_mean"),
        "expected_churn_rate": by_name.get(TARGET, {}).get("current_mean"),
    }
    return {
        **{name: number for name, number in numbers.items() if number is not None},
        "worst": dg.MetadataValue.md(_worst_table(report[:WORST])),
    }


def _worst_table(report: Sequence[Mapping[str, Any]]) -> str:
    header = ["column", "level", "PSI", "limits", "KS", "mean", "NULL", "compared with"]
    lines = []
    for row in report:
        ks = "" if row["ks"] is None else f"{row['ks']:.3f}"
        mean, null = (
            " → ".join("" if v is None else f"{v:{form}}" for v in values)
            for form, values in (
                (".4g", (row["reference_mean"], row["current_mean"])),
                (".1%", (row["reference_null_share"], row["current_null_share"])),
            )
        )
        limits = f"{row['psi_warn']:g}, {row['psi_error']:g}"
        psi = f"{row['psi']:.3f}"
        lines.append([row["feature"], row["level"], psi, limits, ks, mean, null, row["reference"]])
    return markdown(header, lines)


def evaluation(cutoff: str, report: Sequence[Mapping[str, Any]]) -> dg.AssetCheckEvaluation:
    """Whether the rows of a cutoff are within their limits."""
    beyond = {
        level: [row["feature"] for row in report if row["level"] == level]
        for level in ("error", "warn")
    }
    return dg.AssetCheckEvaluation(
        dg.AssetKey(DRIFT_REPORT.name),
        WITHIN_LIMITS,
        passed=not any(beyond.values()),
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{k}: {', '.join(v)}" for k, v in beyond.items() if v)
        or f"None of {len(report)} columns.",
        metadata={level: len(columns) for level, columns in beyond.items()},
        partition=cutoff,
    )
