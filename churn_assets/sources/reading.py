"""Files as one relation: the rows of all of them, each with its file and line.

Text formats are read as text into a temporary table, Parquet is scanned where it lies. What is no
row is a row too, with nothing but `_unreadable`, so that whoever counts finds every line.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from churn_assets.sources.blocks import Cuts, blocks, blocks_of, member, written
from churn_assets.sources.input_files import InputFile, Part
from churn_assets.sources.rows import OF_TEXT, OURS, Block, unique_names
from churn_assets.sources.source import NoContinuation, Window, number_as_text
from churn_assets.sources.text import UnreadableInput
from churn_assets.stores.sql import identifier, quoted

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection


# Rows of text files that are inserted at once.
ROWS_PER_INSERT = 20_000


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files of equal columns and types.

    Args:
        files: Their names in the input folder, and what `read_parquet` calls them.
        rows: Their rows as SQL, where `{scan}` stands for a scan of files and `{where}` for what
            the scan leaves out.
        times: The type of each column of times as it lies in the file, by our relation's column.
    """

    files: Mapping[str, str]
    rows: str
    times: Mapping[str, str]

    def sql(self, names: Collection[str] | None, column: str, window: Window | None) -> str:
        """Rows of some of the files; see `FileRows.within`."""
        paths = [path for name, path in self.files.items() if names is None or name in names]
        where = ""
        if not paths:
            paths, where = list(self.files.values())[:1], "WHERE false"
        elif window and (dtype := self.times.get(column)):
            where = f"WHERE {window.sql(column, dtype)}"
        return self.rows.replace("{scan}", parquet_scan(paths)).replace("{where}", where)


@dataclass(frozen=True)
class FileRows:
    """The rows of files, of any formats.

    Args:
        parquet: Parquet files, scanned where they lie.
        text: The temporary table with the rows of all others; empty without any.
        parts: The parts that files were read in, by the key of what was to be read.
    """

    parquet: Sequence[ParquetFiles]
    text: str = ""
    parts: Mapping[str, Sequence[Part]] = field(default_factory=dict)

    @property
    def sql(self) -> str:
        """All rows as one relation, with the columns of the files and OURS."""
        return self.within(None, "", None)

    def within(self, names: Collection[str] | None, column: str, window: Window | None) -> str:
        """A relation of the same columns and types with at least the rows of some files and times.

        Args:
            names: The Parquet files to scan; None for all of them.
            column: The column of times, quoted, as `sql` has it.
            window: The times; None for all of them. Where a Parquet file has no times as such, all
                of its rows are there.
        """
        relations = [piece.sql(names, column, window) for piece in self.parquet]
        relations += [self.text] if self.text else []
        if len(relations) == 1:
            return relations[0]
        return f"({' UNION ALL BY NAME '.join(f'SELECT * FROM {r}' for r in relations)})"


def read_files(connection: "DuckDBPyConnection", files: Sequence[InputFile], name: str) -> FileRows:
    """The rows of files, with their columns and `_file`, `_line`, `_unreadable`.

    Args:
        connection: Keeps the rows of text files, in the temporary table `name`.
        files: Of any formats; their columns are matched by name.
        name: Of what is read.

    Raises:
        UnreadableInput: A file is damaged, or most of its lines are no rows.
        NoContinuation: A later part of a file has lines that are no rows.
    """
    parquet = [file for file in files if file.format == "parquet"]
    text = [file for file in files if file.format != "parquet"]
    pieces = parquet_files(connection, parquet)
    parts = _fill(connection, text, name) if text else {}
    return FileRows(pieces, name if text else "", parts)


def _fill(
    connection: "DuckDBPyConnection", files: Sequence[InputFile], name: str
) -> dict[str, list[Part]]:
    """The rows of text files as a temporary table; returns the parts that files were read in.

    Raises:
        UnreadableInput: A file is damaged, or most of its lines are no rows.
        NoContinuation: A later part of a file has lines that are no rows.
    """
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {name} "
        "(_file VARCHAR, _line BIGINT, _unreadable VARCHAR, _part VARCHAR)"
    )
    columns = {name: name for name in OF_TEXT}
    waiting, count = list["pa.Table"](), 0
    read: dict[str, list[Part]] = {}
    for file in map(member, files):
        good, bad = 0, list[str]()
        how = written(file)
        cuts = Cuts(file, how)
        for block in blocks_of(file, how):
            for column in block.columns:
                if column.lower() not in columns:
                    columns[column.lower()] = column
                    connection.execute(
                        f"ALTER TABLE {name} ADD COLUMN {identifier(column)} VARCHAR"
                    )
            rows = _as_arrow(file, block, cuts.key)
            waiting.append(rows.rename_columns([columns[c.lower()] for c in rows.column_names]))
            count += len(rows)
            if count >= ROWS_PER_INSERT:
                _insert(connection, name, waiting)
                count = 0
            good += len(block.lines)
            bad += [f"{file.name}:{row.line}: {row.why}" for row in block.unreadable]
            cuts.behind(block)
        if bad and file.part and file.part.begin:
            raise NoContinuation(file.name)
        if len(bad) > good:
            raise UnreadableInput(
                f"{file.name} cannot be read: {len(bad)} of its {good + len(bad)} lines are no "
                f"rows. The first: {bad[0]}. Mend the file, or take it out of the folder."
            )
        if file.part:
            read[file.key] = cuts.parts()
    _insert(connection, name, waiting)
    return read


