"""Queries: SQL scripts that say how a shop's own files are one of our tables.

`events.sql` in the input folder is DuckDB's SQL. Its last statement selects columns of ours; what
stands before it, such as ATTACH, runs first. It reads files as `source('orders*.csv')`: the rows
of those files as our reader gives them, all values of text formats as text, each with its `_file`
and `_line`. Lines that are no rows go past the query into quarantine.
"""

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from churn_assets.settings import SettingsError, environment_variable
from churn_assets.sources.input_files import InputFile
from churn_assets.sources.reading import own_columns, read_files
from churn_assets.sources.rows import OURS
from churn_assets.sources.source import SourceTable, require_columns, shown_columns
from churn_assets.sources.tables import RawTable
from churn_assets.stores.sql import identifier, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Statement

# Whoever reads files with these has rows without file and line, and loses those that are none.
OTHER_READERS = re.compile(r"(read_\w+|\w+_scan|glob|sniff_csv)", re.IGNORECASE)
# DuckDB reads a file of that name where a table is expected.
NAMED_FILE = re.compile(r"'.*'|\".*[.]\w+\"", re.DOTALL)
WINDOW = ("begin", "end")
# A comment with these words promises that each row depends on one file alone.
ONE_BY_ONE = re.compile(r"^\s*--.*\bfiles are read one by one\b", re.IGNORECASE | re.MULTILINE)


class QueryError(ValueError):
    """A query cannot be run; the message names it and says what is wrong."""


