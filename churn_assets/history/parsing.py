"""Parsing: how a value of a source becomes ours, and what is wrong with a row that cannot.

Pure SQL text over a source's relation; nothing is read or written here. The first reason that
applies is a row's only one, in the order of `quarantine.REASONS`; what only a comparison of rows
shows (duplicates) is found in `history.raw`. A value that cannot be used costs the row where the
column is essential, and otherwise only itself.
"""

import datetime as dt
import re

from churn_assets.cutoffs import Calendar, midnight
from churn_assets.history.event_names import event_type, is_ours
from churn_assets.history.formats import TIMES, Formats, is_typed
from churn_assets.history.values import CLEAN, as_text
from churn_assets.history.ways import place
from churn_assets.sources.source import SourceTable
from churn_assets.sources.tables import (
    CUSTOMERS,
    DECIMAL,
    EVENTS,
    KNOWN_AT,
    RawTable,
)
from churn_assets.stores.sql import once, utc
from churn_assets.stores.tables import Column

# Wide enough to tell a number that no customer can have from what is no number.
WIDE = "DECIMAL(38, 4)"
OLDEST_BIRTH = "DATE '1900-01-01'"
# A few rows far off are not where history is.
FAR_OFF = 0.001
# A negative line is how order exports write a refund, whatever the size of it.
SIGNED = ("quantity", "amount")
IS_TURNED = "(event_type = 'purchase' AND (quantity < 0 OR amount < 0))"


def _parsed(given: str, text: str, column: Column, formats: Formats) -> str:
    """SQL for a source's value as ours, not yet held to the column's limits; NULL where it is none.

    Text without a zone is UTC. Numbers keep every digit up to the column's scale; a fraction of a
    vote, an infinity or a NaN is no number.

    Args:
        given: The value.
        text: Its text, as `as_text` gives it; cheap, since it is used several times.
        column: Our column.
        formats: How the source writes its columns.
    """
    dtype = formats.dtypes[column.name]
    if column.dtype in TIMES:
        if dtype == column.dtype:
            return f"CASE WHEN isfinite({given}) THEN {given} END"
        if is_typed(dtype):
            instant = f"TRY_CAST({given} AS {column.dtype})"
        else:
            instant = formats.times[column.name].value(text, column.dtype)
        return once(instant, lambda value: f"CASE WHEN isfinite({value}) THEN {value} END")
    if column.name == "event_type":
        plain = given if dtype == "VARCHAR" else text
        return f"CASE WHEN {is_ours(plain)} THEN {plain} ELSE {event_type(text)} END"
    if column.dtype == "VARCHAR":
        return text
    if column.dtype == DECIMAL and _is_exact(dtype):
        return f"CAST({given} AS {DECIMAL})"
    if column.name in formats.numbers:
        text = formats.numbers[column.name].value(text)
    if column.dtype == "BIGINT":
        exact = f"TRY_CAST({text} AS DECIMAL(38, 15))"
        return f"CASE WHEN {exact} = trunc({exact}) THEN TRY_CAST({exact} AS BIGINT) END"
    if column.dtype == "DOUBLE":
        number = f"TRY_CAST({text} AS DOUBLE)"
        return f"CASE WHEN isfinite({number}) THEN {number} END"
    return f"TRY_CAST({text} AS {WIDE if column.dtype.startswith('DECIMAL') else column.dtype})"


def _is_exact(dtype: str) -> bool:
    """Whether every value of a type is one of DECIMAL(18, 4): no text is needed in between."""
    if dtype.startswith(("TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER")):
        return dtype[-1] != "]"
    found = re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", dtype)
    return found is not None and int(found[2]) <= 4 and int(found[1]) - int(found[2]) <= 14


def _is_given(column: Column, formats: Formats) -> str:
    """SQL for whether the source has a value, usable or not."""
    dtype = formats.dtypes[column.name]
    if dtype.startswith(CLEAN) or _is_exact(dtype):
        return f"given_{column.name} IS NOT NULL"
    return f"text_{column.name} IS NOT NULL"


def _within_limits(column: Column) -> str:
    """SQL for whether a customer can have a value of a column."""
    if column.name == "birth_date":
        return f"birth_date BETWEEN {OLDEST_BIRTH} AND CAST(updated_at AS DATE)"
    value = _unsigned(column.name)
    limits = [f"{value} >= {column.minimum}"] if column.minimum is not None else []
    limits += [f"{value} <= {column.maximum}"] if column.maximum is not None else []
    return " AND ".join(limits) or "true"


