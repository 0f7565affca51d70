"""Column lineage: which columns a column is made from, read off the declarations.

A column is read by an expression in which its name stands as a word. Those that decide which rows
there are do not count, such as the day of a window or what rows are grouped by. SQL is
matched by word and not parsed, because the code location would have to load DuckDB to start; the
tests compare both.

Tables that Python makes (predictions, reports) have no lineage here: every feature is in them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from churn_assets.features import Groups
from churn_assets.features.group import FeatureGroup
from churn_assets.features.queries import ANY_CUTOFF
from churn_assets.history.rollups import DAILY_ACTIVITY, DAILY_ORDERS, ROLLUPS
from churn_assets.history.scored_reviews import SCORED_REVIEWS
from churn_assets.online.sync import ONLINE_FEATURES, PREDICTION_COLUMNS, online_table
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.sources.tables import EVENTS, REVIEWS, SATISFACTION
from churn_assets.stores.pages import markdown
from churn_assets.stores.tables import Table
from churn_assets.training_data.dataset import LABEL_SETS, TRAINING_DATASET
from churn_assets.training_data.labels import (
    CHURN_LABELS,
    SATISFACTION_CHURN_LABELS,
    churn_labels_query,
    satisfaction_churn_labels_query,
)

Sources = list[tuple[str, str]]
"""Columns as (table, column)."""
Lineage = Mapping[str, Sources]
"""What each column of a table is made from."""

TOKEN = re.compile(r"'(?:[^']|'')*'|\w+|\S")


def selected(select: str) -> dict[str, set[str]]:
    """The words of each expression in a SELECT list, by the name of its column.

    Args:
        select: SQL from behind the word SELECT on.
    """
    columns: dict[str, set[str]] = {}
    item: list[str] = []
    depth = 0
    for token in TOKEN.findall(select):
        depth += (token == "(") - (token == ")")
        ended = depth < 0 or (depth == 0 and token == "FROM")
        if not ended and (depth or token != ","):
            item.append(token)
            continue
        columns[item[-1]] = set(item[:-2] if item[-2:-1] == ["AS"] else item)
        item = []
        if ended:
            break
    return columns


def made_from(query: str, table: Table) -> dict[str, Sources]:
    """The columns of a table that each column of a query is made from.

    Args:
        query: SELECTs of which each reads the table or those that stand before it.
        table: What the first one reads.
    """
    columns = table.column_names
    known = {name: {name} for name in columns}
    for select in re.split(r"\bSELECT\b", query)[1:]:
        known |= {
            column: set().union(*(known.get(word, ()) for word in words))
            for column, words in selected(select).items()
        }
    return {
        column: [(table.name, name) for name in sorted(names, key=columns.index)]
        for column, names in known.items()
    }


def group_lineage(group: FeatureGroup, tables: Mapping[str, Table]) -> Lineage:
    """The lineage of a feature group; its customers are those of `daily_activity`.

    Args:
        group: The group.
        tables: The declared tables, by name.
    """
    lineage: dict[str, Sources] = {
        "customer_id": [(DAILY_ACTIVITY.name, "customer_id")],
        "cutoff": [],
    }
    for feature in group.features:
        derived = group.derived.get(feature.source)
        expression = feature.sql.replace("{window}", "day")
        query = f"{derived.sql if derived else ''} SELECT {expression} AS {feature.name} FROM rows"
        table = tables[group.rollup(feature.source)]
        lineage[feature.name] = made_from(query, table)[feature.name]
    return lineage


def same_columns(
    table: Table, parts: Iterable[tuple[Table, Sequence[str]]], keys: Table
) -> Lineage:
    """The lineage of a table that joins columns of others under their own names.

    Args:
        table: The joined table.
        parts: Tables and the columns that are taken from each.
        keys: The table that customer and cutoff are taken from.
    """
    origin = {name: part.name for part, names in parts for name in names}
    return {name: [(origin.get(name, keys.name), name)] for name in table.column_names}


def lineages(groups: Groups, tables: Mapping[str, Table]) -> dict[str, Lineage]:
    """The lineage of every table that is made by SQL, by table.

    Args:
        groups: The feature groups.
        tables: The declared tables, by name.
    """
    scored, dataset = tables[SCORED_REVIEWS], tables[TRAINING_DATASET]
    features = [(group.table, group.table.column_names[2:]) for group in groups]
    labels = [(table, table.column_names[2:]) for table in LABEL_SETS]
    names = (DAILY_ACTIVITY.name, DAILY_ORDERS.name, SATISFACTION.table.name)
    activity, orders, surveys = names
    label_queries = (
        (
            CHURN_LABELS,
            DAILY_ORDERS,
            churn_labels_query(ANY_CUTOFF, ANY_CUTOFF, 1, 1, activity, orders),
        ),
        (
            SATISFACTION_CHURN_LABELS,
            SATISFACTION.table,
            satisfaction_churn_labels_query(ANY_CUTOFF, ANY_CUTOFF, 1, 1, 0, activity, surveys),
        ),
    )
    of_text = dict.fromkeys(scored.column_names, "text")
    of_text |= {name: name for name in REVIEWS.table.column_names}
    return {
        **{
            table.name: _columns_of(table, made_from(query(EVENTS.table.name), EVENTS.table))
            for table, query, _ in ROLLUPS
        },
        SCORED_REVIEWS: {
            name: [(REVIEWS.table.name, of_text[name])] for name in scored.column_names
        },
        **{group.name: group_lineage(group, tables) for group in groups},
        **{
            table.name: _columns_of(table, made_from(query, source))
            | {"customer_id": [(activity, "customer_id")]}
            for table, source, query in label_queries
        },
        TRAINING_DATASET: same_columns(dataset, [*features, *labels], CHURN_LABELS),
        ONLINE_FEATURES: same_columns(
            online_table(groups),
            [*features, (CHURN_PREDICTIONS, PREDICTION_COLUMNS)],
            CHURN_PREDICTIONS,
        ),
    }


def _columns_of(table: Table, found: Lineage) -> dict[str, Sources]:
    return {name: found.get(name, []) for name in table.column_names}


def lineage_metadata(groups: Groups, tables: Mapping[str, Table]) -> dict[str, dict[str, Any]]:
    """The lineage of each table that has one: as Dagster keeps it, and as a table for people.

    The open-source UI does not draw column lineage.
    """
    return {table: _metadata(lineage) for table, lineage in lineages(groups, tables).items()}


def _metadata(lineage: Lineage) -> dict[str, Any]:
    deps = {
        column: [dg.TableColumnDep(dg.AssetKey(table), name) for table, name in sources]
        for column, sources in lineage.items()
    }
    rows = [
        [column, ", ".join(f"{table}.{name}" for table, name in sources)]
        for column, sources in lineage.items()
    ]
    return {
        "dagster/column_lineage": dg.TableColumnLineage(deps),
        "lineage": dg.MetadataValue.md(markdown(["column", "made from"], rows)),
    }
