"""The text of a source's value: the same one whatever format and tool it went through.

Pure SQL text.
"""

import string

from churn_assets.sources.source import number_as_text
from churn_assets.stores.sql import once

LOWER_CASE = {"event_type", "channel"}
VERBATIM = {"text"}
BLANKS = "' ' || chr(9) || chr(10) || chr(13) || chr(160)"
# What tools write where there is no value. Not NA, which is Namibia.
MISSING_WORDS = (
    *("NULL", "null", "Null", "None", "nan", "NaN", "NAN", "NaT", "\\N", "N/A", "n/a", "#N/A"),
    *("<NA>", "undefined", "(not set)"),
)
WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
# Types whose values have one text only, which is never a word for a missing one.
CLEAN = (*WHOLE, *(f"U{name}" for name in WHOLE), "BOOLEAN", "UUID", "TIMESTAMP", "DATE")


def as_text(expression: str, dtype: str, column: str) -> str:
    """The text of a source value without blanks around it; NULL where it is missing.

    An id that a tool has stored as a floating-point number is whole again, so that 17850.0 of one
    file is 17850 of another.

    Args:
        expression: SQL for the value; cheap, since it is used several times.
        dtype: Its type.
        column: Our column.
    """
    text = expression if dtype == "VARCHAR" else f"CAST({expression} AS VARCHAR)"
    if column in VERBATIM or dtype.startswith(CLEAN):
        return text
    if dtype in ("DOUBLE", "FLOAT"):
        text = number_as_text(expression)
    mended = trimmed(text)
    if column in LOWER_CASE:
        mended = f"lower({mended})"
    missing = ", ".join(f"'{word}'" for word in ("", *MISSING_WORDS))

    def unless_missing(value: str) -> str:
        kept = value
        if column.endswith("_id"):
            whole = f"regexp_replace({value}, '^(-?[0-9]{{1,15}})[.]0+$', '\\1')"
            kept = f"CASE WHEN contains({value}, '.0') THEN {whole} ELSE {value} END"
        return f"CASE WHEN {value} NOT IN ({missing}) THEN {kept} END"

    mended = once(mended, unless_missing)
    if dtype != "VARCHAR" or column in LOWER_CASE:
        return mended
    return f"CASE WHEN {_is_plain(text, column)} THEN {text} ELSE {mended} END"


def _is_plain(text: str, column: str) -> str:
    """SQL for whether a text is itself: true of nearly all, and a quarter of the cost of mending.

    It begins with a letter or digit with which no word for a missing value begins, it ends with
    visible ASCII, and of an id no part is like the fraction of a whole number.
    """
    first = {word[0] for word in MISSING_WORDS}
    allowed = [c for c in string.digits + string.ascii_letters if c not in first]
    ranges = list[list[str]]()
    for character in allowed:
        if ranges and ord(character) == ord(ranges[-1][1]) + 1:
            ranges[-1][1] = character
        else:
            ranges.append([character, character])
    begins = " OR ".join(f"({text} >= '{a}' AND {text} < '{chr(ord(b) + 1)}')" for a, b in ranges)
    whole = f" AND NOT contains({text}, '.0')" if column.endswith("_id") else ""
    return f"({begins}) AND {text}[-1] BETWEEN '!' AND '~'{whole}"


def trimmed(text: str) -> str:
    """SQL for a text without blanks around it.

    Where the first and the last character are visible ASCII, as nearly everywhere, there is nothing
    to trim: to look costs a fifteenth of trimming.
    """
    visible = (f"({t} >= '!' AND {t} < chr(127))" for t in (text, f"reverse({text})"))
    return f"CASE WHEN {' AND '.join(visible)} THEN {text} ELSE trim({text}, {BLANKS}) END"
