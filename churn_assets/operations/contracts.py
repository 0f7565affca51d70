"""Data contracts: what must hold of a partition before anything is made from it.

The rules of a table follow from its declaration. A rule is one query over all partitions of a run.
Who asks for the verdict, and what it holds back, is in `operations.gate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from churn_assets.cutoffs import Calendar, midnight, parse_key
from churn_assets.features import feature_groups
from churn_assets.features.group import FeatureGroup
from churn_assets.features.queries import population
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.sources.tables import KNOWN_AT, RAW_TABLES, WITHDRAWN_AT, RawTable
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.sql import quoted
from churn_assets.stores.tables import Column, Table
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets.training_data.labels import CHURN_LABELS, SATISFACTION_CHURN_LABELS

# Shares of a slice's rows in quarantine.
QUARANTINE_WARN, QUARANTINE_ERROR = 0.01, 0.5
# A churn rate beyond these leaves a model little to learn.
LEAST_CHURN, MOST_CHURN = 0.01, 0.99


@dataclass(frozen=True)
class Subject:
    """Partitions of a table, as a rule sees them.

    Args:
        store: To read other tables.
        calendar: Where partitions lie.
        table: The table.
        keys: The partitions; `None` for a whole table.
    """

    store: OfflineStore
    calendar: Calendar
    table: Table
    keys: Sequence[str | None]

    @property
    def rows(self) -> str:
        """A relation of the partitions' rows, with the partition's key as `part`."""
        files = ", ".join(f"'{quoted(self.store.path(self.table, key))}'" for key in self.keys)
        return (
            f"(SELECT * EXCLUDE (_path), regexp_extract(_path, '=([0-9-]+)/[^/]*$', 1) AS part "
            f"FROM ({self.table.empty()} UNION ALL BY NAME FROM "
            f"read_parquet([{files}], hive_partitioning = false, filename = '_path')))"
        )

    @property
    def cutoffs(self) -> list[str]:
        return [key for key in self.keys if key is not None]

    def slices(self, table: Table, before: str) -> str:
        """A relation of a rollup's rows in the slices that begin before a cutoff."""
        return self.store.unchecked(table, self.store.earlier(table, before)).sql


@dataclass(frozen=True)
class Rule:
    """One thing that must hold.

    A query selects `part` and what was found, one column per kind of finding: a count, or words.
    0, NULL, and a partition without a row have passed.

    Args:
        name: Short, for messages.
        description: For people.
        query: What holds a partition back; None for a rule that only warns.
        warning: What is worth a look and holds nothing back.
    """

    name: str
    description: str
    query: Callable[[Subject], str] | None
    warning: Callable[[Subject], str] | None = None


# Raw files of version 0.1 do not have them: their rows count as known when they happened.
SINCE_0_2 = (KNOWN_AT.name, WITHDRAWN_AT.name)

SCHEMA = Rule("schema_as_declared", "The columns and their types are the declared ones.", None)


def schema_findings(path: Path, table: Table) -> str:
    """How a file's columns differ from the declared ones, in words; empty where they do not."""
    import duckdb

    try:
        rows = duckdb.from_parquet(str(path), hive_partitioning=False)
        found = {
            name: str(dtype).replace(" ", "")
            for name, dtype in zip(rows.columns, rows.types, strict=True)
        }
    except duckdb.Error as error:
        return f"{path} cannot be read: {error}"
    declared = {column.name: column.dtype.replace(" ", "") for column in table.columns}
    lacking = [name for name in declared if name not in found and name not in SINCE_0_2]
    other = [name for name in found if name not in declared]
    retyped = [
        f"{name} is {found[name]}, not {dtype}"
        for name, dtype in declared.items()
        if found.get(name, dtype) != dtype and not _holds_whole(found[name], dtype)
    ]
    named = {"lacks": lacking, "has in addition": other, "types": retyped}
    return "; ".join(f"{what} {', '.join(names)}" for what, names in named.items() if names)


def _holds_whole(found: str, declared: str) -> bool:
    """Whether a file has whole numbers where decimals are declared, as those of version 0.1 have.

    The values are the same, and a scan unites both types.
    """
    return found == "BIGINT" and declared.startswith("DECIMAL")


