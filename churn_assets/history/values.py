"""The text of a source's value: the same one whatever format and tool it went through.

Pure SQL text.
"""

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
    text = trimmed(text)
    if column in LOWER_CASE:
        text = f"lower({text})"
    missing = ", ".join(f"'{word}'" for word in ("", *MISSING_WORDS))

    def unless_missing(value: str) -> str:
        kept = value
        if column.endswith("_id"):
            whole = f"regexp_replace({value}, '^(-?[0-9]{{1,15}})[.]0+$', '\\1')"
            kept = f"CASE WHEN contains({value}, '.0') THEN {whole} ELSE {value} END"
        return f"CASE WHEN {value} NOT IN ({missing}) THEN {kept} END"

    return once(text, unless_missing)


def trimmed(text: str) -> str:
    """SQL for a text without blanks around it.

    Where the first and the last character are visible ASCII, as nearly everywhere, there is nothing
    to trim: to look costs a fifteenth of trimming.
    """
    visible = (f"({t} >= '!' AND {t} < chr(127))" for t in (text, f"reverse({text})"))
    return f"CASE WHEN {' AND '.join(visible)} THEN {text} ELSE trim({text}, {BLANKS}) END"