@dataclass(frozen=True)
class Call:
    """A `source(…)` or `getenv(…)` in the bytes `[begin, end)` of a query."""

    begin: int
    end: int
    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class SourceQuery:
    """The script of one table.

    Args:
        name: Its file, as messages name it.
        text: Its SQL.
    """

    name: str
    text: str

    @cached_property
    def calls(self) -> list[Call]:
        """Its calls of `source` and `getenv`, in order.

        Raises:
            QueryError: It reads files in another way.
        """
        return list(self._calls())

    @property
    def is_by_file(self) -> bool:
        """Whether its rows of some files are the same with and without the others."""
        return ONE_BY_ONE.search(self.text) is not None

    @cached_property
    def meaning(self) -> str:
        """Its text without comments."""
        return " ".join(text for _, text in _tokens(self.name, self.text))

    def files(self, found: Sequence[InputFile]) -> list[InputFile]:
        """Those of the files of a folder that it reads."""
        patterns = [call.arguments[0] for call in self.calls if call.name == "source"]
        return [file for file in found if any(matches(file, pattern) for pattern in patterns)]

    def read(
        self,
        connection: "DuckDBPyConnection",
        found: Sequence[InputFile],
        table: RawTable,
        begin: dt.datetime,
        end: dt.datetime,
        only: Sequence[InputFile] | None = None,
    ) -> SourceTable:
        """The rows of the query, and the lines of its files that are no rows.

        Where the query does not select `_file` and `_line`, its rows are numbered instead.

        Args:
            connection: Keeps the rows in a temporary table.
            found: The files of the input folder.
            table: What they are rows of.
            begin: What `$begin` stands for.
            end: What `$end` stands for.
            only: The files to read, of a query that is by file; None for all of them.

        Raises:
            QueryError: The query is wrong, or a file or variable that it names is not there.
            ValueError: A required column is not there.
        """
        only = only if self.is_by_file else None
        relation, query_lines = self._run(connection, found, table.source_name, begin, end, only)
        if only is not None and not query_lines:  # nobody knows which file a row is from
            return self.read(connection, found, table, begin, end)
        columns = own_columns(connection, relation)
        require_columns(table.required_columns, columns, self.name, "Select it in the query.")
        ours = {c.lower(): identifier(c) for c in columns if c.lower() in table.source_columns}
        others = [c for c in columns if c.lower() not in ours]
        remark = f"{self.name} selects {', '.join(others)}, which {table.source_name} do not have"
        return SourceTable(
            relation,
            ours,
            located=True,
            remarks=(remark,) if others else (),
            query=self.meaning,
            query_lines=query_lines,
            is_by_file=self.is_by_file and bool(query_lines),
        )

    def _run(
        self,
        connection: "DuckDBPyConnection",
        found: Sequence[InputFile],
        table: str,
        begin: dt.datetime,
        end: dt.datetime,
        only: Sequence[InputFile] | None,
    ) -> tuple[str, str]:
        """The relation of the query's rows, and SQL for the lines that they are from."""
        import duckdb

        databases, options = _databases(connection), _options(connection)
        secrets, lines = list[str](), list[str]()
        try:
            text, lines = self._prepared(connection, found, table, secrets, only)
            statements = duckdb.extract_statements(text)
            if not statements or statements[-1].type != duckdb.StatementType.SELECT:
                raise QueryError("its last statement has to be a SELECT of our columns")
            values = dict(zip(WINDOW, (begin, end), strict=True))
            for statement in statements[:-1]:
                connection.execute(statement, _values(statement, values))
            select = _without_end(statements[-1].query)
            result = f"{table}_result"
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {result} AS FROM (\n{select}\n)",
                _values(statements[-1], values),
            )
            return _with_lines(connection, result, lines, table)
        except (duckdb.Error, QueryError, SettingsError) as error:
            message = str(error)
            if "not found in FROM clause" in message:
                message += _columns_said(connection, lines)
            for secret in secrets:
                message = message.replace(secret, "***")
            raise QueryError(f"{self.name}: {message}") from None
        finally:
            for option, value in _options(connection).items():
                if option in options and options[option] != value:
                    connection.execute(f"SET {option} = '{quoted(options[option])}'")
            for database in _databases(connection) - databases:
                connection.execute(f"DETACH {identifier(database)}")

    def _prepared(
        self,
        connection: "DuckDBPyConnection",
        found: Sequence[InputFile],
        table: str,
        secrets: list[str],
        only: Sequence[InputFile] | None,
    ) -> tuple[str, list[str]]:
        """The text with views for its sources, and for each view the relation of all its lines.

        Values of the environment that come into the text are added to `secrets`.
        """
        rest, lines = self.text.encode(), list[str]()
        for number, call in reversed(list(enumerate(self.calls))):
            if call.name == "getenv":
                # A variable, because messages quote the text.
                secrets.append(environment_variable(call.arguments[0]))
                put = f"{table}_secret_{number}"
                connection.execute(f"SET VARIABLE {put} = '{quoted(secrets[-1])}'")
                put = f"getvariable('{put}')"
            else:
                put = f"{table}_source_{number}"
                lines.append(_source(connection, found, call, put, only))
            rest = rest[: call.begin] + put.encode() + rest[call.end :]
        return rest.decode(), lines

    def _calls(self) -> Iterator[Call]:
        tokens = _tokens(self.name, self.text)
        for position, (begin, text) in enumerate(tokens):
            following = tokens[position + 1][1] if position + 1 < len(tokens) else ""
            opened = following.startswith("(")
            if text.upper() in ("FROM", "JOIN") and NAMED_FILE.fullmatch(following):
                raise QueryError(
                    f"{self.name} reads {following} by itself. Files are read as "
                    f"source('{following[1:-1]}')."
                )
            if opened and OTHER_READERS.fullmatch(text):
                raise QueryError(
                    f"{self.name} reads files with {text}(…). Files are read as "
                    "source('orders*.csv'), which finds out their format by itself."
                )
            if opened and text.lower() in ("source", "getenv"):
                arguments, end = _arguments(tokens[position + 1 :])
                if not arguments:
                    raise QueryError(
                        f"{self.name}: {text}(…) takes text in single quotes, such as "
                        f"{text}('{'orders*.csv' if text.lower() == 'source' else 'PASSWORD'}')."
                    )
                yield Call(begin, end, text.lower(), arguments)


def matches(file: InputFile, pattern: str) -> bool:
    """Whether a pattern means a file, or a folder that it lies in, whatever the case.

    Only `*` means anything, every other character is itself.
    """
    parts = (re.escape(part) for part in pattern.lower().removeprefix("./").split("*"))
    return re.fullmatch(".*".join(parts) + "(/.*)?", file.name.lower()) is not None


def _tokens(name: str, sql: str) -> list[tuple[int, str]]:
    """Where the tokens of a text begin in its bytes, and each with what is behind it; no comments.

    Raises:
        QueryError: It is no SQL.
    """
    import duckdb

    try:
        found = duckdb.tokenize(sql)
    except duckdb.Error as error:
        raise QueryError(f"{name}: {error}") from None
    data = sql.encode()
    begins = [*(begin for begin, _ in found), len(data)]
    return [
        (begin, data[begin:end].decode().strip())
        for (begin, kind), end in zip(found, begins[1:], strict=True)
        if kind != duckdb.token_type.comment
    ]


def _arguments(tokens: Sequence[tuple[int, str]]) -> tuple[tuple[str, ...], int]:
    """The texts between parentheses and where these end; none where something else is there."""
    arguments = list[str]()
    for begin, text in tokens[1:]:
        if text.startswith(")"):
            return tuple(arguments), begin + 1
        if text.startswith("'"):
            arguments.append(text[1:-1].replace("''", "'"))
        elif text != ",":
            break
    return (), 0