def _unsigned(name: str) -> str:
    return f"abs({name})" if name in SIGNED else name


def _valued(raw: RawTable, source: SourceTable, formats: Formats) -> str:
    """Every source row as a relation: its file and line, texts and values as ours.

    Of each column, `text_<name>` is the source's text and `<name>` the value, which may be beyond
    the column's limits.
    """
    givens, texts, values = list[str](), list[str](), list[str]()
    for column in raw.columns:
        expression, name = source.columns.get(column.name), column.name
        given, text = f"given_{name}", f"text_{name}"
        if expression is None:
            texts.append(f"CAST(NULL AS VARCHAR) AS {text}")
            values.append(f"CAST(NULL AS {column.dtype}) AS {name}")
        else:
            givens.append(f"({expression}) AS {given}")
            texts.append(f"{as_text(given, formats.dtypes[name], name)} AS {text}")
            values.append(f"{_parsed(given, text, column, formats)} AS {name}")
    unreadable = "_unreadable" if source.located else "CAST(NULL AS VARCHAR)"
    return f"""(SELECT *, {", ".join(values)}
            FROM (SELECT *, {", ".join(texts)}
                FROM (SELECT {source.file} AS file, {source.line} AS line,
                        {source.row} AS source_id, {unreadable} AS unreadable, {", ".join(givens)}
                    FROM {source.relation} AS source_rows)))"""


def parse_query(
    raw: RawTable,
    source: SourceTable,
    formats: Formats,
    calendar: Calendar,
    untimed: str,
    read_at: dt.datetime | None = None,
) -> str:
    """Every source row: its file and line, values as ours, slice and what is wrong with it.

    `lost` names the columns whose value could not be used and is missing. Of events, `given_type`
    is the type as the source has it, and `is_turned` whether a purchase is read as a refund.

    `known_at` is that of the source, or where it has none the row's own time; not before that and
    not after the reading. `is_given` says whether the source has it, `is_moved` whether another.

    Args:
        raw: The table to parse for.
        source: The source's rows.
        formats: How the source writes its columns.
        calendar: Places rows in slices.
        untimed: SQL for the slice of a row without a usable time.
        read_at: The moment of the reading; None where nothing is to be held to it.
    """
    limited = list[str]()
    bad_times, bad_numbers, beyond, lost = list[str](), list[str](), list[str](), list[str]()
    for column in raw.columns:
        name, limits = column.name, _within_limits(column)
        if column is KNOWN_AT and name not in source.columns:
            limited.append(f"{raw.timestamp} AS known_at, false AS is_given, false AS is_moved")
        elif column is KNOWN_AT:
            known = f"coalesce(known_at, {raw.timestamp})"
            known = f"least({known}, {utc(read_at)})" if read_at else known
            known = f"greatest({known}, {raw.timestamp})"
            limited.append(f"{known} AS known_at, known_at IS NOT NULL AS is_given")
            limited.append(f"coalesce(known_at <> {known}, false) AS is_moved")
        elif name in raw.essential:  # beyond its limits it costs the row
            limited.append(f"{_unsigned(name)} AS {name}")
        else:
            limited.append(f"CASE WHEN {limits} THEN {_unsigned(name)} END AS {name}")
        if column.name not in source.columns or column.dtype == "VARCHAR":
            continue
        if name in raw.essential:
            bad = bad_times if column.dtype in TIMES else bad_numbers
            bad.append(f"({_is_given(column, formats)} AND {name} IS NULL)")
            beyond.append(f"NOT ({limits})")
        else:
            unused = f"{_is_given(column, formats)} AND ({name} IS NULL OR NOT ({limits}))"
            lost.append(f"CASE WHEN {unused} THEN '{name}' END")
    first = f"DATE '{calendar.first_slice}'"
    future, last = "false", first
    if calendar.end is not None:
        future = f"{raw.timestamp} >= {utc(calendar.end)}"
        last = f"DATE '{calendar.last_slice}'"
    early = f"{raw.timestamp} < {utc(midnight(calendar.start))}"
    # A profile that is older than our history is still the customer's profile.
    before_start = "false" if raw is CUSTOMERS else early
    negative, of_events = "false", ""
    if raw is EVENTS:
        negative = "amount < 0 AND event_type NOT IN ('purchase', 'refund')"
        given_type = "CASE WHEN event_type = 'other' THEN text_event_type END"
        of_events = f", {given_type} AS given_type, {IS_TURNED} AS is_turned"
        of_type = raw.source_columns.index("event_type")
        limited[of_type] = f"CASE WHEN {IS_TURNED} THEN 'refund' ELSE event_type END AS event_type"
    time = next(column for column in raw.columns if column.name == raw.timestamp)
    names = f"list_filter([{', '.join(lost)}], lambda name: name IS NOT NULL)" if lost else "[]"
    return f"""
        SELECT file, line, source_id, unreadable,
            {", ".join(limited)},
            CASE WHEN {raw.timestamp} IS NULL THEN {untimed}
                WHEN {early} THEN {first} WHEN {future} THEN {last}
                ELSE {calendar.slice_of(raw.timestamp)} END AS slice,
            CASE WHEN unreadable IS NOT NULL THEN 'unreadable_row'
                WHEN customer_id IS NULL THEN 'missing_customer_id'
                WHEN NOT ({_is_given(time, formats)}) THEN 'missing_timestamp'
                WHEN {" OR ".join(bad_times)} THEN 'unparseable_timestamp'
                WHEN {" OR ".join(bad_numbers) or "false"} THEN 'unparseable_number'
                WHEN {negative} THEN 'negative_amount'
                WHEN {" OR ".join(beyond)} THEN 'out_of_range'
                WHEN {before_start} THEN 'before_start'
                WHEN {future} THEN 'future_timestamp' END AS reason,
            ({raw.timestamp} IS NOT NULL AND NOT ({before_start}) AND NOT ({future})) AS in_period,
            CAST({names} AS VARCHAR[]) AS lost
            {of_events}
        FROM {_valued(raw, source, formats)}
    """


