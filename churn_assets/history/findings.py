"""Findings: what is to be said of the rows of a source, beside those that are ingested.

A value that looks right and cannot be is named here, before features are made from it: a shop whose
purchases are all worth nothing, types of events that nobody knows, files of which most rows are
lost. Nothing here changes a row.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import dagster as dg

from churn_assets.history.formats import Formats
from churn_assets.history.ways import placed
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

K = TypeVar("K")


@dataclass(frozen=True, order=True)
class Counted:
    """Rows of a kind; the order is that of the first of them.

    Args:
        file: The file of the first.
        line: Its line.
        rows: How many there are.
    """

    file: str
    line: int
    rows: int

    @property
    def place(self) -> str:
        return placed(self.file, self.line)


def _sum(some: Mapping[K, Counted], others: Mapping[K, Counted]) -> dict[K, Counted]:
    found = dict(some)
    for kind, counted in others.items():
        first = min(counted, found.get(kind, counted))
        rows = counted.rows + (found[kind].rows if kind in found else 0)
        found[kind] = replace(first, rows=rows)
    return found


@dataclass(frozen=True)
class Findings:
    """What is to be said of a table's rows.

    Args:
        raw: The table.
        unclear: Why values of columns are left out, in words.
        has_amounts: Whether the source has amounts.
        metadata: What the page of each slice shows.
        by_reason: For each reason of quarantine, and for None, how many rows, and which is first.
        lost: For each column, of how many rows the value is left out, and which is first.
        purchases: How many purchases there are.
        worth: How many of these have an amount.
        known_types: How many events have a type that we know.
        other_types: How many have another, by its name.
    """

    raw: RawTable
    unclear: tuple[str, ...] = ()
    has_amounts: bool = True
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    by_reason: Mapping[str | None, Counted] = field(default_factory=dict)
    lost: Mapping[str, Counted] = field(default_factory=dict)
    purchases: int = 0
    worth: int = 0
    known_types: int = 0
    other_types: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Findings") -> "Findings":
        """What is to be said of the rows of other slices as well."""
        return replace(
            self,
            metadata={**self.metadata, **other.metadata},
            by_reason=_sum(self.by_reason, other.by_reason),
            lost=_sum(self.lost, other.lost),
            purchases=self.purchases + other.purchases,
            worth=self.worth + other.worth,
            known_types=self.known_types + other.known_types,
            other_types=Counter(self.other_types) + Counter(other.other_types),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be said in words, for the terminal and the log of the run."""
        said = [*self.unclear, *_rejected(self.raw, self.by_reason)]
        said += [
            f"{self.raw.source_name}: {column} of {found.rows:,} rows cannot be used and is "
            f"missing, first at {found.place}."
            for column, found in self.lost.items()
        ]
        return (*said, *(self._of_events() if self.raw is EVENTS else ()))

    def _of_events(self) -> list[str]:
        """That no purchase is worth anything, or no type is known."""
        warnings = list[str]()
        if self.purchases and not self.worth:
            why = "" if self.has_amounts else ": the source has no column amount"
            warnings.append(f"events: all {self.purchases:,} purchases have amount 0{why}.")
        others = sum(self.other_types.values())
        if others and not self.known_types:
            most = sorted(self.other_types, key=lambda name: (-self.other_types[name], name))[:5]
            warnings.append(
                f"events: the type of none of the {others:,} rows is known, all are kept as other: "
                f"{', '.join(most)}."
            )
        return warnings


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
    connection: "DuckDBPyConnection", raw: RawTable, source: SourceTable, formats: Formats
) -> Findings:
    """What is to be said of `parsed_rows`, a table of `raw.read_slices`."""
    metadata: dict[str, dict[str, object]] = {}

    def add(name: str, header: list[str], rows: Sequence[tuple[str, list[str]]]) -> None:
        """One table per slice."""
        for key in dict.fromkeys(key for key, _ in rows):
            lines = [line for k, line in rows if k == key]
            if left := lines[MOST_SHOWN:]:
                lines[MOST_SHOWN:] = [[f"and {len(left)} more", *[""] * (len(header) - 1)]]
            metadata.setdefault(key, {})[name] = dg.MetadataValue.md(markdown(header, lines))

    counts = connection.execute(
        """SELECT CAST(slice AS VARCHAR), file, reason, count(*), min(line),
            count(*) FILTER (WHERE is_moved)
        FROM parsed_rows GROUP BY slice, file, reason ORDER BY slice, file, reason"""
    ).fetchall()
    by_reason: dict[str | None, Counted] = {}
    files: dict[tuple[str, str], list[int]] = {}
    for key, file, reason, rows, line, moved in counts:
        by_reason = _sum(by_reason, {reason: Counted(file, line, rows)})
        of_file = files.setdefault((key, file), [0, 0])
        of_file[0] += rows
        of_file[1] += rows if reason is None else 0
        if moved:
            said = metadata.setdefault(key, {})
            said["known_at_moved"] = said.get("known_at_moved", 0) + moved
    if source.located:
        add(
            "files",
            ["file", "rows", "ingested", "in quarantine"],
            [
                (key, [file, f"{rows:,}", f"{kept:,}", f"{rows - kept:,}"])
                for (key, file), (rows, kept) in files.items()
            ],
        )
    values = connection.execute(
        """SELECT CAST(slice AS VARCHAR), name, count(*), arg_min({'file': file, 'line': line},
            (file, line))
        FROM (SELECT slice, file, line, unnest(lost) AS name FROM parsed_rows
            WHERE reason IS NULL AND len(lost) > 0)
        GROUP BY slice, name ORDER BY slice, name"""
    ).fetchall()
    lost: dict[str, Counted] = {}
    for _, name, rows, first in values:
        lost = _sum(lost, {name: Counted(first["file"], first["line"], rows)})
    add(
        "values_left_out",
        ["column", "rows", "first"],
        [
            (key, [name, f"{rows:,}", Counted(**first, rows=rows).place])
            for key, name, rows, first in values
        ],
    )
    has_amounts = "amount" in source.columns
    found = Findings(raw, formats.unclear, has_amounts, metadata, by_reason, lost)
    return _with_events(connection, found, metadata, add) if raw is EVENTS else found