def _source(
    connection: "DuckDBPyConnection",
    found: Sequence[InputFile],
    call: Call,
    view: str,
    only: Sequence[InputFile] | None,
) -> str:
    """Make the view of a `source(…)`; returns the relation of all lines of its files."""
    pattern, *optional = call.arguments
    files = [file for file in found if matches(file, pattern)]
    if not files:
        names = ", ".join(file.name for file in found[:20]) or "none"
        raise QueryError(f"source('{pattern}') means no file. Files in the folder: {names}.")
    allowed = files if only is None else only
    wanted = [file for file in files if file.name in {each.name for each in allowed}]
    lines = read_files(connection, wanted or files[:1], f"{view}_text").sql
    if not wanted:  # for its columns
        lines = f"(SELECT * FROM {lines} WHERE false)"
    present = {name.lower() for name in own_columns(connection, lines)}
    absent = [name for name in optional if name.lower() not in present]
    nothing = "".join(f", CAST(NULL AS VARCHAR) AS {identifier(name)}" for name in absent)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * EXCLUDE (_unreadable, _part){nothing} "
        f"FROM {lines} WHERE _unreadable IS NULL"
    )
    return lines


def _with_lines(
    connection: "DuckDBPyConnection", result: str, lines: Sequence[str], table: str
) -> tuple[str, str]:
    """The rows of a query in an order of their own, below them the lines that are no rows.

    Returns:
        Their relation, and SQL for all lines of the files if the rows tell where they are from.
    """
    columns = [name for name, *_ in connection.execute(f"DESCRIBE {result}").fetchall()]
    given = {name.lower() for name in columns}
    own = [identifier(name) for name in columns if name.lower() not in OURS]
    if not own:
        raise QueryError("it selects none of our columns")
    file, line = "''", f"row_number() OVER (ORDER BY {', '.join(own)})"
    query_lines = ""
    if {"_file", "_line"} <= given:
        query_lines = " UNION ALL ".join(f"SELECT _file, _line FROM {r}" for r in lines)
        file, line = "coalesce(CAST(_file AS VARCHAR), '')", "CAST(_line AS BIGINT)"
    unreadable = "".join(
        f" UNION BY NAME SELECT _file, _line, _unreadable FROM {relation} "
        "WHERE _unreadable IS NOT NULL"
        for relation in lines
    )
    relation = f"{table}_query"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {relation} AS
        SELECT {", ".join([*own, "_file", "_line", "_unreadable"])} FROM (
            SELECT {", ".join(own)}, {file} AS _file, {line} AS _line,
                CAST(NULL AS VARCHAR) AS _unreadable
            FROM {result}
            UNION ALL BY NAME
            FROM (SELECT '' AS _file, CAST(0 AS BIGINT) AS _line, '' AS _unreadable WHERE false
                {unreadable}))
        ORDER BY {", ".join(["_file", "_line", *own])}"""
    )
    connection.execute(f"DROP TABLE {result}")
    return f"(SELECT *, rowid AS _row FROM {relation})", query_lines


def _columns_said(connection: "DuckDBPyConnection", lines: Sequence[str]) -> str:
    """What columns the sources of a query have, and what to do where one is missing."""
    columns = dict.fromkeys(c for relation in lines for c in own_columns(connection, relation))
    return (
        f"\nColumns of its files: {shown_columns(list(columns))}. One that files may lack is "
        "named in the call as well, as in source('orders*.csv', 'Tags')."
    )


def _databases(connection: "DuckDBPyConnection") -> set[str]:
    names = connection.execute("SELECT database_name FROM duckdb_databases() WHERE NOT internal")
    return {name for (name,) in names.fetchall()}


def _options(connection: "DuckDBPyConnection") -> dict[str, str]:
    """DuckDB's options: what a query sets, such as a time zone, is for the query alone."""
    return dict(connection.execute("SELECT name, value FROM duckdb_settings()").fetchall())


def _values(statement: "Statement", values: Mapping[str, dt.datetime]) -> dict[str, dt.datetime]:
    """The parameters of a statement."""
    if unknown := sorted(set(statement.named_parameters) - set(values)):
        raise QueryError(f"${unknown[0]} is not known; there are $begin and $end")
    return {name: values[name] for name in statement.named_parameters}


def _without_end(statement: str) -> str:
    """A statement without its semicolon and what is behind it."""
    tokens = _tokens("", statement)
    while tokens and tokens[-1][1].startswith(";"):
        statement = statement.encode()[: tokens.pop()[0]].decode()
    return statement
