"""Formats: how each column of a source writes its times and numbers, found from all of its values.

A column is written in one way, over all files of the source. One that is written in two ways is
refused where rows need it, because one of the ways would be read wrong; where rows stand without
it, what nobody can tell is missing, and that is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from churn_assets.history.numbers import NumberFormat, number_format, number_way
from churn_assets.history.times import TimeFormat, time_format, time_way
from churn_assets.history.values import as_text
from churn_assets.history.ways import Refused, Way, place
from churn_assets.sources.input_files import WITH_DECIMAL_POINT
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


def find_formats(connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable) -> Formats:
    """How each column of a source is written.

    Args:
        connection: Sees the source.
        raw: What the source is read as.
        source: Its rows.

    Raises:
        Refused: A column that rows need is written in two ways, or nobody can tell in which.
    """
    expressions = ", ".join(f"({sql}) AS {name}" for name, sql in source.columns.items())
    described = connection.execute(f"DESCRIBE SELECT {expressions} FROM {source.relation}")
    dtypes = {name.lower(): dtype for name, dtype, *_ in described.fetchall()}
    times: dict[str, TimeFormat] = {}
    numbers: dict[str, NumberFormat] = {}
    unclear: list[str] = []
    for column in raw.columns:
        dtype = dtypes.get(column.name, "")
        try:
            if column.dtype in TIMES and dtype and not is_typed(dtype):
                times[column.name] = TimeFormat()
                ways = _ways(connection, source, column.name, dtype, time_way("text"))
                times[column.name] = time_format(column.name, ways)
            elif column.dtype in NUMBERS and dtype == "VARCHAR":
                numbers[column.name] = NumberFormat(None, plain=False)
                with_point = "false"
                if source.located:
                    with_point = f"regexp_matches(lower(file), '{WITH_DECIMAL_POINT}')"
                way = number_way("text", with_point)
                ways = _ways(connection, source, column.name, dtype, way)
                numbers[column.name] = number_format(column.name, ways)
        except Refused as error:
            if column.name in raw.essential:
                raise Refused(f"{raw.source_name}: {error}") from None
            unclear.append(f"{raw.source_name}: {error} Its values are missing until then.")
    return Formats(dtypes, times, numbers, tuple(unclear))


def _ways(
    connection: "DuckDBPyConnection", source: SourceTable, name: str, dtype: str, way: str
) -> list[Way]:
    """The ways in which a column is written, that of the first row first."""
    text = as_text("given", dtype, name)
    rows = connection.execute(
        f"""SELECT way, found.text, {place("found.file", "found.line")}
        FROM (SELECT way, min({{'file': file, 'line': line, 'text': text}}) AS found
            FROM (SELECT text, file, line, {way} AS way
                FROM (SELECT {text} AS text, file, line
                    FROM (SELECT ({source.columns[name]}) AS given,
                            {source.file} AS file, {source.line} AS line
                        FROM {source.relation} AS source_rows))
                WHERE text IS NOT NULL)
            GROUP BY way) ORDER BY found"""
    ).fetchall()
    return [Way(*row) for row in rows]
