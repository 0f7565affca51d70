"""Inspection: what a source holds and how it would be read, before anything is stored.

Each table is read and validated as an ingestion of its whole history does it, into temporary tables
of a connection of its own. The state is neither read nor written.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar
from churn_assets.history.event_names import event_type
from churn_assets.history.formats import find_formats
from churn_assets.history.parsing import values_query
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.validation import ingest
from churn_assets.history.values import as_text
from churn_assets.history.ways import place
from churn_assets.settings import Settings
from churn_assets.sources import open_source
from churn_assets.sources.files import Files
from churn_assets.sources.reading import own_columns
from churn_assets.sources.source import Source, SourceTable
from churn_assets.sources.tables import EVENTS, RAW_TABLES, REVIEWS, RawTable
from churn_assets.stores.offline import OfflineStore

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST_LISTED = 20
ALL_TIME = (dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, tzinfo=dt.UTC))
# So far from all others, a few rows are not where history begins or ends.
FAR = dt.timedelta(days=31)
# Data whose newest event is as old as that is an export that has stopped.
STOPPED = dt.timedelta(days=14)
# One customer of many with more of the rows is a till or a test.
ONE_CUSTOMER, MANY_CUSTOMERS = 1 / 3, 10
# Where gaps between orders are a little longer than the horizon, customers look lost who are not.
RHYTHM_DAYS = 7
RHYTHM_SHARE = 0.2
# A text without any of these words is hardly English, which sentiment and topics are made for.
ENGLISH = "the|and|is|it|this|to|of|was|for|not|very|with|but|my|good|great|i"


@dataclass(frozen=True)
class InspectedColumn:
    """A column of ours that a source has.

    Args:
        name: Its name.
        given: Rows that have a value.
        usable: Rows whose value can be used.
        first_unusable: The first other value and where it is, if there is one.
    """

    name: str
    given: int
    usable: int
    first_unusable: str | None


@dataclass
class InspectedTable:
    """What a source has of a table, and how it would be read with the chosen settings.

    Args:
        name: What sources call it.
        rows: Rows of its files or of its query, lines that are none included.
        ingested: Those of them that would be ingested; the others would be in quarantine.
        columns: The columns of ours.
        others: The columns that are not used.
        reasons: Why rows would be in quarantine: the reason, rows, where the first is.
        facts: What it is about, by name.
        warnings: What looks wrong, in words.
        unread: Files that are not read, each with its reason.
        problem: Why the table cannot be read, if it cannot.
    """

    name: str
    rows: int = 0
    ingested: int = 0
    columns: Sequence[InspectedColumn] = ()
    others: Sequence[str] = ()
    reasons: Sequence[tuple[str, int, str]] = ()
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unread: Sequence[tuple[str, str]] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What a source holds.

    Args:
        tables: What it has of each table; those that it does not have are not there.
        settings: Values that suit it, of settings that are not set.
        outlook: What its history is enough for, in words.
    """

    tables: Sequence[InspectedTable]
    settings: Mapping[str, str]
    outlook: Sequence[str]


def inspected(settings: Settings, now: dt.datetime) -> Inspection:
    """Inspect the source of an installation; of the synthetic shop's, the files beside it."""
    source = open_source(settings)
    if settings.source == "synthetic":
        source = Files(settings.input_folder)
    with TemporaryDirectory() as folder:
        duckdb = settings.duckdb_config() | {"temp_directory": folder}
        with OfflineStore(Path(folder), {}, duckdb).connect() as connection:
            return inspect(connection, source, settings, now)


def inspect(
    connection: "DuckDBPyConnection", source: Source, settings: Settings, now: dt.datetime
) -> Inspection:
    """Read a source as an ingestion would, and say what is found.

    Args:
        connection: In UTC; keeps temporary tables.
        source: What to read.
        settings: Of those that are not set, others may be chosen.
        now: Later rows are of the future.
    """
    connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
    tables = list[InspectedTable]()
    chosen: dict[str, str] = {}
    calendar = settings.calendar()
    for raw in RAW_TABLES:
        table = InspectedTable(raw.source_name)
        try:
            rows = source.read(connection, raw, *ALL_TIME)
            if rows is None:
                continue
            span = _look(connection, raw, rows, table)
            if raw is EVENTS and span:
                chosen = _span_settings(span, settings, now)
                calendar = _calendar(settings, chosen)
            tables.append(table)
            until = Calendar(calendar.start, calendar.end or now, calendar.cadence)
            _read(connection, raw, rows, until, table)
            if raw is EVENTS:
                chosen |= _rhythm(connection, settings, table)
        except (ValueError, OSError) as error:
            table.problem = str(error)
            if table not in tables and all(t.problem != table.problem for t in tables):
                tables.append(table)
    if isinstance(source, Files) and settings.source != "files":
        chosen = {"CHURN_SOURCE": "files", **chosen}
    return Inspection(tables, chosen, outlook(_calendar(settings, chosen), now))


