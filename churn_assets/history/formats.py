"""Formats: how each column of a source writes its times and numbers, found from all of its values.

A column is written in one way, over all files of the source. One that is written in two ways is
refused where rows need it, because one of the ways would be read wrong; where rows stand without
it, what nobody can tell is missing, and that is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from churn_assets.history.numbers import NumberFormat, number_format, number_way
from churn_assets.history.times import TimeFormat, time_format, time_way
from churn_assets.history.values import as_text
from churn_assets.history.ways import Refused, Way, placed
from churn_assets.sources.input_files import WITH_DECIMAL_POINT, file_name
from churn_assets.sources.source import SourceTable
from churn_assets.sources.tables import DECIMAL, TIMESTAMPTZ, RawTable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TIMES = (TIMESTAMPTZ, "DATE")
NUMBERS = ("BIGINT", "DOUBLE", DECIMAL)


@dataclass(frozen=True)
class Formats:
    """How the columns of a source are written.

    Args:
        dtypes: DuckDB type of each expression in `SourceTable.columns`.
        times: Of columns of times that are text or numbers.
        numbers: Of columns of numbers that are text.
        unclear: Why values of columns are left out, in words.
    """

    dtypes: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, TimeFormat] = field(default_factory=dict)
    numbers: Mapping[str, NumberFormat] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()


def is_typed(dtype: str) -> bool:
    """Whether a source column has times as such, so that nothing is to be found out."""
    return dtype.startswith(("TIMESTAMP", "DATE"))


# Of each column, the ways in which a part of a file writes it: name, first value, line.
Ways = Mapping[str, Sequence[tuple[str, str, int]]]


def find_formats(connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable) -> Formats:
    """How each column of a source is written.

    Args:
        connection: Sees the source.
        raw: What the source is read as.
        source: Its rows.

    Raises:
        Refused: A column that rows need is written in two ways, or nobody can tell in which.
    """
    dtypes = column_types(connection, source)
    return formats_of(raw, dtypes, find_ways(connection, raw, source, dtypes))


def column_types(connection: "DuckDBPyConnection", source: SourceTable) -> dict[str, str]:
    """DuckDB's type of each column of ours that a source has."""
    expressions = ", ".join(f"({sql}) AS {name}" for name, sql in source.columns.items())
    described = connection.execute(f"DESCRIBE SELECT {expressions} FROM {source.relation}")
    return {name.lower(): dtype for name, dtype, *_ in described.fetchall()}


def way_queries(raw: RawTable, source: SourceTable, dtypes: Mapping[str, str]) -> dict[str, str]:
    """SQL for the ways in which columns are written, of those that do not say it by their type.

    Rows: the part of a file, way, the first value that is written so, its line.
    """
    with_point = f"regexp_matches(lower(file), '{WITH_DECIMAL_POINT}')"
    queries: dict[str, str] = {}
    for column in raw.columns:
        name, dtype = column.name, dtypes.get(column.name, "")
        if name not in source.columns:
            continue
        if column.dtype in TIMES and not is_typed(dtype):
            way = time_way("text")
        elif column.dtype in NUMBERS and dtype == "VARCHAR":
            way = number_way("text", with_point)
        else:
            continue
        queries[name] = f"""SELECT part, way, found.text, found.line
            FROM (SELECT part, way, min({{'line': line, 'text': text}}) AS found
                FROM (SELECT text, file, part, line, {way} AS way
                    FROM (SELECT {as_text("given", dtype, name)} AS text, file, part, line
                        FROM (SELECT ({source.columns[name]}) AS given, {source.part} AS part,
                                {source.file} AS file, {source.line} AS line
                            FROM {{relation}} AS source_rows))
                    WHERE text IS NOT NULL)
                GROUP BY part, way) ORDER BY part, found"""
    return queries


def find_ways(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    source: SourceTable,
    dtypes: Mapping[str, str],
) -> dict[str, Ways]:
    """In which ways each file of a source, or part of one, writes each column, by its key."""
    found: dict[str, dict[str, list[tuple[str, str, int]]]] = {}
    for name, sql in way_queries(raw, source, dtypes).items():
        rows = connection.execute(sql.replace("{relation}", source.relation)).fetchall()
        for part, way, text, line in rows:
            found.setdefault(part, {}).setdefault(name, []).append((way, text, line))
    return dict(found)


def formats_of(raw: RawTable, dtypes: Mapping[str, str], ways: Mapping[str, Ways]) -> Formats:
    """How each column is written, from the ways in which each file writes it.

    Raises:
        Refused: A column that rows need is written in two ways, or nobody can tell in which.
    """
    times: dict[str, TimeFormat] = {}
    numbers: dict[str, NumberFormat] = {}
    unclear: list[str] = []
    for column in raw.columns:
        name, dtype = column.name, dtypes.get(column.name, "")
        first: dict[str, Way] = {}
        found = [
            (file_name(part), line, way, text)
            for part in ways
            for way, text, line in ways[part].get(name, ())
        ]
        for file, line, way, text in sorted(found):
            first.setdefault(way, Way(way, text, placed(file, line)))
        try:
            if column.dtype in TIMES and dtype and not is_typed(dtype):
                times[name] = TimeFormat()
                times[name] = time_format(name, list(first.values()))
            elif column.dtype in NUMBERS and dtype == "VARCHAR":
                numbers[name] = NumberFormat(None, plain=False)
                numbers[name] = number_format(name, list(first.values()))
        except Refused as error:
            if name in raw.essential:
                raise Refused(f"{raw.source_name}: {error}") from None
            unclear.append(f"{raw.source_name}: {error} Its values are missing until then.")
    return Formats(dtypes, times, numbers, tuple(unclear))
