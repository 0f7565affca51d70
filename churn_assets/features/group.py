"""What a feature is: one declaration, from which all else about it follows.

A feature is a name and an aggregate expression over those rows of a rollup that lie in its window
and were known at the cutoff. Expressions keep to the subset that DuckDB and Spark run verbatim:
sums, min, max, count, FILTER, CASE, arithmetic on integer days and microseconds, and casts to
DOUBLE before dividing. Everything else about a feature (schema, Dagster metadata, registry)
derives from its declaration. The statements are made in `features.queries`.

Windows are half-open, `[cutoff - N days, cutoff)`, and exact on integer days because cutoffs are
UTC midnights.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from churn_assets.cutoffs import DAY_US
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.stores.partitions import Scan
from churn_assets.stores.tables import Column, Table, cutoff_table, sql_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# A window in days; LOOKBACK is the setting CHURN_LOOKBACK_DAYS, EVER all days before the cutoff.
Window = int | Literal["lookback", "ever"]
LOOKBACK: Window = "lookback"
EVER: Window = "ever"

# Instants are compared as microseconds; the cutoff is a midnight.
CUTOFF_US = f"CAST({{cutoff_day}} AS BIGINT) * {DAY_US}"


def window_days(window: Window, lookback_days: int) -> float:
    """The length of a window in days, infinite for EVER."""
    if window == EVER:
        return math.inf
    return lookback_days if window == LOOKBACK else int(window)


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
        sql: An aggregate over the source's rows of its window. `{cutoff_day}` stands for the cutoff
            as a day number and `{cutoff_ymd}` for its date as a number.
        source: A rollup, or a derived source of the group.
        window: How many days before the cutoff it looks at.
        against: A longer window whose rows the expression sees too. `{window}` stands for the
            predicate of those of its own.
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
    against: Window | None = None
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
        return window_days(self.window if self.against is None else self.against, lookback_days)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A source made from what a cutoff sees of a table.

    Args:
        rollup: The table.
        sql: A query; `{rollup}` stands for those rows of the table that lie in the window and were
            known at the cutoff.
        timestamp: Of a raw table, the column of the time of its rows.
    """

    rollup: str
    sql: str
    timestamp: str | None = None


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

    def rollup_days(self, lookback_days: int) -> dict[str, float]:
        """The rollups that the group reads, and how many days back.

        Every group reads the activity of the lookback: that is the population.
        """
        days = {DAILY_ACTIVITY.name: float(lookback_days)}
        for feature in self.features:
            rollup = self.rollup(feature.source)
            days[rollup] = max(feature.reach(lookback_days), days.get(rollup, 0))
        return days

    def rollup(self, source: str) -> str:
        """The table that a source is made from."""
        return self.derived[source].rollup if source in self.derived else source

    def version(self, feature: Feature) -> str:
        """Changes whenever the feature's definition does."""
        derived = self.derived.get(feature.source)
        against = "" if feature.against is None else str(feature.against)
        parts = (feature.sql, str(feature.window), against, feature.dtype, str(feature.default))
        return sql_version(*parts, derived.sql if derived else "", feature.method)


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
