"""Extents: between which values an expression lies in each of some files.

A file is read once in a process, by its content: the rules of every table and cutoff ask for the
same files. What is kept is three words per file and expression.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.stores.digests import file_digest
from churn_assets.stores.parquet import row_count
from churn_assets.stores.partitions import Scan
from churn_assets.stores.sql import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# The least and the greatest value; None where there is no value.
Extent = tuple[int | None, int | None]

_seen: dict[tuple[str, str], Extent] = {}


def extents(connection: "DuckDBPyConnection", scan: Scan, expression: str) -> dict[Path, Extent]:
    """The extent of an integer expression over the rows of each file of a scan.

    Raises:
        FileNotFoundError: A file is not there.
        UnreadableFile: One is damaged.
    """
    contents = {path: file_digest(path) for path in scan.files}
    unseen = [path for path, content in contents.items() if (content, expression) not in _seen]
    if unseen:
        read = _read(connection, Scan(scan.table, tuple(unseen)), expression)
        _seen.update({(contents[path], expression): extent for path, extent in read.items()})
    return {path: _seen[content, expression] for path, content in contents.items()}


def _read(connection: "DuckDBPyConnection", scan: Scan, expression: str) -> dict[Path, Extent]:
    files = ", ".join(f"'{quoted(path)}'" for path in scan.files)
    rows = connection.execute(
        f"SELECT _path, min({expression}), max({expression}) FROM read_parquet([{files}], "
        "hive_partitioning = false, union_by_name = true, filename = '_path') GROUP BY _path"
    ).fetchall()
    found: dict[str, Extent] = {path: (least, greatest) for path, least, greatest in rows}
    return {path: found[str(path)] if row_count(path) else (None, None) for path in scan.files}
