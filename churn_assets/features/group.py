"""What a feature is: one declaration, and the one function that turns declarations into SQL.

A feature is a name and an aggregate expression over the columns of a rollup. Expressions keep to
the subset that DuckDB and Spark run verbatim: sums, min, max, count, FILTER, CASE, arithmetic on
integer days and microseconds, and casts to DOUBLE before dividing. Everything else about a feature
(schema, Dagster metadata, registry) derives from its declaration.

Windows are half-open, `[cutoff - N days, cutoff)`, and exact on integer days because cutoffs are
UTC midnights. `in_window` writes that predicate; nothing else does.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from churn_assets.cutoffs import DAY_US, day_number
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.stores.offline import Scan
from churn_assets.stores.tables import Column, Table, cutoff_table, sql_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# A window in days; LOOKBACK is the setting CHURN_LOOKBACK_DAYS, EVER all days before the cutoff.
Window = int | Literal["lookback", "ever"]
LOOKBACK: Window = "lookback"
EVER: Window = "ever"

# Instants are compared as microseconds; the cutoff is a midnight.
CUTOFF_US = f"CAST(cutoff_day AS BIGINT) * {DAY_US}"


def window_days(window: Window, lookback_days: int) -> float:
    """The length of a window in days, infinite for EVER."""
    if window == EVER:
        return math.inf
    return lookback_days if window == LOOKBACK else int(window)


def in_window(days: float) -> str:
    """The predicate of rows in `[cutoff - days, cutoff)`, over `day` and `cutoff_day`."""
    if days == math.inf:
        return "day < cutoff_day"
    return f"day >= cutoff_day - {days} AND day < cutoff_day"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The PSI against the training data from which a feature is reported as drifting.

    The defaults are the rule of thumb of credit scoring: below 0.1 no change to act on, from 0.25
    on a different population (Siddiqi 2006, Credit Risk Scorecards).

    Raises:
        ValueError: The limits are not positive and in order.
    """

    warn: float = 0.1
    error: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.warn <= self.error:
            raise ValueError(
                f"A tolerance needs 0 < warn <= error; they are {self.warn} and {self.error}."
            )


# Of features over all days before the cutoff: they grow with history, most of all in a shop's first
# year. With nothing wrong, PSI came to 0.25 (gap_mean_days) on the UCI data and 0.06 on the
# synthetic shop.
GROWING = Tolerance(warn=0.3, error=0.6)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature, declared beside the code that computes it.

    Args:
        name: The column's name, unique over all groups.
        sql: An aggregate over the source's rows before the cutoff. `{window}` stands for the
            predicate of this feature's window and `{lookback}` for the lookback's.
        source: A rollup, or a derived source of the group.
        window: The days that `{window}` admits.
        dtype: DuckDB type of the column.
        unit: Empty for a pure number.
        description: What it says, for people.
        default: The value where the customer has no such rows; None where it is undefined.
        sensitive: Whether it says who the customer is rather than what they did. The service
            withholds it from callers without the right to see it.
        tolerance: How much it may drift; wider where it grows with the calendar.
        method: How the summed values are made, where a setting decides: part of the version.
        minimum: No value is below it; None where there is no limit.
        maximum: No value is above it.

    Raises:
        ValueError: The declaration cannot be right, such as a window of no day.
    """

    name: str
    sql: str
    source: str
    window: Window
    dtype: str
    unit: str
    description: str
    default: int | None = None
    sensitive: bool = False
    tolerance: Tolerance = Tolerance()
    method: str = ""
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        limits = self.minimum, self.maximum
        wrong = {
            "a name in lower case": not re.fullmatch("[a-z][a-z0-9_]*", self.name),
            "a description": not self.description.strip(),
            "a window of at least a day": isinstance(self.window, int) and self.window < 1,
            "minimum <= maximum": None not in limits and limits[0] > limits[1],  # type: ignore[operator]
        }
        if lacking := [what for what, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(f"Feature {self.name!r} needs {', '.join(lacking)}.")

    @property
    def column(self) -> Column:
        return Column(
            self.name, self.dtype, self.description, self.unit, self.minimum, self.maximum
        )

    def reach(self, lookback_days: int) -> float:
        """How many days before the cutoff the expression reads."""
        own = window_days(self.window, lookback_days)
        return max(own, lookback_days) if "{lookback}" in self.sql else own


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A source made from a rollup: `{rollup}` in `sql` stands for it.

    A row of it must be known on its own day: it may look back, never ahead.
    """

    rollup: str
    sql: str


