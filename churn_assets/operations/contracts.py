"""Data contracts: what must hold of a partition before anything is made from it.

The rules of a table follow from its declaration. Most have a condition beside them that holds of
nearly every partition, and one pass over a table's rows looks at the conditions of all its rules.
Where one does not hold, the rule's query says what is wrong, if anything is.
Who asks for the verdict, and what it holds back, is in `operations.gate`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from churn_assets.cutoffs import epoch_us, midnight, parse_key
from churn_assets.features import feature_groups
from churn_assets.features.group import FeatureGroup
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.operations.extents import extents
from churn_assets.operations.populations import equals_population
from churn_assets.operations.subjects import Findings, Subject, asked
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.sources.tables import KNOWN_AT, RAW_TABLES, WITHDRAWN_AT, RawTable
from churn_assets.stores.partitions import key_of
from churn_assets.stores.tables import Column, Table
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets.training_data.labels import CHURN_LABELS, SATISFACTION_CHURN_LABELS

# Shares of a slice's rows in quarantine.
QUARANTINE_WARN, QUARANTINE_ERROR = 0.01, 0.5
# A churn rate beyond these leaves a model little to learn.
LEAST_CHURN, MOST_CHURN = 0.01, 0.99


@dataclass(frozen=True)
class Rule:
    """One thing that must hold.

    Args:
        name: Short, for messages.
        description: For people.
        find: What holds a partition back; None for a rule that only warns.
        warning: What is worth a look and holds nothing back.
        holds: A condition for `subjects.cleared`: nothing is found where it is true. It need not be
            true wherever nothing is found, and costs less than to ask. None where there is no such
            condition.
    """

    name: str
    description: str
    find: Callable[[Subject], Findings] | None
    warning: Callable[[Subject], Findings] | None = None
    holds: Callable[[Subject], str] | None = None


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
    return f"""
        SELECT part,
            count(*) FILTER (WHERE copies > 1) AS "keys of several rows",
            count(*) FILTER (WHERE missing) AS "keys with a NULL",
            count(*) FILTER (WHERE strays) AS "keys of another partition"
        FROM (
            SELECT part, count(*) AS copies, bool_or({_lacks_key(subject.table)}) AS missing,
                bool_or({_is_stray(subject.table)}) AS strays
            FROM {subject.rows} GROUP BY part, {", ".join(subject.table.key)}
        ) GROUP BY part
    """


def keys_ascend(subject: Subject) -> str:
    """Whether a file is sorted by a unique key, as those are that the store has written."""
    return (
        "count(*) FILTER (WHERE ascends IS NOT true) = 1 AND count(*) FILTER "
        f"(WHERE {_lacks_key(subject.table)} OR {_is_stray(subject.table)}) = 0"
    )


def _lacks_key(table: Table) -> str:
    optional = (table.optional_key, *SINCE_0_2)
    return " OR ".join(f"{column} IS NULL" for column in table.key if column not in optional)


def _is_stray(table: Table) -> str:
    """Of a row that belongs to another partition than `part`."""
    own = f"coalesce(CAST({table.partitioned_by} AS VARCHAR), '')" if table.partitioned_by else "''"
    return f"{own} <> part"


def values(subject: Subject) -> str:
    """Numbers that are not finite or beyond the declared limits, by column."""
    counts = [
        f'count(*) FILTER (WHERE {" OR ".join(limits)}) AS "{column.name}"'
        for column in subject.table.columns
        if (limits := _limits(column, column.name, column.name))
    ]
    return f"SELECT {', '.join(['part', *counts])} FROM {subject.rows} GROUP BY part"


def extremes_within(subject: Subject) -> str:
    """Whether the least and the greatest value of each column are finite and within its limits.

    NaN is the greatest number. A column without a value has no extremes, and nothing beyond them.
    """
    beyond = [
        limit
        for column in subject.table.columns
        for limit in _limits(column, f"min({column.name})", f"max({column.name})")
    ]
    return f"({' OR '.join(beyond)}) IS NOT true"


def _limits(column: Column, least: str, greatest: str) -> list[str]:
    """What must not be true of the least and the greatest of some values."""
    return [
        *(
            [f"NOT isfinite({v})" for v in dict.fromkeys([least, greatest])]
            if column.dtype == "DOUBLE"
            else []
        ),
        *([f"{least} < {column.minimum}"] if column.minimum is not None else []),
        *([f"{greatest} > {column.maximum}"] if column.maximum is not None else []),
    ]


def within_slice(subject: Subject) -> str:
    """Rows that tell of moments after their slice, or before it."""
    moment = subject.table.moment
    begins, ends = _bounds(subject)
    return f"""
        SELECT part,
            count(*) FILTER (WHERE {moment} >= {ends}) AS "rows of after the slice",
            count(*) FILTER (WHERE {moment} < {begins}) AS "rows of before the slice"
        FROM {subject.rows} GROUP BY part
    """


def moments_within(subject: Subject) -> str:
    """Whether the first and the last moment of a slice's rows are within it."""
    moment = subject.table.moment
    begins, ends = _bounds(subject)
    return f"(max({moment}) >= {ends} OR min({moment}) < {begins}) IS NOT true"


