"""Source `files`: Parquet, CSV, JSON or workbooks in one folder, named `events*`, `customers*`, ….

CSV and JSON values are taken as text and parsed by `history`, so one bad value never changes the
type of a column. Files of a table are read in the order of their names.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.sources.input_files import InputFile, Unread, input_files, named_after
from churn_assets.sources.reading import columns_of, own_columns, read_files
from churn_assets.sources.source import SourceTable, missing_columns, require_columns
from churn_assets.sources.tables import RAW_TABLES, RawTable
from churn_assets.stores.sql import identifier

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


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
    ) -> SourceTable | None:
        files, unread = self.files(table)
        if not files:
            if not table.required:
                return None
            raise FileNotFoundError(
                f"There are no {table.source_name} files in {self.folder}: "
                f"{table.source_name}*.parquet, *.csv, *.jsonl or *.xlsx is needed"
                f"{_seen(unread)}. Put them there or set CHURN_INPUT_DIR."
            )
        relation = read_files(connection, files, f"{table.source_name}_text")
        found = own_columns(connection, relation)
        require_columns(table.required_columns, found, f"{self.folder}/{table.source_name}*")
        ours = set(table.source_columns)
        return SourceTable(
            relation,
            {c.lower(): identifier(c) for c in found if c.lower() in ours},
            located=True,
            unread=tuple(unread),
        )

    def files(self, table: RawTable) -> tuple[list[InputFile], list[Unread]]:
        """The files of a table, and those that are not read; of the required table all of those.

        Raises:
            FileNotFoundError: The folder is not there.
        """
        found, unread = input_files(Path(self.folder))
        files = list[InputFile]()
        for file in found:
            match named_after(file, table.source_name):
                case True:
                    files.append(file)
                case None:
                    if lacking := missing_columns(table.required_columns, columns_of(file)):
                        unread.append(Unread(file.name, f"it has no column {', '.join(lacking)}"))
                    else:
                        files.append(file)
        if table.required:
            tables = [raw_table.source_name for raw_table in RAW_TABLES]
            strange = [f for f in found if all(named_after(f, name) is False for name in tables)]
            reason = f"it is named after none of {', '.join(tables)}"
            unread += [Unread(file.name, reason) for file in strange]
        else:  # what is nobody's is told once
            unread = [u for u in unread if u.name.lower().startswith(table.source_name)]
        return files, sorted(unread, key=lambda file: file.name)


def _seen(unread: list[Unread]) -> str:
    shown = "; ".join(f"{file.name} ({file.reason})" for file in unread[:5])
    return f". Not read: {shown}" if unread else ""