@dataclass(frozen=True, kw_only=True)
class FeatureGroup:
    """Features that are computed, stored and owned together.

    Grain: one row per customer of the population and cutoff.

    Args:
        name: Also the asset's and the table's.
        description: For people.
        owner: Who answers for it.
        module: Where it is declared.
        features: In the order of the columns.
        derived: The sources that are made from rollups, by name.
        describe: What Dagster shows of a partition beside its counts: see `Query`.
    """

    name: str
    description: str
    owner: str
    module: str
    features: tuple[Feature, ...]
    derived: Mapping[str, Derived] = field(default_factory=dict)
    describe: "Callable[[DuckDBPyConnection, Scan], Mapping[str, Any]] | None" = None

    @cached_property
    def table(self) -> Table:
        return cutoff_table(self.name, [feature.column for feature in self.features])

    @cached_property
    def sources(self) -> dict[str, list[Feature]]:
        """The features of each source."""
        return {
            name: [feature for feature in self.features if feature.source == name]
            for name in dict.fromkeys(feature.source for feature in self.features)
        }

    def source_days(self, source: str, lookback_days: int) -> float:
        """The longest window of the source's features, which bounds the rows that are read."""
        return max(feature.reach(lookback_days) for feature in self.sources[source])

    def rollup_days(self, lookback_days: int) -> dict[str, float]:
        """The rollups that the group reads, and how many days back.

        Every group reads the activity of the lookback: that is the population.
        """
        days = {DAILY_ACTIVITY.name: float(lookback_days)}
        for source in self.sources:
            needed = self.source_days(source, lookback_days)
            days[self.rollup(source)] = max(needed, days.get(self.rollup(source), 0))
        return days

    def relation(self, source: str, relations: Mapping[str, str]) -> str:
        """The SQL relation of a source, given those of the rollups."""
        if source not in self.derived:
            return relations[source]
        derived = self.derived[source]
        return f"({derived.sql.replace('{rollup}', relations[derived.rollup])})"

    def rollup(self, source: str) -> str:
        """The table that a source is made from."""
        return self.derived[source].rollup if source in self.derived else source

    def version(self, feature: Feature) -> str:
        """Changes whenever the feature's definition does."""
        derived = self.derived.get(feature.source)
        parts = (feature.sql, str(feature.window), feature.dtype, str(feature.default))
        return sql_version(*parts, derived.sql if derived else "", feature.method)


def total(column: str, window: str = "{window}") -> str:
    """The sum of a rollup column over a window."""
    return f"sum({column}) FILTER (WHERE {window})"


def ratio(numerator: str, denominator: str) -> str:
    """A quotient as DOUBLE, NULL where the denominator is 0."""
    return f"CAST({numerator} AS DOUBLE) / NULLIF(CAST({denominator} AS DOUBLE), 0)"


def whole_days_since(instant_us: str) -> str:
    """Whole days from an instant in microseconds to the cutoff: the floor of the difference."""
    return f"floor(CAST({CUTOFF_US} - {instant_us} AS DOUBLE) / 8.64e10)"


def sample_sd(count: str, total: str, total_squares: str) -> str:
    """Sample standard deviation from exact sums, NULL for fewer than two values.

    The sums are decimals or integers, so `n Σx² - (Σx)²` is exact and never negative: with sums
    in floating point a constant series can get a spread, or a negative variance.
    """
    spread = f"{count} * {total_squares} - {total} * {total}"
    return (
        f"CASE WHEN {count} > 1 THEN sqrt(CAST({spread} AS DOUBLE) "
        f"/ (CAST({count} AS DOUBLE) * CAST({count} - 1 AS DOUBLE))) END"
    )


def cutoff_rows(cutoffs: Sequence[dt.date]) -> str:
    """The cutoffs as a relation of (cutoff, cutoff_day, cutoff_ymd): the date in three forms."""
    rows = ", ".join(f"(DATE '{c}', {day_number(c)}, {c:%Y%m%d})" for c in cutoffs)
    return f"cutoffs (cutoff, cutoff_day, cutoff_ymd) AS (VALUES {rows})"


def population(daily_activity: str, lookback_days: int) -> str:
    """Customers with an event in `[C - lookback, C)`: one row per customer and cutoff."""
    return (
        f"SELECT DISTINCT customer_id, cutoff, cutoff_day FROM {daily_activity} AS activity "
        f"JOIN cutoffs ON {in_window(lookback_days)}"
    )


def group_query(
    group: FeatureGroup,
    cutoffs: Sequence[dt.date],
    lookback_days: int,
    relations: Mapping[str, str],
) -> str:
    """One SELECT that computes a group for all the given cutoffs.

    Args:
        group: The declarations.
        cutoffs: UTC midnights.
        lookback_days: The population rule and the window named LOOKBACK.
        relations: A SQL relation for each rollup of the group, by name.
    """
    ctes = [
        cutoff_rows(cutoffs),
        f"population AS ({population(relations[DAILY_ACTIVITY.name], lookback_days)})",
    ]
    joins = []
    for source, features in group.sources.items():
        expressions = ",\n    ".join(
            f"{_expression(feature, lookback_days)} AS {feature.name}" for feature in features
        )
        ctes.append(
            f"{source}_features AS (\n    SELECT customer_id, cutoff_day,\n    {expressions}\n"
            f"    FROM {group.relation(source, relations)} AS {source}_rows\n"
            f"    JOIN cutoffs ON {in_window(group.source_days(source, lookback_days))}\n"
            "    GROUP BY customer_id, cutoff_day\n)"
        )
        joins.append(
            f"LEFT JOIN {source}_features ON {source}_features.customer_id = population.customer_id"
            f" AND {source}_features.cutoff_day = population.cutoff_day"
        )
    columns = ",\n    ".join(_column(feature) for feature in group.features)
    return (
        "WITH " + ",\n".join(ctes) + "\nSELECT population.customer_id, population.cutoff,\n"
        f"    {columns}\nFROM population\n" + "\n".join(joins)
    )


def _expression(feature: Feature, lookback_days: int) -> str:
    window = in_window(window_days(feature.window, lookback_days))
    return feature.sql.replace("{window}", window).replace("{lookback}", in_window(lookback_days))


def _column(feature: Feature) -> str:
    value = f"{feature.source}_features.{feature.name}"
    if feature.default is not None:
        value = f"coalesce({value}, {feature.default})"
    return f"CAST({value} AS {feature.dtype}) AS {feature.name}"
