"""What was known when: every row has two times, and a cutoff sees what happened and was known.

`day` is the UTC day on which something happened, `known_day` the one on which it became known, and
`replaced_day` the one on which another version of the same key became known in its place, NULL
while none has. A row that became known on day `C` is not known at cutoff `C`, the midnight before.

A rollup row is the whole state of its key as known from `known_day` until `replaced_day`, so of
each key a cutoff sees one version at most, and sums, distinct counts, sessions and gaps need no
special case. `in_window` writes the predicate; nothing else does. All SQL here runs on DuckDB and
on Spark.
"""

from collections.abc import Sequence

from churn_assets.stores.sql import day_of
from churn_assets.stores.tables import Column

DAYS = "days since 1970-01-01"
DAY = Column("day", "INTEGER", "UTC day", DAYS)
KNOWN_DAY = Column("known_day", "INTEGER", "UTC day on which this version became known", DAYS)
REPLACED_DAY = Column(
    "replaced_day", "INTEGER", "UTC day on which another took its place; NULL while none has", DAYS
)


def known_before(cutoff_day: int | str) -> str:
    """The predicate of the versions that were known at a cutoff."""
    return f"known_day < {cutoff_day} AND (replaced_day IS NULL OR {cutoff_day} <= replaced_day)"


def in_window(days: float, cutoff_day: int | str) -> str:
    """The predicate of what happened in `[cutoff - days, cutoff)` and was known at the cutoff.

    Args:
        days: The length of the window; infinite for all days before the cutoff.
        cutoff_day: The cutoff as a day number, or SQL for it.
    """
    begin = "" if days == float("inf") else f"day >= {cutoff_day} - {int(days)} AND "
    return f"{begin}day < {cutoff_day} AND {known_before(cutoff_day)}"


def placed(relation: str, timestamp: str) -> str:
    """Raw rows with their days: `day` of a column of instants, `known_day` and `replaced_day`.

    Rows of version 0.1 do not say when they became known: as they happened.
    """
    known_at = f"coalesce(known_at, {timestamp})"
    return (
        f"(SELECT *, {day_of(timestamp)} AS day, {day_of(known_at)} AS known_day, "
        f"{day_of('withdrawn_at')} AS replaced_day FROM {relation} AS raw_rows)"
    )


def versions(events: str, key: Sequence[str], columns: Sequence[str]) -> str:
    """Rows once for each version of their key, with its `known_day` and `replaced_day`.

    The state of a key changes on every day on which one of its rows becomes known or is withdrawn;
    a version has the rows that are known and not withdrawn from such a day until the next. Where
    all rows of a key became known on their own day, which is nearly always, there is one version.

    Args:
        events: A relation of `placed` rows.
        key: The columns of the key, `day` among them; none of them is NULL.
        columns: The other columns to keep.
    """
    of_key = ", ".join(key)
    kept = ", ".join([*key, *columns])
    own = ", ".join(f"of_late.{name}" for name in [*key, *columns])
    same = " AND ".join(f"of_late.{name} = periods.{name}" for name in key)
    return f"""(
        WITH placed AS (SELECT {kept}, known_day, replaced_day FROM {events} AS events),
        late AS (
            SELECT DISTINCT {of_key} FROM placed
            WHERE known_day <> day OR replaced_day IS NOT NULL
        ),
        of_late AS (SELECT * FROM placed SEMI JOIN late USING ({of_key})),
        changes AS (
            SELECT {of_key}, known_day AS change FROM of_late
            UNION SELECT {of_key}, replaced_day FROM of_late WHERE replaced_day IS NOT NULL
        ),
        periods AS (
            SELECT {of_key}, change AS begins,
                lead(change) OVER (PARTITION BY {of_key} ORDER BY change) AS ends
            FROM changes
        )
        SELECT {kept}, known_day, replaced_day FROM placed ANTI JOIN late USING ({of_key})
        UNION ALL
        SELECT {own}, begins, ends FROM of_late JOIN periods ON {same}
            AND of_late.known_day <= begins
            AND (of_late.replaced_day IS NULL OR begins < of_late.replaced_day)
    )"""
