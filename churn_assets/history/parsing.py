"""Parsing: how a value of a source becomes ours, and what is wrong with a row that cannot.

Pure SQL text over a source's relation; nothing is read or written here. The first reason that
applies is a row's only one, in the order of `quarantine.REASONS`; what only a comparison of rows
shows (duplicates) is found in `history.raw`.
"""

from churn_assets.cutoffs import Calendar, midnight
from churn_assets.sources.source import SourceTable, number_as_text
from churn_assets.sources.tables import CUSTOMERS, TIMESTAMPTZ, RawTable
from churn_assets.stores.sql import utc
from churn_assets.stores.tables import Column

LOWER_CASE = {"event_type", "channel"}
VERBATIM = {"text"}
BLANKS = "' ' || chr(9) || chr(10) || chr(13) || chr(160)"
# What tools write where there is no value. Not NA, which is Namibia.
MISSING_WORDS = (
    *("NULL", "null", "Null", "None", "nan", "NaN", "NAN", "NaT", "\\N", "N/A", "n/a", "#N/A"),
    *("<NA>", "undefined", "(not set)"),
)
# The only names of zones that mean one offset everywhere, beside those of places.
PLAIN_ZONES = ("Z", "z", "UTC", "GMT")
FREE_RANGE = (-(10**18), 10**18)
RANGES = {"satisfaction_score": (1, 5)}


def as_text(expression: str, dtype: str, column: str) -> str:
    """The text of a source value without blanks around it; NULL where it is missing.

    An id that a tool has stored as a floating-point number is whole again, so that 17850.0 of one
    file is 17850 of another.
    """
    text = f"CAST({expression} AS VARCHAR)"
    if column in VERBATIM:
        return text
    if dtype in ("DOUBLE", "FLOAT"):
        text = number_as_text(expression)
    text = f"trim({text}, {BLANKS})"
    if column in LOWER_CASE:
        text = f"lower({text})"
    if column.endswith("_id"):
        text = f"regexp_replace({text}, '^(-?[0-9]{{1,15}})[.]0+$', '\\1')"
    missing = ", ".join(f"'{word}'" for word in ("", *MISSING_WORDS))
    return f"CASE WHEN {text} NOT IN ({missing}) THEN {text} END"


def _instant(text: str) -> str:
    """ISO text as DuckDB reads it, or NULL: digits after the microseconds are cut.

    An offset may have blanks before it and no colon. Abbreviations of zones are refused: BST is
    British, and Bangladesh's.
    """
    cut = f"regexp_replace({text}, '([.][0-9]{{6}})[0-9]+', '\\1')"
    offset = "(:[0-9]{2}(?:[.][0-9]+)?) *([+-][0-9]{2}):?([0-9]{2})$"
    whole = f"regexp_replace({cut}, '{offset}', '\\1\\2:\\3')"
    zone = f"regexp_extract({text}, '(?:[0-9 ])([A-Za-z]+)$', 1)"
    plain = ", ".join(f"'{zone}'" for zone in ("", *PLAIN_ZONES))
    return f"CASE WHEN {zone} IN ({plain}) THEN {whole} END"


def parsed(expression: str, text: str, source_dtype: str, column: Column) -> tuple[str, str]:
    """How a source value becomes ours, and the condition under which it could not.

    Text without a zone is UTC. Numbers keep every digit up to the column's scale; a fraction of a
    piece, an infinity or a NaN is no number.

    Args:
        expression: The value.
        text: Its text, as `as_text` gives it; cheap, since it is used several times.
        source_dtype: DuckDB type of the value.
        column: Our column.
    """
    if column.dtype == "VARCHAR":
        return text, "false"
    if column.dtype in (TIMESTAMPTZ, "DATE"):
        typed = source_dtype.startswith(("TIMESTAMP", "DATE"))
        given = expression if typed else _instant(text) if column.dtype == TIMESTAMPTZ else text
        instant = f"TRY_CAST({given} AS {column.dtype})"
        value = f"CASE WHEN isfinite({instant}) THEN {instant} END"
    elif column.dtype == "BIGINT":
        exact = f"TRY_CAST({text} AS DECIMAL(38, 15))"
        low, high = RANGES.get(column.name, FREE_RANGE)
        value = (
            f"CASE WHEN {exact} = trunc({exact}) AND {exact} BETWEEN {low} AND {high} "
            f"THEN TRY_CAST({exact} AS BIGINT) END"
        )
    elif column.dtype == "DOUBLE":
        number = f"TRY_CAST({text} AS DOUBLE)"
        value = f"CASE WHEN isfinite({number}) THEN {number} END"
    else:
        value = f"TRY_CAST({text} AS {column.dtype})"
    missing = text if source_dtype not in ("DOUBLE", "FLOAT") else expression
    return value, f"({missing} IS NOT NULL AND ({value}) IS NULL)"


