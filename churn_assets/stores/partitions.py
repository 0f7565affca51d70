"""What passes between assets and the offline store: the rows to write, and the files to read.

Both are SQL; no rows pass through Python.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_assets.stores.parquet import footer, row_count
from churn_assets.stores.sql import quoted
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# What is to be shown of the rows of a partition.
Describe = Callable[["DuckDBPyConnection", "Scan"], Mapping[str, Any]]


@dataclass(frozen=True)
class Query:
    """What an asset returns: the rows of its partitions.

    Args:
        rows: One SELECT that gives the rows of all partitions, or one for each partition, by key.
        connection: Set where the statements read temporary tables of an open connection.
        describe: What Dagster shows of a partition beside its counts, from a connection and the
            relation of its rows.
        notes: What the footer of a partition says beside its provenance, by key.
    """

    rows: "str | Mapping[str, str]"
    connection: "DuckDBPyConnection | None" = None
    describe: "Describe | None" = None
    notes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scan:
    """What an asset receives: the files of the upstream partitions, as SQL."""

    table: Table
    files: tuple[Path, ...]

    @property
    def sql(self) -> str:
        """A relation over the files with at least the declared columns.

        A column is NULL in files that were made before it was declared. Types are those that hold
        the values of all files: an older file may have whole numbers where newer ones have
        fractions, and the first file's type would round them.
        """
        if not self.files:
            return f"({self.table.empty()})"
        files = ", ".join(f"'{quoted(path)}'" for path in self.files)
        return self.completed(
            f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"
        )

    def completed(self, rows: str) -> str:
        """A relation of the files' rows, with the declared columns that a file may lack."""
        declared = set(self.table.column_names)
        if all(declared <= footer(path).columns for path in self.files):
            return rows
        return f"({self.table.empty()} UNION ALL BY NAME FROM {rows})"

    def of(self, key: str) -> "Scan":
        """The one partition of a key."""
        return replace(self, files=tuple(path for path in self.files if key_of(path) == key))

    def before(self, cutoff: dt.date, days: float) -> "Scan":
        """The partitions that may have rows of `[cutoff - days, cutoff)`; of a table of slices."""
        begin = "" if days == float("inf") else (cutoff - dt.timedelta(days=days)).isoformat()
        return self._within(begin, cutoff.isoformat())

    def after(self, cutoff: dt.date, days: int) -> "Scan":
        """The partitions that may have rows of `[cutoff, cutoff + days)`; of a table of slices."""
        return self._within(cutoff.isoformat(), (cutoff + dt.timedelta(days=days)).isoformat())

    def _within(self, begin: str, end: str) -> "Scan":
        following = [*map(key_of, self.files[1:]), "9999"]
        return replace(
            self,
            files=tuple(
                path
                for path, after in zip(self.files, following, strict=False)
                if key_of(path) < end and after > begin
            ),
        )

    def notes(self, name: str) -> dict[str, dict[str, str]]:
        """What the footers say under a name, by key; for what is made of each partition."""
        said = {key_of(path): footer(path).notes for path in self.files}
        return {key: {name: notes[name]} for key, notes in said.items() if name in notes}

    @property
    def rows(self) -> int:
        return sum(row_count(path) for path in self.files)


def key_of(path: Path) -> str:
    """The key of the partition that a file is; empty for a whole table."""
    return path.parent.name.partition("=")[2]


@dataclass(frozen=True)
class Partition:
    """A published partition."""

    path: Path
    rows: int
    bytes: int
