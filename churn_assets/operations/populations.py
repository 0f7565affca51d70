"""Whether the customers of a partition are the population of its cutoff.

The population is made from the activity of the lookback, which is the dearest question of all, and
every table of a cutoff is asked it. So the process remembers which file has been found equal to the
population, and another table's customers are compared with that file's, row by row: both are sorted
by customer. A file that differs, as one does that was put there by hand in another order, is
compared with the population itself.

What is remembered is the file's path and content, no customer. It is asked again where the file or
the activity is another.
"""

from dataclasses import dataclass
from pathlib import Path

from churn_assets.cutoffs import day_number, parse_key
from churn_assets.features.queries import population
from churn_assets.history.rollups import DAILY_ACTIVITY
from churn_assets.operations.extents import extents
from churn_assets.operations.subjects import Findings, Subject, asked
from churn_assets.stores.digests import file_digest
from churn_assets.stores.partitions import Scan
from churn_assets.stores.sql import quoted


@dataclass(frozen=True)
class Population:
    """What a cutoff's population is made from.

    Args:
        cutoff: The cutoff.
        lookback_days: The population rule.
        contents: SHA-256 of the activity in the lookback.
    """

    cutoff: str
    lookback_days: int
    contents: tuple[str, ...]


@dataclass(frozen=True)
class Equal:
    """A file whose customers are a population.

    Args:
        path: The file.
        content: Its SHA-256 when it was found equal.
    """

    path: Path
    content: str

    @property
    def is_there(self) -> bool:
        return self.path.exists() and file_digest(self.path) == self.content


_known: dict[Population, Equal] = {}


def equals_population(subject: Subject) -> Findings:
    """Customers of the population without a row, and rows of other customers."""
    for cutoff, files in _activity(subject).items():
        made_from = Population(
            cutoff, subject.calendar.lookback_days, tuple(file_digest(path) for path in files)
        )
        equal = _known.get(made_from)
        if equal and equal.is_there and _same_customers(subject, cutoff, equal.path):
            continue
        path = subject.store.path(subject.table, cutoff)
        content = file_digest(path)
        findings = list(_differences(subject.only([cutoff]), files))
        if not findings:
            _known[made_from] = Equal(path, content)
        yield from findings


def _activity(subject: Subject) -> dict[str, tuple[Path, ...]]:
    """The files with activity of the lookback, by cutoff."""
    scan = subject.slices(DAILY_ACTIVITY, max(subject.cutoffs))
    days = extents(subject.connection, scan, "day")
    found = {}
    for cutoff in subject.cutoffs:
        end = day_number(parse_key(cutoff))
        begin = end - subject.calendar.lookback_days
        found[cutoff] = tuple(
            path
            for path, (first, last) in days.items()
            if first is not None and last is not None and first < end and last >= begin
        )
    return found


def _differences(subject: Subject, activity: tuple[Path, ...]) -> Findings:
    """How the customers of one cutoff differ from the population."""

    def query(subject: Subject) -> str:
        [cutoff] = subject.cutoffs
        relation = Scan(DAILY_ACTIVITY, activity).sql
        return f"""
            WITH population AS (
                {population(relation, parse_key(cutoff), subject.calendar.lookback_days)})
            SELECT '{cutoff}' AS part,
                count(*) FILTER (WHERE found.customer_id IS NULL) AS "customers without a row",
                count(*) FILTER (WHERE population.customer_id IS NULL) AS "customers too many"
            FROM population
            FULL JOIN (SELECT DISTINCT customer_id FROM {subject.rows}) AS found
                ON found.customer_id = population.customer_id
        """

    return asked(query)(subject)


def _same_customers(subject: Subject, cutoff: str, other: Path) -> bool:
    """Whether the customers of a cutoff are those of another file, in the same order."""
    found, known = (
        f"read_parquet('{quoted(path)}', hive_partitioning = false)"
        for path in (subject.store.path(subject.table, cutoff), other)
    )
    # Rows of the longer file that have no partner meet NULL.
    rows = subject.connection.execute(
        f"SELECT count(*) FILTER (WHERE (found.customer_id = known.customer_id) IS NOT true) "
        f"FROM {found} AS found POSITIONAL JOIN {known} AS known"
    ).fetchall()
    return rows == [(0,)]