def values_query(raw: RawTable, source: SourceTable, formats: Formats) -> str:
    """Of each column that a source has, in our order: values, usable ones, the first other one.

    Behind them the least and the greatest time, and those between which almost all are.
    """
    where = place()
    chosen = list[str]()
    for column in raw.columns:
        name, text = column.name, f"text_{column.name}"
        if name in source.columns:
            usable = f"({text} IS NOT NULL AND {name} IS NOT NULL AND {_within_limits(column)})"
            other = f"{text} IS NOT NULL AND {usable} IS NOT TRUE"
            first = f"arg_min({text} || ' (' || {where} || ')', (file, line))"
            chosen += [
                f"count({text})",
                f"count(*) FILTER (WHERE {usable})",
                f"{first} FILTER (WHERE {other})",
            ]
    chosen.append(f"quantile_disc({raw.timestamp}, [0, {FAR_OFF}, 1 - {FAR_OFF}, 1])")
    return f"SELECT {', '.join(chosen)} FROM {_valued(raw, source, formats)}"


def times_query(raw: RawTable, source: SourceTable, formats: Formats) -> str:
    """Of each part of a source's files: its rows, those with a usable time, the first, the last.

    Behind them the first row without a usable time.

    Args:
        raw: The table to parse for.
        source: The source's rows.
        formats: How the source writes its columns.
    """
    text = as_text("given", formats.dtypes[raw.timestamp], raw.timestamp)
    shown = f"coalesce({text}, 'missing') || ' (' || {place()} || ')'"
    return f"""
        SELECT part, count(*), count(instant), epoch_us(min(instant)), epoch_us(max(instant)),
            arg_min(CASE WHEN instant IS NULL THEN {shown} END, line)
                FILTER (WHERE instant IS NULL)
        FROM (SELECT *, {_instant(raw, formats, "given", "text")} AS instant
            FROM (SELECT *, {text} AS text
                FROM (SELECT ({source.columns[raw.timestamp]}) AS given, {source.part} AS part,
                        {source.file} AS file, {source.line} AS line
                    FROM {source.relation} AS source_rows)))
        GROUP BY part ORDER BY part
    """


def timed_query(raw: RawTable, source: SourceTable, formats: Formats) -> str:
    """The source's rows with `_time`, their time as ours; NULL where it is not usable."""
    text = as_text("_given", formats.dtypes[raw.timestamp], raw.timestamp)
    return f"""
        SELECT * EXCLUDE (_given, _text), {_instant(raw, formats, "_given", "_text")} AS _time
        FROM (SELECT *, {text} AS _text
            FROM (SELECT *, ({source.columns[raw.timestamp]}) AS _given
                FROM {source.relation} AS source_rows))
    """


def _instant(raw: RawTable, formats: Formats, given: str, text: str) -> str:
    column = next(column for column in raw.columns if column.name == raw.timestamp)
    return _parsed(given, text, column, formats)
