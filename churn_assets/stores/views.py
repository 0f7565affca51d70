"""Views over the offline store in a DuckDB database: for people and notebooks, never for runs.

`<home>/offline_store.duckdb` goes along with its folder: opened by itself, it reads the files that
lie beside it. DuckDB resolves a relative path against the working directory, and what it says of a
database's own place cannot be an argument of `read_parquet`. But its default folder for temporary
files is named after the database that was opened. Where that says nothing, because the database
is attached to another one or the folder is set, the views read where they were written. Every view
checks that its database lies where it reads, and fails instead of giving rows of another folder.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.sql import quoted
from churn_assets.stores.staging import staged
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DATABASE = "offline_store.duckdb"


def write_views(store: OfflineStore) -> None:
    """Write the DuckDB database that holds a view per table, for people and notebooks.

    The file is made beside and replaced in one step, so a reader that has it open keeps its own.
    """
    import duckdb

    home = store.home.resolve()  # as DuckDB says where a database lies
    with staged(store.home) as made:
        with duckdb.connect(str(made)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for table in store.tables:
                body = _view(store, table, _folder(home))
                guarded = f"FROM ({body}) WHERE {_lies_there(home, table)}"
                connection.execute(f"CREATE VIEW {table} AS {guarded}")
                connection.execute(f"COMMENT ON VIEW {table} IS '{quoted(home)}'")
        made.replace(store.home / DATABASE)


def renew_views(store: OfflineStore) -> None:
    """Write the database anew where it is of another place, as in a folder that was moved."""
    import duckdb

    path = store.home / DATABASE
    if not path.exists():
        return
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            places = connection.sql(
                "SELECT DISTINCT comment FROM duckdb_views() WHERE NOT internal"
            ).fetchall()
    except duckdb.Error:  # damaged, or open in another program, which keeps its own
        places = []
    if places != [(str(store.home.resolve()),)]:
        write_views(store)


def create_views(connection: "DuckDBPyConnection", store: OfflineStore) -> None:
    """A view per table over whatever partitions it has, empty but typed where it has none.

    A declared column is NULL in partitions that were made before it was declared.

    Raises:
        UnreadableFile: A file is damaged.
    """
    for table in store.tables:
        body = _view(store, table, f"'{quoted(store.home)}'")
        connection.execute(f"CREATE OR REPLACE VIEW {table} AS {body}")


def _view(store: OfflineStore, name: str, home: str) -> str:
    """The query of a table's view; `home` is SQL for the state folder."""
    table = store.tables[name]
    pattern = f"{name}/{'*/' if table.partitioned_by else ''}part-0.parquet"
    if not any(store.root.glob(pattern)):
        return table.empty()
    store.unchecked(table)  # its error says how to mend a damaged file
    files = f"{home} || '/{quoted(store.root.relative_to(store.home))}/{pattern}'"
    return (
        f"SELECT {', '.join(table.column_names)} FROM ({table.empty()} UNION ALL BY NAME "
        f"FROM read_parquet({files}, hive_partitioning = false, union_by_name = true))"
        f"{_within_history(store, table)}"
    )


def _within_history(store: OfflineStore, table: Table) -> str:
    """SQL that leaves out partitions which do not belong to history; see `Catalog.belongs`."""
    first, end = store.catalog().bounds(table.name) if store.catalog else ("", "")
    conditions = [
        f"{table.partitioned_by} {operator} DATE '{bound}'"
        for operator, bound in ((">=", first), ("<", end))
        if table.partitioned_by and bound
    ]
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _folder(home: Path) -> str:
    """SQL for the folder of the database that is open; `home` where it does not say."""
    temporary, suffix = "current_setting('temp_directory')", f"/{DATABASE}.tmp"
    return (
        f"(CASE WHEN {temporary} LIKE '%{suffix}' THEN left({temporary}, -{len(suffix)}) "
        f"ELSE '{quoted(home)}' END)"
    )


def _lies_there(home: Path, view: str) -> str:
    """SQL that fails where a database with this view lies elsewhere than the view reads."""
    return f"""(
        SELECT CASE WHEN count(*) = 0 THEN true ELSE error(
            max(database.path) || ' was written for {quoted(home)}, and attached to another '
            || 'database it cannot tell that it lies elsewhere. Open it by itself; or run '
            || '`churn sql` with CHURN_HOME set to its folder, which writes it anew, and attach '
            || 'it to a database in memory.'
        ) END
        FROM duckdb_views() AS view JOIN duckdb_databases() AS database USING (database_oid)
        WHERE view.view_name = '{view}' AND view.comment = '{quoted(home)}'
            AND database.path <> {_folder(home)} || '/{DATABASE}'
    )"""
