"""The training dataset: every feature group and the labels of a mature cutoff, side by side.

Grain: one row per customer of the population and labelled cutoff. A value that is undefined stays
NULL: imputation is fitted inside the model, on training rows only.
"""

from collections.abc import Mapping

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups, feature_columns
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.tables import Table, cutoff_table, sql_version
from churn_assets.training_data.labels import CHURN_LABELS, SATISFACTION_CHURN_LABELS

LABEL_SETS: tuple[Table, ...] = (CHURN_LABELS, SATISFACTION_CHURN_LABELS)
LABEL_COLUMNS = [column for table in LABEL_SETS for column in table.columns[2:]]

TRAINING_DATASET = "training_dataset"


def training_table(groups: Groups) -> Table:
    """The table: every feature, then the labels."""
    return cutoff_table(TRAINING_DATASET, [*feature_columns(groups), *LABEL_COLUMNS])


def training_query(groups: Groups, relations: Mapping[str, str]) -> str:
    """The population of `churn_labels` at a cutoff with every feature and label joined on.

    Args:
        groups: The feature groups.
        relations: A relation of the cutoff's rows for each feature group and label set.
    """
    joined = [*(group.table for group in groups), *LABEL_SETS]
    columns = [f"{table.name}.{column.name}" for table in joined for column in table.columns[2:]]
    joins = [
        f"LEFT JOIN {relations[table.name]} AS {table.name} "
        f"ON {table.name}.customer_id = population.customer_id"
        for table in joined
    ]
    return (
        f"SELECT population.customer_id, population.cutoff, {', '.join(columns)} "
        f"FROM {relations[CHURN_LABELS.name]} AS population " + " ".join(joins)
    )


def assets(groups: Groups, calendar: Calendar) -> list[dg.AssetsDefinition]:
    """The training dataset."""
    inputs = [*(group.name for group in groups), *(table.name for table in LABEL_SETS)]

    @dg.asset(
        description=__doc__,
        ins={name: dg.AssetIn(partition_mapping=calendar.same_cutoff) for name in inputs},
        partitions_def=calendar.labeled_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(training_query(groups, {name: name for name in inputs})),
        group_name="training",
        kinds={"duckdb", "parquet"},
        owners=["team:ml"],
        tags={"layer": "training"},
        metadata={"dagster/column_schema": training_table(groups).as_dagster()},
    )
    def training_dataset(context: dg.AssetExecutionContext, **tables: Scan) -> Query:
        def at(key: str) -> str:
            return training_query(groups, {name: scan.of(key).sql for name, scan in tables.items()})

        return Query({key: at(key) for key in context.partition_keys})

    return [training_dataset]