def outlook(calendar: Calendar, now: dt.datetime) -> list[str]:
    """What history is enough for, in words; then what it is too short for."""
    enough = [
        f"{name}: {len(keys)} cutoffs, {keys[0]} to {keys[-1]}"
        for name, _, keys in calendar.outlook(now)
        if keys
    ]
    return [*enough, *too_short(calendar, now)]


def too_short(calendar: Calendar, now: dt.datetime) -> list[str]:
    """What history is too short for, and from when on there is that."""
    until = f"CHURN_END is {calendar.end:%Y-%m-%d}" if calendar.end else f"today is {now:%Y-%m-%d}"
    return [
        f"{name}: none, history is too short. They exist from {first} on; CHURN_START is "
        f"{calendar.start}, {until}."
        for name, first, keys in calendar.outlook(now)
        if not keys
    ]


def _calendar(settings: Settings, chosen: Mapping[str, str]) -> Calendar:
    """The calendar of settings, with what is chosen for those that are not set."""
    given = {name.removeprefix("CHURN_").lower(): value for name, value in chosen.items()}
    return settings.model_validate(settings.model_dump() | given).calendar()


def _look(
    connection: "DuckDBPyConnection", raw: RawTable, rows: SourceTable, table: InspectedTable
) -> list[dt.datetime] | None:
    """Fill in what the columns hold; returns between which times rows are.

    In order: the very first, the first of almost all rows, their last, the very last.
    """
    table.unread = [(file.name, file.reason) for file in rows.unread]
    table.warnings += rows.remarks
    ours = {sql.strip('"').lower() for sql in rows.columns.values()}
    table.others = [c for c in own_columns(connection, rows.relation) if c.lower() not in ours]
    counted = connection.execute(f"SELECT count(*) FROM {rows.relation}").fetchall()
    table.rows = counted[0][0]
    formats = find_formats(connection, raw, rows)
    (*values, span) = connection.execute(values_query(raw, rows, formats)).fetchall()[0]
    names = [name for name in raw.source_columns if name in rows.columns]
    table.columns = [
        InspectedColumn(name, *values[3 * place : 3 * place + 3])
        for place, name in enumerate(names)
    ]
    if rows.located:
        files = connection.execute(
            f"SELECT _file, count(*) FROM {rows.relation} WHERE _file <> '' GROUP BY 1 ORDER BY 1"
        ).fetchall()
        table.facts |= _listed("rows by file", files)
    if raw is EVENTS:
        name = as_text(rows.columns["event_type"], formats.dtypes["event_type"], "event_type")
        others = connection.execute(
            f"""SELECT coalesce(name, 'missing'), count(*)
            FROM (SELECT {name} AS name, * FROM {rows.relation})
            WHERE {event_type("name")} = 'other' {"AND _unreadable IS NULL" * rows.located}
            GROUP BY 1 ORDER BY 2 DESC, 1"""
        ).fetchall()
        table.facts |= _listed("event types kept as other", others)
    times: list[dt.datetime] | None = span
    return times


