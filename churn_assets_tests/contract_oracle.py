"""Small partitions, and what each rule of a data contract finds of them, asked by itself."""

import datetime as dt
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.features.queries import population
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.operations.gate import audit
from churn_assets.operations.subjects import Subject
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import copy_to
from churn_assets.stores.tables import Column, Table
from churn_assets.training_data.labels import CHURN_LABELS
from churn_assets_tests.conftest import Row, query, utc_connection

CALENDAR = Calendar(dt.date(2025, 1, 1), dt.datetime(2025, 5, 1, tzinfo=dt.UTC), lookback_days=31)
SLICES = ["2025-01-01", "2025-02-01", "2025-03-01"]
CUTOFFS = ["2025-02-01", "2025-03-01"]
later = itertools.count(1)


@cache
def connection() -> duckdb.DuckDBPyConnection:
    """One for all: to open another takes longer than what is asked of it."""
    opened = utc_connection()
    opened.execute("SET disabled_optimizers = 'statistics_propagation'")
    return opened


class Store(OfflineStore):
    """An offline store without a gate."""

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        yield connection()


def store_of(home: Path, *tables: Table) -> Store:
    return Store(home, {table.name: table for table in tables})


def write(store: OfflineStore, table: Table, key: str, rows: Sequence[Row], **types: str) -> Path:
    """Replace a partition by rows in the given order; a column that a row lacks is NULL.

    Args:
        types: Types of columns that the file has instead of the declared ones.
    """
    columns = [(c.name, types.get(c.name, c.dtype)) for c in table.columns]
    casts = ", ".join(f"CAST({name} AS {dtype}) AS {name}" for name, dtype in columns)
    values = ", ".join(
        f"({', '.join([str(i), *(_literal(row.get(name)) for name, _ in columns)])})"
        for i, row in enumerate(rows)
    )
    nothing = f"({', '.join(['NULL'] * (len(columns) + 1))})"
    names = ", ".join(["i", *(name for name, _ in columns)])
    where = "true" if rows else "false"
    path = store.path(table, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    select = (
        f"SELECT {casts} FROM (VALUES {values or nothing}) AS rows ({names}) WHERE {where} "
        "ORDER BY i"
    )
    connection().execute(copy_to(path, select, {}))
    # No two writes are at the same time, however quick they are.
    os.utime(path, (next(later), next(later)))
    return path


def _literal(value: Any) -> str:
    return "NULL" if value is None else f"'{value}'"


# What a rule finds, asked by itself: the words of a verdict


def alone(store: OfflineStore, table: Table, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """What is found of partitions by one query per rule and partition."""
    found: dict[str, dict[str, str]] = {key: {} for key in keys}
    for key in keys:
        rows = f"read_parquet('{store.path(table, key)}', hive_partitioning = false)"
        for rule, question in _queries(store, table, key, rows).items():
            for row in query(question, connection()):
                if words := [f"{what}: {number}" for what, number in row.items() if number]:
                    found[key][rule] = ", ".join(words)
    return found


def _queries(store: OfflineStore, table: Table, key: str, rows: str) -> dict[str, str]:
    own = f"coalesce(CAST({table.partitioned_by} AS VARCHAR), '')"
    missing = " OR ".join(f"{c} IS NULL" for c in table.key if c != table.optional_key)
    queries = {
        "primary_key": f"""
            SELECT count(*) FILTER (WHERE copies > 1) AS "keys of several rows",
                count(*) FILTER (WHERE missing) AS "keys with a NULL",
                count(*) FILTER (WHERE strays) AS "keys of another partition"
            FROM (
                SELECT count(*) AS copies, bool_or({missing}) AS missing,
                    bool_or({own} <> '{key}') AS strays
                FROM {rows} GROUP BY {", ".join(table.key)}
            )
        """,
        "values": "SELECT "
        + ", ".join(
            f'count(*) FILTER (WHERE {" OR ".join(limits)}) AS "{column.name}"'
            for column in table.columns
            if (limits := _limits(column))
        )
        + f" FROM {rows}",
    }
    if table is CHURN_LABELS:
        earlier = store.earlier(DAILY_ACTIVITY, max(CUTOFFS))
        relation = store.unchecked(DAILY_ACTIVITY, earlier).sql
        queries["rows_equal_population"] = f"""
            WITH population AS ({population(relation, parse_key(key), CALENDAR.lookback_days)})
            SELECT count(*) FILTER (WHERE found.customer_id IS NULL) AS "customers without a row",
                count(*) FILTER (WHERE population.customer_id IS NULL) AS "customers too many"
            FROM population FULL JOIN (SELECT DISTINCT customer_id FROM {rows}) AS found
                ON found.customer_id = population.customer_id
        """
        queries["label_balance"] = f"""
            SELECT printf('%.1f %%', 100 * avg(churned)) AS "customers who churned" FROM {rows}
            HAVING avg(churned) NOT BETWEEN 0.01 AND 0.99
        """
    else:
        begin, end = (int(i.timestamp()) * 1_000_000 for i in CALENDAR.slice_window(key))
        since = "NULL" if key == SLICES[0] else begin
        queries["no_future_data"] = f"""
            SELECT count(*) FILTER (WHERE moment_us >= {end}) AS "rows of after the slice",
                count(*) FILTER (WHERE moment_us < {since}) AS "rows of before the slice"
            FROM {rows}
        """
    return queries


def _limits(column: Column) -> list[str]:
    return [
        *([f"NOT isfinite({column.name})"] if column.dtype == "DOUBLE" else []),
        *([f"{column.name} < {column.minimum}"] if column.minimum is not None else []),
        *([f"{column.name} > {column.maximum}"] if column.maximum is not None else []),
    ]


def found(store: OfflineStore, table: Table, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """What an audit finds of partitions, failures and warnings."""
    verdicts = audit(store, CALENDAR, table, keys)
    return {str(key): verdict.findings for key, verdict in verdicts.items()}


@contextmanager
def subject(store: OfflineStore, table: Table, keys: Sequence[str]) -> Iterator[Subject]:
    with store.connect() as connection:
        yield Subject(store, CALENDAR, table, keys, connection)
