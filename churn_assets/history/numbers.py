"""Numbers as text: in which of the world's ways a column writes them, and what they are.

A column has one decimal sign, found from all of its values: `1.250` alone may be one and a quarter
or one thousand two hundred and fifty, and no single value decides. Pure SQL text and decisions;
nothing is read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from churn_assets.history.ways import Refused, Way, shown

# Between thousands, whatever the decimal sign: blanks, narrow ones too, and the Swiss apostrophe.
GAP = r"[ '’\x{A0}\x{202F}]"
CODES = (
    "USD|EUR|GBP|JPY|CHF|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|RON|BGN|TRY|ILS|INR|CNY|HKD|SGD|KRW|"
    "BRL|MXN|ZAR|AED|SAR|THB|IDR|MYR|PHP|VND|RUB|UAH|kr|zł|Kč|Ft|lei"
)
CURRENCY = rf"(?:[A-Z]{{0,2}}\p{{Sc}}|{CODES})"
DIGITS = r"[0-9.,](?:[0-9.,'’ \x{A0}\x{202F}]*[0-9.,])?"
DRESSED = (
    rf"^[(]?[-+−]?\s*({CURRENCY})?\s*[-+−]?({DIGITS})\s*({CURRENCY})?[)]?$"  # ($1,250.00), −5 EUR
)
PLAIN = r"[-+]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:[eE][-+]?[0-9]+)?"
WHOLE = r"[-+]?[0-9]+"
# A group of three after one sign: digits of a fraction, or thousands. None begins with a 0.
POINT_OR_THOUSANDS = r"[-+]?[1-9][0-9]{0,2}[.][0-9]{3}"

POINT, COMMA = "a decimal point", "a decimal comma"
EITHER_POINT, EITHER_COMMA = "a point before three digits", "a comma before three digits"
NEITHER, NO_NUMBER = "no decimal sign", "no number"

GROUPED = "[1-9][0-9]{{0,2}}(?:{between}[0-9]{{3}})+"
# Which digits are a number, by the decimal sign of their column.
VALID = {
    POINT: f"(?:[0-9]+|{GROUPED.format(between=GAP)}|{GROUPED.format(between=',')}"
    "|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3})?(?:[.][0-9]*)?",  # in India 12,34,567
    COMMA: f"(?:[0-9]+|{GROUPED.format(between=GAP)}|{GROUPED.format(between='[.]')})?(?:,[0-9]*)?",
}


def _part(text: str, number: int) -> str:
    return f"regexp_extract({text}, '{_sql(DRESSED)}', {number})"


def _sql(pattern: str) -> str:
    return pattern.replace("'", "''")


def _is(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, '{_sql(pattern)}')"


def number_way(text: str, is_json: str) -> str:
    """SQL for how a number is written: a way of this module, a `|`, what is around it.

    Around it is nothing where SQL reads it as it is, else `=` and the currency.

    Args:
        text: The value, without blanks around it.
        is_json: SQL for whether it is from a format whose numbers have a decimal point.
    """
    digits = _part(text, 2)
    return f"""CASE
        WHEN {_is(text, WHOLE)} THEN '{NEITHER}|'
        WHEN {_is(text, POINT_OR_THOUSANDS)} AND NOT ({is_json}) THEN '{EITHER_POINT}|'
        WHEN {_is(text, PLAIN)} THEN '{POINT}|'
        ELSE CASE
            WHEN NOT regexp_matches({digits}, '[0-9]') THEN '{NO_NUMBER}'
            WHEN {_is(digits, f"[0-9]+|{GROUPED.format(between=GAP)}")} THEN '{NEITHER}'
            WHEN {_is(digits, "[1-9][0-9]{0,2}[.][0-9]{3}")} THEN '{EITHER_POINT}'
            WHEN {_is(digits, "[1-9][0-9]{0,2},[0-9]{3}")} THEN '{EITHER_COMMA}'
            WHEN {_is(digits, VALID[POINT])} THEN '{POINT}'
            WHEN {_is(digits, VALID[COMMA])} THEN '{COMMA}'
            ELSE '{NO_NUMBER}' END || '|=' || {_part(text, 1)} || {_part(text, 3)} END"""


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a column are written.

    Args:
        decimal: POINT or COMMA; None where nobody can tell, so that only whole numbers are read.
        plain: Whether every number is as SQL writes it.
    """

    decimal: str | None = POINT
    plain: bool = True

    def value(self, text: str) -> str:
        """SQL for a number as SQL writes it; NULL or any text where it is none."""
        if self.plain:
            return text
        if self.decimal is None:
            return f"CASE WHEN {_is(text, WHOLE)} THEN {text} END"
        digits = _part(text, 2)
        thousands, sign = (",", ".") if self.decimal == POINT else (".", ",")
        ungrouped = f"regexp_replace({digits}, '{_sql(GAP[:-1])}{thousands}]', '', 'g')"
        negative = f"regexp_matches({text}, '^[(]|[-−]')"
        dressed = (
            f"CASE WHEN {_is(digits, VALID[self.decimal])} THEN CASE WHEN {negative} THEN '-' "
            f"ELSE '' END || replace({ungrouped}, '{sign}', '.') END"
        )
        plain = _is(text, PLAIN if self.decimal == POINT else WHOLE)
        return f"CASE WHEN {plain} THEN {text} ELSE {dressed} END"


def number_format(column: str, ways: Sequence[Way]) -> NumberFormat:
    """The one way in which a column writes its numbers.

    Raises:
        Refused: There are two, or nobody can tell which it is, or money of two currencies.
    """
    found: dict[str, Way] = {}
    currencies: dict[str, Way] = {}
    plain = True
    for way in ways:
        name, _, around = way.name.partition("|")
        if name != NO_NUMBER:
            found.setdefault(name, way)
            plain = plain and not around
            if around[1:]:
                currencies.setdefault(around[1:], way)
    if len(currencies) > 1:
        raise Refused(
            f"{column} is money of several currencies: "
            f"{' and '.join(shown(way) for way in list(currencies.values())[:2])}. "
            "Convert it to one."
        )
    if POINT in found and COMMA in found:
        raise Refused(
            f"{column} is written in two ways: {shown(found[POINT])} has a decimal point, "
            f"{shown(found[COMMA])} a decimal comma. Write all of it in one way."
        )
    if POINT in found or COMMA in found:
        decimal = POINT if POINT in found else COMMA
        return NumberFormat(decimal, plain and decimal == POINT)
    if either := found.get(EITHER_POINT) or found.get(EITHER_COMMA):
        digits = either.example.replace(",", ".")
        raise Refused(
            f"{column} may have a decimal sign or thousands: {shown(either)} is "
            f"{digits} or {digits.replace('.', '')}, and no other value shows which. "
            "Write a value with two decimals, such as 12.50, or no sign between thousands."
        )
    return NumberFormat(POINT, plain)
