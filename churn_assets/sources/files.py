"""Source `files`: Parquet, CSV, JSON or workbooks in one folder, named `events*`, `customers*`, ….

A query in the folder, such as `events.sql`, stands for the files that are named after its table.
CSV and JSON values are taken as text and parsed by `history`, so one bad value never changes the
type of a column. Files of a table are read in the order of their names.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.sources.input_files import InputFile, Unread, in_parts, input_files, named_after
from churn_assets.sources.presets import preset_for
from churn_assets.sources.queries import QueryError, SourceQuery
from churn_assets.sources.reading import columns_of, own_columns, read_files
from churn_assets.sources.source import Incomplete, SourceTable, missing_columns, require_columns
from churn_assets.sources.tables import RAW_TABLES, RawTable
from churn_assets.sources.text import UnreadableInput
from churn_assets.stores.sql import identifier

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True)
class TableFiles:
    """What a folder has of a table.

    Args:
        folder: All files of the folder that can be read.
        query: The query of the table, if there is one.
        files: The files that are read for it, by the query or because of their names.
        unread: Of the required table, all files of the folder that nothing reads: told once.
    """

    folder: Sequence[InputFile]
    query: SourceQuery | None
    files: Sequence[InputFile]
    unread: Sequence[Unread]


@dataclass(frozen=True)
class Files:
    """The files of one folder and the folders in it."""

    folder: str

    def read(
        self,
        connection: "DuckDBPyConnection",
        table: RawTable,
        begin: dt.datetime,
        end: dt.datetime,
        only: Sequence[InputFile] | None = None,
    ) -> SourceTable | None:
        found = self.files(table)
        unread = tuple(found.unread)
        if found.query:
            window = (begin, end)
            try:
                result = found.query.read(connection, found.folder, table, *window, only)
            except QueryError:  # others may have the columns
                if only is None:
                    raise
                result = found.query.read(connection, found.folder, table, *window)
            return replace(result, unread=unread)
        if not found.files:
            if not table.required:
                return None
            raise FileNotFoundError(
                f"There are no {table.source_name} files in {self.folder}: "
                f"{table.source_name}*.parquet, *.csv, *.jsonl or *.xlsx is needed"
                f"{_seen(unread)}. {_advice(found, 'Put them there or set CHURN_INPUT_DIR.')}"
            )
        files = found.files if only is None else only
        rows = read_files(connection, files, f"{table.source_name}_text")
        columns = own_columns(connection, rows.sql)
        missing = missing_columns(table.required_columns, columns)
        if missing and {f.name for f in files} < {f.name for f in found.files}:
            raise Incomplete  # others may have them
        if missing:  # advice reads every file
            advice = _advice(
                found, "Rename the column in the files, or write a query: docs/own-data.md."
            )
            where = f"{self.folder}/{table.source_name}*"
            require_columns(table.required_columns, columns, where, advice)
        return SourceTable(
            rows.sql,
            {c.lower(): identifier(c) for c in columns if c.lower() in table.source_columns},
            located=True,
            unread=unread,
            is_by_file=True,
            rows=rows,
        )

    def input_files(self, table: RawTable) -> Sequence[InputFile]:
        found = self.files(table)
        if found.query:
            return found.files
        return [in_parts(file) for file in found.files]

    def files(self, table: RawTable) -> TableFiles:
        """The files of a table.

        Raises:
            FileNotFoundError: The folder is not there.
        """
        found, unreadable = self.listed()
        queries = {raw: self.query(raw) for raw in RAW_TABLES}
        of_queries = [file for query in queries.values() if query for file in query.files(found)]
        query = queries[table]
        if not table.required:
            files = query.files(found) if query else _named_after(table, found)[0]
            return TableFiles(found, query, files, ())
        unread = {file.name: file.reason for file in unreadable}
        for raw in RAW_TABLES:  # a query is no data
            unread.pop(f"{raw.source_name}.sql", None)
        tables = [raw.source_name for raw in RAW_TABLES]
        nobodys = f"it is named after none of {', '.join(tables)}"
        unread |= {
            f.name: nobodys for f in found if all(named_after(f, t) is False for t in tables)
        }
        files = query.files(found) if query else []
        for raw, its_query in queries.items():
            its_files, lacking = _named_after(raw, found)
            unread |= {file.name: file.reason for file in lacking}
            if its_query:
                unread |= {file.name: f"{its_query.name} does not read it" for file in its_files}
            elif raw is table:
                files = its_files
        for file in of_queries:
            unread.pop(file.name, None)
        return TableFiles(found, query, files, [Unread(*file) for file in sorted(unread.items())])

    def listed(self) -> tuple[list[InputFile], list[Unread]]:
        """All files of the folder: see `input_files.input_files`."""
        return input_files(Path(self.folder))

    def looked_at(self) -> "Files":
        return LookedAt(self.folder)

    def query(self, table: RawTable) -> SourceQuery | None:
        """The query of a table; None where there is none.

        Raises:
            UnreadableInput: It is no text.
        """
        path = Path(self.folder) / f"{table.source_name}.sql"
        if not path.is_file():
            return None
        try:
            return SourceQuery(path.name, path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UnreadableInput(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from None


@dataclass(frozen=True)
class LookedAt(Files):
    """The files of a folder as one look finds them, for all tables: a folder may hold thousands."""

    tables: dict[str, TableFiles] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def found(self) -> tuple[list[InputFile], list[Unread]]:
        return super().listed()

    def listed(self) -> tuple[list[InputFile], list[Unread]]:
        return self.found

    def files(self, table: RawTable) -> TableFiles:
        if table.source_name not in self.tables:
            self.tables[table.source_name] = super().files(table)
        return self.tables[table.source_name]


def _advice(found: TableFiles, otherwise: str) -> str:
    """What to do: the preset that reads a file of the folder, if one does."""
    for file in found.folder:
        try:
            name = preset_for(columns_of(file))
        except UnreadableInput:
            continue
        if name:
            return f"{file.name} looks like {name}: `churn init {name}` writes a query for it."
    return otherwise


def _named_after(
    table: RawTable, found: Sequence[InputFile]
) -> tuple[list[InputFile], list[Unread]]:
    """The files that are named after a table, and those that may be and lack its columns."""
    files, lacking = list[InputFile](), list[Unread]()
    for file in found:
        named = named_after(file, table.source_name)
        if named is None and (names := missing_columns(table.required_columns, columns_of(file))):
            lacking.append(Unread(file.name, f"it has no column {', '.join(names)}"))
        elif named is not False:
            files.append(file)
    return files, lacking


def _seen(unread: Sequence[Unread]) -> str:
    shown = "; ".join(f"{file.name} ({file.reason})" for file in unread[:5])
    return f". Not read: {shown}" if unread else ""
