"""The feature registry: entities, feature views and features, derived from the declarations.

Grain: one row per feature. The same content is in `CHURN_HOME/feature_registry.yaml`, for people
and reviews. Nothing is declared here.
"""

from pathlib import Path
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.features import Groups
from churn_assets.features.group import EVER, window_days
from churn_assets.stores.partitions import Query
from churn_assets.stores.staging import write_text
from churn_assets.stores.tables import Column, Table, sql_version

FEATURE_REGISTRY = Table(
    "feature_registry",
    key=("feature_view", "position"),
    columns=(
        Column("entity", "VARCHAR", "What a feature describes"),
        Column("feature_view", "VARCHAR", "The group, which is also the table"),
        Column("position", "INTEGER", "Order within the group, from 0"),
        Column("feature", "VARCHAR", "The column"),
        Column("dtype", "VARCHAR", "DuckDB type"),
        Column("unit", "VARCHAR", "Empty for a pure number"),
        Column("description", "VARCHAR", "What it says"),
        Column("owner", "VARCHAR", "Who answers for it"),
        Column("window_days", "INTEGER", "Length of its window; NULL: all time", "days"),
        Column("source", "VARCHAR", "The rollup that it is computed from"),
        Column("version", "VARCHAR", "Changes whenever the definition does"),
        Column("psi_warn", "DOUBLE", "PSI from which `drift_report` warns"),
        Column("psi_error", "DOUBLE", "PSI from which `drift_report` calls it an error"),
    ),
    partitioned_by=None,
)


def registry(groups: Groups, lookback_days: int) -> dict[str, Any]:
    """Entities, feature views and their features, as plain data."""
    return {
        "entities": [{"name": "customer", "join_keys": ["customer_id"], "dtype": "VARCHAR"}],
        "feature_views": [
            {
                "name": group.name,
                "entity": "customer",
                "timestamp": "cutoff",
                "owner": group.owner,
                "description": group.description,
                "features": [
                    {
                        "name": feature.name,
                        "dtype": feature.dtype,
                        "unit": feature.unit,
                        "description": feature.description,
                        "window_days": (
                            None
                            if feature.window == EVER
                            else int(window_days(feature.window, lookback_days))
                        ),
                        "source": feature.source,
                        "version": group.version(feature),
                        "psi_warn": feature.tolerance.warn,
                        "psi_error": feature.tolerance.error,
                    }
                    for feature in group.features
                ],
            }
            for group in groups
        ],
    }


def registry_query(content: dict[str, Any]) -> str:
    """The registry as rows."""

    def literal(value: object) -> str:
        if value is None or isinstance(value, int | float):
            return "NULL" if value is None else str(value)
        return "'" + str(value).replace("'", "''") + "'"

    rows = [
        (
            view["entity"],
            view["name"],
            position,
            *(feature[field] for field in ("name", "dtype", "unit", "description")),
            view["owner"],
            *(
                feature[field]
                for field in ("window_days", "source", "version", "psi_warn", "psi_error")
            ),
        )
        for view in content["feature_views"]
        for position, feature in enumerate(view["features"])
    ]
    values = ", ".join(f"({', '.join(map(literal, row))})" for row in rows)
    names = ", ".join(FEATURE_REGISTRY.column_names)
    return f"SELECT * FROM (VALUES {values}) AS features ({names})"


def assets(groups: Groups, calendar: Calendar, home: Path) -> list[dg.AssetsDefinition]:
    """The registry table and its YAML file."""
    content = registry(groups, calendar.lookback_days)
    query = registry_query(content)

    @dg.asset(
        description=__doc__,
        deps=[group.name for group in groups],
        code_version=sql_version(query),
        group_name="monitoring",
        kinds={"parquet", "yaml"},
        owners=["team:data"],
        tags={"layer": "monitoring"},
        metadata={"dagster/column_schema": FEATURE_REGISTRY.as_dagster()},
    )
    def feature_registry(context: dg.AssetExecutionContext) -> Query:
        import yaml

        yaml_file = home / "feature_registry.yaml"
        write_text(home, yaml_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        context.add_output_metadata({"yaml": dg.MetadataValue.path(str(yaml_file))})
        return Query(query)

    return [feature_registry]
