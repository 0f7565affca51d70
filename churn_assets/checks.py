"""Data contracts: what must hold of a partition before anything is made from it.

The rules of a table follow from its declaration. A rule looks at all partitions of a run in one
query, and together they are the asset's one check: an evaluation is as expensive to record as a
materialization, and a backfill has one per partition.

What was found is recorded twice: in Dagster, and as the verdict of the file's content
(`stores.verdicts`), which is what holds a partition back: whoever asks the offline store for it, in
this run or a later one, in a backfill, the service or a command, is refused while a rule is broken.
A content that nobody has looked at is looked at in that moment, so neither a run that was killed
between writing and checking nor a file that was replaced by hand makes a way around.
"""

import getpass
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar, midnight, parse_key, utc_now
from churn_assets.features import GROUPS
from churn_assets.features.group import FeatureGroup, cutoff_rows, population
from churn_assets.labels import CHURN_LABELS, SATISFACTION_CHURN_LABELS
from churn_assets.predictions import CHURN_PREDICTIONS
from churn_assets.raw import QUARANTINED_ROWS, RAW_TABLES, RawTable
from churn_assets.rollups import DAILY_ACTIVITY
from churn_assets.stores.offline import OfflineStore, file_digest, quoted
from churn_assets.stores.verdicts import Verdict, read_verdict, write_verdict
from churn_assets.tables import Column, Table, markdown
from churn_assets.training import TRAINING_DATASET

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Shares of a slice's rows in quarantine.
QUARANTINE_WARN, QUARANTINE_ERROR = 0.01, 0.5
# A churn rate beyond these leaves a model little to learn.
LEAST_CHURN, MOST_CHURN = 0.01, 0.99


CONTRACT = "data_contract"


class HeldBack(ValueError):
    """A partition was asked for that failed a blocking rule."""


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
            f"(SELECT *, regexp_extract(file, '=([0-9-]+)/[^/]*$', 1) AS part FROM read_parquet("
            f"[{files}], hive_partitioning = false, filename = 'file'))"
        )

    @property
    def cutoffs(self) -> list[str]:
        return [key for key in self.keys if key is not None]

    def slices(self, table: Table, before: str) -> str:
        """A relation of a rollup's rows in the slices that begin before a cutoff."""
        keys = [key for key in self.store.keys(table) if key < before]
        return self.store.unchecked(table, keys).sql


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
    lacking = [name for name in declared if name not in found]
    other = [name for name in found if name not in declared]
    retyped = [
        f"{name} is {found[name]}, not {dtype}"
        for name, dtype in declared.items()
        if found.get(name, dtype) != dtype
    ]
    named = {"lacks": lacking, "has in addition": other, "types": retyped}
    return "; ".join(f"{what} {', '.join(names)}" for what, names in named.items() if names)