def parse_query(
    raw: RawTable, source: SourceTable, dtypes: dict[str, str], calendar: Calendar
) -> str:
    """Every source row: its number, file and line, values as ours, slice and what is wrong with it.

    Args:
        raw: The table to parse for.
        source: The source's rows.
        dtypes: DuckDB type of each expression in `source.columns`.
        calendar: Places rows in slices.
    """
    givens: list[str] = []
    texts: list[str] = []
    values: list[str] = []
    bad_row_time = "false"
    bad_times: list[str] = []
    bad_numbers: list[str] = []
    for column in raw.columns:
        expression = source.columns.get(column.name)
        if expression is None:
            values.append(f"CAST(NULL AS {column.dtype}) AS {column.name}")
            continue
        given, text, dtype = f"given_{column.name}", f"text_{column.name}", dtypes[column.name]
        givens.append(f"({expression}) AS {given}")
        texts.append(f"{as_text(given, dtype, column.name)} AS {text}")
        value, bad = parsed(given, text, dtype, column)
        values.append(f"{value} AS {column.name}")
        is_time = column.dtype in (TIMESTAMPTZ, "DATE")
        (bad_times if is_time else bad_numbers).append(bad)
        if column.name == raw.timestamp:
            bad_row_time = bad
    start = utc(midnight(calendar.start))
    first = f"DATE '{calendar.first_slice}'"
    future, last = "false", first
    if calendar.end is not None:
        future = f"{raw.timestamp} >= {utc(calendar.end)}"
        last = f"DATE '{calendar.last_slice}'"
    early = f"{raw.timestamp} < {start}"
    # A profile that is older than our history is still the customer's profile.
    before_start = "false" if raw is CUSTOMERS else early
    amount = "amount < 0" if any(c.name == "amount" for c in raw.columns) else "false"
    place = "'' AS file, CAST(NULL AS BIGINT) AS line, CAST(NULL AS VARCHAR) AS unreadable"
    if source.located:
        place = "_file AS file, _line AS line, _unreadable AS unreadable"
    return f"""
        SELECT row_number, file, coalesce(line, row_number) AS line, unreadable,
            {", ".join(c.name for c in raw.columns)},
            CASE WHEN {raw.timestamp} IS NULL OR {early} THEN {first} WHEN {future} THEN {last}
                ELSE {calendar.slice_of(raw.timestamp)} END AS slice,
            CASE WHEN unreadable IS NOT NULL THEN 'unreadable_row'
                WHEN customer_id IS NULL THEN 'missing_customer_id'
                WHEN {raw.timestamp} IS NULL AND NOT bad_row_time THEN 'missing_timestamp'
                WHEN bad_time THEN 'unparseable_timestamp'
                WHEN bad_number THEN 'unparseable_number'
                WHEN {amount} THEN 'negative_amount'
                WHEN {before_start} THEN 'before_start'
                WHEN {future} THEN 'future_timestamp' END AS reason,
            ({raw.timestamp} IS NOT NULL AND NOT ({before_start}) AND NOT ({future})) AS in_period
        FROM (SELECT row_number, file, line, unreadable, {", ".join(values)},
                {bad_row_time} AS bad_row_time,
                ({" OR ".join(bad_times) or "false"}) AS bad_time,
                ({" OR ".join(bad_numbers) or "false"}) AS bad_number
            FROM (SELECT *, {", ".join(texts)}
                FROM (SELECT row_number() OVER () AS row_number, {place}, {", ".join(givens)}
                    FROM {source.relation} AS source_rows)))
    """
