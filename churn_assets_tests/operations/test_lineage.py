"""Prevents: lineage that is drawn by hand, names columns that do not exist, or takes for a column
what stands in a string.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.features.group import FeatureGroup
from churn_assets.online.sync import ONLINE_FEATURES, online_table
from churn_assets.operations.lineage import lineages, made_from
from churn_assets.sources.tables import EVENTS
from churn_assets_tests.conftest import GROUPS, TABLES, make_settings


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a parsed statement."""
    if isinstance(tree, dict):
        yield tree
    for child in (
        tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    ):
        yield from nodes(child)


def parsed_columns(expression: str) -> set[str]:
    """The columns that an expression names, by DuckDB's parser."""
    [(text,)] = duckdb.execute(
        "SELECT json_serialize_sql(?)", [f"SELECT {expression} FROM rows"]
    ).fetchall()
    statement = json.loads(text)
    assert not statement["error"], statement
    [select] = statement["statements"]
    return {
        node["column_names"][-1]
        for node in nodes(select["node"]["select_list"])
        if node.get("class") == "COLUMN_REF"
    }


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_features_read_the_columns_that_a_parser_finds(group: FeatureGroup) -> None:
    lineage = lineages(GROUPS, TABLES)[group.name]
    for feature in group.features:
        if feature.source in group.derived:
            continue  # their columns are renamed on the way; see below
        expression = feature.sql.replace("{window}", "day > 0").replace("{cutoff_day}", "9")
        table = TABLES[feature.source]
        expected = parsed_columns(expression) & set(table.column_names)
        assert lineage[feature.name] == [
            (table.name, name) for name in table.column_names if name in expected
        ], feature.name


def test_renamed_columns_are_followed_to_their_source() -> None:
    found = lineages(GROUPS, TABLES)
    reviews = found["customer_review_features"]
    assert reviews["avg_helpful_ratio"] == [
        ("scored_reviews", name) for name in ("helpful_votes", "total_votes")
    ]
    profile = found["customer_profile_features"]
    assert profile["age"] == [("raw_customers", "updated_at"), ("raw_customers", "birth_date")]
    orders = found["daily_orders"]
    assert orders["last_purchase_us"] == [
        ("raw_events", "event_timestamp"),
        ("raw_events", "event_type"),
    ]
    assert found["churn_labels"]["future_revenue"] == [("daily_orders", "purchase_amount")]
    assert found["training_dataset"]["monetary"] == [("customer_rfm_features", "monetary")]
    assert found["online_features"]["prediction"] == [("churn_predictions", "prediction")]


def test_strings_functions_and_other_rows_are_no_columns() -> None:
    query = """
        WITH parts AS (
            SELECT customer_id, sum(CAST(amount AS DECIMAL(38, 4)) * amount) AS squares,
                count(*) FILTER (WHERE event_type = 'session_id, FROM channel') AS n
            FROM raw_events WHERE quantity > 0
        )
        SELECT customer_id, coalesce(squares, n) AS mixed FROM parts
    """
    found = made_from(query, EVENTS.table)
    assert found["mixed"] == [("raw_events", "event_type"), ("raw_events", "amount")]


def test_the_graph_carries_it_and_every_source_is_a_parent(tmp_path: Path) -> None:
    graph = build_definitions(make_settings(tmp_path, source="synthetic")).resolve_asset_graph()
    columns = {name: set(table.column_names) for name, table in TABLES.items()}
    assert {"daily_products", "churn_labels", "training_dataset"} <= lineages(GROUPS, TABLES).keys()
    for name in lineages(GROUPS, TABLES):
        node = graph.get(dg.AssetKey(name))
        table = online_table(GROUPS) if name == ONLINE_FEATURES else TABLES[name]
        lineage = node.metadata["dagster/column_lineage"].deps_by_column
        assert list(lineage) == table.column_names
        for column, sources in lineages(GROUPS, TABLES)[name].items():
            deps = lineage[column]
            assert {dep.asset_key for dep in deps} <= set(node.parent_keys), (name, column)
            assert {(dep.asset_key.path[-1], dep.column_name) for dep in deps} == set(sources)
            assert all(source in columns[parent] for parent, source in sources)
            line = ", ".join(".".join(source) for source in sources)
            assert f"| {column} | {line} |" in node.metadata["lineage"].value