def _listed(what: str, counts: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The first of some counted names as one fact; nothing where there is none."""
    shown = [f"{name} {count:,}" for name, count in counts[:MOST_LISTED]]
    if more := len(counts) - len(shown):
        shown.append(f"and {more:,} more")
    return {what: ", ".join(shown)} if shown else {}


def _span_settings(
    span: Sequence[dt.datetime], settings: Settings, now: dt.datetime
) -> dict[str, str]:
    """Where history begins and ends, of settings that are not set."""
    first, early, late, last = span
    chosen = dict[str, str]()
    if first > now:
        return chosen
    start = settings.start
    if "start" not in settings.model_fields_set:
        start = (first if early - first < FAR else early).date()
        chosen["CHURN_START"] = start.isoformat()
    newest = min(last if last - late < FAR else late, now)
    end = newest.date() + dt.timedelta(days=1)
    if "end" not in settings.model_fields_set and now - newest > STOPPED and end > start:
        chosen["CHURN_END"] = end.isoformat()
    return chosen


def _read(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    rows: SourceTable,
    calendar: Calendar,
    table: InspectedTable,
) -> None:
    """Validate the rows, and fill in what becomes of them."""
    keys = calendar.slices.get_partition_keys()
    table.warnings += ingest(connection, raw, rows, calendar, keys).warnings
    table.reasons = connection.execute(
        f"""SELECT reason, count(*), arg_min({place()}, (file, line)) FROM rejected_rows
        WHERE source = '{raw.source_name}' GROUP BY 1 ORDER BY 2 DESC, 1"""
    ).fetchall()
    table.ingested, customers, first, last, busiest = connection.execute(
        f"""SELECT count(*), count(DISTINCT customer_id), min({raw.timestamp}),
            max({raw.timestamp}), mode(customer_id) FROM valid_rows"""
    ).fetchall()[0]
    if not table.ingested:
        return
    table.facts["time"] = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    table.facts["customers"] = f"{customers:,}"
    if rows.query_lines:
        lines, left_out = connection.execute(
            f"""SELECT count(*), count(*) FILTER (WHERE used._file IS NULL)
            FROM (SELECT DISTINCT _file, _line FROM ({rows.query_lines})) AS lines
            LEFT JOIN (SELECT DISTINCT _file, _line FROM {rows.relation}) AS used
                USING (_file, _line)"""
        ).fetchall()[0]
        table.facts["lines of the files"] = f"{lines:,}, of which the query leaves out {left_out:,}"
    if raw is EVENTS:
        types = connection.execute(
            "SELECT event_type, count(*) FROM valid_rows GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
        table.facts |= _listed("event types", types)
        table.warnings += _odd_events(connection, table.ingested, customers, busiest)
    if raw is REVIEWS:
        table.warnings += _odd_reviews(connection)


def _odd_events(
    connection: "DuckDBPyConnection", rows: int, customers: int, busiest: str
) -> list[str]:
    warnings = list[str]()
    of_busiest = connection.execute(
        "SELECT count(*) FROM valid_rows WHERE customer_id = $1", [busiest]
    ).fetchall()[0][0]
    if customers >= MANY_CUSTOMERS and of_busiest > ONE_CUSTOMER * rows:
        warnings.append(
            f"customer {busiest} has {of_busiest:,} of {rows:,} rows: a till, a test or a word for "
            "a missing id?"
        )
    alike = connection.execute(
        """SELECT count(*), min(ids) FROM (
            SELECT list_sort(list(customer_id))[:2] AS ids
            FROM (SELECT DISTINCT customer_id FROM valid_rows)
            GROUP BY ltrim(lower(customer_id), '0') HAVING count(*) > 1)"""
    ).fetchall()[0]
    if alike[0]:
        warnings.append(
            f"{alike[0]:,} customer ids differ from others by case or leading zeros alone, such as "
            f"{' and '.join(alike[1])}: are they the same customers?"
        )
    coupons = connection.execute(
        """SELECT count(*) FROM valid_rows AS refund SEMI JOIN
            (FROM valid_rows WHERE event_type = 'purchase') AS purchase
            USING (customer_id, order_id, event_timestamp)
        WHERE refund.event_type = 'refund'"""
    ).fetchall()[0][0]
    if coupons:
        warnings.append(
            f"{coupons:,} refunds are lines of an order at the very moment of its purchases. "
            "Coupons? They make the order a refunded one: leave them out by a query."
        )
    return warnings


def _odd_reviews(connection: "DuckDBPyConnection") -> list[str]:
    texts, english = connection.execute(
        f"""SELECT count(text), count(*) FILTER (
            WHERE regexp_matches(lower(text), '\\b({ENGLISH})\\b')) FROM valid_rows"""
    ).fetchall()[0]
    if english >= texts / 2:
        return []
    return [
        f"{texts - english:,} of {texts:,} texts do not look English: sentiment and topics of "
        "other languages mean nothing."
    ]


def _rhythm(
    connection: "DuckDBPyConnection", settings: Settings, table: InspectedTable
) -> dict[str, str]:
    """A horizon that sees customers come back who buy a little less often than the one that is set.

    Monthly payers are away for up to 31 days and have not left.
    """
    horizon = settings.horizon_days
    gaps = "gap > $1 AND gap <= $1 + $2"
    share, longest = connection.execute(
        f"""SELECT count(*) FILTER (WHERE {gaps}) / count(*),
            quantile_disc(gap, 0.99) FILTER (WHERE {gaps})
        FROM (SELECT day - lag(day) OVER (PARTITION BY customer_id ORDER BY day) AS gap
            FROM (SELECT DISTINCT customer_id, CAST(event_timestamp AS DATE) AS day
                FROM valid_rows WHERE event_type = 'purchase'))
        WHERE gap IS NOT NULL""",
        [horizon, RHYTHM_DAYS],
    ).fetchall()[0]
    if not longest or share < RHYTHM_SHARE:
        return {}
    table.warnings.append(
        f"{share:.0%} of the gaps between two orders are {horizon + 1} to {longest} days: with "
        f"CHURN_HORIZON_DAYS={horizon}, customers who buy in that rhythm look lost between two "
        f"orders. CHURN_HORIZON_DAYS={longest} sees them come back."
    )
    return (
        {} if "horizon_days" in settings.model_fields_set else {"CHURN_HORIZON_DAYS": f"{longest}"}
    )
