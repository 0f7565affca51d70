"""Source `files`: Parquet, CSV or JSON lines in one folder, named `events*`, `customers*`, ….

Anything that DuckDB reads, gzip included, also under `s3://` where its httpfs extension is
installed. Files of a table are read in the order of their names, Parquet before CSV before JSON.
CSV and JSON values are taken as text and parsed by `raw`, so one bad value never changes the type
of a column. Known limit: an unquoted JSON number passes through a double, so it is exact to 15
digits.
"""

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.sources.source import SourceTable, number_as_text, require_columns
from churn_assets.stores.sql import identifier, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from churn_assets.sources.tables import RawTable

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
        union = _union(relations)
        found = column_names(connection, union)
        require_columns(table.required_columns, found, f"{self.folder}/{table.source_name}*")
        ours = set(table.source_columns)
        return SourceTable(union, {c.lower(): identifier(c) for c in found if c.lower() in ours})

    def _files(
        self, connection: "DuckDBPyConnection", table: str, suffixes: tuple[str, ...]
    ) -> list[str]:
        # A bracket in the folder's name is no pattern.
        folder = self.folder.rstrip("/").replace("[", "[[]")
        pattern = f"{folder}/{table}*"
        rows = connection.execute(f"SELECT file FROM glob('{quoted(pattern)}')").fetchall()
        return sorted(file for (file,) in rows if file.lower().endswith(suffixes))


def relation(connection: "DuckDBPyConnection", file_format: str, files: list[str]) -> str:
    """A SQL relation over files of one format, text wherever the format has no types."""
    match file_format:
        case "parquet":
            return parquet_relation(connection, files)
        case "csv":
            return csv_relation(connection, files)
        case _:
            json = (
                f"read_json({_list(files)}, format = 'newline_delimited', maximum_depth = 1, "
                "sample_size = -1, union_by_name = true, hive_partitioning = false)"
            )
            names = [identifier(name) for name in column_names(connection, json)]
            text = ", ".join(f"{name} ->> '$' AS {name}" for name in names)
            return f"(SELECT {text} FROM {json})"


def _list(files: list[str]) -> str:
    return "[" + ", ".join(f"'{quoted(file)}'" for file in files) + "]"


def _union(relations: list[str]) -> str:
    """Rows of several relations, one after the other, with columns matched by name."""
    if len(relations) == 1:
        return relations[0]
    return f"({' UNION ALL BY NAME '.join(f'SELECT * FROM {r}' for r in relations)})"


def parquet_relation(connection: "DuckDBPyConnection", files: list[str]) -> str:
    """Parquet files with their types; where some have floating-point ids, these become text."""

    def call(files: list[str]) -> str:
        return f"read_parquet({_list(files)}, union_by_name = true, hive_partitioning = false)"

    relations = [_ids_as_text(connection, call([file])) for file in files]
    if relations == [call([file]) for file in files]:
        return call(files)
    return _union(relations)


def csv_relation(connection: "DuckDBPyConnection", files: list[str]) -> str:
    """CSV files as text. What is not UTF-8 is read as Latin-1, as spreadsheet programs save it."""
    import duckdb

    def call(files: list[str], encoding: str) -> str:
        return (
            f"read_csv({_list(files)}, all_varchar = true, header = true, union_by_name = true, "
            f"hive_partitioning = false, encoding = '{encoding}')"
        )

    by_encoding: dict[str, list[str]] = {"utf-8": [], "latin-1": []}
    for file in files:
        encoding = "utf-8"
        try:
            connection.execute(f"SELECT count(COLUMNS(*)) FROM {call([file], encoding)}")
        except duckdb.InvalidInputException as error:
            if "utf-8" not in str(error).lower() and "unicode" not in str(error).lower():
                raise
            encoding = "latin-1"
        by_encoding[encoding].append(file)
    return _union([call(files, encoding) for encoding, files in by_encoding.items() if files])


def _ids_as_text(connection: "DuckDBPyConnection", relation: str) -> str:
    """The relation with floating-point ids as text, so that they equal ids of other files."""
    columns = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    ids = [
        identifier(name)
        for name, dtype, *_ in columns
        if name.lower().endswith("_id") and dtype in ("DOUBLE", "FLOAT")
    ]
    if not ids:
        return relation
    replaced = ", ".join(f"{number_as_text(name)} AS {name}" for name in ids)
    return f"(SELECT * REPLACE ({replaced}) FROM {relation})"


def column_names(connection: "DuckDBPyConnection", relation: str) -> list[str]:
    """The columns of a relation."""
    return [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