def _insert(connection: "DuckDBPyConnection", name: str, waiting: "list[pa.Table]") -> None:
    """Move rows into the table; of many small files together, since an insertion takes 2 ms."""
    import pyarrow as pa

    if waiting:
        connection.register("waiting", pa.concat_tables(waiting, promote_options="default"))
        connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM waiting")
        connection.unregister("waiting")
        waiting.clear()


def columns_of(file: InputFile) -> list[str]:
    """The columns that a file has; those of its first rows for JSON.

    Raises:
        UnreadableInput: It is damaged.
    """
    if file.format == "parquet":
        return [*_parquet_schema(file).names, *file.folders]
    return list(next((block.columns for block in blocks(file)), {}))


def own_columns(connection: "DuckDBPyConnection", relation: str) -> list[str]:
    """The columns of a relation of `read_files` that are its files' own."""
    described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return [name for name, *_ in described if name not in OURS]


def _as_arrow(file: InputFile, block: Block, part: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    nothing = [None] * len(block.unreadable)
    columns = {
        "_file": pa.array([file.name] * (len(block.lines) + len(nothing))),
        "_part": pa.array([part] * (len(block.lines) + len(nothing))),
        "_line": pa.array([*block.lines, *(row.line for row in block.unreadable)], pa.int64()),
        "_unreadable": pa.array(
            [*([None] * len(block.lines)), *(f"{row.why}: {row.text}" for row in block.unreadable)],
            pa.string(),
        ),
    }
    for column, values in block.columns.items():
        text = values
        if not isinstance(values, pa.ChunkedArray):
            text = pa.array([*values, *nothing] if nothing else values, pa.string())
        if not block.tells_empty:
            text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        columns[column] = text
    return pa.table(columns)


def parquet_files(
    connection: "DuckDBPyConnection", files: Sequence[InputFile]
) -> list[ParquetFiles]:
    """The Parquet files, those of equal columns and types together.

    Raises:
        UnreadableInput: A file is damaged.
    """
    alike: dict[tuple[object, ...], list[InputFile]] = {}
    for file in files:
        schema = _parquet_schema(file)
        of_folders = (name for name in file.folders if name not in schema.names)
        shape = (*zip(schema.names, map(str, schema.types), strict=True), *of_folders)
        alike.setdefault(shape, []).append(file)
    return [_parquet_files(connection, group) for group in alike.values()]


def _parquet_schema(file: InputFile) -> "pa.Schema":
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        return pq.read_schema(file.path)
    except (ArrowInvalid, OSError) as error:
        raise UnreadableInput(
            f"{file.name} cannot be read as Parquet: {error}. Mend the file, or take it out of "
            "the folder."
        ) from error


def parquet_scan(paths: Sequence[str]) -> str:
    quoted_paths = ", ".join(f"'{quoted(path)}'" for path in paths)
    return (
        f"read_parquet([{quoted_paths}], filename = '_path', file_row_number = true, "
        "hive_partitioning = false)"
    )


def _parquet_files(connection: "DuckDBPyConnection", files: list[InputFile]) -> ParquetFiles:
    """Parquet files with their types; what other formats have as text is told so that it is equal.

    Instants are cut to microseconds, never rounded. Bytes are text in UTF-8, and ids that a tool
    has stored as floating-point numbers are whole again.
    """
    paths = {file.name: literal(str(file.path)) for file in files}
    scan = parquet_scan([*paths.values()][:1])
    described = connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()
    chosen, times = list[str](), dict[str, str]()
    names = [name for name, *_ in described if name not in ("_path", "file_row_number")]
    for name, renamed in zip(names, unique_names(names), strict=True):
        dtype = next(dtype for column, dtype, *_ in described if column == name)
        column = identifier(name)
        if dtype.startswith(("TIMESTAMP", "DATE")) and name == renamed:
            times[column] = dtype
        if dtype == "TIMESTAMP_NS":
            column = f"make_timestamp(epoch_ns({column}) // 1000)"
        elif dtype == "BLOB":
            column = f"TRY(decode({column}))"
        elif dtype in ("DOUBLE", "FLOAT") and name.lower().endswith("_id"):
            column = number_as_text(column)
        chosen.append(f"{column} AS {identifier(renamed)}")
    prefix = len(str(files[0].path)) - len(files[0].name)
    path = f"substr(_path, {prefix + 1})"
    chosen += [
        f"regexp_extract({path}, '^(?:.*/)?{quoted(re.escape(folder))}=([^/]*)/', 1) "
        f"AS {identifier(folder)}"
        for folder in files[0].folders
        if folder.lower() not in {name.lower() for name in names}
    ]
    rows = (
        f"(SELECT {', '.join(chosen)}, {path} AS _file, {path} AS _part, "
        "file_row_number + 1 AS _line, CAST(NULL AS VARCHAR) AS _unreadable FROM {scan} {where})"
    )
    return ParquetFiles(paths, rows, times)


def literal(path: str) -> str:
    """A path in which no character means a pattern."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in path)