def primary_key(subject: Subject) -> str:
    """Keys that are not unique, lack a value, or belong to another partition than the file."""
    table = subject.table
    optional = (table.optional_key, *SINCE_0_2)
    missing = " OR ".join(f"{c} IS NULL" for c in table.key if c not in optional)
    own = f"coalesce(CAST({table.partitioned_by} AS VARCHAR), '')" if table.partitioned_by else "''"
    return f"""
        SELECT part,
            count(*) FILTER (WHERE copies > 1) AS "keys of several rows",
            count(*) FILTER (WHERE missing) AS "keys with a NULL",
            count(*) FILTER (WHERE strays) AS "keys of another partition"
        FROM (
            SELECT part, count(*) AS copies, bool_or({missing}) AS missing,
                bool_or({own} <> part) AS strays
            FROM {subject.rows} GROUP BY part, {", ".join(table.key)}
        ) GROUP BY part
    """


def values(subject: Subject) -> str:
    """Numbers that are not finite or beyond the declared limits, by column."""
    counts = [
        f'count(*) FILTER (WHERE {" OR ".join(limits)}) AS "{column.name}"'
        for column in subject.table.columns
        if (limits := _limits(column))
    ]
    return f"SELECT {', '.join(['part', *counts])} FROM {subject.rows} GROUP BY part"


def _limits(column: Column) -> list[str]:
    """What must not be true of a value."""
    return [
        *([f"NOT isfinite({column.name})"] if column.dtype == "DOUBLE" else []),
        *([f"{column.name} < {column.minimum}"] if column.minimum is not None else []),
        *([f"{column.name} > {column.maximum}"] if column.maximum is not None else []),
    ]


def equals_population(subject: Subject) -> str:
    """Customers of the population without a row, and rows of other customers."""
    activity = subject.slices(DAILY_ACTIVITY, max(subject.cutoffs))
    populations = [
        f"SELECT customer_id, DATE '{key}' AS cutoff FROM ("
        f"{population(activity, parse_key(key), subject.calendar.lookback_days)})"
        for key in subject.cutoffs
    ]
    return f"""
        WITH population AS ({" UNION ALL ".join(populations)})
        SELECT coalesce(CAST(population.cutoff AS VARCHAR), part) AS part,
            count(*) FILTER (WHERE found.customer_id IS NULL) AS "customers without a row",
            count(*) FILTER (WHERE population.customer_id IS NULL) AS "customers too many"
        FROM population
        FULL JOIN (SELECT DISTINCT part, customer_id FROM {subject.rows}) AS found
            ON found.customer_id = population.customer_id
            AND found.part = CAST(population.cutoff AS VARCHAR)
        GROUP BY 1
    """


def within_slice(subject: Subject) -> str:
    """Rows that tell of moments after their slice, or before it."""
    first = subject.calendar.first_slice.isoformat()
    windows = []
    for key in subject.cutoffs:
        begin, end = subject.calendar.slice_window(key)
        # Profile versions of before history began belong to its first slice.
        since = "NULL" if key == first else str(int(begin.timestamp()) * 1_000_000)
        windows.append(f"('{key}', {since}, {int(end.timestamp() * 1_000_000)})")
    return f"""
        SELECT part,
            count(*) FILTER (WHERE {subject.table.moment} >= ends) AS "rows of after the slice",
            count(*) FILTER (WHERE {subject.table.moment} < begins) AS "rows of before the slice"
        FROM {subject.rows} AS found
        JOIN (VALUES {", ".join(windows)}) AS windows (part, begins, ends) USING (part)
        GROUP BY part
    """


