"""Views over the offline store in a DuckDB database: for people and notebooks, never for runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.sql import quoted
from churn_assets.stores.staging import staged

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def write_views(store: OfflineStore, path: Path) -> None:
    """Write a DuckDB database that holds a view per table, for people and notebooks.

    The file is made beside and replaced in one step, so a reader that has it open keeps its own.
    """
    import duckdb

    with staged(store.home) as made:
        with duckdb.connect(str(made)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            create_views(connection, store)
        made.replace(path)


def create_views(connection: "DuckDBPyConnection", store: OfflineStore) -> None:
    """A view per table over whatever partitions it has, empty but typed where it has none.

    A declared column is NULL in partitions that were made before it was declared.

    Raises:
        UnreadableFile: A file is damaged.
    """
    for table in store.tables.values():
        depth = "*/" if table.partitioned_by else ""
        pattern = store.root / table.name / f"{depth}part-0.parquet"
        present = any((store.root / table.name).glob(f"{depth}part-0.parquet"))
        columns = ", ".join(table.column_names)
        body = table.empty()
        if present:
            store.unchecked(table)  # its error says how to mend a damaged file
            body = (
                f"SELECT {columns} FROM ({body} UNION ALL BY NAME FROM read_parquet("
                f"'{quoted(pattern)}', hive_partitioning = false, union_by_name = true))"
            )
        connection.execute(f"CREATE OR REPLACE VIEW {table.name} AS {body}")