def _with_events(
    connection: "DuckDBPyConnection",
    findings: Findings,
    metadata: dict[str, dict[str, object]],
    add: Callable[[str, list[str], Sequence[tuple[str, list[str]]]], None],
) -> Findings:
    """Findings with what is to be said of events only; adds to the metadata of slices."""
    counts = connection.execute(
        """SELECT CAST(slice AS VARCHAR), count(*) FILTER (WHERE event_type = 'purchase'),
            count(*) FILTER (WHERE event_type = 'purchase' AND amount > 0),
            count(*) FILTER (WHERE event_type <> 'other'), count(*) FILTER (WHERE is_turned)
        FROM parsed_rows WHERE reason IS NULL GROUP BY slice ORDER BY slice"""
    ).fetchall()
    for key, *_, turned in counts:
        if turned:
            metadata.setdefault(key, {})["negative_lines_as_refunds"] = turned
    others = connection.execute(
        """SELECT CAST(slice AS VARCHAR), coalesce(given_type, ''), count(*) FROM parsed_rows
        WHERE reason IS NULL AND event_type = 'other' GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2"""
    ).fetchall()
    header = ["event type, kept as other", "rows"]
    add("other_types", header, [(key, [name, f"{rows:,}"]) for key, name, rows in others])
    types = Counter[str]()
    for _, name, rows in others:
        types[name or "missing"] += rows
    purchases, worth, known = (sum(row[place] for row in counts) for place in (1, 2, 3))
    return replace(findings, purchases=purchases, worth=worth, known_types=known, other_types=types)


def _rejected(raw: RawTable, by_reason: Mapping[str | None, Counted]) -> list[str]:
    """That rows are in quarantine, where it is more than a few."""
    total = sum(found.rows for found in by_reason.values())
    rejected = sorted(
        ((reason, found) for reason, found in by_reason.items() if reason),
        key=lambda of_reason: (-of_reason[1].rows, of_reason[0]),
    )
    unsettled = sum(found.rows for reason, found in rejected if reason not in BY_SETTINGS)
    count = sum(found.rows for _, found in rejected)
    if unsettled <= WORTH_A_WORD * total and not (total > 0 and count == total):
        return []
    named = ", ".join(
        f"{found.rows:,} {reason} (first {found.place})" for reason, found in rejected
    )
    return [f"{raw.source_name}: {count:,} of {total:,} rows are in quarantine: {named}."]
