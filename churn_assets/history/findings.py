"""Findings: what is to be said of the rows of a source, beside those that are ingested.

A value that looks right and cannot be is named here, before features are made from it: a shop whose
purchases are all worth nothing, types of events that nobody knows, files of which most rows are
lost. Nothing here changes a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from churn_assets.history.formats import Formats
from churn_assets.history.ways import place
from churn_assets.sources.source import SourceTable
from churn_assets.sources.tables import EVENTS, RawTable
from churn_assets.stores.pages import markdown

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Least share of a source's rows that need a usable time. Under it the column is another one.
USABLE_TIMES = 0.5
# Share of the rows read from which on quarantine is worth a word.
WORTH_A_WORD = 0.01
# Reasons that follow from settings, not from the rows.
BY_SETTINGS = ("before_start", "future_timestamp")
MOST_SHOWN = 20


@dataclass(frozen=True)
class Findings:
    """What is to be said of a table's rows.

    Args:
        warnings: In words, for the terminal and the log of the run.
        metadata: What the page of each slice shows.
        pending: Rows of after the slices.
        spans: By file, the first and the last time of its rows in microseconds since 1970.
    """

    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    pending: int = 0
    spans: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)


def require_times(raw: RawTable, rows: int, usable: int, first_unusable: str | None) -> None:
    """Refuse a source of which most rows have no time: each would be in quarantine, or most.

    Raises:
        ValueError: Under half of the rows have a usable time.
    """
    if usable < USABLE_TIMES * rows:
        raise ValueError(
            f"{raw.source_name}: {rows - usable:,} of {rows:,} rows have no usable "
            f"{raw.timestamp}, the first is {first_unusable}. Give each row a time, such as "
            "2025-02-01 10:00:00 (UTC) or 2025-02-01T10:00:00+01:00."
        )


def find(
    connection: "DuckDBPyConnection",
    raw: RawTable,
    source: SourceTable,
    formats: Formats,
    pending: int,
) -> Findings:
    """What is to be said of `parsed_rows`, a table of `raw.ingest`."""
    warnings = [*formats.unclear, *_rejected(connection, raw)]
    metadata: dict[str, dict[str, object]] = {}

    def add(name: str, header: list[str], rows: Sequence[tuple[str, list[str]]]) -> None:
        """One table per slice."""
        for key in dict.fromkeys(key for key, _ in rows):
            lines = [line for k, line in rows if k == key]
            if left := lines[MOST_SHOWN:]:
                lines[MOST_SHOWN:] = [[f"and {len(left)} more", *[""] * (len(header) - 1)]]
            metadata.setdefault(key, {})[name] = dg.MetadataValue.md(markdown(header, lines))

    if source.located:
        add("files", ["file", "rows", "ingested", "in quarantine"], _files(connection))
    lost = connection.execute(
        f"""SELECT CAST(slice AS VARCHAR), name, count(*), arg_min({place()}, (file, line))
        FROM (SELECT slice, file, line, unnest(lost) AS name FROM parsed_rows WHERE reason IS NULL)
        GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    add(
        "values_left_out",
        ["column", "rows", "first"],
        [(key, [name, f"{rows:,}", first]) for key, name, rows, first in lost],
    )
    for column in dict.fromkeys(name for _, name, *_ in lost):
        rows = sum(count for _, name, count, _ in lost if name == column)
        first = next(first for _, name, _, first in lost if name == column)
        warnings.append(
            f"{raw.source_name}: {column} of {rows:,} rows cannot be used and is missing, first at "
            f"{first}."
        )
    moved = connection.execute(
        "SELECT CAST(slice AS VARCHAR), count(*) FROM parsed_rows WHERE is_moved GROUP BY 1"
    ).fetchall()
    for key, rows in moved:
        metadata.setdefault(key, {})["known_at_moved"] = rows
    if raw is EVENTS:
        warnings += _of_events(connection, source)
        others = connection.execute(
            """SELECT CAST(slice AS VARCHAR), coalesce(given_type, ''), count(*) FROM parsed_rows
            WHERE reason IS NULL AND event_type = 'other' GROUP BY ALL ORDER BY 1, 3 DESC, 2"""
        ).fetchall()
        header = ["event type, kept as other", "rows"]
        add("other_types", header, [(key, [name, f"{rows:,}"]) for key, name, rows in others])
        turned = connection.execute(
            """SELECT CAST(slice AS VARCHAR), count(*) FROM parsed_rows
            WHERE reason IS NULL AND is_turned GROUP BY 1"""
        ).fetchall()
        for key, rows in turned:
            metadata.setdefault(key, {})["negative_lines_as_refunds"] = rows
    return Findings(tuple(warnings), metadata, pending)


def _files(connection: "DuckDBPyConnection") -> list[tuple[str, list[str]]]:
    rows = connection.execute(
        """SELECT CAST(slice AS VARCHAR), file, count(*), count(*) FILTER (WHERE reason IS NULL)
        FROM parsed_rows GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    return [(key, [file, f"{n:,}", f"{kept:,}", f"{n - kept:,}"]) for key, file, n, kept in rows]


def _rejected(connection: "DuckDBPyConnection", raw: RawTable) -> list[str]:
    """That rows are in quarantine, where it is more than a few."""
    rows = connection.execute(
        f"""SELECT reason, count(*), arg_min({place()}, (file, line))
        FROM parsed_rows GROUP BY 1 ORDER BY 2 DESC, 1"""
    ).fetchall()
    total = sum(count for _, count, _ in rows)
    rejected = [(reason, count, first) for reason, count, first in rows if reason]
    unsettled = sum(count for reason, count, _ in rejected if reason not in BY_SETTINGS)
    none_left = total > 0 and sum(count for _, count, _ in rejected) == total
    if unsettled <= WORTH_A_WORD * total and not none_left:
        return []
    named = ", ".join(f"{count:,} {reason} (first {first})" for reason, count, first in rejected)
    count = sum(count for _, count, _ in rejected)
    return [f"{raw.source_name}: {count:,} of {total:,} rows are in quarantine: {named}."]


def _of_events(connection: "DuckDBPyConnection", source: SourceTable) -> list[str]:
    """That no purchase is worth anything, or no type is known."""
    rows, purchases, worth, known = connection.execute(
        """SELECT count(*), count(*) FILTER (WHERE event_type = 'purchase'),
            count(*) FILTER (WHERE event_type = 'purchase' AND amount > 0),
            count(*) FILTER (WHERE event_type <> 'other')
        FROM parsed_rows WHERE reason IS NULL"""
    ).fetchall()[0]
    warnings = list[str]()
    if purchases and not worth:
        why = "" if "amount" in source.columns else ": the source has no column amount"
        warnings.append(f"events: all {purchases:,} purchases have amount 0{why}.")
    if rows and not known:
        names = connection.execute(
            """SELECT coalesce(given_type, 'missing') FROM parsed_rows WHERE reason IS NULL
            GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 5"""
        ).fetchall()
        warnings.append(
            f"events: the type of none of the {rows:,} rows is known, all are kept as other: "
            f"{', '.join(name for (name,) in names)}."
        )
    return warnings
