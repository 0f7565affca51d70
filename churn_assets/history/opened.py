"""Opened tables: how a source writes its columns and what its files hold, before rows are read.

What is found in a file is kept in the input manifest, so a file that is as before is not read to
find it again. A slice reads only the files that may have rows of it, and of Parquet only the row
groups.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar, epoch_us, midnight, parse_key
from churn_assets.history.findings import require_times
from churn_assets.history.formats import (
    Formats,
    Ways,
    column_types,
    find_ways,
    formats_of,
    is_typed,
    way_queries,
)
from churn_assets.history.parsing import timed_query, times_query
from churn_assets.sources.input_files import InputFile, Part, file_name
from churn_assets.sources.manifest import Contents, Seen, SeenFile, as_files, as_whole, split
from churn_assets.sources.source import Incomplete, NoContinuation, Source, SourceTable, Window
from churn_assets.sources.tables import TIMESTAMPTZ, RawTable
from churn_assets.stores.sql import quoted
from churn_assets.stores.tables import sql_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# The column of `timed_query`.
TIME = "_time"
# Slices are read together while they have no more rows than this.
ROWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class OpenedTable:
    """A source table whose rows can be read.

    Args:
        raw: What it is read as.
        source: Its rows; of files, at least those of the slices that it was opened for.
        formats: How its columns are written.
        time: SQL for the time of a row and its type, where the source has times as such.
        seen: Its files, with what is in them.
        others: What is in rows that are from none of these files.
        untimed_slice: Which slice has those of `others` without a usable time.
    """

    raw: RawTable
    source: SourceTable
    formats: Formats
    time: tuple[str, str] | None
    seen: Seen
    others: Sequence[Contents] = ()
    untimed_slice: str | None = None

    @property
    def contents(self) -> list[Contents]:
        return [*(f.contents for f in self.seen.values() if f.contents), *self.others]

    def require_times(self) -> None:
        """Refuse a source of which most rows have no time: see `findings.require_times`."""
        rows = sum(contents.rows for contents in self.contents)
        untimed = sum(contents.untimed for contents in self.contents)
        first = next((c.first_untimed for c in self.contents if c.untimed), None)
        require_times(self.raw, rows, rows - untimed, first)

    @property
    def unplaced(self) -> list[str]:
        """The files with rows without a usable time that no slice is known to have."""
        return [name for name, file in self.seen.items() if file.is_unplaced]

    def with_untimed(
        self, calendar: Calendar, newest: str, before: Mapping[str, str] = MappingProxyType({})
    ) -> "OpenedTable":
        """It with a slice for the rows without a usable time of each file.

        That is the newest slice of the run that first reads the file, and of a dump the last one.

        Args:
            calendar: The slices.
            newest: The newest one of the run.
            before: Of files in `unplaced`, the slices that have such rows.
        """
        last = calendar.last_slice

        def placed(name: str, file: SeenFile) -> SeenFile:
            if file.contents is None or not file.contents.untimed:
                return file
            kept_with = last or file.untimed_slice or before.get(name, newest)
            return replace(file, untimed_slice=str(kept_with))

        seen = {name: placed(name, file) for name, file in self.seen.items()}
        return replace(self, seen=seen, untimed_slice=str(last or newest))

    @property
    def slice_of_untimed(self) -> str:
        """SQL for the slice of a row without a usable time."""
        whole: dict[str, list[str]] = {}
        cases = ""
        for key, file in self.seen.items():
            if not file.contents or not file.contents.untimed or not file.untimed_slice:
                continue
            name = quoted(file_name(key))
            if file.part is None or file.part.size == file.size:
                whole.setdefault(file.untimed_slice, []).append(f"'{name}'")
                continue
            lines = f"line >= {file.part.line}"
            if file.part.next_line:
                lines += f" AND line < {file.part.next_line}"
            cases += f"WHEN file = '{name}' AND {lines} THEN DATE '{file.untimed_slice}' "
        for key, names in whole.items():
            cases += f"WHEN file IN ({', '.join(names)}) THEN DATE '{key}' "
        others = f"DATE '{self.untimed_slice}'"
        return f"CASE {cases}ELSE {others} END" if cases else others

    def pending(self, connection: "DuckDBPyConnection", calendar: Calendar, newest: str) -> int:
        """How many rows are of after a slice."""
        after = Window(calendar.slice_window(newest)[1], None)
        if not any(contents.meets(after) for contents in self.contents):
            return 0
        timed = timed_query(self.raw, self._within(after, ()), self.formats)
        counted = connection.execute(
            f"SELECT count(*) FROM ({timed}) WHERE {after.sql(TIME, TIMESTAMPTZ)}"
        )
        return int(counted.fetchall()[0][0])

    def read(
        self, connection: "DuckDBPyConnection", calendar: Calendar, keys: Sequence[str]
    ) -> Iterator[tuple[list[str], SourceTable]]:
        """Some slices at a time, each with a relation of at least their rows.

        Args:
            connection: Keeps times that are expensive to find.
            calendar: Places rows in slices.
            keys: The slices, in order.
        """
        together = list(self._together(calendar, keys)) if self.source.located else [list(keys)]
        opened = self
        if len(together) > 1 and self.time is None:
            opened = self._timed(connection, calendar, keys)
        for some in together:
            yield some, opened._within(window_of(calendar, some), some)

    def _together(self, calendar: Calendar, keys: Sequence[str]) -> Iterator[list[str]]:
        """The slices in order, as many together as have no more than ROWS_AT_ONCE rows or so."""
        together, rows = list[str](), 0.0
        for key in keys:
            window = window_of(calendar, [key])
            of_slice = sum(_rows_within(contents, window) for contents in self.contents)
            if together and rows + of_slice > ROWS_AT_ONCE:
                yield together
                together, rows = [], 0.0
            together.append(key)
            rows += of_slice
        yield together

    def _timed(
        self, connection: "DuckDBPyConnection", calendar: Calendar, keys: Sequence[str]
    ) -> "OpenedTable":
        """It as a temporary table with the time of each row."""
        name = f"{self.raw.source_name}_timed"
        rows = self._within(window_of(calendar, keys), keys)
        timed = timed_query(self.raw, rows, self.formats)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {timed}")
        source = replace(self.source, relation=name, rows=None)
        return replace(self, source=source, time=(TIME, TIMESTAMPTZ))

    def _within(self, window: Window, keys: Collection[str]) -> SourceTable:
        """The source with a relation of at least the rows of a window, or kept with slices."""
        names = {name for name, file in self.seen.items() if file.is_needed(window, keys)}
        untimed = self.untimed_slice in keys or any(
            self.seen[name].has_untimed_of(key) for name in names for key in keys
        )
        window, relation = replace(window, untimed=untimed), self.source.relation
        if self.source.rows is not None:
            column = self.source.columns[self.raw.timestamp]
            relation = self.source.rows.within(names, column, window)
        elif self.time is not None and self.source.located:
            hidden = f" EXCLUDE ({TIME})" if self.time[0] == TIME else ""
            relation = f"(SELECT *{hidden} FROM {relation} WHERE {window.sql(*self.time)})"
        return replace(self.source, relation=relation)


def window_of(calendar: Calendar, keys: Sequence[str]) -> Window:
    """The times of rows that are kept with successive slices, in quarantine as well.

    Rows of before CHURN_START are kept with the first slice, those of after CHURN_END with the
    last.
    """
    first, last = parse_key(keys[0]), parse_key(keys[-1])
    return Window(
        None if first == calendar.first_slice else calendar.slice_window(keys[0])[0],
        None if last == calendar.last_slice else calendar.slice_window(keys[-1])[1],
    )


def _rows_within(contents: Contents, window: Window) -> float:
    """About how many rows are of a window, as if they were spread evenly over their time."""
    if contents.first is None or contents.last is None:
        return 0
    begin = contents.first if window.begin is None else epoch_us(window.begin)
    end = contents.last + 1 if window.end is None else epoch_us(window.end)
    within = min(end, contents.last + 1) - max(begin, contents.first)
    return contents.rows * max(within, 0) / (contents.last + 1 - contents.first)


def open_table(
    connection: "DuckDBPyConnection",
    source: Source,
    raw: RawTable,
    files: Sequence[InputFile],
    seen: Seen,
    calendar: Calendar,
    keys: Sequence[str],
) -> OpenedTable | None:
    """A table of a source, open for the rows of successive slices and for those that are later.

    Only the files of these are read, and those of which nobody knows what is in them. Where that is
    not enough to tell how the columns are written, all are.

    Args:
        connection: Keeps the rows of text files.
        source: What has the table.
        raw: The table.
        files: Its files.
        seen: What is known of them.
        calendar: Places rows in slices.
        keys: The slices; none where only the contents of files are of interest.

    Returns:
        The table, or None where the source has none.

    Raises:
        FileNotFoundError: The source must have it and does not.
        Refused: Nobody can tell how the source writes a column that rows need.
        ValueError: A required column is not there.
    """
    begin = end = midnight(calendar.start)
    if keys:
        begin, end = calendar.slice_window(keys[0])[0], calendar.slice_window(keys[-1])[1]
    wanted = _wanted(seen, calendar, keys)

    def read(only: Seen) -> SourceTable | None:
        try:
            only_files = as_files(files, only) if seen else None
            return source.read(connection, raw, begin, end, only_files)
        except Incomplete:
            return source.read(connection, raw, begin, end, as_files(files, seen))

    try:
        table = read(wanted)
        if table is not None and table.is_by_file and seen:
            if opened := _open_some(connection, raw, table, split(seen, _parts(table), files)):
                return opened
            if len(wanted) < len(seen):
                table = read(seen)
    except NoContinuation as file:
        whole = as_whole(seen, str(file))
        return open_table(connection, source, raw, files, whole, calendar, keys)
    if table is None:
        return None
    return open_whole(connection, raw, table, split(seen, _parts(table), files))


def _wanted(seen: Seen, calendar: Calendar, keys: Sequence[str]) -> Seen:
    """The files that are needed for slices, for what is later, and to know what is in them."""
    wanted = {name: file for name, file in seen.items() if file.contents is None}
    if keys:
        window = replace(window_of(calendar, keys), end=None)
        wanted |= {
            name: file
            for name, file in seen.items()
            if file.is_needed(window, keys) or file.is_unplaced
        }
    # Of a slice without rows one file says what the columns are.
    return wanted or dict(list(seen.items())[:1])


def _parts(table: SourceTable) -> Mapping[str, Sequence[Part]]:
    return table.rows.parts if table.rows is not None else {}


def open_whole(
    connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable, seen: Seen
) -> OpenedTable:
    """A table of a source of which all rows are there.

    Raises:
        Refused: Nobody can tell how the source writes a column that rows need.
    """
    dtypes = column_types(connection, source)
    ways = find_ways(connection, raw, source, dtypes)
    formats = formats_of(raw, dtypes, ways)
    found = _contents(connection, raw, source, formats, ways)
    files: Seen = {name: replace(f, contents=found.pop(name, None)) for name, f in seen.items()}
    if source.is_by_file:
        files = _with_empty(raw, source, files, formats)
    return _opened(raw, source, formats, files, list(found.values()))


def _open_some(
    connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable, seen: Seen
) -> OpenedTable | None:
    """A table of which not all files are read; None where those that are not may be another now."""
    known = {name: file.contents for name, file in seen.items() if file.contents}
    dtypes = dict(column_types(connection, source))
    for contents in known.values():
        for column, dtype in contents.dtypes.items():
            if dtypes.setdefault(column, dtype) != dtype:
                return None
    unknown = [name for name in seen if name not in known]
    new = source
    if unknown:
        names = ", ".join(f"'{quoted(name)}'" for name in unknown)
        rows = source.relation
        if source.rows is not None:
            rows = source.rows.within(set(unknown), "", None)
        new = replace(source, relation=f"(SELECT * FROM {rows} WHERE {source.part} IN ({names}))")
    own = {name: dtypes[name] for name in source.columns}
    ways = find_ways(connection, raw, new, own) if unknown else {}
    formats = formats_of(raw, dtypes, {n: c.ways for n, c in known.items()} | ways)
    expected: dict[tuple[str, ...], str] = {}
    for contents in known.values():
        shape = tuple(contents.dtypes)
        if shape not in expected:
            expected[shape] = _read_by(raw, source, formats, shape)
        if contents.read_by != expected[shape]:
            return None
    found = _contents(connection, raw, new, formats, ways) if unknown else {}
    files = {name: replace(f, contents=found.get(name, f.contents)) for name, f in seen.items()}
    return _opened(raw, source, formats, _with_empty(raw, source, files, formats))


def _opened(
    raw: RawTable,
    source: SourceTable,
    formats: Formats,
    seen: Seen,
    others: Sequence[Contents] = (),
) -> OpenedTable:
    dtype = formats.dtypes[raw.timestamp]
    time = (source.columns[raw.timestamp], dtype) if is_typed(dtype) else None
    return OpenedTable(raw, source, formats, time, seen, others)


def _contents(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    source: SourceTable,
    formats: Formats,
    ways: Mapping[str, Ways],
) -> dict[str, Contents]:
    """What is in the files of a source, by name."""
    dtypes = {name: formats.dtypes[name] for name in source.columns}
    read_by = _read_by(raw, source, formats, dtypes)
    return {
        file: Contents(
            rows, rows - timed, untimed, first, last, dtypes, ways.get(file, {}), read_by
        )
        for file, rows, timed, first, last, untimed in connection.execute(
            times_query(raw, source, formats)
        ).fetchall()
    }


def _with_empty(raw: RawTable, source: SourceTable, seen: Seen, formats: Formats) -> Seen:
    """Files with what is in them, where those that nothing was found in have no row at all."""
    nothing = Contents(0, 0, None, None, None, {}, {}, _read_by(raw, source, formats, ()))
    return {name: replace(file, contents=file.contents or nothing) for name, file in seen.items()}


def _read_by(raw: RawTable, source: SourceTable, formats: Formats, columns: Collection[str]) -> str:
    """A digest of how the contents of files with some columns are found."""
    named = SourceTable("source", {name: name for name in columns}, located=True)
    texts = [*way_queries(raw, named, formats.dtypes).values()] if columns else []
    if raw.timestamp in columns:
        texts.append(times_query(raw, named, formats))
    return sql_version(source.query, *texts)
