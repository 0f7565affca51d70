"""The SQL of features: for each cutoff one statement, generated from the declarations.

Of every source and window there is one short aggregation, whose window stands in its WHERE, for all
groups that need it; they are joined to the population, which is computed once. The text runs on
DuckDB and on Spark. A statement reads rollups only, never another cutoff's rows, so what a cutoff
gets does not depend on what was computed before or with it.
"""

import datetime as dt
import math
from collections.abc import Callable, Sequence

from churn_assets.cutoffs import day_number
from churn_assets.features.group import Derived, Feature, FeatureGroup, window_days
from churn_assets.history.known import in_window, placed
from churn_assets.history.rollups import DAILY_ACTIVITY

# Any cutoff serves to make a code version of SQL; it must only be the same at every load.
ANY_CUTOFF = dt.date(2000, 1, 1)

# A SQL relation of a rollup that has at least the rows of so many days before the cutoff.
Relation = Callable[[str, float], str]


def population(daily_activity: str, cutoff: dt.date, lookback_days: int) -> str:
    """Customers with an event in `[C - lookback, C)` that was known at `C`, each once."""
    return (
        f"SELECT DISTINCT customer_id FROM {daily_activity} AS activity "
        f"WHERE {in_window(lookback_days, day_number(cutoff))}"
    )


def feature_query(
    groups: Sequence[FeatureGroup],
    cutoff: dt.date,
    lookback_days: int,
    relation: Relation,
) -> str:
    """One SELECT that computes the features of groups at a cutoff, a row per customer.

    Args:
        groups: The declarations.
        cutoff: A UTC midnight.
        lookback_days: The population rule and the window named LOOKBACK.
        relation: The rollups.
    """
    parts: dict[tuple[str, Derived | None, float], list[Feature]] = {}
    for group in groups:
        for feature in group.features:
            derived = group.derived.get(feature.source)
            place = (feature.source, derived, feature.reach(lookback_days))
            parts.setdefault(place, []).append(feature)
    activity = relation(DAILY_ACTIVITY.name, lookback_days)
    of_population, ctes = population(activity, cutoff, lookback_days), list[str]()
    joins, part_of = list[str](), dict[str, str]()
    for number, ((source, derived, days), features) in enumerate(parts.items(), 1):
        part = f"{source}_{number}"
        part_of |= {feature.name: part for feature in features}
        if (source, derived, days) == (DAILY_ACTIVITY.name, None, lookback_days):
            # Its customers are those of the population, which is not to be found twice.
            of_population = f"SELECT customer_id FROM {part}"
        expressions = ",\n    ".join(
            f"{_expression(feature, cutoff, lookback_days)} AS {feature.name}"
            for feature in features
        )
        rows = source_rows(source, derived, relation, cutoff, days)
        ctes.append(
            f"{part} AS (\n    SELECT customer_id,\n    {expressions}\n"
            f"    FROM {rows} AS source_rows\n    GROUP BY customer_id\n)"
        )
        joins.append(f"LEFT JOIN {part} ON {part}.customer_id = population.customer_id")
    columns = ",\n    ".join(
        _column(feature, part_of[feature.name]) for group in groups for feature in group.features
    )
    return (
        "WITH "
        + ",\n".join([*ctes, f"population AS ({of_population})"])
        + f"\nSELECT population.customer_id, DATE '{cutoff}' AS cutoff,"
        f"\n    {columns}\nFROM population\n" + "\n".join(joins)
    )


def source_rows(
    source: str,
    derived: Derived | None,
    relation: Relation,
    cutoff: dt.date,
    days: float,
) -> str:
    """The rows of a source that a cutoff sees in a window, as a relation.

    Args:
        source: A rollup, or what `derived` declares.
        derived: How the source is made; None of a rollup.
        relation: The rollups.
        cutoff: A UTC midnight.
        days: The length of the window.
    """
    rollup = relation(derived.rollup if derived else source, days)
    if derived and derived.timestamp:
        rollup = placed(rollup, derived.timestamp)
    seen = f"(SELECT * FROM {rollup} AS rows_of WHERE {in_window(days, day_number(cutoff))})"
    return f"({derived.sql.replace('{rollup}', seen)})" if derived else seen


def _expression(feature: Feature, cutoff: dt.date, lookback_days: int) -> str:
    day = day_number(cutoff)
    # What the expression sees is known at the cutoff and was before it.
    days = window_days(feature.window, lookback_days)
    window = "true" if days == math.inf else f"day >= {day} - {int(days)}"
    given = {"window": window, "cutoff_day": str(day), "cutoff_ymd": f"{cutoff:%Y%m%d}"}
    sql = feature.sql
    for name, text in given.items():
        sql = sql.replace(f"{{{name}}}", text)
    return sql


def _column(feature: Feature, part: str) -> str:
    value = f"{part}.{feature.name}"
    if feature.default is not None:
        value = f"coalesce({value}, {feature.default})"
    return f"CAST({value} AS {feature.dtype}) AS {feature.name}"