def no_future(group: FeatureGroup) -> Callable[[Subject], str]:
    """Rows of the group's sources that tell of moments at or after the cutoff."""

    def query(subject: Subject) -> str:
        last = max(subject.cutoffs)
        moments = " UNION ALL ".join(
            f"SELECT slice, max({table.moment}) AS newest FROM {subject.slices(table, last)} "
            "GROUP BY slice"
            for table in map(
                subject.store.tables.__getitem__, group.rollup_days(subject.calendar.lookback_days)
            )
        )
        cutoffs = ", ".join(
            f"('{key}', {int(midnight(parse_key(key)).timestamp()) * 1_000_000})"
            for key in subject.cutoffs
        )
        return f"""
            SELECT part, count(*) AS "slices that tell of moments after the cutoff"
            FROM (VALUES {cutoffs}) AS cutoffs (part, cutoff_us)
            JOIN ({moments}) AS sources
                ON CAST(slice AS VARCHAR) < part AND newest >= cutoff_us
            GROUP BY part
        """

    return query


def quarantined_share(raw: RawTable, above: float, up_to: float = 1.0) -> Callable[[Subject], str]:
    """The share of a slice's own rows that were rejected, where it is between the limits."""

    def query(subject: Subject) -> str:
        rejected = subject.store.unchecked(
            QUARANTINED_ROWS,
            sorted(set(subject.cutoffs) & set(subject.store.keys(QUARANTINED_ROWS))),
        ).sql
        return f"""
            WITH shares AS (
                SELECT part, avg(rejected) AS share FROM (
                    SELECT CAST(slice AS VARCHAR) AS part, 1 AS rejected FROM {rejected}
                    WHERE source = '{raw.source_name}' AND in_period
                    UNION ALL SELECT part, 0 FROM {subject.rows}
                ) GROUP BY part
            )
            SELECT part, printf('%.1f %%', 100 * share) AS "rows in quarantine"
            FROM shares WHERE share > {above} AND share <= {up_to}
        """

    return query


def label_balance(subject: Subject) -> str:
    return f"""
        SELECT part, printf('%.1f %%', 100 * avg(churned)) AS "customers who churned"
        FROM {subject.rows} GROUP BY part
        HAVING avg(churned) NOT BETWEEN {LEAST_CHURN} AND {MOST_CHURN}
    """


_POPULATION = Rule(
    "rows_equal_population",
    "One row for each customer with an event in the lookback, and for nobody else.",
    equals_population,
)
_VALUES = Rule("values", "Numbers are finite and within their declared limits.", values)
_OF_SLICES = Rule("no_future_data", "No row tells of a moment outside its slice.", within_slice)
_BY_TABLE: dict[str, list[Rule]] = {
    **{
        raw.table.name: [
            Rule(
                "quarantine_rate",
                f"At most {QUARANTINE_ERROR:.0%} of the slice's rows are in quarantine; a warning "
                f"above {QUARANTINE_WARN:.0%}.",
                quarantined_share(raw, QUARANTINE_ERROR),
                quarantined_share(raw, QUARANTINE_WARN, QUARANTINE_ERROR),
            ),
        ]
        for raw in RAW_TABLES
    },
    **{
        group.name: [
            _POPULATION,
            Rule(
                "no_future_data",
                "Everything that the features are made from happened before the cutoff.",
                no_future(group),
            ),
        ]
        # Review vectors add features to a group, no sources: its rules are the same.
        for group in feature_groups()
    },
    CHURN_LABELS.name: [
        _POPULATION,
        Rule(
            "label_balance",
            f"Between {LEAST_CHURN:.0%} and {MOST_CHURN:.0%} of the customers churned.",
            None,
            label_balance,
        ),
    ],
    SATISFACTION_CHURN_LABELS.name: [_POPULATION],
    TRAINING_DATASET: [_POPULATION],
    CHURN_PREDICTIONS.name: [_POPULATION],
}


def rules_of(table: Table) -> list[Rule]:
    """The rules of a table, that of its schema first."""
    return [
        SCHEMA,
        Rule(
            "primary_key",
            f"{', '.join(table.primary_key)}: unique, not NULL"
            f"{f' but {table.optional_key}' if table.optional_key else ''}, of this partition.",
            primary_key,
        ),
        *([_VALUES] if any(map(_limits, table.columns)) else []),
        *([_OF_SLICES] if table.moment else []),
        *_BY_TABLE.get(table.name, []),
    ]
