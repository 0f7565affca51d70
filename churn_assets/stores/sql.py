"""Values as SQL text: paths, column names and instants."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

from churn_assets.cutoffs import DAY_US


def quoted(path: Path | str) -> str:
    """`path` for use between single quotes in SQL."""
    return str(path).replace("'", "''")


def identifier(name: str) -> str:
    """A column name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def utc(instant: dt.datetime) -> str:
    """An instant as a SQL literal."""
    return f"TIMESTAMPTZ '{instant.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}+00'"


def once(value: str, use: Callable[[str], str]) -> str:
    """SQL that computes `value` once, however often `use` names it."""
    return f"list_transform([{value}], lambda value: {use('value')})[1]"


def day_of(instant: str) -> str:
    """SQL for the day number of an instant; exact until the year 2300.

    To cast an instant to a date takes forty times as long, because that could be in any time zone.
    """
    return f"CAST(floor(CAST(unix_micros({instant}) AS DOUBLE) / {DAY_US}.0) AS INTEGER)"
