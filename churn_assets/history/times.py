"""Times as text or numbers: in which way a column writes them, and which instants they are.

What one value tells is read value by value: ISO 8601 with any form of offset, months as words.
What only a column tells is decided from all of its values: whether the day or the month is first,
and what a number counts. Text without a zone is UTC. Pure SQL text and decisions; nothing is read
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from churn_assets.history.ways import Refused, Way, shown
from churn_assets.stores.sql import once

# The only names of zones that mean one offset everywhere, beside those of places.
PLAIN_ZONES = ("Z", "z", "UTC", "GMT")
MONTHS = [
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
]
# Two digits of a year below it are of this century, as in POSIX.
PIVOT = 69

REST = r"(?:(?:, ?| +|T)(.*))?$"
THREE_NUMBERS = rf"^([0-9]{{1,2}})[/.-]([0-9]{{1,2}})[/.-]([0-9]{{4}}|[0-9]{{2}}){REST}"
WEEKDAY = r"(?:[A-Za-z]{3,9}[.]?,? +)?"
DAY = r"([0-9]{1,2})(?:st|nd|rd|th)?"
DAY_MONTH_YEAR = rf"^{WEEKDAY}{DAY}[ -]([A-Za-z]{{3,9}})[.]?,?[ -]([0-9]{{4}}|[0-9]{{2}}){REST}"
MONTH_DAY_YEAR = rf"^{WEEKDAY}([A-Za-z]{{3,9}})[.]? +{DAY},? +([0-9]{{4}}){REST}"
DOTTED = rf"^([0-9]{{4}})[.]([0-9]{{1,2}})[.]([0-9]{{1,2}}){REST}"
NUMBER = r"[0-9]+(?:[.][0-9]+)?"

ISO, SPELLED, DATE, NO_TIME = "iso", "spelled", "date", "no time"
COMPACT, SERIAL = "the digits of a date", "the days of a spreadsheet"
# How many of a unit are a second.
COUNTED = {
    "seconds since 1970": 1,
    "milliseconds since 1970": 10**3,
    "microseconds since 1970": 10**6,
    "nanoseconds since 1970": 10**9,
}
# From 2000 to 2033: a longer number of seconds is as long as the digits of a date.
FIRST_SECOND, LAST_SECOND = 946_684_800, 2_000_000_000
# From 1954 to 2119; day 0 is 1899-12-30.
FIRST_SERIAL, LAST_SERIAL = 20_000, 80_000
COMPACT_FORMATS = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
ORDERS = {
    "DMY": ("day first", (3, 2, 1)),
    "MDY": ("month first", (3, 1, 2)),
    "YMD": ("year first", (1, 2, 3)),
}


def _part(text: str, pattern: str, number: int) -> str:
    return f"regexp_extract({text}, '{pattern}', {number})"


def _year(digits: str) -> str:
    century = f"CASE WHEN {digits} < '{PIVOT}' THEN '20' ELSE '19' END"
    return f"CASE WHEN length({digits}) = 2 THEN {century} || {digits} ELSE {digits} END"


def _ordered(text: str, order: str) -> str:
    """The date of three numbers as ISO text."""
    year, month, day = (_part(text, THREE_NUMBERS, n) for n in ORDERS[order][1])
    return f"concat_ws('-', {_year(year)}, {month}, {day})"


def _compact(text: str) -> str:
    """Instant of the digits of a date, or NULL."""
    cases = " ".join(
        f"WHEN {length} THEN try_strptime({text}, '{form}')"
        for length, form in COMPACT_FORMATS.items()
    )
    instant = f"CASE length({text}) {cases} END"
    return f"CASE WHEN substr({text}, 1, 2) IN ('19', '20') THEN {instant} END"


def time_way(text: str) -> str:
    """SQL for how a time is written; what one value tells is not looked at.

    Three numbers: `date`, the orders in which they are a date, and of years of two digits the
    first and the last number.
    """
    number = f"TRY_CAST({text} AS DOUBLE)"
    counted = " ".join(
        f"WHEN {number} >= {FIRST_SECOND * scale} AND {number} < {LAST_SECOND * scale} "
        f"THEN '{unit}'"
        for unit, scale in COUNTED.items()
    )
    first, second, year = (_part(text, THREE_NUMBERS, n) for n in (1, 2, 3))
    valid = " || ".join(
        f"CASE WHEN TRY_CAST({_ordered(text, order)} AS DATE) IS NOT NULL THEN ' {order}' "
        "ELSE '' END"
        for order in ("DMY", "MDY")
    )
    return f"""CASE
        WHEN regexp_matches({text}, '^[0-9]{{4}}-.*[^Mm.]$') THEN '{ISO}'
        WHEN regexp_full_match({text}, '{NUMBER}') THEN CASE
            WHEN {_compact(text)} IS NOT NULL THEN '{COMPACT}'
            WHEN {number} >= {FIRST_SERIAL} AND {number} < {LAST_SERIAL} THEN '{SERIAL}'
            {counted} ELSE '{NO_TIME}' END
        WHEN regexp_matches({text}, '{THREE_NUMBERS}') THEN CASE
            WHEN length({year}) = 4 AND TRY_CAST({first} AS INTEGER) = TRY_CAST({second} AS INTEGER)
                THEN '{DATE}'
            ELSE '{DATE}' || {valid} || CASE
                WHEN length({year}) = 4 THEN ''
                WHEN TRY_CAST({_ordered(text, "YMD")} AS DATE) IS NULL THEN ''
                ELSE ' YMD' END || CASE WHEN length({year}) = 2
                    THEN '|' || {first} || '|' || {year} ELSE '' END END
        WHEN regexp_matches({text}, '[A-Za-z]{{3}}|[AaPp][.]?[Mm][.]?$|^[0-9]{{4}}[.]')
            THEN '{SPELLED}'
        ELSE '{ISO}' END"""


def _instant(text: str) -> str:
    """ISO text as DuckDB reads it, or NULL: digits after the microseconds are cut.

    An offset may have blanks or GMT before it and no colon. Abbreviations of zones are refused:
    BST is British, and Bangladesh's.
    """
    cut = f"regexp_replace({text}, '([.][0-9]{{6}})[0-9]+', '\\1')"
    offset = r"([0-9]{2}(?:[.][0-9]+)?) *(?:GMT|UTC)?([+-][0-9]{2}):?([0-9]{2})(?: *[(].*[)])?$"
    whole = f"regexp_replace({cut}, '(:){offset}', '\\1\\2\\3:\\4')"
    zone = f"regexp_extract({text}, '(?:[0-9 ])([A-Za-z]+)$', 1)"
    plain = ", ".join(f"'{zone}'" for zone in ("", *PLAIN_ZONES))
    return f"CASE WHEN {zone} IN ({plain}) THEN {whole} END"


def _of_twelve_hours(text: str) -> str:
    """ISO text with hours from 0 to 23, where it may have a.m. or p.m."""
    afternoon = r"^(.*[T ])([0-9]{1,2})(:[0-9]{2}.*?) *([AaPp])[.]?[Mm][.]?$"
    hour = f"TRY_CAST({_part(text, afternoon, 2)} AS INTEGER)"
    noon = f"CASE WHEN upper({_part(text, afternoon, 4)}) = 'P' THEN 12 ELSE 0 END"
    known = f"{hour} BETWEEN 1 AND 12"
    whole = f"{_part(text, afternoon, 1)} || ({hour} % 12 + {noon}) || {_part(text, afternoon, 3)}"
    return (
        f"CASE WHEN regexp_matches({text}, '{afternoon}') "
        f"THEN CASE WHEN {known} THEN {whole} END ELSE {text} END"
    )


def _spelled(text: str) -> str:
    """ISO text of a date whose month is a word, or whose year is first and dotted."""

    def iso(pattern: str, year: int, month: int, day: int) -> str:
        number = _part(text, pattern, month)
        if pattern != DOTTED:
            word = f"lower({number})"
            begins = f"list_transform({MONTHS}, lambda name: starts_with(name, {word}))"
            number = f"list_position({begins}, true)"
        years, days = _year(_part(text, pattern, year)), _part(text, pattern, day)
        date = f"concat_ws('-', {years}, {number}, {days})"
        return (
            f"WHEN regexp_matches({text}, '{pattern}') AND {number} IS NOT NULL "
            f"THEN {date} || ' ' || {_part(text, pattern, 4)}"
        )

    return (
        f"CASE {iso(DAY_MONTH_YEAR, 3, 2, 1)} {iso(MONTH_DAY_YEAR, 3, 1, 2)} "
        f"{iso(DOTTED, 1, 2, 3)} ELSE {text} END"
    )


@dataclass(frozen=True)
class TimeFormat:
    """How the times of a column are written.

    Args:
        ways: What its values are: `iso`, `spelled`, `date`, what numbers count.
        order: Of three numbers: DMY, MDY or YMD; None where nobody can tell, so that none is read.
    """

    ways: frozenset[str] = frozenset({ISO})
    order: str | None = None

    def value(self, text: str, dtype: str) -> str:
        """SQL for the instant or date; NULL where there is none."""
        cases = list[str]()
        number = f"TRY_CAST({text} AS DECIMAL(28, 9))"
        if COMPACT in self.ways:
            cases.append(f"WHEN {_is_number(text)} THEN CAST({_compact(text)} AS {dtype})")
        for unit, scale in COUNTED.items():
            if unit in self.ways:
                # A cast would round into the next microsecond, and over a cutoff.
                us = f"CAST(CAST(floor({number} * 1000000) AS HUGEINT) // {scale} AS BIGINT)"
                bounds = f"{number} >= {FIRST_SECOND * scale} AND {number} < {LAST_SECOND * scale}"
                counted = f"CASE WHEN {bounds} THEN CAST(make_timestamp({us}) AS {dtype}) END"
                cases.append(f"WHEN {_is_number(text)} THEN {counted}")
        if SERIAL in self.ways:
            # A spreadsheet keeps days as a fraction, which is good for milliseconds.
            ms = f"CAST(round({number} * 86400000) AS BIGINT)"
            instant = f"TIMESTAMP '1899-12-30' + to_milliseconds({ms})"
            bounds = f"{number} >= {FIRST_SERIAL} AND {number} < {LAST_SERIAL}"
            serial = f"CASE WHEN {bounds} THEN CAST({instant} AS {dtype}) END"
            cases.append(f"WHEN {_is_number(text)} THEN {serial}")
        if DATE in self.ways:
            date = "CAST(NULL AS VARCHAR)"
            if self.order:
                date = f"{_ordered(text, self.order)} || ' ' || {_part(text, THREE_NUMBERS, 4)}"
            cases.append(
                f"WHEN regexp_matches({text}, '{THREE_NUMBERS}') THEN {_spoken(date, dtype)}"
            )
        other = _spoken(_spelled(text), dtype) if SPELLED in self.ways else _cast(text, dtype)
        return f"CASE {' '.join(cases)} ELSE {other} END" if cases else other


def _is_number(text: str) -> str:
    return f"regexp_full_match({text}, '{NUMBER}')"


def _spoken(text: str, dtype: str) -> str:
    """As `_cast`, of ISO text that may have blanks at its end and hours of half a day."""
    hours = once(f"rtrim({text})", _of_twelve_hours)
    return once(hours, lambda iso: _cast(iso, dtype))


def _cast(text: str, dtype: str) -> str:
    if dtype == "DATE":  # as written, wherever it was written
        return f"coalesce(TRY_CAST({text} AS DATE), CAST(TRY_CAST({text} AS TIMESTAMP) AS DATE))"
    return f"TRY_CAST({_instant(text)} AS {dtype})"


def time_format(column: str, ways: Sequence[Way]) -> TimeFormat:
    """The one way in which a column writes what a single value does not tell.

    Raises:
        Refused: There are two, or nobody can tell which it is.
    """
    numbers = [way for way in ways if way.name in (COMPACT, SERIAL, *COUNTED)]
    if len(numbers) > 1:
        raise Refused(
            f"{column} counts in several ways: "
            f"{' and '.join(f'{shown(way)} is {way.name}' for way in numbers[:2])}. "
            "Write all of it in one way."
        )
    dates = [way for way in ways if way.name.startswith(DATE)]
    names = {way.name for way in ways if not way.name.startswith(DATE)}
    if not dates:
        return TimeFormat(frozenset(names))
    return TimeFormat(frozenset({*names, DATE}), _order(column, dates))


def _order(column: str, dates: Sequence[Way]) -> str:
    """In which order a column writes day, month and year as numbers."""
    telling = {way: way.name.partition("|")[0].split()[1:] for way in dates}
    telling = {way: orders for way, orders in telling.items() if orders}
    left = [order for order in ORDERS if all(order in orders for orders in telling.values())]
    if not telling:  # each is no date in any order, or the same one in both
        return "DMY"
    if not left:
        against = {
            order: next(way for way, orders in telling.items() if order not in orders)
            for order in ("DMY", "MDY")
        }
        raise Refused(
            f"{column} is written in two ways: {shown(against['DMY'])} cannot be day first, "
            f"{shown(against['MDY'])} cannot be month first. Write dates as 2025-02-01."
        )
    if len(left) == 2 and "YMD" in left and _years_last(dates):
        left.remove("YMD")
    if len(left) > 1:
        names = " or ".join(ORDERS[order][0] for order in left)
        raise Refused(
            f"{column} may be {names}: no value shows which, as in {shown(next(iter(telling)))}. "
            "Write dates as 2025-02-01."
        )
    return left[0]


def _years_last(dates: Sequence[Way]) -> bool:
    """Whether years of two digits are last: a column has more days or months than years."""
    parts = [way.name.split("|")[1:] for way in dates if "|" in way.name]
    return len({part[0] for part in parts}) > len({part[1] for part in parts})
