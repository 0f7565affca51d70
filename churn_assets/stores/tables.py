"""What a table of the offline store is: its columns, key and partition column, declared once.

The DuckDB schema, the sort order of the files, Dagster's column metadata and the docs follow from
these declarations. An empty partition still has the full schema.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg


@dataclass(frozen=True)
class Column:
    """One column: DuckDB type, unit (empty for none), what it says, and its limits if it has any.

    A value beyond a limit holds the partition back.
    """

    name: str
    dtype: str
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None

    def as_dagster(self) -> dg.TableColumn:
        unit = f" [{self.unit}]" if self.unit else ""
        return dg.TableColumn(self.name, self.dtype, description=self.description + unit)


CUSTOMER_ID = Column("customer_id", "VARCHAR", "The customer")
CUTOFF = Column("cutoff", "DATE", "The moment at which we pretend to stand: its UTC midnight")
SLICE = Column("slice", "DATE", "The cadence period of raw data that the row belongs to")


@dataclass(frozen=True)
class Table:
    """A table of the offline store.

    Args:
        name: Also the asset's name and the folder's.
        key: The primary key without the partition column; files are sorted by it.
        columns: All columns in file order, the partition column included.
        partitioned_by: `slice`, `cutoff`, or None for a table without partitions.
        refuse_shrinking: Whether a partition may be replaced by one with fewer rows only on demand.
        optional_key: A column of the key that may be missing.
        known_day: Of a table that is read at cutoffs, SQL for the day on which a row became known.
        replaced_day: And for the one from which on it no longer counts.
        moment: SQL for the newest moment that a row tells of, in microseconds since 1970: it lies
            within the row's slice. Of tables that are partitioned by slice.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    partitioned_by: str | None = "cutoff"
    refuse_shrinking: bool = False
    optional_key: str | None = None
    moment: str | None = None
    known_day: str | None = None
    replaced_day: str | None = None

    @property
    def column_names(self) -> list[str]:
        return [column.name for column in self.columns]

    def typed(self, query: str) -> str:
        """`query` with exactly this table's columns, in order and cast to their types."""
        columns = ", ".join(f"CAST({c.name} AS {c.dtype}) AS {c.name}" for c in self.columns)
        return f"SELECT {columns} FROM ({query}) AS untyped"

    def empty(self) -> str:
        """A query with this table's columns and no rows."""
        columns = ", ".join(f"CAST(NULL AS {c.dtype}) AS {c.name}" for c in self.columns)
        return f"SELECT {columns} WHERE false"

    def as_dagster(self) -> dg.TableSchema:
        return dg.TableSchema(
            columns=[column.as_dagster() for column in self.columns],
            constraints=dg.TableConstraints(
                other=[f"primary key ({', '.join(self.primary_key)})"],
            ),
        )

    @property
    def primary_key(self) -> tuple[str, ...]:
        if self.partitioned_by is None or self.partitioned_by in self.key:
            return self.key
        return (*self.key, self.partitioned_by)


def cutoff_table(name: str, columns: Sequence[Column]) -> Table:
    """A table with one row per customer of the population and cutoff."""
    return Table(name, ("customer_id",), (CUSTOMER_ID, CUTOFF, *columns))


def sql_version(*texts: str) -> str:
    """The code version of an asset whose code is SQL: a digest that ignores white space."""
    return hashlib.sha256(" ".join(" ".join(texts).split()).encode()).hexdigest()[:12]
