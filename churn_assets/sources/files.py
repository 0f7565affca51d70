"""Source `files`: Parquet, CSV or JSON lines in one folder, named `events*`, `customers*`, ….

Anything that DuckDB reads, gzip included, also under `s3://` where its httpfs extension is
installed. Several files of a table are read in the order of their names. CSV and JSON values are
taken as text and parsed by `raw`, so one bad value never changes the type of a column.
"""

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.sources import SourceTable, require_columns
from churn_assets.stores.offline import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from churn_assets.raw import RawTable

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "json": (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz"),
}


@dataclass(frozen=True)
class Files:
    """Files of one folder or bucket prefix."""

    folder: str

    def read(
        self,
        connection: "DuckDBPyConnection",
        table: "RawTable",
        begin: dt.datetime,
        end: dt.datetime,
    ) -> SourceTable | None:
        relations = [
            relation(connection, file_format, files)
            for file_format, suffixes in FORMATS.items()
            if (files := self._files(connection, table.source_name, suffixes))
        ]
        if not relations:
            if not table.required:
                return None
            raise FileNotFoundError(
                f"There are no {table.source_name} files in {self.folder}: "
                f"{table.source_name}*.parquet, *.csv or *.jsonl is needed. "
                "Put them there or set CHURN_INPUT_DIR."
            )
        union = f"({' UNION ALL BY NAME '.join(f'SELECT * FROM {r}' for r in relations)})"
        found = column_names(connection, union)
        require_columns(table.required_columns, found, f"{self.folder}/{table.source_name}*")
        ours = set(table.source_columns)
        return SourceTable(union, {c.lower(): f'"{c}"' for c in found if c.lower() in ours})

    def _files(
        self, connection: "DuckDBPyConnection", table: str, suffixes: tuple[str, ...]
    ) -> list[str]:
        pattern = f"{self.folder.rstrip('/')}/{table}*"
        rows = connection.execute(f"SELECT file FROM glob('{quoted(pattern)}')").fetchall()
        return sorted(file for (file,) in rows if file.lower().endswith(suffixes))


def relation(connection: "DuckDBPyConnection", file_format: str, files: list[str]) -> str:
    """A SQL relation over files of one format, text wherever the format has no types."""
    listed = "[" + ", ".join(f"'{quoted(file)}'" for file in files) + "]"
    match file_format:
        case "parquet":
            return f"read_parquet({listed}, union_by_name = true, hive_partitioning = false)"
        case "csv":
            csv = f"read_csv({listed}, all_varchar = true, header = true, union_by_name = true"
            return f"{csv}{csv_encoding(connection, csv)})"
        case _:
            json = (
                f"read_json({listed}, format = 'newline_delimited', maximum_depth = 1, "
                "sample_size = -1, union_by_name = true)"
            )
            text = ", ".join(f'"{c}" ->> \'$\' AS "{c}"' for c in column_names(connection, json))
            return f"(SELECT {text} FROM {json})"


def csv_encoding(connection: "DuckDBPyConnection", call: str) -> str:
    """The encoding argument of a `read_csv` call: none for UTF-8, else Latin-1.

    Files saved by spreadsheet programs often are Latin-1, in which every byte is a character.
    """
    import duckdb

    try:
        connection.execute(f"SELECT count(COLUMNS(*)) FROM {call})")
    except duckdb.InvalidInputException as error:
        if "utf-8" not in str(error).lower() and "unicode" not in str(error).lower():
            raise
        return ", encoding = 'latin-1'"
    return ""


def column_names(connection: "DuckDBPyConnection", relation: str) -> list[str]:
    """The columns of a relation."""
    return [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