def _bounds(subject: Subject) -> tuple[str, str]:
    """SQL for the instants at which the slice `part` begins, NULL for any, and ends."""
    first = subject.calendar.first_slice.isoformat()
    begins, ends = [], []
    for key in subject.cutoffs:
        begin, end = subject.calendar.slice_window(key)
        # Profile versions of before history began belong to its first slice.
        since = "NULL" if key == first else str(epoch_us(begin))
        begins.append(f"WHEN '{key}' THEN {since}")
        ends.append(f"WHEN '{key}' THEN {epoch_us(end)}")
    return f"CASE part {' '.join(begins)} END", f"CASE part {' '.join(ends)} END"


def no_future(group: FeatureGroup) -> Callable[[Subject], str]:
    """Slices of the group's sources that tell of moments at or after the cutoff."""

    def query(subject: Subject) -> str:
        newest = [
            (key_of(path), moment)
            for name in group.rollup_days(subject.calendar.lookback_days)
            for path, moment in _newest(subject, subject.store.tables[name]).items()
        ]
        moments = ", ".join(f"('{key}', {moment})" for key, moment in newest)
        cutoffs = ", ".join(
            f"('{key}', {epoch_us(midnight(parse_key(key)))})" for key in subject.cutoffs
        )
        return f"""
            SELECT part, count(*) AS "slices that tell of moments after the cutoff"
            FROM (VALUES {cutoffs}) AS cutoffs (part, cutoff_us)
            JOIN (VALUES {moments or "('', NULL)"}) AS sources (slice, newest)
                ON slice < part AND newest >= cutoff_us
            GROUP BY part
        """

    return query


def _newest(subject: Subject, table: Table) -> dict[Path, int]:
    """The newest moment of each slice that tells of one."""
    assert table.moment is not None, f"{table.name} is partitioned by slice and has no moment"
    found = extents(subject.connection, subject.slices(table, max(subject.cutoffs)), table.moment)
    return {path: newest for path, (_, newest) in found.items() if newest is not None}


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
    """The share of customers who churned, where it is one-sided."""
    return f"""
        SELECT part, printf('%.1f %%', 100 * avg(churned)) AS "customers who churned"
        FROM {subject.rows} GROUP BY part
        HAVING NOT {labels_are_balanced(subject)}
    """


def labels_are_balanced(_: Subject) -> str:
    return f"(avg(churned) BETWEEN {LEAST_CHURN} AND {MOST_CHURN})"


_POPULATION = Rule(
    "rows_equal_population",
    "One row for each customer with an event in the lookback, and for nobody else.",
    equals_population,
)
_VALUES = Rule(
    "values",
    "Numbers are finite and within their declared limits.",
    asked(values),
    holds=extremes_within,
)
_OF_SLICES = Rule(
    "no_future_data",
    "No row tells of a moment outside its slice.",
    asked(within_slice),
    holds=moments_within,
)
_BY_TABLE: dict[str, list[Rule]] = {
    **{
        raw.table.name: [
            Rule(
                "quarantine_rate",
                f"At most {QUARANTINE_ERROR:.0%} of the slice's rows are in quarantine; a warning "
                f"above {QUARANTINE_WARN:.0%}.",
                asked(quarantined_share(raw, QUARANTINE_ERROR)),
                asked(quarantined_share(raw, QUARANTINE_WARN, QUARANTINE_ERROR)),
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
                asked(no_future(group)),
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
            asked(label_balance),
            holds=labels_are_balanced,
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
            asked(primary_key),
            holds=keys_ascend,
        ),
        *([_VALUES] if any(_limits(c, c.name, c.name) for c in table.columns) else []),
        *([_OF_SLICES] if table.moment else []),
        *_BY_TABLE.get(table.name, []),
    ]
