"""What a source is: something that names relations. It neither validates nor filters rows."""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from churn_assets.sources.input_files import InputFile, Part, Unread
from churn_assets.stores.sql import utc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from churn_assets.sources.tables import RawTable


# A screen is not filled with the names of files.
MOST_NAMED = 10


@dataclass(frozen=True)
class Window:
    """The times of rows that are asked for: `[begin, end)`, and whether those without a time are.

    Args:
        begin: None for all rows before `end`.
        end: None for all rows from `begin` on.
        untimed: Whether rows without a usable time are asked for as well.
    """

    begin: dt.datetime | None
    end: dt.datetime | None
    untimed: bool = False

    def sql(self, column: str, dtype: str) -> str:
        """The predicate of a column of times, in a form that a scan of Parquet skips by.

        Args:
            column: SQL for the time.
            dtype: Its type in DuckDB, which is one of times.
        """
        bounds = [
            f"{column} {sign} CAST({utc(instant)} AS {dtype})"
            for sign, instant in ((">=", self.begin), ("<", self.end))
            if instant is not None
        ]
        within = " AND ".join(bounds) or "true"
        untimed = f"{column} IS NULL OR NOT isfinite({column})"
        return f"({within}) OR {untimed}" if self.untimed else within


class Rows(Protocol):
    """The rows of files, of which some can be read without the others: `reading.FileRows`."""

    @property
    def parts(self) -> "Mapping[str, Sequence[Part]]":
        """The parts that files were read in, by the key of what was to be read."""
        ...

    def within(self, names: Collection[str] | None, column: str, window: Window | None) -> str:
        """A relation with at least the rows of some files and times."""
        ...


@dataclass(frozen=True)
class SourceTable:
    """Rows as the source has them, and how they read as one of our tables.

    Args:
        relation: A SQL relation over the source's own columns, in the source's own order.
        columns: For each column of ours that the source has, a SQL expression over its columns.
        located: Whether rows have `_file`, `_line` and `_unreadable`: the file and line that they
            are from, and what is wrong with a line that is no row.
        unread: Files that look like the table's and are not read.
        remarks: What else is to be said, in words.
        query: The text of the query that gives the rows; empty where they are a file's own.
        is_by_file: Whether the rows of a file do not depend on other files.
        rows: The rows, where files can be scanned for some of them; None elsewhere.
        query_lines: SQL for `_file` and `_line` of all lines of the files that a query reads, where
            it tells which of them its rows are from; empty otherwise.
    """

    relation: str
    columns: Mapping[str, str]
    located: bool = False
    unread: tuple[Unread, ...] = ()
    remarks: tuple[str, ...] = ()
    query: str = ""
    query_lines: str = ""
    is_by_file: bool = False
    rows: Rows | None = None

    def warnings(self) -> list[str]:
        """Which files are not read, and what else is to be said."""
        warnings = [f"{f.name} is not read: {f.reason}" for f in self.unread[:MOST_NAMED]]
        if more := len(self.unread) - len(warnings):
            warnings.append(f"{more:,} more files are not read")
        return [*warnings, *self.remarks]

    @property
    def file(self) -> str:
        """SQL for the file of a row; empty where it is from none."""
        return "_file" if self.located else "''"

    @property
    def line(self) -> str:
        """SQL for the line of a row in its file, or its number."""
        return "_line" if self.located else "row_number() OVER ()"

    @property
    def part(self) -> str:
        """SQL for the part of the file that a row is of: see `input_files.part_key`."""
        return "_part" if self.rows is not None else self.file

    @property
    def row(self) -> str:
        """SQL for what tells a row from others of its file; a query may make several of a line."""
        return "_row" if self.query else self.line


class Incomplete(Exception):
    """Some of the files lack what others may have: all of them are needed."""


class NoContinuation(Exception):
    """A part of a file is not written as those before it: the file has to be read as a whole."""


class Source(Protocol):
    """A place that has raw rows."""

    def looked_at(self) -> "Source":
        """The source with the files that are there now, however often it is asked for them."""
        ...

    def input_files(self, table: "RawTable") -> "Sequence[InputFile]":
        """The files that the rows of `table` are from; none where they are from no file."""
        ...

    def read(
        self,
        connection: "DuckDBPyConnection",
        table: "RawTable",
        begin: dt.datetime,
        end: dt.datetime,
        only: Sequence[InputFile] | None = None,
    ) -> SourceTable | None:
        """The rows of `table`, or None where the source has no such table.

        Rows outside `[begin, end)` may be left out only by a source that makes them on demand, and
        rows of other files, or parts of files, than `only` where they do not depend on each other.

        Raises:
            FileNotFoundError: A required table is not there.
            ValueError: A required column is not there.
            Incomplete: Others than `only` are needed.
            NoContinuation: The whole of a file in `only` is.
        """
        ...


def number_as_text(number: str) -> str:
    """SQL for the text of a floating-point value: whole numbers without a fraction, NaN as NULL.

    Ids become floating-point when a tool has stored them beside missing ones.
    """
    return (
        f"CASE WHEN isfinite({number}) AND {number} = trunc({number}) AND abs({number}) < 1e15 "
        f"THEN CAST(CAST({number} AS BIGINT) AS VARCHAR) "
        f"WHEN NOT isnan({number}) THEN CAST({number} AS VARCHAR) END"
    )


def missing_columns(required: Set[str], found: Iterable[str]) -> list[str]:
    """The required columns that are not among those found, whatever their case."""
    return sorted(required - {name.lower() for name in found})


def shown_columns(found: Sequence[str]) -> str:
    """The columns of a source as messages list them."""
    return ", ".join([*found[:30], *(["…"] if len(found) > 30 else [])]) or "none"


def require_columns(required: Set[str], found: list[str], where: str, mend: str) -> None:
    """Refuse a source that lacks a column, naming it and the columns found.

    Args:
        required: The columns that rows need.
        found: The columns that there are.
        where: Names the source.
        mend: What to do about it.

    Raises:
        ValueError: A required column is not there.
    """
    if missing := missing_columns(required, found):
        raise ValueError(
            f"{where} lacks the required column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}. Columns found: {shown_columns(found)}. "
            f"{mend}"
        )
