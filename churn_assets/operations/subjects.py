"""Subjects: partitions of a table as the rules of a contract see them, and how a rule asks.

What the rules are is in `operations.contracts`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Scan
from churn_assets.stores.sql import quoted
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Partitions and what was found of each, in words.
Findings = Iterator[tuple[str | None, str]]


def rows_of(files: Sequence[Path]) -> str:
    """A relation of the rows of partitions' files, with the partition's key as `part`."""
    paths = ", ".join(f"'{quoted(path)}'" for path in files)
    # By name, because the first file's whole numbers would round the others' fractions.
    return (
        f"(SELECT * EXCLUDE (_path), regexp_extract(_path, '=([0-9-]+)/[^/]*$', 1) AS part "
        f"FROM read_parquet([{paths}], hive_partitioning = false, union_by_name = true, "
        f"filename = '_path'))"
    )


@dataclass(frozen=True)
class Subject:
    """Partitions of a table, as a rule sees them.

    Args:
        store: To read other tables.
        calendar: Where partitions lie.
        table: The table.
        keys: The partitions; `None` for a whole table.
        connection: To ask with.
    """

    store: OfflineStore
    calendar: Calendar
    table: Table
    keys: Sequence[str | None]
    connection: "DuckDBPyConnection"

    @property
    def rows(self) -> str:
        """A relation of the rows with at least the declared columns, and with `part`."""
        files = tuple(self.store.path(self.table, key) for key in self.keys)
        return Scan(self.table, files).completed(rows_of(files))

    @property
    def cutoffs(self) -> list[str]:
        return [key for key in self.keys if key is not None]

    def slices(self, table: Table, before: str) -> Scan:
        """A rollup's files of the slices that begin before a cutoff."""
        return self.store.unchecked(table, self.store.earlier(table, before))

    def only(self, keys: Sequence[str | None]) -> "Subject":
        return replace(self, keys=keys)


def asked(query: Callable[[Subject], str]) -> Callable[[Subject], Findings]:
    """What a query finds.

    It selects `part` and what was found, one column per kind of finding: a count, or words. 0,
    NULL, and a partition without a row have passed.
    """

    def find(subject: Subject) -> Findings:
        for row in subject.connection.sql(query(subject)).to_arrow_table().to_pylist():
            key = row.pop("part") or None
            if findings := [f"{what}: {found}" for what, found in row.items() if found]:
                yield key, ", ".join(findings)

    return find


def cleared(subject: Subject, conditions: Mapping[str, str]) -> dict[str, set[str | None]]:
    """The partitions of which a condition holds, by its name: one pass over the rows for all.

    Args:
        subject: The partitions.
        conditions: Aggregates over the rows of a partition. They may use `ascends`: whether the
            key is greater than that of the row before, in the order of the file, where NULL is the
            greatest value. It is not true of the first row of a partition.
    """
    if not conditions:
        return {}
    key = f"ROW({', '.join(subject.table.key)})"
    # Whatever the order of the rows is, no two keys are equal where each is greater than the one
    # before. Where rows of partitions alternated, each return to one would be a row that does not
    # ascend.
    rows = subject.connection.execute(f"""
        SELECT part, {", ".join(f"coalesce({held}, false)" for held in conditions.values())}
        FROM (
            SELECT *, part = lag(part) OVER () AND {key} > lag({key}) OVER () AS ascends
            FROM {subject.rows}
        ) GROUP BY part
    """).fetchall()
    return {
        name: {part or None for part, *held in rows if held[number]}
        for number, name in enumerate(conditions)
    }