def primary_key(subject: Subject) -> str:
    """Keys that are not unique, lack a value, or belong to another partition than the file."""
    table = subject.table
    missing = " OR ".join(f"{column} IS NULL" for column in table.key)
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
    cutoffs = [parse_key(key) for key in subject.cutoffs]
    activity = subject.slices(DAILY_ACTIVITY, max(subject.cutoffs))
    return f"""
        WITH {cutoff_rows(cutoffs)},
        population AS ({population(activity, subject.calendar.lookback_days)})
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
        for group in GROUPS
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
    TRAINING_DATASET.name: [_POPULATION],
    CHURN_PREDICTIONS.name: [_POPULATION],
}


def rules_of(table: Table) -> list[Rule]:
    """The rules of a table, that of its schema first."""
    return [
        SCHEMA,
        Rule(
            "primary_key",
            f"{', '.join(table.primary_key)}: unique, never NULL, of this partition.",
            primary_key,
        ),
        *([_VALUES] if any(map(_limits, table.columns)) else []),
        *([_OF_SLICES] if table.moment else []),
        *_BY_TABLE.get(table.name, []),
    ]


def audit(
    store: OfflineStore, calendar: Calendar, table: Table, keys: Sequence[str | None]
) -> dict[str | None, Verdict]:
    """Look at partitions of a table and keep the verdicts.

    A partition whose columns are not as declared fails by that alone: nothing else can be asked.
    """
    rules = rules_of(table)
    names = tuple(rule.name for rule in rules)
    contents = {key: file_digest(store.path(table, key)) for key in keys}
    failures: dict[str | None, dict[str, str]] = {key: {} for key in keys}
    warnings: dict[str | None, dict[str, str]] = {key: {} for key in keys}
    for key in keys:
        if found := schema_findings(store.path(table, key), table):
            failures[key][SCHEMA.name] = found
    sound = [key for key in keys if not failures[key]]
    if sound:
        subject = Subject(store, calendar, table, sound)
        with store.connect() as connection:
            for rule in rules:
                for query, found_by in ((rule.query, failures), (rule.warning, warnings)):
                    for key, words in _findings(connection, query, subject):
                        found_by[key][rule.name] = words
    verdicts = {key: Verdict(contents[key], names, failures[key], warnings[key]) for key in keys}
    for key, verdict in verdicts.items():
        before = read_verdict(store.home, table.name, key)
        if before and before.accepted and before.content == verdict.content:
            verdicts[key] = verdict = replace(verdict, accepted=before.accepted)
        write_verdict(store.home, table.name, key, verdict)
    return verdicts


def _findings(
    connection: "DuckDBPyConnection", query: Callable[[Subject], str] | None, subject: Subject
) -> Iterator[tuple[str | None, str]]:
    """What a query found, by partition."""
    if query is None:
        return
    for row in connection.sql(query(subject)).to_arrow_table().to_pylist():
        key = row.pop("part") or None
        if findings := [f"{what}: {found}" for what, found in row.items() if found]:
            yield key, ", ".join(findings)


@dataclass(frozen=True)
class Gate:
    """Refuses partitions that break a rule; looks at those that nobody has looked at."""

    calendar: Calendar

    def __call__(self, store: OfflineStore, table: Table, keys: Sequence[str | None]) -> None:
        """Let `keys` of a table pass.

        Raises:
            HeldBack: One of them breaks a rule, and nobody accepted it.
        """
        rules = tuple(rule.name for rule in rules_of(table))
        known = {key: current_verdict(store, table, key) for key in keys}
        verdicts = {key: found for key, found in known.items() if found and found.rules == rules}
        if unseen := [key for key in keys if key not in verdicts]:
            verdicts |= audit(store, self.calendar, table, unseen)
        for key in keys:
            if verdicts[key].holds_back:
                raise HeldBack(held_back(table, key, verdicts[key]))


def current_verdict(store: OfflineStore, table: Table, key: str | None) -> Verdict | None:
    """The verdict of the present content of a partition; None where it has none."""
    verdict = read_verdict(store.home, table.name, key)
    of_content = verdict and verdict.content == file_digest(store.path(table, key))
    return verdict if of_content else None


def held_back(table: Table, key: str | None, verdict: Verdict) -> str:
    """What was found, why that matters and what to do."""
    found = "; ".join(f"{rule} ({what})" for rule, what in verdict.failures.items())
    name = f"{table.name} {key}" if key else table.name
    return (
        f"{name} is held back, nothing is made from it: {found}. Mend its source and materialize "
        f"it again; if it is right as it is, `churn accept {name} --reason WHY` lets it pass."
    )


def accept(
    store: OfflineStore,
    calendar: Calendar,
    name: str,
    key: str | None,
    reason: str,
    instance: dg.DagsterInstance,
) -> Verdict:
    """Let the present content of a partition pass in spite of what was found, and record that.

    Raises:
        ValueError: There is no such table, it breaks no rule, or no reason is given.
        FileNotFoundError: There is no such partition.
    """
    table = store.tables.get(name)
    if table is None:
        raise ValueError(f"There is no table {name}. Tables are {', '.join(store.tables)}.")
    store.unchecked(table, [key or ""])
    verdict = audit(store, calendar, table, [key])[key]
    if not verdict.failures:
        raise ValueError(f"{name} {key or ''} breaks no rule: there is nothing to accept.")
    if not reason.strip():
        raise ValueError("Say why the partition is right as it is: --reason WHY.")
    by = {"by": getpass.getuser(), "reason": reason, "at": utc_now().isoformat(timespec="seconds")}
    accepted = replace(verdict, accepted=by)
    write_verdict(store.home, name, key, accepted)
    instance.report_runless_asset_event(evaluation(table, key, accepted))
    return accepted


def evaluation(table: Table, key: str | None, verdict: Verdict) -> dg.AssetCheckEvaluation:
    """A verdict as Dagster shows it."""
    accepted = dict(verdict.accepted or {})
    found = {rule: verdict.findings.get(rule, "") for rule in verdict.rules}
    if SCHEMA.name in verdict.failures:
        found |= {rule: "not looked at" for rule in found if rule != SCHEMA.name}
    return dg.AssetCheckEvaluation(
        dg.AssetKey(table.name),
        CONTRACT,
        passed=not verdict.findings or bool(accepted),
        severity=(dg.AssetCheckSeverity.ERROR if verdict.failures else dg.AssetCheckSeverity.WARN),
        description="; ".join(f"{rule}: {what}" for rule, what in verdict.findings.items()) or None,
        metadata={
            "rules": dg.MetadataValue.md(
                markdown(["rule", "found"], [[r, what or "✓"] for r, what in found.items()])
            ),
            **{f"accepted {what}": text for what, text in accepted.items()},
        },
        blocking=True,
        partition=key,
    )


def definitions(
    assets: Sequence[dg.AssetsDefinition], calendar: Calendar, store: OfflineStore
) -> list[dg.AssetChecksDefinition]:
    """The check of every table that one of the assets makes."""
    specs = {spec.key.path[-1]: spec for asset in assets for spec in asset.specs}
    return [
        _definition(table, specs[name].partitions_def, calendar, store)
        for name, table in store.tables.items()
        if name in specs
    ]


def _definition(
    table: Table,
    partitions: dg.PartitionsDefinition | None,
    calendar: Calendar,
    store: OfflineStore,
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=table.name,
        name=CONTRACT,
        description="\n".join(f"- {rule.name}: {rule.description}" for rule in rules_of(table)),
        blocking=True,
        partitions_def=partitions,
    )
    def data_contract(context: dg.AssetCheckExecutionContext) -> Any:
        run = context.op_execution_context
        wanted: list[str | None] = [*sorted(run.partition_keys)] if run.has_partitions else [None]
        # A step may leave a partition for later, such as reviews without a topic model.
        keys = [key for key in wanted if store.path(table, key).exists()]
        verdicts = audit(store, calendar, table, keys)
        # The check result of a range belongs to no partition; these do.
        for key, verdict in verdicts.items():
            run.log_event(evaluation(table, key, verdict))  # type: ignore[arg-type]
        refused = [
            held_back(table, key, verdict)
            for key, verdict in verdicts.items()
            if verdict.holds_back
        ]
        if refused:
            raise dg.Failure("\n".join(refused), allow_retries=False)
        yield dg.Output(None)

    return data_contract
